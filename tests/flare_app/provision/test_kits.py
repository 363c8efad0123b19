from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flare_app.provision.__main__ import main
from flare_app.provision.builder import JOBS_STORAGE, OWN_CLASSES, adapt_kit
from flare_app.provision.kits import Kits, ProvisionError, keep_keys_to_owner, make_kits, on_this_machine, read_project
from flare_app.site import SiteSettings


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Kits:
    return make_kits(on_this_machine(read_project(), port=12345, sites=2), tmp_path_factory.mktemp("kits"))


def _json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())


def test_project_names_four_hospitals_of_different_organisations() -> None:
    project = read_project()
    clients = [entry for entry in project["participants"] if entry["type"] == "client"]
    organisations = {entry["org"] for entry in clients}
    assert len(organisations) == len(clients) == 4
    admins = {(entry["org"], entry["role"]) for entry in project["participants"] if entry["type"] == "admin"}
    assert admins == {(org, "org_admin") for org in organisations} | {
        ("coordinator", "project_admin"),
        ("coordinator", "lead"),
    }
    assert all(entry["allow_log_streaming"] is False for entry in clients)


def test_kits_for_this_machine_are_those_of_the_project_with_another_server(kits: Kits) -> None:
    assert (kits.server, kits.sites) == ("localhost", ("hospital-a", "hospital-b"))
    assert kits.users == {
        "project_admin": "admin@coordinator.example",
        "lead": "lead@coordinator.example",
        "org_admin": "admin@hospital-a.example",
    }
    assert not (kits.folder / "admin@hospital-c.example").exists()
    site = _json(kits["hospital-a"] / "startup/fed_client.json")
    assert site["servers"][0]["service"]["target"] == "localhost:12345"
    assert site["client"]["connection_security"] == "mtls"


def test_server_keeps_jobs_in_its_workspace_and_finds_dead_sites_in_minutes(kits: Kits) -> None:
    resources = _json(kits["localhost"] / "local/resources.json.default")
    assert resources["servers"][0]["heart_beat_timeout"] == 120
    assert "/tmp" not in json.dumps(resources)
    script = (kits["localhost"] / "startup/sub_start.sh").read_text()
    assert f"NVFL_JOB_STORE_ROOT:-$WORKSPACE/{JOBS_STORAGE}}}" in script
    assert "CLIENT_OUTCOME_WAIT_TIMEOUT:-60}" in script
    permissions = _json(kits["localhost"] / "local/authorization.json.default")["permissions"]
    assert permissions["lead"]["get_job_log"] == "n:submitter"


def test_keys_are_for_the_owner_alone_those_of_an_earlier_run_too(kits: Kits, tmp_path: Path) -> None:
    def open_to_others(folder: Path) -> list[str]:
        files = [folder / "state", *(folder / "state").iterdir(), *folder.rglob("*.key")]
        return [file.name for file in files if file.stat().st_mode & 0o077]

    assert (kits.folder.parent / "state/cert.json").is_file()
    assert open_to_others(kits.folder.parent) == []
    earlier = tmp_path / "fcl_consortium"
    (earlier / "state").mkdir(parents=True, mode=0o755)
    (earlier / "state/cert.json").write_text("{}")
    keep_keys_to_owner(earlier)
    assert open_to_others(earlier) == []


def test_sites_are_left_out_by_name_and_users_with_the_last_of_their_organisation() -> None:
    project = read_project()
    one = {**project, "participants": [{**entry, "org": "one"} for entry in project["participants"]]}
    names = [entry["name"] for entry in on_this_machine(one, 1, sites=2)["participants"]]
    assert names[:3] == ["localhost", "hospital-a", "hospital-b"]
    assert len(names) == len(one["participants"]) - 2
    few = [entry["name"] for entry in on_this_machine(project, 1, sites=2)["participants"]]
    assert few == [name for name in names if not name.startswith(("admin@hospital-c", "admin@hospital-d"))]


@pytest.mark.parametrize("site", ["hospital-a", "hospital-b"])
def test_site_streams_no_logs_and_finds_samples_of_its_own_files(kits: Kits, site: str) -> None:
    local = kits[site] / "local"
    assert _json(local / "resources.json.default")["allow_log_streaming"] is False
    SiteSettings.from_dict(_json(local / "fcl_site.json.sample"), "sample")
    assert "AddNoiseToMinMax" not in (local / "privacy.json.sample").read_text()  # FLARE's own, which ends every job
    permissions = _json(local / "authorization.json.no_byoc.sample")["permissions"]
    assert {role: rights.get("byoc") for role, rights in permissions.items() if role != "member"} == {
        "project_admin": "none",
        "org_admin": "none",
        "lead": "none",
    }
    for name in ("authorization.json.default", "authorization.json.no_byoc.sample"):  # `cat` reads what lies in a kit
        rights = _json(local / name)["permissions"]
        assert (rights["project_admin"]["shell_commands"], rights["lead"]["shell_commands"]) == ("none", "o:site")
        assert rights["project_admin"]["submit_job"] == rights["project_admin"]["operate"] == "any"
    # Samples do nothing until a site's engineer renames them.
    assert not [*local.glob("*.json")]


def test_adapting_a_kit_again_changes_nothing(kits: Kits) -> None:
    for name in ("localhost", "hospital-a"):
        before = {file: file.read_bytes() for file in kits[name].rglob("*") if file.is_file()}
        adapt_kit(kits[name])
        assert {file: file.read_bytes() for file in kits[name].rglob("*") if file.is_file()} == before


def test_resources_that_a_site_made_its_own_keep_their_list_of_classes(
    kits: Kits, capsys: pytest.CaptureFixture[str]
) -> None:
    local = kits["hospital-b"] / "local"
    executor, others = OWN_CLASSES[1], [name for name in OWN_CLASSES if not name.startswith("flare_app.en")]
    others.remove(executor)
    own = {**_json(local / "resources.json.default"), "allow_log_streaming": True}
    for allowed, missing in (
        ([executor, "flare_app.encryption."], others),
        (["*"], []),
        (["flare_app."], []),
        (None, list(OWN_CLASSES)),  # FLARE then takes its own list
    ):
        own.pop("class_allow_list", None)
        if allowed is not None:
            own["class_allow_list"] = allowed
        (local / "resources.json").write_text(json.dumps(own))
        assert adapt_kit(kits["hospital-b"]) == missing
        assert _json(local / "resources.json") == {**own, "allow_log_streaming": False}
        assert set(OWN_CLASSES) <= set(_json(local / "resources.json.default")["class_allow_list"])
    assert main(["adapt", str(kits["hospital-b"])]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "its own local/resources.json keeps its class_allow_list, which does not allow these classes" in told
    assert told.endswith(f": {', '.join(OWN_CLASSES)}")
    (local / "resources.json").unlink()
    assert adapt_kit(kits["hospital-b"]) == []


def test_what_is_no_kit_or_no_project_is_refused(tmp_path: Path, kits: Kits) -> None:
    with pytest.raises(FileNotFoundError, match="is no kit of a server or a site"):
        adapt_kit(kits["lead@coordinator.example"])
    with pytest.raises(ProvisionError, match="must hold kits of one server and its sites"):
        Kits.read(tmp_path)
    with pytest.raises(ProvisionError, match="the project has 4 sites, 5 cannot take part"):
        on_this_machine(read_project(), 1, sites=5)
    (tmp_path / "project.yml").write_text("api_version: 3\n")
    with pytest.raises(ProvisionError, match="lists no participants"):
        read_project(tmp_path / "project.yml")
    project = read_project()
    with pytest.raises(ProvisionError, match="the project cannot be provisioned"):
        make_kits({**project, "api_version": 2}, tmp_path / "kits")
    sites = [entry for entry in project["participants"] if entry["type"] != "server"]
    with pytest.raises(ProvisionError, match="the project cannot be provisioned: missing server"):
        make_kits({**project, "participants": sites}, tmp_path / "kits")
    with pytest.raises(ProvisionError, match="kits cannot be written"):
        make_kits(project, tmp_path / "project.yml")
