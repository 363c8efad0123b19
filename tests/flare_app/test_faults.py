"""What the job does when sites fail it, each in a loopback federation: one row of the fault table per test."""

from __future__ import annotations

import errno
import gc
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from fcl.networks.weights import read_card, read_weights
from flare_app.records import read_rounds
from flare_app.state import RunState
from tests.flare_app.loopback import THREE_SITES, Federation, three_sites


def _offences(folder: Path) -> dict[str, int]:
    state = RunState.load(folder)
    assert state is not None
    return state.offences


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("nan", "NaN or infinite values in encoder.bias"),
        ("shape", "its tensors do not fit the global weights: encoder.bias is float32 [2, 8], not float32 [8]"),
        ("huge", "the norm of its update is"),
    ],
)
def test_repeated_offence_excludes_the_site_for_the_rest_of_the_job(
    tmp_path: Path, fault: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    federation = three_sites(tmp_path, 4, {"site-2/*": fault}).run()
    assert federation.panics == []
    assert federation.accepted() == [["1", "3"]] * 5
    records = read_rounds(federation.results / "rounds.jsonl")
    assert [record["rejected"].get("site-2", "")[: len(reason)] for record in records] == [reason, reason, "", "", ""]
    excluded = {"site-2": "excluded after 2 rejected updates"}
    assert [record["left_out"] for record in records] == [{}, {}, excluded, excluded, excluded]
    assert federation.asked_for("train") == [["1", "2", "3"]] * 2 + [["1", "3"]] * 2
    assert "site-2 is excluded after 2 rejected updates: it takes no part in the rest of the job" in caplog.text
    assert all(torch.isfinite(tensor).all() for tensor in read_weights(federation.results / "last.pt").values())


def test_huge_update_leaves_the_average_of_the_others(tmp_path: Path) -> None:
    federation = three_sites(tmp_path, 1, {"site-2/0": "huge"}, controller={"validate_every": 0}).run()
    first, third = (federation.executors[site]._participant.weights() for site in ("site-1", "site-3"))  # type: ignore[union-attr]
    for name, tensor in read_weights(federation.results / "last.pt").items():
        torch.testing.assert_close(tensor, (first[name] + third[name]) / 2, rtol=0, atol=1e-6)


def test_exclusion_outlasts_a_resume(tmp_path: Path) -> None:
    fail, state = {"site-2/0": "nan", "site-2/1": "huge"}, str(tmp_path / "state")
    three_sites(tmp_path / "a", 2, fail, controller={"checkpoint_dir": state}).run()
    assert _offences(tmp_path / "state/server") == {"site-2": 2}
    resumed = three_sites(tmp_path / "b", 3, fail, controller={"checkpoint_dir": state, "resume": True}).run()
    assert resumed.panics == []
    assert resumed.asked_for("initialize") == [["1", "3"]]
    assert resumed.accepted()[2] == ["1", "3"]


def test_errors_are_no_offence(tmp_path: Path) -> None:
    federation = three_sites(tmp_path, 4, {f"site-2/{number}": "raise" for number in range(3)}).run()
    assert federation.panics == []
    assert federation.accepted() == [["1", "3"]] * 3 + [["1", "2", "3"]] * 2
    assert _offences(federation.results) == {}


def test_silent_site_is_waited_for_once_and_takes_part_from_the_round_after_it_answers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    federation = three_sites(tmp_path, 6, silent={"site-2": ["train/1"]}).run()
    assert federation.panics == []
    # Lost in round 1, invited before round 2, in again from round 3.
    assert federation.asked_for("share") == [["1", "2", "3"], ["1", "2", "3"], ["1", "3"], *[["1", "2", "3"]] * 3]
    assert federation.accepted() == [["1", "2", "3"], ["1", "3"], ["1", "3"], *[["1", "2", "3"]] * 4]
    records = read_rounds(federation.results / "rounds.jsonl")
    assert records[1]["rejected"] == {"site-2": "no answer to 'train' within 7 s"}
    assert records[2]["left_out"] == {"site-2": "no answer to 'train' within 7 s"}
    assert records[3]["sites"]["site-1"]["features_from"] == ["site-2", "site-3"]
    assert "site-2 takes part again from round 4" in caplog.text
    assert "site-2: takes part again with the state that it has, after 1 rounds" in caplog.text


def test_site_that_is_late_for_the_start_takes_part_as_soon_as_it_is_ready(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    federation = Federation(
        tmp_path / "a",
        THREE_SITES,
        {"num_rounds": 5, "checkpoint_dir": state},
        {"checkpoint_dir": state},
        silent={"site-3": ["initialize#2"]},
    ).run()
    assert federation.panics == []
    assert federation.accepted() == [["1", "2"], ["1", "2"], *[["1", "2", "3"]] * 4]
    assert federation.executors["site-3"]._trained == 5
    assert sorted(file.name for file in (tmp_path / "state/site-3").iterdir()) == [
        "round_00003.pt",
        "round_00004.pt",
        "round_00005.pt",
    ]


def test_late_sites_stay_out_where_the_job_says_so(tmp_path: Path) -> None:
    federation = three_sites(tmp_path, 4, silent={"site-2": ["train/0"]}, controller={"admit_late": False}).run()
    assert federation.accepted() == [["1", "3"]] * 5
    assert len(federation.asked_for("initialize")) == 1


def test_site_that_is_always_too_slow_is_waited_for_ever_more_rarely(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = str(tmp_path / "state")
    settings = {"num_rounds": 11, "task_timeout_s": 7, "checkpoint_dir": state}
    silent = {"site-2": ["train"]}
    federation = Federation(tmp_path / "a", THREE_SITES, settings, silent=silent).run()
    assert federation.panics == []
    records = read_rounds(federation.results / "rounds.jsonl")
    # 1, 2 and 4 rounds go by without it.
    assert [record["round"] for record in records if "site-2" in record["rejected"]] == [0, 2, 5, 10]
    assert "site-2 has left 3 tasks unanswered since its last usable update: at least 4 rounds go by" in caplog.text
    resumed = Federation(tmp_path / "b", THREE_SITES, {**settings, "num_rounds": 21, "resume": True}, silent=silent)
    resumed.run()
    records = read_rounds(resumed.results / "rounds.jsonl")[11:]
    assert [record["round"] for record in records if "site-2" in record["rejected"]] == [11]
    assert "at least 16 rounds go by" in caplog.text


def test_usable_update_makes_up_for_earlier_silence(tmp_path: Path) -> None:
    settings = {"num_rounds": 7}
    federation = Federation(tmp_path, THREE_SITES, settings, silent={"site-2": ["train/0", "train/3"]}).run()
    assert [["2" in sites for sites in federation.accepted()]] == [[False, False, True, False, False, True, True, True]]
    assert federation.controller._state.silences == {}


def test_vanished_site_is_waited_for_once(tmp_path: Path) -> None:
    federation = three_sites(tmp_path, 4, silent={"site-1": ["share/1"]}, gone=["site-1"])
    first = federation._broadcast

    def broadcast(task: Any, *rest: Any, **named: Any) -> None:
        first(task, *rest, **named)
        if task.name == "share" and task.data.get_header("current_round") == 1:
            federation.silent = {"site-1": ["initialize", "share", "train", "validate"]}

    federation.controller.broadcast = broadcast  # type: ignore[method-assign]
    federation.run()
    assert federation.panics == []
    assert federation.accepted() == [["1", "2", "3"], *[["2", "3"]] * 4]
    assert federation.asked_for("share")[2:] == [["2", "3"]] * 2
    record = read_rounds(federation.results / "rounds.jsonl")[1]
    assert record["rejected"] == {"site-1": "no answer to 'share' and FLARE has lost the site"}


def test_too_many_silent_sites_end_the_job_with_every_reason(tmp_path: Path) -> None:
    federation = three_sites(tmp_path, 3, {"site-1/1": "raise"}, silent={"site-2": ["train/0"], "site-3": []}).run()
    assert federation.panics == [
        "round 2: 1 of 3 sites gave a usable result, 2 are needed. "
        "site-1: FileNotFoundError in task 'train', see the log of site-1; "
        "site-2: no answer to 'train' within 7 s"
    ]


@pytest.mark.parametrize("late", [False, True])
def test_site_of_another_architecture_is_left_out_by_name_and_has_not_offended(
    tmp_path: Path, late: bool, caplog: pytest.LogCaptureFixture
) -> None:
    silent = {"site-3": ["initialize#1"]} if late else {}
    federation = three_sites(tmp_path, 4, silent=silent)
    executor, opened = federation.executors["site-3"], federation.executors["site-3"]._open

    def other(*arguments: Any, **named: Any) -> None:
        opened(*arguments, **named)
        executor._participant.weights = lambda: {"encoder.weight": torch.zeros(3, 3)}  # type: ignore[union-attr]

    executor._open = other  # type: ignore[method-assign]
    federation.run()
    assert federation.panics == []
    assert federation.accepted() == [["1", "2"]] * 5
    reasons = [record["left_out"]["site-3"] for record in read_rounds(federation.results / "rounds.jsonl")]
    problem = "it has another architecture than the other sites: missing encoder.bias"
    assert all(reason.startswith(problem) for reason in reasons[late:])
    assert _offences(federation.results) == {}
    assert federation.asked_for("train") == [["1", "2"]] * 4  # nobody waits for it
    assert federation.asked_for("initialize") == [["1", "2", "3"], *[["3"]] * 4]
    assert caplog.text.count("asked to take part, but it has another architecture") == late  # it is told once


@pytest.mark.parametrize("route", ["peer", "relay"])
def test_reply_without_sense_is_an_offence_and_harms_nobody(tmp_path: Path, route: str) -> None:
    federation = three_sites(tmp_path, 3, controller={"route": route})
    execute = federation.execute

    def nonsense(site: str, name: str, data: Any, **rest: Any) -> Any:
        reply = execute(site, name, data, **rest)
        if site == "site-2" and name in ("share", "train"):
            reply["DXO"]["data"], reply["DXO"]["meta"] = {"x": "y"}, {}
        return reply

    federation.execute = nonsense  # type: ignore[method-assign]
    federation.run()
    assert federation.panics == []
    assert federation.accepted() == [["1", "3"]] * 3 + [["1", "3"]]
    records = read_rounds(federation.results / "rounds.jsonl")
    assert records[0]["rejected"]["site-2"].startswith("its reply cannot be read: ")
    assert records[2]["left_out"] == {"site-2": "excluded after 2 rejected updates"}


def test_metrics_that_are_no_numbers_are_an_offence(tmp_path: Path) -> None:
    federation = three_sites(tmp_path, 1)
    execute = federation.execute

    def spoiled(site: str, name: str, data: Any, **rest: Any) -> Any:
        reply = execute(site, name, data, **rest)
        if site == "site-2" and name == "train":
            reply["DXO"]["meta"]["report"]["metrics"]["loss"] = float("nan")
        return reply

    federation.execute = spoiled  # type: ignore[method-assign]
    federation.run()
    assert read_rounds(federation.results / "rounds.jsonl")[0]["rejected"] == {
        "site-2": "its reply cannot be read: ValueError: metrics that are no finite numbers: loss"
    }


def _full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_at_a_site_is_no_result_and_names_the_folder_there_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    state = str(tmp_path / "state")
    federation = Federation(tmp_path / "a", THREE_SITES, {"num_rounds": 2}, {"checkpoint_dir": state})
    train = federation.executors["site-2"]._train

    def on_a_full_disk(*arguments: Any) -> Any:
        with monkeypatch.context() as patched:
            patched.setattr(torch, "save", _full)
            return train(*arguments)

    federation.executors["site-2"]._tasks["train"] = on_a_full_disk
    federation.run()
    assert federation.panics == []
    record = read_rounds(federation.results / "rounds.jsonl")[0]
    assert record["rejected"] == {"site-2": "the state after round 1 cannot be saved, see the log of site-2"}
    assert record["accepted"] == ["site-1", "site-3"]
    assert f"cannot be written to {state}/site-2: No space left on device" in caplog.text
    assert list((tmp_path / "state/site-2").iterdir()) == []


def test_site_with_a_folder_that_it_cannot_write_is_left_out_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    federation = Federation(
        tmp_path / "a",
        THREE_SITES,
        {"num_rounds": 1},
        {"checkpoint_dir": str(tmp_path / "state")},
        per_site={"site-3": {"checkpoint_dir": str(tmp_path / "file")}},
    ).run()
    assert federation.panics == []
    record = read_rounds(federation.results / "rounds.jsonl")[0]
    assert record["left_out"] == {"site-3": "this site cannot save its state, see the log of site-3"}


def test_full_disk_at_the_server_ends_the_job_with_the_folder_and_leaves_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = str(tmp_path / "state")
    three_sites(tmp_path / "a", 2, controller={"checkpoint_dir": state}).run()
    before = {file.name: file.read_bytes() for file in (tmp_path / "state/server").glob("*.pt")}
    federation = three_sites(tmp_path / "b", 3, controller={"checkpoint_dir": state, "resume": True})
    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", _full)
        federation.run()
    assert federation.panics == [
        f"the checkpoint after round 3 cannot be written to {state}/server: No space left on device. Nothing that was "
        "saved before is lost: free space or give write access there, then resume the job"
    ]
    assert {file.name: file.read_bytes() for file in (tmp_path / "state/server").glob("*.pt")} == before
    assert three_sites(tmp_path / "c", 3, controller={"checkpoint_dir": state, "resume": True}).run().panics == []


def test_server_folder_that_cannot_be_written_ends_the_job_before_any_task(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    federation = three_sites(tmp_path / "a", 1, controller={"checkpoint_dir": str(tmp_path / "file")}).run()
    assert "/file/server: Not a directory" in federation.panics[0]
    assert federation.asked == []


@pytest.mark.parametrize("damaged", [False, True])
def test_server_killed_after_the_sites_saved_goes_back_with_them(tmp_path: Path, damaged: bool) -> None:
    """The sites are one round ahead of the server, and two when its newest checkpoint is damaged as well."""
    whole = three_sites(tmp_path / "whole", 5).run()
    state = str(tmp_path / "state")
    arguments = {"checkpoint_dir": state}
    executor = {"overrides": {"fail": {}}, "checkpoint_dir": state}
    settings = {"num_rounds": 5, "exchange": "features", "task_timeout_s": 7, **arguments}
    first = Federation(tmp_path / "first", THREE_SITES, settings, executor)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    round_of = first.controller._round

    def dies_before_it_saves(number: int) -> Any:
        record = round_of(number)
        if number == 3:
            first.controller._state.save = killed  # type: ignore[assignment,method-assign]
        return record

    first.controller._round = dies_before_it_saves  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        first.run()
    server = tmp_path / "state/server"
    assert read_card(server / "last.pt")["rounds"] == 3
    if damaged:
        (server / "last.pt").write_bytes(b"half a checkpoint")
    second = Federation(tmp_path / "second", THREE_SITES, {**settings, "resume": True}, executor).run()
    assert second.panics == []
    ours, theirs = (read_weights(federation.results / "last.pt") for federation in (second, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    rounds = [record["round"] for record in read_rounds(second.results / "rounds.jsonl")]
    assert rounds == [0, 1, 2, 3, 4, 5]


def test_server_holds_no_more_tensors_after_fifty_rounds_than_after_five(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: dict[int, int] = {}
    failures = {"site-2/7": "nan", "site-1/20": "shape"}
    silent = {"site-3": ["train/11", "share/30"]}
    federation = three_sites(tmp_path, 50, failures, silent=silent, controller={"validate_every": 0})
    for module in ("controller", "executor"):  # it collects garbage after every round: too slow to do 200 times here
        monkeypatch.setattr(f"flare_app.{module}.cleanup_memory", lambda: None)
    save = federation.controller._round

    def counted(number: int) -> Any:
        record = save(number)
        federation.replies.clear()  # what this federation notes for other tests
        if number in (4, 49):
            gc.collect()
            counts[number] = sum(type(entry) is torch.Tensor for entry in gc.get_objects())
        return record

    federation.controller._round = counted  # type: ignore[method-assign]
    federation.run()
    assert federation.panics == []
    assert counts[49] <= counts[4]
