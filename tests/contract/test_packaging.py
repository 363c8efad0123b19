"""What `pip install` brings is what the repository holds."""

from __future__ import annotations

import importlib
import re
from importlib import metadata
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
OLDEST_PYTHON = re.findall(r'^requires-python = ">=([\d.]+)"$', PROJECT, re.MULTILINE)[0]


def test_every_package_is_installed() -> None:
    listed = set(re.findall(r'"((?:fcl|flare_app)[\w.]*)"', PROJECT.split("packages = [")[1].split("]")[0]))
    homes = {"fcl": ROOT / "bundle" / "fcl", "flare_app": ROOT / "flare_app"}
    found = {
        ".".join((name, *file.parent.relative_to(home).parts))
        for name, home in homes.items()
        for file in home.rglob("__init__.py")
    }
    assert listed == found


def test_the_console_script_exists() -> None:
    scripts = dict(
        re.findall(r'^(\w+) = "([\w.:]+)"$', PROJECT.split("[project.scripts]")[1].split("[")[0], re.MULTILINE)
    )
    assert list(scripts) == ["fcl"]
    for target in scripts.values():
        module, name = target.split(":")
        assert callable(getattr(importlib.import_module(module), name))


def test_no_pin_needs_a_newer_python() -> None:
    pins = re.findall(r"^([\w.-]+)==", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(pins) > 10
    needs = {name: metadata.metadata(name).get("Requires-Python") or "" for name in pins}
    assert {name: need for name, need in needs.items() if OLDEST_PYTHON not in SpecifierSet(need)} == {}


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("Makefile", 'sys.version_info[:2] >= ({major}, {minor}), "Python {major}.{minor} or newer is needed'),
        ("flare_app/command/doctor.py", "sys.version_info[:2] >= ({major}, {minor})"),
        ("flare_app/command/doctor.py", "use {major}.{minor} or newer"),
        ("README.md", "Python {major}.{minor} or newer"),
        ("bundle/docs/troubleshooting.md", "`Python {major}.{minor} or newer is needed`"),
    ],
)
def test_everything_asks_for_the_same_python(file: str, words: str) -> None:
    major, minor = OLDEST_PYTHON.split(".")
    assert words.format(major=major, minor=minor) in (ROOT / file).read_text(encoding="utf-8")
