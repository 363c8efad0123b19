from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from fcl.memory import FeatureBank
from fcl.privacy import FeaturePolicy, FeaturePublisher, epsilon_of
from fcl.privacy.mechanisms import features_sensitivity, prototypes_sensitivity

LENGTH = 4
PATIENTS = ("anna", "anna", "bert", "cleo", "cleo")  # of five volumes, eight slices each


def make(max_rows: int | None = None, noise=None, **policy) -> FeaturePublisher:
    row = torch.arange(40)
    bank = FeatureBank(row % 4, row // 8, LENGTH)
    bank.update(row, normalize(torch.randn(40, LENGTH, generator=torch.Generator().manual_seed(0)), dim=1))
    options = {} if noise is None else {"noise": noise}
    generator = torch.Generator().manual_seed(1)
    return FeaturePublisher(bank, PATIENTS, FeaturePolicy(**policy), max_rows, generator, **options)


def silent(shape, std):
    return torch.zeros(*shape, dtype=torch.float64)


def patient_of(publisher: FeaturePublisher, features: torch.Tensor) -> list[str]:
    own = publisher.bank.local()
    index = (features[:, None] - own.features[None]).abs().amax(dim=2).argmin(dim=1)
    return [PATIENTS[volume] for volume in own.volume[index].tolist()]


def test_without_noise_the_bank_is_shown_as_it_is_and_nothing_is_called_private() -> None:
    publisher = make()
    shown = publisher.publish("features")
    assert (len(shown), shown.volumes, shown.privacy) == (40, 5, None)
    prototypes = publisher.publish("prototypes")
    assert (len(prototypes), prototypes.volumes, prototypes.privacy) == (4, 5, None)
    assert publisher.state_dict() == {}


def test_rows_of_a_patient_are_capped_without_noise_too() -> None:
    publisher = make(rows_per_patient=6)
    shown = publisher.publish("features")
    patients = patient_of(publisher, shown.features)
    assert {name: patients.count(name) for name in PATIENTS} == {"anna": 6, "bert": 6, "cleo": 6}


@pytest.mark.parametrize("policy", [{}, {"noise_multiplier": 1.0}])
def test_order_is_that_of_the_shown_values_alone(policy: dict[str, float]) -> None:
    shown = make(**policy).publish("features").features
    assert torch.equal(shown[:, 0], shown[:, 0].sort().values)


def test_with_noise_every_patient_gives_the_same_number_of_rows() -> None:
    publisher = make(noise=silent, noise_multiplier=1.0, rows_per_patient=8)
    shown = publisher.publish("features")
    patients = patient_of(publisher, shown.features)
    assert {name: patients.count(name) for name in PATIENTS} == {"anna": 8, "bert": 8, "cleo": 8}
    assert torch.bincount(shown.partition).tolist() == [6] * 4
    assert shown.volumes == 5


def test_which_partition_shows_of_a_patient_is_not_decided_by_the_order_of_names() -> None:
    """Else another name in one patient's stead would move the rows of the others."""
    publisher = make(noise=silent, noise_multiplier=1.0, rows_per_patient=1)
    shown = [publisher.publish("features") for _ in range(60)]
    partitions = {}
    for release in shown:
        for name, partition in zip(patient_of(publisher, release.features), release.partition.tolist(), strict=True):
            partitions.setdefault(name, set()).add(partition)
    assert partitions == {name: {0, 1, 2} for name in PATIENTS}  # three places


def test_the_cap_on_rows_holds_with_noise() -> None:
    assert len(make(max_rows=5, noise_multiplier=1.0).publish("features")) == 5
    assert len(make(noise_multiplier=1.0).publish("features")) == 3 * 4


def test_which_partitions_the_cap_leaves_out_changes() -> None:
    publisher = make(max_rows=1, noise=silent, noise_multiplier=1.0, rows_per_patient=4)
    assert {int(publisher.publish("features").partition) for _ in range(40)} == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("kind", "sensitivity"), [("features", features_sensitivity(2)), ("prototypes", prototypes_sensitivity(4, 3))]
)
def test_noise_is_the_multiplier_times_the_sensitivity(kind, sensitivity: float) -> None:
    asked = []
    publisher = make(
        noise=lambda *args: asked.append(args[1]) or silent(*args), noise_multiplier=3.0, rows_per_patient=2
    )
    shown = publisher.publish(kind)
    assert asked == [pytest.approx(3 * sensitivity)]
    assert torch.allclose(shown.features.norm(dim=1), torch.ones(len(shown)), atol=1e-5)


@pytest.mark.parametrize("kind", ["features", "prototypes"])
def test_every_release_has_fresh_noise_and_adds_to_epsilon(kind) -> None:
    publisher = make(noise_multiplier=2.0)
    releases = [publisher.publish(kind) for _ in range(3)]
    assert not torch.equal(releases[0].features, releases[1].features)
    for number, release in enumerate(releases, start=1):
        assert release.privacy is not None
        assert (release.privacy.releases, release.privacy.noise_multiplier) == (number, 2.0)
        assert release.privacy.epsilon == pytest.approx(epsilon_of([(2.0, 1.0, number)], 1e-5))


def test_the_budget_ends_the_sharing_and_epsilon_stays_within(caplog: pytest.LogCaptureFixture) -> None:
    budget = epsilon_of([(2.0, 1.0, 2)], 1e-5) + 1e-9
    publisher = make(noise_multiplier=2.0, epsilon_budget=budget)
    with caplog.at_level(logging.WARNING):
        releases = [publisher.publish("features") for _ in range(4)]
    assert [len(release) for release in releases] == [12, 12, 0, 0]
    assert releases[3].features.shape == (0, LENGTH)
    assert releases[3].privacy == releases[1].privacy
    assert "budget" in caplog.text


def test_a_budget_below_one_release_shares_nothing_ever() -> None:
    shown = make(noise_multiplier=0.5, epsilon_budget=0.1).publish("features")
    assert (len(shown), shown.privacy) == (0, None)


@pytest.mark.parametrize("noise", [None, 1.0])
@pytest.mark.parametrize("kind", ["features", "prototypes"])
def test_too_small_a_cohort_shows_nothing_and_spends_nothing(kind, noise: float | None) -> None:
    publisher = make(noise_multiplier=noise, min_volumes=6)
    assert len(publisher.publish(kind)) == 0
    assert publisher.ledger is None or publisher.ledger.releases == 0
    assert len(make(noise_multiplier=noise, min_volumes=5).publish(kind)) > 0


def test_the_cohort_of_prototypes_is_the_smallest_of_their_partitions() -> None:
    row = torch.arange(6)
    bank = FeatureBank(torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 1, 2, 0, 1, 0]), LENGTH)
    bank.update(row, torch.eye(LENGTH)[row % LENGTH])
    assert FeaturePublisher(bank, ["a", "b", "c"], FeaturePolicy(min_volumes=1)).publish("prototypes").volumes == 1
    assert len(FeaturePublisher(bank, ["a", "b", "c"], FeaturePolicy()).publish("prototypes")) == 0


def test_spending_outlives_the_process_by_state_and_by_file(tmp_path) -> None:
    file = tmp_path / "ledger.json"
    publisher = make(noise_multiplier=2.0, ledger=file)
    publisher.publish("features")
    state = publisher.state_dict()
    publisher.publish("features")
    resumed = make(noise_multiplier=2.0, ledger=file)
    resumed.load_state_dict(state)
    assert resumed.publish("features").privacy.releases == 3
    elsewhere = make(noise_multiplier=2.0)
    elsewhere.load_state_dict(state)
    assert elsewhere.publish("features").privacy.releases == 2


def test_who_was_shown_without_noise_has_no_epsilon_in_a_later_job(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "ledger.json"
    assert len(make(ledger=file).publish("features")) == 40
    later = make(noise_multiplier=2.0, ledger=file)
    with caplog.at_level(logging.WARNING):
        releases = [later.publish("features") for _ in range(3)]
    assert [(len(release), release.privacy) for release in releases] == [
        (12, None)
    ] * 3  # noised, and told as no promise
    assert len(caplog.records) == 1
    assert str(file) in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        shown = make(noise_multiplier=200.0, epsilon_budget=1000.0, ledger=file).publish("features")
    assert (len(shown), shown.privacy) == (0, None)
    assert "so that no budget holds" in caplog.text
    file.rename(tmp_path / "accepted.json")  # the way out
    assert make(noise_multiplier=2.0, epsilon_budget=10.0, ledger=file).publish("features").privacy is not None


def test_a_plain_release_is_written_once_and_only_when_there_is_one(tmp_path: Path) -> None:
    file = tmp_path / "ledger.json"
    make(min_volumes=6, ledger=file).publish("features")
    empty = FeatureBank(torch.arange(4), torch.arange(4), LENGTH)
    assert len(FeaturePublisher(empty, ["a", "b", "c", "d"], FeaturePolicy(ledger=file)).publish("features")) == 0
    assert not file.exists()
    publisher = make(ledger=file)
    assert not file.exists()
    publisher.publish("features")
    written = file.read_bytes()
    file.unlink()
    publisher.publish("prototypes")
    assert not file.exists()  # no round after the first costs anything
    file.write_bytes(written)
    make(ledger=file).publish("prototypes")  # nor does a later job
    assert file.read_bytes() == written


def test_without_a_ledger_to_read_nothing_is_shown_without_noise_either(tmp_path: Path) -> None:
    file = tmp_path / "ledger.json"
    file.write_text("{")
    with pytest.raises(ValueError, match="no readable privacy ledger"):
        make(ledger=file).publish("features")


def test_all_that_makes_no_sense_is_said_at_once() -> None:
    with pytest.raises(ValueError, match=r"rows_per_patient.*delta.*needs a noise_multiplier.*min_volumes"):
        FeaturePolicy(rows_per_patient=0, delta=1.0, epsilon_budget=3.0, min_volumes=0)
    with pytest.raises(ValueError, match="noise_multiplier must be above 0"):
        FeaturePolicy(noise_multiplier=0.0)
    with pytest.raises(ValueError, match="epsilon_budget must be above 0"):
        FeaturePolicy(noise_multiplier=1.0, epsilon_budget=0.0)
