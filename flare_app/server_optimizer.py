"""Server-side optimizers: the averaged update as the gradient of a step at the server.

FedOpt, Reddi et al., "Adaptive Federated Optimization" (ICLR 2021), algorithm 2; with SGD and momentum it is FedAvgM
(Hsu et al. 2019), with Adam FedAdam. SGD at a rate of 1 without momentum is federated averaging.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# Of those in torch.optim: what makes a step from gradients alone. The others need closures or look at the weights.
OPTIMIZERS = ("SGD", "Adam", "Adagrad", "NAdam", "RAdam", "RMSprop", "Adamax")
_STATISTICS = ("running_mean", "running_var")  # of batch normalisation: no weights, averaged as they are


class ServerOptimizer:
    """Turns the mean update of a round into the change of the global weights.

    Args:
        settings: ``{"name": "Adam", "lr": 0.01, ...}``: one of ``OPTIMIZERS``, and its arguments. Weight decay is
            refused: it belongs to the training at the sites.

    Raises:
        ValueError: on another name, a missing ``lr``, weight decay, or arguments that the optimizer does not take.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        arguments = dict(settings)
        name = arguments.pop("name", None)
        if name not in OPTIMIZERS:
            raise ValueError(f"server_optimizer: name must be one of {', '.join(OPTIMIZERS)}, got {name!r}")
        if "lr" not in arguments:
            raise ValueError('server_optimizer needs its rate, e.g. {"name": "SGD", "lr": 1.0, "momentum": 0.9}')
        if arguments.get("weight_decay"):
            raise ValueError("server_optimizer: weight_decay belongs to the training at the sites, set it in overrides")
        try:
            getattr(torch.optim, name)([torch.zeros(1, requires_grad=True)], **arguments)
        except TypeError as error:
            raise ValueError(f"server_optimizer: {name} does not take these arguments: {error}") from error
        self._name, self._arguments = name, arguments
        self._steps: dict[str, Tensor] = {}
        self._optimizer: torch.optim.Optimizer | None = None
        self._restored: Mapping[str, Tensor] | None = None

    def change(self, mean: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What to add to the global weights.

        Args:
            mean: the mean update by name; integers and running statistics are passed on as they are.
        """
        trained = {name: update for name, update in mean.items() if _is_trained(name, update)}
        self._prepare(trained)
        assert self._optimizer is not None
        with torch.no_grad():
            for name, update in trained.items():
                # The step is made from zero: what it moves is the change itself.
                self._steps[name].zero_()
                self._steps[name].grad = -update.to(torch.float64)
        self._optimizer.step()
        return {name: self._steps[name].detach().clone() if name in trained else mean[name] for name in mean}

    def state_dict(self) -> dict[str, Tensor]:
        """Moments and step counts, as ``<weight>:<what>``."""
        if self._optimizer is None:
            return dict(self._restored or {})
        return {
            f"{name}:{key}": torch.as_tensor(value).clone()
            for name, step in self._steps.items()
            for key, value in self._optimizer.state[step].items()
            if value is not None
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore :meth:`state_dict`; the next step goes on from there."""
        self._restored, self._optimizer, self._steps = dict(state), None, {}

    def _prepare(self, trained: Mapping[str, Tensor]) -> None:
        if self._optimizer is not None:
            return
        self._steps = {
            name: torch.zeros_like(update, dtype=torch.float64, requires_grad=True) for name, update in trained.items()
        }
        optimizer = getattr(torch.optim, self._name)(list(self._steps.values()), **self._arguments)
        for entry, value in (self._restored or {}).items():
            name, _, key = entry.rpartition(":")
            optimizer.state[self._steps[name]][key] = value.clone()
        self._optimizer = optimizer


def _is_trained(name: str, update: Tensor) -> bool:
    return update.is_floating_point() and not name.endswith(_STATISTICS)
