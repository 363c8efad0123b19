from __future__ import annotations

from itertools import count

import pytest

from tests.benchmarks.training_step import _steps, side_by_side, timed


def test_ratio_is_of_timings_taken_in_turn_and_without_the_first() -> None:
    ours, theirs = iter([100.0, 2.0, 4.0, 8.0]), iter([1.0, 1.0, 3.0, 8.0])
    row = side_by_side("a", "b", lambda: next(ours), lambda: next(theirs), 3)
    assert (row.seconds, row.reference_seconds) == (4.0, 3.0)
    assert (row.ratio, row.low, row.high) == (0.75, 0.5, 1.0)


def test_time_is_of_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = count(10.0, 6.0), []
    monkeypatch.setattr("tests.benchmarks.training_step.time.perf_counter", lambda: next(clock))
    assert timed(lambda: calls.append(1), 3)() == 2.0
    assert len(calls) == 3


def test_without_lightly_its_row_is_left_out_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    class Without:
        def lightly_moco(self) -> None:
            raise ImportError("No module named 'lightly'")

    assert _steps(Without(), steps=1, repeats=1) == []  # type: ignore[arg-type]
    assert "no row of lightly: No module named 'lightly'" in capsys.readouterr().err
