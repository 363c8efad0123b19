from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from monai.transforms import ScaleIntensityRanged

from fcl.data import SliceCache
from fcl.networks import ContrastiveNetwork, ProjectionHead, UNetEncoder
from fcl.networks.weights import OtherArchitecture
from fcl.privacy.cohort import Reading, check_card, collect, configuration, parsed
from fcl.transforms import BatchCompose, BatchRandSpatial


def test_patients_of_all_sites_are_collected(cache: SliceCache) -> None:
    torch.manual_seed(0)
    network = ContrastiveNetwork(UNetEncoder(2, 1, (4, 8), "instance"), ProjectionHead(8, 8, 6))
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    splits = {"a": (["v0", "v1"], ["v2"]), "b": (["v3"], ["v4", "v5"])}

    def configure(site):
        train, held_out = splits[site]
        records = [SimpleNamespace(patient=f"p{volume[1:]}") for volume in train]
        split = SimpleNamespace(train=records, train_volumes=train, validation_volumes=held_out)
        parts = {"network": network, "augmentation": BatchCompose([BatchRandSpatial(flip_prob=0.5)])}
        parts |= {"device": torch.device("cpu"), "seed": 0, "partitions": 4}
        parts |= {"site_split": split, "slice_cache": cache, "slab_depth": None}
        return SimpleNamespace(get_parsed_content=parts.__getitem__)

    found = collect(configure, ["a", "b"], weights)
    assert found.member.tolist() == [True, True, False, True, False, False]
    assert found.site.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(found.rows.patient, torch.arange(6).repeat_interleave(8))
    assert torch.equal(found.rows.volume, found.rows.patient)
    image = torch.from_numpy(cache.images[16:24].astype("float32"))
    with torch.no_grad():
        assert torch.allclose(found.rows.features[16:24], network.eval()(image), atol=1e-5)
    assert (found.view_alignment <= 1.0).all()


def test_unknown_keys_and_overlays_are_refused() -> None:
    with pytest.raises(ValueError, match="pixdimm"):
        configuration(None, None, None, {"pixdimm": [1, 1]})(None)
    with pytest.raises(ValueError, match="no dataset 'nosuch': give one of acdc"):
        configuration(None, None, "nosuch", {})


def test_a_card_is_followed_and_compared() -> None:
    rule = {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": 0.0, "a_max": 500.0}
    known = {"channels": [4, 8], "pixdim": [1.25, 1.25], "spatial_size": [32, 48], "intensity": rule}
    parser = configuration(None, None, None, {"fold": 3}, known)("a")
    check_card(parser)
    assert Reading.of(parser) == Reading(3, 4, (1.25, 1.25), (32, 48), 2)
    assert any(isinstance(each, ScaleIntensityRanged) for each in parsed(parser, "preprocessing").transforms)
    with pytest.raises(OtherArchitecture, match=r"channels: its card says \[4, 8\]"):
        check_card(configuration(None, None, None, {"channels": [4, 16]}, known)(None))


def test_the_error_is_the_readers_own(tmp_path) -> None:
    with pytest.raises(ValueError, match="the dataset folder does not exist"):
        parsed(configuration(str(tmp_path / "nowhere"), None, "acdc", {})(None), "records")
