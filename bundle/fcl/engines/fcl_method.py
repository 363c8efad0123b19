"""The step of FCL (Wu et al., MICCAI 2021): queries against the feature bank. Letters: B batch, D feature length,
K drawn features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fcl.engines.method import Method, Step, Terms, feature_monitors, logged
from fcl.engines.pretrain_trainer import PretrainTrainer
from fcl.memory import FeatureBank


class FCL(Method):
    """Main encoder against the feature bank.

    Two augmented views of a batch of slices; view 1 through the main encoder gives the queries, view 2 through the
    momentum encoder the features that overwrite those slices' rows of the bank; K features are drawn from it, a query's
    own among them if it so happens, and the loss is taken.

    Args:
        loss_function: :class:`fcl.losses.FCLLoss`, or another that takes the same.
        bank: see :class:`fcl.memory.FeatureBank`; its local rows are the loader's slices.
        drawn_features: K; None draws the whole bank.
        position: of every local row along its volume, for a loss that compares positions; None for one that does not.
        slices: batches of all local slices in order, un-augmented, to fill the bank from: at the first step where
            nothing has filled it before, since a bank that grows makes the loss rise. None leaves it to the steps.
            Rows are made as steps make them, from augmented views by a network in training mode: else the loss could
            tell them from the steps' own, and peers' features from local ones, by how they were made. Under noise,
            which drowns that difference, they are not (see :meth:`refresh_bank`).

    Raises:
        ValueError: on ``drawn_features`` below 1.
    """

    needs_momentum_network = True

    def __init__(
        self,
        loss_function: nn.Module,
        bank: FeatureBank,
        drawn_features: int | None = 1024,
        position: Tensor | None = None,
        slices: Iterable[dict[str, Tensor]] | None = None,
    ) -> None:
        if drawn_features is not None and drawn_features < 1:
            raise ValueError(f"drawn_features must be at least 1, or null for the whole bank; got {drawn_features!r}.")
        self.loss_function = loss_function
        self.bank = bank
        self.drawn_features = drawn_features
        self.position = position
        self.slices = slices

    def __call__(self, step: Step) -> Terms:
        assert step.momentum_network is not None  # the trainer has checked it
        if self.slices is not None and not self.bank.complete:
            self.refresh_bank(step)
        view1, view2 = step.augment(step.image), step.augment(step.image)
        q_BD = step.run(step.network, view1)
        k_BD = step.run_target(view2)
        self.bank.update(step.row, k_BD)
        drawn_KD, drawn_partition_K = self.bank.draw(self.drawn_features, step.generator)
        own = self.bank.local()
        places = {}
        if self.position is not None:
            places = {"position_B": step.position, "local_position_M": self.position.to(own.row.device)[own.row]}
        terms = self.loss_function(
            q_BD,
            k_BD,
            step.partition,
            step.volume,
            own.features,
            own.partition,
            own.volume,
            drawn_KD,
            drawn_partition_K,
            **places,
        )
        return {**logged(terms), **feature_monitors(k_BD, q_BD)}

    @torch.no_grad()
    def refresh_bank(self, source: Step | PretrainTrainer, independent: bool = False) -> None:
        """Overwrite the bank's local rows with features of the momentum encoder: one forward pass.

        Args:
            source: whose momentum network, inferer and augmentation make them.
            independent: make each row from its own slice and the weights alone: by a network in evaluation mode, so
                that batch normalisation lets no other slice of its batch in, and from the slice as it is, since numbers
                for an augmentation would depend on how many slices come before it.

        Raises:
            RuntimeError: unless every row was made. One left from before is of another encoder, and which are left
                depends on how many slices each patient has.
        """
        assert self.slices is not None  # the callers have checked these two
        assert source.momentum_network is not None
        network = source.momentum_network
        training = network.training
        self.bank.forget()
        for batch in self.slices:
            image = batch["image"].to(self.bank.device)
            view = image if independent else source.augment(image)
            network.train(len(view) > 1 and not independent)  # one slice alone has no batch statistics
            self.bank.update(batch["row"].to(self.bank.device), source.inferer(view, network))
        network.train(training)
        if not self.bank.complete:
            made, rows = len(self.bank.local().row), self.bank.rows
            raise RuntimeError(
                f"{made} of the bank's {rows} rows were made: let `slices` give every slice in one pass, without "
                "`steps` and not shuffled, as pretrain.json does."
            )

    def state_dict(self) -> dict[str, Any]:
        return {"bank": self.bank.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.bank.load_state_dict(state["bank"])
