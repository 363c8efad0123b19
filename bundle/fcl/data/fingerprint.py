"""A stable name for "these files through these transforms"."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from types import CodeType
from typing import Any

import monai
import numpy as np
import torch

from .records import VolumeRecord

# Attributes that MONAI's transforms gain when they run; a key must not depend on whether they have run.
_GAINED = ("_tracing", "filenames")


def cache_key(
    records: Sequence[VolumeRecord],
    preprocessing: Any,
    partitions: int,
    labels: Mapping[str, int] | None,
    version: int,
) -> str:
    """20 hex digits over files (path, size, time of change), frames, transforms, partitions, label set and version."""
    content = {
        "version": version,
        "monai": monai.__version__,
        "partitions": partitions,
        "labels": sorted(labels.values()) if labels is not None else None,
        "records": [
            [_stamp(record.image), _stamp(record.label), record.frame, record.patient, record.volume, record.phase]
            for record in records
        ],
        "preprocessing": describe(preprocessing),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]


def _stamp(file: str | None) -> list[Any] | None:
    if file is None:
        return None
    path = Path(file).resolve()
    if not path.is_file():
        return [str(path), None, None]  # the check before the build reports it with all other problems
    status = path.stat()
    return [str(path), status.st_size, status.st_mtime_ns]


def describe(thing: Any, above: tuple[int, ...] = ()) -> Any:
    """JSON-able description of a transform: class names and settings, the same in every process.

    Random generators and memory addresses are left out. A function counts by its name and its compiled code.
    """
    if thing is None or isinstance(thing, (bool, int, float, str)):
        return thing
    if isinstance(thing, Enum):
        return f"{type(thing).__qualname__}.{thing.name}"
    if isinstance(thing, (np.random.RandomState, np.random.Generator, torch.Generator)):
        return None
    if id(thing) in above:
        return "(itself)"
    inner = (*above, id(thing))
    if isinstance(thing, Mapping):
        return {str(key): describe(value, inner) for key, value in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [describe(value, inner) for value in thing]
    if isinstance(thing, (set, frozenset)):
        return sorted(json.dumps(describe(value, inner), sort_keys=True) for value in thing)
    if isinstance(thing, (np.ndarray, np.generic, torch.Tensor)):
        return [type(thing).__name__, np.asarray(thing).tolist()]
    if isinstance(thing, (type, torch.dtype, torch.device, np.dtype, Path)):
        return f"{thing.__module__}.{thing.__qualname__}" if isinstance(thing, type) else str(thing)
    if isinstance(thing, CodeType):
        return [thing.co_code.hex(), describe(thing.co_consts, inner), list(thing.co_names)]
    if callable(thing) and hasattr(thing, "__code__"):
        return [f"{thing.__module__}.{thing.__qualname__}", describe(thing.__code__, inner)]
    settings = {key: value for key, value in getattr(thing, "__dict__", {}).items() if key not in _GAINED}
    return {"class": f"{type(thing).__module__}.{type(thing).__qualname__}", **describe(settings, inner)}
