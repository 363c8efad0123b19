"""The FCL trainer: one contrastive step per iteration (Wu et al., MICCAI 2021), as a MONAI ``Trainer``.

Letters: B batch, D feature length, K drawn features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from ignite.engine import Events
from ignite.metrics import Average, Metric
from monai.engines import IterationEvents, Trainer
from monai.inferers import Inferer, SimpleInferer
from torch import Tensor, nn
from torch.optim import Optimizer

from fcl.losses import FCLLoss
from fcl.memory import FeatureBank


class FCLTrainer(Trainer):
    """Trains the main encoder against the feature bank; the momentum encoder follows it.

    One iteration: two augmented views of a batch of slices; view 1 through the main encoder gives the queries, view 2
        through
    the momentum encoder the features that overwrite those slices' rows of the bank; K features are drawn from it, the
    loss is
    taken, the main encoder steps, the momentum encoder moves by ``momentum * old + (1 - momentum) * new`` (MoCo, He
    et al. 2020).

    Any MONAI or ignite handler attaches. ``engine.state.output`` holds ``loss`` and the loss's terms and monitors as
    floats on the device; their means over an epoch are in ``engine.state.metrics``.

    Args:
        device: where to train.
        max_epochs: local epochs of a training at one site; a federation moves it round by round.
        train_data_loader: yields dicts with ``image`` (B, 1, H, W), ``row``, ``volume`` and ``partition`` (B,).
        network: main encoder with projection head, images to (B, D) unit vectors.
        momentum_network: a second network of the same architecture; starts as a copy, never gets a gradient.
        optimizer: of the main network.
        loss_function: see :class:`fcl.losses.FCLLoss`.
        bank: see :class:`fcl.memory.FeatureBank`; its local rows are the loader's slices.
        augmentation: ``(image, label, generator) -> (image, label)`` on whole batches.
        drawn_features: K; None draws the whole bank.
        momentum: of the momentum encoder. Not published in the paper; ours.
        inferer: runs a network on a batch; :class:`fcl.engines.AutocastInferer` for reduced precision.
        max_grad_norm: gradients are clipped to this norm; None leaves them.
        seed: of the augmentation and of the draw.
        train_handlers: ignite or MONAI handlers.
        key_train_metric, additional_metrics: as in MONAI's trainers.

    Raises:
        ValueError: on a momentum outside [0, 1] or ``drawn_features`` below 1.
    """

    network: nn.Module
    momentum_network: nn.Module

    def __init__(
        self,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: Iterable,
        network: nn.Module,
        momentum_network: nn.Module,
        optimizer: Optimizer,
        loss_function: FCLLoss,
        bank: FeatureBank,
        augmentation: Callable[..., tuple[Tensor, Tensor | None]],
        drawn_features: int | None = 1024,
        momentum: float = 0.99,
        inferer: Inferer | None = None,
        max_grad_norm: float | None = None,
        seed: int = 0,
        train_handlers: Sequence[Any] | None = None,
        key_train_metric: dict[str, Metric] | None = None,
        additional_metrics: dict[str, Metric] | None = None,
    ) -> None:
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"momentum must lie in [0, 1], got {momentum!r}.")
        if drawn_features is not None and drawn_features < 1:
            raise ValueError(f"drawn_features must be at least 1, or null for the whole bank; got {drawn_features!r}.")
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            data_loader=train_data_loader,
            key_metric=key_train_metric,
            additional_metrics=additional_metrics,
            decollate=False,
        )
        self.network = network
        self.momentum_network = momentum_network
        self.optimizer = optimizer
        self.loss_function = loss_function
        self.bank = bank
        self.augmentation = augmentation
        self.drawn_features = drawn_features
        self.momentum = momentum
        self.inferer = inferer or SimpleInferer()
        self.max_grad_norm = max_grad_norm
        self.generator = torch.Generator(device=self.state.device).manual_seed(seed)
        self.sync_momentum_network()
        for name in (
            "loss",
            "local",
            "remote",
            "instance",
            "positive_similarity",
            "negative_similarity",
            "spread",
            "alignment",
        ):
            Average(output_transform=_item(name)).attach(self, name)
        self.add_event_handler(Events.EPOCH_COMPLETED, _similarity_gap)
        # Last, so that handlers which read the epoch's metrics find them computed.
        self._register_handlers(train_handlers or ())

    def sync_momentum_network(self) -> None:
        """Make the momentum encoder a copy of the main one."""
        self.momentum_network.load_state_dict(self.network.state_dict())
        self.momentum_network.requires_grad_(False)

    def embed(self, network: nn.Module, image_BCHW: Tensor) -> Tensor:
        """Unit features (B, D) of a batch."""
        return self.inferer(image_BCHW, network)

    @torch.no_grad()
    def refresh_bank(self, batches: Iterable[dict[str, Tensor]]) -> None:
        """Overwrite the bank's local rows with un-augmented features of the momentum encoder: one forward pass."""
        self.momentum_network.eval()
        for batch in batches:
            features = self.embed(self.momentum_network, batch["image"].to(self.state.device))
            self.bank.update(batch["row"].to(self.state.device), features)

    def _iteration(self, engine: FCLTrainer, batchdata: dict[str, Tensor]) -> dict[str, Tensor]:
        device = self.state.device
        image, row_B, volume_B, partition_B = (
            batchdata[key].to(device, non_blocking=True) for key in ("image", "row", "volume", "partition")
        )
        view1, _ = self.augmentation(image, generator=self.generator)
        view2, _ = self.augmentation(image, generator=self.generator)
        self.network.train()
        self.momentum_network.train()
        q_BD = self.embed(self.network, view1)
        with torch.no_grad():
            k_BD = self.embed(self.momentum_network, view2)
        self.bank.update(row_B, k_BD)
        drawn_KD, drawn_partition_K = self.bank.draw(self.drawn_features, self.generator)
        own = self.bank.local()
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        terms = self.loss_function(
            q_BD, k_BD, partition_B, volume_B, own.features, own.partition, own.volume, drawn_KD, drawn_partition_K
        )
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
        self.optimizer.zero_grad(set_to_none=True)
        terms.loss.backward()
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        if self.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self._follow()
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        with torch.no_grad():
            # Spread 1 is the uniform sphere, 0 a single point (collapse); alignment as in Wang & Isola 2020.
            spread = k_BD.std(dim=0).mean() * k_BD.shape[1] ** 0.5
            alignment = (q_BD - k_BD).square().sum(dim=1).mean()
        return {**{k: v.detach() for k, v in terms._asdict().items()}, "spread": spread, "alignment": alignment}

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the momentum encoder towards the main one; buffers (running statistics) are its own."""
        ours = [p.detach() for p in self.momentum_network.parameters()]
        theirs = [p.detach() for p in self.network.parameters()]
        torch._foreach_lerp_(ours, theirs, 1.0 - self.momentum)


def _item(name: str) -> Callable[[dict[str, Tensor]], float]:
    return lambda output: float(output[name])


def _similarity_gap(engine: FCLTrainer) -> None:
    metrics = engine.state.metrics
    metrics["similarity_gap"] = metrics["positive_similarity"] - metrics["negative_similarity"]
