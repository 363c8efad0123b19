"""One site of the federation: hosts one bundle workflow for the life of the job and does what the server asks."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from nvflare.apis.dxo import DXO, DataKind, from_dict, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.app_opt.pt.decomposers import TensorDecomposer
from nvflare.fuel.utils import fobs
from nvflare.fuel.utils.memory_utils import cleanup_memory
from torch import Tensor

from fcl.federation import FeatureSet, Participant, PrivateWeights
from flare_app.aggregation import tensor_spec
from flare_app.card import declaration
from flare_app.egress.plain import is_count
from flare_app.egress.presence import unfiltered
from flare_app.encryption.site import keep_model, site_key
from flare_app.exchange import Exchange, Limits, Published, decode, encode, no_features, sampled
from flare_app.failures import failed
from flare_app.memory import keep_for_good, peak_mib, reset_peak
from flare_app.peers import Peers, asker, feature_request, know_peers, not_for
from flare_app.protocol import (
    Header,
    SiteError,
    TaskName,
    exported_in_full,
    tensor_bytes,
    tensors_of,
    with_report,
    with_tensors,
)
from flare_app.restoring import restored
from flare_app.site import HostedJob
from flare_app.state import SiteState, SiteStates, random_state
from flare_app.stopwatch import Stopwatch
from flare_app.storage import StorageError
from flare_app.terms import Terms
from flare_app.weights import SiteWeights


@exported_in_full
class FCLExecutor(Executor):
    """Runs the bundle's participant through the rounds; its network, optimizer, bank and caches live between them.

    Args:
        config: the bundle's config files, merged in order, relative to its folder.
        data: overlay that reads the data of sites that name none; see :func:`flare_app.hosting.data_overlay`.
        overrides: config keys to set at every site, e.g. ``{"trainer::max_epochs": 2}``.
        seed: of the job; each site derives its own from it.
        bundle_root: the bundle's folder; None takes the one that the package ``fcl`` lies in.
        checkpoint_dir: where this site keeps its state after each round so that a job can resume: relative to the
            site's workspace, or absolute (the site's name is appended). None keeps nothing.
        peer_timeout_s: how long to wait in a round for a peer's features; it is asked twice, all at the same time.
        max_feature_rows: most rows taken from one peer in a round.
    """

    def __init__(
        self,
        config: list[str],
        data: str | None = None,
        overrides: dict[str, Any] | None = None,
        seed: int = 0,
        bundle_root: str | None = None,
        checkpoint_dir: str | None = None,
        peer_timeout_s: float = 120.0,
        max_feature_rows: int = 65536,
    ) -> None:
        super().__init__()
        if not config:
            raise ValueError("config must name at least one config file of the bundle, e.g. ['configs/pretrain.json']")
        if peer_timeout_s <= 0 or max_feature_rows <= 0:
            raise ValueError(
                f"peer_timeout_s and max_feature_rows must be positive, got {peer_timeout_s} and {max_feature_rows}"
            )
        self.config = config
        self.data = data
        self.overrides = overrides
        self.seed = seed
        self.bundle_root = bundle_root
        self.checkpoint_dir = checkpoint_dir
        self.peer_timeout_s = peer_timeout_s
        self.max_feature_rows = max_feature_rows
        self._site = ""
        self._exchange = Exchange()
        self._terms: Terms | None = None  # as the server told them first
        self._limits = Limits(0, 0, max_feature_rows)
        self._peers = Peers(peer_timeout_s)
        self._workflow: Any = None
        self._participant: Participant | None = None
        self._configuration: dict[str, Any] = {}
        self._weights = SiteWeights()
        self._models = Path()
        self._from_card: dict[str, Any] = {}  # settings of the network that the pre-trained weights need
        self._card: dict[str, Any] = {}  # what this site declares for the card of the weights
        self._key: dict[str, str] = {}  # fingerprint, where weights are encrypted
        self._published: Published | None = None
        self._withholds_features = False
        self._spent = Stopwatch()  # of the round in hand
        self._states: SiteStates | None = None
        self._resumed_round: int | None = None  # None until the first task is done
        self._trained = 0  # rounds up to the last that this site trained in
        self._tasks: dict[str, Callable[[Shareable, FLContext, Signal], Shareable]] = {
            TaskName.INITIALIZE: self._initialize,
            TaskName.INITIAL_WEIGHTS: self._initial_weights,
            TaskName.SHARE: self._share,
            TaskName.TRAIN: self._train,
            TaskName.VALIDATE: self._validate,
            TaskName.GET_FEATURES: self._get_features,
        }

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        if event_type == EventType.ABOUT_TO_START_RUN:
            # Without it FLARE serialises tensors as empty ones, silently.
            fobs.register(TensorDecomposer)
        elif event_type == EventType.START_RUN:
            know_peers(fl_ctx)
            self._peers.start(fl_ctx)
        elif event_type == EventType.END_RUN and self._workflow is not None:
            self._workflow.finalize()

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        task = self._tasks.get(task_name)
        if task is None:
            return make_reply(ReturnCode.TASK_UNKNOWN)
        self._site = fl_ctx.get_identity_name()
        try:
            problem = not_for(task_name, asker(fl_ctx))
            if problem:
                raise SiteError(problem)
            reply = task(shareable, fl_ctx, abort_signal)
            if is_count(shareable.get_header(Header.ROUND)):
                reply.set_header(Header.ROUND, shareable.get_header(Header.ROUND))  # for the site's own records
            return reply
        except Exception as error:
            return failed(self._site, task_name, error, self.logger)

    # -- tasks ---------------------------------------------------------------------------------------------------------

    def _initialize(self, task: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        terms = Terms.of(task)
        self._terms = self._terms or terms
        if terms != self._terms:
            raise SiteError("the server asks for other terms than when this job began here: submit another job")
        self._exchange = terms.exchange
        secure = bool(fl_ctx.get_prop(FLContextKey.SECURE_MODE, False))
        simulated = bool(fl_ctx.get_prop(FLContextKey.SIMULATE_MODE, False))
        refused = self._exchange.refusal(secure, simulated) or unfiltered(self._tasks, fl_ctx)
        if refused:
            raise SiteError(refused)
        if self._participant is None:
            self._from_card = declaration(task.get_header(Header.CARD) or {})
            self._key = site_key(task, fl_ctx)
            self._weights = SiteWeights(terms.weight_bits)
            self._open(fl_ctx, threads=_share_of_cores(task.get_header(Header.SITES)) if simulated else None)
        participant = self._ready()
        described = participant.describe()
        if self._exchange.active and participant.shares_features:
            length, partitions = int(described["feature_length"]), int(described["partitions"])
            self._limits = Limits(length, partitions, self.max_feature_rows)
        if self._resumed_round is None:
            pretrained = tensors_of(task, DataKind.WEIGHTS)
            if pretrained:
                self._load_pretrained(participant, pretrained)
            self._resumed_round = self._resume(participant, int(task.get_header(Header.RESUME_ROUND, 0)))
            keep_for_good()
        else:
            # Asked again after missing something: what this process holds is newer than any file.
            self.logger.warning(
                f"{self._site}: takes part again with the state that it has, after {self._trained} rounds"
            )
        return with_report(
            {
                **self._configuration,
                "spec": tensor_spec(participant.weights()),
                "shares_features": participant.shares_features,
                "resumed_round": self._resumed_round,
                "description": dict(described),
                "card": self._card,
            }
        )

    def _initial_weights(self, task: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        participant = self._ready()
        if self._weights.current or self._trained:  # no limit on the norm of an update would hold for them
            raise SiteError("initial weights are for the start: this site has begun to train")
        return with_tensors(DataKind.WEIGHTS, participant.weights())

    def _share(self, task: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        participant, kind = self._ready(), self._exchange.kind
        if not self._exchange.active:
            raise SiteError("no features are shown in this job")
        self._spent = Stopwatch()
        with self._spent.part("sharing"):
            round_number = self._begin_round(participant, task)
            features = self._own_features(participant, kind)
        self._published = Published(round_number, kind, features)
        if self._exchange.relayed:
            return encode(features, kind, round_number, self._exchange.bits).to_shareable()
        return with_report(
            {"rows": len(features), "volumes": int(features.volumes), "privacy": self._published.privacy}
        )

    def _get_features(self, task: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        # Runs beside this site's own training, on another thread: it reads nothing but the published snapshot.
        published = self._published
        round_number, rows = task.get_header(Header.ROUND), task.get_header(Header.PULL_ROWS)
        if not is_count(round_number) or not (rows is None or is_count(rows)):
            raise SiteError("a request for features names a round, and how many, in whole numbers")
        if self._exchange.relayed:
            raise SiteError("in this job the server relays features")
        if published is None or published.round != round_number:
            raise SiteError(f"no features of round {round_number} are published here")
        payload = encode(published.features, published.kind, published.round, self._exchange.bits)
        return sampled(payload, self._exchange.rows_for(rows), self._site, asker(fl_ctx)).to_shareable()

    def _train(self, task: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        participant, started = self._ready(), time.monotonic()
        reset_peak()
        round_number = int(task.get_header(Header.ROUND))
        received: dict[str, int] = {}
        pull = partial(self._pull, round_number, task, fl_ctx, abort_signal)
        pulling = _beside(pull) if self._exchange.overlap else None
        if not self._exchange.active:
            self._spent = Stopwatch()
            self._begin_round(participant, task)
        elif pulling is None:
            with self._spent.part("exchange"):
                received = self._take(participant, round_number, pull())
        with self._spent.part("validation"):
            validation = _finite(participant.validate() if task.get_header(Header.VALIDATE, False) else {})
        with self._spent.part("training"):
            result = participant.train(lambda: bool(abort_signal.triggered))
        if pulling is not None:
            # Not before: what peers send must change nothing at a moment that no seed decides.
            with self._spent.part("exchange"):
                received = self._take(participant, round_number, pulling.result())
        metrics = _finite(result.metrics)
        update = self._weights.update(result.weights)
        with self._spent.part("saving"):
            self._save(participant, round_number + 1)
        report = {
            "count": int(result.count),
            "metrics": metrics,
            "validation": validation,
            "features_received": received,
            "privacy": self._published.privacy if self._published else None,
        }
        if not isinstance(participant, PrivateWeights):  # they would tell how many patients the steps drew
            report |= {
                "seconds": time.monotonic() - started,
                "parts": self._spent.parts,
                "peak_mib": peak_mib(),
            }
        cleanup_memory()  # else freed blocks stay with the allocator, and the process grows by rounds
        return with_tensors(DataKind.WEIGHT_DIFF, update, report)

    def _validate(self, task: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        participant = self._ready()
        goes_on = int(task.get_header(Header.ROUND)) < int(task.get_header(Header.TOTAL_ROUNDS))
        before = copy.deepcopy(participant.state_dict()) if goes_on else None
        self._begin_round(participant, task)
        kept = keep_model(self._models, task, self._weights.current)
        if kept is not None:
            self.logger.info(f"{self._site}: the global model is {kept}")
        validation = _finite(participant.validate() if task.get_header(Header.VALIDATE, True) else {})
        if before is not None:  # whose turn it is not has rested: a job that is resumed knows nothing of this round
            participant.load_state_dict(before)
        return with_report({"validation": validation})

    # -- parts of tasks ------------------------------------------------------------------------------------------------

    def _ready(self) -> Participant:
        if self._participant is None:
            raise SiteError(
                "this process holds no state of the job: it was started anew between two tasks. "
                "The simulator does so with fewer threads than clients: run it with -t equal to -n"
            )
        return self._participant

    def _open(self, fl_ctx: FLContext, threads: int | None) -> None:
        from flare_app.hosting import host  # brings MONAI along, which takes seconds

        overrides = self.overrides or {}
        asked = HostedJob(
            self.config, self.data, overrides, self.seed, self.bundle_root, self.checkpoint_dir, self._from_card
        )
        hosted = host(asked, fl_ctx, self._key, self._exchange.active, threads)
        self._withholds_features = "features" in hosted.settings.withhold
        self._card = {} if "card" in hosted.settings.withhold else hosted.declared
        self._workflow, self._participant = hosted.workflow, hosted.participant
        self._configuration, self._models, self._states = hosted.configuration, hosted.models, hosted.states

    def _load_pretrained(self, participant: Participant, weights: dict[str, Tensor]) -> None:
        load = getattr(participant, "load_pretrained", None)
        if load is None:
            raise SiteError(f"{self.config[0]} takes no pre-trained weights: run the job without --pretrained")
        try:
            load(weights)
        except ValueError as error:
            raise SiteError(f"the pre-trained weights do not fit the network of {self.config[0]}") from error

    def _resume(self, participant: Participant, round_number: int) -> int:
        """Restore the state after ``round_number`` rounds; gives the round of the state found, 0 for none."""
        if self._states is None:
            return 0
        try:
            state = restored(self._states, participant, round_number, self._site)
        except SiteError:
            # Built anew when the server asks again: from settings that may be mended, with nothing half restored.
            self._workflow.finalize()
            self._workflow = self._participant = None
            raise
        if state is None:
            return 0
        self._weights.feedback.residual = state.residual
        self._trained = state.round
        return state.round

    def _save(self, participant: Participant, rounds: int) -> None:
        self._trained = rounds
        if self._states is None:
            return
        try:
            residual = self._weights.feedback.residual
            self._states.save(SiteState(rounds, participant.state_dict(), random_state(), residual))
        except StorageError as error:
            # Its result would count for a round that this site could not resume from.
            raise SiteError(f"the state after round {rounds} cannot be saved, see the log of {self._site}") from error

    def _begin_round(self, participant: Participant, task: Shareable) -> int:
        round_number = int(task.get_header(Header.ROUND))
        participant.begin_round(round_number, int(task.get_header(Header.TOTAL_ROUNDS)), self._weights.take(task))
        return round_number

    def _own_features(self, participant: Participant, kind: str) -> FeatureSet:
        if self._withholds_features:
            return no_features(self._limits.feature_length)
        return participant.publish(kind)  # type: ignore[arg-type]

    def _pull(self, round_number: int, task: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> dict[str, DXO]:
        """What peers sent, by the route of the job."""
        if self._published is None or self._published.round != round_number:
            raise SiteError(f"round {round_number} was not begun at this site")
        if self._exchange.relayed:
            return {site: from_dict(entry) for site, entry in from_shareable(task).data.items()}
        peers = [peer for peer in task.get_header(Header.PEERS) if peer != self._site]
        return self._peers.pull(peers, feature_request(round_number, self._exchange.pull_rows), fl_ctx, abort_signal)

    def _take(self, participant: Participant, round_number: int, payloads: Mapping[str, DXO]) -> dict[str, int]:
        """Give the participant what can be accepted, in the order of names; gives the bytes that came from each."""
        received = {}
        for peer in sorted(payloads):
            try:
                features = decode(payloads[peer], self._exchange.kind, round_number, self._limits)
            except Exception as error:  # whatever a peer sends, this site trains on
                self.logger.warning(f"{self._site}: features from {peer} are not accepted: {error}")
                continue
            participant.receive(peer, features, round_number)
            received[peer] = tensor_bytes(payloads[peer].data)
        return received


def _beside(work: Callable[[], dict[str, DXO]]) -> Future[dict[str, DXO]]:
    """Do it on a thread of its own."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="fcl-peers")
    try:
        return pool.submit(work)
    finally:
        pool.shutdown(wait=False)


def _share_of_cores(sites: list[str]) -> int | None:
    """Threads for one of many site processes on this machine; None when the environment has chosen already."""
    if "OMP_NUM_THREADS" in os.environ:
        return None
    return max(1, torch.get_num_threads() // len(sites))


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Plain finite numbers: numpy scalars would not travel, NaN is no JSON."""
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
