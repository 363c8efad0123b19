"""What a site shows of its feature bank: how much, from how many, with how much noise, and how often.

Letters: M shared rows, D feature length, S partitions, n patients.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fcl.federation import FeatureKind, FeaturePrivacy, FeatureSet
from fcl.memory import FeatureBank
from fcl.privacy.accounting import PrivacyLedger
from fcl.privacy.mechanisms import (
    features_sensitivity,
    noised,
    patient_prototypes,
    patient_rows,
    prototypes_sensitivity,
)
from fcl.privacy.noise import NoiseSource, os_normal

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeaturePolicy:
    """How a site shares features.

    Args:
        noise_multiplier: standard deviation of the Gaussian noise over the sensitivity; None adds none, and then
            nothing is differentially private.
        rows_per_patient: rows of one patient in a release, at most (exactly, with noise); None: all rows without noise,
            one for each partition with noise. The noise grows with its square root.
        delta: of (epsilon, delta); well below 1 / patients.
        epsilon_budget: no rows leave once the next release would pass it; None sets no end.
        min_volumes: no rows leave that come from fewer volumes; prototypes: in any partition.
        ledger: file that keeps account over jobs (see :class:`fcl.privacy.PrivacyLedger`), of releases without noise
            too: they end the promise for their patients, for good.

    Raises:
        ValueError: naming every value that makes no sense.
    """

    noise_multiplier: float | None = None
    rows_per_patient: int | None = None
    delta: float = 1e-5
    epsilon_budget: float | None = None
    min_volumes: int = 2
    ledger: str | Path | None = None

    def __post_init__(self) -> None:
        problems = []
        if self.noise_multiplier is not None and not self.noise_multiplier > 0:
            problems.append(f"noise_multiplier must be above 0, or null for no noise; got {self.noise_multiplier!r}")
        if self.rows_per_patient is not None and self.rows_per_patient < 1:
            problems.append(f"rows_per_patient must be at least 1, or null; got {self.rows_per_patient!r}")
        if not 0 < self.delta < 1:
            problems.append(f"delta must lie between 0 and 1, got {self.delta!r}")
        if self.epsilon_budget is not None and not self.epsilon_budget > 0:
            problems.append(f"epsilon_budget must be above 0, or null; got {self.epsilon_budget!r}")
        if self.epsilon_budget is not None and self.noise_multiplier is None:
            problems.append("epsilon_budget needs a noise_multiplier: without noise there is no epsilon to keep to")
        if self.min_volumes < 1:
            problems.append(f"min_volumes must be at least 1, got {self.min_volumes!r}")
        if problems:
            raise ValueError("feature privacy: " + "; ".join(problems))


class FeaturePublisher:
    """Makes the releases of one site.

    With noise, each is the Gaussian mechanism of :mod:`fcl.privacy.mechanisms`, patient by patient, composed over all
    releases of the site. That holds for a bank whose rows are, each by itself, a function of its slice and of weights
    that the federation has seen; the caller answers for it. Order tells nothing: rows are sorted by their own values,
    since a seeded shuffle can be undone by whoever knows the job's seed.

    Args:
        bank: the site's features.
        patients: patient of each volume of the bank.
        policy: see :class:`FeaturePolicy`.
        max_rows: rows of a release, at most; None sets no cap.
        generator: chooses rows; the guarantee does not rest on it. With noise, how much is drawn from it depends on
            numbers that are public.
        noise: source of the noise.
    """

    def __init__(
        self,
        bank: FeatureBank,
        patients: Sequence[str],
        policy: FeaturePolicy,
        max_rows: int | None = None,
        generator: torch.Generator | None = None,
        noise: NoiseSource = os_normal,
    ) -> None:
        self.bank = bank
        self.policy = policy
        self.max_rows = max_rows
        self.generator = generator
        self.noise = noise
        names = sorted(set(patients))
        self.patients = len(names)
        self._names = names
        self._noted_plain = policy.ledger is None  # that its patients are shown without noise, as far as they are
        self._promise_missed = False
        self.patient_of_volume = torch.tensor([names.index(patient) for patient in patients])
        self.ledger = (
            PrivacyLedger(names, policy.delta, "features", policy.ledger)
            if policy.noise_multiplier is not None
            else None
        )

    def publish(self, kind: FeatureKind) -> FeatureSet:
        """A new release; no rows when the policy forbids one. Every call with noise spends."""
        shown = self._plain(kind) if self.ledger is None else self._noised(kind, self.ledger)
        if 0 < shown.volumes < self.policy.min_volumes:
            return self._nothing(
                f"its rows come from {shown.volumes} volumes, min_volumes is {self.policy.min_volumes}"
            )
        if self.ledger is None and len(shown) and not self._noted_plain:
            PrivacyLedger(self._names, self.policy.delta, "features", self.policy.ledger).note_plain()
            self._noted_plain = True
        return shown

    def state_dict(self) -> dict[str, Any]:
        return {} if self.ledger is None else self.ledger.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.ledger is not None and state:
            self.ledger.load_state_dict(state)

    def _plain(self, kind: FeatureKind) -> FeatureSet:
        if kind == "prototypes":
            return self.bank.prototypes()
        return self.bank.snapshot(self.max_rows, self.generator, self.patient_of_volume, self.policy.rows_per_patient)

    def _noised(self, kind: FeatureKind, ledger: PrivacyLedger) -> FeatureSet:
        multiplier, budget = self.policy.noise_multiplier, self.policy.epsilon_budget
        assert multiplier is not None
        own, partitions = self.bank.local(), self.bank.partitions
        volume = own.volume.cpu()
        volumes = len(volume.unique())
        if volumes < self.policy.min_volumes:
            return self._nothing(f"it has {volumes} volumes, min_volumes is {self.policy.min_volumes}")
        plain = ledger.plain
        if not ledger.spend(multiplier, budget=budget):
            reason = f"another release would take epsilon beyond the budget of {budget:g}"
            return self._nothing(f"{_shown_plain(ledger)}, so that no budget holds" if plain else reason)
        if plain and not self._promise_missed:
            logger.warning("%s: this site's features are noised, and promise nothing.", _shown_plain(ledger))
            self._promise_missed = True
        # A patient's place decides which of its partitions show. In the order of names, another name in one patient's
        # stead could move everybody's.
        place = torch.tensor(random.SystemRandom().sample(range(self.patients), self.patients))
        features, partition, patient = own.features.cpu(), own.partition.cpu(), place[self.patient_of_volume[volume]]
        if kind == "prototypes":
            rows = patient_prototypes(features, partition, patient, self.patients, partitions)
            shown, sensitivity = torch.arange(partitions), prototypes_sensitivity(partitions, self.patients)
        else:
            count = self.policy.rows_per_patient or partitions
            rows, shown = patient_rows(features, partition, patient, self.patients, count, partitions, self.generator)
            sensitivity = features_sensitivity(count)
        released = noised(rows, multiplier * sensitivity, self.noise)
        if kind == "features":
            kept = torch.randperm(len(released), generator=self.generator)[: self.max_rows]
            kept = kept[released[kept, 0].argsort()]
            released, shown = released[kept], shown[kept]
        return FeatureSet(released, shown, volumes, self._spent(ledger))

    def _nothing(self, reason: str) -> FeatureSet:
        logger.warning("This site shares no features: %s.", reason)
        empty = torch.zeros(0, self.bank.feature_length)
        spent = self._spent(self.ledger) if self.ledger is not None else None
        return FeatureSet(empty, torch.zeros(0, dtype=torch.int64), 0, spent)

    def _spent(self, ledger: PrivacyLedger) -> FeaturePrivacy | None:
        multiplier, releases = self.policy.noise_multiplier, ledger.releases
        epsilon = ledger.epsilon()
        if multiplier is None or not releases or math.isinf(epsilon):
            return None
        return FeaturePrivacy(epsilon, ledger.delta, multiplier, releases)


def _shown_plain(ledger: PrivacyLedger) -> str:
    return (
        f"patients of this site were shown without noise before, as {ledger.file or 'the saved state'} says (move it "
        "away to count from now on, if the manifest says that nothing left, or if that may be forgotten)"
    )
