"""A hospital's own ``privacy.json`` on the provisioned system: no job can remove it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import flare_app.provision
from flare_app.egress.manifest import read_manifest
from flare_app.job import JOBS
from tests.flare_app.statistics.hospitals import MARKER, hospital, overlay, settings
from tests.integration.jobs import FAKE
from tests.integration.provisioned import Federation, Result, provisioned

pytestmark = pytest.mark.slow
A, B = "hospital-a", "hospital-b"
WEIGHTS_ONLY = Path(flare_app.provision.__file__).parent / "privacy_weights_only.json"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Federation, Result]]:
    with provisioned(tmp_path_factory.mktemp("egress"), sites=2, start=False) as federation:
        shutil.copyfile(WEIGHTS_ONLY, federation.kits[B] / "local/privacy.json")
        federation.start()
        federation.wait_ready()
        yield federation, federation.run(FAKE)


def _lines(federation: Federation, site: str) -> list[dict[str, Any]]:
    lines, damaged = read_manifest(federation.kits[site] / f"egress/{site}.jsonl")
    assert damaged == 0
    return lines


def test_site_that_forbids_features_takes_part_with_its_weights(run: tuple[Federation, Result]) -> None:
    _, result = run
    assert result.completed, result.explain()
    for line in result.rounds[:2]:
        assert line["accepted"] == [A, B]
        assert line["sites"][A]["features_from"] == []
        assert line["sites"][B]["features_from"] == [A]
        assert line["sites"][B]["bytes_features_up"] == 0


def test_its_manifest_shows_that_no_feature_row_left(run: tuple[Federation, Result]) -> None:
    federation, _ = run
    lines = _lines(federation, B)
    assert {line["by"] for line in lines} == {"site"}
    assert sum(line["event"] == "withheld" for line in lines) == 2
    sent = [line for line in lines if line["event"] == "sent"]
    tensors = {line["name"] for line in sent if "shape" in line}
    assert tensors == {"encoder.weight", "encoder.bias"}
    assert {line["to"] for line in sent} == {"server"}


def test_the_other_sites_manifest_names_who_got_its_features(run: tuple[Federation, Result]) -> None:
    federation, _ = run
    features = [line for line in _lines(federation, A) if line["event"] == "sent" and line["name"] == "features"]
    assert [(line["round"], line["to"], line["count"]) for line in features] == [(0, B, 16), (1, B, 16)]
    assert {line["dtype"] for line in features} == {"float16"}


def test_statistics_of_the_data_leave_the_site_that_lets_them(run: tuple[Federation, Result], tmp_path: Path) -> None:
    federation, _ = run
    data = overlay(tmp_path / "overlay.json")
    for site in (A, B):
        own = federation.kits[site] / "local/fcl_site.json"
        settings(hospital(tmp_path, site, patients=5), data, tmp_path / "cache", own)
    result = federation.run(JOBS["data_statistics"])
    assert result.completed, result.explain()
    document = json.loads((result.results / "statistics.json").read_text())
    assert document["overall"]["totals"] == {"patients": 5, "volumes": 5, "slices": 30}
    assert set(document["sites"][B]) == {"withheld"}
    assert MARKER not in str(document)
    assert MARKER not in result.output
    assert [
        line["measures"] for line in _lines(federation, B) if line["name"] == "statistics" and line["event"] == "sent"
    ] == [[]]
