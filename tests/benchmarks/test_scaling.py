"""The table and the curves of federations of growing size, and one of them in small."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

from flare_app.controller import FCLController
from tests.benchmarks.scaling import ARMS, Row, as_markdown, draw

ROOT = Path(__file__).parents[2]
ROWS = [Row("all", sites, 4.88, 4.88, 0.1 * sites, 0.1 * sites, 0.5, 0.1 * sites, 60.0) for sites in (4, 10)]


def test_each_arm_is_made_of_arguments_that_the_controller_takes() -> None:
    for arguments in ARMS.values():
        inspect.signature(FCLController).bind_partial(**arguments)
        FCLController(exchange="features", **arguments)


def test_each_row_has_its_line_and_the_curves_are_drawn(tmp_path: Path) -> None:
    assert "| 10 | all | 4.88 / 4.88 | 1.00 / 1.00 | 0.50 | 1.0 | 60 |" in as_markdown(ROWS).splitlines()
    draw(ROWS, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_two_sites_are_measured_through_flares_serialisation(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.benchmarks.scaling", "--sites", "2", "--rounds", "1", "--arms", "sampled"]
    subprocess.run([*command, "--out", str(tmp_path / "out.json")], cwd=ROOT, check=True, timeout=300)
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert (row["sites"], row["site_seconds"] > 0, row["server_seconds"] > 0) == (2, True, True)
    # 128 rows of 128 bytes and their partitions, from the one other site; weights one byte a value.
    assert row["features_down"] * 2**20 == 128 * (128 + 2)
    assert 1.2 < row["weights_up"] < 1.3
    assert row["weights_up"] == pytest.approx(row["weights_down"])
