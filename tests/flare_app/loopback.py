"""A federation within one process: a real controller and executors, joined by plain calls in place of FLARE."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nvflare.apis.app_validation import AppValidationKey
from nvflare.apis.client import Client
from nvflare.apis.controller_spec import ClientTask, Task, TaskCompletionStatus
from nvflare.apis.dxo import DXO, from_shareable
from nvflare.apis.fl_constant import FilterKey, FLContextKey, ReservedKey, ReturnCode
from nvflare.apis.fl_context import FLContext, FLContextManager
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.apis.utils.task_utils import apply_filters
from nvflare.private.privacy_manager import Scope

from flare_app.controller import FCLController
from flare_app.egress import EgressFilter
from flare_app.encryption.filters import DECRYPTED_TASKS, ENCRYPTED_TASKS, WeightDecryptor, WeightEncryptor
from flare_app.executor import FCLExecutor
from flare_app.peers import SERVER, asked_by
from flare_app.protocol import Header, TaskName
from flare_app.records import RoundRecord, read_rounds

THREE_SITES = ["site-1", "site-2", "site-3"]
FAKE_BUNDLE = str(Path(__file__).parent / "fake_bundle")


@contextmanager
def asking(fl_ctx: FLContext, by: str) -> Iterator[None]:
    """A task of the server's is fetched in this context, any other comes as a request of the peer ``by``."""
    if by != SERVER:
        with asked_by(by):
            yield
        return
    fl_ctx.set_prop(FLContextKey.SSID, "session", sticky=False)  # as FLARE's communicator does
    yield


class FakeEngine:
    """What controller and executor ask of FLARE's engines.

    Args:
        root: folder of the workspace.
        sites: names of the sites.
        simulated, secure: how FLARE runs.
        byoc: whether the job may bring code, its bundle say.
        filtered: tasks on whose results the job has an egress filter.
    """

    def __init__(
        self,
        root: Path,
        sites: Sequence[str] = (),
        simulated: bool = True,
        secure: bool = False,
        byoc: bool = True,
        filtered: Sequence[str] = (*TaskName.ALL, TaskName.STATISTICS),
    ) -> None:
        self.filters = {f"{task}{FilterKey.DELIMITER}{FilterKey.OUT}": [EgressFilter()] for task in filtered}
        self.root, self.sites, self.byoc = root, sites, byoc
        self.args = SimpleNamespace(threads=len(sites), gpu=None)
        self.events: list[str] = []
        self.simulated, self.secure = simulated, secure
        self._managers: dict[str, FLContextManager] = {}  # what is sticky in a context lives here

    def context(self, name: str) -> FLContext:
        if name not in self._managers:
            public = {} if name == "server" else {ReservedKey.FQSN: name}
            private = {FLContextKey.JOB_META: {AppValidationKey.BYOC: True} if self.byoc else {}}
            self._managers[name] = FLContextManager(
                engine=self, identity_name=name, job_id="job", public_stickers=public, private_stickers=private
            )
        fl_ctx = self._managers[name].new_context()
        fl_ctx.set_prop(FLContextKey.SIMULATE_MODE, self.simulated, private=True, sticky=False)
        fl_ctx.set_prop(FLContextKey.SECURE_MODE, self.secure, private=True, sticky=False)
        runner = SimpleNamespace(task_result_filters=self.filters)
        fl_ctx.set_prop(FLContextKey.RUNNER, runner, private=True, sticky=False)
        return fl_ctx

    def get_clients(self) -> list[Client]:
        return [Client(site, None) for site in self.sites]

    def get_workspace(self) -> SimpleNamespace:
        return SimpleNamespace(
            get_run_dir=lambda job_id: str(self.root / job_id),
            get_app_custom_dir=lambda job_id: str(self.root / job_id / "custom"),
            get_root_dir=lambda: str(self.root),
            get_site_config_dir=lambda: str(self.root / "local"),
        )

    def fire_event(self, event_type: str, fl_ctx: FLContext) -> None:
        self.events.append(event_type)


class LoopbackPeers:
    """Pulls from the other executors of a :class:`Federation`."""

    def __init__(self, federation: Federation, site: str) -> None:
        self.federation, self.site = federation, site

    def pull(self, peers: Sequence[str], request: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> dict[str, DXO]:
        self.federation.pulls.append((self.site, sorted(peers)))
        replies = {
            peer: self.federation.execute(peer, TaskName.GET_FEATURES, request, by=self.site) for peer in sorted(peers)
        }
        return {
            peer: from_shareable(reply)
            for peer, reply in replies.items()
            if reply.get_return_code() == ReturnCode.OK and peer not in self.federation.silent_peers
        }


class Federation:
    """Sites with the fake bundle and the server that runs them.

    Args:
        root: folder for all workspaces.
        sites: names of the sites.
        controller: arguments of the controller.
        executor: arguments of all executors.
        per_site: arguments of some executors on top.
        silent: site to the tasks that it does not answer: ``"train"`` never, ``"train/1"`` in round 1,
            ``"initialize#2"`` not the first two times that it is asked.
        gone: sites that FLARE reports as dead when they leave a task unanswered.
        job_policy: settings of the egress filter that the job brings to all sites; None brings none.
        scopes: of some sites' own ``privacy.json``.
        encrypted: whether the job brings the filters that encrypt weights; the context is that of the process, see
            ``tests/flare_app/encryption/conftest.py``.
    """

    def __init__(
        self,
        root: Path,
        sites: Sequence[str] = ("site-1", "site-2"),
        controller: Mapping[str, Any] | None = None,
        executor: Mapping[str, Any] | None = None,
        per_site: Mapping[str, Mapping[str, Any]] | None = None,
        silent: Mapping[str, Sequence[str]] | None = None,
        gone: Sequence[str] = (),
        job_policy: Mapping[str, Any] | None = None,
        scopes: Mapping[str, Scope] | None = None,
        encrypted: bool = False,
    ) -> None:
        self.root, self.sites = root, list(sites)
        self.silent, self.gone = silent or {}, gone
        self.silent_peers: set[str] = set()
        self._generators: dict[str, torch.Tensor] = {}  # each site's global one, as if it had a process of its own
        self.scopes = scopes or {}
        self.replies: list[tuple[str, str, Shareable]] = []  # site, task and what left
        self.panics: list[str] = []
        self.asked: list[tuple[str, list[str]]] = []
        self.sent: list[tuple[str, str, str]] = []  # site, task and kind of the data that the server sent along
        self.pulls: list[tuple[str, list[str]]] = []  # site and the peers that it asked
        self.engine = FakeEngine(root / "server", sites)
        self.engines = {site: FakeEngine(root / site) for site in sites}
        base = {"config": ["configs/fake.json"], "data": "toy", "bundle_root": FAKE_BUNDLE, **(executor or {})}
        self.executors: dict[str, FCLExecutor] = {}
        self.job_filters = {site: [EgressFilter(dict(job_policy))] for site in sites if job_policy is not None}
        self.ciphers = {site: (WeightDecryptor(), WeightEncryptor()) for site in sites if encrypted}
        for site in sites:
            self.executors[site] = FCLExecutor(**{**base, **(per_site or {}).get(site, {})})
            self.executors[site]._peers = LoopbackPeers(self, site)  # type: ignore[assignment]
        arguments: dict[str, Any] = {"num_rounds": 2, **(controller or {})}
        self.controller = FCLController(**arguments)
        self.connect(self.controller)

    def connect(self, controller: Any) -> None:
        """Give a controller what FLARE's server gives it."""
        controller.fl_ctx = self.engine.context("server")
        controller.engine = self.engine
        controller.abort_signal = Signal()
        controller.communicator = SimpleNamespace(wait_for_task=lambda task, abort_signal: None)
        controller.broadcast = self._broadcast
        controller.panic = self.panics.append

    @property
    def results(self) -> Path:
        return self.controller._folder

    def run(self) -> Federation:
        self.controller.run()
        return self

    def cut_before(self, number: int) -> None:
        """Run, and end as by Ctrl-C when the round of that number (0-based) would begin."""
        rounds = self.controller._round

        def interrupted(current: int) -> RoundRecord:
            if current == number:
                raise KeyboardInterrupt
            return rounds(current)

        self.controller._round = interrupted  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            self.run()

    def accepted(self) -> list[list[str]]:
        """Of each round the last letters of the sites whose results were accepted."""
        return [[site[-1] for site in record["accepted"]] for record in read_rounds(self.results / "rounds.jsonl")]

    def asked_for(self, name: str) -> list[list[str]]:
        """Each time that a task was sent, the last letters of the sites that got it."""
        return [[site[-1] for site in sites] for task, sites in self.asked if task == name]

    def execute(self, site: str, name: str, data: Shareable, by: str = "server") -> Shareable:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._generators.get(site, torch.get_rng_state()))
            reply = self._executed(site, name, data, by)
            self._generators[site] = torch.get_rng_state()
        self.replies.append((site, name, reply))
        return reply

    def _executed(self, site: str, name: str, data: Shareable, by: str) -> Shareable:
        fl_ctx = self.engines[site].context(site)
        fl_ctx.set_prop(FLContextKey.TASK_NAME, name, private=True, sticky=False)
        fl_ctx.set_prop(FLContextKey.SCOPE_OBJECT, self.scopes.get(site), private=True, sticky=False)
        fl_ctx.set_peer_context(FakeEngine(self.root).context(by))
        with asking(fl_ctx, by):
            return self._answered(site, name, data, fl_ctx)

    def _answered(self, site: str, name: str, data: Shareable, fl_ctx: FLContext) -> Shareable:
        data = copy.deepcopy(data)  # and of the reply: over a wire nothing is shared
        decryptor, encryptor = self.ciphers.get(site, (None, None))
        if decryptor is not None and name in DECRYPTED_TASKS:
            try:  # as FLARE's client runner does
                data = decryptor.process(data, fl_ctx)
            except Exception:
                return make_reply(ReturnCode.TASK_DATA_FILTER_ERROR)
        reply = self.executors[site].execute(name, data, fl_ctx, Signal())
        key = f"{name}{FilterKey.DELIMITER}{FilterKey.OUT}"
        last = [encryptor] if encryptor is not None and name in ENCRYPTED_TASKS else []
        try:
            filters = {key: [*self.job_filters.get(site, []), *last]}
            reply = apply_filters(Scope.TASK_RESULT_FILTERS_NAME, reply, fl_ctx, filters, name, FilterKey.OUT)
        except Exception:
            reply = make_reply(ReturnCode.TASK_RESULT_FILTER_ERROR)
        return copy.deepcopy(reply)

    def _broadcast(self, task: Task, fl_ctx: FLContext, targets: list[str], min_responses: int) -> None:
        self.asked.append((task.name, targets))
        for site in reversed(targets):  # answers need not come in order
            if self._is_silent(site, task):
                task.completion_status = TaskCompletionStatus.TIMEOUT
                if site in self.gone:
                    task.completion_status = TaskCompletionStatus.CLIENT_DEAD
                continue
            client_task = ClientTask(Client(site, None), task)
            self.sent.append((site, task.name, task.data["DXO"]["kind"]))
            client_task.result = self.execute(site, task.name, task.data)
            task.result_received_cb(client_task=client_task, fl_ctx=fl_ctx)

    def _is_silent(self, site: str, task: Task) -> bool:
        listed = self.silent.get(site, ())
        times = sum(name == task.name and site in targets for name, targets in self.asked)
        counted = [int(entry.split("#")[1]) for entry in listed if entry.startswith(f"{task.name}#")]
        return (
            task.name in listed
            or f"{task.name}/{task.data.get_header(Header.ROUND)}" in listed
            or any(times <= count for count in counted)
        )


def three_sites(root: Path, rounds: int, fail: dict[str, str] | None = None, **arguments: Any) -> Federation:
    """A federation that exchanges features; ``fail`` as the fake bundle's ``fail`` has it."""
    controller = {"num_rounds": rounds, "exchange": "features", "task_timeout_s": 7, **arguments.pop("controller", {})}
    return Federation(root, THREE_SITES, controller, {"overrides": {"fail": fail or {}}}, **arguments)
