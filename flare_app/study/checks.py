"""Whether a study can be run as its settings say; if not, why, all at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fcl
from flare_app.study.settings import NAMING, RUN, Study, is_count, listed

_PLACES = ("federation", "sites", "pool")
_PLAIN = re.compile(r"[\w.+-]+")
_ANY: Any = object()  # a leaf
_KEYS = {"*": _ANY}  # of the bundle's configuration, which checks them itself
_TRAINING = {
    **dict.fromkeys(
        ("where", "alone", "method", "exchange", "rounds", "sites_per_round", "steps", "validate_every"), _ANY
    ),
    "set": _KEYS,
}
_PHANTOM = {"seed": _ANY, "cine_frames": _ANY}
_ARM = {
    **dict.fromkeys(NAMING, _ANY),
    "like": _ANY,
    "unannotated": _ANY,
    "encoder": _ANY,
    "pretrain": {**_TRAINING, "after": _ANY},
    "finetune": {"*": _TRAINING},
}
_NULLABLE = ("phantom", "pretrain")  # sections for which null says: not at all
_STUDY: dict[str, Any] = {
    **dict.fromkeys(("title", "description", "data", "sites", "patients", "folds", "split_seed", "references"), _ANY),
    "published": _ANY,
    "phantom": _PHANTOM,
    "set": _KEYS,
    "pretrain": _TRAINING,
    "finetune": {"*": _TRAINING},
    "evaluate": {"set": _KEYS},
    "arms": {"*": _ARM},
    "run": dict.fromkeys(RUN, _ANY),
}


def unknown_keys(content: Mapping[str, Any]) -> list[str]:
    """Keys that no study has, and sections that are none."""
    return _unknown(content, _STUDY, "")


def likeness_problems(arms: Mapping[str, Any]) -> list[str]:
    """What keeps arms from being like others."""
    problems = []
    for arm in arms:
        line = [arm]
        while (base := arms[line[-1]].get("like")) is not None:
            if not isinstance(base, str) or base not in arms:
                problems.append(f"arms::{line[-1]}: like names no arm, got {base!r}; choose from {listed(arms)}")
                break
            if base in line:
                problems.append(f"arms::{arm}: like leads in a circle: {' is like '.join([*line, base])}")
                break
            line.append(base)
    return list(dict.fromkeys(problems))


def study_problems(content: Mapping[str, Any]) -> list[str]:
    """What else keeps a study, its arms filled in, from being run."""
    missing = [key for key in ("title", "data", "sites", "folds", "finetune", "arms", "run") if not content.get(key)]
    if not content["pretrain"] and any(arm.get("pretrain") is not None for arm in content.get("arms", {}).values()):
        missing.append("pretrain")
    if missing:
        return [f"{key} is missing" for key in missing]
    problems = [
        f"{key} must be a whole number of at least {least}, got {content[key]!r}"
        for key, least in (("sites", 1), ("folds", 2), ("patients", 2))
        if content[key] is not None and not is_count(content[key], least)
    ]
    problems += [
        f"run::{name} must be a list, got {values!r}"
        for name, values in content["run"].items()
        if not isinstance(values, list)
    ]
    problems += _published_problems(content["published"])
    common = {f"finetune::{mode}": training for mode, training in content["finetune"].items()}
    if content["pretrain"]:
        common["pretrain"] = content["pretrain"]
    for at, training in common.items():
        problems += _training_problems(at, training)
    problems += [
        f"references: there is no arm {name!r}; choose from {listed(content['arms'])}"
        for name in content["references"]
        if name not in content["arms"]
    ]
    problems += [
        f"arms: {arm!r} names files: use letters, digits, '.', '_', '-' and '+'"
        for arm in (*content["arms"], *content["finetune"])
        if not _PLAIN.fullmatch(arm)
    ]
    study = Study(content, "")
    for arm in content["arms"]:
        problems += _arm_problems(study, arm)
    return list(dict.fromkeys(problems))


def _published_problems(name: str | None) -> list[str]:
    folder = fcl.bundle_root() / "configs" / "studies"
    if name is None or (isinstance(name, str) and (folder / name).is_file()):
        return []
    return [f"published: there is no file {name!r} in {folder}, with the published tables; null for none"]


def _arm_problems(study: Study, arm: str) -> list[str]:
    spec, modes, problems = study["arms"][arm], study["finetune"], []
    if not is_count(spec.get("unannotated", 0), 0):
        problems.append(f"arms::{arm}: unannotated must be a whole number, got {spec['unannotated']!r}")
    encoder = spec.get("encoder")
    if encoder and not Path(encoder).is_file():
        problems.append(f"arms::{arm}: the encoder {encoder} does not exist")
    if encoder and spec.get("pretrain"):
        problems.append(f"arms::{arm}: give an encoder that there is, or pretrain one, not both")
    strange = [mode for mode in spec.get("finetune", {}) if mode not in modes]
    problems += [f"arms::{arm}: there is no mode {mode!r}; choose from {listed(modes)}" for mode in strange]
    trainings = {f"arms::{arm}::finetune::{mode}": study.finetuning(arm, mode) for mode in study.modes}
    pretraining = study.pretraining(arm)
    if pretraining is not None:
        trainings[f"arms::{arm}::pretrain"] = pretraining
    for at, training in trainings.items():
        problems += _training_problems(at, training)
    return [*problems, *_stage_problems(study, arm)]


def _stage_problems(study: Study, arm: str) -> list[str]:
    """What keeps the arm's pre-training from going on from another's."""
    line = [arm]
    while (training := study.pretraining(line[-1])) and (first := training.get("after")) is not None:
        at = f"arms::{line[-1]}::pretrain"
        if not isinstance(first, str) or study["arms"].get(first, {}).get("pretrain") is None:
            able = [name for name in study["arms"] if study["arms"][name].get("pretrain") is not None]
            return [f"{at}: after names no arm that pre-trains, got {first!r}; choose from {listed(able)}"]
        if first in line:
            return [f"{at}: after leads in a circle: {' comes after '.join([*line, first])}"]
        if training.get("where") != "federation":
            return [f"{at}: only a federation goes on from another arm's encoder, got where {training.get('where')!r}"]
        line.append(first)
    return []


def _training_problems(at: str, training: Mapping[str, Any]) -> list[str]:
    problems = []
    if training.get("where") not in _PLACES:
        problems.append(f"{at}: where must be one of {listed(_PLACES)}, got {training.get('where')!r}")
    problems += [
        f"{at}: {key} must be a whole number of at least {least}, got {training.get(key)!r}"
        for key, least in (("rounds", 1), ("steps", 1), ("validate_every", 0))
        if not is_count(training.get(key), least)
    ]
    alone = training.get("alone")
    if alone is not None and (at.endswith("pretrain") or training.get("where") != "sites" or not is_count(alone, 1)):
        problems.append(f"{at}: alone is how many sites fine-tune where each does so by itself, got {alone!r}")
    turns = training.get("sites_per_round")
    if turns is not None and not is_count(turns, 2):
        problems.append(f"{at}: sites_per_round must be a whole number of at least 2, or null for all, got {turns!r}")
    folder = fcl.bundle_root() / "configs" / ("methods" if at.endswith("pretrain") else "finetuning")
    method = training.get("method")
    if method is not None and not (folder / f"{method}.json").is_file():
        problems.append(
            f"{at}: there is no method {method!r}; choose from {listed(sorted(p.stem for p in folder.glob('*.json')))}"
        )
    return problems


def _unknown(content: Mapping[str, Any], schema: Mapping[str, Any], at: str) -> list[str]:
    problems = []
    for key, value in content.items():
        inner = schema.get(key, schema.get("*"))
        if inner is None:
            close = difflib.get_close_matches(key, schema, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {listed(schema)}"
            problems.append(f"unknown key {at + key!r}, {hint}")
        elif inner is not _ANY and isinstance(value, Mapping):
            problems += _unknown(value, inner, f"{at}{key}::")
        elif inner is not _ANY and (value is not None or key not in _NULLABLE):
            problems.append(f"{at}{key} must be a JSON object, got {value!r}")
    return problems
