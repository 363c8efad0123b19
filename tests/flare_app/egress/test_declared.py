"""What the bundle sends, the default policy names: a new loss or network whose names are missing there fails here."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

import fcl.losses
import fcl.networks
from fcl.networks.federated import federated_names
from flare_app.egress import EgressPolicy

TERMS = [value for value in vars(fcl.losses).values() if inspect.isclass(value) and hasattr(value, "_fields")]
SMALL: dict[str, Any] = {"spatial_dims": 2, "channels": (4, 8, 8, 8, 8), "norm": "instance"}


def _networks() -> dict[str, torch.nn.Module]:
    encoder = fcl.networks.UNetEncoder(**SMALL)
    decoder = fcl.networks.UNetDecoder(out_channels=1, **SMALL)
    head = fcl.networks.ProjectionHead(in_features=8, out_features=4)
    made = {
        "ContrastiveNetwork": (encoder, head),
        "PredictiveNetwork": (encoder, head, fcl.networks.ProjectionHead(in_features=4, out_features=4)),
        "PrototypeNetwork": (encoder, head, 4, 3),
        "RestorationNetwork": (encoder, decoder, True),
    }
    networks = {name: getattr(fcl.networks, name)(*arguments) for name, arguments in made.items()}
    networks["SegmentationUNet"] = fcl.networks.SegmentationUNet(**SMALL)
    networks["RegionNetwork"] = fcl.networks.RegionNetwork(
        encoder, decoder, blocks=3, feature_length=4, pretrained=None
    )
    networks["PixelNetwork"] = fcl.networks.PixelNetwork(
        encoder, fcl.networks.UNetDecoder(out_channels=1, **SMALL), 3, 4
    )
    return networks


@pytest.mark.parametrize("terms", TERMS, ids=lambda terms: terms.__name__)
def test_parts_of_every_loss_are_declared_metrics(terms: Any) -> None:
    assert [name for name in terms._fields if not EgressPolicy().allows_metric(name)] == []


def test_tensors_of_every_network_are_declared_and_every_network_is_tried() -> None:
    networks = _networks()
    for name, network in networks.items():
        federated = federated_names(network, "average")
        assert [tensor for tensor in federated if not EgressPolicy().allows_weight(tensor)] == [], name
    known = {name for name in vars(fcl.networks) if name.endswith(("Network", "UNet")) and name != "EncoderNetwork"}
    assert known == set(networks)
