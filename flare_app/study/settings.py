"""What a study is: JSON files merged in order, a preset, and single values set on the command line."""

from __future__ import annotations

import copy
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fcl

PLACES = ("federation", "sites", "pool")
_PLAIN = re.compile(r"[\w.+-]+")
_ANY: Any = object()  # a leaf, or a section that the bundle checks itself
_TRAINING = dict.fromkeys(
    ("where", "alone", "method", "exchange", "rounds", "sites_per_round", "steps", "validate_every", "set"), _ANY
)
_PHANTOM = {"seed": _ANY, "cine_frames": _ANY}
_RUN = dict.fromkeys(("arms", "annotated", "folds", "seeds", "modes"), _ANY)
_NAMING = dict.fromkeys(("label", "published"), _ANY)
_ARM = {
    **_NAMING,
    "like": _ANY,
    "unannotated": _ANY,
    "encoder": _ANY,
    "pretrain": {**_TRAINING, "after": _ANY},
    "finetune": {"*": _TRAINING},
}
_STUDY: dict[str, Any] = {
    **dict.fromkeys(("title", "description", "data", "sites", "patients", "folds", "split_seed", "references"), _ANY),
    "published": _ANY,
    "phantom": _PHANTOM,
    "set": _ANY,
    "pretrain": _TRAINING,
    "finetune": {"*": _TRAINING},
    "evaluate": {"set": _ANY},
    "arms": {"*": _ARM},
    "run": _RUN,
}


_DEFAULTS: dict[str, Any] = {
    "description": "",
    "split_seed": 0,
    "phantom": None,
    "patients": None,
    "references": [],
    "published": None,
    "set": {},
    "pretrain": {},
    "evaluate": {},
}


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
        for name in _RUN:
            given = wanted.get(name) or self["run"].get(name)
            if given is None and name not in known:
                problems.append(f"{name}: name at least one (--{name}, or run::{name} in the study)")
            values = tuple(dict.fromkeys(known[name] if given is None else given))
            strange = [value for value in values if value not in known.get(name, values)]
            problems += [f"{name}: there is no {value!r}; choose from {_listed(known[name])}" for value in strange]
            chosen[name] = values
        least = {"annotated": 1, "seeds": 0}
        problems += [
            f"{name}: must be whole numbers of at least {low}, got {value!r}"
            for name, low in least.items()
            for value in chosen[name]
            if not _is_count(value, low)
        ]
        problems += [
            f"arms::{arm} starts from an encoder made elsewhere: name its file, --set arms::{arm}::encoder=FILE"
            for arm in chosen["arms"]
            if "encoder" in self["arms"].get(arm, {}) and not self["arms"][arm]["encoder"]
        ]
        if problems:
            raise StudyError("\n".join(problems))
        # In the study's order, so that a subset's cells come as they would in the whole.
        ordered = {name: tuple(v for v in values if v in chosen[name]) for name, values in known.items()}
        return Selection(**{**chosen, **ordered})


def load_study(files: Sequence[Path], preset: str | None = None, changes: Mapping[str, Any] | None = None) -> Study:
    """Read a study.

    Args:
        files: JSON files, merged in order.
        preset: entry of ``presets`` to merge over them; None: the first.
        changes: ``a::b::c`` to a value, set last.

    Raises:
        StudyError: with everything that is wrong.
    """
    content = copy.deepcopy(_DEFAULTS)
    for file in files:
        content = merge(content, _read(file))
    presets = content.pop("presets", {})
    name = preset if preset is not None else next(iter(presets), "")
    if name and name not in presets:
        raise StudyError(f"there is no preset {name!r}; choose from {_listed(presets)}")
    content = merge(content, presets.get(name, {}))
    for key, value in (changes or {}).items():
        content = merge(content, _nested(key.split("::"), value))
    problems = _unknown(content, _STUDY) or _unlike(content.get("arms", {}))
    if not problems:
        content["arms"] = {arm: _filled(content["arms"], arm) for arm in content.get("arms", {})}
        problems = _problems(content)
    if problems:
        where = ", ".join(str(file) for file in files)
        raise StudyError("\n".join([f"the study ({where}) cannot be run:", *problems]))
    return Study(content, name)


def steps_together(training: Mapping[str, Any], sites: int) -> int:
    """Steps that the sites of a federation take together in a round, and one that has all their data in their place."""
    return int(training["steps"] * min(training.get("sites_per_round") or sites, sites))


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` laid over ``base``: objects are merged, all else is replaced."""
    result = copy.deepcopy(dict(base))
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merge(result[key], value) if both else copy.deepcopy(value)
    return result


def _filled(arms: Mapping[str, Any], arm: str) -> dict[str, Any]:
    """The arm with what it leaves out taken from the one that it is like, except what that one is called."""
    own = dict(arms[arm])
    like = own.pop("like", None)
    if like is None:
        return own
    base = {key: value for key, value in _filled(arms, like).items() if key not in _NAMING}
    return merge(base, own)


def _unlike(arms: Mapping[str, Any]) -> list[str]:
    """What keeps arms from being like others."""
    problems = []
    for arm in arms:
        line = [arm]
        while (base := arms[line[-1]].get("like")) is not None:
            if not isinstance(base, str) or base not in arms:
                problems.append(f"arms::{line[-1]}: like names no arm, got {base!r}; choose from {_listed(arms)}")
                break
            if base in line:
                problems.append(f"arms::{arm}: like leads in a circle: {' is like '.join([*line, base])}")
                break
            line.append(base)
    return list(dict.fromkeys(problems))


def _with_shared(study: Study, training: Mapping[str, Any]) -> dict[str, Any]:
    return {**training, "set": merge(study["set"], training.get("set", {}))}


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = sorted(path.name for path in (fcl.bundle_root() / "configs" / "studies").glob("*.json"))
        raise StudyError(f"{file} does not exist; bundle/configs/studies has {_listed(known)}") from None
    except (OSError, ValueError) as error:
        raise StudyError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise StudyError(f"{file} must hold a JSON object, got {type(content).__name__}")
    return content


def _nested(keys: Sequence[str], value: Any) -> dict[str, Any]:
    return {keys[0]: value if len(keys) == 1 else _nested(keys[1:], value)}


def _unknown(content: Mapping[str, Any], schema: Mapping[str, Any], at: str = "") -> list[str]:
    problems = []
    for key, value in content.items():
        inner = schema.get(key, schema.get("*"))
        if inner is None:
            close = difflib.get_close_matches(key, schema, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {_listed(schema)}"
            problems.append(f"unknown key {at + key!r}, {hint}")
        elif inner is not _ANY and isinstance(value, Mapping):
            problems += _unknown(value, inner, f"{at}{key}::")
        elif inner is not _ANY and value is not None:
            problems.append(f"{at}{key} must be a JSON object, got {value!r}")
    return problems


def _problems(content: Mapping[str, Any]) -> list[str]:
    missing = [key for key in ("title", "data", "sites", "folds", "finetune", "arms", "run") if not content.get(key)]
    if not content["pretrain"] and any(arm.get("pretrain") is not None for arm in content.get("arms", {}).values()):
        missing.append("pretrain")
    if missing:
        return [f"{key} is missing" for key in missing]
    problems = [
        f"{key} must be a whole number of at least {least}, got {content[key]!r}"
        for key, least in (("sites", 1), ("folds", 2), ("patients", 2))
        if content[key] is not None and not _is_count(content[key], least)
    ]
    problems += [
        f"references: there is no arm {name!r}; choose from {_listed(content['arms'])}"
        for name in content["references"]
        if name not in content["arms"]
    ]
    problems += [
        f"arms: {arm!r} names files: use letters, digits, '.', '_', '-' and '+'"
        for arm in (*content["arms"], *content["finetune"])
        if not _PLAIN.fullmatch(arm)
    ]
    for arm, spec in content["arms"].items():
        if not _is_count(spec.get("unannotated", 0), 0):
            problems.append(f"arms::{arm}: unannotated must be a whole number, got {spec['unannotated']!r}")
        encoder = spec.get("encoder")
        if encoder and not Path(encoder).is_file():
            problems.append(f"arms::{arm}: the encoder {encoder} does not exist")
        if encoder and spec.get("pretrain"):
            problems.append(f"arms::{arm}: give an encoder that there is, or pretrain one, not both")
    study = Study(content, "")
    for arm, spec in content["arms"].items():
        strange = [mode for mode in spec.get("finetune", {}) if mode not in content["finetune"]]
        problems += [
            f"arms::{arm}: there is no mode {m!r}; choose from {_listed(content['finetune'])}" for m in strange
        ]
        trainings = {f"arms::{arm}::finetune::{mode}": study.finetuning(arm, mode) for mode in study.modes}
        pretraining = study.pretraining(arm)
        if pretraining is not None:
            trainings[f"arms::{arm}::pretrain"] = pretraining
        for at, training in trainings.items():
            problems += _training_problems(at, training)
        problems += _stage_problems(study, arm)
    return list(dict.fromkeys(problems))


def _stage_problems(study: Study, arm: str) -> list[str]:
    """What keeps the arm's pre-training from going on from another's."""
    line = [arm]
    while (training := study.pretraining(line[-1])) and (first := training.get("after")) is not None:
        at = f"arms::{line[-1]}::pretrain"
        if not isinstance(first, str) or study["arms"].get(first, {}).get("pretrain") is None:
            able = [name for name in study["arms"] if study["arms"][name].get("pretrain") is not None]
            return [f"{at}: after names no arm that pre-trains, got {first!r}; choose from {_listed(able)}"]
        if first in line:
            return [f"{at}: after leads in a circle: {' comes after '.join([*line, first])}"]
        if training.get("where") != "federation":
            return [f"{at}: only a federation goes on from another arm's encoder, got where {training.get('where')!r}"]
        line.append(first)
    return []


def _training_problems(at: str, training: Mapping[str, Any]) -> list[str]:
    problems = []
    if training.get("where") not in PLACES:
        problems.append(f"{at}: where must be one of {_listed(PLACES)}, got {training.get('where')!r}")
    problems += [
        f"{at}: {key} must be a whole number of at least {least}, got {training.get(key)!r}"
        for key, least in (("rounds", 1), ("steps", 1), ("validate_every", 0))
        if not _is_count(training.get(key), least)
    ]
    alone = training.get("alone")
    if alone is not None and (at.endswith("pretrain") or training.get("where") != "sites" or not _is_count(alone, 1)):
        problems.append(f"{at}: alone is how many sites fine-tune where each does so by itself, got {alone!r}")
    turns = training.get("sites_per_round")
    if turns is not None and not _is_count(turns, 2):
        problems.append(f"{at}: sites_per_round must be a whole number of at least 2, or null for all, got {turns!r}")
    folder = fcl.bundle_root() / "configs" / ("methods" if at.endswith("pretrain") else "finetuning")
    method = training.get("method")
    if method is not None and not (folder / f"{method}.json").is_file():
        problems.append(
            f"{at}: there is no method {method!r}; choose from {_listed(sorted(p.stem for p in folder.glob('*.json')))}"
        )
    return problems


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _listed(names: Any) -> str:
    return ", ".join(str(name) for name in names) or "nothing"
