"""The words that server and sites use between them: task names, headers and the shape of replies."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.app_common.app_constant import AppConstants
from torch import Tensor

Component = TypeVar("Component")


def exported_in_full(component: type[Component]) -> type[Component]:
    """Have FLARE's export name all arguments of a component: it would leave out those that have their default value,
    and whoever reads a job shall see all of it."""
    component._always_serialize_args = tuple(inspect.signature(component).parameters)  # type: ignore[attr-defined]
    return component


class TaskName:
    """What a site can be asked to do; ``ALL`` are the tasks of a job that trains."""

    INITIALIZE = "initialize"
    INITIAL_WEIGHTS = "initial_weights"
    SHARE = "share"
    TRAIN = "train"
    VALIDATE = "validate"
    GET_FEATURES = "get_features"  # asked by a peer, never by the server

    STATISTICS = "statistics"  # of a job of its own

    ALL = (INITIALIZE, INITIAL_WEIGHTS, SHARE, TRAIN, VALIDATE, GET_FEATURES)


class Header:
    """Headers of tasks and replies; they stay in place when a filter rewrites the payload."""

    ROUND = AppConstants.CURRENT_ROUND
    TOTAL_ROUNDS = AppConstants.NUM_ROUNDS
    SITES = "fcl_sites"
    EXCHANGE = "fcl_exchange"
    ROUTE = "fcl_route"
    PEERS = "fcl_peers"
    PULL_ROWS = "fcl_pull_rows"
    OVERLAP = "fcl_overlap"
    FEATURE_BITS = "fcl_feature_bits"
    WEIGHT_BITS = "fcl_weight_bits"
    RESUME_ROUND = "fcl_resume_round"
    VALIDATE = "fcl_validate"
    ENCRYPTION = "fcl_encryption"
    CARD = "fcl_card"  # of pre-trained weights the settings of their network; of a model to keep, all
    KEEP = "fcl_keep"  # "last" or "best": the site shall keep these weights as a model of its own
    REASON = "fcl_reason"


class SiteError(Exception):
    """A failure whose message may leave the site: it names no path, file or patient."""


REPORT = "report"  # key of the plain part beside tensors

# Absolute paths, paths of other systems, and names of files that hold images or tables of patients.
_PATH = re.compile(
    r"(?:^|[^\w.])(?:~?/+|[A-Za-z]:[\\/])[\w.]|\\|\.(?:nii|dcm|nrrd|mha|mhd|mgz|h5|hdf5|npy|npz|csv|xlsx?)\b",
    re.IGNORECASE,
)


def refusal(reason: str) -> Shareable:
    """The reply of a site that could not do a task; ``reason`` must be fit to leave the site."""
    return make_reply(ReturnCode.EXECUTION_EXCEPTION, headers={Header.REASON: reason})


_LONGEST_REASON = 500  # letters


def in_one_line(reason: str) -> str:
    """A reason as it may be logged: nothing that a site wrote begins a line of its own there, or fills the log.

    What no one can see is left out: a terminal that shows the log would obey it, or show letters in another order.
    """
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in reason).split())
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}…"


def reason_of(reply: Shareable) -> str:
    """Why a reply is no result."""
    code = reply.get_return_code()
    if code == ReturnCode.TASK_RESULT_FILTER_ERROR:
        return f"a filter at the site let nothing out ({code}), see the log of that site"
    if code == ReturnCode.TASK_DATA_FILTER_ERROR:
        return f"a filter at the site did not take what the server sent ({code}), see the log of that site"
    return str(reply.get_header(Header.REASON) or code)


def path_like(text: str) -> bool:
    """Whether a text seems to name a file or folder of a machine; paths within the bundle do not."""
    return _PATH.search(text) is not None


def without_paths(value: Any) -> Any:
    """Plain JSON with ``(path)`` in place of every text that looks like one."""
    if isinstance(value, Mapping):
        return {without_paths(key): without_paths(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(entry) for entry in value]
    return "(path)" if isinstance(value, str) and path_like(value) else value


def with_tensors(kind: str, tensors: Mapping[str, Tensor], report: Mapping[str, Any] | None = None) -> Shareable:
    """A payload of tensors, with plain numbers and strings beside it."""
    return DXO(kind, data=dict(tensors), meta={REPORT: dict(report or {})}).to_shareable()


def with_report(report: Mapping[str, Any]) -> Shareable:
    """A payload of plain numbers and strings alone."""
    return DXO(DataKind.METRICS, data=dict(report)).to_shareable()


def report_of(payload: Shareable) -> dict[str, Any]:
    """The plain part of a payload."""
    dxo = from_shareable(payload)
    return dict(dxo.data) if dxo.data_kind == DataKind.METRICS else dict(dxo.get_meta_prop(REPORT, {}))


def tensors_of(payload: Shareable, kind: str) -> dict[str, Tensor]:
    """The tensors of a payload.

    Raises:
        ValueError: when the payload is of another kind, or holds something else than tensors.
    """
    dxo = from_shareable(payload)
    if dxo.data_kind != kind:
        raise ValueError(f"expected a payload of kind {kind}, got {dxo.data_kind}")
    strangers = [name for name, value in dxo.data.items() if not isinstance(value, Tensor)]
    if strangers:
        raise ValueError(f"expected tensors, got a {type(dxo.data[strangers[0]]).__name__} as {strangers[0]}")
    return dict(dxo.data)


def tensor_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the tensors as they travel, without the envelope."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
