"""What the server takes in from sites: each reply is read and checked in full before anything of it is kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from nvflare.apis.dxo import DataKind
from nvflare.apis.shareable import Shareable
from torch import Tensor

from flare_app.averaging import RoundAverage
from flare_app.exchange import FEATURES
from flare_app.protocol import report_of, tensor_bytes, tensors_of
from flare_app.records import RoundRecord, SiteRecord

# Takes the reply of a site; gives the reason when it rejects it. What it raises is a reason as well.
Accept = Callable[[str, Shareable], str | None]

_INTRODUCTION = {"spec", "config_hash", "settings", "shares_features", "description", "resumed_round"}


def introductions(into: dict[str, dict[str, Any]]) -> Accept:
    """Keeps what sites tell of themselves when they have built their workflow."""

    def accept(site: str, answer: Shareable) -> None:
        report = report_of(answer)
        missing = sorted(_INTRODUCTION - report.keys())
        if missing:
            raise ValueError(f"it does not tell its {', '.join(missing)}")
        if not all(isinstance(report[name], dict) for name in ("spec", "settings", "description")):
            raise ValueError("what it tells of itself is not in the form that was agreed")
        json.dumps(report)  # raises on what no checkpoint or log could hold
        into[site] = report

    return accept


def shares(into: dict[str, Shareable], relayed: bool) -> Accept:
    """Keeps what sites share: features when the server relays them, else the number of rows that peers may pull."""

    def accept(site: str, answer: Shareable) -> None:
        if relayed:
            lengths = {name: len(tensor) for name, tensor in tensors_of(answer, FEATURES).items()}
            if len(set(lengths.values())) != 1:
                raise ValueError(f"its tensors are of different lengths: {lengths}")
        else:
            int(report_of(answer)["rows"])
        into[site] = answer

    return accept


def validations(into: Mapping[str, SiteRecord]) -> Accept:
    """Keeps the validation of the final weights."""

    def accept(site: str, answer: Shareable) -> None:
        into[site].validation = _numbers(report_of(answer)["validation"])

    return accept


def updates(average: RoundAverage, record: RoundRecord, peer_route: bool) -> Accept:
    """Puts updates into the average and what comes with them into the record.

    Args:
        average: of the round.
        record: of the round.
        peer_route: whether the features that a site received came from the sites themselves.
    """

    def accept(site: str, answer: Shareable) -> str | None:
        update: dict[str, Tensor] = tensors_of(answer, DataKind.WEIGHT_DIFF)
        report = report_of(answer)
        entry, received = record.sites[site], dict(report["features_received"])
        strangers = sorted(received.keys() - record.sites.keys())
        if strangers:
            return f"it has features of {', '.join(strangers)}, which were not asked for any"
        metrics, validation = _numbers(report["metrics"]), _numbers(report["validation"])
        seconds, peak_mib = float(report["seconds"]), float(report["peak_mib"])
        parts = _numbers(report["parts"])
        privacy = _numbers(report["privacy"]) if report.get("privacy") is not None else None
        received = {str(peer): int(size) for peer, size in received.items()}
        problem = average.take(site, update, report["count"])
        if problem:
            return problem
        entry.count, entry.update_norm = report["count"], average.norm(update)
        entry.seconds, entry.parts, entry.peak_mib = seconds, parts, peak_mib
        entry.metrics, entry.validation, entry.privacy = metrics, validation, privacy
        entry.bytes_weights_up, entry.bytes_features_down = tensor_bytes(update), sum(received.values())
        entry.features_from = sorted(received)
        for peer, size in received.items() if peer_route else ():
            record.sites[peer].bytes_features_up += size
        return None

    return accept


def _numbers(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics as plain numbers, unless one would spoil the mean over the sites.

    Raises:
        ValueError: when one is no finite number.
    """
    strange = sorted(name for name, value in metrics.items() if not math.isfinite(value))
    if strange:
        raise ValueError(f"metrics that are no finite numbers: {', '.join(strange)}")
    return {str(name): value if type(value) is int else float(value) for name, value in metrics.items()}
