"""Payloads as a site makes them, to be broken by the tests."""

from __future__ import annotations

from typing import Any

import torch
from nvflare.apis.dxo import DataKind
from nvflare.apis.filter import FilterChainType, FilterContextKey, FilterSource
from nvflare.apis.shareable import Shareable
from torch import Tensor
from torch.nn import functional

from fcl.federation import FeaturePrivacy, FeatureSet
from flare_app.compression import encode as encode_weights
from flare_app.egress import EgressFilter, EgressPolicy
from flare_app.egress.declared import Declared
from flare_app.egress.rules import RowsPerRound, examine
from flare_app.exchange import encode
from flare_app.protocol import with_report, with_tensors

# What a site said of itself whose payloads are those of this file.
DECLARED = Declared({"encoder.weight": (2, 3), "encoder.bias": (2,), "head.0.bias": (4,)})


def examined(task: str, payload: Shareable, declared: Declared | None = DECLARED, **policy: Any) -> Any:
    """What is left of ``payload`` under a policy, as the first of its round."""
    settings = EgressPolicy.from_dict(policy)
    return examine(settings, RowsPerRound(settings.max_rows), declared, task, payload)


def unit_rows(rows: int = 8, seed: int = 0) -> Tensor:
    return functional.normalize(torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed)), dim=1)


def features(
    rows: int = 8, volumes: int = 3, epsilon: float | None = None, kind: str = "features", seed: int = 0, **data: Any
) -> Shareable:
    privacy = None if epsilon is None else FeaturePrivacy(epsilon, 1e-5, 1.2, 3)
    shown = FeatureSet(unit_rows(rows, seed), torch.arange(rows) % 4, volumes, privacy)
    payload = encode(shown, kind, 5)
    payload.data.update(data)
    return payload.to_shareable()


def weights(kind: str = DataKind.WEIGHT_DIFF, report: dict[str, Any] | None = None, **tensors: Any) -> Shareable:
    plain = {"encoder.weight": torch.ones(2, 3), "head.0.bias": torch.zeros(4)}
    return with_tensors(kind, {**plain, **tensors}, report)


def coded_weights(bits: int = 8, kind: str = DataKind.WEIGHT_DIFF, **tensors: Any) -> Shareable:
    """An update in fewer bits, all ones in its matrix; ``tensors`` replace some of what travels, None takes one out."""
    coded: dict[str, Any] = encode_weights({"encoder.weight": torch.ones(2, 3), "head.0.bias": torch.zeros(4)}, bits)
    coded.update(tensors)
    return with_tensors(kind, {name: tensor for name, tensor in coded.items() if tensor is not None}, train_report())


def train_report(**changes: Any) -> dict[str, Any]:
    return {
        "count": 24,
        "metrics": {"loss": 1.5},
        "validation": {"mean_dice": 0.8, "dice_lv": 0.9, "count": 2.0},
        "features_received": {"hospital-b": 288},
        "seconds": 1.2,
        "parts": {"exchange": 0.1, "training": 1.0},
        "peak_mib": 300.0,
        "privacy": None,
        **changes,
    }


def introduction(**changes: Any) -> Shareable:
    return with_report(
        {
            "config_hash": "0123456789abcdef",
            "settings": {"config": ["configs/pretrain.json"], "overrides": {"batch_size": 8, "x": "$@y"}, "seed": 0},
            "spec": {
                "encoder.weight": "float32 [2, 3]",
                "encoder.bias": "float32 [2]",
                "head.0.bias": "float32 [4]",
            },
            "shares_features": True,
            "resumed_round": 0,
            "description": {"slices": 24, "volumes": 2},
            "card": {"channels": [4, 8], "labels": {"lv": 1}, "data_license": "CC BY-NC-SA 4.0"},
            **changes,
        }
    )


def with_headers(payload: Shareable, **headers: Any) -> Shareable:
    for name, value in headers.items():
        payload.set_header(name, value)
    return payload


def with_meta(payload: Shareable, **meta: Any) -> Shareable:
    payload["DXO"]["meta"].update(meta)
    return payload


def egress_filter(policy: dict[str, Any] | None = None, source: str = FilterSource.SITE) -> EgressFilter:
    made = EgressFilter(policy)
    made.set_prop(FilterContextKey.SOURCE, source)
    made.set_prop(FilterContextKey.CHAIN_TYPE, FilterChainType.TASK_RESULT_CHAIN)
    return made
