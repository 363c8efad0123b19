"""How much privacy a site's patients have spent, over rounds and over jobs.

The entries of a history are those of opacus' accountants: noise multiplier, sampling rate, number of steps.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

Entry = tuple[float, float, int]
History = list[Entry]

_VERSION = 1
# More and higher orders than opacus tries by default: strong noise has its best bound there.
_ORDERS = (*(1 + x / 10 for x in range(1, 100)), *range(12, 64), 80, 128, 256, 512, 1024)


def epsilon_of(history: Iterable[Entry], delta: float) -> float:
    """Epsilon of the composed Gaussian releases at ``delta``, by opacus' Renyi accountant; 0 for none."""
    spent = [_renyi(noise, rate) * steps for noise, rate, steps in history]
    if not spent:
        return 0.0
    from opacus.accountants.analysis.rdp import get_privacy_spent  # seconds to import, and only noise needs it

    epsilon, _ = get_privacy_spent(orders=_ORDERS, rdp=sum(spent), delta=delta)
    return float(epsilon)


@lru_cache(maxsize=256)
def _renyi(noise_multiplier: float, sample_rate: float) -> np.ndarray:
    """Of one step, at each of the orders. Kept, since histories of many patients are made of few kinds of step."""
    from opacus.accountants.analysis.rdp import compute_rdp

    return compute_rdp(q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=_ORDERS)


class PrivacyLedger:
    """Every noised release about a set of patients, kept in a file that outlives the job.

    A release is written down before it is handed out, so a crash in between counts as spent. Spending never falls: a
    resumed job whose saved state is older than the file goes by the file, one whose file is gone goes by its state.
    What the ledger cannot notice: the file deleted between two jobs, or a patient who returns under another name.

    Args:
        patients: names of the site's patients; they stay in the file, which stays at the site.
        delta: of (epsilon, delta).
        scope: what is released, ``"features"`` or ``"weights"``: each is accounted for on its own.
        file: the ledger; None keeps account in memory and in the saved state only.

    Raises:
        ValueError: when the file is there but is no ledger: without it nothing may be released.
    """

    def __init__(self, patients: Collection[str], delta: float, scope: str, file: str | Path | None = None) -> None:
        self.patients = sorted(set(patients))
        self.delta = delta
        self.scope = scope
        self.file = Path(file).expanduser() if file is not None else None
        self._known: History = []
        self._known = self.history()

    def history(self) -> History:
        """Of the patient who has spent most."""
        return list(max(self._histories(), key=self._epsilon))

    def epsilon(self, further: Entry | None = None) -> float:
        """Of the patient who has spent most; with ``further``, of the one who will have after that release.

        They need not be the same: of two histories the one with less epsilon now may have more after another release.
        """
        histories = self._histories()
        return max(self._epsilon(_added(history, further) if further else history) for history in histories)

    @property
    def releases(self) -> int:
        """Steps of the history."""
        return sum(steps for _, _, steps in self.history())

    def spend(
        self, noise_multiplier: float, sample_rate: float = 1.0, steps: int = 1, budget: float | None = None
    ) -> bool:
        """Write a release down, before anything of it leaves the site.

        Returns:
            False when it would take epsilon beyond ``budget``: then nothing is written and nothing may leave.

        Raises:
            ValueError: when the file cannot be read.
            OSError: when it cannot be written.
        """
        spent = (float(noise_multiplier), float(sample_rate), int(steps))
        if self.file is None:
            return self._spend(spent, budget)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        # Two jobs at one site must not both take what is left.
        with FileLock(f"{self.file}.lock"):
            return self._spend(spent, budget)

    def state_dict(self) -> dict[str, Any]:
        return {"history": [list(entry) for entry in self.history()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state`` says was spent, unless more is known here."""
        saved: History = [(float(noise), float(rate), int(steps)) for noise, rate, steps in state["history"]]
        self._known = max(self._known, saved, key=self._epsilon)

    def _spend(self, spent: Entry, budget: float | None) -> bool:
        if budget is not None and self.epsilon(spent) > budget:
            return False
        if self.file is not None:
            entries = self._read()
            same = {"scope": self.scope, "noise_multiplier": spent[0], "sample_rate": spent[1]}
            last = entries[-1] if entries else {}
            if {**last, **same} == last and last["patients"] == self.patients:
                last["steps"] += spent[2]
            else:
                entries.append({**same, "steps": spent[2], "patients": self.patients})
            entries[-1]["last"] = datetime.now(UTC).isoformat(timespec="seconds")
            self._write(self.file, entries)
        self._known = _added(self._known, spent)
        return True

    def _histories(self) -> list[History]:
        """Those that differ: patients of one job share theirs, so there are few."""
        entries = [
            (frozenset(entry["patients"]), (entry["noise_multiplier"], entry["sample_rate"], entry["steps"]))
            for entry in self._read()
            if entry["scope"] == self.scope
        ]
        takings = dict.fromkeys(tuple(patient in names for names, _ in entries) for patient in self.patients)
        histories = [self._known]
        for taking in takings:
            own: History = []
            for _, spent in compress(entries, taking):
                own = _added(own, spent)
            if own not in histories:
                histories.append(own)
        return histories

    def _epsilon(self, history: Iterable[Entry]) -> float:
        return epsilon_of(history, self.delta)

    def _read(self) -> list[dict[str, Any]]:
        if self.file is None or not self.file.exists():
            return []
        try:
            content = json.loads(self.file.read_text(encoding="utf-8"))
            if content["version"] != _VERSION:
                raise ValueError(f"version {content['version']}, this code reads {_VERSION}")
            for entry in content["entries"]:
                _ = entry["scope"], entry["patients"], *map(float, _numbers(entry))
            return list(content["entries"])
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{self.file} is no readable privacy ledger ({type(error).__name__}: {error}). Nothing is shared "
                "without it: restore it from a backup, or move it away if its releases may be forgotten"
            ) from error

    @staticmethod
    def _write(file: Path, entries: list[dict[str, Any]]) -> None:
        half_written = file.with_name(file.name + ".tmp")
        half_written.unlink(missing_ok=True)  # of a crash; it would keep the mode that it has
        # It names patients: for its owner alone, whatever the umask.
        descriptor = os.open(half_written, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8") as stream:
            json.dump({"version": _VERSION, "entries": entries}, stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        half_written.replace(file)


def _numbers(entry: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    return entry["noise_multiplier"], entry["sample_rate"], entry["steps"]


def _added(history: History, entry: Entry) -> History:
    if history and history[-1][:2] == entry[:2]:
        return [*history[:-1], (*entry[:2], history[-1][2] + entry[2])]
    return [*history, entry]
