"""The rules: what a payload must be for a policy to let it out. Fails closed: what no rule names is refused.

Letters: M rows, D feature length.
"""

from __future__ import annotations

import hashlib
import math
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from nvflare.apis.dxo import DataKind, MetaKey, from_shareable
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, Shareable
from torch import Tensor

from flare_app.compression import SCALE
from flare_app.egress.declared import Declared
from flare_app.egress.plain import EgressError, check_plain, is_count, shown
from flare_app.egress.policy import FEATURE_KINDS, EgressPolicy
from flare_app.egress.reports import check_privacy, check_report, entry_of, without_few_scores
from flare_app.egress.statistics import cleansed
from flare_app.egress.values import squared_norm
from flare_app.exchange import FEATURES, encode, no_features, rows_in, rows_problem
from flare_app.peers import asker, not_for
from flare_app.protocol import REPORT, Header, TaskName, path_like

_REASON_LENGTH = 1000
_PROPERTY_LENGTH = 256
_RETURN_CODES = {value for name, value in vars(ReturnCode).items() if not name.startswith("_")}
_ROUTES = {TaskName.SHARE: "relay", TaskName.GET_FEATURES: "peer"}  # of features, by the task that they answer
_WEIGHT_TASKS = {DataKind.WEIGHTS: TaskName.INITIAL_WEIGHTS, DataKind.WEIGHT_DIFF: TaskName.TRAIN}
_ROUNDS_REMEMBERED = 8
_SCORES = "validation scores"
_TASKS = (*TaskName.ALL, TaskName.STATISTICS)


@dataclass(frozen=True)
class Release:
    """What a policy lets out.

    Args:
        payload: what may go on.
        entries: what the manifest says of it, one for each tensor, report or reason.
        withheld: why something was taken out; None when nothing was.
        subject: what ``withheld`` is about.
        declared: what the site is held to from now on, when it has just said so.
    """

    payload: Shareable
    entries: list[dict[str, Any]] = field(default_factory=list)
    withheld: str | None = None
    subject: str = "features"
    declared: Declared | None = None


class RowsPerRound:
    """Counts different feature rows let out in a round: one that many peers get, in whatever sample, counts once."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._sent: dict[int, set[bytes]] = {}
        self._lock = threading.Lock()  # peers ask on threads of their own

    def take(self, round_number: int, rows_MD: Tensor) -> None:
        """Count the rows of a payload.

        Raises:
            EgressError: when the round would have more than allowed, or is so long past that nobody counts it any more.
        """
        rows = {hashlib.sha256(row.tobytes()).digest() for row in rows_MD.contiguous().numpy()}
        with self._lock:
            if len(self._sent) >= _ROUNDS_REMEMBERED and round_number < min(self._sent):
                raise EgressError("features.rows", f"round {round_number} is long past")
            sent = self._sent.setdefault(round_number, set())
            total = len(sent | rows)
            if total > self.most:
                raise EgressError(
                    "features.rows", f"{total} rows in round {round_number}, at most {self.most} may leave"
                )
            sent |= rows
            while len(self._sent) > _ROUNDS_REMEMBERED:
                del self._sent[min(self._sent)]


def examine(
    policy: EgressPolicy, rows: RowsPerRound, declared: Declared | None, task: str, payload: Shareable
) -> Release:
    """What of the reply to ``task`` may leave.

    Args:
        policy: of the site or the job.
        rows: that left before.
        declared: what the site said that it has; None before it started.
        task: name of the task.
        payload: the reply.

    Raises:
        EgressError: when it holds anything that the policy does not name.
    """
    if task not in _TASKS:
        raise EgressError("task", f"task {task!r} is none of {', '.join(_TASKS)}")
    reason = _headers(payload)
    if set(payload) - {ReservedHeaderKey.HEADERS, "DXO"}:
        raise EgressError("payload", f"entries {shown(set(payload) - {ReservedHeaderKey.HEADERS, 'DXO'})}")
    if "DXO" not in payload:
        return Release(payload, [{"name": "reason", "text": reason}] if reason else [])
    if payload.get_return_code() != ReturnCode.OK:
        raise EgressError("payload", f"data beside the return code {payload.get_return_code()}")
    if not isinstance(payload["DXO"], dict) or set(payload["DXO"]) != {"kind", "data", "meta"}:
        raise EgressError("payload", "not a FLARE data exchange object")
    kind = payload["DXO"]["kind"]
    if kind == FEATURES:
        return _features(policy, rows, task, payload)
    if kind in _WEIGHT_TASKS:
        return _weights(policy, declared, task, payload)
    if kind == DataKind.METRICS and task == TaskName.STATISTICS:
        return _statistics(policy, payload)
    if kind == DataKind.METRICS:
        return _plain_report(policy, declared, task, payload)
    raise EgressError("payload", f"data of kind {kind!r}")


def examine_context(fl_ctx: FLContext, task: str) -> None:
    """What goes along with every message of a site, and who asked for it.

    FLARE sends the public properties of the context, its own names and short values; a job could add to them. And
    peers may ask for features, the server for all else: FLARE itself would let each ask for any task.

    Raises:
        EgressError: when there is more, or when the asker asks for what is not for it.
    """
    for name, value in fl_ctx.get_all_public_props().items():
        plain = value is None or isinstance(value, bool) or is_count(value)
        short = isinstance(value, str) and len(value) <= _PROPERTY_LENGTH and not path_like(value)
        if not re.fullmatch(r"__\w{1,64}__", name) or not (plain or short):
            raise EgressError("context", f"public property {shown([name])}")
    problem = not_for(task, asker(fl_ctx)) if task in _TASKS else None
    if problem:
        raise EgressError("asker", problem, stops=False)


def examine_request(payload: Shareable) -> None:
    """What this site sends to a peer as a *request* may ask for features of a round, and how many, and nothing else.

    Raises:
        EgressError: when it holds more.
    """
    asked = {ReservedHeaderKey.TASK_NAME: lambda value: value == TaskName.GET_FEATURES, Header.PULL_ROWS: is_count}
    _headers(payload, asked)
    if set(payload) - {ReservedHeaderKey.HEADERS}:
        raise EgressError("request", f"data in a request to a peer: {shown(payload)}")


def _headers(payload: Shareable, further: Mapping[str, Callable[[Any], bool]] | None = None) -> str | None:
    """Check the headers, the usual and some further ones; gives the reason that the reply states, if any."""
    headers = payload.get(ReservedHeaderKey.HEADERS)
    if not isinstance(headers, dict):
        raise EgressError("headers", "no table of headers")
    reason = headers.get(Header.REASON)
    checks: dict[str, Callable[[Any], bool]] = {
        ReservedHeaderKey.RC: lambda value: value in _RETURN_CODES,
        ReservedHeaderKey.CONTENT_TYPE: lambda value: value == "DXO",
        Header.ROUND: is_count,
        Header.REASON: lambda value: isinstance(value, str),
        **(further or {}),
    }
    for name, value in headers.items():
        if name not in checks:
            raise EgressError("headers", f"header {shown([name])}")
        if not checks[name](value):
            raise EgressError("headers", f"value of header {name}")
    if reason is not None and (len(reason) > _REASON_LENGTH or path_like(reason)):
        raise EgressError("headers.reason", "the reason is too long, or it names a path", stops=False)
    return reason


# -- features ----------------------------------------------------------------------------------------------------------


def _features(policy: EgressPolicy, rows: RowsPerRound, task: str, payload: Shareable) -> Release:
    if task not in _ROUTES:
        raise EgressError("features.task", f"features as answer to {task!r}")
    dxo = from_shareable(payload)
    declared = ("kind", "round", "volumes", "privacy")
    meta: dict[str, Any] = {**dict.fromkeys(declared), **_meta(dxo.meta, set(declared))}
    kind, round_number, volumes, privacy = (meta[key] for key in declared)
    if kind not in FEATURE_KINDS or not is_count(round_number) or not is_count(volumes):
        raise EgressError("features.meta", "kind, round and volumes must be told")
    problem = check_privacy(policy, privacy)
    if problem:
        raise EgressError("features.meta", problem)
    withheld = _withheld(policy, kind, _ROUTES[task], volumes, privacy) if rows_in(dxo) else None
    if withheld:
        # Built anew: nothing that came along can stay by mistake.
        emptied = encode(no_features(_length(dxo.data)), kind, round_number).to_shareable()
        emptied[ReservedHeaderKey.HEADERS] = dict(payload[ReservedHeaderKey.HEADERS])
        return Release(emptied, _tensor_entries(from_shareable(emptied).data), withheld)
    _feature_tensors(policy, dxo.data)
    rows.take(round_number, dxo.data["features"])
    cohort = {"kind": kind, "volumes": volumes, **({"epsilon": privacy["epsilon"]} if privacy else {})}
    return Release(payload, [{**entry, **cohort} for entry in _tensor_entries(dxo.data)])


def _length(data: Any) -> int:
    """D, which peers compare with their own even where no row is left."""
    rows = data.get("features") if isinstance(data, dict) else None
    return int(rows.shape[1]) if isinstance(rows, Tensor) and rows.ndim == 2 else 0


def _feature_tensors(policy: EgressPolicy, data: Any) -> None:
    if not isinstance(data, dict) or set(data) != {"features", "partition"}:
        raise EgressError("features.names", f"tensors {shown(data)}")
    for name, tensor in data.items():
        check_plain("features", name, tensor)
    rows_MD, partition_M = data["features"], data["partition"]
    if rows_MD.dtype not in (torch.float16, torch.int8) or partition_M.dtype != torch.int16:
        raise EgressError("features.dtype", f"{rows_MD.dtype} and {partition_M.dtype}, not float16 or int8, and int16")
    if rows_MD.ndim != 2 or rows_MD.shape[1] > policy.max_feature_length or partition_M.shape != rows_MD.shape[:1]:
        raise EgressError("features.shape", f"{tuple(rows_MD.shape)} and {tuple(partition_M.shape)}")
    if len(rows_MD) > policy.max_rows:
        raise EgressError("features.rows", f"{len(rows_MD)} rows, at most {policy.max_rows} may leave")
    if not torch.isfinite(rows_MD).all():
        raise EgressError("features.finite", "NaN or infinite values")
    problem = rows_problem(rows_MD)
    if problem:
        raise EgressError("features.norm", problem)
    if ((partition_M < 0) | (partition_M >= policy.max_partitions)).any():
        raise EgressError("features.partition", f"partitions beyond 0 to {policy.max_partitions - 1}")


def _withheld(
    policy: EgressPolicy, kind: str | None, route: str, volumes: int, privacy: Mapping[str, Any] | None
) -> str | None:
    """Why features that are well formed must stay; None when they may go. ``kind`` None: of any kind."""
    if not policy.features or (kind is not None and kind not in policy.features):
        return f"the policy shows no {kind or 'features'}"
    if route not in policy.routes:
        return f"the policy shows no features by the route {route!r}"
    if volumes < policy.min_volumes:
        return f"a cohort of {volumes} volumes, the least is {policy.min_volumes}"
    if policy.max_epsilon is not None:
        if privacy is None:
            return "no noise that promises anything, and the policy asks for it"
        if privacy["epsilon"] > policy.max_epsilon or privacy["delta"] > policy.max_delta:
            return f"epsilon {privacy['epsilon']:.4g} at delta {privacy['delta']:.4g}"
    return None


# -- weights -----------------------------------------------------------------------------------------------------------


def _weights(policy: EgressPolicy, declared: Declared | None, task: str, payload: Shareable) -> Release:
    dxo = from_shareable(payload)
    if task != _WEIGHT_TASKS[dxo.data_kind]:
        raise EgressError("weights.task", f"{dxo.data_kind} as answer to {task!r}")
    if not isinstance(dxo.data, dict):
        raise EgressError("weights.names", "no table of tensors")
    if declared is None:
        raise EgressError("weights.undeclared", "this site has not said what it trains, and on how much", stops=False)
    strangers = [
        name for name in dxo.data if not isinstance(name, str) or not policy.allows_weight(_weight(name, task))
    ]
    if strangers:
        raise EgressError("weights.names", f"tensors {shown(strangers)}, declared are {', '.join(policy.weights)}")
    others = [name for name in dxo.data if _weight(name, task) not in declared.shapes]
    if others:
        raise EgressError("weights.names", f"the network that this site declared has no {shown(others)}")
    squares = squared_norm(dxo.data, declared.shapes)
    if task == TaskName.TRAIN and policy.max_norm is not None and squares > policy.max_norm**2:
        detail = f"the norm of the update is {math.sqrt(squares):.4g}, above {policy.max_norm:.4g}"
        raise EgressError("weights.norm", detail, stops=False)
    report = _meta(dxo.meta, {REPORT}).get(REPORT, {})
    entries = _tensor_entries(dxo.data)
    if report:
        check_report(policy, task, report)
    problem = _not_private(policy, report) if task == TaskName.TRAIN else None
    if problem:
        raise EgressError("weights.privacy", problem, stops=False)
    if not report:
        return Release(payload, entries)
    report, withheld = without_few_scores(policy, report)
    if withheld:
        payload["DXO"] = {**payload["DXO"], "meta": {**dxo.meta, REPORT: report}}
    return Release(payload, [*entries, entry_of(report)], withheld, _SCORES)


def _not_private(policy: EgressPolicy, report: Mapping[str, Any]) -> str | None:
    """Why an update with a report that has been checked must stay; None when it may go."""
    if policy.max_weight_epsilon is None:
        return None
    metrics = report.get("metrics", {})
    epsilon, delta = metrics.get("dp_epsilon"), metrics.get("dp_delta")
    if epsilon is None or delta is None:
        return "trained without privacy, and the policy asks for it: fine-tune with configs/privacy/dp_sgd.json"
    fits = epsilon <= policy.max_weight_epsilon and delta <= policy.max_delta
    return None if fits else f"epsilon {epsilon:.4g} at delta {delta:.4g}"


def _weight(name: str, task: str) -> str:
    """The weight that a tensor is part of: of an update its codes, or their scales."""
    return name.removesuffix(SCALE) if task == TaskName.TRAIN else name


# -- reports ----------------------------------------------------------------------------------------------------------


def _plain_report(policy: EgressPolicy, declared: Declared | None, task: str, payload: Shareable) -> Release:
    dxo = from_shareable(payload)
    _meta(dxo.meta, set())
    check_report(policy, task, dxo.data)
    entry = entry_of(dxo.data)
    if task == TaskName.INITIALIZE:
        return Release(payload, [entry], declared=Declared.of(policy, dxo.data, declared))
    if task != TaskName.SHARE:
        report, withheld = without_few_scores(policy, dxo.data)
        if withheld:
            payload["DXO"] = {**payload["DXO"], "data": report}
        return Release(payload, [entry_of(report)], withheld, _SCORES)
    if not dxo.data.get("rows"):
        return Release(payload, [entry])
    # Peers ask those sites that say they have rows: one whose rows would be withheld must not be asked.
    withheld = _withheld(policy, None, "peer", dxo.data.get("volumes", 0), dxo.data.get("privacy"))
    if withheld:
        payload["DXO"] = {**payload["DXO"], "data": {"rows": 0, "volumes": 0, "privacy": None}}
    return Release(payload, [entry], withheld)


def _statistics(policy: EgressPolicy, payload: Shareable) -> Release:
    dxo = from_shareable(payload)
    _meta(dxo.meta, set())
    report, measures = cleansed(policy, dxo.data)
    payload["DXO"] = {**payload["DXO"], "data": report}
    entry = {"name": "statistics", "measures": sorted(report.get("statistics", {}).get("count", {}))}
    withheld = f"too few patients, or not named, for {', '.join(measures)}" if measures else None
    return Release(payload, [{**entry, **report.get("totals", {})}], withheld, "statistics")


# -- parts -------------------------------------------------------------------------------------------------------------


def _tensor_entries(tensors: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "count": len(tensor) if name in ("features", "partition") else tensor.numel(),
            "bytes": tensor.numel() * tensor.element_size(),
        }
        for name, tensor in tensors.items()
    ]


def _meta(meta: Any, declared: set[str]) -> dict[str, Any]:
    # FLARE's own filters note their class names there.
    if not isinstance(meta, dict):
        raise EgressError("meta", "no table")
    history = meta.get(MetaKey.FILTER_HISTORY, [])
    if not isinstance(history, list) or not all(isinstance(n, str) and re.fullmatch(r"\w{1,64}", n) for n in history):
        raise EgressError("meta", "filter history")
    strangers = set(meta) - declared - {MetaKey.FILTER_HISTORY}
    if strangers:
        raise EgressError("meta", f"undeclared {shown(strangers)}")
    return meta
