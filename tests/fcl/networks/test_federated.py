from __future__ import annotations

import pytest
import torch
from torch import nn

from fcl.networks import SegmentationUNet
from fcl.networks.federated import federated_names, federated_weights, load_federated_weights


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True)),
        nn.LayerNorm(4),
    )


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        ("average", {"1.num_batches_tracked"}),
        ("local", {"1.num_batches_tracked", "1.running_mean", "1.running_var"}),
        (
            "local_layers",
            {
                *(f"1.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
                *(f"{layer}.{name}" for layer in ("2.1", "2.2", "3") for name in ("weight", "bias")),
            },
        ),
    ],
)
def test_each_policy_keeps_what_it_says(policy, kept) -> None:
    assert set(network().state_dict()) - set(federated_names(network(), policy)) == kept


def test_a_bare_normalisation_layer_has_nothing_to_average() -> None:
    assert federated_names(nn.BatchNorm2d(3), "local_layers") == []


def test_local_layers_of_the_unet_stay_when_global_weights_arrive() -> None:
    unet = SegmentationUNet(2, 1, 2, channels=(4, 8), norm="batch")
    names = set(federated_names(unet, "local_layers"))
    assert {"encoder.stem.conv_0.conv.weight", "decoder.logits.bias"} <= names
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    zeros = {name: torch.zeros_like(value) for name, value in federated_weights(unet, "local_layers").items()}
    load_federated_weights(unet, zeros, "local_layers")
    for name, value in unet.state_dict().items():
        assert torch.equal(value, zeros[name] if name in names else before[name]), name
    # A scale of 1 would be gone, had it been averaged.
    assert any(name.endswith(".N.weight") and torch.all(value == 1) for name, value in unet.state_dict().items())


def test_weights_of_another_policy_and_other_policies_are_refused() -> None:
    unet = SegmentationUNet(2, 1, 2, channels=(4, 8), norm="batch")
    with pytest.raises(ValueError, match=r"unexpected .*N\.weight"):
        load_federated_weights(unet, federated_weights(unet, "average"), "local_layers")
    with pytest.raises(ValueError, match="average, local, local_layers, got 'fedbn'"):
        federated_names(unet, "fedbn")  # type: ignore[arg-type]
