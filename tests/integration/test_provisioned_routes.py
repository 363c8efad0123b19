"""The provisioned system: ways for code to reach sites, what a refusal looks like, that nothing stays behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from nvflare.app_common.default_component_policy import DEFAULT_CLASS_ALLOW_LIST

from fcl.data.phantom import generate
from flare_app.job import export_job
from flare_app.provision.kits import PROJECT_FILE, Kits
from flare_app.provision.processes import Processes
from flare_app.provision.shipped import running_code
from flare_app.provision.system import RUNNING_FILE, System, free_port, wait_until
from tests.integration.jobs import FAKE, PRETRAIN
from tests.integration.provisioned import Federation, clean_python, provisioned

pytestmark = pytest.mark.slow
A, B = "hospital-a", "hospital-b"


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with provisioned(tmp_path_factory.mktemp("federation"), sites=2) as federation:
        yield federation


def test_server_listens_on_the_loopback_interface_alone(federation: Federation) -> None:
    listening = {
        entry.laddr.ip
        for process in federation.processes.all()
        for entry in process.net_connections(kind="inet")
        if entry.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


@pytest.fixture
def _data(federation: Federation, tmp_path: Path) -> Iterator[None]:
    """Each site says where its data lie: a job without code must not."""
    data = generate(tmp_path / "phantom", sites=2, patients=3, folds=3, seed=0)
    split = json.loads((data / "split.json").read_text())
    split["sites"] = dict(zip((A, B), split["sites"].values(), strict=True))
    (data / "split.json").write_text(json.dumps(split))
    where = {"dataset_dir": data, "split_file": data / "split.json", "cache_dir": tmp_path / "cache"}
    files = [federation.kits[site] / "local/fcl_site.json" for site in (A, B)]
    for file in files:
        file.write_text(json.dumps({key: str(path) for key, path in where.items()}))
    yield
    for file in files:
        file.unlink()


@pytest.mark.usefixtures("_data")
def test_job_without_code_runs_where_the_shipped_allow_list_lies(federation: Federation, tmp_path: Path) -> None:
    settings = replace(PRETRAIN, rounds=1, checkpoint_dir="state")
    result = federation.run(export_job(settings, tmp_path, config_only=True))
    assert result.completed, result.explain()
    assert result.outcome.errors == ()
    # What was kept in a stable folder is in the download too.
    assert result.download is not None
    assert result.rounds[0]["accepted"] == [A, B]
    assert result.rounds[0]["sites"][A]["features_from"] == [B]
    assert any(name.startswith("encoder.") for name in result.weights())
    assert {entry.name for entry in federation.kits[A].joinpath("state").iterdir()}
    # Nothing of a job lies where another system of this machine, or a reboot, would meet it.
    assert (federation.kits[federation.server] / "storage/jobs" / result.outcome.job_id).is_dir()


def test_submitter_learns_which_site_refused_code_and_why(federation: Federation) -> None:
    local = federation.kits[B] / "local"
    shutil.copyfile(local / "authorization.json.no_byoc.sample", local / "authorization.json")
    federation.restart(B)
    try:
        result = federation.run(FAKE)
    finally:
        (local / "authorization.json").unlink()
        federation.restart(B)
    assert result.status == "FINISHED:FAILED_TO_RUN"
    assert list(result.outcome.refusals) == [B]
    assert "BYOC not permitted" in result.outcome.refusals[B]
    assert f"{B} refused it" in result.outcome.explain()


@pytest.mark.usefixtures("_data")
def test_submitter_learns_that_a_class_is_not_on_a_sites_list(federation: Federation, tmp_path: Path) -> None:
    local = federation.kits[B] / "local"
    resources = json.loads((local / "resources.json.default").read_text())
    resources["class_allow_list"] = list(DEFAULT_CLASS_ALLOW_LIST)
    (local / "resources.json").write_text(json.dumps(resources))
    try:
        result = federation.run(export_job(replace(PRETRAIN, rounds=1), tmp_path, config_only=True))
    finally:
        (local / "resources.json").unlink()
    assert not result.completed
    assert list(result.outcome.failures) == [B]
    assert f"its process at {B} ended early" in result.outcome.explain()
    assert "'flare_app.executor.FCLExecutor'" in federation.log(B)
    assert "is not in allow_list" in federation.log(B)


def test_code_inside_the_job_is_what_runs_and_installed_code_that_hides_it_is_refused(tmp_path: Path) -> None:
    python = clean_python(tmp_path / "environment")
    missing = subprocess.run([python, "-c", "import torch, nvflare, fcl"], cwd=tmp_path, capture_output=True, text=True)
    assert "No module named 'fcl'" in missing.stderr
    old = tmp_path / "installed"
    for name, source in running_code().items():
        shutil.copytree(source, old / name, ignore=shutil.ignore_patterns("__pycache__"))
    (old / "flare_app/__init__.py").write_text("# of last year\n")
    hidden = "hospital-c"
    job = export_job(replace(FAKE, rounds=1), tmp_path / "jobs", self_contained=True)
    with provisioned(tmp_path / "ws", sites=3, python=python, env_of={hidden: {"PYTHONPATH": str(old)}}) as federation:
        result = federation.run(job)
        assert result.completed, result.explain()
        assert result.rounds[0]["accepted"] == [A, B]
        for site in (A, B):
            code = next(line for line in federation.log(site).splitlines() if " code: " in line)
            assert all(entry.startswith(str(federation.kits[site])) for entry in code.split(" code: ")[1].split(", "))
        warning = next(line for line in result.output.splitlines() if f"{hidden} is left out" in line)
        assert "other code than the job's would run here: fcl and flare_app and configs" in warning
        assert "pip uninstall fcl" in warning
        assert str(tmp_path) not in warning
        assert str(old) in federation.log(hidden)
        started = federation.processes.all()
        assert len(started) >= 4
    assert not [process for process in started if process.is_running()]
    assert federation.processes.all() == []


def test_kits_whose_keys_were_made_at_their_sites_form_a_federation(tmp_path: Path) -> None:
    """As in the README: requests go to the centre, signed certificates come back, no key travels."""
    port, profile = free_port(), tmp_path / "profile.yml"
    shipped = yaml.safe_load((PROJECT_FILE.parent / "profile.yml").read_text())
    profile.write_text(yaml.safe_dump({**shipped, "server": {"host": "localhost", "fed_learn_port": port}}))
    fingerprint = _nvflare(tmp_path, "cert", "init", "--profile", profile, "-o", "ca")["rootca_fingerprint_sha256"]
    request = yaml.safe_load((PROJECT_FILE.parent / "request.yml").read_text())
    lead = {"name": "lead@coordinator.example", "type": "admin", "org": "coordinator", "role": "lead"}
    server = {"name": "localhost", "type": "server", "org": "coordinator", "fed_learn_port": port}
    for entry in (server, request["participants"][0], lead):
        name, own = entry["name"], tmp_path / entry["org"] / entry["type"]
        own.mkdir(parents=True)
        (own / "request.yml").write_text(yaml.safe_dump({**request, "participants": [entry]}))
        sent = _nvflare(own, "cert", "request", "-p", "request.yml", "--out", "request")["request_zip"]
        with zipfile.ZipFile(sent) as archive:
            assert not [content for content in archive.namelist() if b"PRIVATE KEY" in archive.read(content)]
        signed = tmp_path / f"{name}.signed.zip"
        _nvflare(tmp_path, "cert", "approve", sent, "-c", "ca", "--profile", profile, "--out", signed)
        _nvflare(
            own, "package", signed, "--request-dir", "request", "--fingerprint", fingerprint, "-w", tmp_path / "kits"
        )
    kits = Kits.read(tmp_path / "kits/fcl_consortium/prod_00")
    assert kits.sites == (A,)
    assert '"flare_app.executor.FCLExecutor"' in (kits[A] / "local/resources.json.default").read_text()
    with System(kits, tmp_path) as system:
        assert "PASSED" in system.preflight("localhost").upper()
        system.start()
        system.wait_ready()
        assert "mTLS" in system.log(A) or "SSL" in system.log("localhost")


def _nvflare(folder: Path, *arguments: object) -> dict[str, Any]:
    command = [str(Path(sys.executable).parent / "nvflare"), *map(str, arguments), "--format", "json"]
    # FLARE keeps records of requests in the home folder.
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "HOME": str(folder)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)["data"]


def test_interrupted_command_leaves_no_process_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flare_app.provision", "consortium", "--workspace", str(tmp_path), "--sites", "1"]
    started = subprocess.Popen([*command, "--skip-preflight"], stdout=subprocess.PIPE, text=True)
    note = tmp_path / RUNNING_FILE
    try:
        assert wait_until(lambda: note.exists() and note.read_text().endswith("\n"), timeout_s=120)
        processes = Processes(json.loads(note.read_text())["mark"])
        assert wait_until(lambda: len(processes.all()) >= 2, timeout_s=60)
        running = processes.all()
        started.send_signal(signal.SIGINT)
        output, _ = started.communicate(timeout=60)
    finally:
        started.kill()
    assert started.returncode == 130
    assert "interrupted" in output
    assert processes.all() == []
    assert not [process for process in running if process.is_running()]
    assert not note.exists()
