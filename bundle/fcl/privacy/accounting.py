"""How much privacy a site's patients have spent, over rounds and over jobs.

The entries of a history are those of opacus' accountants: noise multiplier, sampling rate, number of steps. A noise
multiplier of 0 is a release without noise, after which no epsilon holds.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from functools import lru_cache
from itertools import chain, compress
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from filelock import FileLock

Entry = tuple[float, float, int]
History = list[Entry]
# As in the file: all releases of one kind that one ledger object has written down.
Record = dict[str, Any]

_PLAIN: Entry = (0.0, 1.0, 1)  # rows without noise were shown; how often is no matter
_VERSION = 2
# More and higher orders than opacus tries by default: strong noise has its best bound there.
_ORDERS = (*(1 + x / 10 for x in range(1, 100)), *range(12, 64), 80, 128, 256, 512, 1024)


def epsilon_of(history: Iterable[Entry], delta: float) -> float:
    """Epsilon of the composed Gaussian releases at ``delta``, by opacus' Renyi accountant; 0 for none, infinite with a
    release without noise."""
    history = list(history)
    if _is_plain(history):
        return math.inf
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
    """Every release about a set of patients, kept in a file that outlives the job.

    A release is written down before it is handed out, so a crash in between counts as spent. Spending never falls: the
    file says who wrote what, so that of releases which file and saved state both know the larger number counts, and
    those which one of them lacks are added. What a resumed job finds missing in the file it writes back; the state
    holds no names, so that counts for every patient of the site. What the ledger cannot notice: the file deleted
    between two jobs, or a patient who returns under another name.

    Args:
        patients: names of the site's patients; they stay in the file, which stays at the site.
        delta: of (epsilon, delta).
        scope: what is released, ``"features"`` or ``"weights"``: each is accounted for on its own.
        file: the ledger; None keeps account in memory and in the saved state only.

    Raises:
        ValueError: on a delta that is none; when the file is there but is no ledger, without which nothing is released.
    """

    def __init__(self, patients: Collection[str], delta: float, scope: str, file: str | Path | None = None) -> None:
        if not 0 < delta < 1:
            raise ValueError(f"delta must lie between 0 and 1, got {delta!r}")
        self.patients = sorted(set(patients))
        self.delta = delta
        self.scope = scope
        self.file = Path(file).expanduser() if file is not None else None
        self._job = uuid4().hex  # of this object: a resumed job is another one
        self._known: list[Record] = []  # of these patients and this scope
        self._records()

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

    @property
    def plain(self) -> bool:
        """Whether any of the patients was shown without noise."""
        return any(map(_is_plain, self._histories()))

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
        with self._locked():
            if budget is not None and not self.epsilon(spent) <= budget:  # nor when the budget is no number
                return False
            record = self._record(self._job, spent)
            before = [own["steps"] for own in self._known if _kind(own) == _kind(record)]
            self._add([{**record, "steps": sum(before, start=spent[2])}])
        return True

    def note_plain(self) -> None:
        """Write down that these patients are shown without noise, before they are: of them no epsilon holds any more.

        Once for each patient: the file is not written again when it says so already.

        Raises:
            ValueError, OSError: as :meth:`spend`.
        """
        with self._locked():
            if not all(map(_is_plain, self._histories())):
                self._add([self._record(self._job, _PLAIN)])

    def state_dict(self) -> dict[str, Any]:
        self._records()
        return {"releases": [[record["job"], *_numbers(record)] for record in self._known]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state`` says was spent, and write down what the file lacks of it.

        Raises:
            ValueError, OSError: as :meth:`spend`.
        """
        with self._locked():
            self._add([self._record(job, (noise, rate, steps)) for job, noise, rate, steps in state["releases"]])

    def _record(self, job: str, spent: Entry) -> Record:
        return {
            "job": job,
            "scope": self.scope,
            "noise_multiplier": spent[0],
            "sample_rate": spent[1],
            "steps": spent[2],
            "patients": self.patients,
            "last": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def _locked(self) -> AbstractContextManager[object]:
        if self.file is None:
            return nullcontext()
        self.file.parent.mkdir(parents=True, exist_ok=True)
        # Two jobs at one site must not both take what is left.
        return FileLock(f"{self.file}.lock")

    def _add(self, further: Iterable[Record]) -> None:
        """Write down what is known here and ``further``, in the file first."""
        records = _together(self._records(), further)
        if self.file is not None and records:
            self._write(self.file, records)
        self._know(records)

    def _records(self) -> list[Record]:
        """Of the file, and those known here that it lacks, since somebody deleted it or put an older one in place."""
        records = _together(self._read(), self._known)
        self._know(records)
        return records

    def _know(self, records: Iterable[Record]) -> None:
        ours = set(self.patients)
        self._known = [
            record for record in records if record["scope"] == self.scope and not ours.isdisjoint(record["patients"])
        ]

    def _histories(self) -> list[History]:
        """Those that differ: patients of one job share theirs, so there are few."""
        self._records()
        entries = [(frozenset(record["patients"]), _numbers(record)) for record in self._known]
        takings = dict.fromkeys(tuple(patient in names for names, _ in entries) for patient in self.patients)
        histories: list[History] = []
        for taking in takings:
            own: History = []
            for _, spent in compress(entries, taking):
                own = _added(own, spent)
            if own not in histories:
                histories.append(own)
        return histories

    def _epsilon(self, history: Iterable[Entry]) -> float:
        return epsilon_of(history, self.delta)

    def _read(self) -> list[Record]:
        if self.file is None or not self.file.exists():
            return []
        try:
            content = json.loads(self.file.read_text(encoding="utf-8"))
            if content["version"] != _VERSION:
                raise ValueError(f"version {content['version']}, this code reads {_VERSION}")
            for entry in content["entries"]:
                _ = *_kind(entry), entry["patients"], entry["last"], *map(float, _numbers(entry))
            return list(content["entries"])
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{self.file} is no readable privacy ledger ({type(error).__name__}: {error}). Nothing is shared "
                "without it: restore it from a backup, or move it away if its releases may be forgotten"
            ) from error

    @staticmethod
    def _write(file: Path, entries: list[Record]) -> None:
        half_written = file.with_name(file.name + ".tmp")
        half_written.unlink(missing_ok=True)  # of a crash; it would keep the mode that it has
        # It names patients: for its owner alone, whatever the umask.
        descriptor = os.open(half_written, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8") as stream:
            json.dump({"version": _VERSION, "entries": entries}, stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        half_written.replace(file)


def _is_plain(history: Iterable[Entry]) -> bool:
    return any(noise == 0 for noise, _, _ in history)


def _numbers(record: Record) -> Entry:
    return record["noise_multiplier"], record["sample_rate"], record["steps"]


def _kind(record: Record) -> tuple[Any, ...]:
    return record["job"], record["scope"], record["noise_multiplier"], record["sample_rate"]


def _together(*sources: Iterable[Record]) -> list[Record]:
    """One record of each kind, with the most steps that a source has: whoever wrote it only ever added to it."""
    known: dict[tuple[Any, ...], Record] = {}
    for record in chain(*sources):
        same = known.setdefault(_kind(record), record)
        if record["steps"] > same["steps"]:
            known[_kind(record)] = {**same, "steps": record["steps"], "last": record["last"]}
    return list(known.values())


def _added(history: History, entry: Entry) -> History:
    if history and history[-1][:2] == entry[:2]:
        return [*history[:-1], (*entry[:2], history[-1][2] + entry[2])]
    return [*history, entry]
