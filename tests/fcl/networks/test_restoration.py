"""Hidden places of the restoring network, at every resolution."""

from __future__ import annotations

import pytest
import torch

from fcl.networks import RestorationNetwork, UNetDecoder, UNetEncoder

CHANNELS = (4, 8, 12)


@pytest.mark.parametrize(
    ("size", "strides", "coarsest"),
    [((16, 8), None, (4, 4)), ((16, 8, 3), [[2, 2, 1], [2, 2, 1]], (4, 4, 1)), ((8, 8, 4), [[2, 2, 1], 2], (4, 4, 2))],
)
def test_hidden_patches_hold_the_token_at_every_resolution(size, strides, coarsest):
    dims = len(size)
    network = RestorationNetwork(
        UNetEncoder(dims, 1, CHANNELS, strides=strides), UNetDecoder(dims, 1, CHANNELS, strides=strides), True
    )
    for number, token in enumerate(network.tokens):
        torch.nn.init.constant_(token, 5.0 + number)
    grid = [side // patch for side, patch in zip(size, coarsest, strict=True)]
    patches = torch.rand(2, 1, *grid, generator=torch.Generator().manual_seed(0)) < 0.5
    hidden = torch.nn.functional.interpolate(patches.float(), size=size, mode="nearest").bool()
    maps = network.maps(torch.rand(2, 1, *size).masked_fill(hidden, 0.0), hidden)
    for number, features in enumerate(maps):
        where = torch.nn.functional.interpolate(patches.float(), size=features.shape[2:], mode="nearest").bool()
        assert torch.equal(features == 5.0 + number, where.expand_as(features))
    assert network.restore(torch.rand(2, 1, *size), hidden).shape == (2, 1, *size)


def test_masked_maps_are_switched_by_words_too():
    def tokens(masked_maps: str) -> int:
        return len(RestorationNetwork(UNetEncoder(2, 1, CHANNELS), UNetDecoder(2, 1, CHANNELS), masked_maps).tokens)

    assert (tokens("false"), tokens("true")) == (0, len(CHANNELS))
