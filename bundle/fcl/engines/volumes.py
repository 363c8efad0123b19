"""Whole labelled volumes out of the slice cache, for validation on the preprocessed grid. Letter: D slices."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fcl.data import SliceCache
from fcl.data.check import LARGEST_LABEL


def class_names(labels: Mapping[str, int]) -> list[str]:
    """Names of the classes in the order of their label values: that of the network's channels after the background.

    Raises:
        ValueError: unless the values are different whole numbers from 1 to 254 (0 is the background).
    """
    values = list(labels.values())
    whole = all(isinstance(value, int) and 1 <= value <= LARGEST_LABEL for value in values)
    if not values or not whole or len(set(values)) < len(values):
        raise ValueError(
            f"labels must name different values from 1 to {LARGEST_LABEL} (0 is the background); got {dict(labels)!r}"
        )
    return sorted(labels, key=lambda name: labels[name])


class LabelledVolumes(Dataset):
    """``dataset[i]`` is ``{"image": (1, H, W, D) float32, "label": (1, H, W, D) uint8}``. It may be empty.

    Args:
        cache: the site's slice cache.
        volumes: names to take; those without label are left out.
    """

    def __init__(self, cache: SliceCache, volumes: Collection[str]) -> None:
        wanted = set(volumes)
        self.cache = cache
        self.names = [info.volume for info in cache.volumes if info.labelled and info.volume in wanted]
        self._rows = [
            np.flatnonzero(cache.volume == i)
            for i, info in enumerate(cache.volumes)
            if info.labelled and info.volume in wanted
        ]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rows = self._rows[index]
        assert self.cache.labels is not None  # there is a labelled volume
        image, label = (
            torch.from_numpy(np.asarray(array)[rows]).permute(1, 2, 3, 0)
            for array in (self.cache.images, self.cache.labels)
        )
        return {"image": image.float().contiguous(), "label": label.contiguous()}
