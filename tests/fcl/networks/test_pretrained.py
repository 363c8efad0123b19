"""What fine-tuning takes over from each kind of pre-training."""

from __future__ import annotations

import pytest
import torch

from fcl.networks import (
    CheckpointError,
    ContrastiveNetwork,
    ProjectionHead,
    RegionNetwork,
    RestorationNetwork,
    SegmentationUNet,
    UNetDecoder,
    UNetEncoder,
    load_pretrained,
    write_weights,
)

CHANNELS = (4, 8, 16)


def encoder():
    return UNetEncoder(2, 1, CHANNELS, "batch")


def decoder(channels=CHANNELS):
    return UNetDecoder(2, 1, channels, "batch")


@pytest.mark.parametrize(
    ("make", "blocks"),
    [
        (lambda: ContrastiveNetwork(encoder(), ProjectionHead(16, 8, 8)), 0),
        (lambda: RegionNetwork(encoder(), decoder(), blocks=1, feature_length=8), 1),
        (lambda: RestorationNetwork(encoder(), decoder(), masked_maps=True), 2),
    ],
)
def test_takes_the_encoder_and_the_decoder_blocks_that_were_trained(make, blocks, tmp_path):
    trained = make()
    write_weights(tmp_path / "last.pt", trained.state_dict(), {})
    network = SegmentationUNet(2, 1, 4, CHANNELS, "batch")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    load_pretrained(network, tmp_path / "last.pt")
    source = trained.state_dict()
    for name, value in network.state_dict().items():
        taken = name.startswith("encoder.") or any(name.startswith(f"decoder.ups.{n}.") for n in range(blocks))
        assert torch.equal(value, source[name] if taken else before[name]), name


def test_a_decoder_of_another_architecture_is_refused():
    weights = {f"encoder.{name}": value for name, value in encoder().state_dict().items()}
    weights |= {f"decoder.{name}": value for name, value in decoder((8, 8, 16)).state_dict().items()}
    with pytest.raises(CheckpointError, match="another architecture"):
        load_pretrained(SegmentationUNet(2, 1, 4, CHANNELS, "batch"), weights)
