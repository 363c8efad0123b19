"""The start of a job at the server: sites build their workflow, those that fit are taken in, now and later."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from nvflare.apis.dxo import DataKind
from nvflare.apis.shareable import Shareable
from torch import Tensor

from fcl.card import origin_of, settings_in
from fcl.networks.weights import read_card, read_weights
from flare_app.aggregation import not_finite
from flare_app.asking import AskingController, JobFailed, Payloads, Reasons, listed
from flare_app.averaging import Averaging
from flare_app.card import Facts
from flare_app.checks import Signature, introduced, other_run
from flare_app.intake import Declared, introductions
from flare_app.protocol import Header, TaskName, tensors_of, with_report, with_tensors
from flare_app.state import RunState


class Enrolment:
    """Who belongs to the federation, what its sites have in common, and the weights that it begins with.

    ``declared`` holds what each site that was taken in says that it has.

    Args:
        asking: asks the sites, and keeps the roster that :meth:`start` and :meth:`admit` bring up to date.
        averaging: judges weights.
        terms: headers of the task that opens the job, the same for all sites.
        exchanging: whether a site must have features to share.
        pretrained: checkpoint at the server whose weights every site may start from.
        start_timeout_s: how long a site may take to build its workflow for the first time (whole seconds).
        timeout_s: for every other task.
    """

    def __init__(
        self,
        asking: AskingController,
        averaging: Averaging,
        terms: Mapping[str, Any],
        exchanging: bool,
        pretrained: str | None,
        start_timeout_s: int,
        timeout_s: int,
    ) -> None:
        self.signature = Signature({}, "", {})
        self.declared: dict[str, Declared] = {}
        self._asking = asking
        self._averaging = averaging
        self._terms = dict(terms)
        self._exchanging = exchanging
        self._pretrained = pretrained
        self._start_timeout_s = start_timeout_s
        self._timeout_s = timeout_s
        self._known: set[str] = set()  # sites that have built their workflow, and fit
        self._resumed_round = 0
        self._facts = Facts()

    def start(self, found: RunState | None) -> RunState:
        """Let every site build its workflow, check that they agree, settle the global weights.

        Args:
            found: the state to go on from; None begins anew.

        Raises:
            JobFailed: when too few sites fit together, none gives weights, or ``found`` is of another run.
        """
        asking = self._asking
        self._resumed_round = found.round if found else 0
        reports: dict[str, dict[str, Any]] = {}
        payloads: Payloads = [(self._opening(with_weights=True), asking.roster.present)]
        _, refused = asking.ask(TaskName.INITIALIZE, payloads, self._start_timeout_s, introductions(reports))
        if reports:
            self.signature = Signature.of_most(reports)
        refused.update(self._take_in(reports))
        for site, reason in refused.items():
            asking.roster.lose(site, reason)
        asking.require_quorum("start", self._known, refused)
        return self._begin() if found is None else self._go_on(found)

    def admit(self, number: int, invite: bool) -> list[str]:
        """Take in the absent sites that have answered meanwhile, and ask those again that are due, waiting for none.

        Args:
            number: of the round that they take part in from now on, 0-based.
            invite: whether others are asked.

        Returns:
            sites that have built their workflow anew, and hold no weights of the federation.
        """
        asking = self._asking
        reports: dict[str, dict[str, Any]] = {}
        _, refused = asking.arrived(introductions(reports))
        refused.update(self._take_in(reports))
        for site, reason in sorted(refused.items()):
            if asking.roster.absent.get(site) != reason:  # else it has been told, a round ago
                asking.warning(f"round {number + 1}: {site} asked to take part, but {reason}")
            asking.roster.lose(site, reason)
        for site in sorted(reports.keys() - refused.keys()):
            asking.info(f"{site} takes part again from round {number + 1}")
        for site in asking.roster.due() if invite else ():
            known = site in self._known
            timeout_s = self._timeout_s if known else self._start_timeout_s
            asking.invite(TaskName.INITIALIZE, partial(self._opening, with_weights=not known), site, timeout_s)
        return sorted(reports)

    def _opening(self, with_weights: bool) -> Shareable:
        pretrained = self._pretrained if with_weights else None
        task = with_tensors(DataKind.WEIGHTS, read_weights(pretrained) if pretrained else {})
        task.set_header(Header.CARD, settings_in(read_card(pretrained), "architecture") if pretrained else {})
        task.set_header(Header.SITES, self._asking.roster.sites)
        task.set_header(Header.RESUME_ROUND, self._resumed_round)
        for header, value in self._terms.items():
            task.set_header(header, value)
        return task

    def _take_in(self, reports: Mapping[str, Mapping[str, Any]]) -> Reasons:
        """Those that fit; gives why the others do not."""
        refused: Reasons = {}
        for site in sorted(reports):
            try:
                problem = self._fitted(site, reports[site])
            except Exception as error:  # whatever a site tells of itself, the others' job goes on
                problem = f"what it tells of itself cannot be used: {type(error).__name__}"
            if problem:
                refused[site] = problem
        return refused

    def _fitted(self, site: str, report: Mapping[str, Any]) -> str | None:
        """Take a site in that fits; gives why it does not."""
        problem = self.signature.misfit(report, self._exchanging)
        if problem is None:
            line = introduced(report)
            self._facts.hear(site, report)
            counts = report["description"]
            self.declared[site] = Declared(counts["slices"], counts.get("validation_volumes", 0))
            self._known.add(site)
            self._asking.roster.admit(site)
            self._asking.info(f"{site}: {line}")
        return problem

    def _begin(self) -> RunState:
        weights, signature = self._initial_weights(), self.signature
        if self._pretrained:
            self._facts.pretrained = origin_of(read_card(self._pretrained))
        hashed, settings = signature.config_hash, dict(signature.settings)
        return RunState(weights, config_hash=hashed, settings=settings, facts=self._facts)

    def _go_on(self, found: RunState) -> RunState:
        problem = other_run(found, self.signature, self._averaging)
        if problem:
            raise JobFailed(problem)
        found.facts.declared.update(self._facts.declared)
        self._facts = found.facts
        self._averaging.load_state_dict(found.averaging)
        self._asking.info(f"resuming after {found.round} rounds")
        return found

    def _initial_weights(self) -> dict[str, Tensor]:
        """Of the first site by name that gives them, so that a repeated run begins with the same."""
        weights: dict[str, Tensor] = {}
        reasons: Reasons = {}

        def accept(site: str, answer: Shareable) -> str | None:
            weights.update(tensors_of(answer, DataKind.WEIGHTS))
            # With NaN in them no norm would be above the limit that follows from theirs.
            return self._averaging.misfit(weights, self.signature.spec) or not_finite(weights)

        for site in self._asking.roster.present:
            weights.clear()
            payloads: Payloads = [(with_report({}), [site])]
            taken, refused = self._asking.ask(TaskName.INITIAL_WEIGHTS, payloads, self._timeout_s, accept)
            if taken:
                return weights
            reasons.update(refused)
        raise JobFailed(f"no site gave initial weights. {listed(reasons)}")
