"""The server's side: rounds, aggregation, validation, checkpoints and resume."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from nvflare.apis.dxo import from_shareable
from nvflare.apis.shareable import Shareable
from nvflare.app_opt.pt.decomposers import TensorDecomposer
from nvflare.fuel.utils import fobs
from nvflare.fuel.utils.memory_utils import cleanup_memory

from fcl.networks.weights import CheckpointError, read_card, read_weights
from flare_app.aggregation import weighted_mean
from flare_app.asking import AskingController, JobFailed, Payloads, listed
from flare_app.averaging import averaging_for
from flare_app.checks import other_plan, restarting_sites
from flare_app.enrolment import Enrolment
from flare_app.exchange import Exchange
from flare_app.intake import validations
from flare_app.memory import keep_for_good
from flare_app.participation import check_sites_per_round, taking_part
from flare_app.protocol import Header, TaskName, exported_in_full, tensor_bytes
from flare_app.records import RoundLog, RoundRecord, SiteRecord, mean_validation, summary
from flare_app.roster import Roster
from flare_app.state import BEST, RunState, open_folder
from flare_app.stopwatch import Stopwatch
from flare_app.storage import StorageError
from flare_app.tensorboard import FOLDER, SiteBoards
from flare_app.training import Training
from flare_app.weights import Holders


@exported_in_full
class FCLController(AskingController):
    """Federated averaging of a bundle's network, with features exchanged between sites in every round.

    What happens when something goes wrong:

    * A result counts when it arrives in time and holds what it should. A round with fewer than ``min_sites`` of them
      ends the job as failed, with the reason of every site; otherwise it goes on with those that count.
    * A site that leaves a task unanswered for ``task_timeout_s`` (or that FLARE reports as gone) is *absent*: from then
      on nobody waits for it. It is asked again without waiting, and takes part from the round after its reply. So does
      a site that did not finish, or failed, its first task.
    * A site whose update is rejected (NaN, other tensors than the global ones, an implausible norm, nonsense in its
      report) has *offended*; after ``max_offences`` it is excluded for the rest of the job, resumed runs included.
      An error at the site or a missing answer is no offence.
    * An update is implausible when its L2 norm is more than ``max_norm_ratio`` times that of the global weights. This
      catches a site that has diverged, not one that means harm.
    * A site that is of another version or architecture than most is left out as long as it is; that is no offence.
    * A site that is silent again and again, with no usable update between, is asked again after ever more rounds.
    * Where sites take turns, those that rest step in for those that fail before a round fails.
    * An update weighs as many slices as the site has to train on, its validation as many volumes as it validated on;
      with more than the site declared when it started it is rejected. One that lies from the start weighs what it says:
      the log tells what each declares.
    * After every round the global weights and all of the above are written to ``checkpoint_dir``; a job submitted
      again with ``resume`` goes on from there.

    Args:
        num_rounds: rounds in all.
        min_sites: least number of accepted results in a round; with fewer the job fails.
        exchange: ``"none"``, ``"prototypes"`` or ``"features"``.
        route: ``"peer"`` (sites pull from each other) or ``"relay"`` (through the server).
        task_timeout_s: how long to wait for the results of a task, in whole seconds; late sites miss the round.
        start_timeout_s: the same for the first task, in which sites may preprocess their data.
        max_norm_ratio: updates with an L2 norm above this many times that of the global weights are rejected; None
            accepts any finite one.
        max_update_norm: the same as a number of its own; None sets no other limit.
        max_offences: rejected updates after which a site is excluded; a resumed run may have more.
        admit_late: ask absent sites again; False leaves them out for the rest of the job.
        validate_every: rounds between validations of the global weights; the final weights always are. 0: never.
        best_metric: validation metric whose highest mean chooses ``best.pt``; None writes no such file.
        pretrained: checkpoint at the server whose weights every site may start from.
        checkpoint_dir: folder for checkpoints and the log of rounds: relative to the server's workspace, or absolute
            (``server`` is appended). One job at a time has it. None takes the job's run folder, from which no later
            job resumes.
        resume: go on from the newest checkpoint in ``checkpoint_dir``; the job fails where there is none.
        encryption: ``"none"``, or ``"he"``: sites encrypt their weights with a key that the server does not have. Its
            checkpoints then hold ciphertexts, the sites keep the finished model, and the limits on norms are theirs
            to keep (:class:`flare_app.encryption.filters.WeightEncryptor`).
        weight_bits: 32, or 16, 8 or 4: sites send their updates in that many bits, and get the change of the global
            weights in as many when they hold those before it (:mod:`flare_app.compression`).
        server_optimizer: ``{"name": "Adam", "lr": 0.01}``: makes a step of the averaged update (FedOpt, see
            :class:`flare_app.server_optimizer.ServerOptimizer`); None adds the average itself (federated averaging).
        feature_bits: 16 or 8, of each entry of a feature.
        fan_out: peers whose features a site gets in a round, others in each; None for all.
        pull_rows: rows that a site gets of each of these; None for all that they publish.
        overlap: sites pull features while they train and use them from the next round on, one round old; the bundle's
            bank must keep them that long (``bank::max_age`` of 1 or more). Not with ``sites_per_round``.
        sites_per_round: of those present, how many a round asks, all in turn (:mod:`flare_app.participation`); None for
            all. They share features among themselves; a round that validates asks the resting sites for that too.
    """

    def __init__(
        self,
        num_rounds: int = 10,
        min_sites: int = 2,
        exchange: str = "none",
        route: str = "peer",
        task_timeout_s: int = 3600,
        start_timeout_s: int = 7200,
        max_norm_ratio: float | None = 3.0,
        max_update_norm: float | None = None,
        max_offences: int = 2,
        admit_late: bool = True,
        validate_every: int = 1,
        best_metric: str | None = None,
        pretrained: str | None = None,
        checkpoint_dir: str | None = None,
        resume: bool = False,
        encryption: str = "none",
        weight_bits: int = 32,
        server_optimizer: dict[str, Any] | None = None,
        feature_bits: int = 16,
        fan_out: int | None = None,
        pull_rows: int | None = None,
        overlap: bool = False,
        sites_per_round: int | None = None,
    ) -> None:
        super().__init__(min_sites, max_offences)
        check_sites_per_round(sites_per_round, min_sites, overlap)
        if num_rounds < 1 or validate_every < 0:
            raise ValueError(f"num_rounds must be at least 1, validate_every 0; got {num_rounds} and {validate_every}")
        if task_timeout_s < 1 or start_timeout_s < 1:
            raise ValueError(f"timeouts must be at least 1 s, got {task_timeout_s} and {start_timeout_s}")
        for name, limit in (("max_norm_ratio", max_norm_ratio), ("max_update_norm", max_update_norm)):
            if limit is not None and limit <= 0:
                raise ValueError(f"{name} must be positive, or None for no limit; got {limit}")
        if resume and checkpoint_dir is None:
            raise ValueError("resume needs a checkpoint_dir, one that outlives the job")
        if best_metric is not None and validate_every == 0:
            raise ValueError(f"best_metric {best_metric!r} needs validation: set validate_every to 1 or more")
        self.num_rounds = num_rounds
        self.exchange = exchange
        self.route = route
        self.task_timeout_s = task_timeout_s
        self.start_timeout_s = start_timeout_s
        self.max_norm_ratio = max_norm_ratio
        self.max_update_norm = max_update_norm
        self.admit_late = admit_late
        self.validate_every = validate_every
        self.best_metric = best_metric
        self.pretrained = pretrained
        self.checkpoint_dir = checkpoint_dir
        self.resume = resume
        self.encryption = encryption
        self.weight_bits = weight_bits
        self.server_optimizer = server_optimizer
        self.feature_bits = feature_bits
        self.fan_out = fan_out
        self.pull_rows = pull_rows
        self.overlap = overlap
        self.sites_per_round = sites_per_round
        self._policy = Exchange(exchange, route, feature_bits, fan_out, pull_rows, overlap)
        self._averaging = averaging_for(encryption, max_norm_ratio, max_update_norm, weight_bits, server_optimizer)
        if self._policy.relayed and not self._averaging.readable:
            raise ValueError("encrypted weights beside features that the server relays in clear: set route to 'peer'")
        self._state = RunState({})
        self._shaping = {
            "exchange": exchange,
            "feature_bits": feature_bits,
            "fan_out": fan_out,
            "pull_rows": pull_rows,
            "overlap": overlap,
            "sites_per_round": sites_per_round,
            "weight_bits": weight_bits,
            "server_optimizer": server_optimizer,
        }
        terms = {
            Header.EXCHANGE: exchange,
            Header.ROUTE: route,
            Header.FEATURE_BITS: feature_bits,
            Header.PULL_ROWS: pull_rows,
            Header.OVERLAP: overlap,
            Header.WEIGHT_BITS: weight_bits,
            Header.ENCRYPTION: encryption,
        }
        self._enrolment = Enrolment(
            self, self._averaging, terms, self._policy.active, pretrained, start_timeout_s, task_timeout_s
        )
        self._holders = Holders()
        self._training = Training(
            self,
            self._policy,
            self._enrolment.declared,
            self._holders,
            self._weights_payloads,
            self._stamp,
            task_timeout_s,
        )
        self._round_ended = 0.0
        self._folder = Path()
        self._held = ExitStack()  # the folder, for the life of the job
        self._boards = SiteBoards(Path())

    def run(self) -> None:
        """The whole job; FLARE calls it in a thread of its own."""
        # Without it FLARE serialises tensors as empty ones, silently.
        fobs.register(TensorDecomposer)
        try:
            with self._held:
                self._run()
        except (JobFailed, StorageError, CheckpointError) as failure:
            if not self.is_aborted():
                self.panic(str(failure))
        finally:
            self._boards.close()

    def _run(self) -> None:
        sites = sorted(client.name for client in self.engine.get_clients())
        problem = restarting_sites(getattr(self.engine, "args", None), len(sites))
        problem = problem or self._averaging.refusal(self.fl_ctx)
        if problem:
            raise JobFailed(problem)
        workspace = self.engine.get_workspace()
        run_dir = Path(workspace.get_run_dir(self.fl_ctx.get_job_id()))
        opened = open_folder(Path(workspace.get_root_dir()), run_dir, self.checkpoint_dir, self.resume)
        self._folder = self._held.enter_context(opened)
        self._boards = SiteBoards(run_dir / FOLDER)
        found = RunState.load(self._folder) if self.resume else None
        problem = other_plan(found, self.num_rounds, self._shaping) if found else None
        if problem:
            raise JobFailed(problem)
        self.roster = Roster(sites, self.max_offences, *((found.offences, found.silences) if found else ()))
        self._state = self._enrolment.start(found)
        self._state.server_settings = self._shaping
        self._state.facts.exchange, self._state.facts.route = self.exchange, self.route
        keep_for_good()
        log = RoundLog(self._folder, self._state.round)
        first, started = self._state.round, time.monotonic()
        for number in range(first, self.num_rounds):
            self._holders.forget(self._enrolment.admit(number, self.admit_late))
            record = self._round(number)
            # The log first: when only one of the two is written, resuming does the round again and replaces its line.
            log.append(record)
            self._boards.write(record)
            self._state.save(self._folder)
            cleanup_memory()
            pace = (time.monotonic() - started) / (number + 1 - first)
            self.info(summary(record, self.num_rounds, len(sites), pace * (self.num_rounds - number - 1)))
        if self.validate_every:
            record = self._final_validation()
            log.append(record)
            self._boards.write(record)
        if not self._averaging.readable:
            self._hand_over()
        self.info(f"finished {self.num_rounds} rounds; global weights and the log of rounds are in {self._folder}")

    def _round(self, number: int) -> RoundRecord:
        started, present = time.monotonic(), self.roster.present
        spent, sites = Stopwatch(), taking_part(number, present, self.sites_per_round)
        record = RoundRecord(number, left_out=self.roster.left_out, sites={site: SiteRecord() for site in sites})
        record.resting = [site for site in present if site not in sites]
        record.parts = spent.parts
        record.parts["before"] = started - self._round_ended if self._round_ended else 0.0
        validates = self.validate_every > 0 and number % self.validate_every == 0
        rested: dict[str, SiteRecord] = {}
        if validates and record.resting:
            with spent.part("validation"):
                rested = self._validate_resting(number, record.resting)
        average = self._averaging.begin(self._state.weights, self._enrolment.signature.spec, present)
        self._training.run(record, average, spent, validates)
        # Who stepped in has validated again, and counts among those that trained.
        rested = {site: entry for site, entry in rested.items() if site in record.resting}
        record.count = average.count
        accepted = {site: record.sites[site] for site in record.accepted}
        record.metrics = weighted_mean({site: (entry.count, entry.metrics) for site, entry in accepted.items()})
        record.validation = mean_validation({**accepted, **rested})
        record.sites.update(rested)
        self._state.facts.note(record, number)
        self._keep_best(record.validation)  # before the weights that were validated are replaced
        self._state.weights = average.weights()
        self._state.averaging = self._averaging.state_dict()
        self._state.round = number + 1
        self._state.count_round(record.accepted, record.rejected)
        self.roster.contributed(record.accepted)
        self._state.offences, self._state.silences = dict(self.roster.offences), dict(self.roster.silences)
        self._round_ended = time.monotonic()
        record.seconds = self._round_ended - started
        return record

    def _validate_resting(self, number: int, resting: Iterable[str]) -> dict[str, SiteRecord]:
        """Measure the weights also where they are not trained: else each mean would be of other sites.

        Args:
            number: of the round.
            resting: sites whose turn it is not.

        Returns:
            those that measured; why the others did not is logged.
        """
        sites = {site: SiteRecord() for site in resting}
        payloads = self._weights_payloads(number, sites)
        accept = validations(sites, self._enrolment.declared)
        taken, refused = self.ask(TaskName.VALIDATE, payloads, self.task_timeout_s, accept)
        self._holders.answered(number, taken, refused)
        for site, reason in sorted(refused.items()):
            self.warning(f"round {number + 1}: {site}, whose turn it is not, did not validate: {reason}")
        return {site: sites[site] for site in taken}

    def _final_validation(self) -> RoundRecord:
        started, sites = time.monotonic(), self.roster.present
        record = RoundRecord(self.num_rounds, left_out=self.roster.left_out, sites={s: SiteRecord() for s in sites})
        payloads = self._weights_payloads(self.num_rounds, record.sites)
        accept = validations(record.sites, self._enrolment.declared)
        record.accepted, record.rejected = self.ask(TaskName.VALIDATE, payloads, self.task_timeout_s, accept)
        self.require_quorum("final validation", record.accepted, record.rejected)
        record.validation = mean_validation(record.sites)
        self._state.facts.note(record, self.num_rounds)
        self._keep_best(record.validation)
        self._state.save(self._folder)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in sorted(record.validation.items()))
        self.info(f"validation of the final weights: {shown or 'no site has validation data'}")
        record.seconds = time.monotonic() - started
        return record

    def _hand_over(self) -> None:
        """Let the sites keep the finished model, which the server cannot read."""
        models = {"last": (self._state.weights, self._state.card())}
        if self._state.best:
            models["best"] = (read_weights(self._folder / BEST), read_card(self._folder / BEST))
        for kept, (weights, card) in models.items():
            number = int(card["rounds"])
            payload = self._averaging.payload(weights, self._enrolment.signature.spec)
            self._stamp(payload, number)
            payload.set_header(Header.KEEP, kept)
            payload.set_header(Header.CARD, card)
            payload.set_header(Header.VALIDATE, False)
            sites = {site: SiteRecord() for site in self.roster.sites}
            accept = validations(sites, self._enrolment.declared)
            taken, refused = self.ask(TaskName.VALIDATE, [(payload, self.roster.present)], self.task_timeout_s, accept)
            for site, reason in sorted(refused.items()):
                self.warning(f"{site} did not keep the {kept} model: {reason}")
            if not taken:
                raise JobFailed(f"no site kept the {kept} model, which no one else can read. {listed(refused)}")
            self.info(f"the {kept} model, after {number} rounds, is kept by {', '.join(taken)}")

    def _weights_payloads(self, number: int, records: Mapping[str, SiteRecord]) -> Payloads:
        full = partial(self._averaging.payload, self._state.weights, self._enrolment.signature.spec)
        payloads = self._holders.payloads(number, list(records), self._averaging.change, full)
        for payload, sites in payloads:
            self._stamp(payload, number)
            for site in sites:
                records[site].bytes_weights_down = tensor_bytes(from_shareable(payload).data)
        return payloads

    def _stamp(self, payload: Shareable, number: int) -> None:
        payload.set_header(Header.ROUND, number)
        payload.set_header(Header.TOTAL_ROUNDS, self.num_rounds)

    def _keep_best(self, validation: Mapping[str, float]) -> None:
        if self.best_metric is None or not validation:
            return
        if self.best_metric not in validation:
            raise JobFailed(f"best_metric {self.best_metric!r} is none of the validation metrics {sorted(validation)}")
        self._state.keep_best(validation[self.best_metric], self._folder)
