"""Weights that the server cannot read, on FLARE's own processes with kits that hold the contexts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fcl.networks.weights import read_weights
from flare_app.encryption.context import SERVER_CONTEXT, SITE_CONTEXT, is_encrypted
from tests.integration.jobs import FAKE
from tests.integration.provisioned import Federation, Result, provisioned

pytest.importorskip("tenseal", reason="tenseal is not installed: pip install 'fcl[he]'")

pytestmark = pytest.mark.slow

PLAIN = replace(FAKE, rounds=3)
ENCRYPTED = replace(PLAIN, name="fake_encrypted", encryption="he")


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with provisioned(tmp_path_factory.mktemp("federation"), sites=2, encryption=True) as federation:
        yield federation


@pytest.fixture(scope="module")
def plain(federation: Federation) -> Result:
    return federation.run(PLAIN)


@pytest.fixture(scope="module")
def encrypted(federation: Federation, plain: Result) -> Result:
    return federation.run(ENCRYPTED)


def _model(federation: Federation, site: str, result: Result, name: str = "global.pt") -> Path:
    assert result.download is not None
    return federation.kits[site] / result.download.name / "fcl" / name


def _holding(folders: list[Path], needles: list[bytes]) -> list[Path]:
    """Files that hold one of ``needles``."""
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    return [file for file in files if any(needle in file.read_bytes() for needle in needles)]


def _rows(file: Path) -> list[bytes]:
    """The rows of all weights in a checkpoint, as they would lie in a file or message."""
    return [row.numpy().tobytes() for tensor in read_weights(file).values() for row in tensor.reshape(-1, 8)]


def test_only_sites_have_the_key(federation: Federation) -> None:
    server, site = (federation.kits[name] / "startup" for name in (federation.server, federation.sites[0]))
    assert sorted(file.name for file in server.glob("*.tenseal")) == [SERVER_CONTEXT]
    assert sorted(file.name for file in site.glob("*.tenseal")) == [SITE_CONTEXT]
    assert (site / SITE_CONTEXT).stat().st_mode & 0o077 == 0


def test_ends_with_the_weights_of_the_plain_run_but_for_rounding(
    federation: Federation, plain: Result, encrypted: Result
) -> None:
    assert plain.completed, plain.explain()
    assert encrypted.completed, encrypted.explain()
    for name, kept in (("last.pt", "global.pt"), ("best.pt", "global_best.pt")):
        expected = plain.weights(name)
        for site in federation.sites:
            model = read_weights(_model(federation, site, encrypted, kept))
            assert model.keys() == expected.keys()
            for tensor in expected:
                torch.testing.assert_close(model[tensor], expected[tensor], rtol=0, atol=1e-5)
    assert [line["accepted"] for line in encrypted.rounds] == [line["accepted"] for line in plain.rounds]
    received = [line["sites"][site]["features_from"] for line in encrypted.rounds[:3] for site in federation.sites]
    assert all(received), "features go between sites as in any other job"


def test_server_holds_no_weights_that_it_could_read(federation: Federation, plain: Result, encrypted: Result) -> None:
    assert encrypted.download is not None
    assert plain.download is not None
    for name in ("last.pt", "best.pt"):
        assert all(is_encrypted(tensor) for tensor in encrypted.weights(name).values())
    own = [encrypted.download, federation.kits[federation.server] / encrypted.download.name]
    rows = [
        row
        for name in ("global.pt", "global_best.pt")
        for row in _rows(_model(federation, federation.sites[0], encrypted, name))
    ]
    assert len(rows) == 2 * 9
    assert _holding(own, rows) == []
    # The same search finds them where they are in clear.
    assert _holding([plain.download], _rows(plain.download / "workspace/fcl/last.pt")) != []
