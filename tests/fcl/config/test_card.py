from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import NormalizeIntensityd, ScaleIntensityRanged, ScaleIntensityRangePercentilesd

import fcl
from fcl.card import card_of
from fcl.networks import CheckpointError, write_weights

CONFIGS = fcl.bundle_root() / "configs"
KNOWN: dict[str, Any] = {
    "spatial_dims": 3,
    "channels": [4, 8],
    "strides": [[2, 2, 1]],
    "norm": "batch",
    "slab_depth": 3,
    "pixdim": [1.0, 1.0],
    "spatial_size": [32, 48],
    "slice_axis": 0,
    "intensity": {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": -100, "a_max": 300},
    "labels": {"spleen": 1, "liver": 6},
}
CHECKS = {"finetune": "pretrained", "evaluate": "ckpt", "inference": "ckpt"}


@pytest.fixture
def file(tmp_path: Path) -> str:
    write_weights(tmp_path / "model.pt", {"w": torch.zeros(1)}, card_of(KNOWN))
    return str(tmp_path / "model.pt")


def parser_of(base: str, *overlays: str, **values: Any) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / name) for name in (f"{base}.json", *overlays)])
    parser.update(values)
    return parser


def run_check(parser: ConfigParser) -> None:
    (position,) = (n for n, text in enumerate(parser["initialize"]) if "check_against_card" in text)
    parser.get_parsed_content(f"initialize::{position}")


def root_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@pytest.mark.parametrize(
    ("base", "overlays"), [("finetune", []), ("evaluate", []), ("inference", ["data/phantom.json"])]
)
def test_settings_come_from_the_card_fine_tuning_takes_the_network_only(
    base: str, overlays: list[str], file: str, caplog: pytest.LogCaptureFixture
) -> None:
    parser = parser_of(base, *overlays, **{CHECKS[base]: file})
    run_check(parser)
    assert caplog.text == ""
    network = ["spatial_dims", "channels", "strides", "norm", "slab_depth"]
    images = ["pixdim", "spatial_size", "slice_axis", "labels"]
    found = {name: parser.get_parsed_content(name) for name in (*network, *images)}
    assert {name: found[name] for name in network} == {name: KNOWN[name] for name in network}
    bare = parser_of(base, *overlays)
    wanted = {name: bare.get_parsed_content(name) if base == "finetune" else KNOWN[name] for name in images}
    assert {name: found[name] for name in images} == wanted
    rule = parser.get_parsed_content("preprocessing").transforms[4]
    assert type(rule) is (ScaleIntensityRangePercentilesd if base == "finetune" else ScaleIntensityRanged)


@pytest.mark.parametrize("base", CHECKS)
def test_another_network_is_refused_with_all_settings_and_both_values(base: str, file: str) -> None:
    parser = parser_of(base, **{CHECKS[base]: file}, channels=[16, 32], norm=["instance", {"affine": True}])
    with pytest.raises(Exception, match=r".") as caught:
        run_check(parser)
    error = root_cause(caught.value)
    assert isinstance(error, CheckpointError)
    assert "channels: its card says [4, 8], the configuration [16, 32]; norm: its card says batch" in str(error)
    assert file in str(error)
    assert file not in error.differing  # type: ignore[attr-defined]


@pytest.mark.parametrize("strides", [[[2, 2, 1]], "$[[2, 2, 1]] * (len(@channels) - 1)"])
def test_what_is_said_again_is_no_contradiction(strides: Any, file: str, caplog: pytest.LogCaptureFixture) -> None:
    run_check(parser_of("finetune", pretrained=file, spatial_dims=3, channels=(4, 8), strides=strides, norm="BATCH"))
    assert caplog.text == ""


def test_other_strides_are_another_network(file: str) -> None:
    with pytest.raises(Exception, match=r".") as caught:
        run_check(parser_of("finetune", pretrained=file, strides=[2]))
    assert "strides: its card says [[2, 2, 1]], the configuration [2]" in str(root_cause(caught.value))


def test_other_preparation_of_images_wins_and_is_told(file: str, caplog: pytest.LogCaptureFixture) -> None:
    rule = {"_target_": "NormalizeIntensityd", "keys": "image"}
    parser = parser_of("evaluate", ckpt=file, pixdim=[2.0, 2.0], slab_depth=5, intensity=rule)
    with caplog.at_level(logging.WARNING):
        run_check(parser)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 3
    assert f"checkpoint {file} was made with pixdim [1.0, 1.0]; [2.0, 2.0] is used, as the configuration says" in told
    assert parser.get_parsed_content("pixdim") == [2.0, 2.0]
    assert type(parser.get_parsed_content("preprocessing").transforms[4]) is NormalizeIntensityd


def test_one_argument_of_the_rule_for_intensities_can_be_changed(file: str) -> None:
    parser = parser_of("inference", ckpt=file)
    parser.update({"intensity::upper": 95})
    rule = parser.get_parsed_content("preprocessing").transforms[4]
    assert (type(rule), rule.scaler.upper) == (ScaleIntensityRangePercentilesd, 95)


def test_a_card_names_transforms_of_intensities_only(tmp_path: Path) -> None:
    rule = {"_target_": "SaveImaged", "keys": "image"}
    write_weights(tmp_path / "m.pt", {"w": torch.zeros(1)}, card_of({**KNOWN, "intensity": rule}))
    with pytest.raises(Exception, match=r".") as caught:
        parser_of("inference", ckpt=str(tmp_path / "m.pt")).get_parsed_content("preprocessing")
    assert "intensity rule SaveImaged is none of MONAI's" in str(root_cause(caught.value))


def test_an_unusable_card_is_named_with_its_file(tmp_path: Path) -> None:
    write_weights(tmp_path / "m.pt", {"w": torch.zeros(1)}, card_of({**KNOWN, "channels": ["four"]}))
    with pytest.raises(Exception, match=r".") as caught:
        parser_of("inference", ckpt=str(tmp_path / "m.pt")).get_parsed_content("from_card")
    assert "m.pt: its card holds no usable channels" in str(root_cause(caught.value))


def test_a_run_describes_itself(file: str, caplog: pytest.LogCaptureFixture) -> None:
    card = parser_of("finetune", "data/sunnybrook.json", pretrained=file, pixdim=(1.5, 1.5)).get_parsed_content("card")
    assert card["architecture"] == {
        name: KNOWN[name] for name in ("spatial_dims", "channels", "strides", "norm", "slab_depth")
    }
    assert card["preprocessing"]["pixdim"] == [1.5, 1.5]
    assert card["preprocessing"]["intensity"]["_target_"] == "ScaleIntensityRangePercentilesd"
    assert card["preprocessing"]["labels"] == {"myo": 2, "lv": 3}
    assert (card["data_license"], card["method"]) == ("CC0 1.0", "SegmentationUNet")
    assert card["pretrained"] == {"method": "unknown", "data_license": "unknown"}
    assert len(card["config_hash"]) == 12

    odd = {"_target_": "Lambdad", "keys": "image", "func": "$lambda x: x"}
    card = parser_of("pretrain", intensity=odd).get_parsed_content("card")
    assert "intensity" not in card["preprocessing"]
    assert "will not tell the rule for intensities" in caplog.text
    assert (card["method"], card["architecture"]["strides"]) == ("FCL", [[2, 2]] * 4)


def test_an_architecture_that_no_card_can_hold_is_refused_before_training() -> None:
    parser = parser_of("finetune", norm=["batch", {"affine": "true"}])
    with pytest.raises(RuntimeError) as caught:
        parser.get_parsed_content("card")
    assert str(root_cause(caught.value)).startswith("norm = ['batch', {'affine': 'true'}]: the weights' card cannot")
    assert "write True, not true" in str(root_cause(caught.value))
