from __future__ import annotations

import logging
import os
from collections import OrderedDict

import pytest
import torch

from fcl.networks import (
    CheckpointError,
    ContrastiveNetwork,
    ProjectionHead,
    SegmentationUNet,
    UNetEncoder,
    load_weights,
    read_card,
    read_weights,
    write_weights,
)

CHANNELS = (4, 8)


@pytest.fixture
def pretrained() -> ContrastiveNetwork:
    torch.manual_seed(1)
    return ContrastiveNetwork(UNetEncoder(channels=CHANNELS), ProjectionHead(8, 16, 4))


@pytest.fixture
def checkpoint(pretrained, tmp_path):
    path = tmp_path / "encoder.pt"
    write_weights(path, pretrained.state_dict(), {"channels": list(CHANNELS), "norm": ["group", {"num_groups": 8}]})
    return path


def unchanged(module, before) -> bool:
    return all(torch.equal(tensor, before[key]) for key, tensor in module.state_dict().items())


def test_written_weights_and_card_are_read_back(checkpoint, pretrained):
    weights = read_weights(checkpoint)
    assert list(weights) == list(pretrained.state_dict())
    assert unchanged(pretrained, weights)
    assert read_card(checkpoint) == {"channels": [4, 8], "norm": ["group", {"num_groups": 8}]}


@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_a_plain_state_dict_is_read_and_has_no_card(kind, tmp_path, pretrained):
    torch.save(kind(pretrained.state_dict()), tmp_path / "plain.pt")
    assert unchanged(pretrained, read_weights(tmp_path / "plain.pt"))
    assert read_card(tmp_path / "plain.pt") == {}


def test_equal_content_gives_equal_bytes(pretrained, tmp_path):
    for name in ("first.pt", "second.pt"):
        write_weights(tmp_path / name, pretrained.state_dict(), {"round": 3})
    assert (tmp_path / "first.pt").read_bytes() == (tmp_path / "second.pt").read_bytes()


def test_views_and_layouts_are_written_as_plain_copies(tmp_path):
    big = torch.rand(1000, 1000, requires_grad=True)
    image = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    write_weights(tmp_path / "new" / "w.pt", {"part": big[:2, :2], "image": image}, {})
    assert (tmp_path / "new" / "w.pt").stat().st_size < 20_000
    weights = read_weights(tmp_path / "new" / "w.pt")
    assert torch.equal(weights["part"], big[:2, :2])
    assert torch.equal(weights["image"], image)
    assert weights["image"].is_contiguous()


def test_an_interrupted_write_leaves_the_old_file(checkpoint, monkeypatch):
    before = checkpoint.read_bytes()

    def interrupt(content, stream):
        stream.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_weights(checkpoint, {"a": torch.zeros(1)}, {})
    assert checkpoint.read_bytes() == before
    assert os.listdir(checkpoint.parent) == [checkpoint.name]


@pytest.mark.parametrize("value", [torch.zeros(1), {1, 2}, OrderedDict, 1j])
def test_a_card_takes_plain_values_only(value, tmp_path):
    with pytest.raises(TypeError, match=r"card\.nested\[1\]"):
        write_weights(tmp_path / "w.pt", {"a": torch.zeros(1)}, {"nested": ["fine", value]})
    assert not (tmp_path / "w.pt").exists()


class Trainer:
    """Something that weights_only refuses."""


def save_as(path, content) -> None:
    torch.save(content, path)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda path: None, FileNotFoundError, r"w\.pt does not exist: give the path"),
        (lambda path: path.mkdir(), FileNotFoundError, r"w\.pt is a folder"),
        (lambda path: path.write_bytes(b""), CheckpointError, r"w\.pt \(0 bytes\) cannot be read: it is truncated"),
        (lambda path: path.write_text("no checkpoint"), CheckpointError, r"w\.pt is refused: it is no PyTorch file"),
        (lambda path: save_as(path, {"model": Trainer}), CheckpointError, "more than tensors and plain values"),
        (lambda path: save_as(path, {}), CheckpointError, "holds an empty dict"),
        (lambda path: save_as(path, torch.zeros(2)), CheckpointError, "holds an object of type Tensor"),
        (lambda path: save_as(path, {"weights": {}, "card": {}}), CheckpointError, "holds an empty dict"),
        (
            lambda path: save_as(path, {"model": {"w": torch.zeros(1)}, "epoch": 3}),
            CheckpointError,
            r"not a dict from name to tensor: 'model' \(dict\), 'epoch' \(int\)",
        ),
    ],
)
def test_unreadable_files_are_named_with_a_way_out(make, error, message, tmp_path):
    path = tmp_path / "w.pt"
    make(path)
    with pytest.raises(error, match=message):
        read_weights(path)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.95])
def test_a_truncated_checkpoint_is_called_so(checkpoint, kept):
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(CheckpointError, match=r"encoder\.pt \(\d+ bytes\) cannot be read: it is truncated or damaged"):
        read_weights(checkpoint)


def test_the_encoder_of_a_unet_takes_a_pretraining_checkpoint(checkpoint, pretrained, caplog):
    network = SegmentationUNet(channels=CHANNELS)
    with caplog.at_level(logging.INFO, logger="fcl"):
        report = load_weights(network.encoder, checkpoint, prefix="encoder.")
    assert unchanged(network.encoder, pretrained.encoder.state_dict())
    assert len(report.matched) == len(network.encoder.state_dict())
    assert report.missing == report.mismatched == ()
    assert report.unexpected == tuple(f"head.{key}" for key in pretrained.head.state_dict())
    assert f"{len(report.matched)} matched, 0 missing, 0 of another shape, 4 not used" in caplog.text
    assert str(checkpoint) in caplog.text


def test_weights_in_memory_load_alike(pretrained):
    encoder = UNetEncoder(channels=CHANNELS)
    load_weights(encoder, pretrained.state_dict(), prefix="encoder.")
    assert unchanged(encoder, pretrained.encoder.state_dict())


def test_batch_counters_may_be_absent(pretrained):
    weights = {key: value for key, value in pretrained.state_dict().items() if "num_batches_tracked" not in key}
    report = load_weights(UNetEncoder(channels=CHANNELS), weights, prefix="encoder.")
    assert report.missing == ()


@pytest.mark.parametrize(
    ("other", "fragments"),
    [
        (
            {"channels": (4, 16)},
            ["10 of another shape", "downs.0.convs.conv_0.conv.weight (8, 4, 3, 3) for (16, 4, 3, 3)", "and 5 more"],
        ),
        ({"channels": (4, 8, 16)}, ["10 missing", "Missing: encoder.downs.1.convs.conv_0.conv.weight"]),
        ({"channels": CHANNELS, "spatial_dims": 3}, ["(4, 1, 3, 3) for (4, 1, 3, 3, 3)"]),
        ({"channels": CHANNELS, "norm": "instance"}, ["0 missing", "Not used: encoder.stem.conv_0.adn.N.weight"]),
    ],
)
def test_another_architecture_is_refused_and_leaves_the_module_alone(checkpoint, other, fragments):
    encoder = UNetEncoder(**other)
    before = {key: tensor.clone() for key, tensor in encoder.state_dict().items()}
    with pytest.raises(CheckpointError, match="is of another architecture") as caught:
        load_weights(encoder, checkpoint, prefix="encoder.")
    message = str(caught.value)
    assert str(checkpoint) in message
    assert "Set channels, norm, spatial_dims and strides" in message
    assert all(fragment in message for fragment in fragments), message
    assert unchanged(encoder, before)


def test_a_wrong_prefix_is_told_the_right_one(checkpoint):
    with pytest.raises(
        CheckpointError, match=r"no tensor that begins with 'model\.', they begin with encoder\., head\."
    ):
        load_weights(UNetEncoder(channels=CHANNELS), checkpoint, prefix="model.")


def test_a_pretrained_encoder_is_no_segmentation(checkpoint):
    with pytest.raises(CheckpointError, match=r"encoder\.pt has no decoder, .* fine-tune from it"):
        load_weights(SegmentationUNet(channels=CHANNELS, norm="batch"), checkpoint)
    with pytest.raises(CheckpointError, match="is of another architecture"):
        load_weights(SegmentationUNet(channels=(8, 16), norm="batch"), checkpoint)


def test_a_deeper_checkpoint_is_refused_too():
    deeper = UNetEncoder(channels=(4, 8, 16)).state_dict()
    with pytest.raises(CheckpointError, match=r"0 missing.*Not used: downs\.1\."):
        load_weights(UNetEncoder(channels=CHANNELS), deeper)


@pytest.mark.parametrize(("least", "accepted"), [(0.4, True), (0.6, False)])
def test_min_matched_is_the_share_that_must_fit(pretrained, least, accepted):
    encoder = UNetEncoder(channels=CHANNELS)
    weights = {key: value for key, value in pretrained.encoder.state_dict().items() if key.startswith("stem")}
    if accepted:
        report = load_weights(encoder, weights, min_matched=least)
        assert torch.equal(encoder.stem.conv_0.conv.weight, pretrained.encoder.stem.conv_0.conv.weight)
        assert len(report.missing) == 10
    else:
        with pytest.raises(CheckpointError, match="10 missing"):
            load_weights(encoder, weights, min_matched=least)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(pretrained, value):
    weights = {key: tensor.clone() for key, tensor in pretrained.encoder.state_dict().items()}
    weights["stem.conv_0.conv.weight"][0, 0, 0, 0] = value
    encoder = UNetEncoder(channels=CHANNELS)
    before = {key: tensor.clone() for key, tensor in encoder.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"NaN or infinite values in stem\.conv_0\.conv\.weight"):
        load_weights(encoder, weights)
    assert unchanged(encoder, before)


@pytest.mark.parametrize("least", [0.0, 1.1, -1.0])
def test_min_matched_must_be_a_share(pretrained, least):
    with pytest.raises(ValueError, match="min_matched must lie in"):
        load_weights(pretrained, pretrained.state_dict(), min_matched=least)
