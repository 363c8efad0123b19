from __future__ import annotations

import pytest
import torch
from nvflare.apis.dxo import DataKind
from nvflare.apis.shareable import Shareable
from torch import Tensor

from flare_app.aggregation import apply_update
from flare_app.compression import decode, encode
from flare_app.protocol import Header, SiteError, tensors_of, with_tensors
from flare_app.weights import Holders, SiteWeights

CHANGE = {"w": torch.ones(2, 2)}


def _full() -> Shareable:
    return with_tensors(DataKind.WEIGHTS, {"w": torch.zeros(2, 2)})


def _sent(holders: Holders, number: int, change: dict[str, Tensor] | None = CHANGE) -> list[tuple[str, list[str]]]:
    payloads = holders.payloads(number, ["a", "b", "c"], change, _full)
    return [(payload["DXO"]["kind"], sites) for payload, sites in payloads]


def test_only_those_who_hold_the_round_before_get_its_change() -> None:
    holders = Holders()
    assert _sent(holders, 0) == [(DataKind.WEIGHTS, ["a", "b", "c"])]
    holders.answered(0, ["a", "b"], ["c"])
    assert _sent(holders, 1) == [(DataKind.WEIGHTS, ["c"]), (DataKind.WEIGHT_DIFF, ["a", "b"])]
    assert _sent(holders, 1, None) == [(DataKind.WEIGHTS, ["a", "b", "c"])]
    holders.answered(1, ["a", "c"], ["b"])
    assert _sent(holders, 2) == [(DataKind.WEIGHTS, ["b"]), (DataKind.WEIGHT_DIFF, ["a", "c"])]
    holders.forget(["c", "unheard of"])
    assert _sent(holders, 2) == [(DataKind.WEIGHTS, ["b", "c"]), (DataKind.WEIGHT_DIFF, ["a"])]
    assert _sent(holders, 3) == [(DataKind.WEIGHTS, ["a", "b", "c"])]  # nobody took part in round 2
    holders.answered(2, ["a", "b", "c"], [])
    assert _sent(holders, 3) == [(DataKind.WEIGHT_DIFF, ["a", "b", "c"])]


def _task(kind: str, tensors: dict[str, Tensor], number: int) -> Shareable:
    task = with_tensors(kind, tensors)
    task.set_header(Header.ROUND, number)
    return task


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_site_applies_changes_to_what_it_holds(bits: int) -> None:
    weights = {"w": torch.randn(3, 5), "b": torch.randn(3), "n": torch.tensor(4)}
    site = SiteWeights(bits)
    assert site.take(_task(DataKind.WEIGHTS, weights, 4)) == weights
    for number in (5, 6):
        change = encode({"w": torch.randn(3, 5), "b": torch.randn(3), "n": torch.tensor(2)}, bits)
        weights = apply_update(weights, decode(change, weights, bits))
        taken = site.take(_task(DataKind.WEIGHT_DIFF, change, number))
        assert all(torch.equal(taken[name], weights[name]) for name in weights)
    assert int(site.current["n"]) == 8


@pytest.mark.parametrize(("held", "told"), [(None, "holds none"), (3, "holds those of round 3"), (6, "of round 6")])
def test_change_without_its_base_is_refused(held: int | None, told: str) -> None:
    site, weights = SiteWeights(8), {"w": torch.zeros(2, 2)}
    if held is not None:
        site.take(_task(DataKind.WEIGHTS, weights, held))
    with pytest.raises(SiteError, match=f"of round 5 to those of round 6, and {told}|{told}") as error:
        site.take(_task(DataKind.WEIGHT_DIFF, encode(CHANGE, 8), 6))
    assert "it needs them in full" in str(error.value)
    site.take(_task(DataKind.WEIGHTS, weights, 6))
    site.take(_task(DataKind.WEIGHT_DIFF, encode(CHANGE, 8), 7))
    assert torch.equal(site.current["w"], torch.ones(2, 2))


def test_change_of_other_bits_is_refused() -> None:
    site = SiteWeights(8)
    site.take(_task(DataKind.WEIGHTS, {"w": torch.zeros(2, 2)}, 0))
    with pytest.raises(SiteError, match=r"does not fit those that it holds: missing w:scale; w is float16"):
        site.take(_task(DataKind.WEIGHT_DIFF, encode(CHANGE, 16), 1))


def test_update_is_the_difference_with_what_was_kept_back() -> None:
    site = SiteWeights(4)
    site.take(_task(DataKind.WEIGHTS, {"w": torch.ones(1, 2)}, 0))
    sent = torch.zeros(1, 2)
    for _ in range(20):
        update = site.update({"w": torch.tensor([[2.0, 1.05]])})
        sent += decode(update, site.current, 4)["w"]
    torch.testing.assert_close(sent + site.feedback.residual["w"], torch.tensor([[20.0, 1.0]]), rtol=0, atol=1e-4)
    with pytest.raises(SiteError, match="not those that the round began with"):
        site.update({"v": torch.zeros(1, 2)})


def test_weights_in_full_are_plain_tensors() -> None:
    assert set(tensors_of(_full(), DataKind.WEIGHTS)) == {"w"}
