from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from torch import Tensor

from flare_app.aggregation import tensor_spec
from flare_app.encryption.average import EncryptedAveraging
from flare_app.encryption.context import EncryptionError, is_encrypted, read_vectors, site_context, to_bytes
from flare_app.encryption.filters import WeightDecryptor, WeightEncryptor
from flare_app.protocol import refusal, report_of, tensors_of, with_report, with_tensors
from tests.flare_app.loopback import FakeEngine

tenseal = pytest.importorskip("tenseal", reason="tenseal is not installed: pip install 'fcl[he]'")

WEIGHTS = {"encoder.weight": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), "s": torch.tensor(0.25)}
SPEC = tensor_spec(WEIGHTS)
REPORT = {"count": 5, "metrics": {"loss": 1.0}}


@pytest.fixture
def fl_ctx(startup: Path, tmp_path: Path) -> FLContext:
    context = FakeEngine(tmp_path).context("site-1")
    context.set_peer_context(FakeEngine(tmp_path).context("server"))
    return context


def _update(**tensors: Tensor) -> Shareable:
    return with_tensors(DataKind.WEIGHT_DIFF, {**WEIGHTS, **tensors}, REPORT)


def _initial(fl_ctx: FLContext) -> dict[str, Tensor]:
    reply = WeightEncryptor().process(with_tensors(DataKind.WEIGHTS, WEIGHTS), fl_ctx)
    return tensors_of(reply, DataKind.WEIGHTS)


def _task(weights: dict[str, Tensor]) -> Shareable:
    return EncryptedAveraging().payload(weights, SPEC)


def test_update_is_weighed_before_it_is_encrypted(fl_ctx: FLContext) -> None:
    reply = WeightEncryptor().process(_update(), fl_ctx)
    encrypted = tensors_of(reply, DataKind.WEIGHT_DIFF)
    assert all(is_encrypted(tensor) for tensor in encrypted.values())
    vectors = read_vectors(site_context(fl_ctx), encrypted, SPEC)
    for name, vector in vectors.items():
        assert vector.decrypt() == pytest.approx((5 * WEIGHTS[name]).flatten().tolist(), abs=1e-6)
    assert report_of(reply) == REPORT  # in clear, the count among it


def test_global_weights_come_back_in_shape(fl_ctx: FLContext) -> None:
    task = WeightDecryptor().process(_task(_initial(fl_ctx)), fl_ctx)
    weights = tensors_of(task, DataKind.WEIGHTS)
    assert tensor_spec(weights) == SPEC
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, WEIGHTS[name], rtol=0, atol=1e-7)


def test_equal_weights_give_other_bytes_each_time(fl_ctx: FLContext) -> None:
    first, second = _initial(fl_ctx), _initial(fl_ctx)
    assert not any(torch.equal(first[name], second[name]) for name in SPEC)


@pytest.mark.parametrize(
    ("limits", "tensors", "problem"),
    [
        ({}, {"s": torch.tensor(float("nan"))}, "NaN or infinite values in s"),
        ({}, {"s": torch.tensor(1e6)}, "the norm of its update is 1e.06, above the limit"),
        ({"max_norm_ratio": None, "max_update_norm": 0.1}, {}, "above the limit of 0.1"),
        ({"max_norm_ratio": None}, {"s": torch.tensor(1e6)}, "a value of 1e.06, beyond the 131072"),
    ],
)
def test_what_the_server_cannot_check_stays_at_the_site(
    fl_ctx: FLContext, limits: dict[str, Any], tensors: dict[str, Tensor], problem: str
) -> None:
    WeightDecryptor().process(_task(_initial(fl_ctx)), fl_ctx)  # the norm is compared with that of these
    with pytest.raises(EncryptionError, match=problem):
        WeightEncryptor(**limits).process(_update(**tensors), fl_ctx)
    _assert_out(fl_ctx)


def _assert_out(fl_ctx: FLContext) -> None:
    """Filters made anew, too, let nothing more in or out in later tasks, but reasons."""
    later = fl_ctx.get_engine().context("site-1")
    task, reply = _task(WEIGHTS), refusal("no data")
    for filtered in (
        lambda: WeightEncryptor().process(_update(), later),
        lambda: WeightDecryptor().process(task, later),
        lambda: WeightDecryptor().process(with_report({}), later),
    ):
        with pytest.raises(EncryptionError, match="refused weights for their values earlier in this job"):
            filtered()
    assert WeightEncryptor().process(reply, later) is reply


def test_global_weights_that_overflow_are_refused_once(fl_ctx: FLContext) -> None:
    """The server adds to a value until it overflows here: by that it would find one value after the other."""
    added = {**WEIGHTS, "s": torch.tensor(2.0**17 + 1)}
    context = site_context(fl_ctx)
    encrypted = {
        name: to_bytes(tenseal.ckks_vector(context, tensor.flatten().tolist())) for name, tensor in added.items()
    }
    with pytest.raises(EncryptionError, match=r"hold a value of 1\.311e\+05.*This site takes part no more"):
        WeightDecryptor().process(_task(encrypted), fl_ctx)
    _assert_out(fl_ctx)


def test_a_form_that_is_none_tells_nothing_of_values_and_ends_nothing(fl_ctx: FLContext) -> None:
    initial = _initial(fl_ctx)
    with pytest.raises(EncryptionError):
        WeightDecryptor().process(_task(WEIGHTS), fl_ctx)
    assert tensor_spec(tensors_of(WeightDecryptor().process(_task(initial), fl_ctx), DataKind.WEIGHTS)) == SPEC


def test_reasons_pass_and_other_data_does_not(fl_ctx: FLContext) -> None:
    reply = refusal("no data")
    assert WeightEncryptor().process(reply, fl_ctx) is reply
    with pytest.raises(EncryptionError, match="expected weights to encrypt"):
        WeightEncryptor().process(with_report({"rows": 3}), fl_ctx)


def test_tasks_without_weights_pass(fl_ctx: FLContext) -> None:
    task = with_report({})
    assert WeightDecryptor().process(task, fl_ctx) is task


@pytest.mark.parametrize("kind", [DataKind.WEIGHT_DIFF, DataKind.COLLECTION])
def test_a_change_of_the_weights_in_clear_is_refused(fl_ctx: FLContext, kind: str) -> None:
    with pytest.raises(EncryptionError, match=f"the server sent data of kind {kind} in clear"):
        WeightDecryptor().process(DXO(kind, data=dict(WEIGHTS)).to_shareable(), fl_ctx)


def test_weights_in_clear_or_without_shapes_are_refused(fl_ctx: FLContext) -> None:
    for task in (_task(WEIGHTS), with_tensors(DataKind.WEIGHTS, _initial(fl_ctx))):
        with pytest.raises(EncryptionError, match="the server sent some that are not"):
            WeightDecryptor().process(task, fl_ctx)


def test_weights_under_another_key_are_refused(fl_ctx: FLContext, tmp_path: Path, use: Any) -> None:
    from flare_app.provision.encryption import write_contexts

    foreign = _initial(fl_ctx)
    write_contexts(tmp_path / "other")
    use(tmp_path / "other")
    with pytest.raises(EncryptionError, match="another key than theirs"):
        WeightDecryptor().process(_task(foreign), fl_ctx)
