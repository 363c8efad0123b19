from __future__ import annotations

import json
import shutil
from datetime import datetime, timedelta
from importlib import metadata
from pathlib import Path

import pytest
from cryptography import x509

from flare_app.command import doctor
from flare_app.command.__main__ import main
from flare_app.provision.kits import make_kits, on_this_machine, read_project

_PACKAGES = doctor._packages


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Nothing of this machine but what a test asks about."""
    monkeypatch.setattr(doctor, "_torch", lambda: doctor.Finding("torch", True, "CPU"))
    monkeypatch.setattr(doctor, "_packages", lambda pins, installed: [])
    monkeypatch.delenv("FCL_SITE_SETTINGS", raising=False)


def wrong(tmp_path, capsys, *options):
    code = main(["doctor", "--cache-dir", str(tmp_path / "cache"), "--json", *options])
    found = [line for line in json.loads(capsys.readouterr().out) if line["ok"] is False]
    assert code == int(bool(found))
    assert all(line["fix"] for line in found)
    return [line["what"] for line in found]


def test_all_is_well(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a").write_text("1", encoding="utf-8")
    assert wrong(tmp_path, capsys, "--dataset-dir", str(tmp_path / "data")) == []
    assert main(["doctor", "--cache-dir", str(tmp_path / "cache")]) == 0
    assert "not asked for" in capsys.readouterr().out


def test_each_fault_is_found(tmp_path, capsys):
    (tmp_path / "cache").write_text("a file", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    found = wrong(tmp_path, capsys, "--dataset-dir", str(tmp_path / "empty"), "--kit", str(tmp_path))
    assert found == ["cache folder", "FLARE kit", "data"]
    assert wrong(tmp_path, capsys, "--dataset-dir", str(tmp_path / "absent"))[-1] == "data"


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    return make_kits(on_this_machine(read_project(), port=1, sites=1), tmp_path_factory.mktemp("kits"))


@pytest.fixture
def kit(kits, tmp_path):
    """Of a site that has said what its data are."""
    folder = Path(shutil.copytree(kits["hospital-a"], tmp_path / "kit"))
    (folder / "local/fcl_site.json").write_text('{"data": "phantom"}', encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", ["localhost", "lead@coordinator.example"])
def test_kits_as_they_were_made_are_well(name, kits, tmp_path, capsys):
    assert wrong(tmp_path, capsys, "--kit", str(kits[name])) == []


@pytest.mark.parametrize("content", [None, "{}", '{"dataset_dir": "{SITE_NAME}"}'])
def test_a_site_that_has_not_said_what_its_data_are_is_not_ready(content, kit, capsys):
    file = kit / "local/fcl_site.json"
    file.unlink()
    if content is not None:
        file.write_text(content, encoding="utf-8")
    assert main(["doctor", "--kit", str(kit), "--json"]) == 1
    (found,) = [line for line in json.loads(capsys.readouterr().out) if line["what"] == "site settings"]
    expected = f'{file} does not name "data"' if content is not None else f"{file} does not exist"
    assert (found["ok"], found["found"]) == (False, expected)
    assert 'set "data" and "dataset_dir"' in found["fix"]


@pytest.mark.parametrize(
    "file",
    [
        "startup/client.key",
        "startup/client.crt",
        "startup/rootCA.pem",
        "startup/start.sh",
        "local/resources.json.default",
    ],
)
def test_a_kit_that_lacks_a_file_is_not_well(file, kit, tmp_path, capsys):
    (kit / file).unlink()
    assert wrong(tmp_path, capsys, "--kit", str(kit)) == ["FLARE kit"]


def test_a_key_for_others_and_a_certificate_that_is_none_are_found(kit, tmp_path, capsys):
    (kit / "startup/client.key").chmod(0o640)
    assert wrong(tmp_path, capsys, "--kit", str(kit)) == ["key"]
    (kit / "startup/client.key").chmod(0o600)
    (kit / "startup/client.crt").write_text("no certificate", encoding="utf-8")
    assert wrong(tmp_path, capsys, "--kit", str(kit)) == ["certificate"]


def test_certificates_out_of_date_are_found(kit, tmp_path, capsys, monkeypatch):
    later = type("Later", (), {"now": lambda zone: datetime(2999, 1, 1, tzinfo=zone)})
    monkeypatch.setattr(doctor, "datetime", later)
    assert wrong(tmp_path, capsys, "--kit", str(kit)) == ["certificate", "certificate"]


@pytest.mark.parametrize(("days_left", "told"), [(40, []), (29, ["ends in 29 days"]), (0, ["ends in 0 days"])])
def test_a_certificate_that_ends_soon_is_told_and_is_no_failure_yet(days_left, told, kit, capsys, monkeypatch):
    certificate = x509.load_pem_x509_certificate((kit / "startup/client.crt").read_bytes())
    moment = certificate.not_valid_after_utc - timedelta(days=days_left, minutes=1)
    monkeypatch.setattr(doctor, "datetime", type("Then", (), {"now": lambda zone: moment}))
    monkeypatch.setattr(doctor, "_disk", lambda folder: doctor.Finding("disk", True, ""))
    assert main(["doctor", "--kit", str(kit), "--json"]) == 0
    found = [line for line in json.loads(capsys.readouterr().out) if line["what"] == "certificate" and line["fix"]]
    assert [line["found"].partition(", ")[2] for line in found] == told
    assert [line["ok"] for line in found] == [None] * len(told)
    assert main(["doctor", "--kit", str(kit)]) == 0
    assert ("soon" in capsys.readouterr().out) == bool(told)


def test_settings_in_the_kit_name_data_and_cache(kit, tmp_path, capsys):
    settings = kit / "local/fcl_site.json"
    content = {"dataset_dir": f"{tmp_path}/{{SITE_NAME}}", "data": "datalist", "cache_dir": str(tmp_path / "kept")}
    settings.write_text(json.dumps(content), encoding="utf-8")
    assert main(["doctor", "--kit", str(kit), "--json"]) == 1
    found = {line["what"]: line for line in json.loads(capsys.readouterr().out)}
    assert found["data"]["found"].startswith(f"{tmp_path}/hospital-a")
    assert (found["cache folder"]["ok"], found["cache folder"]["found"]) == (True, str(tmp_path / "kept"))
    (tmp_path / "hospital-a").mkdir()
    (tmp_path / "hospital-a/a").write_text("1", encoding="utf-8")
    assert wrong(tmp_path, capsys, "--kit", str(kit)) == []
    settings.write_text('{"datasetdir": "x"}', encoding="utf-8")
    assert wrong(tmp_path, capsys, "--kit", str(kit)) == ["site settings"]


def test_full_disk(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 2**20}))
    assert wrong(tmp_path, capsys) == ["disk"]


def test_site_settings_name_the_data(tmp_path, capsys, monkeypatch):
    settings = tmp_path / "site.json"
    settings.write_text(json.dumps({"dataset_dir": str(tmp_path / "{SITE_NAME}")}), encoding="utf-8")
    monkeypatch.setenv("FCL_SITE_SETTINGS", str(settings))
    (tmp_path / "mercy").mkdir()
    (tmp_path / "mercy/a").write_text("1", encoding="utf-8")
    assert wrong(tmp_path, capsys, "--site", "mercy") == []
    assert wrong(tmp_path, capsys, "--site", "other") == ["data"]
    settings.write_text('{"datasetdir": "x"}', encoding="utf-8")
    assert wrong(tmp_path, capsys) == ["site settings"]


def test_versions_against_the_pins():
    installed = {"torch": "2.0+cpu", "monai": "1.0"}

    def version(name):
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    assert [f.ok for f in _PACKAGES({"torch": "2.0"}, version)] == [True]
    found = _PACKAGES({"torch": "2.0", "monai": "1.1", "nvflare": "2.9"}, version)
    assert [(f.what, f.found) for f in found] == [
        ("package monai", "1.0, wanted 1.1"),
        ("package nvflare", "not installed, wanted 2.9"),
    ]
    assert found[0].fix == "pip install monai==1.1"


def test_pins_are_those_of_the_requirements():
    pins = doctor.pinned()
    assert {"torch", "monai", "nvflare", "pydicom"} <= set(pins)
    assert all(version[0].isdigit() for version in pins.values())
