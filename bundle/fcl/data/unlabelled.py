"""Slices to learn from without their labels."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from torch import Tensor

from .cache import SliceCache
from .slices import SliceDataset


class UnlabelledSlices(SliceDataset):
    """A :class:`SliceDataset` without ``label``, also where the cache holds one: who is not annotated has none.

    Args:
        cache: the site's cache.
        volumes: names of the volumes to take, e.g. ``SiteSplit.unlabelled_volumes``.
        slab_depth: as in the parent class.

    Raises:
        ValueError: when there are none, or the cache lacks one.
    """

    def __init__(self, cache: SliceCache, volumes: Collection[str], slab_depth: int | None = None) -> None:
        # By name, unlike in the parent class: all of a cache would be the validation patients' too.
        super().__init__(cache, volumes, slab_depth=slab_depth)

    def __getitem__(self, rows: Sequence[int] | np.ndarray | Tensor) -> dict[str, Tensor]:
        batch = super().__getitem__(rows)
        batch.pop("label", None)
        return batch
