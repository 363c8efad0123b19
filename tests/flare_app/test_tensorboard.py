from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flare_app.egress.plain import EgressError
from flare_app.egress.policy import EgressPolicy
from flare_app.egress.reports import check_report
from flare_app.intake import Declared, updates
from flare_app.protocol import TaskName
from flare_app.records import RoundRecord, SiteRecord
from flare_app.tensorboard import MEANS, SiteBoards
from tests.flare_app.egress.payloads import train_report, weights


def _record(number: int, accepted: list[str]) -> RoundRecord:
    sites = {
        site: SiteRecord(
            metrics={"loss": number + 0.5},
            validation={"mean_dice": 0.25, "count": 2.0},
            seconds=3.0,
            bytes_weights_down=2**20,
            bytes_features_down=2**19,
            bytes_weights_up=2**19,
            peak_mib=64.0,
        )
        for site in ("site-1", "site-2")
    }
    means = {"metrics": {"loss": number + 0.25}, "validation": {"mean_dice": 0.125}}
    return RoundRecord(number, accepted=accepted, sites=sites, seconds=4.0, count=8, **means)


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
        "round/seconds": [(0, 3.0), (1, 3.0)],
        "round/MiB in": [(0, 1.5), (1, 1.5)],
        "round/MiB out": [(0, 0.5), (1, 0.5)],
        "round/peak MiB": [(0, 64.0), (1, 64.0)],
    }
    assert _scalars(tmp_path / "site-2")["loss"] == [(0, 0.5)]
    assert _scalars(tmp_path / MEANS) == {
        "loss": [(0, 0.25), (1, 1.25)],
        "validation/mean_dice": [(0, 0.125), (1, 0.125)],
        "round/seconds": [(0, 4.0), (1, 4.0)],
        "round/sites": [(0, 2.0), (1, 1.0)],
    }


def test_what_a_private_training_does_not_tell_has_no_curve(tmp_path: Path) -> None:
    record = _record(0, ["site-1"])
    record.sites["site-1"] = dataclasses.replace(record.sites["site-1"], seconds=0.0, peak_mib=0.0)
    boards = SiteBoards(tmp_path)
    boards.write(record)
    boards.close()
    costs = {tag for tag in _scalars(tmp_path / "site-1") if tag.startswith("round/")}
    assert costs == {"round/MiB in", "round/MiB out"}


def test_final_validation_costs_nothing(tmp_path: Path) -> None:
    boards = SiteBoards(tmp_path)
    boards.write(dataclasses.replace(_record(5, ["site-1"]), count=0, metrics={}))
    boards.close()
    assert _scalars(tmp_path / MEANS) == {"validation/mean_dice": [(5, 0.125)]}
    assert not [tag for tag in _scalars(tmp_path / "site-1") if tag.startswith("round/")]


@pytest.mark.parametrize(
    "picture", [np.zeros((3, 4)), torch.zeros(1, 4, 4), b"\x89PNG\r\n", "iVBORw0KGgo=", [0.1, 0.2], {"image": 0.5}]
)
def test_no_picture_gets_to_the_server_or_onto_its_boards(picture: Any, tmp_path: Path) -> None:
    for name in ("loss", "slices/volume 1"):  # the tag that a site's own pictures have
        for part in ("metrics", "validation"):
            report = train_report(features_received={}, **{part: {name: picture}})
            with pytest.raises(EgressError):
                check_report(EgressPolicy(), TaskName.TRAIN, report)
            accept = updates(_Unused(), _record(0, ["site-1"]), False, {"site-1": Declared(24, 2)}, True)  # type: ignore[arg-type]
            with pytest.raises((TypeError, ValueError, RuntimeError)):
                accept("site-1", weights(report=report))
            record = _record(0, ["site-1"])
            setattr(record.sites["site-1"], part, {name: picture})
            boards = SiteBoards(tmp_path / "boards")
            with pytest.raises(TypeError, match="numbers alone"):
                boards.write(record)
            boards.close()
    assert not (tmp_path / "boards").exists()


def test_jobs_stream_no_events_from_sites() -> None:
    """FLARE has components that send whatever a site writes to a SummaryWriter: images, too, past its filters."""
    for config in (Path(__file__).parents[2] / "jobs").rglob("config_fed_*.json"):
        content = json.loads(config.read_text())
        paths = [part["path"] for kind in ("components", "workflows") for part in content.get(kind, [])]
        paths += [executor["executor"]["path"] for executor in content.get("executors", [])]
        assert paths, config
        assert all(path.startswith("flare_app.") for path in paths), paths


class _Unused:
    """An average that must not be reached."""


def test_curves_that_cannot_be_written_do_not_end_the_job(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "site-1").write_text("a file where the folder should be")
    SiteBoards(tmp_path).write(_record(3, ["site-1"]))
    assert "round 3 is missing in TensorBoard" in caplog.text
