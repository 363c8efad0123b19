"""What an attacker makes of shared features: pure functions, every result with its spread over patients.

An area under the curve (AUC) is the chance that a random positive scores above a random negative, ties half: 0.5 tells
nothing, 1.0 everything. Pairs are compared within a stratum only (a site; a site and a partition), so that what differs
between strata is not taken for leakage. The spread is the 95 % interval of a bootstrap over patients, because slices of
one patient are no independent observations, and over the runs of the noise, which move the result as much.

Letters: N rows, D feature length, P patients, T bootstrap samples, R runs of the noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Estimate(NamedTuple):
    """A value and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Rows:
    """Rows whose origin the judge of an attack knows, and the attacker does not.

    Args:
        features: (N, D) unit rows.
        partition, patient, site, volume: (N,) int64; a prototype belongs to no patient or volume: -1.
    """

    features: Tensor
    partition: Tensor
    patient: Tensor
    site: Tensor
    volume: Tensor

    def __len__(self) -> int:
        return len(self.features)

    def where(self, chosen: Tensor) -> Rows:
        """The rows that ``chosen`` (mask or index) takes."""
        parts = (self.features, self.partition, self.patient, self.site, self.volume)
        return Rows(*(part[chosen] for part in parts))

    @staticmethod
    def together(parts: Sequence[Rows]) -> Rows:
        """All rows of several sets."""
        names = ("features", "partition", "patient", "site", "volume")
        return Rows(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


@dataclass(frozen=True)
class Bootstrap:
    """How often each patient and each run is drawn; the first sample is the data itself, everything once.

    Args:
        patients: (1 + T, P).
        runs: (1 + T, R), shares that sum to 1.
    """

    patients: Tensor
    runs: Tensor

    @staticmethod
    def draw(group_P: Tensor, runs: int, samples: int, generator: torch.Generator) -> Bootstrap:
        """With replacement; patients within their group (members, held-out ones) and over all sites.

        Not within each site: of the two or three that a site holds out, a bootstrap would show half the spread.
        """
        drawn = torch.zeros(samples, len(group_P))
        for group in group_P.unique():
            own = (group_P == group).nonzero()[:, 0]
            chosen = own[torch.randint(len(own), (samples, len(own)), generator=generator)]
            drawn.scatter_add_(1, chosen, torch.ones(chosen.shape))
        of_runs = torch.zeros(samples, runs)
        which = torch.randint(runs, (samples, runs), generator=generator)
        of_runs.scatter_add_(1, which, torch.ones(which.shape))
        once = torch.ones(1, len(group_P)), torch.full((1, runs), 1 / runs)
        return Bootstrap(torch.cat([once[0], drawn]), torch.cat([once[1], of_runs / runs]))

    def estimate(self, values_TR: Tensor) -> Estimate:
        """Mean over runs of the data itself, with the 2.5th and 97.5th percentile of the samples."""
        values = (values_TR * self.runs).sum(dim=1).double()
        kept = values[1:][values[1:].isfinite()]
        low, high = torch.quantile(kept, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        return Estimate(float(values[0]), low, high)


def wins(positive: Tensor, negative: Tensor) -> Tensor:
    """(positives, negatives): 1 where the positive scores higher, 0.5 at a tie."""
    return (positive[:, None] > negative).float() + 0.5 * (positive[:, None] == negative).float()


def closeness(candidates: Rows, shared: Rows, patients: int, without_P: Tensor | None = None) -> Tensor:
    """(P,) mean over a patient's slices of the cosine to the nearest shared row of its own site and partition.

    Args:
        candidates: what the attacker has of the patients; one without any gets NaN.
        shared: what the sites showed.
        patients: P.
        without_P: for each patient, whose shared rows are left out, for :func:`left_out`.
    """
    nearest = torch.full((len(candidates),), -1.0)
    for site in candidates.site.unique():
        asked, rows = (candidates.site == site).nonzero()[:, 0], shared.where(shared.site == site)
        if len(rows) == 0:
            continue
        apart = candidates.partition[asked, None] != rows.partition
        if without_P is not None:
            apart |= without_P[candidates.patient[asked], None] == rows.patient
        similarity = candidates.features[asked] @ rows.features.T
        nearest[asked] = similarity.masked_fill(apart, -1.0).amax(dim=1)
    counts = torch.bincount(candidates.patient, minlength=patients)
    return torch.bincount(candidates.patient, nearest.double(), minlength=patients) / counts


def left_out(member_P: Tensor, site_P: Tensor, generator: torch.Generator) -> Tensor:
    """(P,) a member leaves itself out, a held-out patient a random member of its site: both face equally many rows.

    Membership that an attacker still tells then comes from the encoder, not from the patient's own rows.
    """
    without = torch.arange(len(member_P))
    for patient in (~member_P).nonzero()[:, 0].tolist():
        others = (member_P & (site_P == site_P[patient])).nonzero()[:, 0]
        without[patient] = others[torch.randint(len(others), (1,), generator=generator)]
    return without


def membership(score_RP: Tensor, member_P: Tensor, site_P: Tensor, bootstrap: Bootstrap) -> Estimate:
    """AUC of "this patient was trained on", over pairs of a member and a held-out patient of the same site."""
    counted = (member_P[:, None] & ~member_P & (site_P[:, None] == site_P)).float()
    weight = bootstrap.patients

    def total(pairs_PP: Tensor) -> Tensor:
        return ((weight @ pairs_PP) * weight).sum(dim=1)

    auc = [total(wins(score, score) * counted) / total(counted) for score in score_RP]
    return bootstrap.estimate(torch.stack(auc, dim=1))


def linkage(runs: Sequence[Rows], bootstrap: Bootstrap, other_scan: bool = False) -> Estimate | None:
    """AUC of "these two rows are one patient's" by their cosine, over pairs of one site and partition.

    Args:
        runs: a release of each run, all in the same layout.
        bootstrap: see :class:`Bootstrap`.
        other_scan: same-patient pairs count only if they come from two different volumes.

    Returns:
        None when there is no pair of one patient.
    """
    layout, weight = runs[0], bootstrap.patients
    won, compared = torch.zeros(len(weight), len(runs)), torch.zeros(len(weight), 1)
    stratum = layout.site * (int(layout.partition.max()) + 1) + layout.partition
    for one in stratum.unique():
        rows = (stratum == one).nonzero()[:, 0]
        first, second = (rows[side] for side in torch.triu_indices(len(rows), len(rows), offset=1))
        same = layout.patient[first] == layout.patient[second]
        counted = same & (layout.volume[first] != layout.volume[second]) if other_scan else same
        if not counted.any() or same.all():
            continue
        of_first, of_second = weight[:, layout.patient[first]], weight[:, layout.patient[second]]
        # A patient drawn twice brings its own pairs twice; a pair of two patients comes as often as both do.
        positive, negative = of_first[:, counted], (of_first * of_second)[:, ~same]
        compared += (positive.sum(dim=1) * negative.sum(dim=1))[:, None]
        for number, shown in enumerate(runs):
            cosine = (shown.features[first] * shown.features[second]).sum(dim=1)
            won[:, number] += ((positive @ wins(cosine[counted], cosine[~same])) * negative).sum(dim=1)
    return bootstrap.estimate(won / compared) if compared[0] > 0 else None


def hospital(
    queries: Sequence[Rows],
    references: Sequence[Rows],
    bootstrap: Bootstrap,
    generator: torch.Generator,
    neighbours: int = 10,
) -> Estimate:
    """Share of query rows whose most similar reference rows vote for their own site; a patient counts once.

    References are of the query's partition and of other patients, of equally many from every site: leaving the query's
    own patient out would else leave its site with fewer rows than the others, and chance would be less than 1 / sites.
    The interval varies the queries and not the references: with prototypes, which all queries share, it is too narrow.

    Args:
        queries, references: of each run, all in the same layout.
        bootstrap: see :class:`Bootstrap`.
        generator: chooses the reference patients.
        neighbours: of the vote; ties go to the nearest.
    """
    present = queries[0].patient.unique()
    share = torch.zeros(len(queries), bootstrap.patients.shape[1])
    for run, (query, reference) in enumerate(zip(queries, references, strict=True)):
        for patient in present.tolist():
            balanced = reference.where(_equally_many(reference, patient, generator))
            share[run, patient] = _hits(query.where(query.patient == patient), balanced, neighbours)
    weight = bootstrap.patients[:, present]
    return bootstrap.estimate(weight @ share[:, present].T / weight.sum(dim=1, keepdim=True))


def _equally_many(reference: Rows, patient: int, generator: torch.Generator) -> Tensor:
    """Mask of the rows of random patients, as many of each site as the smallest has without ``patient``."""
    available = [
        reference.patient[
            (reference.site == site) & ((reference.patient != patient) | (reference.patient < 0))
        ].unique()
        for site in reference.site.unique()
    ]
    fewest = min(len(patients) for patients in available)
    kept = torch.zeros(len(reference), dtype=torch.bool)
    for site, patients in zip(reference.site.unique(), available, strict=True):
        chosen = patients[torch.randperm(len(patients), generator=generator)[:fewest]]
        kept |= (reference.site == site) & torch.isin(reference.patient, chosen)
    return kept


def _hits(query: Rows, reference: Rows, neighbours: int) -> float:
    apart = query.partition[:, None] != reference.partition
    similarity = (query.features @ reference.features.T).masked_fill(apart, -torch.inf)
    nearest, index = similarity.topk(min(neighbours, len(reference)), dim=1)
    votes = torch.zeros(len(query), int(reference.site.max()) + 1)
    # Nearer rows weigh a little more, which settles ties.
    rank = 1.0 - torch.arange(index.shape[1]) / (100 * index.shape[1])
    votes.scatter_add_(1, reference.site[index], nearest.isfinite() * rank)
    return float((votes.argmax(dim=1) == query.site).float().mean())
