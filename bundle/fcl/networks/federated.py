"""Which tensors of a network the sites average, and which stay at home."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

NormStats = Literal["average", "local", "local_layers"]

_STATISTICS = ("running_mean", "running_var")
# A counter: averaging it as a weight would be wrong under either policy.
_COUNTER = "num_batches_tracked"
_NORMALISATIONS = (_NormBase, nn.GroupNorm, nn.LayerNorm)


def federated_names(module: nn.Module, norm_stats: NormStats) -> list[str]:
    """Names of the state's tensors that leave the site.

    Args:
        module: the network.
        norm_stats: ``"average"`` includes the running statistics of batch normalisation, ``"local"`` keeps them at the
            site, ``"local_layers"`` keeps all that a normalisation layer has, its scale and shift as well (FedBN, Li et
            al., ICLR 2021).

    Raises:
        ValueError: on another policy.
    """
    if norm_stats not in get_args(NormStats):
        raise ValueError(f"norm_stats must be one of {', '.join(get_args(NormStats))}, got {norm_stats!r}.")
    withheld = (_COUNTER,) if norm_stats == "average" else (_COUNTER, *_STATISTICS)
    kept = _normalisations(module) if norm_stats == "local_layers" else set()
    split = {name: name.rpartition(".") for name in module.state_dict()}
    return [name for name, (layer, _, last) in split.items() if last not in withheld and layer not in kept]


def _normalisations(module: nn.Module) -> set[str]:
    return {name for name, layer in module.named_modules() if isinstance(layer, _NORMALISATIONS)}


def federated_weights(module: nn.Module, norm_stats: NormStats = "average") -> dict[str, Tensor]:
    """Detached, contiguous CPU copies of the tensors that the sites average."""
    state = module.state_dict()
    return {
        name: state[name].detach().to("cpu", copy=True).contiguous(memory_format=torch.contiguous_format)
        for name in federated_names(module, norm_stats)
    }


def load_federated_weights(module: nn.Module, weights: Mapping[str, Tensor], norm_stats: NormStats = "average") -> None:
    """Copy the averaged tensors into ``module``; what the policy keeps local stays untouched.

    Raises:
        ValueError: when names or shapes differ from what this network federates.
    """
    state = module.state_dict()
    expected = federated_names(module, norm_stats)
    problems = [f"missing {name}" for name in expected if name not in weights]
    problems += [f"unexpected {name}" for name in weights if name not in set(expected)]
    problems += [
        f"{name}: expected shape {tuple(state[name].shape)}, got {tuple(weights[name].shape)}"
        for name in expected
        if name in weights and weights[name].shape != state[name].shape
    ]
    if problems:
        raise ValueError(
            f"the global weights do not fit this network, {len(problems)} differences: {'; '.join(problems[:5])}. "
            "All sites and the server must run the same network configuration."
        )
    module.load_state_dict({**state, **{name: weights[name] for name in expected}})
