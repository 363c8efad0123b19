from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

from flare_app.executor import FCLExecutor
from flare_app.peers import UNKNOWN
from flare_app.protocol import Header, TaskName, reason_of, report_of, tensors_of, with_report, with_tensors
from tests.flare_app.loopback import FAKE_BUNDLE, FakeEngine, asking


def _executor(**arguments: Any) -> FCLExecutor:
    return FCLExecutor(**{"config": ["configs/fake.json"], "data": "toy", "bundle_root": FAKE_BUNDLE, **arguments})


def _initialize(exchange: str = "none", route: str = "peer") -> Shareable:
    task = with_tensors(DataKind.WEIGHTS, {})
    for name, value in ((Header.EXCHANGE, exchange), (Header.ROUTE, route), (Header.SITES, ["site-1", "site-2"])):
        task.set_header(name, value)
    task.set_header(Header.RESUME_ROUND, 0)
    return task


def _round(weights: dict[str, torch.Tensor], number: int = 0) -> Shareable:
    task = with_tensors(DataKind.WEIGHTS, weights)
    task.set_header(Header.ROUND, number)
    task.set_header(Header.TOTAL_ROUNDS, 3)
    return task


class Site:
    def __init__(self, root: Path, executor: FCLExecutor, **engine: Any) -> None:
        self.engine, self.executor, self.abort = FakeEngine(root, **engine), executor, Signal()

    def do(self, name: str, task: Shareable, by: str = "server") -> Shareable:
        fl_ctx = self.engine.context("site-1")
        with asking(fl_ctx, by):
            return self.executor.execute(name, task, fl_ctx, self.abort)

    def pull(self, number: Any, rows: Any = None, by: str = "site-2") -> Shareable:
        request = Shareable()
        request.set_header(Header.ROUND, number)
        request.set_header(Header.PULL_ROWS, rows)
        return self.do(TaskName.GET_FEATURES, request, by)

    def started(self, exchange: str = "none", route: str = "peer") -> dict[str, torch.Tensor]:
        reply = self.do(TaskName.INITIALIZE, _initialize(exchange, route))
        assert reply.get_return_code() == ReturnCode.OK, reason_of(reply)
        return tensors_of(self.do(TaskName.INITIAL_WEIGHTS, with_report({})), DataKind.WEIGHTS)


def test_unknown_task_is_declined(tmp_path: Path) -> None:
    assert Site(tmp_path, _executor()).do("dance", Shareable()).get_return_code() == ReturnCode.TASK_UNKNOWN


def test_only_a_job_with_the_right_to_bring_code_may_hold_some(tmp_path: Path) -> None:
    program = _executor(overrides={"batch_size": "$2 + 2"})
    reply = Site(tmp_path, program, byoc=False).do(TaskName.INITIALIZE, _initialize())
    assert reason_of(reply) == (
        "a job without the right to bring code must do without the override of 'batch_size', "
        "a bundle_root other than the installed bundle"
    )
    Site(tmp_path, program).started()


def test_a_folder_for_code_that_came_into_being_gives_no_right_to_it(tmp_path: Path) -> None:
    (tmp_path / "job" / "custom").mkdir(parents=True)
    reply = Site(tmp_path, _executor(), byoc=False).do(TaskName.INITIALIZE, _initialize())
    assert "without the right to bring code" in reason_of(reply)


@pytest.mark.parametrize("name", [TaskName.INITIAL_WEIGHTS, TaskName.SHARE, TaskName.TRAIN, TaskName.VALIDATE])
def test_process_without_state_refuses_with_the_fix(tmp_path: Path, name: str) -> None:
    reply = Site(tmp_path, _executor()).do(name, _round({}))
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert "run it with -t equal to -n" in reason_of(reply)


def test_signature_tells_architecture_and_counts(tmp_path: Path) -> None:
    report = report_of(Site(tmp_path, _executor()).do(TaskName.INITIALIZE, _initialize()))
    assert report["spec"] == {"encoder.bias": "float32 [8]", "encoder.weight": "float32 [8, 8]"}
    counts = {"slices": 24, "volumes": 2, "validation_volumes": 2}
    assert report["description"] == {**counts, "feature_length": 8, "partitions": 4}
    assert report["settings"] == {"config": ["configs/fake.json"], "overrides": {}, "seed": 0}


def test_update_is_the_difference_to_the_global_weights(tmp_path: Path) -> None:
    site = Site(tmp_path, _executor())
    weights = {name: tensor + 1 for name, tensor in site.started().items()}
    reply = site.do(TaskName.TRAIN, _round(weights))
    update, report = tensors_of(reply, DataKind.WEIGHT_DIFF), report_of(reply)
    assert site.executor._participant is not None
    for name, tensor in site.executor._participant.weights().items():
        torch.testing.assert_close(weights[name] + update[name], tensor)
    assert report["count"] == 24
    assert report["validation"] == {}
    assert set(report["metrics"]) == {"loss"}
    assert report["privacy"] is None
    assert site.engine.events == []


def test_what_was_trained_leaves_as_an_update_alone(tmp_path: Path) -> None:
    """The filters hold updates to norm and epsilon, and let initial weights go."""
    site = Site(tmp_path, _executor(checkpoint_dir="state"))
    weights = site.started()
    site.do(TaskName.VALIDATE, _round(weights))
    assert set(tensors_of(site.do(TaskName.INITIAL_WEIGHTS, with_report({})), DataKind.WEIGHTS)) == set(weights)
    assert {"seconds", "parts", "peak_mib"} <= set(report_of(site.do(TaskName.TRAIN, _round(weights))))
    resumed, resume = Site(tmp_path, _executor(checkpoint_dir="state")), _initialize()
    resume.set_header(Header.RESUME_ROUND, 1)
    assert report_of(resumed.do(TaskName.INITIALIZE, resume))["resumed_round"] == 1
    for asked in (site, resumed):
        reply = asked.do(TaskName.INITIAL_WEIGHTS, with_report({}))
        assert reason_of(reply) == "this site has begun to train, and has no initial weights any more"


def test_validation_is_of_the_weights_that_came(tmp_path: Path) -> None:
    site = Site(tmp_path, _executor())
    weights = site.started()
    expected = 1.0 / (1.0 + float(weights["encoder.weight"].square().sum()))
    task = _round(weights)
    task.set_header(Header.VALIDATE, True)
    report = report_of(site.do(TaskName.TRAIN, task))
    assert report["validation"] == {"mean_dice": pytest.approx(expected), "count": 2.0}
    assert report_of(site.do(TaskName.VALIDATE, _round(weights, 3)))["validation"] == report["validation"]


def test_a_site_that_validates_in_a_round_that_it_rests_in_goes_on_as_if_it_had_rested(tmp_path: Path) -> None:
    site = Site(tmp_path, _executor())
    weights = site.started()
    site.do(TaskName.TRAIN, _round(weights))
    participant = site.executor._participant
    assert participant is not None
    own = copy.deepcopy(participant.state_dict())
    moved = {name: tensor + 1.0 for name, tensor in weights.items()}
    report = report_of(site.do(TaskName.VALIDATE, _round(moved, 1)))
    expected = 1.0 / (1.0 + float(moved["encoder.weight"].square().sum()))
    assert report["validation"]["mean_dice"] == pytest.approx(expected)
    for name, tensor in own["network"].items():
        assert torch.equal(participant.state_dict()["network"][name], tensor)
    assert torch.equal(participant.state_dict()["rng"], own["rng"])


def test_peers_get_the_snapshot_of_the_round_and_each_a_copy(tmp_path: Path) -> None:
    site = Site(tmp_path, _executor())
    weights = site.started("features")
    assert "no features of round 0" in reason_of(site.pull(0))
    reply = site.do(TaskName.SHARE, _round(weights))
    assert report_of(reply) == {"rows": 16, "volumes": 2, "privacy": None}
    assert reply.get_header(Header.ROUND) == 0
    first, second = (tensors_of(site.pull(0), "FCL_FEATURES") for _ in range(2))
    assert torch.equal(first["features"], second["features"])
    first["features"].zero_()
    again = tensors_of(site.pull(0), "FCL_FEATURES")
    assert torch.equal(again["features"], second["features"])
    assert "no features of round 1" in reason_of(site.pull(1))


@pytest.mark.parametrize(
    ("number", "rows"),
    [(0.0, None), (False, None), ("0", None), (None, None), (-1, None), (0, 2.0), (0, True), (0, -1), (0, "all")],
)
def test_a_request_for_features_is_in_whole_numbers_and_none_of_it_is_echoed(
    tmp_path: Path, number: Any, rows: Any
) -> None:
    site = Site(tmp_path, _executor())
    site.do(TaskName.SHARE, _round(site.started("features")))
    assert site.pull(0).get_header(Header.ROUND) == 0
    reply = site.pull(number, rows)
    assert "in whole numbers" in reason_of(reply)
    assert reply.get_header(Header.ROUND) is None


@pytest.mark.parametrize(("asked", "shown"), [(None, 3), (10**6, 3), (2, 2)])
def test_a_peer_gets_no_more_rows_than_the_job_names(tmp_path: Path, asked: int | None, shown: int) -> None:
    site, task = Site(tmp_path, _executor()), _initialize("features")
    task.set_header(Header.PULL_ROWS, 3)
    site.do(TaskName.INITIALIZE, task)
    weights = tensors_of(site.do(TaskName.INITIAL_WEIGHTS, with_report({})), DataKind.WEIGHTS)
    site.do(TaskName.SHARE, _round(weights))
    assert len(tensors_of(site.pull(0, asked), "FCL_FEATURES")["features"]) == shown


@pytest.mark.parametrize("by", ["server", UNKNOWN])
def test_features_are_for_peers_alone(tmp_path: Path, by: str) -> None:
    site = Site(tmp_path, _executor())
    site.do(TaskName.SHARE, _round(site.started("features")))
    reply = site.pull(0, by=by)
    assert reason_of(reply) == f"'get_features' is for peers of this job to ask, not for {by}"
    assert "DXO" not in reply


def test_what_the_server_relays_is_not_for_peers_to_pull(tmp_path: Path) -> None:
    site = Site(tmp_path, _executor())
    site.do(TaskName.SHARE, _round(site.started("features", "relay")))
    assert reason_of(site.pull(0)) == "in this job the server relays features"


def test_a_job_without_exchange_shows_no_features(tmp_path: Path) -> None:
    site = Site(tmp_path, _executor())
    assert reason_of(site.do(TaskName.SHARE, _round(site.started()))) == "no features are shown in this job"
    assert "no features of round 0" in reason_of(site.pull(0))


@pytest.mark.parametrize("by", ["site-2", UNKNOWN])
def test_no_one_but_the_server_gets_a_task_done(tmp_path: Path, by: str) -> None:
    site = Site(tmp_path, _executor(checkpoint_dir="state"))
    weights = site.started("features")
    site.do(TaskName.SHARE, _round(weights))
    train = _round(weights)
    train.set_header(Header.PEERS, [])
    site.do(TaskName.TRAIN, train)
    journal, states = tmp_path / "job/fcl/journal.txt", [file.name for file in (tmp_path / "state").iterdir()]
    held, before = site.executor._weights.current, journal.read_text()
    others = {name: tensor + 777 for name, tensor in weights.items()}
    for name in set(TaskName.ALL) - {TaskName.GET_FEATURES}:
        task = _initialize("features", "relay") if name == TaskName.INITIALIZE else _round(others, 1)
        reply = site.do(name, task, by)
        assert reason_of(reply) == f"{name!r} is for the server to ask, not for {by}"
        assert "DXO" not in reply
    assert site.executor._weights.current is held
    assert site.executor._exchange.route == "peer"
    assert site.executor._published.round == 0  # type: ignore[union-attr]
    assert journal.read_text() == before
    assert [file.name for file in (tmp_path / "state").iterdir()] == states == ["round_00001.pt"]


def test_before_the_server_asks_nobody_can_make_a_site_forget_its_states(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    kept = tmp_path / "state/round_00009.pt"
    kept.write_bytes(b"of the run that will go on")
    site = Site(tmp_path, _executor(checkpoint_dir="state"))
    site.do(TaskName.INITIALIZE, _initialize(), by="site-2")
    assert kept.exists()
    site.started()
    assert not kept.exists()


@pytest.mark.parametrize(
    "changed",
    [
        {Header.EXCHANGE: "features"},
        {Header.ROUTE: "relay"},
        {Header.FEATURE_BITS: 8},
        {Header.PULL_ROWS: 3},
        {Header.WEIGHT_BITS: 8},
        {Header.ENCRYPTION: "he"},
    ],
)
def test_terms_hold_for_the_whole_job(tmp_path: Path, changed: dict[str, Any]) -> None:
    """Else a job that was opened without features could turn to them, past the privacy that the site wants for them."""
    site = Site(tmp_path, _executor())
    weights = site.started()
    task = _initialize()
    for name, value in changed.items():
        task.set_header(name, value)
    assert "the server asks for other terms than when this job began here" in reason_of(
        site.do(TaskName.INITIALIZE, task)
    )
    assert not site.executor._exchange.active
    again = _initialize()
    again.set_header(Header.RESUME_ROUND, 4)
    assert site.do(TaskName.INITIALIZE, again).get_return_code() == ReturnCode.OK
    assert site.do(TaskName.TRAIN, _round(weights)).get_return_code() == ReturnCode.OK


def test_training_with_exchange_needs_the_round_to_have_begun(tmp_path: Path) -> None:
    site = Site(tmp_path, _executor())
    site.started("features")
    task = _round({})
    task.set_header(Header.PEERS, ["site-1", "site-2"])
    assert reason_of(site.do(TaskName.TRAIN, task)) == "round 0 was not begun at this site"


def test_training_with_exchange_needs_features_of_the_same_round(tmp_path: Path) -> None:
    site = Site(tmp_path, _executor())
    weights = site.started("features")
    site.do(TaskName.SHARE, _round(weights))
    task = _round(weights, 1)
    task.set_header(Header.PEERS, ["site-1", "site-2"])
    assert reason_of(site.do(TaskName.TRAIN, task)) == "round 1 was not begun at this site"


def test_nonsense_of_a_peer_does_not_end_the_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    site = Site(tmp_path, _executor())
    weights = site.started("features")
    site.do(TaskName.SHARE, _round(weights))
    sparse = {"features": torch.eye(8).to_sparse(), "partition": torch.zeros(8, dtype=torch.int16)}
    sent = {"site-2": DXO("FCL_FEATURES", data=sparse, meta={"kind": "features", "round": 0, "volumes": 2})}
    site.executor._peers.pull = lambda *_: sent  # type: ignore[method-assign]
    task = _round(weights)
    task.set_header(Header.PEERS, ["site-2"])
    assert report_of(site.do(TaskName.TRAIN, task))["features_received"] == {}
    assert "features from site-2 are not accepted" in caplog.text


@pytest.mark.parametrize(("secure", "code"), [(False, ReturnCode.EXECUTION_EXCEPTION), (True, ReturnCode.OK)])
def test_peer_exchange_in_production_needs_certificates(tmp_path: Path, secure: bool, code: str) -> None:
    site = Site(tmp_path, _executor(), simulated=False, secure=secure)
    assert site.do(TaskName.INITIALIZE, _initialize("features")).get_return_code() == code


def test_error_texts_stay_at_the_site(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    site = Site(tmp_path, _executor(overrides={"fail": {"site-1/0": "raise"}}))
    reply = site.do(TaskName.TRAIN, _round(site.started()))
    assert reason_of(reply) == "FileNotFoundError in task 'train', see the log of site-1"
    assert "patient007" not in str(dict(reply))
    assert "patient007" in caplog.text


def test_abort_ends_training_early(tmp_path: Path) -> None:
    site = Site(tmp_path, _executor())
    weights = site.started()
    site.abort.trigger("stop")
    update = tensors_of(site.do(TaskName.TRAIN, _round(weights)), DataKind.WEIGHT_DIFF)
    assert all(not tensor.any() for tensor in update.values())


def test_site_settings_reach_the_workflow(tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / "local/fcl_site.json").write_text('{"batch_size": 7, "site": "mgh"}')
    site = Site(tmp_path, _executor(overrides={"batch_size": 5}))
    site.started()
    assert (site.executor._participant.batch_size, site.executor._participant.site) == (7, "mgh")  # type: ignore[union-attr]


def test_pretrained_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    task = with_tensors(DataKind.WEIGHTS, {"encoder.weight": torch.zeros(3, 3)})
    for name in (Header.EXCHANGE, Header.ROUTE, Header.SITES):
        task.set_header(name, _initialize().get_header(name))
    reply = Site(tmp_path, _executor()).do(TaskName.INITIALIZE, task)
    assert reason_of(reply) == "the pre-trained weights do not fit the network of configs/fake.json"


def test_state_is_saved_only_where_asked_and_an_earlier_run_is_forgotten(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "site-1"
    folder.mkdir(parents=True)
    (folder / "round_00009.pt").write_bytes(b"of an earlier run")
    site = Site(tmp_path / "ws", _executor(checkpoint_dir=str(tmp_path / "state")))
    weights = site.started()
    assert list(folder.iterdir()) == []
    site.do(TaskName.TRAIN, _round(weights))
    assert [file.name for file in folder.iterdir()] == ["round_00001.pt"]
    other = Site(tmp_path / "other", _executor())
    other.do(TaskName.TRAIN, _round(other.started()))
    assert list((tmp_path / "other").rglob("*.pt")) == []


def test_workflow_is_finalized_at_the_end_of_the_run(tmp_path: Path) -> None:
    site = Site(tmp_path, _executor())
    site.executor.handle_event(EventType.END_RUN, site.engine.context("site-1"))  # nothing was opened: nothing to end
    site.started()
    ended = []
    site.executor._workflow.finalize = lambda: ended.append(True)
    site.executor.handle_event(EventType.END_RUN, site.engine.context("site-1"))
    assert ended == [True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"config": []}, "config must name at least one config file"),
        ({"peer_timeout_s": 0}, "must be positive, got 0 and 65536"),
        ({"max_feature_rows": 0}, "must be positive, got 120.0 and 0"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _executor(**arguments)
