"""The sensitivities that the noise is scaled by, against brute force, and the noise itself."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from fcl.networks import SegmentationUNet
from fcl.privacy.mechanisms import (
    features_sensitivity,
    mixes_samples,
    noised,
    patient_prototypes,
    patient_rows,
    prototypes_sensitivity,
)

PARTITIONS, LENGTH, SLICES = 4, 6, 12


def site(patients: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features, partition and patient of a site whose patients all have 12 slices."""
    generator = torch.Generator().manual_seed(seed)
    features = normalize(torch.randn(patients * SLICES, LENGTH, generator=generator), dim=1)
    row = torch.arange(patients * SLICES)
    return features, row % PARTITIONS, row // SLICES


def seeded(number: int = 0):
    generator = torch.Generator().manual_seed(number)
    return lambda shape, std: torch.randn(*shape, generator=generator, dtype=torch.float64) * std


def rows_of(data, patients, count):
    return patient_rows(*data, patients, count, PARTITIONS, torch.Generator().manual_seed(7))


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_replacing_a_patient_moves_the_rows_by_the_sensitivity_at_most_and_by_it_at_worst(count: int) -> None:
    features, partition, patient = site(5)
    before, shown = rows_of((features, partition, patient), 5, count)
    largest = 0.0
    for replaced in range(5):
        for seed in range(20):
            other = features.clone()
            own = patient == replaced
            # The farthest patient there is looks the other way in every slice; random ones are nearer.
            other[own] = -features[own] if seed == 0 else site(1, seed)[0]
            after, still = rows_of((other, partition, patient), 5, count)
            assert torch.equal(shown, still)
            largest = max(largest, float((after - before).norm()))
    assert largest == pytest.approx(features_sensitivity(count))


def test_shape_and_partitions_of_the_rows_do_not_depend_on_how_many_slices_a_patient_has() -> None:
    features, partition, patient = site(3)
    kept = ~((patient == 1) & (partition > 0))
    rows, shown = rows_of((features[kept], partition[kept], patient[kept]), 3, 6)
    full, expected = rows_of((features, partition, patient), 3, 6)
    assert rows.shape == full.shape == (18, LENGTH)
    assert torch.equal(shown, expected)
    missing = torch.arange(18).div(6, rounding_mode="floor").eq(1) & (shown > 0)
    assert torch.equal(rows.norm(dim=1) == 0, missing)


def test_rows_come_from_their_own_patient_and_partition() -> None:
    features, partition, patient = site(3)
    rows, shown = rows_of((features, partition, patient), 3, 8)
    index = (rows[:, None].float() - features[None]).abs().amax(dim=2).argmin(dim=1)
    assert torch.equal(patient[index], torch.arange(24) // 8)
    assert torch.equal(partition[index], shown)
    assert torch.bincount(shown).tolist() == [6, 6, 6, 6]


@pytest.mark.parametrize("patients", [2, 4, 8])
def test_replacing_a_patient_moves_prototypes_by_the_sensitivity_which_falls_as_one_over_n(patients: int) -> None:
    features, partition, patient = site(patients)
    own = patient == 0
    # All slices of the patient alike: nothing cancels in its mean, the worst case.
    features[own] = features[0].clone()
    before = patient_prototypes(features, partition, patient, patients, PARTITIONS)
    features[own] = -features[0]
    after = patient_prototypes(features, partition, patient, patients, PARTITIONS)
    assert float((after - before).norm()) == pytest.approx(prototypes_sensitivity(PARTITIONS, patients), rel=1e-6)
    assert prototypes_sensitivity(PARTITIONS, patients) == pytest.approx(2 * math.sqrt(PARTITIONS) / patients)
    for seed in range(20):
        features[own] = site(1, seed)[0]
        near = patient_prototypes(features, partition, patient, patients, PARTITIONS)
        assert float((near - before).norm()) <= prototypes_sensitivity(PARTITIONS, patients)


def test_prototypes_are_means_over_patients_of_means_over_slices() -> None:
    features, partition, patient = site(3)
    kept = ~((patient == 2) & (torch.arange(36) % SLICES >= 4))
    features, partition, patient = features[kept], partition[kept], patient[kept]
    expected = torch.stack(
        [
            torch.stack([features[(patient == p) & (partition == s)].mean(dim=0) for p in range(3)]).mean(dim=0)
            for s in range(PARTITIONS)
        ]
    )
    assert torch.allclose(patient_prototypes(features, partition, patient, 3, PARTITIONS).float(), expected, atol=1e-6)


def test_rows_longer_than_one_are_clipped() -> None:
    features, partition, patient = site(2)
    rows, _ = rows_of((features * 50, partition, patient), 2, 4)
    assert float(rows.norm(dim=1).max()) == pytest.approx(1.0)
    assert float(patient_prototypes(features * 50, partition, patient, 2, PARTITIONS).norm(dim=1).max()) <= 1.0


def test_noise_is_added_before_rows_become_unit_vectors() -> None:
    rows = torch.zeros(2, 3, dtype=torch.float64)
    seen = []

    def source(shape, std):
        seen.append((tuple(shape), std))
        return torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]], dtype=torch.float64)

    assert torch.allclose(noised(rows, 1.5, source), torch.tensor([[0.6, 0.8, 0.0], [0.0, 0.0, 1.0]]))
    assert seen == [((2, 3), 1.5)]


def test_noise_has_the_standard_deviation_asked_for() -> None:
    # Along e1, weak noise turns a unit row by std in every other direction.
    rows = torch.zeros(4000, 5, dtype=torch.float64)
    rows[:, 0] = 1.0
    assert float(noised(rows, 0.01, seeded())[:, 1:].std()) == pytest.approx(0.01, rel=0.03)


@pytest.mark.parametrize(
    ("norm", "mixes"),
    [
        ("batch", False),
        (("batch", {"track_running_stats": False}), True),
        ("instance", False),
        (("group", {"num_groups": 2}), False),
    ],
)
def test_samples_are_mixed_where_one_changes_what_another_gives(norm, mixes: bool) -> None:
    torch.manual_seed(0)
    unet = SegmentationUNet(2, 1, 2, (4, 8), norm).eval()
    assert mixes_samples(unet) is mixes
    one, other = torch.rand(1, 1, 8, 8), torch.rand(1, 1, 8, 8)
    with torch.no_grad():
        assert torch.allclose(unet(one), unet(torch.cat([one, other]))[:1], atol=1e-5) is not mixes
