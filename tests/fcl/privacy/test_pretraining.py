"""Pre-training that shares with noise: when it may, what resuming gives back (nothing), what stays as it was."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fcl.data import SliceCache
from fcl.privacy import FeaturePolicy
from fcl.privacy.mechanisms import features_sensitivity, patient_rows
from tests.fcl.engines.test_fcl_method import build


def never() -> bool:
    return False


def begun(cache: SliceCache, **policy):
    participant = build(cache, steps=1, feature_policy=FeaturePolicy(**policy))
    participant.begin_round(0, 3, participant.weights())
    return participant


def with_another_first_patient(cache: SliceCache, folder: Path, slices: int) -> SliceCache:
    """A copy of the cache with noise of so many slices in place of the first patient's volume."""
    folder.mkdir()
    index = json.loads((cache.folder / "index.json").read_text())
    first = index["volumes"][0]
    for kind in ("images", "labels"):
        kept = np.asarray(getattr(cache, kind))[first["slices"] :]
        new = np.random.default_rng(1).random((slices, *kept.shape[1:])).astype(kept.dtype)
        name = {"images": "images.f16", "labels": "labels.u8"}[kind]
        np.concatenate([new, kept]).tofile(folder / name)
    first.update(patient="zoe", slices=slices)
    (folder / "index.json").write_text(json.dumps(index))
    return SliceCache(folder)


@pytest.mark.parametrize("slices", [8, 11])
def test_a_patient_replaced_by_one_of_more_slices_moves_its_own_rows_only(
    cache: SliceCache, tmp_path: Path, slices: int
) -> None:
    rows_per_patient, shown = 2, []
    for site in (cache, with_another_first_patient(cache, tmp_path / "other", slices)):
        participant = begun(site, noise_multiplier=1.0)
        participant.publish("features")  # makes the bank
        own = participant.trainer.method.bank.local()
        # Each volume is a patient's; places are not those of names, which another patient's name moves.
        rows, _ = patient_rows(
            own.features, own.partition, own.volume, 4, rows_per_patient, 4, torch.Generator().manual_seed(1)
        )
        shown.append(rows.view(4, rows_per_patient, -1))
    assert torch.allclose(shown[0][1:], shown[1][1:], atol=1e-5)
    assert 1e-3 < float((shown[0] - shown[1]).norm()) <= features_sensitivity(rows_per_patient)


def test_a_noised_release_has_a_row_for_each_patient_and_partition(cache: SliceCache) -> None:
    shown = begun(cache, noise_multiplier=2.0).publish("features")
    # Four patients with one volume each.
    assert (len(shown), shown.volumes) == (16, 4)
    assert shown.privacy is not None
    assert torch.bincount(shown.partition).tolist() == [4] * 4
    plain = begun(cache).publish("features")
    assert (len(plain), plain.volumes, plain.privacy) == (32, 4, None)


def test_equal_seeds_choose_the_same_rows_and_never_the_same_noise(cache: SliceCache) -> None:
    plain = [begun(cache, rows_per_patient=3).publish("features").features for _ in range(2)]
    assert torch.equal(*plain)
    noised = [begun(cache, noise_multiplier=2.0).publish("prototypes").features for _ in range(2)]
    assert not torch.equal(*noised)


def test_releases_outlive_resuming_and_an_older_state_gives_none_back(cache: SliceCache, tmp_path) -> None:
    ledger = tmp_path / "ledger.json"
    participant = begun(cache, noise_multiplier=2.0, ledger=ledger)
    participant.publish("features")
    torch.save(participant.state_dict(), tmp_path / "site.pt")
    participant.publish("features")
    for file, releases in ((ledger, 3), (None, 2)):
        resumed = begun(cache, noise_multiplier=2.0, ledger=file)
        resumed.load_state_dict(torch.load(tmp_path / "site.pt", weights_only=True))
        resumed.begin_round(1, 3, resumed.weights())
        assert resumed.publish("features").privacy.releases == releases


def test_features_of_an_encoder_trained_here_are_not_published(cache: SliceCache) -> None:
    participant = begun(cache, noise_multiplier=2.0)
    participant.train(never)
    with pytest.raises(RuntimeError, match="between begin_round and train"):
        participant.publish("features")
    participant.begin_round(1, 3, participant.weights())
    assert len(participant.publish("features")) == 16


@pytest.mark.parametrize("local", [{"momentum_sync": "local"}, {"norm_stats": "local"}])
def test_noise_is_refused_where_the_encoder_keeps_what_it_learnt_here(cache: SliceCache, local: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="cover less than it claims"):
        build(cache, feature_policy=FeaturePolicy(noise_multiplier=1.0), **local)
    assert build(cache, **local).shares_features


def test_noise_is_refused_where_slices_of_a_batch_are_normalised_together(cache: SliceCache) -> None:
    together = ("batch", {"track_running_stats": False})
    with pytest.raises(ValueError, match=r"each slice by itself.*cover less than it claims"):
        build(cache, norm=together, feature_policy=FeaturePolicy(noise_multiplier=1.0))
    assert build(cache, norm=together).shares_features
    assert build(cache, norm="batch", feature_policy=FeaturePolicy(noise_multiplier=1.0)).shares_features


def test_one_patients_features_do_not_depend_on_the_others(cache: SliceCache) -> None:
    """What the sensitivity rests on: the encoder in evaluation mode does not mix the slices of a batch."""
    participant = build(cache, norm="batch")
    participant.begin_round(0, 3, participant.weights())
    method, generator = participant.trainer.method, participant.trainer.generator
    views = generator.get_state()
    method.refresh_bank(participant.trainer, independent=True)
    before, slices = method.bank.local().features.clone(), list(method.slices)

    def others_blanked():
        for batch in slices:
            other = batch["volume"] != 0
            yield {**batch, "image": batch["image"].masked_fill(other[:, None, None, None], 0.0)}

    method.slices = others_blanked()
    generator.set_state(views)
    method.refresh_bank(participant.trainer, independent=True)
    own = method.bank.local()
    assert torch.allclose(own.features[own.volume == 0], before[own.volume == 0], atol=1e-5)
    assert not torch.allclose(own.features[own.volume == 1], before[own.volume == 1], atol=1e-3)
