from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fcl.card import (
    NOTICE,
    card_file,
    card_of,
    declared_in,
    fits,
    fitting,
    origin_of,
    settings_in,
    versions,
    write_card,
)
from fcl.networks import load_weights, read_card, read_weights, with_card, write_weights

PERCENTILES = {"_target_": "ScaleIntensityRangePercentilesd", "keys": "image", "lower": 1, "upper": 99.5, "clip": True}
DECLARED: dict[str, Any] = {
    "stage": "fine-tuning",
    "method": "SegmentationUNet",
    "data_license": "CC BY-NC-SA 4.0",
    "spatial_dims": 2,
    "channels": [4, 8],
    "strides": [[2, 2]],
    "norm": ["instance", {"affine": True}],
    "slab_depth": None,
    "pixdim": [1.5, 2.0],
    "spatial_size": [64, 32],
    "slice_axis": 2,
    "intensity": PERCENTILES,
    "labels": {"rv": 1, "left ventricle": 3},
}
FACTS: dict[str, Any] = {"sites": 3, "rounds": 7, "config_hash": "0a1b", "versions": versions("torch", "no-such")}


def test_a_card_tells_what_was_declared_and_gives_it_back() -> None:
    card = card_of(DECLARED, **FACTS)
    assert card["architecture"]["channels"] == [4, 8]
    assert card["preprocessing"]["labels"] == {"rv": 1, "left ventricle": 3}
    assert card["versions"].keys() == {"fcl", "torch"}
    assert card["use"] == NOTICE
    assert declared_in(card) == DECLARED
    assert settings_in(card, "architecture").keys() == {"spatial_dims", "channels", "strides", "norm", "slab_depth"}
    assert settings_in(card, "architecture", "preprocessing") == {
        name: value for name, value in DECLARED.items() if name not in ("stage", "method", "data_license")
    }
    unknown = card_of({})
    assert (unknown["method"], unknown["data_license"], unknown["architecture"]) == ("unknown", "unknown", {})
    assert settings_in({}, "architecture") == {}


@pytest.mark.parametrize("plain", [False, True], ids=["weights and card", "state dict"])
def test_a_card_goes_through_a_file_that_is_loaded_safely(plain: bool, tmp_path: Path) -> None:
    card, network, file = card_of(DECLARED, **FACTS), nn.Linear(2, 2), tmp_path / "model.pt"
    if plain:
        torch.save(with_card(network.state_dict(), card), file)
        nn.Linear(2, 2).load_state_dict(torch.load(file, weights_only=True))
    else:
        write_weights(file, network.state_dict(), card)
    assert read_card(file) == card
    assert torch.equal(read_weights(file)["weight"], network.weight)
    load_weights(nn.Linear(2, 2), file)
    write_card(card, file)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["model.card.json", "model.pt"]
    assert json.loads(card_file(file).read_text()) == card


def test_a_state_dict_carries_plain_values_only() -> None:
    with pytest.raises(TypeError, match=r"card\.labels"):
        with_card({}, {"labels": torch.zeros(1)})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hospital", "general"),
        ("method", "patient007"),
        ("method", "../cases/anna"),
        ("stage", "testing"),
        ("data_license", "with permission of General Hospital"),
        ("data_license", "CC BY 4.0; /data/cases"),
        ("channels", [4]),
        ("channels", [4, True]),
        ("channels", "patient007"),
        ("strides", [[2, 3]]),
        ("norm", ["instance", {"affine": "patient007"}]),
        ("norm", "$__import__('os')"),
        ("pixdim", [1.0, float("nan")]),
        ("slice_axis", True),
        ("intensity", {**PERCENTILES, "keys": "case0012"}),
        ("intensity", {**PERCENTILES, "_target_": "os.system"}),
        ("intensity", {**PERCENTILES, "note": "anna"}),
        ("labels", {"case12": 1}),
        ("labels", {"lv": 1, "rv": 1}),
        ("labels", {}),
    ],
)
def test_what_could_name_somebody_or_hold_code_is_no_value_of_a_field(name: str, value: Any) -> None:
    assert not fits(name, value)
    assert fitting({"slab_depth": None, name: value}) == {"slab_depth": None}


@pytest.mark.parametrize(
    "text",
    ["CC BY-NC-SA 4.0", "CC0 1.0", "CC-BY-4.0", "ODbL-1.0", "CDLA-Permissive-2.0", "restricted", "unknown; synthetic"],
)
def test_public_licences_and_kinds_of_them_are_told(text: str) -> None:
    assert fits("data_license", text)


def test_settings_of_a_strange_card_are_refused_but_structures_may_have_any_name() -> None:
    with pytest.raises(ValueError, match="no usable channels, norm"):
        settings_in({"architecture": {"channels": ["$x"], "norm": 3, "spatial_dims": 2}}, "architecture")
    named = {"preprocessing": {"labels": {"L1 vertebra (caudal)": 1}}}
    assert settings_in(named, "preprocessing") == named["preprocessing"]
    assert declared_in(named) == {}


def test_a_descendant_keeps_where_its_weights_came_from() -> None:
    assert origin_of(card_of(DECLARED, **FACTS)) == {
        "stage": "fine-tuning",
        "method": "SegmentationUNet",
        "data_license": "CC BY-NC-SA 4.0",
        "sites": 3,
        "rounds": 7,
        "config_hash": "0a1b",
    }
    assert origin_of({"sites": {"general-hospital": 1}, "method": "/data/anna"}) is None
