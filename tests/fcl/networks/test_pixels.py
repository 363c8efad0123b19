"""The pixel network: its map, its names, what it trains."""

from __future__ import annotations

import pytest
import torch

from fcl.networks import CheckpointError, PixelNetwork, SegmentationUNet, UNetDecoder, UNetEncoder, write_weights

CHANNELS = (4, 8, 16)


def network(blocks=1, channels=CHANNELS, **arguments):
    torch.manual_seed(0)
    return PixelNetwork(UNetEncoder(2, 1, channels), UNetDecoder(2, 1, channels), blocks, 6, **arguments)


@pytest.mark.parametrize(("blocks", "side"), [(1, 16), (2, 32)])
def test_gives_unit_features_of_each_pixel_of_its_map(blocks, side):
    features = network(blocks).eval()(torch.rand(2, 1, 32, 32))
    assert features.shape == (2, 6, side, side)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2, side, side))


def test_names_are_those_of_the_segmentation_network():
    theirs = SegmentationUNet(2, 1, 4, CHANNELS).state_dict()
    ours = {name: value for name, value in network().state_dict().items() if name.startswith(("encoder", "decoder"))}
    assert ours.keys() <= theirs.keys()
    assert all(ours[name].shape == theirs[name].shape for name in ours)


def test_all_of_it_trains():
    net = network(2)
    net(torch.rand(4, 1, 32, 32))[:, 0].sum().backward()
    assert [name for name, value in net.named_parameters() if value.grad is None] == []


def test_takes_an_encoder_by_path_and_refuses_another_architecture(tmp_path):
    donor = network()
    write_weights(tmp_path / "e.pt", {f"encoder.{k}": v + 1 for k, v in donor.encoder.state_dict().items()}, {})
    taken = network(pretrained=tmp_path / "e.pt")
    assert torch.equal(next(taken.encoder.parameters()), next(donor.encoder.parameters()) + 1)
    with pytest.raises(CheckpointError, match="another architecture"):
        network(channels=(8, 16, 32), pretrained=tmp_path / "e.pt")


@pytest.mark.parametrize("blocks", [0, 3])
def test_refuses_blocks_that_the_decoder_has_not(blocks):
    with pytest.raises(ValueError, match=r"blocks must lie in 1\.\.2"):
        network(blocks)


def test_refuses_3d():
    with pytest.raises(ValueError, match="2-D, spatial_dims is 3"):
        PixelNetwork(UNetEncoder(3, 1, CHANNELS), UNetDecoder(3, 1, CHANNELS))
