from __future__ import annotations

import threading
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flare_app.records import RoundRecord, SiteRecord
from flare_app.tensorboard import SiteBoards


def _record(number: int, accepted: list[str]) -> RoundRecord:
    sites = {
        site: SiteRecord(metrics={"loss": number + 0.5}, validation={"mean_dice": 0.25, "count": 2.0})
        for site in ("site-1", "site-2")
    }
    return RoundRecord(number, accepted=accepted, sites=sites)


def _scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def test_curves_are_of_accepted_sites_and_the_count_is_none_of_them(tmp_path: Path) -> None:
    threads = threading.active_count()
    boards = SiteBoards(tmp_path)
    boards.write(_record(0, ["site-1", "site-2"]))
    boards.write(_record(1, ["site-1"]))
    boards.close()
    assert threading.active_count() == threads
    assert _scalars(tmp_path / "site-1") == {
        "loss": [(0, 0.5), (1, 1.5)],
        "validation/mean_dice": [(0, 0.25), (1, 0.25)],
    }
    assert _scalars(tmp_path / "site-2")["loss"] == [(0, 0.5)]


def test_curves_that_cannot_be_written_do_not_end_the_job(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "site-1").write_text("a file where the folder should be")
    SiteBoards(tmp_path).write(_record(3, ["site-1"]))
    assert "round 3 is missing in TensorBoard" in caplog.text
