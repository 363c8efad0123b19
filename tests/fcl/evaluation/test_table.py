from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from fcl.evaluation.metrics import CaseScore, ClassScore
from fcl.evaluation.table import COLUMNS, describe_values, print_summary, summarise, write_csv, write_summary

NAN = math.nan


def case(name: str, phase: str, rv: tuple[float, float, float], lv: tuple[float, float, float]) -> CaseScore:
    classes = {
        key: ClassScore(*values, in_truth=not math.isnan(values[0]), in_prediction=not math.isnan(values[1]))
        for key, values in (("rv", rv), ("lv", lv))
    }
    return CaseScore(name, name[:2], phase, classes)


CASES = [
    case("p1_ed", "ED", (0.8, 4.0, 1.0), (0.9, 2.0, 0.5)),
    case("p1_es", "ES", (0.0, NAN, NAN), (0.7, 6.0, 1.5)),
    case("p2_ed", "ED", (0.6, 8.0, 2.0), (NAN, NAN, NAN)),
]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], {"mean": None, "std": None, "n": 0}),
        ([NAN], {"mean": None, "std": None, "n": 0}),
        ([0.5, NAN], {"mean": 0.5, "std": None, "n": 1}),
        ([1.0, 2.0, 3.0], {"mean": 2.0, "std": 1.0, "n": 3}),
    ],
)
def test_values_are_described_without_blanks(values: list[float], expected: dict) -> None:
    assert describe_values(values) == expected


def test_summary_averages_over_cases() -> None:
    summary = summarise(CASES)
    assert summary["cases"] == 3
    assert summary["mean_dice"] == pytest.approx((0.85 + 0.35 + 0.6) / 3)
    rv = summary["classes"]["rv"]
    assert rv["dice"]["mean"] == pytest.approx(1.4 / 3)
    assert rv["hd95_mm"] == {"mean": 6.0, "std": pytest.approx(2.8284, abs=1e-3), "n": 2}
    assert (rv["missed"], rv["invented"]) == (1, 0)
    assert summary["classes"]["lv"]["dice"]["n"] == 2


def test_summary_repeats_itself_per_phase() -> None:
    phases = summarise(CASES)["phases"]
    assert list(phases) == ["ED", "ES"]
    assert phases["ES"]["mean_dice"] == pytest.approx(0.35)
    assert phases["ED"]["classes"]["lv"]["dice"] == {"mean": 0.9, "std": None, "n": 1}


def test_no_cases_are_refused() -> None:
    with pytest.raises(ValueError, match="no scores"):
        summarise([])


def test_csv_has_a_row_per_case_and_class_with_blanks(tmp_path: Path) -> None:
    write_csv(CASES, tmp_path / "scores.csv")
    with open(tmp_path / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == 6
    assert rows[0] == dict(zip(COLUMNS, ["p1_ed", "p1", "ED", "rv", "0.8000", "4.000", "1.000"], strict=True))
    assert rows[2]["dice"] == "0.0000"
    assert rows[2]["hd95_mm"] == ""


def test_summary_is_strict_json(tmp_path: Path) -> None:
    write_summary(summarise(CASES), tmp_path / "summary.json")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    read = json.loads((tmp_path / "summary.json").read_text(), parse_constant=refuse)
    assert read == summarise(CASES)


def test_printed_table_names_classes_and_phases() -> None:
    stream = io.StringIO()
    print_summary(summarise(CASES), Console(file=stream, width=100))
    text = stream.getvalue()
    assert all(word in text for word in ("rv", "lv", "ED", "ES", "0.700 ± 0.141", "3 volumes"))
