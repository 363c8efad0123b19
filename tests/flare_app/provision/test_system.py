from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from flare_app.provision.__main__ import main
from flare_app.provision.kits import Kits, ProvisionError
from flare_app.provision.processes import Processes
from flare_app.provision.system import RUNNING_FILE, System, end_leftovers, free_port, wait_until

JOB = Path(__file__).resolve().parents[3] / "jobs/finetune"


def test_free_port_is_free() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", free_port()))


def test_waiting_ends_when_time_is_over() -> None:
    answers = iter([False, False, True])
    assert wait_until(lambda: next(answers), timeout_s=60, poll_s=0)
    assert not wait_until(lambda: False, timeout_s=0.01, poll_s=0)


def _kit(folder: Path, name: str, script: str) -> None:
    (folder / name / "startup").mkdir(parents=True)
    (folder / name / "startup/sub_start.sh").write_text(script)


def test_a_server_that_ends_at_start_is_shown_with_its_log(tmp_path: Path) -> None:
    _kit(tmp_path / "kits", "localhost", "echo the port is taken; exit 3\n")
    kits = Kits(tmp_path / "kits", "localhost", (), {"lead": "lead@coordinator.example"})
    with System(kits, tmp_path) as system:
        system.start()
        assert wait_until(lambda: "taken" in system.log("localhost"), timeout_s=30)
        with pytest.raises(
            ProvisionError, match=r"(?s)gives no answer.*the port is taken|ended at start.*port is taken"
        ):
            system.wait_ready(timeout_s=0.5)


def test_what_a_killed_command_left_is_ended_by_the_next(tmp_path: Path) -> None:
    left = Processes()
    command = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
    left.start("site", command, tmp_path, tmp_path / "log", {})
    gone = subprocess.Popen([sys.executable, "-S", "-c", ""])
    gone.wait()
    note = {"mark": left.mark, "pid": gone.pid, "since": 0.0}
    (tmp_path / RUNNING_FILE).write_text(json.dumps(note))
    assert main(["stop", "--workspace", str(tmp_path)]) == 0
    assert left.all() == []
    assert end_leftovers(tmp_path) == 0


def test_a_workspace_in_use_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = psutil.Process()
    note = {"mark": "none", "pid": own.pid, "since": own.create_time()}
    (tmp_path / RUNNING_FILE).write_text(json.dumps(note))
    assert main(["consortium", "--workspace", str(tmp_path)]) == 1
    assert f"is in use by process {own.pid}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["create", "--out", "x", "--sites", "2"], "--sites and --port belong to --local"),
        (["submit", "missing", "--kit", "x"], "missing is no job folder"),
        (["submit", str(JOB), "--kit", "x"], "is no startup kit of a user"),
        (["create", "--out", "x", "--local", "--sites", "9"], "the project has 4 sites, 9 cannot take part"),
    ],
)
def test_wrong_options_are_explained(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(options) == 1
    assert message in " ".join(capsys.readouterr().out.split())


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert (
        "python -m flare_app.provision consortium --workspace runs/longer --rounds 40 --resume"
        in capsys.readouterr().out
    )
