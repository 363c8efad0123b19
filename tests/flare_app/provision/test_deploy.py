from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from nvflare.tool.deploy.deploy_commands import prepare_deployment

from flare_app.provision.kits import PROJECT_FILE, Kits, make_kits, read_project

_DEPLOY = PROJECT_FILE.parent / "deploy"
_SERVER = "fcl.coordinator.example"


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Kits:
    return make_kits(read_project(), tmp_path_factory.mktemp("kits"))


@pytest.mark.parametrize("name", [_SERVER, "hospital-a"])
@pytest.mark.parametrize("runtime", ["docker", "k8s", "slurm"])
def test_flare_prepares_our_kits_and_keeps_what_we_put_into_them(
    runtime: str, name: str, kits: Kits, tmp_path: Path
) -> None:
    kit, out = kits[name], tmp_path / name
    config = str(_DEPLOY / f"{runtime}.yaml")
    prepare_deployment(SimpleNamespace(kit=str(kit), kit_flag=None, output=str(out), config=config))
    before, after = (json.loads((folder / "local/resources.json.default").read_text()) for folder in (kit, out))
    assert after["class_allow_list"] == before["class_allow_list"]
    if name == _SERVER:
        manager = next(entry for entry in after["components"] if entry["id"] == "job_manager")
        assert Path(manager["args"]["uri_root"]).is_absolute()  # within the folder that is mounted
        assert after["servers"][0]["heart_beat_timeout"] == 120
    else:
        assert after["allow_log_streaming"] is False
        assert (out / "local/fcl_site.json.sample").is_file()
    launcher = [entry["path"] for entry in after["components"] if "launcher" in entry["id"]]
    assert len(launcher) == 1
    assert runtime in launcher[0].lower()
