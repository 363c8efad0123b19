from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from flare_app.aggregation import apply_update, tensor_spec
from flare_app.averaging import CodedAveraging, PlainAveraging, averaging_for
from flare_app.compression import decode, encode

WEIGHTS = {"w": torch.linspace(-1, 1, 15).reshape(3, 5), "b": torch.zeros(3), "n": torch.tensor(7)}
SPEC = tensor_spec(WEIGHTS)


def _update(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "w": torch.randn(3, 5, generator=generator),
        "b": torch.randn(3, generator=generator),
        "n": torch.tensor(seed),
    }


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_new_weights_are_the_old_ones_and_the_decoded_change_bit_for_bit(bits: int) -> None:
    averaging, weights, exact = CodedAveraging(bits), WEIGHTS, WEIGHTS
    for number in range(10):
        coded, plain = averaging.begin(weights, SPEC, "ab"), PlainAveraging().begin(exact, SPEC, "ab")
        for site, count in (("a", 3), ("b", 5)):
            update = encode(_update(2 * number + (site == "b")), bits)
            assert coded.take(site, update, count) is None
            plain.take(site, decode(update, WEIGHTS, bits), count)
        before, weights, exact = weights, coded.weights(), plain.weights()
        assert averaging.change is not None
        sites = apply_update(before, decode(averaging.change, before, bits))
        assert all(torch.equal(sites[name], weights[name]) for name in weights)
        # Error feedback: never further from unrounded averaging than what is kept back.
        torch.testing.assert_close(weights["w"] + averaging.residual["w"], exact["w"], rtol=0, atol=1e-4)
        torch.testing.assert_close(weights["b"], exact["b"], rtol=0, atol=1e-5)
    assert weights["n"].dtype == torch.int64


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"w:scale": torch.tensor([1.0, math.nan, 1.0])}, "NaN or infinite values in w"),
        ({"w:scale": torch.tensor([1.0, math.inf, 1.0])}, "NaN or infinite values in w"),
        ({"b": torch.full((3,), math.nan)}, "NaN or infinite values in b"),
        ({"w:scale": torch.full((3,), 100.0)}, "above the limit of"),
        ({"w": torch.zeros(3, 5)}, "do not fit the global weights: w is float32"),
        ({"w:scale": torch.zeros(2)}, "do not fit the global weights: w:scale is float32"),
        ({"v": torch.zeros(2)}, "do not fit the global weights: unknown v"),
    ],
)
def test_bad_updates_are_refused_as_plain_ones_are(change: dict[str, Tensor], problem: str) -> None:
    average = CodedAveraging(8, max_norm_ratio=3.0).begin(WEIGHTS, SPEC, "a")
    assert problem in str(average.take("a", {**encode(_update(0), 8), **change}, 3))
    assert average.count == 0
    assert average.take("a", encode(_update(0), 8), 3) is None


def test_norm_is_that_of_the_decoded_update() -> None:
    update = {**_update(0), "n": torch.tensor(10**6)}
    average = CodedAveraging(8).begin(WEIGHTS, SPEC, "a")
    expected = float(torch.cat([update["w"].flatten(), update["b"]]).norm())
    assert average.norm(encode(update, 8)) == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encryption": "none", "weight_bits": 7}, "weight_bits must be one of 32, 16, 8, 4, got 7"),
        ({"encryption": "he", "weight_bits": 8}, "encrypted weights cannot travel in 8 bits"),
        ({"encryption": "rot13"}, "encryption must be one of none, he"),
    ],
)
def test_what_cannot_be_averaged_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        averaging_for(**arguments)


def test_32_bits_stay_plain() -> None:
    averaging = averaging_for("none", weight_bits=32)
    assert type(averaging) is PlainAveraging
    assert averaging.change is None


@pytest.mark.parametrize("bits", [32, 8])
def test_server_optimizer_makes_a_step_of_the_mean_and_goes_on_from_its_state(bits: int) -> None:
    settings = {"name": "SGD", "lr": 0.5, "momentum": 0.9}
    whole, resumed = (averaging_for("none", weight_bits=bits, server_optimizer=settings) for _ in range(2))
    weights, velocity = WEIGHTS, torch.zeros_like(WEIGHTS["w"])
    for number in range(6):
        if number == 3:
            resumed.load_state_dict(whole.state_dict())
        rounds = [whole.begin(weights, SPEC, "a"), *([resumed.begin(weights, SPEC, "a")] if number >= 3 else [])]
        update = _update(number)
        for average in rounds:
            assert average.take("a", encode(update, bits), 3) is None
        new = [average.weights() for average in rounds]
        assert all(torch.equal(new[0][name], other[name]) for other in new for name in other)
        if bits == 32:
            velocity = 0.9 * velocity + update["w"]
            torch.testing.assert_close(new[0]["w"], weights["w"] + 0.5 * velocity)
        weights = new[0]
    assert weights["n"].dtype == torch.int64


def test_a_server_that_cannot_read_updates_has_no_optimizer() -> None:
    with pytest.raises(ValueError, match="can only average"):
        averaging_for("he", server_optimizer={"name": "SGD", "lr": 1.0})
