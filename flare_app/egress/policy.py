"""What may leave a site, as plain settings that a job or a hospital's ``privacy.json`` can state."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from fcl.card import FIELDS
from flare_app.exchange import KINDS, ROUTES

FEATURE_KINDS = tuple(kind for kind in KINDS if kind != "none")
_LISTED = {"features": FEATURE_KINDS, "routes": ROUTES}  # lists of the policy that may hold nothing else

# What the bundle's methods report: losses and their parts, measures of the features, Dice, epsilon of DP-SGD.
_METRICS = (
    "absolute_error",
    "accuracy",
    "across",
    "agreement",
    "aligning",
    "alignment",
    "bank_remote_rows",
    "contrast",
    "corrupted_share",
    "count",
    "dice_*",
    "divergence",
    "dp_delta",
    "dp_epsilon",
    "instance",
    "kept_share",
    "local",
    "loss",
    "mean_dice",
    "negative_similarity",
    "own",
    "partition_knn",
    "positive_similarity",
    "positives",
    "prototype_entropy",
    "remote",
    "similarity_gap",
    "spread",
    "target_corrected",
    "target_distance",
    "target_distance_expected",
    "uniformity",
)

# What the bundle's statistics of a site's data measure.
_STATISTICS = (
    "in_plane_pixels",
    "in_plane_spacing_mm",
    "intensity_*",
    "share_*",
    "slice_distance_mm",
    "slices",
)


@dataclass(frozen=True)
class EgressPolicy:
    """What may leave; whatever is not named here stays.

    Args:
        features: kinds of features that may be shown to others, ``"features"`` and ``"prototypes"``; an empty list
            shows none: the site takes part with weights only.
        max_rows: most different feature rows in a round.
        max_feature_length: longest row. A whole image flattened into a "feature" would be far longer.
        max_partitions: partitions are numbered below this. A volume's number would not fit for long.
        min_volumes: least cohort of features; those of fewer volumes are withheld.
        min_training_volumes: least cohort of weights; a site that trains on fewer volumes takes no part, and neither
            its weights nor its losses leave. Like the other two it is 2 here, which is one patient in data with two
            volumes of each: a hospital sets it higher.
        min_validation_volumes: least cohort of validation; scores of fewer volumes are taken out.
        max_epsilon: features are withheld unless they are noised and their epsilon is at most this, which it is for no
            site that has shown its patients without noise before; None asks for no noise.
        max_weight_epsilon: weights stay after each training unless it reports an epsilon of its own (``dp_epsilon``)
            that is at most this; None asks for none. Initial weights are from before any training.
        max_delta: largest delta of such epsilons. A job chooses its delta where the site does not, and a large one
            makes any epsilon small.
        routes: ways for features, ``"peer"`` (to the other sites alone) and ``"relay"`` (through the server, which can
            read them); by one that is not listed none leave. The server tells sites the route, whatever the job said:
            ``["peer"]`` holds it to that.
        weights: patterns of the tensors that may be averaged, ``*`` for any part of a name; an empty list lets no
            weights out.
        max_norm: largest L2 norm of an update; None has no limit. Initial weights are not measured.
        metrics: patterns of the aggregates that may be reported, ``*`` for letters and underscores: no digit, so that
            no name of a patient fits.
        description: counts that a site may tell of itself when it starts.
        card: fields of the weights' card that it may declare then, each held to its own pattern (:mod:`fcl.card`):
            settings of network and preprocessing, names of structures, licence; an empty list declares none.
        statistics: patterns of the measures of the data that a ``data_statistics`` job may have aggregates of, ``*`` as
            in ``metrics``; an empty list gives none.
        min_patients: aggregates of fewer patients are withheld.
        max_bins_percent: a histogram is withheld unless it has fewer bins than this part of its patients.
        min_bin_patients: bins of a histogram with fewer patients are not told apart from empty ones.
    """

    features: tuple[str, ...] = FEATURE_KINDS
    max_rows: int = 4096
    max_feature_length: int = 512
    max_partitions: int = 32
    min_volumes: int = 2
    min_training_volumes: int = 2
    min_validation_volumes: int = 2
    max_epsilon: float | None = None
    max_weight_epsilon: float | None = None
    max_delta: float = 1e-5
    routes: tuple[str, ...] = ROUTES
    weights: tuple[str, ...] = (
        "encoder.*",
        "decoder.*",
        "head.*",
        "predictor.*",
        "project.*",
        "prototypes",
        "tokens.*",
    )
    max_norm: float | None = None
    metrics: tuple[str, ...] = _METRICS
    description: tuple[str, ...] = ("slices", "volumes", "validation_volumes", "feature_length", "partitions")
    card: tuple[str, ...] = FIELDS
    statistics: tuple[str, ...] = _STATISTICS
    min_patients: int = 5
    max_bins_percent: int = 50
    min_bin_patients: int = 3

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> EgressPolicy:
        """Check and take ``settings``; what they leave out has its default.

        Raises:
            ValueError: on unknown keys or values that do not fit, all of them at once.
        """
        defaults = {entry.name: entry.default for entry in fields(cls)}
        problems: list[str] = []
        values: dict[str, Any] = {}
        for key, value in settings.items():
            if key not in defaults:
                close = difflib.get_close_matches(str(key), defaults, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(defaults)}"
                problems.append(f"unknown key {key!r}, {hint}")
                continue
            problem = _problem(key, value, defaults[key])
            if problem:
                problems.append(f"{key} {problem}, got {value!r}")
            values[key] = tuple(value) if isinstance(value, list | tuple) else value
        if problems:
            raise ValueError(f"egress policy: {'; '.join(problems)}")
        return cls(**values)

    @property
    def digest(self) -> str:
        """Short hash of all settings, which every line of the manifest names; the order of lists is no matter."""
        settings = {name: sorted(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]

    def allows_weight(self, name: str) -> bool:
        return _matches(name, self.weights, r"[\w.]*")

    def allows_metric(self, name: str) -> bool:
        return _matches(name, self.metrics, r"[A-Za-z_]{0,32}")

    def allows_statistic(self, name: str) -> bool:
        return _matches(name, self.statistics, r"[A-Za-z_]{0,32}")


def _problem(key: str, value: object, default: object) -> str | None:
    if isinstance(default, tuple):
        if not isinstance(value, list | tuple) or not all(isinstance(entry, str) and entry for entry in value):
            return "must be a list of texts"
        known = _LISTED.get(key, value)
        return None if set(value) <= set(known) else f"may hold {' and '.join(known)}"
    if key == "max_bins_percent" and isinstance(value, int) and value > 100:
        return "must be at most 100"
    if isinstance(default, int):
        whole = isinstance(value, int) and not isinstance(value, bool)
        return None if whole and value >= 1 else "must be a whole number of at least 1"  # type: ignore[operator]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, float):
        return None if number and 0 < value < 1 else "must be a number between 0 and 1"  # type: ignore[operator]
    return None if value is None or (number and value > 0) else "must be a positive number or null"  # type: ignore[operator]


def _matches(name: str, patterns: Iterable[str], star: str) -> bool:
    return any(re.fullmatch(star.join(re.escape(part) for part in pattern.split("*")), name) for pattern in patterns)
