"""Between configurations and cards: what a run says of itself, and what it takes over from a weights file."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from monai.bundle import ConfigParser
from monai.transforms import MapTransform
from monai.transforms.intensity import dictionary as intensity_transforms

import fcl
from fcl.card import ARCHITECTURE, PREPROCESSING, UNKNOWN, card_of, fits, origin_of, settings_in, versions
from fcl.config.guard import _calling_parser
from fcl.config.record import configuration_hash
from fcl.networks.unet import full_strides
from fcl.networks.weights import CheckpointError, OtherArchitecture, read_card

logger = logging.getLogger(__name__)

_NOT_WEIGHTS = ("slab_depth", "feature_length")  # weights of any fit: what differs is worth a word, no refusal
_INTENSITY = "intensity"  # a component, which stands in the configuration as it is written


def card_settings(path: str | os.PathLike[str] | None, *parts: str) -> dict[str, Any]:
    """Settings that the card of a checkpoint tells; none without a checkpoint or a card.

    Args:
        path: of the weights file; None or empty when there is none.
        parts: ``"architecture"``, ``"preprocessing"``.

    Raises:
        FileNotFoundError, CheckpointError: as :func:`fcl.networks.read_card`.
        CheckpointError: when the card cannot be used.
    """
    if not path:
        return {}
    try:
        return settings_in(read_card(path), *parts)
    except CheckpointError:
        raise
    except ValueError as error:
        way_out = "set them in the configuration and take its weights alone, or give another file"
        raise CheckpointError(f"checkpoint {path}: {error}: {way_out}") from None


def intensity_rule(configured: MapTransform, known: Mapping[str, Any]) -> MapTransform:
    """The rule that brings intensities to their range: the card's, unless the configuration changes its own.

    A rule that is spelt out just as the base configuration has it counts as unchanged.

    Args:
        configured: ``@intensity``.
        known: ``@from_card``.
    """
    if _INTENSITY not in known or _changed_intensity(_calling_parser()):
        return configured
    return _built(known[_INTENSITY])


def check_against_card(known: Mapping[str, Any], path: str | os.PathLike[str] | None = None) -> None:
    """Compare what the configuration says with what a card says; an expression of ``initialize``.

    Settings that only say how images are prepared may differ; each is told in a warning.

    Args:
        known: ``@from_card``.
        path: the checkpoint, for messages.

    Raises:
        OtherArchitecture: naming all settings of the network that differ, with both values.
    """
    parser, what = _calling_parser(), f"checkpoint {path}" if path else "the checkpoint"
    set_here = {name: _configured(parser, name) for name in known if name in parser}
    differing = {name: value for name, value in set_here.items() if _differ(name, value, set_here, known)}
    network = [name for name in differing if name in ARCHITECTURE and name not in _NOT_WEIGHTS]
    if network:
        both = "; ".join(
            f"{name}: its card says {known[name]}, the configuration {differing[name]}" for name in network
        )
        raise OtherArchitecture(what, both, network)
    for name, value in differing.items():
        logger.warning("%s was made with %s %s; %s is used, as the configuration says", what, name, known[name], value)


def describe_run(stage: str) -> dict[str, Any]:
    """The card of what the configuration that is being evaluated trains; results are added when weights are written.

    Args:
        stage: ``"pre-training"`` or ``"fine-tuning"``.

    Raises:
        ValueError: when the architecture is written in a way that a card cannot hold, so that nobody could use the
            weights: said before training, not after.
    """
    parser = _calling_parser()
    declared = {name: _configured(parser, name) for name in (*ARCHITECTURE, *PREPROCESSING) if name in parser}
    if not fits(_INTENSITY, declared[_INTENSITY]):
        logger.warning("the card will not tell the rule for intensities, which is no transform of plain settings")
        del declared[_INTENSITY]
    declared["strides"] = _spelt_out(declared["strides"], declared)
    strange = {name: declared[name] for name in ARCHITECTURE if name in declared and not fits(name, declared[name])}
    if strange:
        raise ValueError(
            f"{', '.join(f'{name} = {value!r}' for name, value in strange.items())}: the weights' card cannot hold "
            "this. On a command line of the bundle, values are Python's: write True, not true"
        )
    method = parser.get("method") or parser.get("network_def")
    declared |= {
        "stage": stage,
        "method": str(method["_target_"]).rsplit(".", 1)[-1],
        "data_license": parser.get_parsed_content("data_license") or UNKNOWN,
    }
    pretrained = parser.get_parsed_content("pretrained") if "pretrained" in parser else None
    return card_of(
        declared,
        sites=1,
        exchange="none",
        route="none",
        epsilon="none",
        pretrained=origin_of(read_card(pretrained)) if pretrained else None,
        config_hash=configuration_hash(parser),
        versions=versions("monai", "torch"),
    )


def _configured(parser: ConfigParser, name: str) -> Any:
    if name != _INTENSITY:
        return _plain(parser.get_parsed_content(name))
    known = parser.get_parsed_content("from_card")
    if name in known and not _changed_intensity(parser):
        return known[name]
    rule = _plain(parser.get(name))
    if isinstance(rule, dict) and isinstance(rule.get("_target_"), str):
        rule["_target_"] = rule["_target_"].rsplit(".", 1)[-1]
    return rule


def _changed_intensity(parser: ConfigParser) -> bool:
    base = ConfigParser.load_config_files([str(fcl.bundle_root() / "configs" / "inference.json")])
    return bool(parser.get(_INTENSITY) != base[_INTENSITY])


def _differ(name: str, value: Any, configured: Mapping[str, Any], known: Mapping[str, Any]) -> bool:
    if name == "strides":
        # They are counted by the other two: where those differ, there is nothing to compare.
        if any(configured.get(other) != known.get(other) for other in ("spatial_dims", "channels")):
            return False
        return _spelt_out(value, known) != _spelt_out(known[name], known)
    if name == "norm" and isinstance(value, str) and isinstance(known[name], str):
        return value.lower() != known[name].lower()
    return bool(value != known[name])


def _spelt_out(strides: Any, settings: Mapping[str, Any]) -> list[list[int]]:
    steps = len(settings["channels"]) - 1
    return [list(each) for each in full_strides(strides, settings["spatial_dims"], steps)]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def _built(rule: Mapping[str, Any]) -> MapTransform:
    """The transform that a card names: one of MONAI's for intensities, since a file may name anything."""
    name = str(rule["_target_"])
    known = getattr(intensity_transforms, name, None) if name in intensity_transforms.__all__ else None
    if not (isinstance(known, type) and issubclass(known, MapTransform)):
        raise CheckpointError(
            f"the card's intensity rule {name} is none of MONAI's: set intensity in the configuration"
        )
    made: MapTransform = known(**{key: value for key, value in rule.items() if key != "_target_"})
    return made
