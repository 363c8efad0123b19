"""FedProx: local training that does not stray far from the round's global weights."""

from __future__ import annotations

from collections.abc import Mapping

from monai.engines import SupervisedTrainer
from torch import Tensor

from fcl.engines.variant import Terms, Variant
from fcl.losses import ProximalLoss


class FedProx(Variant):
    """Adds :class:`fcl.losses.ProximalLoss` over the trained weights that the sites average (Li et al., MLSys 2020).

    What the normalisation policy keeps at the site has no global counterpart and is free. There is nothing to save:
    every round brings the weights anew.

    Args:
        mu: strength of the pull.

    Raises:
        ValueError: on a negative ``mu``.
    """

    logs = ("divergence",)

    def __init__(self, mu: float = 0.01) -> None:
        self.loss_function = ProximalLoss(mu)
        self._global: dict[str, Tensor] = {}

    def begin_round(self, weights: Mapping[str, Tensor]) -> None:
        self._global = {name: value.detach().clone() for name, value in weights.items()}

    def begin_epoch(self, engine: SupervisedTrainer) -> None:
        if not self._global:
            raise RuntimeError(
                "FedProx pulls towards the global weights of a round, and a training at one site has none: run the job "
                "(python -m flare_app.job run finetune --method fedprox), or leave the overlay out."
            )
        # Here and not in begin_round, which does not know the device; a name that is not averaged has no reference.
        self._global = {
            name: self._global[name].to(parameter)
            for name, parameter in engine.network.named_parameters()
            if parameter.requires_grad and name in self._global
        }

    def __call__(self, engine: SupervisedTrainer) -> Terms:
        parameters = dict(engine.network.named_parameters())
        return self.loss_function((parameters[name] for name in self._global), self._global.values())._asdict()
