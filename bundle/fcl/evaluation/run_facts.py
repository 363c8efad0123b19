"""What a federated run's log of rounds says, as plain values: for the report, and for scripts."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fcl.evaluation.federation_log import TRAFFIC, trained_rounds
from fcl.evaluation.run_figures import STATE_COLOURS, site_order

_COLLAPSED = 0.25  # of what the spread of the features was in the first round
_SHOWN_REASONS = 100
# What higher values of mean; of the others nothing is said.
_SCORES = {"partition_knn": "partition kNN accuracy", "mean_dice": "validation Dice"}


@dataclass(frozen=True)
class Run:
    """A run, finished or not.

    Args:
        title: heading of the report.
        lines: of its log of rounds; at least one.
        states: site to its part in each of these rounds, one of ``STATE_COLOURS``.
        total: rounds in all; None where nobody knows.
        ended: whether the job is over; None where nobody knows.
        failure: why it ended before its last round.
        egress: site to receiver to what it got, by column (counts, bytes); None where no manifest is at hand.
        notes: what else a reader should know first.
        facts: how it was run, in words.
        configuration: the same for scripts.
    """

    title: str
    lines: Sequence[Mapping[str, Any]]
    states: Sequence[Mapping[str, str]]
    total: int | None = None
    ended: bool | None = None
    failure: str | None = None
    egress: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None
    notes: Sequence[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    configuration: Mapping[str, Any] = field(default_factory=dict)

    @property
    def trained(self) -> list[Mapping[str, Any]]:
        """Lines of rounds of training."""
        return trained_rounds(self.lines)

    @property
    def sites(self) -> list[str]:
        """All that were asked or left out in any round."""
        return sorted({site for of_round in self.states for site in of_round}, key=site_order)

    @property
    def training_states(self) -> list[tuple[int, Mapping[str, str]]]:
        """Number of the round (1 the first) and :attr:`states` of it, without the final validation."""
        pairs = zip(self.lines, self.states, strict=True)
        return [(line["round"] + 1, states) for line, states in pairs if line["count"]]


def run_facts(run: Run) -> dict[str, Any]:
    """All that the report shows, as a JSON document."""
    return {
        "title": run.title,
        "rounds": {"done": len(run.trained), "total": run.total, "ended": run.ended, "failure": run.failure},
        "warnings": warnings(run),
        "metrics": _measurements(run.lines, "metrics", 1),
        "validation": _measurements(run.lines, "validation", 0),
        "seconds": seconds(run),
        "sites": {site: site_facts(run, site) for site in run.sites},
        "reasons": reasons(run),
        "egress": run.egress,
        "configuration": dict(run.configuration),
    }


def _measurements(lines: Sequence[Mapping[str, Any]], kind: str, ahead: int) -> dict[str, Any]:
    """Metric to its mean and sites, by the number of rounds done."""
    found: dict[str, Any] = {}
    for line in lines:
        done = line["round"] + ahead
        for name, value in line[kind].items():
            found.setdefault(name, {"mean": [], "sites": {}})["mean"].append([done, value])
        for site, entry in line["sites"].items():
            for name, value in entry[kind].items():
                if name in line[kind]:  # "count" weighs a site in the mean: no measurement
                    found[name]["sites"].setdefault(site, []).append([done, value])
    return found


def seconds(run: Run) -> dict[str, Any]:
    """Of each round: all, its slowest site's task, what that site spent it on where the log says so, and the rest."""
    rounds = []
    for line in run.trained:
        entries: list[Mapping[str, Any]] = [*line["sites"].values(), {"seconds": 0.0}]
        slowest = max(entries, key=lambda entry: entry["seconds"])
        rounds.append(
            {
                "round": line["round"] + 1,
                "all": line["seconds"],
                "slowest_site": slowest["seconds"],
                "of_these": dict(slowest.get("parts") or {}),
                "rest": max(0.0, line["seconds"] - slowest["seconds"]),
            }
        )
    return {"all_rounds": sum(line["seconds"] for line in run.lines), "rounds": rounds}


def site_facts(run: Run, site: str) -> dict[str, Any]:
    """One site over all rounds; seconds, waiting and slices are means of the rounds that it answered."""
    own_states = [states[site] for _, states in run.training_states if site in states]
    entries = [line["sites"][site] for line in run.trained if site in line["sites"]]
    answered = [line for line in run.trained if line["sites"].get(site, {}).get("count")]
    timed = [line for line in answered if line["sites"][site]["seconds"]]  # not where training is private
    waits = [
        max(entry["seconds"] for entry in line["sites"].values()) - line["sites"][site]["seconds"] for line in timed
    ]
    epsilons = [entry["privacy"]["epsilon"] for entry in entries if (entry.get("privacy") or {}).get("epsilon")]
    return {
        "rounds": {state: own_states.count(state) for state in STATE_COLOURS},
        "slices_per_round": _mean([line["sites"][site]["count"] for line in answered]),
        "seconds": _mean([line["sites"][site]["seconds"] for line in timed]),
        "waits": _mean(waits),
        "bytes": {kind: sum(entry[f"bytes_{kind}"] for entry in entries) for kind in TRAFFIC},
        "peak_mib": max((entry.get("peak_mib", 0.0) for entry in entries), default=0.0),
        "epsilon": epsilons[-1] if epsilons else None,
    }


def reasons(run: Run) -> list[dict[str, Any]]:
    """Each site that did not answer, with the round and the reason; a reason that stays is told once."""
    found: list[dict[str, Any]] = []
    before: dict[str, tuple[str, str]] = {}
    for line, states in zip(run.lines, run.states, strict=True):
        told = {**line["left_out"], **line["rejected"]}
        now = {site: (states[site], reason) for site, reason in told.items()}
        for site, (state, reason) in sorted(now.items(), key=lambda item: site_order(item[0])):
            if before.get(site) != (state, reason):
                found.append({"round": line["round"] + 1, "site": site, "state": state, "reason": reason})
        before = now
    return found[:_SHOWN_REASONS]


def warnings(run: Run) -> list[str]:
    """What a reader should look at first, in words."""
    found = list(run.notes)
    done = len(run.trained)
    if run.failure:
        found.append(f"The job failed after {done} rounds: {run.failure}")
    elif run.ended and run.total is not None and done < run.total:
        found.append(f"The job ended after {done} of {run.total} rounds: it was aborted.")
    elif run.total is not None and done < run.total:
        found.append(f"In progress, or cut short: {done} of {run.total} rounds are done.")
    found += _missing_sites(run)
    spread = [line["metrics"]["spread"] for line in run.trained if "spread" in line["metrics"]]
    if len(spread) > 1 and spread[-1] < _COLLAPSED * spread[0]:
        found.append(
            f"The features may have collapsed: their spread fell from {spread[0]:.3g} to {spread[-1]:.3g}. Look at "
            "the learning rate, the temperature and the size of the batches."
        )
    loss = [line["metrics"]["loss"] for line in run.trained if "loss" in line["metrics"]]
    if len(loss) > 1 and loss[-1] >= loss[0]:
        found.append(f"The loss did not fall: {loss[0]:.4g} in the first round, {loss[-1]:.4g} in the last.")
    for name, words in _SCORES.items():
        values = [(line["validation"][name], line["round"]) for line in run.lines if name in line["validation"]]
        if len(values) > 1 and values[-1][0] < 0.9 * max(values)[0]:
            best, number = max(values)
            found.append(f"{words} was best after {number} rounds ({best:.3f}) and is now {values[-1][0]:.3f}.")
    return found


def _missing_sites(run: Run) -> list[str]:
    found = []
    states = run.training_states
    for site in run.sites:
        own = [of_round[site] for _, of_round in states if site in of_round]
        asked = [state for state in own if state != "resting"]
        missed = {state: asked.count(state) for state in STATE_COLOURS if state != "answered" and state in asked}
        if missed:
            parts = ", ".join(f"{state} {count}" for state, count in missed.items())
            found.append(f"{site} is missing in {sum(missed.values())} of {len(asked)} rounds ({parts}).")
    return found


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None
