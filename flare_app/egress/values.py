"""What the tensors of weights may be: values, or codes with their scales (see :mod:`flare_app.compression`).

Codes must be as the encoding makes them, with nothing beside. What values *mean* nobody can tell from them: their last
digits, or tensors far smaller than the rest, could hold anything, and no limit on a norm finds it.

Letters: C slices along the first dimension of a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from flare_app.compression import LEAST_SCALE, SCALE, largest_code, unpacked
from flare_app.egress.plain import EgressError, check_plain

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def squared_norm(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> float:
    """Squared L2 norm of the values that ``tensors`` tell, whose names have been checked.

    Args:
        tensors: by name.
        shapes: of the weights that they are, or are codes of.

    Raises:
        EgressError: when they tell anything else.
    """
    squares = 0.0
    for name, tensor in tensors.items():
        check_plain("weights", name, tensor)
        if name.endswith(SCALE):
            if name.removesuffix(SCALE) not in tensors:
                raise EgressError("weights.names", f"{name} scales no tensor")
        elif name + SCALE in tensors:
            check_plain("weights", name + SCALE, tensors[name + SCALE])
            squares += _of_codes(name, tensor, tensors[name + SCALE], shapes[name])
        elif tensor.dtype not in _DTYPES:
            raise EgressError("weights.dtype", f"{name} is {tensor.dtype}")
        elif tensor.shape != shapes[name]:
            raise EgressError("weights.shape", f"{name} is {tuple(tensor.shape)}, declared is {shapes[name]}")
        else:
            squares += float(tensor.double().square().sum())
    # Sums over NaN and infinity are such themselves.
    if not math.isfinite(squares):
        raise EgressError("weights.finite", "NaN or infinite values: the training diverged", stops=False)
    return squares


def _of_codes(name: str, codes: Tensor, scale_C: Tensor, shape: tuple[int, ...]) -> float:
    eight = codes.dtype == torch.int8
    if not eight and codes.dtype != torch.uint8:
        raise EgressError("weights.dtype", f"{name} has a scale and is {codes.dtype}, not int8 or uint8")
    if scale_C.dtype != torch.float32:
        raise EgressError("weights.dtype", f"the scale of {name} is {scale_C.dtype}, not float32")
    entries = math.prod(shape[1:])
    coded = shape if eight else (*shape[:1], -(-entries // 2))
    if len(shape) < 2 or codes.shape != coded or scale_C.shape != shape[:1]:
        detail = f"{name} is {tuple(codes.shape)}, its scale {tuple(scale_C.shape)}, declared is {shape}"
        raise EgressError("weights.shape", detail)
    if (scale_C < 0).any():
        raise EgressError("weights.scale", f"the scale of {name} is negative")
    if ((scale_C > 0) & (scale_C < LEAST_SCALE)).any():
        raise EgressError("weights.scale", f"the scale of {name} is smaller than any that the encoding gives")
    codes_CN = codes.flatten(1) if eight else unpacked(codes)
    most = largest_code(8 if eight else 4)
    if (codes_CN < -most).any():
        raise EgressError("weights.codes", f"{name} holds a code beyond -{most} to {most}")
    if (codes_CN[:, entries:] != 0).any():
        raise EgressError("weights.codes", f"{name} holds codes after its last value")
    largest_C = codes_CN.to(torch.int16).abs().amax(dim=1)
    if ((scale_C == 0) & (largest_C != 0)).any():  # they would count as nothing, however many there are
        raise EgressError("weights.scale", f"{name} holds codes whose scale is 0")
    if (scale_C.isfinite() & (scale_C > 0) & (largest_C != most)).any():
        raise EgressError("weights.codes", f"the largest code of a channel of {name} is not {most}")
    return float((scale_C.double() * codes_CN.double().square().sum(dim=1).sqrt()).square().sum())
