from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flare_app.aggregation import tensor_spec
from flare_app.averaging import PlainAveraging
from flare_app.encryption.average import EncryptedAverage
from flare_app.encryption.context import read_vectors, restored, server_context, site_context, to_bytes
from tests.flare_app.loopback import FakeEngine

tenseal = pytest.importorskip("tenseal", reason="tenseal is not installed: pip install 'fcl[he]'")

SIZES = {"encoder.weight": (5, 7, 3), "encoder.bias": (5,), "head.weight": (17, 300), "scale": ()}


def _tensors(seed: int, size: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: size * torch.randn(shape, generator=generator) for name, shape in SIZES.items()}


WEIGHTS, SPEC = _tensors(0), tensor_spec(_tensors(0))
UPDATES = {"a": (_tensors(1, 0.01), 7), "b": (_tensors(2, 0.01), 191), "c": (_tensors(3, 0.01), 40)}


class Sites:
    """What sites do with their key."""

    def __init__(self, root: Path) -> None:
        fl_ctx = FakeEngine(root).context("x")
        self.context, self.server = site_context(fl_ctx), server_context(fl_ctx)

    def encrypt(self, weights: dict[str, Tensor], count: int = 1) -> dict[str, Tensor]:
        return {
            name: to_bytes(tenseal.ckks_vector(self.context, (count * tensor.double()).flatten().tolist()))
            for name, tensor in weights.items()
        }

    def decrypt(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        vectors = read_vectors(self.context, weights, SPEC)
        return {name: restored(vector.decrypt(), SPEC[name]) for name, vector in vectors.items()}

    def average(self, weights: dict[str, Tensor] | None = None, sites: str = "abc") -> EncryptedAverage:
        return EncryptedAverage(self.server, self.encrypt(WEIGHTS) if weights is None else weights, SPEC, sites)


@pytest.fixture
def sites(startup: Path, tmp_path: Path) -> Sites:
    return Sites(tmp_path)


def _plain(weights: dict[str, Tensor], present: str) -> dict[str, Tensor]:
    average = PlainAveraging().begin(weights, SPEC, UPDATES)
    assert [average.take(site, *UPDATES[site]) for site in present] == [None] * len(present)
    return average.weights()


@pytest.mark.parametrize("present", ["a", "ab", "cab"])
def test_differs_from_the_plain_average_by_rounding_alone(sites: Sites, present: str) -> None:
    average = sites.average()
    for site in present:
        update, count = UPDATES[site]
        assert average.take(site, sites.encrypt(update, count), count) is None
    assert average.count == sum(UPDATES[site][1] for site in present)
    got, expected = sites.decrypt(average.weights()), _plain(WEIGHTS, present)
    assert tensor_spec(got) == SPEC
    for name in SPEC:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-6, atol=1e-7)


def test_rounding_does_not_add_up_over_rounds(sites: Sites) -> None:
    encrypted, plain = sites.encrypt(WEIGHTS), WEIGHTS
    for _ in range(8):
        average = sites.average(encrypted)
        for site, (update, count) in UPDATES.items():
            average.take(site, sites.encrypt(update, count), count)
        encrypted, plain = average.weights(), _plain(plain, "abc")
    for name, tensor in sites.decrypt(encrypted).items():
        torch.testing.assert_close(tensor, plain[name], rtol=1e-6, atol=1e-6)


def test_bits_do_not_depend_on_the_order_of_arrival(sites: Sites) -> None:
    weights = sites.encrypt(WEIGHTS)
    sent = {site: (sites.encrypt(update, count), count) for site, (update, count) in UPDATES.items()}
    results = []
    for order in permutations(sent):
        average = sites.average(weights)
        for site in order:
            average.take(site, *sent[site])
        results.append(sites.decrypt(average.weights()))
    assert all(torch.equal(result[name], results[0][name]) for result in results for name in SPEC)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"scale": None}, "missing ['scale']"),
        ({"more": [1.0]}, "unknown ['more']"),
        ({"encoder.bias": [1.0] * 4}, "encoder.bias holds 4 values, not 5"),
        ({"encoder.bias": torch.zeros(5)}, "encoder.bias is not encrypted"),
    ],
)
def test_update_that_does_not_fit_leaves_no_trace(sites: Sites, change: dict[str, Any], problem: str) -> None:
    update: dict[str, Tensor] = sites.encrypt(UPDATES["a"][0], 7)
    for name, values in change.items():
        update.pop(name, None)
        if isinstance(values, list):
            values = to_bytes(tenseal.ckks_vector(sites.context, values))
        if values is not None:
            update[name] = values
    average = sites.average()
    assert problem in str(average.take("a", update, 7))
    assert average.count == 0
    with pytest.raises(ValueError, match="nothing to average"):
        average.weights()
    average = sites.average()
    average.take("a", update, 7)
    assert average.take("a", sites.encrypt(UPDATES["a"][0], 7), 7) is None  # it may answer again


def test_ciphertext_that_was_computed_with_is_refused(sites: Sites) -> None:
    update = sites.encrypt(UPDATES["a"][0], 7)
    used = read_vectors(sites.context, update, SPEC)["scale"] * 2.0
    told = sites.average().take("a", {**update, "scale": to_bytes(used)}, 7)
    assert told == "its ciphertexts were computed with, or have another scale: scale"


@pytest.mark.parametrize("count", [0, -1, 2.5, True, None, "many"])
def test_count_that_weighs_nothing_is_refused(sites: Sites, count: object) -> None:
    assert sites.average().take("a", sites.encrypt(UPDATES["a"][0]), count) == f"it reports {count!r} slices"


def test_unknown_sites_and_second_answers_are_errors(sites: Sites) -> None:
    average, update = sites.average(sites="a"), sites.encrypt(UPDATES["a"][0])
    average.take("a", update, 1)
    for site in ("a", "z"):
        with pytest.raises(KeyError, match="is not expected or has answered before"):
            average.take(site, update, 1)
