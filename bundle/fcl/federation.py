"""What a federation may ask of one site's workflow. The configs declare such objects as their properties
``participant``, ``data_check`` and ``data_statistics``.

Letters: M shared rows, D feature length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor

from fcl.data.problems import DataProblems

__all__ = [
    "DataCheck",
    "DataProblems",
    "DataStatistics",
    "FeatureKind",
    "FeaturePrivacy",
    "FeatureSet",
    "Participant",
    "PrivateWeights",
    "TrainReport",
    "WeightPrivacy",
]

FeatureKind = Literal["features", "prototypes"]


@dataclass(frozen=True)
class FeaturePrivacy:
    """What the noise in a site's features guarantees each of its patients, over all releases so far.

    It covers the features alone: the weights that the same site sends are outside it.

    Args:
        epsilon: cumulative epsilon of (epsilon, delta)-differential privacy, replacing one patient.
        delta: of the same.
        noise_multiplier: standard deviation of the noise over the L2 sensitivity.
        releases: noised sets made so far, this one included.
    """

    epsilon: float
    delta: float
    noise_multiplier: float
    releases: int


@dataclass(frozen=True)
class FeatureSet:
    """Features that one site shows to another; nothing in it tells which volume a row came from.

    Args:
        features: (M, D) unit-norm rows, float32 or float16, on the CPU; no rows when the site shares nothing.
        partition: (M,) int64, index of the partition that each row's slice lies in.
        volumes: distinct volumes that the rows come from; for prototypes the least over the partitions shown.
        privacy: set when the rows were noised, and that promises something.
    """

    features: Tensor
    partition: Tensor
    volumes: int = 0
    privacy: FeaturePrivacy | None = None

    def __len__(self) -> int:
        return int(self.features.shape[0])


@dataclass(frozen=True)
class TrainReport:
    """What one site returns of a round.

    Args:
        weights: the federated tensors after local training (CPU, contiguous, detached).
        count: slices of the site that training draws from, however many of them this round's steps saw; the weight of
            this site in the average (n_k of FedAvg, McMahan et al. 2017).
        metrics: aggregate numbers only, e.g. mean loss.
    """

    weights: dict[str, Tensor]
    count: int
    metrics: dict[str, float] = field(default_factory=dict)


@runtime_checkable
class Participant(Protocol):
    """One site's side of a round, as the federation sees it.

    A round is ``begin_round``, then (with feature exchange) ``publish`` here and ``receive`` of the peers' sets, then
    ``train``.
    """

    shares_features: bool

    def describe(self) -> dict[str, int | float | str]:
        """Counts and sizes: ``slices``, ``volumes``, ``validation_volumes`` (its validation weighs no more), and for
        feature exchange ``feature_length`` and ``partitions``."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """The federated tensors as they are now (CPU, contiguous, detached)."""
        ...

    def begin_round(self, round_number: int, total_rounds: int, weights: Mapping[str, Tensor]) -> None:
        """Take the global weights of round ``round_number`` (0-based)."""
        ...

    def publish(self, kind: FeatureKind) -> FeatureSet:
        """An immutable snapshot of this site's features under the weights of the round that has begun."""
        ...

    def receive(self, site: str, features: FeatureSet, round_number: int) -> None:
        """Features of the peer ``site``, made in round ``round_number``; they replace that peer's earlier ones."""
        ...

    def train(self, should_stop: Callable[[], bool]) -> TrainReport:
        """Train the round's local steps; ``should_stop`` is asked at every step and ends the round early."""
        ...

    def validate(self) -> dict[str, float]:
        """Metrics of the weights that ``begin_round`` loaded, on this site's validation patients; empty if it has none.

        ``count`` (volumes) weighs this site in the mean over sites.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that this site keeps between rounds (tensors and plain Python only)."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave, so that training continues bit for bit."""
        ...


@dataclass(frozen=True)
class WeightPrivacy:
    """What the training of a site keeps to, so that its weights are differentially private by patient (DP-SGD).

    Args:
        noise_multiplier: standard deviation of the noise of a step over ``max_grad_norm``.
        sample_rate: probability of a patient to be in a step.
        max_grad_norm: norm that a patient's gradient is clipped to.
        epsilon_budget: no round is trained that would pass it; None sets no end.
        delta: of (epsilon, delta).
    """

    noise_multiplier: float
    sample_rate: float
    max_grad_norm: float
    epsilon_budget: float | None
    delta: float


@runtime_checkable
class PrivateWeights(Protocol):
    """A :class:`Participant` whose weights are private; it reports ``dp_epsilon`` and ``dp_delta`` of each round."""

    weight_privacy: WeightPrivacy


@runtime_checkable
class DataCheck(Protocol):
    """Whether a site's data are fit to take part."""

    def verify(self, strict: bool = False) -> None:
        """Find everything that is wrong; what is only worth a look is logged, or with ``strict`` wrong as well.

        Raises:
            DataProblems: with all problems at once; its text names files, its ``counts`` do not.
        """
        ...


@runtime_checkable
class DataStatistics(Protocol):
    """A site's data in aggregates. A measure has one value for each patient, or none.

    Mean, standard deviation, extremes and histogram are of the patients with a value, at least one of them.
    """

    def measures(self) -> dict[str, tuple[float, float] | None]:
        """Names of all measures, and the range of each histogram; None where a measure has no histogram."""
        ...

    def totals(self) -> dict[str, int]:
        """``patients``, ``volumes`` and ``slices``."""
        ...

    def count(self, measure: str) -> int:
        """Patients, those without a value included."""
        ...

    def missing(self, measure: str) -> int:
        """Patients without a value."""
        ...

    def mean(self, measure: str) -> float: ...

    def stddev(self, measure: str) -> float: ...

    def extremes(self, measure: str) -> tuple[float, float]:
        """Least and largest value."""
        ...

    def histogram(self, measure: str) -> list[int]:
        """Patients in equal bins of the declared range; values beyond it count in the first and last bin."""
        ...
