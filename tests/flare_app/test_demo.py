from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from flare_app import demo
from flare_app.demo import main, parse
from flare_app.meter import Meter
from flare_app.steps import StepFailed, Steps, read_progress, run_process


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def _printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


class _Work:
    """A step that writes one file and counts how often it was asked to."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0

    def __call__(self) -> None:
        self.count += 1
        self.folder.mkdir()
        (self.folder / "out").write_text("x")

    def do(self, steps: Steps, name: str, after: tuple[str, ...] = (), **arguments: Any) -> None:
        steps.do(name, arguments, after, self.folder, [self.folder / "out"], self)


def test_finished_step_is_skipped_until_an_argument_or_its_output_changes(tmp_path: Path, console: Console) -> None:
    work = _Work(tmp_path / "a")
    for rounds, count in ((2, 1), (2, 1), (3, 2), (3, 2)):
        work.do(Steps(tmp_path, console), "a", rounds=rounds)
        assert work.count == count
    (tmp_path / "a" / "out").unlink()
    work.do(Steps(tmp_path, console), "a", rounds=3)
    assert work.count == 3


def test_step_is_redone_after_the_one_it_builds_on(tmp_path: Path, console: Console) -> None:
    first, second = _Work(tmp_path / "a"), _Work(tmp_path / "b")
    for seed, count in ((0, 1), (0, 1), (1, 2)):
        steps = Steps(tmp_path, console)
        first.do(steps, "a", seed=seed)
        second.do(steps, "b", ("a",))
        assert (first.count, second.count) == (count, count)


def test_failed_step_is_no_finished_one(tmp_path: Path, console: Console) -> None:
    work = _Work(tmp_path / "a")
    work.do(Steps(tmp_path, console), "a", rounds=1)

    def fail() -> None:
        raise StepFailed("no")

    with pytest.raises(StepFailed, match="no"):
        Steps(tmp_path, console).do("a", {"rounds": 2}, (), work.folder, [], fail)
    with pytest.raises(StepFailed, match="without writing"):
        Steps(tmp_path, console).do("a", {"rounds": 2}, (), work.folder, [work.folder / "out"], lambda: None)
    work.do(Steps(tmp_path, console), "a", rounds=1)
    assert work.count == 2


def test_process_logs_and_shows_how_far_it_is(tmp_path: Path, console: Console) -> None:
    log = tmp_path / "logs" / "x.log"
    with Meter(console, "rounds", 4) as meter:
        run_process(_python("print('hello')"), log, meter, lambda: (2, "loss 1.0"))
    assert log.read_text() == "hello\n"
    assert "rounds 2/4, loss 1.0, about" in _printed(console)
    assert _printed(console).count("2/4") == 1


def test_failure_shows_the_end_of_the_log_and_its_path(tmp_path: Path, console: Console) -> None:
    code = "for i in range(100): print('line', i)\nraise SystemExit(3)"
    with Meter(console, "x", 1) as meter, pytest.raises(StepFailed) as error:
        run_process(_python(code), tmp_path / "x.log", meter, lambda: (0, ""))
    text = str(error.value)
    assert "line 99" in text
    assert "line 5\n" not in text
    assert "code 3" in text
    assert str(tmp_path / "x.log") in text


def test_interrupt_ends_the_process_and_those_in_other_sessions(tmp_path: Path, console: Console) -> None:
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)\n"
        "print(child.pid, flush=True)\ntime.sleep(60)"
    )
    log = tmp_path / "x.log"

    def look() -> tuple[int, str]:
        if log.read_text().strip():
            raise KeyboardInterrupt
        return 0, ""

    with Meter(console, "x", 1) as meter, pytest.raises(KeyboardInterrupt):
        run_process(_python(code), log, meter, look)
    child = int(log.read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_main_gives_1_and_the_reason_when_a_step_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(settings: demo.Demo, console: Console) -> None:
        raise StepFailed("the log: [site-1] /x.log")

    monkeypatch.setattr(demo, "run_demo", fail)
    monkeypatch.setattr(demo, "end_like_ctrl_c", lambda: None)
    assert main(["--workspace", str(tmp_path)]) == 1
    assert "the log: [site-1] /x.log" in capsys.readouterr().out


def test_paths_do_not_depend_on_the_folder_that_processes_run_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = parse(["--workspace", "ws", "--rounds", "3"])
    assert settings.workspace == tmp_path / "ws"
    assert settings.rounds == 3


@pytest.mark.parametrize("option", ["--sites 1", "--patients 1", "--rounds 0", "--finetune_epochs 0", "--seed -1"])
def test_impossible_counts_are_explained(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(option.split())
    assert "must be at least" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lines", "done", "values"),
    [
        ((), 0, ""),
        (("fine-tuning: step 7/40, 01:30 gone, 02:48 left",), 7, ""),
        (("fine-tuning: epoch 1/2, loss 1.0, mean_dice 0.5, 00:10 gone, 00:20 left",), 20, "loss 1.0, mean_dice 0.5"),
        (
            (
                "fine-tuning: epoch 1/2, loss 1.0, 00:10 gone, 00:20 left",
                "fine-tuning: step 30/40, 00:12 gone, 00:08 left",
            ),
            30,
            "loss 1.0",
        ),
        (("fine-tuning: 20 done, loss 2.0, 03:12 gone, 00:00 left",), 40, "loss 2.0"),
    ],
)
def test_progress_is_read_from_the_log(lines: tuple[str, ...], done: int, values: str) -> None:
    log = "".join(f"12:00:00 INFO fcl.engines.progress: {line}\n" for line in ("other", *lines))
    assert read_progress(log, 40) == (done, values)


def test_every_step_is_told_the_same_network() -> None:
    assert parse([]).shared["channels"] == [16, 32, 64, 128, 256]
    assert parse(["--channels", "8", "16"]).shared == {**parse([]).shared, "channels": [8, 16]}
