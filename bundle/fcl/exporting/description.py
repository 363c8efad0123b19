"""What an exported network says of itself: what holds for its own weights, not for those that the bundle ships."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

import fcl
from fcl.card import NOTICE
from fcl.config import card_settings
from fcl.engines import class_names

# Of metadata.json, what holds whatever the weights are.
_OF_THE_PACKAGE = (
    "schema",
    "version",
    "monai_version",
    "pytorch_version",
    "numpy_version",
    "required_packages_version",
    "name",
)


def configuration_of(weights: Path) -> ConfigParser:
    """``inference.json`` with the settings that the card of the weights tells written out, naming no weights file.

    Structures that nobody named are ``structure 1`` and so on: the file's own names are those of other weights.

    Raises:
        FileNotFoundError, fcl.networks.CheckpointError: as :func:`fcl.config.card_settings`.
    """
    parser = ConfigParser(ConfigParser.load_config_file(str(fcl.bundle_root() / "configs" / "inference.json")))
    parser["ckpt"], parser["from_card"] = None, {}
    count = len(parser.get_parsed_content("labels"))
    parser["labels"] = {f"structure {value}": value for value in range(1, 1 + count)}
    for name, value in card_settings(weights, "architecture", "preprocessing").items():
        if name in parser:
            parser[name] = value
    return parser


def image_shape(configuration: ConfigParser) -> list[int]:
    """[H, W], and D of a 3-D network: what the network was trained with."""
    size, depth, dims = map(configuration.get_parsed_content, ("spatial_size", "slab_depth", "spatial_dims"))
    return [*size, depth] if dims == 3 else list(size)


def metadata_of(configuration: ConfigParser, card: Mapping[str, Any]) -> dict[str, Any]:
    """In the form of ``metadata.json``; scores are left to the card, which tells what they were measured on.

    Args:
        configuration: of :func:`configuration_of`.
        card: of the weights.
    """
    shipped = ConfigParser.load_config_file(str(fcl.bundle_root() / "configs" / "metadata.json"))
    dims = configuration.get_parsed_content("spatial_dims")
    structures = class_names(configuration.get_parsed_content("labels"))
    channels = ["background", *structures]
    rule = configuration.get("intensity")
    ends = [rule.get(end) for end in ("b_min", "b_max")]
    either: dict[str, Any] = {
        "type": "image",
        "spatial_shape": image_shape(configuration),
        "dtype": "float32",
        "is_patch_data": dims == 3,
    }
    image = {
        **either,
        "format": "magnitude",
        "num_channels": 1,
        "value_range": [] if None in ends else ends,
        "channel_def": {"0": "image"},
    }
    pred = {
        **either,
        "format": "labels",
        "num_channels": len(channels),
        "value_range": [],
        "channel_def": {str(number): name for number, name in enumerate(channels)},
    }
    return {
        **{name: shipped[name] for name in _OF_THE_PACKAGE if name in shipped},
        "task": f"Segmentation of {', '.join(structures)}",
        "description": f"A {dims}-D U-Net. What it was made from and what its images must be like stands in card.json.",
        "pred_classes": f"{len(channels)} channels of logits: {', '.join(channels)}",
        "intended_use": card.get("use", NOTICE),
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": pred}},
    }
