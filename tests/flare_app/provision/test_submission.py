from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flare_app.job import JOBS, export_job
from flare_app.provision.kits import ProvisionError
from flare_app.provision.submission import Progress, admin_session, download, follow, progress, resuming, submit

_LINE = (
    "2026-01-01 00:00:00,000 - FCLController - INFO - [identity=x, run=y, wf=controller] - "
    "round {0}/3: 2/2 sites, alignment 0.1, loss 0.5, validation mean_dice 0.4, 1.4 s, about 3 s left\n"
)
_ERROR = "2026-01-01 00:00:00,000 - ServerRunner - ERROR - [identity=x, run=y] - round 2: 1 of 2 sites, 2 are needed\n"


class FakeSession:
    """A server that runs one job, a look at a time.

    Args:
        looks: status, log and deployment details of the job at each look; the last stays.
    """

    def __init__(self, *looks: dict[str, Any], refuse_log: bool = False) -> None:
        self.looks, self.refuse_log = list(looks), refuse_log
        self.submitted: list[Path] = []
        self.server_log = ""

    def submit_job(self, folder: str) -> str:
        self.submitted = sorted(Path(folder).rglob("*.json"))
        (Path(folder) / ".__nvfl_sig.json").write_text("{}")
        return "id-1"

    def get_job_meta(self, job_id: str) -> dict[str, Any]:
        look = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        self.server_log = look.get("log", "")
        return look

    def get_job_logs(self, job_id: str, target: str) -> dict[str, Any]:
        if self.refuse_log:
            raise PermissionError("not authorized")
        return {"logs": {"server": self.server_log}}

    def grep_target(self, target: str, pattern: str, file: str) -> str:
        return f"{pattern} due to reported failure from site-b: infrastructure error"

    def download_job_result(self, job_id: str, out: str) -> str:
        return str(Path(out) / job_id)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flare_app.provision.submission._POLL_S", 0.0)


def test_submitting_leaves_the_folder_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "meta.json").write_text("{}")
    session = FakeSession({"status": "SUBMITTED"})
    assert submit(session, folder) == "id-1"  # type: ignore[arg-type]
    assert [file.name for file in session.submitted] == ["meta.json"]
    assert [file.name for file in folder.iterdir()] == ["meta.json"]
    with pytest.raises(ProvisionError, match="is no job folder"):
        submit(session, tmp_path)  # type: ignore[arg-type]


def test_a_job_is_followed_round_by_round() -> None:
    session = FakeSession(
        {"status": "SUBMITTED"},
        {"status": "RUNNING", "log": _LINE.format(1)},
        {"status": "RUNNING", "log": _LINE.format(1) + _LINE.format(2)},
        {"status": "FINISHED:COMPLETED", "log": _LINE.format(3), "job_deploy_detail": ["server: OK", "site-a: OK"]},
    )
    seen: list[Progress] = []
    ended = follow(session, "id-1", seen.append)  # type: ignore[arg-type]
    assert [(look.status, look.done, look.total) for look in seen] == [
        ("SUBMITTED", 0, None),
        ("RUNNING", 1, 3),
        ("RUNNING", 2, 3),
        ("FINISHED:COMPLETED", 3, 3),
    ]
    assert seen[1].values == "2/2 sites, alignment 0.1, loss 0.5, validation mean_dice 0.4"
    assert [look.short() for look in seen[:2]] == ["submitted", "2/2 sites, loss 0.5, validation mean_dice 0.4"]
    assert (ended.completed, ended.refusals, ended.failures, ended.errors) == (True, {}, {}, ())


def test_a_user_without_the_right_to_logs_still_learns_the_status() -> None:
    session = FakeSession({"status": "RUNNING", "log": _LINE.format(1)}, refuse_log=True)
    assert progress(session, "id-1") == Progress("RUNNING")  # type: ignore[arg-type]


def test_a_failed_job_is_explained() -> None:
    details = ["server: OK", "site-a: NVFLARE_ERROR: BYOC not permitted"]
    session = FakeSession({"status": "FINISHED:ABNORMAL", "log": _ERROR, "job_deploy_detail": details})
    ended = follow(session, "id-1")  # type: ignore[arg-type]
    assert ended.explain().splitlines() == [
        "job id-1 ended as FINISHED:ABNORMAL",
        "  site-a refused it: NVFLARE_ERROR: BYOC not permitted",
        "  its process at site-b ended early (infrastructure error): the log of that site says why",
        "  round 2: 1 of 2 sites, 2 are needed",
    ]


def test_following_ends_with_the_time_given() -> None:
    session = FakeSession({"status": "RUNNING", "log": _LINE.format(1)})
    with pytest.raises(ProvisionError, match="still RUNNING after 0 s, 1 rounds done"):
        follow(session, "id-1", timeout_s=1e-9)  # type: ignore[arg-type]


def test_the_result_is_where_the_log_of_rounds_lies(tmp_path: Path) -> None:
    (tmp_path / "id-1/workspace/fcl").mkdir(parents=True)
    session = FakeSession({"status": "FINISHED:COMPLETED"})
    with pytest.raises(ProvisionError, match=r"has no rounds\.jsonl"):
        download(session, "id-1", tmp_path)  # type: ignore[arg-type]
    for name in ("rounds.jsonl", "statistics.json"):
        file = tmp_path / "id-1/workspace/fcl" / name
        file.write_text("")
        assert download(session, "id-1", tmp_path) == file.parent  # type: ignore[arg-type]
        file.unlink()


def test_resuming_changes_a_copy_of_the_job(tmp_path: Path) -> None:
    from dataclasses import replace

    folder = export_job(replace(JOBS["fcl_pretrain"], checkpoint_dir="state"), tmp_path)
    file = Path("app/config/config_fed_server.json")
    before = (folder / file).read_text()
    with resuming(folder) as copy:
        assert json.loads((copy / file).read_text())["workflows"][0]["args"]["resume"] is True
    assert (folder / file).read_text() == before
    without = export_job(JOBS["finetune"], tmp_path)
    with pytest.raises(ProvisionError, match="keeps no checkpoints"), resuming(without):
        pass


def test_a_folder_that_is_no_users_kit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProvisionError, match="is no startup kit of a user"), admin_session(tmp_path):
        pass
