"""What the server takes in from sites: each reply is read and checked in full before anything of it is kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.shareable import Shareable
from torch import Tensor

from flare_app.aggregation import count_problem
from flare_app.averaging import RoundAverage
from flare_app.egress.plain import is_count, is_number
from flare_app.exchange import FEATURES
from flare_app.protocol import report_of, tensor_bytes, tensors_of
from flare_app.records import RoundRecord, SiteRecord

# Takes the reply of a site; gives the reason when it rejects it. What it raises is a reason as well.
Accept = Callable[[str, Shareable], str | None]

# What a site tells of itself, and what each may be; more may come along.
_INTRODUCTION: dict[str, Callable[[Any], bool]] = {
    "spec": lambda value: isinstance(value, dict) and all(isinstance(text, str) for text in (*value, *value.values())),
    "config_hash": lambda value: isinstance(value, str),
    "settings": lambda value: isinstance(value, dict),
    "shares_features": lambda value: isinstance(value, bool),
    "description": lambda value: (
        isinstance(value, dict)
        and all(isinstance(name, str) for name in value)
        and all(map(is_number, value.values()))
        and is_count(value.get("slices"))
    ),
    "resumed_round": is_count,
}
_LARGEST = 2.0**63  # of a number, so that sums over the sites stay numbers
# Names of metrics come into the log of the server and onto its boards: none breaks a line there or fills them.
_MOST_METRICS = _LONGEST_NAME = 64


@dataclass(frozen=True)
class Declared:
    """What a site has, as it said when it started; what it reports later weighs no more.

    Args:
        slices: to train on.
        validation_volumes: to validate on.
    """

    slices: int
    validation_volumes: int


@dataclass(frozen=True)
class Shared:
    """What a site shares in a round.

    Args:
        rows: how many there are to be had.
        features: the rows, when the server relays them.
    """

    rows: int
    features: DXO | None = None


def introductions(into: dict[str, dict[str, Any]]) -> Accept:
    """Keeps what sites tell of themselves when they have built their workflow."""

    def accept(site: str, answer: Shareable) -> None:
        report = report_of(answer)
        missing = sorted(_INTRODUCTION.keys() - report.keys())
        if missing:
            raise ValueError(f"it does not tell its {', '.join(missing)}")
        broken = [name for name, fits in _INTRODUCTION.items() if not fits(report[name])]
        if broken:
            raise ValueError(f"what it tells of itself is not in the form that was agreed: {', '.join(broken)}")
        json.dumps(report, sort_keys=True)  # raises on what no checkpoint or log could hold
        into[site] = report

    return accept


def shares(into: dict[str, Shared], relayed: bool) -> Accept:
    """Keeps what sites share: features when the server relays them, else the number of rows that peers may pull."""

    def accept(site: str, answer: Shareable) -> None:
        into[site] = _relayed(answer) if relayed else _offered(answer)

    return accept


def _relayed(answer: Shareable) -> Shared:
    tensors = tensors_of(answer, FEATURES)
    if set(tensors) != {"features", "partition"} or any(t.layout != torch.strided for t in tensors.values()):
        raise ValueError("it does not share features and their partitions as plain tensors")
    rows, partitions = (len(tensors[name]) for name in ("features", "partition"))
    if rows != partitions:
        raise ValueError(f"its tensors are of different lengths: {rows} features, {partitions} partitions")
    return Shared(rows, from_shareable(answer))


def _offered(answer: Shareable) -> Shared:
    rows = report_of(answer)["rows"]
    if not is_count(rows):
        raise ValueError("the rows that it shares are no whole number")
    return Shared(rows)


def validations(into: Mapping[str, SiteRecord], declared: Mapping[str, Declared]) -> Accept:
    """Keeps what sites measured that were asked for nothing else: of the final weights, or in a round they rest in.

    Args:
        into: by site.
        declared: by site.
    """

    def accept(site: str, answer: Shareable) -> None:
        into[site].validation = _validation(report_of(answer)["validation"], declared[site])

    return accept


def updates(
    average: RoundAverage, record: RoundRecord, peer_route: bool, declared: Mapping[str, Declared], validates: bool
) -> Accept:
    """Puts updates into the average and what comes with them into the record.

    Args:
        average: of the round.
        record: of the round.
        peer_route: whether the features that a site received came from the sites themselves.
        declared: by site.
        validates: whether sites were asked to validate.
    """

    def accept(site: str, answer: Shareable) -> str | None:
        update: dict[str, Tensor] = tensors_of(answer, DataKind.WEIGHT_DIFF)
        report = report_of(answer)
        problem = count_problem(report["count"], declared[site].slices)
        if problem:
            return problem
        entry, received = record.sites[site], dict(report["features_received"])
        strangers = sorted(received.keys() - record.sites.keys())
        if strangers:
            return f"it has features of {', '.join(strangers)}, which were not asked for any"
        if report["validation"] and not validates:  # it would stand alone, and could choose the best model
            return "it validated, which this round asks of nobody"
        metrics, validation = _numbers(report["metrics"]), _validation(report["validation"], declared[site])
        spent = _numbers({name: report.get(name, 0.0) for name in ("seconds", "peak_mib")})
        parts = _numbers(report.get("parts", {}))
        privacy = _numbers(report["privacy"]) if report.get("privacy") is not None else None
        if not all(map(is_count, received.values())):
            raise ValueError("the bytes of features that it received are no whole numbers")
        problem = average.take(site, update, report["count"])
        if problem:
            return problem
        entry.count, entry.update_norm = report["count"], average.norm(update)
        entry.seconds, entry.parts, entry.peak_mib = spent["seconds"], parts, spent["peak_mib"]
        entry.metrics, entry.validation, entry.privacy = metrics, validation, privacy
        entry.bytes_weights_up, entry.bytes_features_down = tensor_bytes(update), sum(received.values())
        entry.features_from = sorted(received)
        for peer, size in received.items() if peer_route else ():
            record.sites[peer].bytes_features_up += size
        return None

    return accept


def _validation(metrics: Mapping[str, float], declared: Declared) -> dict[str, float]:
    """What a site measured, as plain numbers, unless it would weigh more than the volumes that it has.

    Raises:
        ValueError: when it would, or one is no finite number.
    """
    numbers = _numbers(metrics)
    weight = numbers.get("count", 1.0)
    if numbers and not 0 < weight <= declared.validation_volumes:
        raise ValueError(f"it validated on {weight:g} volumes, and said that it has {declared.validation_volumes}")
    return numbers


def _numbers(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics as plain numbers, unless one would spoil the mean over the sites.

    Raises:
        ValueError: when one is no finite number, there are too many, or a name cannot be printed.
    """
    if len(metrics) > _MOST_METRICS:
        raise ValueError(f"{len(metrics)} metrics, more than {_MOST_METRICS}")
    if not all(isinstance(name, str) and name.isprintable() and len(name) <= _LONGEST_NAME for name in metrics):
        raise ValueError(f"names of metrics that are not of at most {_LONGEST_NAME} printable letters")
    strange = sorted(name for name, value in metrics.items() if not _is_finite(value))
    if strange:
        raise ValueError(f"metrics that are no finite numbers: {', '.join(strange)}")
    return {name: value if type(value) is int else float(value) for name, value in metrics.items()}


def _is_finite(value: Any) -> bool:
    return math.isfinite(value) and abs(value) < _LARGEST
