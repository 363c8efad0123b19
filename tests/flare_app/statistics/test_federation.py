"""A whole job of statistics in one process, over the real bundle's checks and measures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from fcl.data.compare import find_outliers
from flare_app.command.__main__ import main
from flare_app.egress import read_manifest
from flare_app.protocol import TaskName, reason_of, with_report
from flare_app.statistics.controller import DataStatisticsController
from flare_app.statistics.executor import DataStatisticsExecutor
from tests.flare_app.loopback import Federation
from tests.flare_app.statistics.hospitals import MARKER, hospital, overlay, settings

HOSPITALS: dict[str, dict[str, Any]] = {
    "site-1": {},
    "site-2": {"inverted": True},
    "site-3": {"pixel_mm": 3.0},
    "site-4": {"patients": 3},
    "site-5": {},
    "site-6": {},
}


class Statistics(Federation):
    """Sites with data of their own; ``sites`` may be fewer than there are hospitals."""

    def __init__(self, root: Path, hospitals: dict[str, dict[str, Any]], min_patients: int = 5) -> None:
        super().__init__(root, list(hospitals), job_policy={"features": [], "min_patients": min_patients})
        reads = overlay(root / "overlay.json")
        self.data = {site: hospital(root / "data", site, **described) for site, described in hospitals.items()}
        for site, folder in self.data.items():
            settings(folder, reads, root / "cache", root / site / "local" / "fcl_site.json")
            self.executors[site] = DataStatisticsExecutor(["configs/pretrain.json"], overrides={"fold": None})  # type: ignore[assignment]
        self.statistics = DataStatisticsController(min_sites=1)
        self.connect(self.statistics)

    def compare(self) -> dict[str, Any]:
        self.statistics.run()
        assert self.panics == []
        return json.loads((self.root / "server/job/fcl/statistics.json").read_text())


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Statistics, dict[str, Any]]:
    federation = Statistics(tmp_path_factory.mktemp("statistics"), HOSPITALS)
    broken = sorted(federation.data["site-5"].glob("*-?.nii.gz"))
    broken[0].write_bytes(b"no gzip")
    nib.save(nib.Nifti1Image(np.zeros((20, 20, 6), np.int16), np.diag([1.5, 1.5, 8.0, 1.0])), broken[1])
    return federation, federation.compare()


def test_each_site_and_all_together(ran: tuple[Statistics, dict[str, Any]]) -> None:
    _, document = ran
    assert document["sites"]["site-1"]["totals"] == {"patients": 6, "volumes": 6, "slices": 36}
    spacing = {site: document["sites"][site]["measures"]["in_plane_spacing_mm"] for site in ("site-1", "site-3")}
    assert [entry["mean"] for entry in spacing.values()] == [1.5, 3.0]
    overall = document["overall"]
    assert overall["sites"] == ["site-1", "site-2", "site-3", "site-6"]
    assert overall["totals"] == {"patients": 24, "volumes": 24, "slices": 144}
    everyone = [1.5] * 18 + [3.0] * 6
    pooled = overall["measures"]["in_plane_spacing_mm"]
    assert pooled["count"] == 24
    assert pooled["mean"] == pytest.approx(np.mean(everyone))
    assert pooled["stddev"] == pytest.approx(np.std(everyone, ddof=1))
    assert set(overall["measures"]["intensity_low"]) == {"count", "mean", "stddev", "about_min", "about_max"}


def test_a_small_site_tells_nothing_but_that(ran: tuple[Statistics, dict[str, Any]]) -> None:
    federation, document = ran
    assert set(document["sites"]["site-4"]) == {"withheld"}
    (reply,) = (reply for site, _, reply in federation.replies if site == "site-4")
    assert reply["DXO"]["data"] == {"enough": False}


def test_a_site_with_bad_data_takes_no_part_and_tells_how_much_is_wrong(
    ran: tuple[Statistics, dict[str, Any]],
) -> None:
    _, document = ran
    expected = "its data have 2 problems (files 1, intensity 1), see the log of site-5"
    assert document["left_out"] == {"site-5": expected}


def test_what_is_planted_stands_out(ran: tuple[Statistics, dict[str, Any]]) -> None:
    found = {(outlier.site, outlier.measure) for outlier in find_outliers(ran[1])}
    assert {("site-2", "intensity_centre"), ("site-3", "in_plane_spacing_mm")} <= found
    assert {site for site, _ in found} == {"site-2", "site-3"}


def test_the_command_names_it_and_ends_with_1(
    ran: tuple[Statistics, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = str(ran[0].root / "server")
    assert main(["data", "compare", workspace]) == 1
    out = capsys.readouterr().out
    assert "in_plane_spacing_mm of site-3 is 2 times the median of the others" in out
    assert "site-4 tells nothing: too few patients" in out
    assert "site-5 tells nothing: its data have 2 problems" in out
    assert main(["data", "compare", workspace, "--json"]) == 1
    assert {entry["site"] for entry in json.loads(capsys.readouterr().out)["outliers"]} == {"site-2", "site-3"}
    assert main(["data", "compare", str(ran[0].root / "data")]) == 2


def test_nothing_sent_or_written_at_the_server_names_patients_files_or_folders(
    ran: tuple[Statistics, dict[str, Any]],
) -> None:
    federation, _ = ran
    assert {site for site, _, _ in federation.replies} == set(HOSPITALS)
    for site, _, reply in federation.replies:
        sent = str({**reply, "headers": dict(reply["__headers__"])})
        assert MARKER not in sent, site
        assert str(federation.root) not in sent, site
    for file in (federation.root / "server").rglob("*"):
        assert file.is_dir() or MARKER.encode() not in file.read_bytes()


def test_the_manifest_of_each_site_has_what_left(ran: tuple[Statistics, dict[str, Any]]) -> None:
    federation, _ = ran
    lines, damaged = read_manifest(federation.root / "site-1" / "egress" / "site-1.jsonl")
    assert damaged == 0
    assert [line["event"] for line in lines] == ["withheld", "sent"]  # ten bins are too many for six patients
    assert "share_lv" in lines[1]["measures"]
    (refused,) = read_manifest(federation.root / "site-5" / "egress" / "site-5.jsonl")[0]
    assert (refused["name"], refused["text"][:20]) == ("reason", "its data have 2 prob")


def test_a_peer_gets_no_statistics_and_does_not_use_up_the_answer(tmp_path: Path) -> None:
    federation = Statistics(tmp_path, {"site-1": {}})
    executor = federation.executors["site-1"]
    reply = federation.execute("site-1", TaskName.STATISTICS, with_report({}), by="site-2")
    assert "DXO" not in reply
    assert not executor._answered  # type: ignore[attr-defined]
    (line,) = read_manifest(tmp_path / "site-1" / "egress" / "site-1.jsonl")[0]
    assert (line["event"], line["rule"], line["to"]) == ("refused", "asker", "site-2")
    assert federation.compare()["overall"]["sites"] == ["site-1"]


def test_a_site_answers_once_in_a_job(tmp_path: Path) -> None:
    federation = Statistics(tmp_path, {"site-1": {}})
    federation.compare()
    again = federation.execute("site-1", TaskName.STATISTICS, with_report({}))
    assert "has told its statistics in this job" in reason_of(again)
    assert federation.execute("site-1", TaskName.TRAIN, with_report({})).get_return_code() == "TASK_UNKNOWN"


def test_enough_patients_for_histograms_that_add_up(tmp_path: Path) -> None:
    federation = Statistics(tmp_path, {"site-1": {"patients": 6}, "site-2": {"patients": 5, "pixel_mm": 1.0}}, 2)
    for site in federation.sites:
        federation.executors[site].overrides = {"fold": None, "data_statistics::bins": 2}  # type: ignore[attr-defined]
    histogram = federation.compare()["overall"]["measures"]["in_plane_spacing_mm"]["histogram"]
    # Two bins are not fewer than half of five patients, so site-2 has none.
    assert histogram == {"low": 0.0, "high": 4.0, "counts": [6, 0], "withheld": 0, "sites": 1}


def test_another_range_is_refused(tmp_path: Path) -> None:
    federation = Statistics(tmp_path, {"site-1": {}, "site-2": {}}, 2)
    for site, high in (("site-1", 4.0), ("site-2", 5.0)):
        ranges = {"data_statistics::bins": 2, "data_statistics::ranges": {"in_plane_spacing_mm": [0.0, high]}}
        federation.executors[site].overrides = ranges  # type: ignore[attr-defined]
    assert "has another range than that of other sites" in str(federation.compare()["left_out"])


def test_too_few_answers_end_the_job(tmp_path: Path) -> None:
    federation = Statistics(tmp_path, {"site-1": {}})
    shutil.rmtree(federation.data["site-1"])
    federation.statistics.run()
    (panic,) = federation.panics
    assert "statistics: 0 of 1 sites gave a usable result" in panic
    assert MARKER not in panic
    assert not list((tmp_path / "server").rglob("statistics.json"))
