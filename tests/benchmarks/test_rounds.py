"""The arithmetic of a round's overhead."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import rounds
from tests.benchmarks.rounds import Row, as_markdown, parts_of, summarise

ROW = Row("simulator", 4, 61.0, 60.0, 1.2, 0.5, 0.1, 0.1, 0.1, 0.1, 0.1, 0.2)


def _line(number: int, slower: float = 0.0) -> dict[str, Any]:
    def site(training: float) -> dict[str, Any]:
        parts = {"sharing": 0.5, "exchange": 0.25, "validation": 1.0, "training": training, "saving": 0.125}
        return {"seconds": training + 1.5, "parts": parts}  # an eighth of a second is in no part

    return {
        "round": number,
        "seconds": 16.0 + slower,
        "accepted": ["a", "b"],
        "sites": {"a": site(10.0), "b": site(12.0)},
        "parts": {"sharing": 1.0, "training": 14.5 + slower, "before": 0.0625},
    }


def test_parts_add_up_to_the_overhead() -> None:
    parts = parts_of(_line(1))
    assert (parts["round"], parts["training"], parts["overhead"]) == (16.0625, 12.0, 4.0625)
    named = {"validation": 1.0, "sharing": 0.5, "exchange": 0.25, "saving": 0.125, "average": 0.5, "checkpoint": 0.0625}
    assert {name: parts[name] for name in named} == named
    assert parts["tasks"] == pytest.approx(4.0625 - sum(named.values()))


def test_the_first_round_and_the_final_validation_are_left_out() -> None:
    final = {**_line(4), "parts": {}}
    row = summarise("simulator", [_line(0, slower=100.0), _line(1), _line(2, slower=2.0), _line(3, slower=4.0), final])
    assert (row.sites, row.round, row.training, row.overhead) == (2, 18.0625, 12.0, 6.0625)
    assert row.tasks == pytest.approx(row.overhead - 2.4375)
    with pytest.raises(ValueError, match="fewer than two rounds"):
        summarise("simulator", [_line(0), final])


def test_each_row_has_its_line() -> None:
    assert as_markdown([ROW]).splitlines()[-1].startswith("| simulator | 4 | 61.00 | 60.00 | 1.20 | 0.50 |")
    assert as_markdown([ROW]).splitlines()[-1].endswith("| 2.0 % |")


def test_the_command_writes_table_and_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "run", lambda setting, workspace, arguments: ROW)
    assert rounds.main(["--settings", "simulator", "--out", str(tmp_path / "rounds.md")]) == 0
    assert (tmp_path / "rounds.md").read_text() == as_markdown([ROW])
    assert json.loads((tmp_path / "rounds.json").read_text())[0]["overhead"] == 1.2
