"""The region network: its regions, its frozen encoder, its names."""

from __future__ import annotations

import pytest
import torch

from fcl.networks import CheckpointError, RegionNetwork, SegmentationUNet, UNetDecoder, UNetEncoder, write_weights

CHANNELS = (4, 8, 16)


def network(blocks=2, norm="batch", channels=CHANNELS, **arguments):
    torch.manual_seed(0)
    return RegionNetwork(UNetEncoder(2, 1, channels, norm), UNetDecoder(2, 1, channels, norm), blocks, 6, **arguments)


@pytest.mark.parametrize("blocks", [1, 2])
def test_gives_unit_features_of_13_regions(blocks):
    features = network(blocks).eval()(torch.rand(2, 1, 32, 32))
    assert features.shape == (2, 13, 6)
    torch.testing.assert_close(features.norm(dim=2), torch.ones(2, 13))


def test_a_region_is_its_place():
    """A change in one corner moves the features of that corner's region, and not those of the opposite one."""
    net = network(norm="batch").eval()
    image = torch.rand(1, 1, 64, 64)
    other = image.clone()
    other[..., :6, :6] = 0
    moved = (net(image) - net(other)).abs().amax(dim=2)[0]
    assert moved[0].item() > 0
    assert moved[8].item() == 0.0


def test_regions_lie_at_the_shares_of_height_and_width():
    net = network(blocks=2).eval()
    image = torch.rand(1, 1, 24, 40)
    with torch.no_grad():
        features = net(image)[0]
        shown = net.head(net.decoder(net.encoder(image)[-3:]))[0]
        for place, (y, x) in {0: (4, 6), 2: (4, 33), 6: (20, 6), 8: (20, 33), 9: (8, 13)}.items():
            region = net.project(shown[:, y - 1 : y + 2, x - 1 : x + 2].flatten())
            torch.testing.assert_close(features[place], region / region.norm())


def test_decoder_names_are_those_of_the_segmentation_network():
    theirs = SegmentationUNet(2, 1, 4, CHANNELS, "batch").state_dict()
    ours = {name: value for name, value in network().state_dict().items() if name.startswith(("encoder", "decoder"))}
    assert ours.keys() <= theirs.keys()
    assert all(ours[name].shape == theirs[name].shape for name in ours)


def test_the_encoder_has_no_gradient_and_its_statistics_stand_still():
    net = network()
    before = {name: value.clone() for name, value in net.encoder.state_dict().items()}
    net.train()
    net(torch.rand(4, 1, 32, 32)).sum().backward()
    assert all(value.grad is None for value in net.encoder.parameters())
    assert all(torch.equal(before[name], value) for name, value in net.encoder.state_dict().items())
    assert all(value.grad is not None for value in net.decoder.parameters())


def test_takes_an_encoder_by_path_and_refuses_another_architecture(tmp_path):
    donor = network()
    write_weights(tmp_path / "e.pt", {f"encoder.{k}": v + 1 for k, v in donor.encoder.state_dict().items()}, {})
    taken = network(pretrained=tmp_path / "e.pt")
    assert taken.has_encoder
    assert not donor.has_encoder
    assert torch.equal(next(taken.encoder.parameters()), next(donor.encoder.parameters()) + 1)
    with pytest.raises(CheckpointError, match="another architecture"):
        network(channels=(8, 16, 32), pretrained=tmp_path / "e.pt")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: network(blocks=3), r"blocks must lie in 1..2"),
        (lambda: network(blocks=1)(torch.rand(1, 1, 16, 16)), "8 x 8 is too small"),
        (lambda: RegionNetwork(UNetEncoder(3, 1, (4, 8)), UNetDecoder(3, 1, (4, 8)), 1), "placed in 2-D"),
    ],
)
def test_refuses_what_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()
