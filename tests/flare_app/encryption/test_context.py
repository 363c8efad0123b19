from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flare_app.aggregation import shape_of
from flare_app.encryption.context import (
    SERVER_CONTEXT,
    SITE_CONTEXT,
    EncryptionError,
    is_fresh,
    key_fingerprint,
    read_vectors,
    restored,
    server_context,
    site_context,
    to_bytes,
)
from flare_app.protocol import path_like
from tests.flare_app.loopback import FakeEngine

tenseal = pytest.importorskip("tenseal", reason="tenseal is not installed: pip install 'fcl[he]'")


def test_server_has_no_secret_key_and_cannot_read(startup: Path, tmp_path: Path) -> None:
    fl_ctx = FakeEngine(tmp_path).context("x")
    server, site = server_context(fl_ctx), site_context(fl_ctx)
    encrypted = {"w": to_bytes(tenseal.ckks_vector(site, [1.0, 2.0]))}
    spec = {"w": "float32 [2]"}
    assert not server.has_secret_key()
    with pytest.raises(ValueError, match="doesn't hold a secret_key"):
        read_vectors(server, encrypted, spec)["w"].decrypt()
    assert read_vectors(site, encrypted, spec)["w"].decrypt() == pytest.approx([1.0, 2.0], abs=1e-6)


def test_fingerprint_tells_keys_apart(startup: Path, tmp_path: Path) -> None:
    from flare_app.provision.encryption import write_contexts

    fl_ctx = FakeEngine(tmp_path).context("x")
    own = key_fingerprint(site_context(fl_ctx))
    assert own == key_fingerprint(site_context(fl_ctx))
    write_contexts(tmp_path / "other")
    other = tenseal.context_from((tmp_path / "other" / SITE_CONTEXT).read_bytes())
    assert own != key_fingerprint(other)
    assert len(own) == 16


@pytest.mark.parametrize("content", [None, b"", b"no context"])
@pytest.mark.parametrize("load", [server_context, site_context])
def test_missing_or_damaged_context_is_explained(
    tmp_path: Path, use: Callable[[Path], None], load: Callable[..., object], content: bytes | None
) -> None:
    for name in (SERVER_CONTEXT, SITE_CONTEXT) if content is not None else ():
        (tmp_path / name).write_bytes(content or b"")
    use(tmp_path)
    with pytest.raises(EncryptionError, match=r"the startup kit has no .* that can be used .*create --he") as error:
        load(FakeEngine(tmp_path).context("x"))
    assert not path_like(str(error.value))


def test_contexts_of_the_wrong_side_are_refused(contexts: Path, tmp_path: Path, use: Callable[[Path], None]) -> None:
    shutil.copyfile(contexts / SERVER_CONTEXT, tmp_path / SITE_CONTEXT)
    shutil.copyfile(contexts / SITE_CONTEXT, tmp_path / SERVER_CONTEXT)
    use(tmp_path)
    with pytest.raises(EncryptionError, match=r"server_context.tenseal holds the secret key"):
        server_context(FakeEngine(tmp_path).context("x"))
    with pytest.raises(EncryptionError, match=r"client_context.tenseal holds no secret key"):
        site_context(FakeEngine(tmp_path).context("x"))


def test_provisioned_system_takes_signed_contexts_only(startup: Path, tmp_path: Path) -> None:
    with pytest.raises(EncryptionError, match="NOT_SIGNED"):
        site_context(FakeEngine(tmp_path, secure=True).context("x"))


def test_missing_package_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("nvflare.app_opt.he")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tenseal", None)
    with pytest.raises(EncryptionError, match=r"need the package tenseal, .*pip install 'fcl\[he\]'"):
        site_context(FakeEngine(tmp_path).context("x"))


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        ({}, "missing"),
        ({"v": [1.0]}, "unknown"),
        ({"w": [1.0, 2.0]}, "w holds 2 values, not 6"),
        ({"w": [1.0] * 5000}, "w holds 5000 values, not 6"),
        ({"w": None}, "w is no ciphertext"),
        ({"w": torch.zeros(2, 3)}, "w is not encrypted"),
    ],
)
def test_ciphertexts_that_do_not_fit(startup: Path, tmp_path: Path, weights: dict[str, object], problem: str) -> None:
    fl_ctx = FakeEngine(tmp_path).context("x")
    site = site_context(fl_ctx)
    sent = {
        name: to_bytes(tenseal.ckks_vector(site, values)) if isinstance(values, list) else values
        for name, values in weights.items()
    }
    sent = {name: torch.ones(99, dtype=torch.uint8) if values is None else values for name, values in sent.items()}
    with pytest.raises(EncryptionError, match=problem):
        read_vectors(server_context(fl_ctx), sent, {"w": "float32 [2, 3]"})


@pytest.mark.parametrize("size", [1, 4096, 4097])
def test_ciphertext_is_fresh_until_it_is_multiplied(startup: Path, tmp_path: Path, size: int) -> None:
    vector = tenseal.ckks_vector(site_context(FakeEngine(tmp_path).context("x")), [1.0] * size)
    assert is_fresh(vector)
    assert not is_fresh(vector * 0.5)


@pytest.mark.parametrize("bits", [39, 41])
def test_ciphertext_of_another_scale_is_not_fresh(startup: Path, tmp_path: Path, bits: int) -> None:
    """Added to others it would be read as half, or twice, what it holds."""
    context = site_context(FakeEngine(tmp_path).context("x"))
    assert not is_fresh(tenseal.ckks_vector(context, [1.0], scale=2.0**bits))
    assert is_fresh(tenseal.ckks_vector(context, [1.0], scale=2.0**40))


@pytest.mark.parametrize(
    ("described", "values"),
    [
        ("float32 [2, 3]", [0.0, 1, 2, 3, 4, 5]),
        ("float16 [1]", [0.5]),
        ("float64 []", [0.1]),
        ("int64 [2]", [2.9999, 3.1]),
    ],
)
def test_shape_and_dtype_come_back(described: str, values: list[float]) -> None:
    tensor = restored(values, described)
    assert f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}" == described
    expected = [3.0, 3.0] if tensor.dtype == torch.int64 else values
    assert tensor.flatten().tolist() == pytest.approx(expected)
    assert shape_of(described) == list(tensor.shape)
    with pytest.raises(EncryptionError, match="do not fill"):
        restored([*values, 0.0], described)
