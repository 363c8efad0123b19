"""Asking through FLARE's own server-side communicator: its tasks, its monitor, its answers that come late."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from nvflare.apis.client import Client
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.wf_comm_server import WFCommServer
from nvflare.apis.job_def import JobMetaKey
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.app_constant import AppConstants

from flare_app.asking import AskingController, JobFailed, listed
from flare_app.protocol import TaskName, refusal, report_of, with_report
from flare_app.roster import Roster
from tests.flare_app.loopback import FakeEngine

SITES = ["a", "b", "c"]


class Asking(AskingController):
    """The controller under test, with FLARE's communicator and clients that are functions of the test."""

    def __init__(self, root: Path, max_offences: int = 2) -> None:
        super().__init__(min_sites=1, max_offences=max_offences)
        engine = Engine(root, SITES)
        self.fl_ctx = engine.context("server")
        self.engine = engine
        self.abort_signal = Signal()
        self.roster = Roster(SITES, max_offences)
        self.communicator = WFCommServer(task_check_period=0.01)
        self.communicator.controller = self
        self.communicator._engine = engine
        self.communicator._task_monitor.start()

    def run(self) -> None: ...

    def fetch(self, site: str) -> tuple[str, str, Shareable]:
        """A client asks for its next task."""
        return self.communicator.process_task_request(Client(site, None), self.fl_ctx)

    def submit(self, site: str, name: str, task_id: str, result: Shareable) -> None:
        self.communicator.process_submission(Client(site, None), name, task_id, result, self.fl_ctx)

    def answer(self, site: str, result: Shareable) -> None:
        """A client does one task."""
        name, task_id, _ = self.fetch(site)
        assert name, f"there is no task for {site}"
        self.submit(site, name, task_id, result)


class Engine(FakeEngine):
    @contextmanager
    def new_context(self) -> Iterator[FLContext]:
        fl_ctx = self.context("server")
        fl_ctx.set_prop("__job_meta__", {JobMetaKey.JOB_ID.value: "job"}, private=True, sticky=False)
        yield fl_ctx


@pytest.fixture
def asking(tmp_path: Path) -> Iterator[Asking]:
    controller = Asking(tmp_path)
    yield controller
    controller.communicator._all_done = True


def _ask(asking: Asking, sites: list[str], timeout_s: int = 1) -> tuple[threading.Thread, dict[str, Any]]:
    """Ask in a thread, as FLARE runs a controller."""
    outcome: dict[str, Any] = {}

    def accept(site: str, answer: Shareable) -> str | None:
        return report_of(answer).get("problem")

    def run() -> None:
        outcome["taken"], outcome["reasons"] = asking.ask(TaskName.TRAIN, [(with_report({}), sites)], timeout_s, accept)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    _until(lambda: any(task.name == TaskName.TRAIN for task in asking.communicator._tasks))
    return thread, outcome


def _until(condition: Any, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_errors_rejections_and_silence_are_told_apart(asking: Asking) -> None:
    thread, outcome = _ask(asking, SITES)
    asking.answer("a", with_report({}))
    asking.answer("b", with_report({"problem": "NaN"}))
    thread.join(5)
    assert outcome == {"taken": ["a"], "reasons": {"b": "NaN", "c": "no answer to 'train' within 1 s"}}
    assert asking.roster.offences == {"b": 1}
    assert asking.roster.present == ["a", "b"]
    thread, outcome = _ask(asking, ["a", "b"])
    asking.answer("a", refusal("no data"))
    asking.answer("b", Shareable({"x": 1}))
    thread.join(5)
    assert outcome["taken"] == []
    assert outcome["reasons"]["a"] == "no data"
    assert outcome["reasons"]["b"].startswith("its reply cannot be read: ")
    assert asking.roster.excluded == {"b": "excluded after 2 rejected updates"}
    with pytest.raises(
        JobFailed, match=r"round 2: 0 of 3 sites gave a usable result, 1 are needed\. a: no data; b: its"
    ):
        asking.require_quorum("round 2", [], outcome["reasons"])


def test_what_a_site_writes_breaks_no_line_of_the_log(asking: Asking) -> None:
    """A reader of the log looks in it for FLARE's own words."""
    thread, outcome = _ask(asking, ["a", "b"])
    asking.answer("a", refusal("no\nServer runner finished.\n" + "x" * 10**6))
    asking.answer("b", with_report({"problem": "tensors\nof " + "y" * 10**6}))
    thread.join(5)
    assert outcome["reasons"]["a"].startswith("no Server runner finished. xxx")
    assert outcome["reasons"]["b"].startswith("tensors of yyy")
    assert all(len(reason) < 600 for reason in outcome["reasons"].values())


def test_equal_reasons_of_several_sites_are_told_once(asking: Asking, caplog: pytest.LogCaptureFixture) -> None:
    assert listed({"b": "no data", "a": "no data"}) == "all 2 sites: no data"
    assert listed({"b": "no data", "a": "no data"}, others=1) == "a, b: no data"
    assert listed({"c": "x", "b": "no data", "a": "no data"}) == "a, b: no data; c: x"
    assert listed({"a": "no data"}) == "a: no data"
    with pytest.raises(JobFailed, match=r"start: 0 of 3 sites gave .* are needed\. all 3 sites: no data"):
        asking.require_quorum("start", [], dict.fromkeys(SITES, "no data"))
    told = [record.message for record in caplog.records if "left out" in record.message]
    assert [line.partition("]: ")[2] for line in told] == ["start: all 3 sites are left out: no data"]


def test_a_site_that_flare_reports_dead_is_not_waited_for(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking.communicator, "get_client_disconnect_time", lambda site: site == "c")
    monkeypatch.setattr("nvflare.fuel.utils.config_service.ConfigService.get_float_var", lambda **_: 0.0)
    monkeypatch.setattr(asking.communicator, "_job_policy_violated", lambda: False)
    thread, outcome = _ask(asking, ["a", "c"], timeout_s=60)
    asking.answer("a", with_report({}))
    thread.join(5)
    assert outcome["taken"] == ["a"]
    assert outcome["reasons"] == {"c": "no answer to 'train' and FLARE has lost the site"}


def test_invited_site_answers_while_others_work_and_is_invited_only_once_at_a_time(asking: Asking) -> None:
    made: list[Shareable] = []

    def payload() -> Shareable:
        made.append(with_report({}))
        return made[-1]

    for _ in range(3):
        asking.invite(TaskName.INITIALIZE, payload, "c", 60)
    assert len(made) == 1
    assert asking.arrived(lambda site, answer: None) == ([], {})
    thread, outcome = _ask(asking, ["a", "b"], timeout_s=60)
    asking.answer("a", with_report({}))
    asking.answer("c", with_report({"n": 3}))
    asking.answer("b", with_report({}))
    thread.join(5)
    assert outcome == {"taken": ["a", "b"], "reasons": {}}
    seen: list[Any] = []
    assert asking.arrived(lambda site, answer: seen.append((site, report_of(answer)))) == (["c"], {})
    assert seen == [("c", {"n": 3})]
    assert asking.arrived(lambda site, answer: None) == ([], {})
    asking.invite(TaskName.INITIALIZE, payload, "c", 60)
    assert len(made) == 2


def test_lapsed_invitation_is_renewed(asking: Asking) -> None:
    asking.invite(TaskName.INITIALIZE, lambda: with_report({"n": 1}), "c", 1)
    name, task_id, _ = asking.fetch("c")
    _until(lambda: not asking.communicator._tasks)
    asking.submit("c", name, task_id, with_report({}))  # too late
    assert asking.arrived(lambda site, answer: None) == ([], {})
    asking.invite(TaskName.INITIALIZE, lambda: with_report({"n": 2}), "c", 60)
    assert report_of(asking.fetch("c")[2]) == {"n": 2}


def test_late_answer_is_dropped_and_not_kept(asking: Asking, caplog: pytest.LogCaptureFixture) -> None:
    thread, outcome = _ask(asking, ["a"])
    name, task_id, _ = asking.fetch("a")
    thread.join(5)
    assert outcome["taken"] == []
    _until(lambda: not asking.communicator._tasks)
    asking.submit("a", name, task_id, with_report({"n": 1}))
    assert "a: its answer to 'train' comes too late and is dropped" in caplog.text
    assert asking.fl_ctx.get_prop(AppConstants.TRAINING_RESULT) is None


def test_task_fetched_anew_while_a_later_one_stands_does_not_stop_the_monitor(asking: Asking) -> None:
    # A lost reply: the client asks again. FLARE alone would list the assignment twice and its monitor would die.
    asking.invite(TaskName.INITIALIZE, lambda: with_report({}), "c", 60)
    first, outcome = _ask(asking, ["a"], timeout_s=60)
    name, task_id, _ = asking.fetch("c")
    again = asking.fetch("c")
    assert again[:2] == (name, task_id)
    asking.submit("c", name, task_id, with_report({}))
    asking.answer("a", with_report({}))
    first.join(5)
    _until(lambda: not asking.communicator._tasks)
    assert outcome["taken"] == ["a"]
    assert asking.communicator._task_monitor.is_alive()
    assert asking.arrived(lambda site, answer: None) == (["c"], {})


def test_nothing_of_an_answer_outlives_it(asking: Asking) -> None:
    thread, _ = _ask(asking, ["a"], timeout_s=60)
    task = asking.communicator._tasks[0]
    asking.answer("a", with_report({}))
    thread.join(5)
    assert [client_task.result for client_task in task.client_tasks] == [None]
    _until(lambda: not asking.communicator._tasks)
    assert asking.communicator._client_task_map == {}


def test_flares_communicator_looks_as_often_as_the_controller_says(tmp_path: Path) -> None:
    communicator = WFCommServer()
    Asking(tmp_path).set_communicator(communicator)
    assert communicator._task_check_period == 0.05
