"""Batches of slices, or of slabs of neighbouring slices, out of the slice cache.

Letters: B batch, N slices of the dataset, V its volumes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .cache import SliceCache, VolumeInfo
from .identity import volumes_digest


class SliceDataset:
    """The slices of some volumes of a cache, gathered a batch at a time.

    ``dataset[rows]`` takes a sequence of rows 0..N-1 (order kept, repeats allowed) and gives

    - ``image``: (B, 1, H, W) float32,
    - ``label``: (B, 1, H, W) int64, if any volume of the dataset is labelled; 255 in slices of one that is not,
    - ``row``: (B,) int64, the rows asked for,
    - ``volume``: (B,) int64 index into :attr:`volume_infos`,
    - ``partition``: (B,) int64 and ``position``: (B,) float32 as in the cache.

    With ``slab_depth``, image and label are (B, 1, H, W, slab_depth): the slice of that row in the middle, its
    neighbours of the same volume around it, in their order along the last axis. Beyond the ends of the volume its first
    or last slice is repeated, in the label too. All else is the middle slice's: a dataset still has a row per slice.

    Attributes:
        volume_infos: the V volumes of this dataset, in the cache's order.
        volumes_digest: tells them from others without their names.
        volume, partition, position: the same three for all N rows at once, as tensors.

    Args:
        cache: the site's cache.
        volumes: names of the volumes to take; ``None`` for all.
        labelled_only: leave volumes without label out, as supervised training must.
        slab_depth: slices of a slab; ``None`` for single slices without that axis.

    Raises:
        ValueError: a name that the cache does not hold, nothing left to take, or slabs without a slice in the middle.
    """

    def __init__(
        self,
        cache: SliceCache,
        volumes: Collection[str] | None = None,
        labelled_only: bool = False,
        slab_depth: int | None = None,
    ) -> None:
        if slab_depth is not None and (slab_depth < 1 or slab_depth % 2 == 0):
            raise ValueError(
                "slab_depth must be an odd number of slices, so that one lies in the middle, whose partition and "
                f"position are the slab's; or null for single slices. Got {slab_depth!r}"
            )
        self.cache = cache
        self.slab_depth = slab_depth
        wanted = {info.volume for info in cache.volumes} if volumes is None else set(volumes)
        if unknown := sorted(wanted - {info.volume for info in cache.volumes}):
            what = f"{cache.folder} lacks {len(unknown)} volumes: {unknown[:5]}"
            raise ValueError(f"{what}. Build the cache from every record of the site (SiteSplit.records)")
        taken = [
            i for i, info in enumerate(cache.volumes) if info.volume in wanted and (info.labelled or not labelled_only)
        ]
        if not taken:
            kind = "labelled volume" if labelled_only else "volume"
            raise ValueError(f"no {kind} among the {len(wanted)} asked for: check split_file, site, fold and annotated")
        self.volume_infos: list[VolumeInfo] = [cache.volumes[i] for i in taken]
        self.volumes_digest = volumes_digest(info.volume for info in self.volume_infos)
        self._cache_rows = np.flatnonzero(np.isin(cache.volume, taken))
        self._labelled = any(info.labelled for info in self.volume_infos)
        self.volume = torch.from_numpy(np.searchsorted(taken, cache.volume[self._cache_rows]).astype(np.int64))
        self.partition = torch.from_numpy(cache.partition[self._cache_rows])
        self.position = torch.from_numpy(cache.position[self._cache_rows])

    def __len__(self) -> int:
        return len(self._cache_rows)

    def __getitem__(self, rows: Sequence[int] | np.ndarray | Tensor) -> dict[str, Tensor]:
        row = torch.as_tensor(rows, dtype=torch.int64)
        if row.ndim != 1:
            raise TypeError(f"a SliceDataset is indexed by a sequence of rows, got {rows!r}")
        # The map is read in ascending order, each slice once, and the batch put in order afterwards.
        cache_rows, place = np.unique(self._neighbours(self._cache_rows[row.numpy()]), return_inverse=True)
        batch = {
            "image": self._gather(self.cache.images, cache_rows, place, torch.float32),
            "row": row,
            "volume": self.volume[row],
            "partition": self.partition[row],
            "position": self.position[row],
        }
        if self._labelled and self.cache.labels is not None:
            batch["label"] = self._gather(self.cache.labels, cache_rows, place, torch.int64)
        return batch

    def _neighbours(self, cache_rows: np.ndarray) -> np.ndarray:
        """(B, slices of a sample) rows of the cache."""
        if self.slab_depth is None:
            return cache_rows[:, None]
        # A volume's slices are one run of the cache, whose volume indices ascend.
        volume = self.cache.volume[cache_rows]
        first, last = (np.searchsorted(self.cache.volume, volume, side) for side in ("left", "right"))
        around = np.arange(self.slab_depth) - self.slab_depth // 2
        return np.clip(cache_rows[:, None] + around, first[:, None], last[:, None] - 1)

    def _gather(self, mapped: np.memmap, cache_rows: np.ndarray, place: np.ndarray, dtype: torch.dtype) -> Tensor:
        """(B, 1, H, W), or (B, 1, H, W, slab_depth); ``place`` (B, slices of a sample) points into ``cache_rows``."""
        slices = torch.from_numpy(np.asarray(mapped)[cache_rows])
        samples = slices[torch.from_numpy(place)].movedim(1, -1)
        samples = samples.squeeze(-1) if self.slab_depth is None else samples
        return samples.to(dtype, memory_format=torch.contiguous_format)


class SliceLoader:
    """Endless, resumable batches of a :class:`SliceDataset`.

    With ``shuffle``, batches come from one permutation after another, each a function of the seed and its number only.
    An iteration goes on where the last one stopped, also inside a permutation; rows left over at the end of a
    permutation (fewer than a batch) are dropped. A dataset smaller than a batch is one batch. Without ``shuffle``, rows
    come in order, the last batch is short, and with ``steps=None`` every iteration starts at the first row.

    Args:
        dataset: where rows come from.
        batch_size: B.
        steps: batches per iteration, i.e. ``len()``; ``None``: one pass over the dataset.
        seed: of the permutations.
        shuffle: see above.
    """

    def __init__(
        self, dataset: SliceDataset, batch_size: int, steps: int | None = None, seed: int = 0, shuffle: bool = True
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if steps is not None and steps < 1:
            raise ValueError(f"steps must be at least 1, or None for one pass, got {steps}")
        self.dataset = dataset
        self.batch_size = min(batch_size, len(dataset))
        self.seed = seed
        self.shuffle = shuffle
        count = len(dataset) / self.batch_size
        self._batches_per_pass = int(count) if shuffle else int(np.ceil(count))
        self.steps = self._batches_per_pass if steps is None else steps
        self._restarts = steps is None and not shuffle
        self._drawn = 0
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        if self._restarts:
            self._drawn = 0
        for _ in range(self.steps):
            rows = self._rows(self._drawn)
            self._drawn += 1
            yield self.dataset[rows]

    def state_dict(self) -> dict[str, Any]:
        """Batches drawn so far, and what they depend on."""
        return {"drawn": self._drawn, **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the batches that ``state`` counts, bit for bit.

        Raises:
            ValueError: when ``state`` belongs to other volumes, or to another batch size, seed or order.
        """
        identity = self._identity()
        other = {key: state.get(key) for key in identity if state.get(key) != identity[key]}
        if other:
            raise ValueError(
                f"the state is of a loader with {other}, this one has { ({k: identity[k] for k in other}) }"
            )
        self._drawn = int(state["drawn"])

    def _identity(self) -> dict[str, Any]:
        return {
            "volumes": self.dataset.volumes_digest,
            "slices": len(self.dataset),
            "batch_size": self.batch_size,
            "seed": self.seed,
            "shuffle": self.shuffle,
        }

    def _rows(self, batch: int) -> np.ndarray:
        number, place = divmod(batch, self._batches_per_pass)
        if self._order[0] != number:
            rows = np.arange(len(self.dataset), dtype=np.int64)
            if self.shuffle:
                rows = np.random.default_rng((self.seed, number)).permutation(rows)
            self._order = (number, rows)
        start = place * self.batch_size
        return self._order[1][start : start + self.batch_size]
