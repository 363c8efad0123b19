"""The server's side: rounds, aggregation, validation, checkpoints and resume."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.shareable import Shareable
from nvflare.app_opt.pt.decomposers import TensorDecomposer
from nvflare.fuel.utils import fobs
from nvflare.fuel.utils.memory_utils import cleanup_memory
from torch import Tensor

from flare_app.aggregation import (
    RunningAverage,
    apply_update,
    spec_difference,
    tensor_spec,
    update_problem,
    weighted_mean,
)
from flare_app.asking import Answers, AskingController, JobFailed, Reasons, listed
from flare_app.checks import disagreement, other_run, restarting_sites
from flare_app.exchange import Exchange
from flare_app.protocol import Header, TaskName, report_of, tensor_bytes, tensors_of, with_report, with_tensors
from flare_app.records import RoundLog, RoundRecord, SiteRecord, summary
from flare_app.state import LAST, RunState

Payloads = list[tuple[Shareable, list[str]]]


class FCLController(AskingController):
    """Federated averaging of a bundle's network, with features exchanged between sites in every round.

    Args:
        num_rounds: rounds in all.
        min_sites: least number of accepted results in a round; with fewer the job fails.
        exchange: ``"none"``, ``"prototypes"`` or ``"features"``.
        route: ``"peer"`` (sites pull from each other) or ``"relay"`` (through the server).
        task_timeout_s: how long to wait for the results of a task, in whole seconds; late sites miss the round.
        start_timeout_s: the same for the first task, in which sites may preprocess their data.
        max_update_norm: updates with a larger L2 norm are rejected; None accepts any finite one.
        validate_every: rounds between validations of the global weights; the final weights always are. 0: never.
        best_metric: validation metric whose highest mean chooses ``best.pt``; None writes no such file.
        pretrained: checkpoint at the server whose weights every site may start from.
        checkpoint_dir: folder for checkpoints and the log of rounds: relative to the server's workspace, or absolute
            (``server`` is appended). None takes the job's run folder, from which no later job resumes.
        resume: go on from the newest checkpoint in ``checkpoint_dir``, if there is one.
    """

    # FLARE's export leaves out what has its default value; whoever reads a job shall see all of it.
    _always_serialize_args = (
        "num_rounds",
        "min_sites",
        "exchange",
        "route",
        "task_timeout_s",
        "start_timeout_s",
        "max_update_norm",
        "validate_every",
        "best_metric",
        "pretrained",
        "checkpoint_dir",
        "resume",
    )

    def __init__(
        self,
        num_rounds: int = 10,
        min_sites: int = 2,
        exchange: str = "none",
        route: str = "peer",
        task_timeout_s: int = 3600,
        start_timeout_s: int = 7200,
        max_update_norm: float | None = None,
        validate_every: int = 1,
        best_metric: str | None = None,
        pretrained: str | None = None,
        checkpoint_dir: str | None = None,
        resume: bool = False,
    ) -> None:
        super().__init__(min_sites)
        if num_rounds < 1 or validate_every < 0:
            raise ValueError(f"num_rounds must be at least 1, validate_every 0; got {num_rounds} and {validate_every}")
        if task_timeout_s < 1 or start_timeout_s < 1:
            raise ValueError(f"timeouts must be at least 1 s, got {task_timeout_s} and {start_timeout_s}")
        if resume and checkpoint_dir is None:
            raise ValueError("resume needs a checkpoint_dir, one that outlives the job")
        if best_metric is not None and validate_every == 0:
            raise ValueError(f"best_metric {best_metric!r} needs validation: set validate_every to 1 or more")
        self.num_rounds = num_rounds
        self.exchange = exchange
        self.route = route
        self.task_timeout_s = task_timeout_s
        self.start_timeout_s = start_timeout_s
        self.max_update_norm = max_update_norm
        self.validate_every = validate_every
        self.best_metric = best_metric
        self.pretrained = pretrained
        self.checkpoint_dir = checkpoint_dir
        self.resume = resume
        self._policy = Exchange(exchange, route)
        self._state = RunState({})
        self._spec: dict[str, str] = {}
        self._folder = Path()

    def run(self) -> None:
        """The whole job; FLARE calls it in a thread of its own."""
        # Without it FLARE serialises tensors as empty ones, silently.
        fobs.register(TensorDecomposer)
        try:
            self._run()
        except JobFailed as failure:
            if not self.is_aborted():
                self.panic(str(failure))

    def _run(self) -> None:
        sites = sorted(client.name for client in self.engine.get_clients())
        problem = restarting_sites(getattr(self.engine, "args", None), len(sites))
        if problem:
            raise JobFailed(problem)
        self._folder = self._open_folder()
        sites = self._initialize(sites)
        log = RoundLog(self._folder, self._state.round)
        first, started = self._state.round, time.monotonic()
        for number in range(first, self.num_rounds):
            record = self._round(number, sites)
            log.append(record)
            pace = (time.monotonic() - started) / (number + 1 - first)
            self.info(summary(record, self.num_rounds, len(sites), pace * (self.num_rounds - number - 1)))
        if self.validate_every:
            log.append(self._final_validation(sites))
        self.info(f"finished {self.num_rounds} rounds; global weights and the log of rounds are in {self._folder}")

    # -- start ---------------------------------------------------------------------------------------------------------

    def _open_folder(self) -> Path:
        workspace = self.engine.get_workspace()
        if self.checkpoint_dir is None:
            folder = Path(workspace.get_run_dir(self.fl_ctx.get_job_id())) / "fcl"
        elif Path(self.checkpoint_dir).is_absolute():
            folder = Path(self.checkpoint_dir) / "server"
        else:
            folder = Path(workspace.get_root_dir()) / self.checkpoint_dir
        if (folder / LAST).exists() and not self.resume:
            raise JobFailed(f"{folder} holds checkpoints of an earlier run: resume it, or give another checkpoint_dir")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _initialize(self, sites: list[str]) -> list[str]:
        """Let every site build its workflow, check that they agree, settle the global weights; gives who takes part."""
        from fcl.networks.weights import read_weights  # brings MONAI along: here it loads while the sites start

        found = RunState.load(self._folder) if self.resume else None
        task = with_tensors(DataKind.WEIGHTS, read_weights(self.pretrained) if self.pretrained else {})
        task.set_header(Header.EXCHANGE, self.exchange)
        task.set_header(Header.ROUTE, self.route)
        task.set_header(Header.SITES, sites)
        task.set_header(Header.RESUME_ROUND, found.round if found else 0)
        answers, refused = self.ask(TaskName.INITIALIZE, [(task, sites)], self.start_timeout_s)
        self.require_quorum("start", answers, refused)
        reports = {site: report_of(answers[site]) for site in sorted(answers)}
        for site, report in reports.items():
            self.info(f"{site}: {_in_words(report)}")
        problem = disagreement(reports, self._policy.active)
        if problem:
            raise JobFailed(f"the sites do not fit together: {problem}")
        common = next(iter(reports.values()))
        self._spec = dict(common["spec"])
        if found is None:
            weights = self._initial_weights(list(reports))
            self._state = RunState(weights, config_hash=common["config_hash"], settings=common["settings"])
        else:
            problem = other_run(found, self._spec, common["config_hash"])
            if problem:
                raise JobFailed(problem)
            self._state = found
            self.info(f"resuming after {found.round} rounds")
        return list(reports)

    def _initial_weights(self, sites: list[str]) -> dict[str, Tensor]:
        """Of the first site by name that gives them, so that a repeated run begins with the same."""
        reasons: Reasons = {}
        for site in sites:
            answers, refused = self.ask(TaskName.INITIAL_WEIGHTS, [(with_report({}), [site])], self.task_timeout_s)
            if answers:
                weights = tensors_of(answers[site], DataKind.WEIGHTS)
                problem = spec_difference(self._spec, tensor_spec(weights))
                if problem is None:
                    return weights
                refused = {site: problem}
            reasons.update(refused)
        raise JobFailed(f"no site gave initial weights. {listed(reasons)}")

    # -- a round -------------------------------------------------------------------------------------------------------

    def _round(self, number: int, sites: list[str]) -> RoundRecord:
        started = time.monotonic()
        record = RoundRecord(number, sites={site: SiteRecord() for site in sites})
        for entry in record.sites.values():
            entry.bytes_weights_down = tensor_bytes(self._state.weights)
        payloads: Payloads = [(self._weights_payload(number), sites)]
        if self._policy.active:
            shared, record.rejected = self.ask(TaskName.SHARE, payloads, self.task_timeout_s)
            self.require_quorum(f"round {number + 1}, sharing", shared, record.rejected)
            payloads = self._feature_payloads(number, shared, record)
        average = RunningAverage(site for _, group in payloads for site in group)

        def accept(site: str, answer: Shareable) -> str | None:
            return self._take_update(site, answer, average, record)

        for payload, _ in payloads:
            payload.set_header(Header.VALIDATE, self.validate_every > 0 and number % self.validate_every == 0)
        answers, refused = self.ask(TaskName.TRAIN, payloads, self.task_timeout_s, accept)
        record.rejected.update(refused)
        self.require_quorum(f"round {number + 1}", answers, record.rejected)
        record.accepted = sorted(answers)
        record.count = average.count
        accepted = {site: record.sites[site] for site in record.accepted}
        record.metrics = weighted_mean({site: (entry.count, entry.metrics) for site, entry in accepted.items()})
        record.validation = _mean_validation(accepted)
        self._keep_best(record.validation)  # before the weights that were validated are replaced
        self._state.weights = apply_update(self._state.weights, average.mean())
        self._state.round = number + 1
        self._state.count_round(record.accepted, record.rejected)
        self._state.save(self._folder)
        cleanup_memory()
        record.seconds = time.monotonic() - started
        return record

    def _final_validation(self, sites: list[str]) -> RoundRecord:
        started = time.monotonic()
        record = RoundRecord(self.num_rounds, sites={site: SiteRecord() for site in sites})
        payload = self._weights_payload(self.num_rounds)
        answers, record.rejected = self.ask(TaskName.VALIDATE, [(payload, sites)], self.task_timeout_s)
        self.require_quorum("final validation", answers, record.rejected)
        for site, answer in answers.items():
            record.sites[site].validation = report_of(answer)["validation"]
        record.accepted = sorted(answers)
        record.validation = _mean_validation(record.sites)
        self._keep_best(record.validation)
        self._state.save(self._folder)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in sorted(record.validation.items()))
        self.info(f"validation of the final weights: {shown or 'no site has validation data'}")
        record.seconds = time.monotonic() - started
        return record

    def _weights_payload(self, number: int) -> Shareable:
        return self._stamped(with_tensors(DataKind.WEIGHTS, self._state.weights), number)

    def _stamped(self, payload: Shareable, number: int) -> Shareable:
        payload.set_header(Header.ROUND, number)
        payload.set_header(Header.TOTAL_ROUNDS, self.num_rounds)
        return payload

    def _feature_payloads(self, number: int, shared: Answers, record: RoundRecord) -> Payloads:
        """Peer route: whom to pull from. Relay: to each site the features of all others."""
        sites = sorted(shared)
        if not self._policy.relayed:
            payload = self._stamped(with_report({}), number)
            payload.set_header(Header.PEERS, sites)
            return [(payload, sites)]
        dxos = {site: from_shareable(shared[site]) for site in sites}
        for site, dxo in dxos.items():
            record.sites[site].bytes_features_up = tensor_bytes(dxo.data)
        payloads: Payloads = []
        for site in sites:
            others = {peer: dxos[peer].to_dict() for peer in sites if peer != site}
            payloads.append((self._stamped(DXO(DataKind.COLLECTION, data=others).to_shareable(), number), [site]))
        return payloads

    def _take_update(self, site: str, answer: Shareable, average: RunningAverage, record: RoundRecord) -> str | None:
        """Check a site's update and put it into the average; gives the reason when it is rejected."""
        update, report = tensors_of(answer, DataKind.WEIGHT_DIFF), report_of(answer)
        entry, received = record.sites[site], report["features_received"]
        entry.bytes_weights_up = tensor_bytes(update)
        entry.bytes_features_down = sum(received.values())
        entry.features_from = sorted(received)
        if self._policy.active and not self._policy.relayed:
            for peer, size in received.items():
                record.sites[peer].bytes_features_up += size
        problem = update_problem(update, report["count"], self._spec, self.max_update_norm)
        if problem:
            return problem
        entry.count, entry.seconds, entry.peak_mib = report["count"], report["seconds"], report["peak_mib"]
        entry.metrics, entry.validation = report["metrics"], report["validation"]
        average.add(site, update, entry.count)
        return None

    def _keep_best(self, validation: Mapping[str, float]) -> None:
        if self.best_metric is None or not validation:
            return
        if self.best_metric not in validation:
            raise JobFailed(f"best_metric {self.best_metric!r} is none of the validation metrics {sorted(validation)}")
        value = validation[self.best_metric]
        if not self._state.best or value > self._state.best["value"]:
            self._state.best = {"round": self._state.round, "value": value}
            self._state.save_best(self._folder)


def _mean_validation(entries: Mapping[str, SiteRecord]) -> dict[str, float]:
    """Mean over the sites, weighted by the ``count`` (volumes) that each gives along."""
    return weighted_mean(
        {
            site: (entry.validation.get("count", 1.0), {k: v for k, v in entry.validation.items() if k != "count"})
            for site, entry in entries.items()
        }
    )


def _in_words(report: Mapping[str, Any]) -> str:
    shown = dict(report["description"])
    if report["resumed_round"]:
        shown["resumed after round"] = report["resumed_round"]
    return ", ".join(f"{name} {value}" for name, value in sorted(shown.items()))
