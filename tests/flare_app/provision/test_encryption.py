from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from flare_app.encryption.context import PARAMETERS, SERVER_CONTEXT, SITE_CONTEXT
from flare_app.provision.kits import ProvisionError, make_kits, on_this_machine, read_project, with_encryption


def _steps(project: dict[str, Any]) -> list[str]:
    return [step["path"].rpartition(".")[2] for step in project["builders"]]


def test_missing_package_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ProvisionError, match=r"need the package tenseal: pip install 'fcl\[he\]'"):
        with_encryption(read_project())


def test_contexts_are_made_before_they_are_signed_and_once() -> None:
    pytest.importorskip("tenseal", reason="tenseal is not installed: pip install 'fcl[he]'")
    project = read_project()
    twice = with_encryption(with_encryption(project))
    assert _steps(twice) == [*_steps(project)[:-1], "ContextBuilder", "SignatureBuilder"]
    unsigned = {**project, "builders": project["builders"][:-1]}
    with pytest.raises(ProvisionError, match="no SignatureBuilder"):
        with_encryption(unsigned)


def test_all_sites_get_one_key_and_the_server_none(tmp_path: Path) -> None:
    tenseal = pytest.importorskip("tenseal", reason="tenseal is not installed: pip install 'fcl[he]'")
    project = with_encryption(on_this_machine(read_project(), port=12345, sites=2))
    kits = make_kits(project, tmp_path)
    first, second = (kits[site] / "startup" / SITE_CONTEXT for site in kits.sites)
    server = kits[kits.server] / "startup" / SERVER_CONTEXT
    encrypted = tenseal.ckks_vector(tenseal.context_from(first.read_bytes()), [1.5]).serialize()
    decrypted = tenseal.ckks_vector_from(tenseal.context_from(second.read_bytes()), encrypted).decrypt()
    assert decrypted == pytest.approx([1.5], abs=1e-6)
    assert not tenseal.context_from(server.read_bytes()).is_private()
    assert [file.stat().st_mode & 0o777 for file in (first, second)] == [0o600] * 2
    assert all((kits[name] / "startup/signature.json").is_file() for name in (kits.server, *kits.sites))
    assert not [*kits[kits.users["lead"]].rglob("*.tenseal")]


def test_parameters_are_those_of_flare() -> None:
    """Kits that were made with FLARE's own HEBuilder work as well."""
    pytest.importorskip("tenseal", reason="tenseal is not installed: pip install 'fcl[he]'")
    from nvflare.lighter.impl.he import HEBuilder

    defaults = vars(HEBuilder())
    assert {name: defaults[name] for name in PARAMETERS} == PARAMETERS
