"""Sites compared in FLARE's simulator, with the real bundle: what the coordinator gets, and what it never does."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from flare_app.command.__main__ import main
from flare_app.egress import read_manifest
from flare_app.job import JOBS
from tests.flare_app.statistics.hospitals import MARKER, hospital, overlay, settings
from tests.integration.simulator import Workspace, run_job


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("statistics")
    hospital(folder, "site-1", patients=2)
    hospital(folder, "site-2", patients=2, pixel_mm=3.0)
    data = overlay(folder / "overlay.json")
    own = settings(folder / f"{MARKER}-{{SITE_NAME}}", data, folder / "cache", folder / "site.json")
    job = replace(JOBS["data_statistics"], min_patients=2)
    return run_job(job, folder / "ws", env={"FCL_SITE_SETTINGS": str(own)})


def test_sites_are_compared(run: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.code == 0, run.output
    document = json.loads((run.results / "statistics.json").read_text())
    assert document["left_out"] == {}
    assert document["overall"]["totals"] == {"patients": 4, "volumes": 4, "slices": 24}
    assert document["overall"]["measures"]["in_plane_spacing_mm"]["mean"] == 2.25
    assert main(["data", "compare", str(run.root)]) == 1
    assert "in_plane_spacing_mm of site-2 is 2 times the median of the others" in capsys.readouterr().out


def test_the_server_has_no_name_of_a_patient_and_each_manifest_says_what_left(run: Workspace) -> None:
    at_server = b"".join(file.read_bytes() for file in (run.root / "server").rglob("*") if file.is_file())
    assert MARKER.encode() not in at_server
    for site in ("site-1", "site-2"):
        lines, damaged = read_manifest(run.root / site / "egress" / f"{site}.jsonl")
        assert damaged == 0
        assert {(line["event"], line["name"], line["to"]) for line in lines} == {
            ("sent", "statistics", "server"),
            ("withheld", "statistics", "server"),  # histograms of two patients
        }
