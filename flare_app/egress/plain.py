"""What all rules use: the error that keeps a payload at the site, and the plainest of checks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class EgressError(Exception):
    """A payload that must not leave. Its text names the rule alone, since FLARE logs it.

    Args:
        rule: short name.
        detail: what broke it; for the site's own log and manifest.
        stops: whether the site must send nothing any more in this run. A training that diverged has no say in that.
    """

    def __init__(self, rule: str, detail: str, stops: bool = True) -> None:
        super().__init__(f"egress policy: the payload breaks the rule {rule!r} and stays at the site")
        self.rule, self.detail, self.stops = rule, detail, stops


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) < 2**63


def check_plain(what: str, name: str, tensor: Any) -> None:
    """Refuse all but plain tensors: MONAI's MetaTensor, a subclass, carries the name of the file it was read from.

    Raises:
        EgressError: by the rule ``<what>.tensors``.
    """
    if type(tensor) is not Tensor or tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise EgressError(f"{what}.tensors", f"{name} is a {type(tensor).__name__}, not a plain tensor on the CPU")


def shown(names: Any) -> str:
    """A few names, cut short: they may be of any kind and length."""
    texts = sorted(repr(str(name)[:40]) for name in names) if isinstance(names, list | set | dict) else ["of no name"]
    return ", ".join(texts[:3]) + (f" and {len(texts) - 3} more" if len(texts) > 3 else "")
