"""Invariants of the feature bank."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from fcl.federation import FeatureSet
from fcl.memory import FeatureBank


def unit(rows, length=4, seed=0):
    return normalize(torch.randn(rows, length, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.fixture
def bank():
    return FeatureBank(torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([0, 0, 0, 0, 1, 1]), feature_length=4)


def test_a_bank_tells_whose_its_rows_are_and_forgets_them_but_not_its_peers(bank):
    partition, volume = torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([0, 0, 0, 0, 1, 1])
    assert bank.is_of(partition, volume)
    assert not bank.is_of(partition, partition)
    assert not bank.is_of(volume, volume)
    assert not bank.is_of(partition[:5], volume[:5])
    bank.update(torch.arange(6), unit(6))
    bank.set_remote("site-2", remote(), 0)
    bank.forget()
    assert (bank.complete, len(bank), bank.remote_rows) == (False, 3, 3)


def remote(rows=3, seed=5):
    return FeatureSet(unit(rows, seed=seed), torch.arange(rows) % 4)


def test_rows_are_overwritten_and_the_size_never_grows(bank):
    for step in range(50):
        rows = torch.randperm(6)[:3]
        features = unit(3, seed=step)
        bank.update(rows, features)
        own = bank.local()
        for row, feature in zip(rows, features, strict=True):
            assert torch.equal(own.features[own.row == row][0], feature)
    assert len(bank) == 6


def test_only_filled_rows_are_drawn(bank):
    bank.update(torch.tensor([1, 4]), unit(2))
    features, partition = bank.draw(None)
    assert partition.tolist() == [1, 0]
    assert torch.equal(features, unit(2))


def test_draw_is_uniform_without_replacement_over_local_and_remote(bank):
    bank.update(torch.arange(6), unit(6))
    bank.set_remote("site-2", remote(), 0)
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(9)
    union = torch.cat([unit(6), unit(3, seed=5)])
    for _ in range(600):
        drawn, _ = bank.draw(3, generator)
        index = (drawn[:, None] == union[None]).all(dim=2).int().argmax(dim=1)
        assert len(set(index.tolist())) == 3
        counts[index] += 1
    assert counts.min() > 150  # 200 expected of each
    assert counts.max() < 250


def test_arrival_order_of_peers_does_not_change_a_seeded_draw(bank):
    bank.update(torch.arange(6), unit(6))
    draws = []
    for order in (("a", "b"), ("b", "a")):
        for site in order:
            bank.set_remote(site, remote(seed=ord(site)), 0)
        draws.append(bank.draw(4, torch.Generator().manual_seed(1))[0])
    assert torch.equal(*draws)


def test_a_peer_replaces_its_own_features_and_stale_ones_expire(bank):
    bank.set_remote("site-2", remote(3), 0)
    bank.set_remote("site-2", remote(2), 1)
    bank.set_remote("site-3", remote(3), 2)
    assert bank.remote_rows == 5
    assert bank.expire(2) == []
    assert bank.expire(3) == ["site-2"]
    assert bank.remote_rows == 3
    bank.set_remote("site-3", FeatureSet(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)), 3)
    assert bank.remote_rows == 0


@pytest.mark.parametrize("max_age", [0, 1, 3])
def test_features_are_kept_for_as_many_rounds_as_declared_and_their_end_is_logged(max_age, caplog):
    caplog.set_level("INFO")
    row = torch.zeros(2, dtype=torch.int64)
    bank = FeatureBank(row, row, feature_length=4, partitions=3, max_age=max_age)
    bank.set_remote("site-2", remote(2), 5)
    kept = [bank.expire(number) == [] for number in range(6, 6 + max_age)]
    assert kept == [True] * max_age
    assert "dropped" not in caplog.text
    assert bank.expire(6 + max_age) == ["site-2"]
    assert f"round {6 + max_age}: features of site-2, of round 5, are too old and dropped" in caplog.text


def test_snapshot_is_a_shuffled_copy_without_volume(bank):
    bank.update(torch.arange(6), unit(6))
    snapshot = bank.snapshot(4, torch.Generator().manual_seed(0))
    before = snapshot.features.clone()
    assert len(snapshot) == 4
    assert set(vars(snapshot)) == {"features", "partition", "volumes", "privacy"}
    own = bank.local()
    positions = [int((own.features == row).all(dim=1).int().argmax()) for row in snapshot.features]
    assert positions != sorted(positions)
    assert snapshot.features[:, 0].tolist() == sorted(snapshot.features[:, 0].tolist())
    assert torch.equal(own.partition[positions], snapshot.partition)
    bank.update(torch.arange(6), unit(6, seed=9))
    assert torch.equal(snapshot.features, before)


def test_snapshot_limits_the_rows_of_a_group_and_counts_its_volumes(bank):
    bank.update(torch.arange(6), unit(6))
    groups = torch.tensor([7, 3])
    for seed in range(5):
        snapshot = bank.snapshot(None, torch.Generator().manual_seed(seed), groups, 1)
        own = bank.local()
        rows = [int((own.features == row).all(dim=1).int().argmax()) for row in snapshot.features]
        assert sorted(own.volume[rows].tolist()) == [0, 1]
        assert snapshot.volumes == 2
    assert bank.snapshot(1, torch.Generator().manual_seed(0)).volumes == 1


def test_prototypes_are_unit_means_per_partition(bank):
    bank.update(torch.arange(6), unit(6))
    prototypes = bank.prototypes()
    assert prototypes.partition.tolist() == [0, 1, 2, 3]
    expected = normalize((unit(6)[0] + unit(6)[4]) / 2, dim=0)
    assert torch.allclose(prototypes.features[0], expected)
    assert torch.allclose(prototypes.features.norm(dim=1), torch.ones(4))


def test_state_round_trip_continues_bit_for_bit(bank):
    bank.update(torch.arange(3), unit(3))
    bank.set_remote("site-2", remote(), 4)
    other = FeatureBank(torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([0, 0, 0, 0, 1, 1]), feature_length=4)
    other.load_state_dict(bank.state_dict())
    for mine, theirs in zip(
        other.draw(4, torch.Generator().manual_seed(3)), bank.draw(4, torch.Generator().manual_seed(3)), strict=True
    ):
        assert torch.equal(mine, theirs)
    assert other.expire(5) == []
    assert other.expire(6) == ["site-2"]


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.ones(2, 4), "unit norm"),
        (torch.full((2, 4), float("nan")), "unit norm"),
        (unit(2, length=5), r"shape \(rows, 4\), got \(2, 5\)"),
    ],
)
def test_refuses_what_is_no_unit_vector(bank, features, message):
    with pytest.raises(ValueError, match=message):
        bank.update(torch.tensor([0, 1]), features)
    with pytest.raises(ValueError, match=message):
        bank.set_remote("site-2", FeatureSet(features, torch.tensor([0, 1])), 0)
    assert len(bank) == 0


def test_refuses_partitions_out_of_range(bank):
    with pytest.raises(ValueError, match=r"0\.\.3"):
        bank.set_remote("site-2", FeatureSet(unit(2), torch.tensor([0, 4])), 0)
    with pytest.raises(ValueError, match=r"0\.\.3"):
        FeatureBank(torch.tensor([0, 4]), torch.tensor([0, 0]))


def test_refuses_the_state_of_another_bank(bank):
    smaller = FeatureBank(torch.tensor([0]), torch.tensor([0]), feature_length=4)
    with pytest.raises(ValueError, match="shape"):
        bank.load_state_dict(smaller.state_dict())


def test_half_precision_features_from_peers_are_accepted(bank):
    bank.set_remote("site-2", FeatureSet(unit(3).half(), torch.tensor([0, 1, 2])), 0)
    assert bank.draw(None)[0].dtype == torch.float32
