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


def test_runs_of_one_arm_with_other_classes_are_refused(tmp_path: Path, dice: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = (_write(tmp_path / f"{name}.csv", values) for name, values in zip("ab", dice, strict=True))
    rv = _write(tmp_path / "rv.csv", dice[1][..., :1])
    # Together they have the reference's classes, so that nothing else would see it.
    with pytest.raises(ValueError, match=r"runs of one arm have other classes: .*b\.csv, .*rv\.csv"):
        compare({"random": [a], "fcl": [b, rv]})


def test_undefined_values_are_left_out(tmp_path: Path, dice: tuple[np.ndarray, np.ndarray]) -> None:
    dice[0][0, 1, 0] = math.nan
    rows = read_scores(_write(tmp_path / "a.csv", dice[0]))
    found = [row.dice for row in rows if (row.label, row.patient) == ("rv", "p0")]
    assert found == pytest.approx([dice[0][0, 0, 0], math.nan], nan_ok=True)
    (line,) = compare({"random": [tmp_path / "a.csv"], "fcl": [_write(tmp_path / "b.csv", dice[1])]})
    one, other = ([np.nanmean(values[p], axis=0).mean() for p in range(12)] for values in dice)
    assert (line.patients, line.left_out) == (12, 0)
    assert (line.reference, line.value) == pytest.approx((np.mean(one), np.mean(other)))


def test_a_patient_with_a_dice_in_one_arm_only_is_no_pair_of_that_class(
    tmp_path: Path, dice: tuple[np.ndarray, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    left, right = dice
    # p0 has no right ventricle: one arm predicted none (blank), the other did (0). Nobody found one in p1.
    left[0, :, 0], right[0, :, 0] = math.nan, 0
    left[1, :, 0] = right[1, :, 0] = math.nan
    a, b = _write(tmp_path / "a.csv", left), _write(tmp_path / "b.csv", right)
    everything, lv, rv = compare({"random": [a], "fcl": [b]}, by_class=True)
    assert [(line.label, line.patients, line.left_out) for line in (everything, lv, rv)] == [
        ("all", 12, 0), ("lv", 12, 0), ("rv", 10, 2),
    ]  # fmt: skip
    assert (rv.reference, rv.value) == pytest.approx((left[2:, :, 0].mean(), right[2:, :, 0].mean()))
    assert everything.value == pytest.approx(
        np.mean([right[0].mean(), right[1, :, 1].mean(), *right[2:].mean(axis=(1, 2))])
    )
    assert main(["--by", "class", f"random={a}", f"fcl={b}"]) == 0
    out = capsys.readouterr().out
    assert "10 of 12" in out
    assert "neither there nor predicted" in out


def test_a_class_without_a_pair_has_no_line(tmp_path: Path, dice: tuple[np.ndarray, np.ndarray]) -> None:
    dice[0][..., 0] = math.nan
    dice[1][1:, :, 0] = math.nan
    a, b = (_write(tmp_path / f"{name}.csv", values) for name, values in zip("ab", dice, strict=True))
    assert [line.label for line in compare({"random": [a], "fcl": [b]}, by_class=True)] == ["all", "lv"]
    dice[0][1:, :, 1] = math.nan
    dice[1][0] = math.nan
    _write(a, dice[0]), _write(b, dice[1])
    with pytest.raises(ValueError, match="random and fcl have no patient with a Dice in both"):
        compare({"random": [a], "fcl": [b]})


def test_one_patient_gives_no_interval(
    tmp_path: Path, dice: tuple[np.ndarray, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = (_write(tmp_path / f"{name}.csv", values[:1]) for name, values in zip("ab", dice, strict=True))
    assert main(["--json", f"random={a}", f"fcl={b}"]) == 0
    (line,) = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (line["patients"], line["low"], line["high"]) == (1, None, None)
    assert main([f"random={a}", f"fcl={b}"]) == 0
    assert "nan" not in capsys.readouterr().out


def test_other_rows_are_refused_by_name(tmp_path: Path, dice: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = _write(tmp_path / "a.csv", dice[0]), _write(tmp_path / "b.csv", dice[1][:11])
    with pytest.raises(
        ValueError, match=r"random and fcl were not scored on the same .*: 4 only in one, first p11 p11_ED lv"
    ):
        compare({"random": [a], "fcl": [b]})
    with pytest.raises(ValueError, match=r"24 only in one, first p0 p0_ES lv"):
        compare({"random": [a], "fcl": [_write(tmp_path / "c.csv", dice[1][:, :1])]})
    with pytest.raises(ValueError, match="give at least two arms, got random"):
        compare({"random": [a]})


def test_command_line_prints_json_and_names_a_wrong_file(
    tmp_path: Path, dice: tuple[np.ndarray, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = (_write(tmp_path / f"{name}.csv", values) for name, values in zip("ab", dice, strict=True))
    assert main(["--json", f"random={a}", f"fcl={b}"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["arm"] == "fcl"
    assert main([f"random={a}", f"fcl={b}"]) == 0
    shown = capsys.readouterr().out
    assert "Dice against random" in shown
    assert "not of other trainings" in shown
    (tmp_path / "wrong.csv").write_text("x,y\n1,2\n")
    with pytest.raises(SystemExit):
        main([f"random={a}", f"fcl={tmp_path / 'wrong.csv'}"])
    assert "wrong.csv has no column case, class, dice, patient" in capsys.readouterr().err
