"""What an import brings along, and packages whose names load when first used."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest

# Module to what it must not import. In this order: each adds to what those before it have loaded.
WITHOUT = {
    "fcl.data": ("torch", "monai"),
    "fcl.networks": ("torch", "monai"),
    "fcl.evaluation": ("torch", "monai", "matplotlib"),
    "fcl.commandline": ("torch", "monai"),
    "fcl.config": ("torch", "monai"),
    "flare_app.command.__main__": ("torch", "monai", "nvflare", "matplotlib"),
    "flare_app.job.__main__": ("torch", "monai", "nvflare"),
    "fcl.losses": ("monai", "scipy"),
    "fcl.memory": ("monai", "scipy"),
    "fcl.networks.weights": ("monai", "scipy"),
    "flare_app.executor": ("monai", "ignite", "scipy", "matplotlib", "pandas", "tensorboard", "opacus"),
    "flare_app.controller": ("monai", "ignite", "scipy", "matplotlib", "pandas", "tensorboard", "opacus"),
    "fcl.engines": ("opacus", "highdicom", "jinja2"),
    "fcl.transforms": ("opacus", "highdicom", "jinja2"),
}


def test_modules_import_only_what_they_work_with() -> None:
    code = (
        "import importlib, json, sys\n"
        "found = {}\n"
        "for name, unwanted in json.loads(sys.argv[1]).items():\n"
        "    importlib.import_module(name)\n"
        "    found[name] = sorted(set(unwanted) & set(sys.modules))\n"
        "print(json.dumps(found))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(WITHOUT)], capture_output=True, text=True, check=True, timeout=120
    )
    assert json.loads(done.stdout.splitlines()[-1]) == {name: [] for name in WITHOUT}


@pytest.mark.parametrize("package", ["fcl.config", "fcl.data", "fcl.evaluation", "fcl.networks"])
def test_every_name_that_a_package_offers_loads(package: str) -> None:
    module = importlib.import_module(package)
    assert all(hasattr(module, name) for name in module.__all__)


def test_a_name_that_no_package_has_is_an_attribute_error() -> None:
    import fcl.networks

    with pytest.raises(AttributeError, match=r"module 'fcl.networks' has no attribute 'UNetDecoderr'"):
        _ = fcl.networks.UNetDecoderr
