"""What a site declared of itself when it started: all that it sends later is held to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flare_app.aggregation import shape_of
from flare_app.egress.plain import EgressError
from flare_app.egress.policy import EgressPolicy


@dataclass(frozen=True)
class Declared:
    """The tensors of the site's network.

    Args:
        shapes: by name.
    """

    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, policy: EgressPolicy, report: Mapping[str, Any], before: Declared | None) -> Declared:
        """From a report that has been checked key by key.

        Args:
            policy: of the site or the job.
            report: with which the site starts.
            before: what this process declared when it started earlier in the job, if it did.

        Raises:
            EgressError: when the site has too few volumes to train on, or declares others than before.
        """
        volumes = report.get("description", {}).get("volumes", 0)
        if volumes < policy.min_training_volumes:
            least = policy.min_training_volumes
            detail = f"it would train on {volumes:g} volumes, the least is min_training_volumes = {least}"
            raise EgressError("weights.cohort", detail, stops=False)
        declared = cls({name: tuple(shape_of(text)) for name, text in report.get("spec", {}).items()})
        if before is not None and before != declared:
            raise EgressError("report.spec", "other tensors than this site declared before")
        return declared
