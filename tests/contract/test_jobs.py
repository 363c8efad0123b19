"""The committed job folders are what their one definition exports, and what they name exists."""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

import fcl
from flare_app.hosting import SIMULATED_DATA
from flare_app.job import JOBS, export_job

REPOSITORY = Path(__file__).parents[2]
COMMITTED = REPOSITORY / "jobs"


def _files(folder: Path) -> dict[str, bytes]:
    # FLARE writes .__nvfl_* files into a folder that is submitted from here.
    files = [file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(".__nvfl_")]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def _config(job: str, side: str) -> dict[str, Any]:
    return json.loads((COMMITTED / job / "app/config" / f"config_fed_{side}.json").read_text())


def test_every_job_is_committed_and_nothing_else() -> None:
    assert sorted(folder.name for folder in COMMITTED.iterdir()) == sorted(JOBS)


@pytest.mark.parametrize("job", JOBS)
def test_committed_job_equals_a_fresh_export(job: str, tmp_path: Path) -> None:
    assert _files(COMMITTED / job) == _files(export_job(JOBS[job], tmp_path)), (
        f"jobs/{job} differs from its definition: run `python -m flare_app.job export {job} --out jobs`"
    )


@pytest.mark.parametrize("job", JOBS)
def test_components_exist_and_take_their_arguments(job: str) -> None:
    server, client = _config(job, "server"), _config(job, "client")
    components = [*server["workflows"], *server["components"], *client["components"]]
    components += [entry["executor"] for entry in client["executors"]]
    for component in components:
        module, _, name = component["path"].rpartition(".")
        parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
        assert set(component["args"]) <= set(parameters), component["path"]


@pytest.mark.parametrize("job", JOBS)
def test_all_settings_stand_in_the_open(job: str) -> None:
    for component in (_config(job, "server")["workflows"][0], _config(job, "client")["executors"][0]["executor"]):
        module, _, name = component["path"].rpartition(".")
        parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
        assert set(component["args"]) == set(parameters)


@pytest.mark.parametrize("job", JOBS)
def test_bundle_files_of_a_job_exist(job: str) -> None:
    arguments = _config(job, "client")["executors"][0]["executor"]["args"]
    root = fcl.bundle_root()
    for name in [*arguments["config"], f"configs/data/{SIMULATED_DATA}.json"]:
        assert (root / name).is_file(), name


@pytest.mark.parametrize("job", JOBS)
def test_no_job_decides_what_a_sites_data_are(job: str) -> None:
    """Least of all that they be made up."""
    assert _config(job, "client")["executors"][0]["executor"]["args"]["data"] is None


@pytest.mark.parametrize("job", JOBS)
def test_job_counts_as_one_with_its_own_code(job: str) -> None:
    """Without a custom folder FLARE's default allow list refuses the job."""
    assert (COMMITTED / job / "app/custom/README.md").is_file()


def test_self_contained_export_carries_bundle_and_app(tmp_path: Path) -> None:
    if not (REPOSITORY / "bundle/configs/metadata.json").is_file():
        pytest.skip("the bundle has no configs/metadata.json")
    custom = export_job(JOBS["fcl_pretrain"], tmp_path, self_contained=True) / "app/custom"
    for name in ("configs/metadata.json", "fcl/__init__.py", "flare_app/executor.py"):
        assert (custom / name).is_file()
    assert not [*custom.rglob("__pycache__"), *custom.rglob("*.pyc")]
