"""What fine-tuning takes over from each kind of pre-training."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import BasicUNet

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
    parameter_groups,
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


def test_the_encoder_learns_at_its_own_rate_and_all_else_at_the_optimizers():
    network = SegmentationUNet(2, 1, 4, CHANNELS, "batch")
    groups = parameter_groups(network, 0.1)
    assert [group.get("lr") for group in groups] == [0.1, None]
    assert [id(p) for group in groups for p in group["params"]] == [id(p) for p in network.parameters()]
    assert len(groups[0]["params"]) == len(list(network.encoder.parameters()))


@pytest.mark.parametrize("use", [lambda network: parameter_groups(network, 0.1), lambda n: load_pretrained(n, {})])
def test_a_network_without_an_encoder_is_refused_by_name(use):
    with pytest.raises(ValueError, match=r"BasicUNet has no module named 'encoder'.*FlexibleUNet"):
        use(BasicUNet(2, 1, 4, (4, 4, 8, 8, 8, 4)))
