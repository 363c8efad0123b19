"""The log of rounds at the server: one JSON object per line in ``rounds.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flare_app.aggregation import weighted_mean
from flare_app.roster import EXCLUDED, NO_ANSWER
from flare_app.storage import replacing, storing

ROUNDS_FILE = "rounds.jsonl"


@dataclass
class SiteRecord:
    """One site in one round.

    Args:
        count: slices of the site, its weight in the average.
        seconds: spent in the site's training task; with ``parts`` and ``peak_mib`` 0 or empty where training is
            private, since they would tell of the sample.
        metrics: aggregates of local training.
        validation: of the global weights that the round began with.
        bytes_weights_down: global weights received.
        bytes_weights_up: weight difference sent.
        bytes_features_up: features sent, to all peers together or to the relaying server.
        bytes_features_down: features received.
        features_from: peers whose features arrived.
        update_norm: L2 norm of the weight difference; None when it is encrypted.
        peak_mib: most memory that the site's process held in this round (MiB; where the system cannot tell, so far).
        privacy: what the noise on its features guarantees; None without noise.
        parts: ``seconds`` by what they were spent on: ``exchange`` (waiting for and taking peers' features),
            ``validation``, ``training``, ``saving``; ``sharing`` is the site's work before that task.
    """

    count: int = 0
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    validation: dict[str, float] = field(default_factory=dict)
    bytes_weights_down: int = 0
    bytes_weights_up: int = 0
    bytes_features_up: int = 0
    bytes_features_down: int = 0
    features_from: list[str] = field(default_factory=list)
    update_norm: float | None = 0.0
    peak_mib: float = 0.0
    privacy: dict[str, float] | None = None
    parts: dict[str, float] = field(default_factory=dict)


@dataclass
class RoundRecord:
    """One round.

    Args:
        round: 0-based; the line of the final validation has the number of rounds and nothing but validation.
        seconds: from the first task to the new global weights.
        count: slices over the accepted sites.
        metrics: mean over accepted sites, weighted by slices.
        validation: mean over sites, weighted by their validation volumes, of the weights that the round began with.
        accepted: sites whose result entered the average.
        rejected: site that was asked to the reason why its result did not.
        left_out: site that was not asked (absent or excluded) to the reason.
        resting: sites whose turn it was not (``sites_per_round``).
        sites: what each site that was asked did; a resting one validates where a round does.
        parts: seconds at the server by what they were spent on: ``validation`` (of resting sites), ``sharing`` and
            ``training`` (from sending that task to the last reply, of which most is waiting), and, beside ``seconds``,
            ``before``: since the end of the round before, for its log and checkpoint.
    """

    round: int
    seconds: float = 0.0
    count: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    validation: dict[str, float] = field(default_factory=dict)
    accepted: list[str] = field(default_factory=list)
    rejected: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    resting: list[str] = field(default_factory=list)
    sites: dict[str, SiteRecord] = field(default_factory=dict)
    parts: dict[str, float] = field(default_factory=dict)


class RoundLog:
    """Appends records to ``rounds.jsonl``.

    Args:
        folder: where the file lies.
        start: rounds finished before; lines of later ones are removed, and those of final validations: the weights
            are validated again, and after further rounds these are final no more.

    Raises:
        StorageError: when the file cannot be written.
    """

    def __init__(self, folder: Path, start: int = 0) -> None:
        self.file = folder / ROUNDS_FILE
        lines = read_rounds(self.file) if self.file.exists() else []
        earlier = [line for line in lines if line["round"] < start and line["count"]]
        with storing(folder, "the log of rounds"), replacing(self.file) as stream:
            stream.write("".join(json.dumps(line) + "\n" for line in earlier).encode())

    def append(self, record: RoundRecord) -> None:
        """Add a line.

        Raises:
            StorageError: when it cannot be written.
        """
        with storing(self.file.parent, f"the record of round {record.round + 1}"), self.file.open("a") as stream:
            stream.write(json.dumps(asdict(record)) + "\n")


def read_rounds(file: Path) -> list[dict[str, Any]]:
    """All whole lines of a log; one cut short by a crash is left out."""
    records = []
    for line in file.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def site_states(line: Mapping[str, Any]) -> dict[str, str]:
    """What became of each site's part in a round of the log.

    ``answered``; ``late`` (asked, no answer in time); ``rejected`` (its answer was an error, or nothing to average);
    ``absent`` (not asked, as it left an earlier task unanswered); ``excluded`` (for good); ``resting`` (not its turn).
    """
    states = {**dict.fromkeys(line["resting"], "resting"), **dict.fromkeys(line["accepted"], "answered")}
    for site, reason in line["rejected"].items():
        states[site] = "late" if reason.startswith(NO_ANSWER) else "rejected"
    for site, reason in line["left_out"].items():
        states[site] = "excluded" if reason.startswith(EXCLUDED) else "absent"
    return states


def mean_validation(entries: Mapping[str, SiteRecord]) -> dict[str, float]:
    """Mean over the sites, weighted by the ``count`` (volumes) that each gives along."""
    return weighted_mean(
        {
            site: (entry.validation.get("count", 1.0), {k: v for k, v in entry.validation.items() if k != "count"})
            for site, entry in entries.items()
        }
    )


def summary(record: RoundRecord, total_rounds: int, sites: int, seconds_left: float) -> str:
    """One line for the log."""
    parts = [f"round {record.round + 1}/{total_rounds}: {len(record.accepted)}/{sites} sites"]
    parts += [f"{name} {value:.4g}" for name, value in sorted(record.metrics.items())]
    parts += [f"validation {name} {value:.4g}" for name, value in sorted(record.validation.items())]
    parts += [f"{record.seconds:.1f} s", f"about {_clock(seconds_left)} left"]
    return ", ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
