"""What a weights file says of itself: how it was made and what is needed to use it, never who it was made from.

A card is a dict of plain values, so that ``torch.load(..., weights_only=True)`` takes it. Names of patients and sites,
paths and free text have no place in it: what comes from a site, and what a reader acts on, is held against a pattern.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import fcl

ARCHITECTURE = ("spatial_dims", "channels", "strides", "norm", "slab_depth", "feature_length")
PREPROCESSING = ("pixdim", "spatial_size", "slice_axis", "intensity", "labels")
NOTICE = "Research software. Not a medical device, not for clinical use."
UNKNOWN = "unknown"

_WORD = r"[A-Za-z][A-Za-z_]{0,47}"  # no digit, so that no name of a patient fits
_STRUCTURE = r"[A-Za-z][A-Za-z _-]{0,31}"
# Licences that everybody may know. A contract with a hospital is "restricted": its name would name the hospital.
_LICENSE = (
    r"unknown|restricted|synthetic|public domain|CC0[ -]1\.0|CC[ -]BY(-(NC|SA|ND))*[ -]\d\.\d|"
    r"(ODC-BY|ODbL|PDDL)-1\.0|CDLA-[A-Za-z]{1,16}-\d\.\d"
)
_MOST = 16  # entries of a list, arguments of a layer


def _matches(pattern: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _whole(least: int, most: int = 2**20) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value <= most


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _listed(fits: Callable[[Any], bool], least: int = 1, most: int = _MOST) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and least <= len(value) <= most and all(map(fits, value))


def _or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


def _arguments(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= _MOST
        and all(_matches(_WORD)(name) and _argument(entry) for name, entry in value.items())
    )


def _argument(value: Any) -> bool:
    return value is None or isinstance(value, bool) or _number(value) or _listed(_number)(value)


def _layer(value: Any) -> bool:
    word = _matches(_WORD)
    return word(value) or (isinstance(value, list) and len(value) == 2 and word(value[0]) and _arguments(value[1]))


def _intensity(value: Any) -> bool:
    """A component of MONAI on the image alone, with numbers as arguments."""
    if not isinstance(value, dict) or value.get("keys") not in ("image", ["image"]):
        return False
    arguments = {name: entry for name, entry in value.items() if name not in ("_target_", "keys")}
    return _matches(_WORD)(value.get("_target_")) and _arguments(arguments)


def _labels(value: Any) -> bool:
    return (
        isinstance(value, dict) and 1 <= len(value) <= 254 and all(map(_matches(_STRUCTURE), value)) and _codes(value)
    )


def _codes(value: Mapping[str, Any]) -> bool:
    return all(map(_whole(1, 254), value.values())) and len(set(value.values())) == len(value)


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "stage": lambda value: value in ("pre-training", "fine-tuning"),
    "method": _matches(_WORD),
    "data_license": _matches(rf"({_LICENSE})(; ({_LICENSE}))*"),
    "spatial_dims": _whole(2, 3),
    "channels": _listed(_whole(1), least=2),
    "strides": _listed(_listed(_whole(1, 2), 2, 3)),
    "norm": _layer,
    "slab_depth": _or_none(_whole(1)),
    "feature_length": _or_none(_whole(1)),
    "pixdim": _listed(lambda value: _number(value) and value > 0, 2, 3),
    "spatial_size": _listed(_whole(1), 2, 3),
    "slice_axis": _whole(0, 2),
    "intensity": _intensity,
    "labels": _labels,
}
FIELDS = tuple(_FIELDS)  # all that a site may declare
_ORIGIN: dict[str, Callable[[Any], bool]] = {
    **{name: _FIELDS[name] for name in ("stage", "method", "data_license")},
    "sites": _whole(0),
    "rounds": _whole(0),
    "epochs": _whole(0),
    "config_hash": _matches(r"[0-9a-f]{1,64}"),
}


def fits(name: str, value: Any) -> bool:
    """Whether ``value`` is what the field ``name`` may hold: fails closed, also on names that are none."""
    return name in _FIELDS and _FIELDS[name](value)


def fitting(declared: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ``declared`` that hold what they may; the others are left out."""
    return {name: value for name, value in declared.items() if fits(name, value)}


def card_of(declared: Mapping[str, Any], **facts: Any) -> dict[str, Any]:
    """A card.

    Args:
        declared: fields as in :data:`FIELDS`; those that nobody knows may be missing.
        facts: further entries, e.g. ``rounds``, ``metrics``, ``versions``.
    """
    return {
        "stage": declared.get("stage", UNKNOWN),
        "method": declared.get("method", UNKNOWN),
        "architecture": {name: declared[name] for name in ARCHITECTURE if name in declared},
        "preprocessing": {name: declared[name] for name in PREPROCESSING if name in declared},
        "data_license": declared.get("data_license", UNKNOWN),
        **facts,
        "use": NOTICE,
    }


def declared_in(card: Mapping[str, Any]) -> dict[str, Any]:
    """What a site may declare of a card to others: the reverse of :func:`card_of`, checked."""
    parts = [card.get(part) for part in ("architecture", "preprocessing")]
    flat = {name: value for part in parts if isinstance(part, Mapping) for name, value in part.items()}
    return fitting({**{name: card.get(name) for name in ("stage", "method", "data_license")}, **flat})


def settings_in(card: Mapping[str, Any], *parts: str) -> dict[str, Any]:
    """What a configuration takes over from a card.

    Args:
        card: of a weights file; without what is asked for, nothing is taken over.
        parts: ``"architecture"``, ``"preprocessing"``.

    Raises:
        ValueError: naming the fields that no configuration could use.
    """
    found: dict[str, Any] = {}
    for part in parts:
        content = card.get(part) or {}
        names = ARCHITECTURE if part == "architecture" else PREPROCESSING
        found.update({name: content[name] for name in names if name in content})
    # A file of one's own may name structures as it likes.
    named = isinstance(found.get("labels"), dict) and bool(found["labels"]) and _codes(found["labels"])
    broken = [name for name, value in found.items() if not fits(name, value) and not (name == "labels" and named)]
    if broken:
        raise ValueError(f"its card holds no usable {', '.join(broken)}: {[found[name] for name in broken]}")
    return found


def origin_of(card: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the card of a descendant keeps of this one; None when there is nothing."""
    return {name: card[name] for name, fit in _ORIGIN.items() if name in card and fit(card[name])} or None


def versions(*packages: str) -> dict[str, str]:
    """Of this package, and of the installed ones of ``packages``."""
    found = {"fcl": fcl.__version__}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def card_file(weights: Path) -> Path:
    """Where the readable copy of a file's card lies: ``model.card.json`` for ``model.pt``."""
    return weights.with_suffix(".card.json")


def write_card(card: Mapping[str, Any], weights: Path) -> None:
    """Write the readable copy of a card beside its weights file, in one step."""
    file = card_file(weights)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}.part")
    unfinished.write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(unfinished, file)
