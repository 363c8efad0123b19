from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import load_net_with_metadata

import fcl
from fcl.exporting.network import export_network
from fcl.networks import SegmentationUNet, load_weights, read_card, with_card

NORM = ["instance", {"affine": True}]


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


def test_ending_says_the_format(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"torchscript with \.ts"):
        export_network("torchscript", tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []
