"""Reads a study: JSON files merged in order, a preset, and single values set on the command line."""

from __future__ import annotations

import copy
import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fcl
from flare_app.study.checks import likeness_problems, study_problems, unknown_keys
from flare_app.study.keys import key_problems
from flare_app.study.settings import NAMING, Study, StudyError, listed, merge

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
        raise StudyError(f"there is no preset {name!r}; choose from {listed(presets)}")
    content = merge(content, presets.get(name, {}))
    known, problems = content.get("arms"), []
    for key, value in (changes or {}).items():
        change = _nested(key.split("::"), value)
        problems += _new_arms(change.get("arms"), known)
        content = merge(content, change)
    problems = list(dict.fromkeys(problems)) or unknown_keys(content) or likeness_problems(content.get("arms", {}))
    if not problems:
        content["arms"] = {arm: _filled(content["arms"], arm) for arm in content.get("arms", {})}
        problems = study_problems(content) or key_problems(Study(content, name))
    if problems:
        where = ", ".join(str(file) for file in files)
        raise StudyError("\n".join([f"the study ({where}) cannot be run:", *problems]))
    return Study(content, name)


def _filled(arms: Mapping[str, Any], arm: str) -> dict[str, Any]:
    """The arm with what it leaves out taken from the one that it is like, except what that one is called."""
    own = dict(arms[arm])
    like = own.pop("like", None)
    if like is None:
        return own
    base = {key: value for key, value in _filled(arms, like).items() if key not in NAMING}
    return merge(base, own)


def _new_arms(changed: Any, known: Any) -> list[str]:
    """Arms that a change would make: nothing would run one whose name is a misspelt other's."""
    if not isinstance(changed, Mapping) or not isinstance(known, Mapping):
        return []  # no arms, as other checks say
    problems = []
    for arm in changed:
        if arm not in known:
            close = difflib.get_close_matches(arm, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"choose from {listed(known)}."
            problems.append(f"there is no arm {arm!r}, {hint} A new arm belongs in a file, after --config")
    return problems


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = sorted(path.name for path in (fcl.bundle_root() / "configs" / "studies").glob("*.json"))
        raise StudyError(f"{file} does not exist; bundle/configs/studies has {listed(known)}") from None
    except (OSError, ValueError) as error:
        raise StudyError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise StudyError(f"{file} must hold a JSON object, got {type(content).__name__}")
    return content


def _nested(keys: Sequence[str], value: Any) -> dict[str, Any]:
    return {keys[0]: value if len(keys) == 1 else _nested(keys[1:], value)}
