"""The trainer of all pre-training methods: one step of a method per iteration, as a MONAI ``Trainer``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from monai.engines import IterationEvents, Trainer
from monai.inferers import Inferer, SimpleInferer
from torch import Tensor, nn
from torch.optim import Optimizer

from fcl.engines.method import Method, Step, Terms

M = TypeVar("M", bound=Method)


class PretrainTrainer(Trainer, Generic[M]):
    """Trains a network by a :class:`fcl.engines.Method`, with a momentum network that follows it where there is one.

    After each step the momentum network moves by ``momentum * old + (1 - momentum) * new`` (MoCo, He et al. 2020).
    Any MONAI or ignite handler attaches. ``engine.state.output`` holds ``loss`` and what else the method logs, as
    scalars on the device; their means over an epoch are in ``engine.state.metrics``.

    Args:
        device: where to train.
        max_epochs: local epochs of a training at one site; a federation moves it round by round.
        train_data_loader: yields dicts with ``image`` (B, 1, H, W), ``row``, ``volume``, ``partition`` and ``position``
            (B,).
        network: what learns; its ``embed`` gives pooled encoder features, its keys for the encoder begin ``encoder.``
        optimizer: of the network.
        method: what a step computes.
        augmentation: ``(image, label, generator) -> (image, label)`` on whole batches.
        momentum_network: a second network of the same architecture; starts as a copy, never gets a gradient. None where
            the method needs none.
        momentum: of the momentum network.
        inferer: runs a network on a batch; :class:`fcl.engines.AutocastInferer` for reduced precision.
        max_grad_norm: gradients are clipped to this norm; None leaves them.
        seed: of the augmentation and of what the method draws.
        train_handlers: ignite or MONAI handlers.
        key_train_metric, additional_metrics: as in MONAI's trainers.

    Raises:
        ValueError: on a momentum outside [0, 1], a method that lacks the network it needs, or batches of one slice.
    """

    network: nn.Module
    momentum_network: nn.Module | None

    def __init__(
        self,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: Iterable,
        network: nn.Module,
        optimizer: Optimizer,
        method: M,
        augmentation: Callable[..., tuple[Tensor, Tensor | None]],
        momentum_network: nn.Module | None = None,
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
        _check(method, network, momentum_network)
        _check_batches(train_data_loader)
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
        self.method = method
        self.augmentation = augmentation
        self.momentum = momentum
        self.inferer = inferer or SimpleInferer()
        self.max_grad_norm = max_grad_norm
        self.generator = torch.Generator(device=self.state.device).manual_seed(seed)
        self.sync_momentum_network()
        _EpochMeans().attach(self)
        # Last, so that handlers which read the epoch's metrics find them computed.
        self._register_handlers(train_handlers or ())

    def sync_momentum_network(self) -> None:
        """Make the momentum network, where there is one, a copy of the network."""
        if self.momentum_network is not None:
            self.momentum_network.load_state_dict(self.network.state_dict())
            self.momentum_network.requires_grad_(False)

    def augment(self, image: Tensor) -> Tensor:
        """Another view of a batch."""
        return self.augmentation(image, generator=self.generator)[0]

    def augment_and_locate(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Another view of a batch of slices, and which pixel of the slice each of its pixels shows (see ``Step``)."""
        height, width = image.shape[2:]
        # A label moves with its image and is 0 outside: pixels numbered from 1 come out as what they show.
        numbers = torch.arange(1, height * width + 1, device=image.device).view(1, 1, height, width)
        view, origin = self.augmentation(image, numbers.expand(len(image), -1, -1, -1), generator=self.generator)
        assert origin is not None  # a label was given
        return view, origin[:, 0] - 1

    def _iteration(self, engine: PretrainTrainer, batchdata: dict[str, Tensor]) -> Terms:
        device = self.state.device
        batch = {
            name: batchdata[name].to(device, non_blocking=True)
            for name in ("image", "row", "volume", "partition", "position")
        }
        self.network.train()
        if self.momentum_network is not None:
            self.momentum_network.train()
        step = Step(
            **batch,
            network=self.network,
            momentum_network=self.momentum_network,
            augment=self.augment,
            locate=self.augment_and_locate,
            inferer=self.inferer,
            generator=self.generator,
        )
        terms = self.method(step)
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
        if terms["loss"].requires_grad:
            self.optimizer.zero_grad(set_to_none=True)
            terms["loss"].backward()
            engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
            if self.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(self.network.parameters(), self.max_grad_norm)
            self.optimizer.step()
            self._follow()
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return {name: value.detach() for name, value in terms.items()}

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the momentum network towards the network; buffers (running statistics) are its own."""
        if self.momentum_network is None:
            return
        ours = [p.detach() for p in self.momentum_network.parameters()]
        theirs = [p.detach() for p in self.network.parameters()]
        torch._foreach_lerp_(ours, theirs, 1.0 - self.momentum)


def _check(method: Method, network: nn.Module, momentum_network: nn.Module | None) -> None:
    name = type(method).__name__
    problems = []
    if method.needs_momentum_network and momentum_network is None:
        problems.append("it needs a momentum_network, e.g. '$copy.deepcopy(@network)', and got none")
    missing = [part for part in ("embed", *method.network_methods) if not callable(getattr(network, part, None))]
    if missing:
        problems.append(f"its network must offer {', '.join(missing)}; got a {type(network).__name__}")
    if problems:
        raise ValueError(f"the method {name} cannot run: {'; '.join(problems)}. Set network_def as its overlay does.")


def _check_batches(loader: Any) -> None:
    """Refuse a loader of slices whose batches hold one: there is nothing to normalise or to compare it with."""
    size, dataset = getattr(loader, "batch_size", None), getattr(loader, "dataset", None)
    if size == 1:
        raise ValueError("a step needs two slices or more, and batch_size is 1: set batch_size to 2 or more.")
    if size is not None and dataset is not None and len(dataset) < 2:
        raise ValueError(
            "a step needs two slices or more, and the training patients here have one in all: give the site more "
            "patients (split_file, fold), or leave it out."
        )


class _EpochMeans:
    """Writes the mean of every scalar of the outputs over the epoch's steps that count; sums stay on the device."""

    def __init__(self) -> None:
        self._sums: Terms = {}

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def _begin(self, engine: Engine) -> None:
        self._sums, self._count = {}, 0

    def _add(self, engine: PretrainTrainer) -> None:
        if not engine.method.counts:
            return
        self._count += 1
        for name, value in engine.state.output.items():
            value = value.double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def _write(self, engine: Engine) -> None:
        metrics = engine.state.metrics
        metrics.update({name: float(total) / self._count for name, total in self._sums.items()})
        if {"positive_similarity", "negative_similarity"} <= self._sums.keys():
            metrics["similarity_gap"] = metrics["positive_similarity"] - metrics["negative_similarity"]
