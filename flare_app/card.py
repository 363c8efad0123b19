"""What the server can say of the weights that a federation made, without naming anybody."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fcl.card import FIELDS, card_of, fits, fitting, versions
from flare_app.records import RoundRecord

_METRIC = re.compile(r"[A-Za-z_]{1,64}")  # no digit, so that no name of a patient fits
_NOISED = {"features": ("epsilon", "delta"), "training": ("dp_epsilon", "dp_delta")}


@dataclass
class Facts:
    """What a run has told so far. Names of sites are kept to count them, and stay out of the card.

    Args:
        declared: by site, the fields of :mod:`fcl.card` that it declared when it started.
        noise: by what was noised (``features``, ``training``) and site, the latest ``epsilon`` and ``delta``.
        metrics: of the last validation.
        metrics_rounds: rounds that the validated weights were trained for.
        exchange, route: of the job.
        pretrained: what the card of the weights that the run began with says of its origin.
    """

    declared: dict[str, dict[str, Any]] = field(default_factory=dict)
    noise: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    metrics_rounds: int = 0
    exchange: str = "none"
    route: str = "none"
    pretrained: dict[str, Any] | None = None

    def hear(self, site: str, report: Mapping[str, Any]) -> None:
        """Take what a site declares; a field that does not hold what it may is as if it had not been told."""
        declared = report.get("card")
        self.declared[site] = fitting(declared) if isinstance(declared, dict) else {}

    def note(self, record: RoundRecord, rounds: int) -> None:
        """Take what the accepted sites report of a round, or of the final validation.

        Args:
            record: of it.
            rounds: finished when it began, which its validation is of.
        """
        for site in record.accepted:
            entry = record.sites[site]
            for kind, told in (("features", entry.privacy or {}), ("training", entry.metrics)):
                epsilon, delta = _NOISED[kind]
                if epsilon in told and delta in told:
                    spent = {"epsilon": float(told[epsilon]), "delta": float(told[delta])}
                    self.noise.setdefault(kind, {})[site] = spent
        if record.validation:
            self.metrics = {name: v for name, v in sorted(record.validation.items()) if _METRIC.fullmatch(name)}
            self.metrics_rounds = rounds

    def card(self, rounds: int, sites: int, config_hash: str) -> dict[str, Any]:
        """The card of the weights after ``rounds`` rounds, to which ``sites`` sites contributed."""
        told = {name: self._told(name) for name in FIELDS}
        declared = {name: _of_most(values) for name, values in told.items() if values}
        if told["data_license"]:
            declared["data_license"] = "; ".join(sorted(set(told["data_license"])))
        return card_of(
            declared,
            sites=sites,
            rounds=rounds,
            exchange=self.exchange,
            route=self.route if self.exchange != "none" else "none",
            epsilon={kind: _weakest(by_site) for kind, by_site in sorted(self.noise.items())} or "none",
            metrics=dict(self.metrics),
            metrics_rounds=self.metrics_rounds,
            pretrained=self.pretrained,
            # Each is that of most sites; these are not the same everywhere.
            sites_differ_in=[name for name, values in told.items() if len(set(map(json.dumps, values))) > 1],
            config_hash=config_hash,
            versions=versions("monai", "torch", "nvflare"),
        )

    def _told(self, name: str) -> list[Any]:
        return [told[name] for _, told in sorted(self.declared.items()) if name in told]


def declaration(asked: Any) -> dict[str, Any]:
    """The settings of a card that the server sent along, as a site may use them in its configuration.

    Raises:
        ValueError: when they are anything but that.
    """
    if not isinstance(asked, dict) or any(not fits(name, value) for name, value in asked.items()):
        raise ValueError("the server sent settings of the pre-trained weights that no card holds")
    return asked


def _of_most(values: list[Any]) -> Any:
    return max(values, key=values.count)


def _weakest(by_site: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The largest epsilon and delta over the sites that reported one, and how many did."""
    largest = {name: max(spent[name] for spent in by_site.values()) for name in ("epsilon", "delta")}
    return {**largest, "sites": len(by_site)}
