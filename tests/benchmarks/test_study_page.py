"""What the study's page and README say is what its scores say."""

from __future__ import annotations

import csv
import re
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from tests.benchmarks import study_page
from tests.benchmarks.study_page import ABLATION, MAIN, OTHERS, RATES, WAYS, Comparison, Key

README = Path(__file__).parents[2] / "README.md"
HEADER = "arm,mode,annotated,fold,seed,model,configuration,case,patient,phase,class,dice,hd95_mm,assd_mm"


@pytest.fixture(scope="module")
def scores() -> study_page.Scores:
    return study_page.read_scores(study_page.SCORES)


def test_tables_of_the_page_are_those_of_its_scores(scores: study_page.Scores) -> None:
    page = study_page.PAGE.read_text(encoding="utf-8")
    assert study_page.filled(page, study_page.tables(scores)) == page, "run python -m tests.benchmarks.study_page"


def test_the_readme_s_table_is_that_of_the_page(scores: study_page.Scores) -> None:
    shown = re.findall(r"^\| (?:random|FCL), .*\|$", README.read_text(encoding="utf-8"), re.MULTILINE)
    rows = study_page.tables(scores)["encoders"].splitlines()
    assert len(shown) >= 6
    assert [row for row in shown if row.replace("`mean_teacher`", "mean teacher") not in rows] == []


def test_models_and_patients_were_scored_in_the_same_runs(scores: study_page.Scores) -> None:
    sites = study_page.read_scores(study_page.SITES)
    assert sites.keys() == scores.keys()
    for key, own in scores.items():
        assert statistics.fmean(sites[key].values()) == pytest.approx(statistics.fmean(own.values()), abs=2e-5)


def test_nobody_is_held_out_twice(scores: study_page.Scores) -> None:
    held = {
        fold: set(own)
        for (arm, mode, count, fold, _), own in scores.items()
        if (arm, mode, count) == ("fcl", "local", 1)
    }
    assert len(set.union(*held.values())) == sum(map(len, held.values())) == 80
    assert all(set(own) == held[fold] for (*_, fold, _), own in scores.items())


def test_every_run_is_in_a_table(scores: study_page.Scores) -> None:
    changes = [replace(change, **way) for change in ABLATION for way in WAYS]
    shown = set()
    for one in (*MAIN, *RATES, *changes, *OTHERS):
        for fold in study_page.folds(scores, one):
            shown.add((one.arm, one.mode, one.annotated, fold, one.seed))
            shown.add((one.reference, one.mode, one.of_reference or one.annotated, fold, one.seed))
    assert scores.keys() == shown


def test_a_study_s_results_become_means_and_replace_what_was_known(tmp_path: Path) -> None:
    scored = [
        ("site-1", "a", 1, "0.5"),
        ("site-1", "a", 2, "0.6"),
        ("site-1", "b", 1, "0.2"),
        ("site-2", "a", 1, "0.7"),
    ]
    scored += [("site-2", "b", 1, "")]
    rows = [f"fcl,local,1,0,0,{site},x,{who}_{volume},{who},ED,rv,{dice},," for site, who, volume, dice in scored]
    (results := tmp_path / "results.csv").write_text("\n".join([HEADER, *rows]))
    key: Key = ("fcl", "local", 1, 0, 0)
    other: Key = ("random", "local", 1, 0, 0)
    found = study_page.take_in(results, "patient", {key: {"c": 0.1}, other: {"a": 0.3}})
    assert found == {key: {"a": 0.6, "b": 0.2}, other: {"a": 0.3}}
    study_page.write_scores(tmp_path / "scores.csv", "patient", found)
    assert study_page.read_scores(tmp_path / "scores.csv") == found
    assert next(csv.reader((tmp_path / "scores.csv").open())) == [*study_page.KEYS, "patient", "dice"]


def test_differences_are_of_the_folds_of_both() -> None:
    runs = {
        ("fcl", "local", 1, 0, 0): {"a": 0.5, "b": 0.6},
        ("fcl", "local", 1, 1, 0): {"c": 0.9},
        ("random", "local", 1, 0, 0): {"a": 0.4, "b": 0.4},
        ("random", "local", 1, 2, 0): {"d": 0.1},
    }
    one = Comparison("", "fcl", "random")
    assert study_page.folds(runs, one) == [0]
    assert study_page.compared(runs)[MAIN[0]].difference == pytest.approx(0.15)
    assert study_page.folds(runs, replace(one, folds=(1, 2, 3))) == []


def test_a_page_without_one_of_the_tables_is_refused() -> None:
    with pytest.raises(ValueError, match="must have the tables encoders, labels"):
        study_page.filled("<!-- table: encoders -->\n\nx\n\n<!-- end -->", {"encoders": "y", "labels": "z"})
