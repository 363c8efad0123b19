"""Which numbers to compute with on a device, and in which memory layout."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

_REQUESTS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

Module = TypeVar("Module", bound=nn.Module)


def _cpu_has_native_bf16() -> bool:
    # torch computes bf16 on any CPU, but without these instructions it converts at every step and is far slower.
    capabilities = torch.cpu.get_capabilities()
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def autocast_dtype(device: torch.device | str, request: str = "auto", scaled: bool = True) -> torch.dtype | None:
    """The dtype to autocast to on ``device``; ``None`` means plain float32.

    Args:
        device: where the network runs.
        request: ``"auto"`` takes bfloat16 where the device computes in it natively (CUDA from Ampere on, CPUs with
            AVX512_BF16, AMX or Arm's BF16), else float32. ``"fp32"``, ``"bf16"``, ``"fp16"`` are taken as they are.
        scaled: false for a training without a gradient scaler, in which small gradients of float16 would become 0.

    Raises:
        ValueError: for another request, or ``"fp16"`` off CUDA or where ``scaled`` is false.
    """
    kind = torch.device(device).type
    if request == "auto":
        if kind == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
        return torch.bfloat16 if kind == "cpu" and _cpu_has_native_bf16() else None
    if request not in _REQUESTS:
        raise ValueError(f'precision must be "auto", {", ".join(map(repr, _REQUESTS))}; got {request!r}')
    if request == "fp16" and not scaled:
        raise ValueError('precision "fp16" needs a gradient scaler, and this training has none: use "bf16" or "fp32"')
    if request == "fp16" and kind != "cuda":
        raise ValueError(f'precision "fp16" needs a CUDA device, this is {kind!r}: use "auto", "bf16" or "fp32"')
    return _REQUESTS[request]


def to_fast_layout(module: Module, spatial_dims: int) -> Module:
    """``module`` in channels-last memory format, in place, where that is the faster one.

    Convolution libraries run it fastest, and inputs may stay as they are: the first convolution converts them. The
    exception is instance normalisation on a CPU, which slows the whole training step of the 2-D U-Net by a fifth in it.

    Args:
        module: network, on the device where it will run.
        spatial_dims: 2 or 3, of its convolutions.

    Raises:
        ValueError: for other dimensions.
    """
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}")
    on_cpu = all(parameter.device.type == "cpu" for parameter in module.parameters())
    if on_cpu and any(isinstance(layer, nn.InstanceNorm2d | nn.InstanceNorm3d) for layer in module.modules()):
        return module
    memory_format = torch.channels_last if spatial_dims == 2 else torch.channels_last_3d
    return module.to(memory_format=memory_format)
