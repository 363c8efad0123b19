"""Codes against loops over their entries, their error bounds, and what error feedback owes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flare_app.compression import LEAST_SCALE, SCALE, ErrorFeedback, decode, encode, largest_code, misfit, unpacked
from flare_app.protocol import tensor_bytes

MOST = {8: 127, 4: 7}


def _tensors(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "kernel": torch.randn(5, 3, 3, 3, generator=generator) * torch.logspace(-4, 2, 5).reshape(5, 1, 1, 1),
        "matrix": torch.randn(3, 7, generator=generator),  # an odd row in half bytes
        "column": torch.randn(4, 1, generator=generator),
        "bias": torch.randn(6, generator=generator),
        "counter": torch.tensor(12345),
    }


@pytest.mark.parametrize("bits", [8, 4])
def test_codes_are_those_of_a_loop_over_channels(bits: int) -> None:
    tensors = _tensors()
    coded = encode(tensors, bits)
    for name in ("kernel", "matrix", "column"):
        for channel, values in enumerate(tensors[name]):
            scale = max(abs(float(value)) for value in values.flatten()) / MOST[bits]
            assert float(coded[name + SCALE][channel]) == pytest.approx(scale, rel=1e-6)
            codes = coded[name][channel].flatten() if bits == 8 else unpacked(coded[name])[channel, : values.numel()]
            expected = [round(float(value) / scale) for value in values.flatten()]
            assert codes.tolist() == expected
    assert {name: t.dtype for name, t in coded.items() if name in ("bias", "counter")} == {
        "bias": torch.float32,
        "counter": torch.int64,
    }
    assert not any(name + SCALE in coded for name in ("bias", "counter"))


@pytest.mark.parametrize("bits", [32, 16, 8, 4])
def test_values_come_back_within_half_a_step_and_vectors_as_they_were(bits: int) -> None:
    tensors = _tensors()
    decoded = decode(encode(tensors, bits), tensors, bits)
    for name, tensor in tensors.items():
        assert (decoded[name].dtype, decoded[name].shape) == (tensor.dtype, tensor.shape)
        if bits == 32 or tensor.ndim < 2:
            assert torch.equal(decoded[name], tensor)
            continue
        largest_C = tensor.flatten(1).abs().amax(dim=1, keepdim=True)
        # Half precision has 11 bits, and none below 2**-24.
        bound = tensor.flatten(1).abs() * 2**-11 + 2**-25 if bits == 16 else largest_C / MOST[bits] / 2
        error = (decoded[name] - tensor).flatten(1).abs()
        assert (error <= bound * (1 + 1e-5)).all()
        assert error.any() or name == "column"  # in codes, channels of one value are exact


def test_bytes_are_those_of_the_bits() -> None:
    tensors = {"kernel": torch.randn(16, 8, 3, 3), "bias": torch.randn(16)}
    entries, whole, scales = 16 * 8 * 9, 16 * 4, 16 * 4
    assert [tensor_bytes(encode(tensors, bits)) for bits in (32, 16, 8, 4)] == [
        entries * 4 + whole,
        entries * 2 + whole,
        entries + scales + whole,
        entries // 2 + scales + whole,
    ]


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-38, 3e38, -1e6])
def test_extreme_values_stay_finite(bits: int, value: float) -> None:
    tensors = {"matrix": torch.full((2, 3), value)}
    decoded = decode(encode(tensors, bits), tensors, bits)["matrix"]
    assert torch.isfinite(decoded).all()
    assert (decoded.abs() <= abs(value) * (1 + 1e-5)).all()
    if value == 0.0:
        assert not decoded.any()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("value", [1e-45, 3e-44, 1e-38, 2e-36, 1.7e-5, 1.0, 3e38])
def test_a_channel_uses_its_largest_code_or_is_one_of_zeros(bits: int, value: float) -> None:
    """The egress filter refuses all else."""
    coded = encode({"w": torch.tensor([[value, -value / 3, 0.0]])}, bits)
    codes = coded["w"] if bits == 8 else unpacked(coded["w"])
    scale = float(coded["w:scale"])
    assert scale == 0 or scale >= LEAST_SCALE
    assert int(codes.abs().max()) == (largest_code(bits) if scale else 0)


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_arrives_so_and_is_not_carried_on(bits: int, value: float) -> None:
    feedback = ErrorFeedback(bits)
    feedback.encode(_tensors())
    before = {name: tensor.clone() for name, tensor in feedback.residual.items()}
    broken = _tensors(1)
    broken["matrix"][1, 2] = value
    decoded = decode(feedback.encode(broken), broken, bits)
    assert not torch.isfinite(decoded["matrix"][1]).all()
    assert torch.isfinite(decoded["matrix"][0]).all()
    assert all(torch.equal(feedback.residual[name], before[name]) for name in before)


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_sent_and_kept_back_are_all_that_there_was(bits: int) -> None:
    """Loop reference: the mean of what arrives comes to the true mean as fast as one rounding error over the rounds."""
    feedback, like = ErrorFeedback(bits), _tensors()
    true, sent = torch.zeros(3, 7), torch.zeros(3, 7)
    errors = []
    for seed in range(40):
        update = _tensors(seed)
        update["matrix"] = update["matrix"] * 1e-3
        update["matrix"][:, 0] = 1.0  # beside which rounding alone loses the rest at 4 bits, in each round
        true += update["matrix"]
        sent += decode(feedback.encode(update), like, bits)["matrix"]
        errors.append(float((sent - true).abs().max()))
        torch.testing.assert_close(sent + feedback.residual["matrix"], true, rtol=0, atol=1e-4)
    step = 1.0 / MOST.get(bits, 2**11)
    assert max(errors) <= step  # it does not grow
    assert set(feedback.residual) == {"kernel", "matrix", "column"}


def test_without_error_feedback_the_small_would_never_arrive() -> None:
    update = {"matrix": torch.tensor([[1.0, 0.05]])}
    feedback = ErrorFeedback(4)
    plain = torch.zeros(1, 2)
    fed = torch.zeros(1, 2)
    for _ in range(100):
        plain += decode(encode(update, 4), update, 4)["matrix"]
        fed += decode(feedback.encode(update), update, 4)["matrix"]
    assert plain[0, 1] == 0.0
    assert float(fed[0, 1]) == pytest.approx(5.0, abs=0.15)


def test_a_residual_of_another_shape_is_left_aside() -> None:
    feedback = ErrorFeedback(8, {"matrix": torch.ones(2, 3)})
    update = {"matrix": torch.zeros(4, 3)}
    assert not decode(feedback.encode(update), update, 8)["matrix"].any()


def test_32_bits_are_the_update_itself() -> None:
    feedback, update = ErrorFeedback(32), _tensors()
    coded = feedback.encode(update)
    assert all(coded[name] is tensor for name, tensor in update.items())
    assert feedback.residual == {}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, None),
        ({"other": torch.zeros(2)}, "unknown other"),
        ({"matrix": torch.zeros(3, 7)}, "matrix is float32 [3, 7], not int8 [3, 7]"),
        ({"matrix": torch.zeros(7, 3, dtype=torch.int8)}, "matrix is int8 [7, 3], not int8 [3, 7]"),
        ({"matrix:scale": torch.zeros(7)}, "matrix:scale is float32 [7], not float32 [3]"),
        ({"bias": torch.zeros(6, dtype=torch.int8)}, "bias is int8 [6], not float32 [6]"),
    ],
)
def test_misfit_names_what_differs(change: dict[str, Tensor], problem: str | None) -> None:
    like = _tensors()
    assert misfit({**encode(like, 8), **change}, like, 8) == problem
