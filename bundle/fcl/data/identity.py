"""Which data a training had, as digests: a resumed one must have the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from .fingerprint import describe
from .splits import SiteSplit


def digest(content: Any) -> str:
    """20 hex digits over plain values in their order."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]


def volumes_digest(volumes: Iterable[str]) -> str:
    """20 hex digits over names of volumes in their order."""
    return digest(list(volumes))


def data_identity(split: SiteSplit, preprocessing: Any, partitions: int) -> dict[str, str]:
    """What a training learns from, what tells its best weights, and how both became slices.

    The slice cache's key will not do: a folder that is copied to another disk has another.

    Args:
        split: volumes to train on and to validate on.
        preprocessing: transforms of a volume.
        partitions: S.
    """
    return {
        "training data": volumes_digest(split.train_volumes),
        "validation data": volumes_digest(split.validation_volumes),
        "preprocessing": digest([describe(preprocessing), partitions]),
    }
