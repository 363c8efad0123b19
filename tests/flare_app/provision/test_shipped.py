from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

from flare_app.averaging import ENCRYPTIONS
from flare_app.job import JOBS, build_job, export_job
from flare_app.protocol import TaskName, reason_of
from flare_app.provision import shipped
from flare_app.provision.builder import OWN_CLASSES
from flare_app.provision.shipped import STAMP, ShippedController, ShippedExecutor, other_code, running_code, ship
from tests.flare_app.loopback import FakeEngine


@pytest.fixture
def custom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job's folder for code, from which this process imports (as far as ``other_code`` can tell)."""
    source = tmp_path / "source"
    for name in shipped.PARTS:
        (source / name / "__pycache__").mkdir(parents=True)
        (source / name / "part.py").write_text(f"name = {name!r}\n")
        (source / name / "__pycache__/part.pyc").write_bytes(b"")
    monkeypatch.setattr(shipped, "running_code", lambda: {name: source / name for name in shipped.PARTS})
    folder = tmp_path / "custom"
    ship(folder)
    monkeypatch.setattr(shipped, "running_code", lambda: {name: folder / name for name in shipped.PARTS})
    return folder


def test_shipped_code_is_a_real_copy_without_compiled_files(custom: Path) -> None:
    assert sorted(entry.name for entry in custom.iterdir()) == sorted([*shipped.PARTS, STAMP])
    assert not [*custom.rglob("__pycache__")]
    assert not [entry for entry in custom.rglob("*") if entry.is_symlink()]
    assert set(json.loads((custom / STAMP).read_text())) == {"version", "sha256"}


def test_the_jobs_own_code_is_accepted_also_when_flare_has_signed_it(custom: Path) -> None:
    (custom / "fcl/.__nvfl_sig.json").write_text("{}")
    (custom / "fcl/__pycache__").mkdir()
    (custom / "fcl/__pycache__/part.cpython-311.pyc").write_bytes(b"1")
    assert other_code(custom) is None


def test_the_same_code_installed_elsewhere_is_accepted(custom: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = custom.parent / "source"
    monkeypatch.setattr(shipped, "running_code", lambda: {name: elsewhere / name for name in shipped.PARTS})
    assert other_code(custom) is None


def test_installed_code_that_differs_is_named_without_its_path(custom: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = custom.parent / "installed"
    shutil.copytree(custom, installed)
    (installed / "flare_app/part.py").write_text("name = 'old'\n")
    code = {"fcl": custom / "fcl", "flare_app": installed / "flare_app", "configs": custom / "configs"}
    monkeypatch.setattr(shipped, "running_code", lambda: code)
    problem = other_code(custom)
    assert problem is not None
    assert "other code than the job's would run here: flare_app of version" in problem
    assert str(custom.parent) not in problem


@pytest.mark.parametrize("change", ["edit", "add", "remove", "rename"])
def test_code_that_was_changed_on_the_way_is_found(custom: Path, change: str) -> None:
    file = custom / "fcl/part.py"
    if change == "edit":
        file.write_text("name = 'fcl '\n")
    elif change == "add":
        (custom / "configs/more.json").write_text("{}")
    elif change == "remove":
        file.unlink()
    else:
        file.rename(custom / "fcl/other.py")
    assert "was changed on the way" in str(other_code(custom))


def test_missing_stamp_is_a_refusal(custom: Path) -> None:
    (custom / STAMP).unlink()
    assert "fcl_code.json cannot be read" in str(other_code(custom))


class _Engine(FakeEngine):
    def get_workspace(self) -> SimpleNamespace:
        return SimpleNamespace(get_app_custom_dir=lambda job_id: str(self.root / "custom"))


def test_site_refuses_the_first_task_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "custom").mkdir()
    executor = ShippedExecutor(config=["configs/fake.json"])
    context = _Engine(tmp_path).context("site-1")
    reply = executor.execute(TaskName.INITIALIZE, Shareable(), context, Signal())
    assert "fcl_code.json cannot be read" in reason_of(reply)


def test_server_ends_the_job_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "custom").mkdir()
    controller, panics = ShippedController(), []  # type: ignore[var-annotated]
    controller.engine = _Engine(tmp_path)
    controller.fl_ctx = controller.engine.context("server")
    controller.panic = panics.append  # type: ignore[method-assign]
    controller.run()
    assert len(panics) == 1
    assert "server: the job says that it brings its code" in panics[0]


def _paths(folder: Path) -> set[str]:
    found: set[str] = set()

    def collect(node: Any) -> None:
        for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            collect(child)
        if isinstance(node, dict) and "path" in node:
            found.add(node["path"])

    for file in (folder / "app/config").glob("*.json"):
        collect(json.loads(file.read_text()))
    return found


@pytest.mark.parametrize("encryption", ENCRYPTIONS)
@pytest.mark.parametrize("name", JOBS)
def test_config_only_jobs_have_no_folder_for_code_and_name_only_listed_classes(
    name: str, encryption: str, tmp_path: Path
) -> None:
    from dataclasses import replace

    settings = replace(JOBS[name], checkpoint_dir="kept", encryption=encryption)
    folder = export_job(settings, tmp_path, config_only=True)
    assert not (folder / "app/custom").exists()
    own = {path for path in _paths(folder) if path.startswith("flare_app.")}
    assert own <= set(OWN_CLASSES)
    assert ("flare_app.provision.results.ResultCopy" in own) == settings.trains


def test_self_contained_job_holds_the_running_code_and_checks_it(tmp_path: Path) -> None:
    folder = export_job(JOBS["fcl_pretrain"], tmp_path, self_contained=True)
    paths = _paths(folder)
    assert {"flare_app.provision.shipped.ShippedExecutor", "flare_app.provision.shipped.ShippedController"} <= paths
    assert not {"flare_app.executor.FCLExecutor", "flare_app.controller.FCLController"} & paths
    stamp = json.loads((folder / "app/custom" / STAMP).read_text())
    assert stamp["sha256"] == shipped.content_hash(running_code())


def test_a_job_is_not_both(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="self-contained or config-only, not both"):
        export_job(JOBS["fcl_pretrain"], tmp_path, self_contained=True, config_only=True)


def test_allow_list_names_no_class_that_is_missing() -> None:
    import importlib

    for path in OWN_CLASSES:
        module, _, name = path.rpartition(".")
        assert hasattr(importlib.import_module(module), name), path
    assert build_job(JOBS["fcl_pretrain"]) is not None
