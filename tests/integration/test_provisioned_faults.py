"""Faults on a provisioned system: processes that are killed, sites that are late, vanish or send nonsense."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fcl.data.phantom import generate
from flare_app.job import JobSettings, export_job
from flare_app.provision.builder import adapt_kit
from flare_app.provision.system import wait_until
from tests.integration.jobs import FAKE, PRETRAIN
from tests.integration.provisioned import Federation, Result, provisioned

pytestmark = pytest.mark.slow
A, B, C = "hospital-a", "hospital-b", "hospital-c"
DEAD_AFTER_S = 30


@pytest.fixture(scope="module")
def marks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a fake site says that it waits, and is told to go on."""
    return tmp_path_factory.mktemp("marks")


@pytest.fixture(scope="module")
def pretrain(tmp_path_factory: pytest.TempPathFactory) -> JobSettings:
    """Pre-training on a phantom with a part for each site."""
    data = generate(tmp_path_factory.mktemp("phantom"), sites=3, patients=3, folds=3, seed=0)
    split = json.loads((data / "split.json").read_text())
    split["sites"] = dict(zip((A, B, C), split["sites"].values(), strict=True))
    (data / "split.json").write_text(json.dumps(split))
    where = {"dataset_dir": str(data), "split_file": str(data / "split.json")}
    return replace(PRETRAIN, rounds=7, overrides={**PRETRAIN.overrides, **where})


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory, marks: Path) -> Iterator[Federation]:
    folder = tmp_path_factory.mktemp("federation")
    env = {"FAKE_FOLDER": str(marks), "FCL_CACHE_DIR": str(folder / "cache")}
    with provisioned(folder, sites=3, env=env, start=False) as federation:
        adapt_kit(federation.kits[federation.server], dead_after_s=DEAD_AFTER_S)
        federation.start()
        federation.wait_ready()
        yield federation


@pytest.fixture(scope="module")
def whole(federation: Federation, pretrain: JobSettings) -> Result:
    """A run that nothing interrupts."""
    result = federation.run(replace(pretrain, checkpoint_dir="state/whole"))
    assert result.completed, result.explain()
    return result


def _job(state: str, **fail: str) -> JobSettings:
    """Keyword ``c_2="wait"`` makes hospital-c wait in round 2."""
    failures = {f"hospital-{key[0]}/{key[2:]}": what for key, what in fail.items()}
    return replace(FAKE, rounds=4, checkpoint_dir=f"state/{state}", overrides={"fail": failures})


def _wait_for(marks: Path, federation: Federation, name: str) -> None:
    assert wait_until((marks / f"{name}.waiting").exists, 300, poll_s=0.05), federation.tail()


def _assert_same_bits(one: Result, other: Result) -> None:
    ours, theirs = one.weights(), other.weights()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for what in ("metrics", "validation"):
        assert [line[what] for line in one.rounds] == [line[what] for line in other.rounds]


def test_job_killed_at_a_site_and_then_at_the_server_resumes_to_the_same_bits(
    federation: Federation, pretrain: JobSettings, whole: Result
) -> None:
    job = replace(pretrain, checkpoint_dir="state/killed")
    began = federation.begin(job)
    federation.wait_rounds(began, 2, timeout_s=500)
    federation.kill_job_process(B)
    killed = federation.end(began)
    assert killed.status == "FINISHED:EXECUTION_EXCEPTION"
    assert killed.card()["rounds"] in (2, 3)
    federation.wait_idle(timeout_s=300)
    again = federation.begin(replace(job, resume=True))
    federation.wait_rounds(again, 5, timeout_s=500)  # a round is logged before it is saved
    federation.restart(federation.server)
    federation.wait_idle(timeout_s=300)
    assert federation.look(again).card()["rounds"] in (4, 5, 6)
    resumed = federation.run(replace(job, resume=True))
    assert resumed.completed, resumed.explain()
    _assert_same_bits(resumed, whole)


def test_offender_is_excluded_errors_are_not_held_against_a_site_and_without_quorum_the_job_fails(
    federation: Federation,
) -> None:
    fail = {"c_*": "huge", "a_2": "raise", "a_3": "raise", "b_3": "nan"}
    result = federation.run(replace(_job("offender", **fail), min_sites=1))
    assert result.status == "FINISHED:EXECUTION_EXCEPTION"
    reason = (
        "round 4: 0 of 3 sites gave a usable result, 1 are needed. "
        f"{A}: FileNotFoundError in task 'train', see the log of {A}; {B}: a filter at the site let nothing out "
        f"(TASK_RESULT_FILTER_ERROR), see the log of that site; "
        f"{C}: excluded after 2 rejected updates"
    )
    assert any(reason in error for error in result.outcome.errors), result.explain()
    assert [line["accepted"] for line in result.rounds] == [[A, B], [A, B], [B]]
    assert "the norm of its update is" in result.rounds[0]["rejected"][C]
    assert result.rounds[2]["rejected"] == {A: f"FileNotFoundError in task 'train', see the log of {A}"}
    assert result.rounds[2]["left_out"] == {C: "excluded after 2 rejected updates"}
    assert result.card()["rounds"] == 3
    assert all(bool(torch.isfinite(tensor).all()) for tensor in result.weights().values())
    assert "patient007" in federation.log(A)
    assert "patient007" not in result.output


def test_late_and_skipping_sites_take_part_from_the_next_round(federation: Federation, marks: Path) -> None:
    job = replace(_job("late", **{"c_-1": "unready", "b_2": "wait"}), rounds=16, min_sites=1, task_timeout_s=20)
    began = federation.begin(job)
    _wait_for(marks, federation, f"{B}_2")
    (marks / f"{C}_-1.go").touch()
    federation.wait_rounds(began, 5)
    (marks / f"{B}_2.go").touch()
    result = federation.end(began)
    assert result.completed, result.explain()
    lines = result.rounds
    assert lines[0]["left_out"] == {C: f"FileNotFoundError in task 'initialize', see the log of {C}"}
    assert lines[2]["rejected"] == {B: "no answer to 'train' within 20 s"}
    assert lines[3]["left_out"][B] == lines[4]["left_out"][B] == lines[2]["rejected"][B]
    assert lines[3]["seconds"] < 20  # nobody waits for it a second time
    assert lines[-2]["accepted"] == [A, B, C]
    assert lines[-2]["sites"][A]["features_from"] == [B, C]
    for site in (B, C):
        assert f"{site} takes part" in result.output


def test_job_goes_on_without_a_site_that_has_vanished(federation: Federation, marks: Path, tmp_path: Path) -> None:
    settings = replace(_job("vanished", c_1="wait"), task_timeout_s=600)
    folder = export_job(settings, tmp_path)
    server = folder / "app/config/config_fed_server.json"
    patience = {"dead_client_grace_period": 5.0, "dead_client_check_lead_time": 5.0}  # FLARE's defaults: 60 and 30 s
    server.write_text(json.dumps({**json.loads(server.read_text()), **patience}))
    began = replace(
        federation.begin(folder), settings=settings, live=federation.kits[federation.server] / "state/vanished"
    )
    _wait_for(marks, federation, f"{C}_1")
    federation.kill(C)
    vanished = time.monotonic()
    federation.wait_rounds(began, 2, timeout_s=500)
    waited = time.monotonic() - vanished
    result = federation.end(began)
    federation.start(C)
    federation.wait_ready()
    assert result.completed, result.explain()
    assert waited < 300, "heart beats tell of it, long before the task's own timeout"
    assert result.rounds[1]["rejected"] == {C: "no answer to 'train' and FLARE has lost the site"}
    assert [line["accepted"] for line in result.rounds] == [[A, B, C], *[[A, B]] * 4]
