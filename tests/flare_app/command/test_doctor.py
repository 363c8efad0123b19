from __future__ import annotations

import json
from importlib import metadata

import pytest

from flare_app.command import doctor
from flare_app.command.__main__ import main

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
    (tmp_path / "kit/startup").mkdir(parents=True)
    (tmp_path / "kit/local").mkdir()
    (tmp_path / "kit/startup/fed_client.json").write_text("{}", encoding="utf-8")
    assert wrong(tmp_path, capsys, "--dataset-dir", str(tmp_path / "data"), "--kit", str(tmp_path / "kit")) == []
    assert main(["doctor", "--cache-dir", str(tmp_path / "cache")]) == 0
    assert "not asked for" in capsys.readouterr().out


def test_each_fault_is_found(tmp_path, capsys):
    (tmp_path / "cache").write_text("a file", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    found = wrong(tmp_path, capsys, "--dataset-dir", str(tmp_path / "empty"), "--kit", str(tmp_path))
    assert found == ["cache folder", "FLARE kit", "data"]
    assert wrong(tmp_path, capsys, "--dataset-dir", str(tmp_path / "absent"))[-1] == "data"


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
