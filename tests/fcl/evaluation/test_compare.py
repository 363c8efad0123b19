from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_rel, wilcoxon

from fcl.evaluation.compare import compare, main, read_scores

CLASSES = ("rv", "lv")


def _write(file: Path, dice: np.ndarray, phases: tuple[str, ...] = ("ED", "ES")) -> Path:
    """Scores of shape (patients, phases, classes)."""
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["case", "patient", "phase", "class", "dice", "hd95_mm", "assd_mm"])
        for patient, phase, label in np.ndindex(dice.shape):
            value = dice[patient, phase, label]
            shown = "" if math.isnan(value) else f"{value}"
            writer.writerow([f"p{patient}_{phases[phase]}", f"p{patient}", phases[phase], CLASSES[label], shown, 1, 1])
    return file


@pytest.fixture
def dice() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    left = rng.uniform(0.4, 0.8, (12, 2, 2))
    return left, np.clip(left + rng.normal(0.05, 0.03, left.shape), 0, 1)


def test_patients_are_the_pairs_whatever_their_number_of_volumes(
    tmp_path: Path, dice: tuple[np.ndarray, np.ndarray]
) -> None:
    files = [_write(tmp_path / f"{name}.csv", values) for name, values in zip("ab", dice, strict=True)]
    (line,) = compare({"random": [files[0]], "fcl": [files[1]]})
    left, right = (values.mean(axis=(1, 2)) for values in dice)
    assert (line.arm, line.label, line.patients) == ("fcl", "all", 12)
    assert (line.reference, line.value) == pytest.approx((left.mean(), right.mean()))
    interval = ttest_rel(right, left).confidence_interval(0.95)
    assert (line.low, line.high) == pytest.approx((interval.low, interval.high))
    assert line.p == pytest.approx(wilcoxon(right - left).pvalue)
    assert line.better == int((right > left).sum())


def test_p_values_are_adjusted_over_all_lines(tmp_path: Path, dice: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = (_write(tmp_path / f"{name}.csv", values) for name, values in zip("ab", dice, strict=True))
    lines = compare({"random": [a], "same": [a], "fcl": [b]}, by_class=True)
    assert [(line.arm, line.label) for line in lines] == [
        (arm, label) for arm in ("same", "fcl") for label in ("all", "lv", "rv")
    ]
    assert [line.p for line in lines[:3]] == [1.0, 1.0, 1.0]
    raw = wilcoxon((dice[1] - dice[0]).mean(axis=(1, 2))).pvalue
    assert lines[3].p > raw


def test_seeds_of_an_arm_are_averaged(tmp_path: Path, dice: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = (_write(tmp_path / f"{name}.csv", values) for name, values in zip("ab", dice, strict=True))
    (line,) = compare({"random": [a], "both": [a, b]})
    assert line.difference == pytest.approx((dice[1] - dice[0]).mean() / 2)


def test_undefined_values_are_left_out(tmp_path: Path, dice: tuple[np.ndarray, np.ndarray]) -> None:
    dice[0][0, 1, 0] = math.nan
    scores = read_scores(_write(tmp_path / "a.csv", dice[0]))
    assert scores["rv"]["p0"] == [dice[0][0, 0, 0]]


def test_other_patients_are_refused_by_name(tmp_path: Path, dice: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = _write(tmp_path / "a.csv", dice[0]), _write(tmp_path / "b.csv", dice[1][:11])
    with pytest.raises(ValueError, match=r"random and fcl differ in patients \(all\): p11"):
        compare({"random": [a], "fcl": [b]})
    with pytest.raises(ValueError, match="give at least two arms, got random"):
        compare({"random": [a]})


def test_command_line_prints_json_and_names_a_wrong_file(
    tmp_path: Path, dice: tuple[np.ndarray, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = (_write(tmp_path / f"{name}.csv", values) for name, values in zip("ab", dice, strict=True))
    assert main(["--json", f"random={a}", f"fcl={b}"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["arm"] == "fcl"
    assert main([f"random={a}", f"fcl={b}"]) == 0
    assert "Dice against random" in capsys.readouterr().out
    (tmp_path / "wrong.csv").write_text("x,y\n1,2\n")
    with pytest.raises(SystemExit):
        main([f"random={a}", f"fcl={tmp_path / 'wrong.csv'}"])
    assert "wrong.csv has no column class, dice, patient" in capsys.readouterr().err
