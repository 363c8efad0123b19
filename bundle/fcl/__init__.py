"""Federated contrastive learning for volumetric segmentation: the parts that the bundle's configs name."""

from __future__ import annotations

import os
from pathlib import Path

__version__ = "0.1.0"


def bundle_root() -> Path:
    """Folder that holds the bundle's ``configs/``: the parent of this package.

    Raises:
        FileNotFoundError: when the package was copied away from its bundle.
    """
    root = Path(__file__).resolve().parent.parent
    if not (root / "configs" / "metadata.json").is_file():
        raise FileNotFoundError(
            f"{root} holds no configs/metadata.json: the package fcl must stay inside its bundle folder. "
            "Install it with `pip install -e .` from a clone, or ship the whole bundle/ folder."
        )
    return root


def default_cache_dir() -> str:
    """Folder for slice caches and phantoms: ``$FCL_CACHE_DIR``, else ``~/.cache/fcl``."""
    return os.environ.get("FCL_CACHE_DIR") or str(Path.home() / ".cache" / "fcl")
