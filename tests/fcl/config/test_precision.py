from __future__ import annotations

import pytest
import torch
from torch import nn

from fcl.config import autocast_dtype, to_fast_layout


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, None),
        ({"avx512_f": True}, None),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"bf16": True}, torch.bfloat16),
        ({}, None),
    ],
)
def test_auto_takes_bf16_on_cpus_that_compute_in_it(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert autocast_dtype("cpu") is expected


@pytest.mark.parametrize(("supported", "expected"), [(True, torch.bfloat16), (False, None)])
def test_auto_takes_bf16_on_gpus_that_compute_in_it(monkeypatch, supported, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    assert autocast_dtype(torch.device("cuda", 0)) is expected


@pytest.mark.parametrize("device", ["cpu", "cuda", torch.device("cuda:1")])
def test_explicit_requests_are_taken_as_they_are(device):
    assert autocast_dtype(device, "fp32") is None
    assert autocast_dtype(device, "bf16") is torch.bfloat16


def test_fp16_only_on_cuda():
    assert autocast_dtype("cuda", "fp16") is torch.float16
    with pytest.raises(ValueError, match="needs a CUDA device, this is 'cpu'"):
        autocast_dtype("cpu", "fp16")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_fp16_only_where_a_scaler_guards_it(device):
    with pytest.raises(ValueError, match='needs a gradient scaler, and this training has none: use "bf16"'):
        autocast_dtype(device, "fp16", scaled=False)
    assert autocast_dtype(device, "bf16", scaled=False) is torch.bfloat16


def test_unknown_request_is_refused():
    with pytest.raises(ValueError, match="got 'half'"):
        autocast_dtype("cpu", "half")


@pytest.mark.parametrize(
    ("dims", "conv", "layout"),
    [(2, nn.Conv2d, torch.channels_last), (3, nn.Conv3d, torch.channels_last_3d)],
)
def test_fast_layout_changes_strides_not_values(dims, conv, layout):
    torch.manual_seed(0)
    module = conv(4, 8, 3)
    before = module.weight.detach().clone()
    image = torch.rand(2, 4, *[6] * dims)
    expected = module(image)
    assert to_fast_layout(module, dims) is module
    assert module.weight.is_contiguous(memory_format=layout)
    assert torch.equal(module.weight, before)
    torch.testing.assert_close(module(image), expected)


def test_fast_layout_refuses_other_dimensions():
    with pytest.raises(ValueError, match="spatial_dims must be 2 or 3, got 4"):
        to_fast_layout(nn.Identity(), 4)


def test_instance_normalisation_on_the_cpu_keeps_its_layout():
    module = nn.Sequential(nn.Conv2d(4, 4, 3), nn.InstanceNorm2d(4))
    assert to_fast_layout(module, 2)[0].weight.is_contiguous()
