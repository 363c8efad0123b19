"""What a noised release of features computes, and how far one patient can move it.

Neighbouring data sets: one patient of the site is replaced by another in its place (the number n of patients stays and
is public). A patient is all of its volumes and slices. The encoder must not depend on the site's data beyond what its
weights have told already: see :class:`fcl.privacy.FeaturePublisher`.

Letters: M bank rows, D feature length, S partitions, n patients, r rows of each patient in a release.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.modules.batchnorm import _BatchNorm

from fcl.privacy.noise import NoiseSource


def mixes_samples(module: nn.Module) -> bool:
    """Whether the output for one sample of a batch depends on the others in evaluation mode as well.

    So it is with batch normalisation that keeps no running statistics (``track_running_stats: false``).
    """
    return any(isinstance(layer, _BatchNorm) and layer.running_mean is None for layer in module.modules())


def clipped(rows_MD: Tensor) -> Tensor:
    """Rows of at most unit L2 norm; the bank's are unit vectors already, and the guarantee must not rest on that."""
    return rows_MD / rows_MD.norm(dim=1, keepdim=True).clamp(min=1.0)


def patient_rows(
    features_MD: Tensor,
    partition_M: Tensor,
    patient_M: Tensor,
    patients: int,
    rows_per_patient: int,
    partitions: int,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """The same number of rows of every patient, before noise.

    Row ``j`` of patient ``p`` is a random slice of it in partition ``(p + j) mod S``. So how many rows there are, and
    in which partitions, depends on n, r and S only, not on any patient; one without a slice there gives a zero row.

    Returns:
        rows (n * r, D) of at most unit norm, and their partition (n * r,).
    """
    place = torch.arange(patients * rows_per_patient)
    owner = place // rows_per_patient
    partition = (owner + place % rows_per_patient) % partitions
    # Rows in order of their cell (patient and partition); where each cell begins, and how many it has.
    cell, order = (patient_M * partitions + partition_M).sort(stable=True)
    wanted = owner * partitions + partition
    begin, end = torch.searchsorted(cell, wanted), torch.searchsorted(cell, wanted, right=True)
    step = (torch.rand(len(place), generator=generator, dtype=torch.float64) * (end - begin)).long()
    chosen = order[(begin + step).clamp(max=len(order) - 1)]
    rows = features_MD[chosen].double() * (end > begin)[:, None]
    return clipped(rows), partition


def patient_prototypes(
    features_MD: Tensor, partition_M: Tensor, patient_M: Tensor, patients: int, partitions: int
) -> Tensor:
    """Mean over patients of each patient's own mean feature, for every partition, before noise: (S, D).

    The mean of unit vectors has norm 1 at most, whatever number of slices a patient has. A patient without a slice in a
    partition adds nothing there and is still counted, so that the divisor is n.
    """
    cell = patient_M * partitions + partition_M
    sums = torch.zeros(patients * partitions, features_MD.shape[1], dtype=torch.float64)
    sums.index_add_(0, cell, clipped(features_MD.double()))
    counts = torch.bincount(cell, minlength=patients * partitions).clamp(min=1)
    return (sums / counts[:, None]).reshape(patients, partitions, -1).mean(dim=0)


def features_sensitivity(rows_per_patient: int) -> float:
    """Farthest (L2, all rows as one vector) that replacing a patient moves :func:`patient_rows`: ``2 sqrt(r)``.

    Only that patient's r rows change, each from one point of the unit ball to another: at most 2, so
    ``sqrt(r * 2**2)``.
    """
    return 2.0 * math.sqrt(rows_per_patient)


def prototypes_sensitivity(partitions: int, patients: int) -> float:
    """Farthest (L2, all S rows as one vector) that replacing a patient moves :func:`patient_prototypes`:
    ``2 sqrt(S) / n``.

    In each partition one of n summands moves by at most 2, so the mean by ``2 / n``; the patient has slices in all S
    partitions, so ``sqrt(S * (2 / n)**2)``.
    """
    return 2.0 * math.sqrt(partitions) / patients


def noised(rows_MD: Tensor, std: float, noise: NoiseSource) -> Tensor:
    """The Gaussian mechanism, then unit length (which costs nothing: it sees the noised rows only).

    Args:
        rows_MD: (M, D) float64.
        std: noise multiplier times sensitivity.
        noise: where the noise comes from.

    Returns:
        (M, D) float32 unit rows.
    """
    return normalize((rows_MD + noise(rows_MD.shape, std)).float(), dim=1)
