"""A site's side: filters of the job that encrypt what the server shall average, and decrypt what it sends."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.filter import Filter
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from torch import Tensor

from flare_app.aggregation import norm_limit, tensor_spec, update_problem
from flare_app.encryption.context import LARGEST, EncryptionError, is_encrypted, restored, to_bytes
from flare_app.protocol import REPORT, TaskName, report_of, tensors_of

if TYPE_CHECKING:
    from nvflare.app_opt.he.model_decryptor import HEModelDecryptor
    from nvflare.app_opt.he.model_encryptor import HEModelEncryptor

ENCRYPTED_TASKS = (TaskName.INITIAL_WEIGHTS, TaskName.TRAIN)  # replies of sites that hold weights
DECRYPTED_TASKS = (TaskName.SHARE, TaskName.TRAIN, TaskName.VALIDATE)  # tasks that may bring weights

# Private, so never sent; sticky, so that the reply to a later task finds it.
_GLOBAL = "fcl_global_weights"
_STOPPED = "fcl_encryption_stopped"


class WeightEncryptor(Filter):
    """Checks weights, weighs them by the site's count and encrypts them with FLARE's ``HEModelEncryptor``.

    It comes last, after the egress filters of site and job, which read what leaves. The server can check no values:
    what it rejects of plain updates (NaN, an implausible norm) stays at the site here. Initial weights are encrypted
    as well.

    That a site refuses tells the server something of values that it cannot read, and by what it adds to ciphertexts it
    could ask for more of it in every task. So the first such refusal, here or of the decryptor, ends the site's part.

    Args:
        max_norm_ratio, max_update_norm: as the controller has them for plain updates.
    """

    _always_serialize_args = ("max_norm_ratio", "max_update_norm")

    def __init__(self, max_norm_ratio: float | None = 3.0, max_update_norm: float | None = None) -> None:
        super().__init__()
        self.max_norm_ratio = max_norm_ratio
        self.max_update_norm = max_update_norm
        self._flare: HEModelEncryptor | None = None

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """The reply with ciphertexts in place of weights.

        Raises:
            EncryptionError: when it must not leave; FLARE sends an error without data in its place.
        """
        if shareable.get_return_code() != ReturnCode.OK:
            return shareable
        _require_part(fl_ctx)
        dxo = from_shareable(shareable)
        if dxo.data_kind not in (DataKind.WEIGHTS, DataKind.WEIGHT_DIFF):
            raise EncryptionError(f"expected weights to encrypt, got data of kind {dxo.data_kind}")
        weights = tensors_of(shareable, dxo.data_kind)
        count = report_of(shareable)["count"] if dxo.data_kind == DataKind.WEIGHT_DIFF else 1
        problem = self._problem(weights, count, fl_ctx)
        if problem:
            raise _last_refusal(f"not sent: {problem}", fl_ctx)
        flare = self._ready(fl_ctx)
        flare.n_iter = count
        vectors, _ = flare.encryption({name: tensor.double().numpy() for name, tensor in weights.items()}, fl_ctx)
        encrypted = {name: to_bytes(vector) for name, vector in vectors.items()}
        return DXO(dxo.data_kind, data=encrypted, meta=dxo.meta).update_shareable(shareable)

    def _problem(self, weights: dict[str, Tensor], count: object, fl_ctx: FLContext) -> str | None:
        before = fl_ctx.get_prop(_GLOBAL)
        limit = None if before is None else norm_limit(before, self.max_norm_ratio, self.max_update_norm)
        return update_problem(weights, count, tensor_spec(weights), limit) or _overflow(weights)

    def _ready(self, fl_ctx: FLContext) -> HEModelEncryptor:
        if self._flare is None:
            from nvflare.app_opt.he.model_encryptor import HEModelEncryptor

            self._flare = HEModelEncryptor(weigh_by_local_iter=True)
            self._flare.logger.setLevel(logging.WARNING)  # two lines for each tensor
            self._flare.handle_event(EventType.START_RUN, fl_ctx)
        return self._flare


class WeightDecryptor(Filter):
    """Decrypts global weights with FLARE's ``HEModelDecryptor`` and gives them their shapes and dtypes again."""

    def __init__(self) -> None:
        super().__init__()
        self._flare: HEModelDecryptor | None = None

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """The task with readable weights; one that brings none as it is.

        Raises:
            EncryptionError: when the weights came in clear, or do not fit what came with them.
        """
        _require_part(fl_ctx)
        dxo = from_shareable(shareable)
        if dxo.data_kind == DataKind.METRICS:
            return shareable
        if dxo.data_kind != DataKind.WEIGHTS:  # their change, which nobody encrypts
            raise EncryptionError(
                f"the job encrypts weights, yet the server sent data of kind {dxo.data_kind} in clear"
            )
        encrypted, spec = tensors_of(shareable, DataKind.WEIGHTS), report_of(shareable).get("spec", {})
        if not all(is_encrypted(tensor) for tensor in encrypted.values()) or spec.keys() != encrypted.keys():
            raise EncryptionError("the job encrypts weights, yet the server sent some that are not, or without shapes")
        flare = self._ready(fl_ctx)
        values = flare.decryption(
            {name: tensor.numpy().tobytes() for name, tensor in encrypted.items()},
            dict.fromkeys(encrypted, True),
            fl_ctx,
        )
        weights = {name: restored(values[name], spec[name]) for name in encrypted}
        problem = _overflow(weights)
        if problem:
            told = f"the global weights hold {problem}; another key than theirs gives such values, too"
            raise _last_refusal(told, fl_ctx)
        fl_ctx.set_prop(_GLOBAL, weights, private=True, sticky=True)
        return DXO(DataKind.WEIGHTS, data=dict(weights), meta={REPORT: {}}).update_shareable(shareable)

    def _ready(self, fl_ctx: FLContext) -> HEModelDecryptor:
        if self._flare is None:
            from nvflare.app_opt.he.model_decryptor import HEModelDecryptor

            self._flare = HEModelDecryptor()
            self._flare.logger.setLevel(logging.WARNING)
            self._flare.handle_event(EventType.START_RUN, fl_ctx)
        return self._flare


def _last_refusal(problem: str, fl_ctx: FLContext) -> EncryptionError:
    """End the site's part; gives the error to be raised."""
    fl_ctx.set_prop(_STOPPED, True, private=True, sticky=True)
    return EncryptionError(f"{problem}. This site takes part no more: a second refusal would tell the server more")


def _require_part(fl_ctx: FLContext) -> None:
    """Raise EncryptionError when a refusal has ended the site's part."""
    if fl_ctx.get_prop(_STOPPED):
        raise EncryptionError(
            "this site refused weights for their values earlier in this job and takes part no more: find the reason in "
            "its log, and submit another job"
        )


def _overflow(weights: Mapping[str, Tensor]) -> str | None:
    largest = max((float(tensor.abs().max()) for tensor in weights.values() if tensor.numel()), default=0.0)
    fits = largest <= LARGEST  # not so for NaN
    return None if fits else f"a value of {largest:.4g}, beyond the {LARGEST:.0f} that the encryption can hold"
