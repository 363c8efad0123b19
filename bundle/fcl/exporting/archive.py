"""The bundle as one zip file in the layout of MONAI's Model Zoo: a folder that holds configs, models, docs and code."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import fcl

FOLDER = "fcl_bundle"
_PARTS = ("LICENSE", "configs", "docs", "fcl", "models")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # equal content gives equal bytes


def write_zip(out: Path) -> Path:
    """Write ``fcl-<version>.zip``, whole or not at all.

    Args:
        out: folder, or path of the file; an earlier file of that name is replaced.

    Returns:
        The file.

    Raises:
        FileNotFoundError: when the bundle lacks a part.
    """
    root = fcl.bundle_root()
    if missing := [part for part in (*_PARTS, "models/model.pt") if not (root / part).exists()]:
        raise FileNotFoundError(f"{root} lacks {', '.join(missing)}: zip the bundle of a complete clone")
    target = out if out.suffix == ".zip" else out / f"fcl-{fcl.__version__}.zip"
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for file in _files(root):
                entry = zipfile.ZipInfo(f"{FOLDER}/{file.relative_to(root).as_posix()}", _EPOCH)
                entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
                archive.writestr(entry, file.read_bytes())
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)
    return target


def _files(root: Path) -> Iterator[Path]:
    for part in _PARTS:
        for file in sorted((root / part).rglob("*")) if (root / part).is_dir() else [root / part]:
            names = file.relative_to(root).parts
            if file.is_file() and not any(name == "__pycache__" or name.startswith(".") for name in names):
                yield file
