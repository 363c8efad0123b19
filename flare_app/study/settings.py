"""What a study says of its arms, and which of its cells a command asks for."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

RUN = ("arms", "annotated", "folds", "seeds", "modes")  # what a command may ask for
NAMING = ("label", "published")  # what an arm is called

_Kept = TypeVar("_Kept", dict[str, Any], list[Any])


class StudyError(ValueError):
    """What was asked for cannot be done; the message says why and what can."""


@dataclass(frozen=True)
class Selection:
    """Which cells a command asks for.

    Args:
        arms: names of arms.
        annotated: N, annotated patients of each site.
        folds: held-out folds, 0-based.
        seeds: of training and of the choice of annotated patients.
        modes: ways to fine-tune.
    """

    arms: tuple[str, ...]
    annotated: tuple[int, ...]
    folds: tuple[int, ...]
    seeds: tuple[int, ...]
    modes: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """A study's settings, checked.

    Args:
        content: the merged JSON, without presets.
        preset: that was merged in; empty for none.
    """

    content: Mapping[str, Any]
    preset: str

    def __getitem__(self, key: str) -> Any:
        return self.content[key]

    @property
    def modes(self) -> tuple[str, ...]:
        return tuple(self["finetune"])

    def label(self, arm: str) -> str:
        """What reports call an arm."""
        return self["arms"][arm].get("label") or arm

    def published(self, arm: str) -> str | None:
        """The arm's row in the published tables."""
        return self["arms"][arm].get("published")

    def pretraining(self, arm: str) -> dict[str, Any] | None:
        """How ``arm`` is pre-trained; None: not at all. ``after`` is the arm whose pre-training it goes on from."""
        own = self["arms"][arm].get("pretrain")
        return None if own is None else _with_shared(self, merge(self["pretrain"], own))

    def finetuning(self, arm: str, mode: str) -> dict[str, Any]:
        """How ``arm`` is fine-tuned in ``mode``; ``encoder`` is a file to start from that another study made."""
        own = self["arms"][arm].get("finetune", {}).get(mode, {})
        encoder = self["arms"][arm].get("encoder")
        given = {"encoder": str(Path(encoder).resolve())} if encoder else {}
        return _with_shared(self, {**merge(self["finetune"][mode], own), **given})

    def lacks_encoder(self, arm: str) -> bool:
        """Whether it starts from an encoder made elsewhere whose file is not named."""
        spec = self["arms"][arm]
        return "encoder" in spec and not spec["encoder"]

    def unannotated(self, arm: str) -> int:
        """Training patients of each site that the arm needs without annotation, to learn from them in fine-tuning."""
        return int(self["arms"][arm].get("unannotated", 0))

    def evaluation(self) -> dict[str, Any]:
        """How models are evaluated: ``set``, the keys of ``evaluate.json``."""
        return _with_shared(self, self["evaluate"])

    def select(self, **wanted: Sequence[Any] | None) -> Selection:
        """The cells asked for: what is given, else what the study's ``run`` names, else all that there is.

        Raises:
            StudyError: for what the study does not have, with what it has.
        """
        known = {"arms": tuple(self["arms"]), "folds": tuple(range(self["folds"])), "modes": self.modes}
        chosen: dict[str, tuple[Any, ...]] = {}
        problems = []
        for name in RUN:
            given = wanted.get(name) or self["run"].get(name)
            if given is None and name not in known:
                problems.append(f"{name}: name at least one (--{name}, or run::{name} in the study)")
            values = tuple(dict.fromkeys(known[name] if given is None else given))
            strange = [value for value in values if value not in known.get(name, values)]
            problems += [f"{name}: there is no {value!r}; choose from {listed(known[name])}" for value in strange]
            chosen[name] = values
        least = {"annotated": 1, "seeds": 0}
        problems += [
            f"{name}: must be whole numbers of at least {low}, got {value!r}"
            for name, low in least.items()
            for value in chosen[name]
            if not is_count(value, low)
        ]
        problems += [
            f"arms::{arm} starts from an encoder made elsewhere: name its file, --set arms::{arm}::encoder=FILE"
            for arm in chosen["arms"]
            if arm in self["arms"] and self.lacks_encoder(arm)
        ]
        if problems:
            raise StudyError("\n".join(problems))
        # In the study's order, so that a subset's cells come as they would in the whole.
        ordered = {name: tuple(v for v in values if v in chosen[name]) for name, values in known.items()}
        return Selection(**{**chosen, **ordered})

    def together(self, selections: Sequence[Selection]) -> Selection:
        """Each arm, N, fold, seed and mode that some of ``selections`` has."""
        return self.select(**{name: sorted({v for one in selections for v in getattr(one, name)}) for name in RUN})


def steps_together(training: Mapping[str, Any], sites: int) -> int:
    """Steps that the sites of a federation take together in a round, and one that has all their data in their place."""
    return int(training["steps"] * min(training.get("sites_per_round") or sites, sites))


def read_kept(file: Path, kind: type[_Kept]) -> _Kept:
    """What a study keeps in a JSON file of its folder.

    Raises:
        StudyError: when it cannot be read, or holds anything but a ``kind``.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StudyError(f"{file} cannot be read: {error}. Remove it: finished cells stay") from error
    if not isinstance(content, kind):
        words = {dict: "a JSON object", list: "a list"}
        raise StudyError(f"{file} must hold {words[kind]}. Remove it: finished cells stay")
    return content


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` laid over ``base``: objects are merged, all else is replaced."""
    result = copy.deepcopy(dict(base))
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merge(result[key], value) if both else copy.deepcopy(value)
    return result


def _with_shared(study: Study, training: Mapping[str, Any]) -> dict[str, Any]:
    return {**training, "set": merge(study["set"], training.get("set", {}))}


def is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def listed(names: Any) -> str:
    return ", ".join(str(name) for name in names) or "nothing"
