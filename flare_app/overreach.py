"""What a job may hold only where its submitter may bring code: code, paths, and other files than the bundle's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle.config_item import ConfigComponent

import fcl

# Entries by which MONAI settles what is run.
_CODE_KEYS = (*ConfigComponent.non_arg_keys, "imports", "initialize", "run", "finalize")
# Entries whose file is read into what leaves, or written over.
_FILE_KEYS = ("pretrained", "ckpt", "own_checkpoint")


def overreach(
    config: Sequence[str],
    data: str | None,
    overrides: Mapping[str, Any],
    bundle: Path,
    checkpoint_dir: str | None = None,
) -> list[str]:
    """What a job must have the right to bring code for; empty when there is nothing.

    MONAI evaluates values that begin with ``$`` and imports what ``_target_`` names, so that a few settings can hold a
    program, as any config file can. And a path would have the bundle read or write any file of the site's account: a
    checkpoint loaded as the network leaves as its weights.

    Args:
        config: the job's config files.
        data: its data overlay.
        overrides: its overrides.
        bundle: the folder that it takes for the bundle.
        checkpoint_dir: where it would have the site keep its state.
    """
    found = [f"the override of {key!r}" for key, value in overrides.items() if _is_code(key) or _holds_code(value)]
    found += [
        f"the override of {key!r}, which names a file"
        for key, value in overrides.items()
        if _names_file(value) or (value and _parts(key)[-1] in _FILE_KEYS)
    ]
    if checkpoint_dir is not None and (Path(checkpoint_dir).is_absolute() or ".." in Path(checkpoint_dir).parts):
        found.append("a checkpoint_dir outside the workspace")
    # Files that came along with the job lie within its own bundle_root, too.
    if bundle.resolve() != fcl.bundle_root().resolve():
        found.append("a bundle_root other than the installed bundle")
    named = [*config, *([] if data is None else [data if data.endswith(".json") else f"configs/data/{data}.json"])]
    configs = (bundle / "configs").resolve()
    files = [(bundle / name).resolve() for name in named]
    outside = [name for name, file in zip(named, files, strict=True) if not file.is_relative_to(configs)]
    found += [f"the config file {Path(name).name!r} outside the bundle" for name in outside]
    # What another stage runs, merged over this one's, would be run here, and so would what is merged twice.
    if not outside and [file.parent == configs for file in files] != [place == 0 for place in range(len(files))]:
        found.append("config files of more than one stage")
    if len(set(files)) < len(files):
        found.append("a config file twice")
    return found


def _parts(key: str) -> list[str]:
    # MONAI takes both separators, and spaces around a key.
    return [part.strip() for part in re.split("::|#", key)]


def _is_code(key: str) -> bool:
    return any(part in _CODE_KEYS for part in _parts(key))


def _holds_code(value: Any) -> bool:
    if isinstance(value, str):
        # A reference to the expressions of `run`, alone or in the whole configuration, has them evaluated.
        return value.startswith(("$", "%")) or (
            value.startswith("@") and (not _parts(value[1:])[0] or _is_code(value[1:]))
        )
    if isinstance(value, Mapping):
        return any(_is_code(str(key)) or _holds_code(entry) for key, entry in value.items())
    return isinstance(value, list | tuple) and any(_holds_code(entry) for entry in value)


def _names_file(value: Any) -> bool:
    if isinstance(value, str):
        return "/" in value or "\\" in value or value.startswith("~")
    if isinstance(value, Mapping):
        return any(_names_file(entry) or (entry and _parts(str(key))[-1] in _FILE_KEYS) for key, entry in value.items())
    return isinstance(value, list | tuple) and any(_names_file(entry) for entry in value)
