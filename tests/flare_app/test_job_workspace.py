"""The simulator empties its workspace: nothing that a user needs may go with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flare_app.job.workspace import workspace_problem


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """As an earlier run leaves it."""
    for name in ("local", "startup", "server", "site-1", "site-12"):
        (tmp_path / "ws" / name).mkdir(parents=True)
    (tmp_path / "ws/report.html").touch()
    return tmp_path / "ws"


def test_an_earlier_run_may_be_replaced_and_a_new_folder_made(workspace: Path) -> None:
    assert workspace_problem(workspace, {}, {}, None) is None
    assert workspace_problem(workspace / "new", {}, {}, None) is None


def test_what_no_run_left_there_is_kept(workspace: Path) -> None:
    for number in range(5):
        (workspace / f"patient00{number}").mkdir()
    problem = workspace_problem(workspace, {}, {}, None)
    assert problem is not None
    assert problem.endswith(
        "holds what no earlier run left there: patient000, patient001, patient002 and 2 more. "
        "Give a new folder, or remove them"
    )


def test_overrides_and_site_settings_that_would_be_removed_are_named(workspace: Path, tmp_path: Path) -> None:
    data = workspace / "server"
    settings = tmp_path / "fcl_site.json"
    problem = workspace_problem(workspace, {}, {"dataset_dir": str(data), "fold": 1}, None)
    assert problem is not None
    assert problem.startswith(f"--set dataset_dir={data} lies in --workspace")
    settings.write_text(json.dumps({"threads": 1, "output_dir": f"{workspace}/site-1/{{SITE_NAME}}"}))
    problem = workspace_problem(workspace, {}, {}, str(settings))
    assert problem is not None
    assert problem.startswith(f"{settings}: output_dir=")
    for harmless in (str(tmp_path), str(workspace / "local"), str(workspace / "later"), "server"):
        settings.write_text(json.dumps({"dataset_dir": harmless}))
        assert workspace_problem(workspace, {}, {"dataset_dir": harmless}, str(settings)) is None


@pytest.mark.parametrize("content", ["{", "[]"])
def test_site_settings_that_cannot_be_read_are_left_to_the_sites(content: str, workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text(content)
    assert workspace_problem(workspace, {}, {}, str(tmp_path / "broken.json")) is None
    assert workspace_problem(workspace, {}, {}, str(tmp_path / "missing.json")) is None
