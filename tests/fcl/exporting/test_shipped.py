from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fcl.exporting.shipped import write_shipped
from fcl.networks import CheckpointError, SegmentationUNet, load_weights, read_card, with_card

CARD = {"stage": "fine-tuning", "architecture": {"channels": [4, 8]}}


def network(seed: int) -> SegmentationUNet:
    torch.manual_seed(seed)
    return SegmentationUNet(2, 1, 4, [4, 8]).eval()


def test_half_the_bytes_and_nearly_the_same_output(tmp_path: Path) -> None:
    trained = network(0)
    torch.save(with_card(trained.state_dict(), CARD), tmp_path / "trained.pt")
    shipped = write_shipped(tmp_path / "trained.pt", tmp_path / "models" / "model.pt")
    loaded = network(1)
    load_weights(loaded, shipped)
    image = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(loaded(image), trained(image), rtol=0.01, atol=0.01)
    assert loaded(image).dtype == torch.float32
    halves = torch.load(shipped, weights_only=True)
    assert sum(t.nbytes for t in halves.values()) < 0.51 * sum(t.nbytes for t in trained.state_dict().values())
    assert read_card(shipped) == {**CARD, "stored": "float16"}
    assert json.loads((tmp_path / "models" / "model.card.json").read_text()) == read_card(shipped)


def test_weights_without_card_are_refused(tmp_path: Path) -> None:
    torch.save(network(0).state_dict(), tmp_path / "trained.pt")
    with pytest.raises(CheckpointError, match="no card"):
        write_shipped(tmp_path / "trained.pt", tmp_path / "model.pt")
    assert not (tmp_path / "model.pt").exists()


def test_weight_beyond_half_precision_is_refused(tmp_path: Path) -> None:
    state = network(0).state_dict()
    state["decoder.logits.bias"][0] = 1e6
    torch.save(with_card(state, CARD), tmp_path / "trained.pt")
    with pytest.raises(CheckpointError, match=r"decoder\.logits\.bias"):
        write_shipped(tmp_path / "trained.pt", tmp_path / "model.pt")
