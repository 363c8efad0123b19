"""What MONAI's Model Zoo asks of a bundle, without a network: files, metadata, shapes, weights.

The zoo's own check of metadata.json fetches a schema, as `python -m monai.bundle verify_metadata` does where there is a
network (bundle/docs/README.md). The fields here are those of MONAI's bundle specification.
"""

from __future__ import annotations

import json
import re
from typing import Any

import monai.bundle
import pytest
import torch
from monai.bundle.utils import DEPRECATED_ID_MAPPING

import fcl

BUNDLE = fcl.bundle_root()
CONFIGS = BUNDLE / "configs"
METADATA = json.loads((CONFIGS / "metadata.json").read_text(encoding="utf-8"))
WEIGHTS = BUNDLE / "models" / "model.pt"
FORMATS = {name: value for name, value in METADATA.items() if name.endswith("_data_format")}
TEXTS = ("schema", "version", "monai_version", "pytorch_version", "numpy_version", "name", "task", "description",
         "authors", "copyright", "data_source", "data_type", "image_classes", "label_classes", "pred_classes",
         "intended_use")  # fmt: skip
VERSION = r"\d+(\.\d+)+"


def test_layout_is_that_of_the_zoo() -> None:
    necessary = ("LICENSE", "configs/metadata.json", "models/model.pt", "configs/inference.json")
    documented = ("docs/README.md", "docs/data_license.txt", "configs/logging.conf")
    assert [name for name in (*necessary, *documented) if not (BUNDLE / name).is_file()] == []
    # More would have to be downloaded from elsewhere, and large_files.yml say from where.
    assert [file for file in BUNDLE.rglob("*") if file.is_file() and file.stat().st_size > 25e6] == []


def test_metadata_has_every_field_in_its_type() -> None:
    assert [name for name in TEXTS if not isinstance(METADATA.get(name), str) or not METADATA[name].strip()] == []
    for name in ("version", "monai_version", "pytorch_version", "numpy_version"):
        assert re.fullmatch(VERSION, METADATA[name]), name
    for name in ("changelog", "required_packages_version"):
        assert METADATA[name]
        assert all(isinstance(key, str) and isinstance(value, str) for key, value in METADATA[name].items()), name
    assert all(re.fullmatch(VERSION, key) for key in METADATA["changelog"])
    assert METADATA["version"] in METADATA["changelog"]
    assert METADATA["version"] == fcl.__version__
    assert METADATA["supported_apps"] == {}  # of the zoo's own; none is named here
    assert all(isinstance(entry, str) and entry for entry in METADATA["references"])
    assert all(type(value) is float and 0 <= value <= 1 for value in METADATA["eval_metrics"].values())


@pytest.mark.parametrize("name", FORMATS)
def test_every_tensor_is_specified(name: str) -> None:
    wanted: dict[str, Any] = {
        "type": str, "format": str, "num_channels": int, "spatial_shape": list, "dtype": str, "value_range": list,
        "is_patch_data": bool, "channel_def": dict,
    }  # fmt: skip
    assert set(FORMATS[name]) == {"inputs", "outputs"}
    for tensors in FORMATS[name].values():
        for tensor in tensors.values():
            assert {key for key, kind in wanted.items() if type(tensor.get(key)) is not kind} == set()
            assert tensor["type"] in {"image", "series", "tuples", "probabilities"}
            assert all(type(side) is int and side > 0 for side in tensor["spatial_shape"])
            assert len(tensor["value_range"]) in (0, 2)
            assert {int(channel) for channel in tensor["channel_def"]} <= set(range(tensor["num_channels"]))
    assert isinstance(FORMATS[name]["inputs"]["image"]["modality"], str)


def test_no_field_has_a_name_that_monai_replaces() -> None:
    assert [name for name in DEPRECATED_ID_MAPPING if name in METADATA] == []


@pytest.mark.parametrize(
    ("name", "configs"),
    [
        ("network_data_format", ["inference.json"]),
        ("pretraining_data_format", ["pretrain.json"]),
        ("network_3d_data_format", ["finetune.json", "finetuning/unet_3d.json"]),
        ("pretraining_3d_data_format", ["pretrain.json", "methods/fcl_3d.json"]),
    ],
)
def test_networks_turn_the_declared_input_into_the_declared_output(name: str, configs: list[str]) -> None:
    monai.bundle.verify_net_in_out(
        net_id="network_def",
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=[str(CONFIGS / config) for config in configs],
        device="cpu",
        **{"_meta_::network_data_format": FORMATS[name]},
    )


def test_every_network_is_checked() -> None:
    marks = test_networks_turn_the_declared_input_into_the_declared_output.pytestmark
    assert {name for name, _ in marks[0].args[1]} == set(FORMATS)


def test_weights_are_small_plain_and_explained() -> None:
    assert WEIGHTS.stat().st_size < 2e6
    weights = torch.load(WEIGHTS, weights_only=True)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    card = fcl.networks.read_card(WEIGHTS)
    assert card["data_license"] == "synthetic"
    assert json.loads((WEIGHTS.parent / "model.card.json").read_text(encoding="utf-8")) == card
    shape = FORMATS["network_data_format"]["inputs"]["image"]["spatial_shape"]
    assert card["preprocessing"]["spatial_size"] == shape


def test_measured_values_are_quoted_with_their_command() -> None:
    document = (BUNDLE / "docs" / "README.md").read_text(encoding="utf-8")
    assert METADATA["eval_metrics"]
    assert "make model" in document
    assert [value for value in METADATA["eval_metrics"].values() if f"{value:.3f}" not in document] == []
