"""A stable name for "these files through these transforms"."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from enum import Enum
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
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

    Random generators and memory addresses are left out. A function counts by its name, its compiled code, its defaults
    and what it has taken from around it; a partial and a bound method by what they hold.
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
    if isinstance(thing, (bytes, complex)):
        return [type(thing).__name__, str(thing)]
    if isinstance(thing, (slice, range)):
        return [type(thing).__name__, *(describe(end, inner) for end in (thing.start, thing.stop, thing.step))]
    called = _describe_callable(thing, inner)
    if called is not None:
        return called
    settings = {key: value for key, value in getattr(thing, "__dict__", {}).items() if key not in _GAINED}
    return {"class": f"{type(thing).__module__}.{type(thing).__qualname__}", **describe(settings, inner)}


def _describe_callable(thing: Any, inner: tuple[int, ...]) -> Any:
    """Of a function and its parts; ``None`` for anything else."""
    if isinstance(thing, ModuleType):
        return thing.__name__
    if isinstance(thing, CodeType):
        return [thing.co_code.hex(), describe(thing.co_consts, inner), list(thing.co_names)]
    if isinstance(thing, CellType):
        try:
            return [describe(thing.cell_contents, inner)]
        except ValueError:  # a name that has no value yet
            return []
    if isinstance(thing, partial):
        return {"partial": [describe(part, inner) for part in (thing.func, thing.args, thing.keywords)]}
    if isinstance(thing, MethodType):
        return [describe(thing.__func__, inner), describe(thing.__self__, inner)]
    if isinstance(thing, BuiltinFunctionType):
        return [thing.__qualname__, describe(thing.__self__, inner)]
    if isinstance(thing, FunctionType):
        held = {name: getattr(thing, name) for name in ("__defaults__", "__kwdefaults__", "__closure__")}
        # What a function does not hold is not mentioned: keys of caches that were built before stay as they are.
        held = {name: describe(value, inner) for name, value in held.items() if value}
        name = f"{thing.__module__}.{thing.__qualname__}"
        return [name, describe(thing.__code__, inner), *([held] if held else [])]
    return None
