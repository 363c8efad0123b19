from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import load_net_with_metadata

import fcl
from fcl.exporting.network import export_network
from fcl.networks import CheckpointError, SegmentationUNet, load_weights, read_card, with_card, write_weights

NORM = ["instance", {"affine": True}]
SPLEEN_CARD = {
    "stage": "fine-tuning",
    "architecture": {"spatial_dims": 2, "channels": [4, 8], "strides": [[2, 2]], "norm": "batch", "slab_depth": None},
    "preprocessing": {
        "pixdim": [1.5, 1.5],
        "spatial_size": [24, 16],
        "slice_axis": 2,
        "intensity": {
            "_target_": "ScaleIntensityRanged",
            "keys": "image",
            "a_min": -160,
            "a_max": 240,
            "b_min": -1.0,
            "b_max": 1.0,
        },
        "labels": {"spleen": 7},
    },
    "rounds": 3,
    "metrics": {"dice_spleen": 0.5},
}


@pytest.fixture
def tuned(tmp_path: Path) -> tuple[Path, torch.nn.Module]:
    """A tiny network that only its card describes."""
    torch.manual_seed(3)
    network = SegmentationUNet(2, 1, 4, [4, 8], norm=NORM).eval()
    card = {
        "architecture": {"spatial_dims": 2, "channels": [4, 8], "norm": NORM},
        "preprocessing": {"spatial_size": [16, 24]},
    }
    torch.save(with_card(network.state_dict(), card), tmp_path / "model.pt")
    return tmp_path / "model.pt", network


def test_torchscript_says_what_the_network_says_at_any_size(
    tuned: tuple[Path, torch.nn.Module], tmp_path: Path
) -> None:
    weights, network = tuned
    exported, metadata, _ = load_net_with_metadata(str(export_network("torchscript", tmp_path / "m.ts", weights)))
    for shape in ((1, 1, 16, 24), (3, 1, 33, 20)):
        image = torch.rand(shape)
        torch.testing.assert_close(exported(image), network(image))
    assert metadata["version"] == fcl.__version__


def test_shipped_weights_become_torchscript(tmp_path: Path) -> None:
    weights = fcl.bundle_root() / "models" / "model.pt"
    exported, _, _ = load_net_with_metadata(str(export_network("torchscript", tmp_path / "m.ts")))
    parser = ConfigParser()
    parser.read_config(str(fcl.bundle_root() / "configs" / "inference.json"))
    network = parser.get_parsed_content("network_def").eval()
    load_weights(network, weights)
    image = torch.rand(2, 1, *read_card(weights)["preprocessing"]["spatial_size"])
    torch.testing.assert_close(exported(image), network(image))


def test_onnx_says_what_the_network_says_in_batches_of_any_size(
    tuned: tuple[Path, torch.nn.Module], tmp_path: Path
) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason=f"{package} has no wheel for this machine")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime has no wheel for this machine")
    weights, network = tuned
    file = export_network("onnx", tmp_path / "m.onnx", weights)
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = runtime.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        image = torch.rand(batch, 1, 16, 24)
        (found,) = session.run(["pred"], {"image": image.numpy()})
        np.testing.assert_allclose(found, network(image).detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.fixture
def federated(tmp_path: Path) -> tuple[Path, torch.nn.Module]:
    """As a federation writes it: a card beside the weights, another number of channels, batches not counted."""
    torch.manual_seed(4)
    network = SegmentationUNet(2, 1, 2, [4, 8], norm="batch").eval()
    kept = {name: value for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    write_weights(tmp_path / "last.pt", kept, SPLEEN_CARD)
    return tmp_path / "last.pt", network


def check_description(metadata: dict[str, Any], inference: dict[str, Any], card: dict[str, Any]) -> None:
    """That it is of the weights of ``federated``, whatever the bundle ships."""
    assert card == SPLEEN_CARD
    image = metadata["network_data_format"]["inputs"]["image"]
    pred = metadata["network_data_format"]["outputs"]["pred"]
    assert image["spatial_shape"] == pred["spatial_shape"] == [24, 16]
    assert (image["num_channels"], pred["num_channels"]) == (1, 2)
    assert pred["channel_def"] == {"0": "background", "1": "spleen"}
    assert image["value_range"] == [-1.0, 1.0]
    assert "eval_metrics" not in metadata
    assert not any(word in json.dumps([metadata, inference]) for word in ("ventric", "phantom", "myo", "ardiac"))
    assert {name: inference[name] for name in SPLEEN_CARD["preprocessing"]} == SPLEEN_CARD["preprocessing"]
    assert {name: inference[name] for name in SPLEEN_CARD["architecture"]} == SPLEEN_CARD["architecture"]
    assert inference["ckpt"] is None


def test_network_of_a_federation_describes_itself_in_torchscript(
    federated: tuple[Path, torch.nn.Module], tmp_path: Path
) -> None:
    weights, network = federated
    file = export_network("torchscript", tmp_path / "m.ts", weights)
    names = ("inference.json", "card.json")
    exported, metadata, extra = load_net_with_metadata(str(file), more_extra_files=names)
    image = torch.rand(2, 1, 24, 16)
    torch.testing.assert_close(exported(image), network(image))
    check_description(metadata, *(json.loads(extra[name]) for name in names))


def test_network_of_a_federation_describes_itself_in_onnx(
    federated: tuple[Path, torch.nn.Module], tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install 'fcl[onnx]'")
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'fcl[onnx]'")
    model = onnx.load(export_network("onnx", tmp_path / "m.onnx", federated[0]))
    told = {entry.key: json.loads(entry.value) for entry in model.metadata_props if entry.key.endswith(".json")}
    check_description(told["metadata.json"], told["inference.json"], told["card.json"])
    assert {file.name for file in tmp_path.iterdir()} == {"last.pt", "m.onnx"}
    assert [side.dim_value for side in model.graph.input[0].type.tensor_type.shape.dim[1:]] == [1, 24, 16]


def test_described_configuration_prepares_images_as_the_card_does(
    federated: tuple[Path, torch.nn.Module], tmp_path: Path
) -> None:
    file = export_network("torchscript", tmp_path / "m.ts", federated[0])
    _, _, extra = load_net_with_metadata(str(file), more_extra_files=["inference.json"])
    parser = ConfigParser(json.loads(extra["inference.json"]))
    steps = parser.get_parsed_content("preprocessing").transforms
    assert [type(step).__name__ for step in steps].count("ScaleIntensityRanged") == 1
    assert parser.get_parsed_content("network_def").state_dict().keys() == federated[1].state_dict().keys()


def test_weights_without_labels_get_no_names_of_others(tuned: tuple[Path, torch.nn.Module], tmp_path: Path) -> None:
    _, metadata, _ = load_net_with_metadata(str(export_network("torchscript", tmp_path / "m.ts", tuned[0])))
    channels = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert channels == {"0": "background", "1": "structure 1", "2": "structure 2", "3": "structure 3"}


def test_size_of_a_network_for_slabs_has_their_depth(tmp_path: Path) -> None:
    architecture = {"spatial_dims": 3, "channels": [4, 8], "norm": NORM, "slab_depth": 6}
    card = {"architecture": architecture, "preprocessing": {"spatial_size": [16, 24], "labels": {"liver": 1}}}
    write_weights(tmp_path / "best.pt", SegmentationUNet(3, 1, 2, [4, 8], norm=NORM).state_dict(), card)
    file = export_network("torchscript", tmp_path / "m.ts", tmp_path / "best.pt")
    exported, metadata, _ = load_net_with_metadata(str(file))
    image = metadata["network_data_format"]["inputs"]["image"]
    assert (image["spatial_shape"], image["is_patch_data"]) == ([16, 24, 6], True)
    assert exported(torch.rand(1, 1, 16, 24, 6)).shape == (1, 2, 16, 24, 6)


def test_weights_that_are_not_the_networks_are_refused(tmp_path: Path) -> None:
    write_weights(tmp_path / "last.pt", {"encoder.w": torch.zeros(2)}, {"stage": "pre-training"})
    with pytest.raises(CheckpointError, match="another architecture"):
        export_network("torchscript", tmp_path / "m.ts", tmp_path / "last.pt")
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_missing_package_is_named_with_its_extra(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=r"pip install 'fcl\[onnx\]'"):
        export_network("onnx", tmp_path / "out" / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_ending_says_the_format(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"torchscript with \.ts"):
        export_network("torchscript", tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []
