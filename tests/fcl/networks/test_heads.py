from __future__ import annotations

import pytest
import torch
from torch import nn

from fcl.networks import ContrastiveNetwork, ProjectionHead, UNetEncoder


@pytest.fixture
def network() -> ContrastiveNetwork:
    torch.manual_seed(0)
    return ContrastiveNetwork(UNetEncoder(channels=(4, 8)), ProjectionHead(8, hidden=16, out_features=6))


def test_features_have_unit_norm(network):
    features = network(torch.rand(5, 1, 10, 12))
    assert features.shape == (5, 6)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(5))


def test_features_are_the_normalised_head_of_the_pooled_coarsest_map(network):
    network.eval()
    image = torch.rand(3, 1, 10, 12)
    pooled = network.encoder(image)[-1].mean(dim=(2, 3))
    torch.testing.assert_close(network.embed(image), pooled)
    projected = network.head(pooled)
    torch.testing.assert_close(network(image), projected / projected.norm(dim=1, keepdim=True))


def test_features_stay_float32_and_exact_under_autocast(network):
    network.eval()
    image = torch.rand(3, 1, 10, 12)
    with torch.autocast("cpu", torch.bfloat16):
        assert network.encoder(image)[-1].dtype == torch.bfloat16
        features, pooled = network(image), network.embed(image)
    assert features.dtype == pooled.dtype == torch.float32
    torch.testing.assert_close(features.norm(dim=1), torch.ones(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(features, network(image), atol=0.05, rtol=0)


def test_three_dimensional_encoders_are_pooled_too():
    network = ContrastiveNetwork(UNetEncoder(3, channels=(4, 8)), ProjectionHead(8, out_features=6))
    assert network(torch.rand(2, 1, 6, 8, 4)).shape == (2, 6)


def test_gradients_reach_encoder_and_head(network):
    network(torch.rand(4, 1, 8, 8))[:, 0].sum().backward()
    assert network.encoder.stem.conv_0.conv.weight.grad.abs().sum() > 0
    assert network.head[0].weight.grad.abs().sum() > 0


def test_keys_begin_with_encoder_and_head(network):
    assert {key.split(".")[0] for key in network.state_dict()} == {"encoder", "head"}


def test_batch_norm_in_the_head_is_a_choice():
    assert not any(isinstance(layer, nn.BatchNorm1d) for layer in ProjectionHead(8))
    head = ProjectionHead(8, hidden=16, out_features=4, batch_norm=True)
    assert [type(layer) for layer in head][:3] == [nn.BatchNorm1d, nn.Linear, nn.BatchNorm1d]
    assert head(torch.rand(3, 8)).shape == (3, 4)
    assert len(ProjectionHead(8, batch_norm="false")) == len(ProjectionHead(8))
