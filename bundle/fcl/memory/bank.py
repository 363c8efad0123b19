"""The feature bank of one site: a row for each of its own slices, and what its peers sent.

Letters: M rows, D feature length, K drawn features, S partitions.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fcl.federation import FeatureSet

logger = logging.getLogger(__name__)


class LocalFeatures(NamedTuple):
    """The filled local rows: features (M, D) and their partition, volume and row index (M,)."""

    features: Tensor
    partition: Tensor
    volume: Tensor
    row: Tensor


class FeatureBank:
    """Local and remote features, ``Q = Q_local U {Q_remote of every peer}`` (Wu et al. 2021, feature exchange).

    The local part has one row per slice, overwritten whenever the momentum encoder sees that slice; so its size is
    fixed. The remote part keeps the latest set of every peer, until it is older than ``max_age`` rounds.

    Args:
        partition: (M,) partition of each local slice.
        volume: (M,) index of the volume of each local slice; never leaves the site.
        feature_length: D.
        partitions: S.
        max_age: rounds after which a peer's features are dropped; 1 keeps only those of the current round and the one
            before.
        device: where the bank lives.

    Raises:
        ValueError: on shapes that disagree or partitions outside 0..S-1.
    """

    def __init__(
        self,
        partition: Tensor,
        volume: Tensor,
        feature_length: int = 128,
        partitions: int = 4,
        max_age: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        if partition.ndim != 1 or partition.shape != volume.shape or len(partition) == 0:
            raise ValueError(
                f"partition and volume must be equally long, got {tuple(partition.shape)}; {tuple(volume.shape)}."
            )
        if int(partition.min()) < 0 or int(partition.max()) >= partitions:
            raise ValueError(f"partitions must lie in 0..{partitions - 1}, got {partition.min()}..{partition.max()}.")
        self.feature_length = feature_length
        self.partitions = partitions
        self.max_age = max_age
        self.device = torch.device(device)
        self._partition = partition.to(self.device)
        self._volume = volume.to(self.device)
        self._row = torch.arange(len(partition), device=self.device)
        self._features = torch.zeros(len(partition), feature_length, device=self.device)
        self._filled = torch.zeros(len(partition), dtype=torch.bool, device=self.device)
        self._remote: dict[str, tuple[Tensor, Tensor, int]] = {}

    def __len__(self) -> int:
        """Rows that can be drawn now, local and remote."""
        return int(self._filled.sum()) + self.remote_rows

    @property
    def rows(self) -> int:
        """M of the local part, filled or not."""
        return len(self._row)

    @property
    def complete(self) -> bool:
        """Whether every local row holds a feature."""
        return bool(self._filled.all())

    @property
    def remote_rows(self) -> int:
        return sum(len(partition) for _, partition, _ in self._remote.values())

    def is_of(self, partition: Tensor, volume: Tensor) -> bool:
        """Whether the local rows are labelled with these, row by row."""
        own = (self._partition.tolist(), self._volume.tolist())
        return own == (partition.tolist(), volume.tolist())

    def forget(self) -> None:
        """Empty the local rows."""
        self._filled.zero_()

    def update(self, row_B: Tensor, features_BD: Tensor) -> None:
        """Overwrite the local rows ``row_B`` with unit-norm ``features_BD``."""
        self._features[row_B] = self._checked(features_BD)
        self._filled[row_B] = True

    def set_remote(self, site: str, features: FeatureSet, round_number: int) -> None:
        """Replace what the peer ``site`` sent earlier. An empty set removes it."""
        self._remote.pop(site, None)
        if len(features) == 0:
            return
        partition = features.partition.to(self.device)
        if len(partition) != len(features) or int(partition.min()) < 0 or int(partition.max()) >= self.partitions:
            raise ValueError(f"features of {site} need one partition in 0..{self.partitions - 1} per row.")
        self._remote[site] = (self._checked(features.features.to(self.device)), partition, round_number)

    def expire(self, round_number: int) -> list[str]:
        """Drop remote features older than ``max_age`` rounds at ``round_number``; returns the sites dropped."""
        stale = [site for site, (_, _, made) in self._remote.items() if round_number - made > self.max_age]
        for site in stale:
            _, _, made = self._remote.pop(site)
            logger.info("round %d: features of %s, of round %d, are too old and dropped", round_number, site, made)
        return stale

    def local(self) -> LocalFeatures:
        """The filled local rows."""
        if self.complete:
            return LocalFeatures(self._features, self._partition, self._volume, self._row)
        rows = self._filled.nonzero(as_tuple=True)[0]
        return LocalFeatures(self._features[rows], self._partition[rows], self._volume[rows], rows)

    def draw(self, count: int | None, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """``Q'``: ``count`` features drawn uniformly without replacement from local and remote rows (all, if fewer or
        None).

        Returns:
            features (K, D) and partition (K,).
        """
        own = self.local()
        # Sorted by site: arrival order must not decide what a seed draws.
        remote = [self._remote[site] for site in sorted(self._remote)]
        features = torch.cat([own.features, *(entry[0] for entry in remote)]) if remote else own.features
        partition = torch.cat([own.partition, *(entry[1] for entry in remote)]) if remote else own.partition
        if count is None or count >= len(features):
            return features, partition
        where = generator.device if generator is not None else self.device
        chosen = torch.randperm(len(features), generator=generator, device=where)[:count].to(self.device)
        return features[chosen], partition[chosen]

    def snapshot(
        self,
        max_rows: int | None = None,
        generator: torch.Generator | None = None,
        group_of_volume: Tensor | None = None,
        rows_per_group: int | None = None,
    ) -> FeatureSet:
        """A copy of at most ``max_rows`` random local rows, without volume or row index.

        Rows are sorted by their first entry: unlike a seeded shuffle, that cannot be undone by whoever knows the seed.

        Args:
            max_rows: None takes all.
            generator: chooses the rows.
            group_of_volume: (V,) group of each volume, e.g. its patient; needed for the next.
            rows_per_group: rows of one group at most.
        """
        own = self.local()
        where = generator.device if generator is not None else self.device
        order = torch.randperm(len(own.features), generator=generator, device=where).to(self.device)
        if rows_per_group is not None and group_of_volume is not None:
            group, by_group = group_of_volume.to(self.device)[own.volume[order]].sort(stable=True)
            place = torch.arange(len(group), device=self.device) - torch.searchsorted(group, group)
            order = order[by_group[place < rows_per_group]]
            order = order[torch.randperm(len(order), generator=generator, device=where).to(self.device)]
        order = order[:max_rows]
        order = order[own.features[order, 0].argsort()]
        volumes = len(own.volume[order].unique())
        return FeatureSet(own.features[order].cpu().clone(), own.partition[order].cpu().clone(), volumes)

    def prototypes(self) -> FeatureSet:
        """Unit-norm mean direction of the local features of each partition: at most S rows."""
        own = self.local()
        present = torch.unique(own.partition).tolist()
        rows = [own.partition == index for index in present]
        means = torch.stack([own.features[chosen].mean(dim=0) for chosen in rows])
        volumes = min(len(own.volume[chosen].unique()) for chosen in rows)
        return FeatureSet(torch.nn.functional.normalize(means, dim=1).cpu(), torch.tensor(present), volumes)

    def state_dict(self) -> dict[str, Any]:
        return {
            "features": self._features.cpu().clone(),
            "filled": self._filled.cpu().clone(),
            "remote": {site: [f.cpu().clone(), p.cpu().clone(), made] for site, (f, p, made) in self._remote.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`.

        Raises:
            ValueError: when it was saved by a bank of another shape.
        """
        if state["features"].shape != self._features.shape:
            raise ValueError(
                f"the saved bank has shape {tuple(state['features'].shape)}, this one {tuple(self._features.shape)}: "
                "the site's slices or the feature length changed since it was saved."
            )
        self._features.copy_(state["features"])
        self._filled.copy_(state["filled"])
        self._remote = {
            site: (features.to(self.device), partition.to(self.device), int(made))
            for site, (features, partition, made) in state["remote"].items()
        }

    def _checked(self, features: Tensor) -> Tensor:
        """Features as detached float32, refused unless they are finite unit vectors of the right length."""
        features = features.detach().float()
        if features.ndim != 2 or features.shape[1] != self.feature_length:
            raise ValueError(f"features must have shape (rows, {self.feature_length}), got {tuple(features.shape)}.")
        # Half precision moves a norm by up to 1e-3; NaN fails the comparison as well.
        if not bool(((features.norm(dim=1) - 1).abs() < 1e-2).all()):
            raise ValueError("features must be finite and of unit norm.")
        return features
