"""Attacks on made-up features: they find what is there, nothing where nothing is, and say how sure they are."""

from __future__ import annotations

import pytest
import torch
from monai.metrics import compute_roc_auc
from torch.nn.functional import normalize

from fcl.privacy.attacks import Bootstrap, Rows, closeness, hospital, left_out, linkage, membership, wins

SITES, MEMBERS, HELD_OUT, PARTITIONS, SLICES = 5, 6, 3, 2, 4
EACH = MEMBERS + HELD_OUT
PATIENTS = SITES * EACH
SITE = torch.arange(PATIENTS) // EACH
MEMBER = torch.arange(PATIENTS) % EACH < MEMBERS


def cohort(seed: int, patient_weight: float = 0.0, site_weight: float = 0.0) -> Rows:
    """Slices whose features are noise, plus a direction of their patient's and one of their site's."""
    generator = torch.Generator().manual_seed(seed)

    def random(count: int) -> torch.Tensor:
        return torch.randn(count, 16, generator=generator)

    patient = torch.arange(PATIENTS).repeat_interleave(SLICES)
    own = patient_weight * random(PATIENTS)[patient] + site_weight * random(SITES)[SITE[patient]]
    row = torch.arange(len(patient))
    features = normalize(random(len(patient)) + own, dim=1)
    return Rows(features, row % PARTITIONS, patient, SITE[patient], row // 2)


def bootstrap(runs: int = 1, seed: int = 0) -> Bootstrap:
    return Bootstrap.draw(MEMBER.long(), runs, 100, torch.Generator().manual_seed(seed))


def test_membership_in_one_site_is_the_auc_of_monai() -> None:
    score = torch.randn(30, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    member, site = torch.arange(30) % 3 > 0, torch.zeros(30, dtype=torch.long)
    drawn = Bootstrap.draw(member.long(), 1, 50, torch.Generator().manual_seed(0))
    estimate = membership(score[None], member, site, drawn)
    assert estimate.value == pytest.approx(compute_roc_auc(score, member.long()), abs=1e-6)
    assert estimate.low < estimate.value < estimate.high


def test_membership_does_not_take_a_difference_between_sites_for_one() -> None:
    # Site 0 has members alone of high scores, and within each site all score alike.
    score = (SITE == 0).double() * 5
    assert membership(score[None], MEMBER, SITE, bootstrap()).value == 0.5


def test_a_patient_drawn_twice_counts_twice() -> None:
    score, member, site = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([True, True, False]), torch.zeros(3).long()
    drawn = Bootstrap(torch.tensor([[1.0, 1.0, 1.0], [2.0, 1.0, 1.0]]), torch.ones(2, 1))
    estimate = membership(score[None], member, site, drawn)
    assert estimate.value == 0.5
    assert estimate.low == estimate.high == pytest.approx(2 / 3)


def test_interval_knows_that_noise_differs_from_run_to_run() -> None:
    member, site = torch.tensor([True, False]), torch.zeros(2).long()
    right, wrong = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    drawn = Bootstrap.draw(member.long(), 2, 200, torch.Generator().manual_seed(0))
    estimate = membership(torch.stack([right, wrong]), member, site, drawn)
    assert tuple(estimate) == (0.5, 0.0, 1.0)


def test_closeness_is_the_mean_of_the_nearest_cosines_of_site_and_partition() -> None:
    rows = cohort(0)
    shared = rows.where(MEMBER[rows.patient])
    scores = closeness(rows, shared, PATIENTS)
    patient = 7
    nearest = []
    for i in (rows.patient == patient).nonzero()[:, 0]:
        fit = (shared.site == rows.site[i]) & (shared.partition == rows.partition[i])
        nearest.append(float((shared.features[fit] @ rows.features[i]).max()))
    assert float(scores[patient]) == pytest.approx(sum(nearest) / len(nearest), abs=1e-6)
    assert torch.allclose(scores[MEMBER].float(), torch.ones(SITES * MEMBERS), atol=1e-5)


def test_rows_that_are_shown_tell_members_and_without_them_nothing_is_left() -> None:
    shown, controlled, members = [], [], bootstrap()
    for seed in range(30):
        rows, generator = cohort(seed), torch.Generator().manual_seed(seed)
        shared = rows.where(MEMBER[rows.patient])
        shown.append(membership(closeness(rows, shared, PATIENTS)[None], MEMBER, SITE, members).value)
        without = left_out(MEMBER, SITE, generator)
        score = closeness(rows, shared, PATIENTS, without)
        controlled.append(membership(score[None], MEMBER, SITE, members).value)
    assert min(shown) == 1.0
    values = torch.tensor(controlled)
    assert abs(float(values.mean()) - 0.5) < 4 * float(values.std()) / 30**0.5


def test_left_out_are_members_of_the_own_site() -> None:
    without = left_out(MEMBER, SITE, torch.Generator().manual_seed(0))
    assert torch.equal(without[MEMBER], torch.arange(PATIENTS)[MEMBER])
    assert MEMBER[without].all()
    assert torch.equal(SITE[without], SITE)


def test_linkage_is_the_auc_over_pairs_of_a_stratum() -> None:
    rows = cohort(1, patient_weight=0.7)
    estimate = linkage([rows], bootstrap())
    won = compared = 0.0
    for site in range(SITES):
        for partition in range(PARTITIONS):
            own = rows.where((rows.site == site) & (rows.partition == partition))
            pairs = [(i, j) for i in range(len(own)) for j in range(i)]
            cosine = torch.tensor([float(own.features[i] @ own.features[j]) for i, j in pairs])
            same = torch.tensor([bool(own.patient[i] == own.patient[j]) for i, j in pairs])
            table = wins(cosine[same], cosine[~same])
            won, compared = won + float(table.sum()), compared + table.numel()
    assert estimate is not None
    assert estimate.value == pytest.approx(won / compared, abs=1e-4)
    assert estimate.low < estimate.value < estimate.high


def test_linkage_finds_patients_and_nothing_in_noise() -> None:
    linked, random = linkage([cohort(1, patient_weight=3.0)], bootstrap()), linkage([cohort(1)], bootstrap())
    assert linked is not None
    assert random is not None
    assert linked.low > 0.9
    assert random.low < 0.5 < random.high


def test_linkage_of_other_scans_needs_two_volumes() -> None:
    rows = cohort(1)
    one_volume = Rows(rows.features, rows.partition, rows.patient, rows.site, rows.patient)
    assert linkage([rows], bootstrap(), other_scan=True) is not None
    assert linkage([one_volume], bootstrap(), other_scan=True) is None


@pytest.mark.parametrize("kept", [1.0, 0.6])
def test_hospital_is_at_chance_where_features_tell_nothing(kept: float) -> None:
    """Also with sites of unequal size; leaving the own patient out must not push it below."""
    values, generator = [], torch.Generator().manual_seed(0)
    for seed in range(12):
        rows = cohort(seed)
        rows = rows.where(MEMBER[rows.patient] & ((rows.site > 1) | (rows.patient % EACH < kept * MEMBERS)))
        values.append(hospital([rows], [rows], bootstrap(), generator, neighbours=3).value)
    mean, error = torch.tensor(values).mean(), torch.tensor(values).std() / 12**0.5
    assert abs(float(mean) - 1 / SITES) < 4 * float(error)


def test_hospital_is_found_where_features_tell_it() -> None:
    rows = cohort(0, site_weight=3.0)
    estimate = hospital([rows], [rows], bootstrap(), torch.Generator().manual_seed(0), neighbours=3)
    assert estimate.value > 0.9
    assert estimate.low > 1 / SITES


def test_prototypes_that_are_nobodys_serve_as_references() -> None:
    rows = cohort(0, site_weight=3.0)
    means = [
        rows.features[(rows.site == site) & (rows.partition == part)].mean(dim=0)
        for site in range(SITES)
        for part in range(PARTITIONS)
    ]
    nobody = torch.full((SITES * PARTITIONS,), -1)
    part, site = torch.arange(SITES * PARTITIONS) % PARTITIONS, torch.arange(SITES * PARTITIONS) // PARTITIONS
    prototypes = Rows(normalize(torch.stack(means), dim=1), part, nobody, site, nobody)
    queries = rows.where(~MEMBER[rows.patient])
    generator = torch.Generator().manual_seed(0)
    assert hospital([queries], [prototypes], bootstrap(), generator, neighbours=1).value > 0.9
