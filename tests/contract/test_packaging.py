"""What `pip install` brings is what the repository holds."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


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
