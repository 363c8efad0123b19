"""Weights in fewer bits: half precision, or whole numbers with one scale per output channel, and error feedback.

A matrix or kernel travels as float16 (16 bits), or as whole numbers of 8 or 4 bits that its channel's scale turns into
values again (symmetric uniform quantisation), two of 4 bits to a byte. Vectors and scalars pass as they are: biases,
what normalisation layers hold, and counters are few, and their statistics bear no rounding.

Rounding alone would lose what is small in every round for good. With error feedback (Seide et al., Interspeech 2014;
Karimireddy et al., ICML 2019) what was lost in a round is added to what is sent in the next.

FLARE's own filters (``nvflare.app_opt.pt.quantization``) do not serve: they have no error feedback, and import
bitsandbytes, whose 8 and 4 bits need a GPU.

Letters: C slices along the first dimension of a tensor (output channels of a convolution), N entries of one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from flare_app.aggregation import spec_difference, tensor_spec

WEIGHT_BITS = (32, 16, 8, 4)
SCALE = ":scale"  # after the name of a tensor of codes; no tensor of a network has a colon in its name
# Below it lie numbers of fewer digits: a channel so small is one of zeros.
LEAST_SCALE = torch.finfo(torch.float32).tiny

_HALF_MOST = torch.finfo(torch.float16).max
_NIBBLE_ZERO = 8  # code 0 among the 16 values of half a byte


def largest_code(bits: int) -> int:
    """127 of 8 bits, 7 of 4: as far to one side as to the other."""
    return 2 ** (bits - 1) - 1


def encode(tensors: Mapping[str, Tensor], bits: int) -> dict[str, Tensor]:
    """``tensors`` as they travel in ``bits``.

    Returns:
        at 16 bits each matrix as float16; at 8 as int8 of the same shape and at 4 as uint8 (C, half of N rounded up),
        with its float32 scales (C,) under its name and ``:scale``; the rest, and all at 32 bits, as it is. A channel
        that is not finite has a scale or half-precision values that are not finite.
    """
    coded: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if bits == 32 or not _is_coded(tensor):
            coded[name] = tensor
        elif bits == 16:
            values = tensor.float()
            coded[name] = torch.where(values.isfinite(), values.clamp(-_HALF_MOST, _HALF_MOST), values).half()
        else:
            coded[name], coded[name + SCALE] = _codes(tensor, bits)
    return coded


def misfit(coded: Mapping[str, Tensor], like: Mapping[str, Tensor], bits: int) -> str | None:
    """How ``coded`` differs in names, types and shapes from :func:`encode` of tensors such as ``like``, in words."""
    return spec_difference(tensor_spec(encode(like, bits)), tensor_spec(coded))


def decode(coded: Mapping[str, Tensor], like: Mapping[str, Tensor], bits: int) -> dict[str, Tensor]:
    """The values of ``coded``, in the shapes and types of ``like``; the same bits wherever it is done.

    Args:
        coded: of :func:`encode`, without a :func:`misfit`.
        like: tensors of the same names, shapes and types as those that were encoded.
        bits: that they were encoded in.
    """
    values = {}
    for name, tensor in like.items():
        if bits == 32 or not _is_coded(tensor):
            values[name] = coded[name]
        elif bits == 16:
            values[name] = coded[name].to(tensor.dtype)
        else:
            codes_CN = coded[name].flatten(1) if bits == 8 else unpacked(coded[name])[:, : tensor[0].numel()]
            decoded_CN = codes_CN.float() * coded[name + SCALE][:, None]
            values[name] = decoded_CN.reshape(tensor.shape).to(tensor.dtype)
    return values


class ErrorFeedback:
    """Encodes one update after the other; what the encoding lost of one is added to the next.

    Args:
        bits: 32, 16, 8 or 4.
        residual: what was lost before.

    Attributes:
        residual: what has been lost so far of each matrix; empty at 32 bits.
    """

    def __init__(self, bits: int, residual: Mapping[str, Tensor] | None = None) -> None:
        self.bits = bits
        self.residual = dict(residual or {})

    def encode(self, update: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``update`` and what was lost before, as it travels. One that is not finite leaves the residual as it is."""
        due = {name: self._due(name, tensor) for name, tensor in update.items()}
        coded = encode(due, self.bits)
        if self.bits < 32:
            sent = decode(coded, due, self.bits)
            residual = {name: tensor - sent[name] for name, tensor in due.items() if _is_coded(tensor)}
            if all(torch.isfinite(tensor).all() for tensor in residual.values()):
                self.residual = residual
        return coded

    def _due(self, name: str, tensor: Tensor) -> Tensor:
        lost = self.residual.get(name)
        return tensor if lost is None or lost.shape != tensor.shape else tensor + lost


def _is_coded(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.ndim > 1


def _codes(tensor: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    most = largest_code(bits)
    values_CN = tensor.flatten(1).float()
    scale_C = values_CN.abs().amax(dim=1) / most
    scale_C[scale_C < LEAST_SCALE] = 0.0
    # A channel of zeros divides 0 by 0; one that is not finite tells so by its scale.
    codes_CN = (values_CN / scale_C[:, None]).nan_to_num(0.0, 0.0, 0.0).round().clamp(-most, most).to(torch.int8)
    return (codes_CN.reshape(tensor.shape) if bits == 8 else _packed(codes_CN)), scale_C


def _packed(codes_CN: Tensor) -> Tensor:
    """Two codes of 4 bits to a byte, the first in its lower half."""
    nibbles = (functional.pad(codes_CN, (0, codes_CN.shape[1] % 2)) + _NIBBLE_ZERO).to(torch.uint8)
    return nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)


def unpacked(packed: Tensor) -> Tensor:
    """Codes (C, twice as many) of bytes (C, M): int8, from -8, which no encoding gives, to 7."""
    return torch.stack([packed & 15, packed >> 4], dim=2).flatten(1).to(torch.int8) - _NIBBLE_ZERO
