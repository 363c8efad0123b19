"""How good the features are, measured without labels: partition kNN accuracy and uniformity on whole slices.

Letters: M stored features, N queries, D feature length, S partitions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from fcl.data import SliceCache, SliceDataset, SliceLoader


@torch.no_grad()
def embed_slices(
    embed: Callable[[Tensor], Tensor], batches: Iterable[dict[str, Tensor]], device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Unit-norm features (N, D) and partitions (N,) of all slices that ``batches`` yields, on the CPU."""
    features, partitions = [], []
    for batch in batches:
        out = embed(batch["image"].to(device)).float()
        features.append(nn.functional.normalize(out, dim=1).cpu())
        partitions.append(batch["partition"].cpu())
    return torch.cat(features), torch.cat(partitions)


def knn_accuracy(
    stored_MD: Tensor, stored_label_M: Tensor, query_ND: Tensor, query_label_N: Tensor, neighbours: int = 20
) -> float:
    """Share of queries whose ``neighbours`` most similar stored features vote for the query's own label.

    Votes are weighted by ``exp(cosine / 0.07)`` as in Wu et al. 2018 (instance discrimination), section 3.4.
    """
    neighbours = min(neighbours, len(stored_MD))
    similarity, index = (query_ND @ stored_MD.T).topk(neighbours, dim=1)
    labels = stored_label_M[index]
    votes = torch.zeros(len(query_ND), int(stored_label_M.max()) + 1)
    votes.scatter_add_(1, labels, (similarity / 0.07).exp())
    return float((votes.argmax(dim=1) == query_label_N).float().mean())


def uniformity(features_MD: Tensor) -> float:
    """``log mean exp(-2 |x - y|^2)`` over pairs (Wang & Isola 2020): 0 at collapse, about -4 on the uniform sphere.

    Two features or more: of one alone it is NaN.
    """
    return float(torch.pdist(features_MD).square().mul(-2).exp().mean().log())


class PartitionKNN:
    """Logs at the end of an epoch how well neighbours in feature space lie in the same part of the anatomy.

    Stored features are the training patients' slices, queries the validation patients'; both un-augmented, taken from
    the pooled encoder (what fine-tuning inherits), not from the projection head. Writes ``partition_knn`` and
    ``uniformity`` to ``engine.state.metrics``.

    Args:
        network: a :class:`fcl.networks.ContrastiveNetwork`.
        cache: the site's slices.
        train_volumes, validation_volumes: names of the volumes to store and to query; without the latter nothing is
            logged.
        neighbours: k of the vote.
        interval: epochs between two measurements; 0 measures only when called.
        batch_size: slices (or slabs) a forward pass.
        device: where the network lives.
        slab_depth: as the network was trained, see :class:`fcl.data.SliceDataset`.
    """

    def __init__(
        self,
        network: nn.Module,
        cache: SliceCache,
        train_volumes: Collection[str],
        validation_volumes: Collection[str],
        neighbours: int = 20,
        interval: int = 1,
        batch_size: int = 128,
        device: torch.device | str = "cpu",
        slab_depth: int | None = None,
    ) -> None:
        def in_order(volumes: Collection[str]) -> SliceLoader:
            return SliceLoader(SliceDataset(cache, volumes, slab_depth=slab_depth), batch_size, shuffle=False)

        self.network = network
        self.stored = in_order(train_volumes)
        self.queries = in_order(validation_volumes) if validation_volumes else None
        self.neighbours = neighbours
        self.interval = interval
        self.device = device

    @property
    def volumes(self) -> int:
        """Validation volumes."""
        return 0 if self.queries is None else len(self.queries.dataset.volume_infos)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        if self.interval and engine.state.epoch % self.interval == 0:
            engine.state.metrics.update(self.measure())

    def measure(self) -> dict[str, float]:
        """``partition_knn`` (0..1) and, of two slices or more, ``uniformity``; empty without validation patients."""
        if self.queries is None:
            return {}
        was_training = self.network.training
        self.network.eval()
        try:
            stored, stored_label = embed_slices(self.network.embed, self.stored, self.device)
            query, query_label = embed_slices(self.network.embed, self.queries, self.device)
        finally:
            self.network.train(was_training)
        measured = {"partition_knn": knn_accuracy(stored, stored_label, query, query_label, self.neighbours)}
        if len(query) > 1:
            measured["uniformity"] = uniformity(query)
        return measured
