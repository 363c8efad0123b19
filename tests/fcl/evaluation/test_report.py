from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from fcl.evaluation import CaseScore, ClassScore, summarise, write_csv, write_summary
from fcl.evaluation.report import write_report


def _score(dice: float, distance: float = 2.0) -> ClassScore:
    return ClassScore(dice, distance, distance / 4, in_truth=True, in_prediction=not math.isnan(distance))


def _arm(folder: Path, dice: tuple[float, float], missed: bool = False, case: str = "two") -> Path:
    folder.mkdir()
    lv = _score(0.0, math.nan) if missed else _score(dice[1])
    cases = [
        CaseScore("one", "p1", "ED", {"rv": _score(dice[0]), "lv": _score(dice[1])}),
        CaseScore(case, "p1", "ES", {"rv": _score(dice[0] + 0.2), "lv": lv}),
    ]
    write_csv(cases, folder / "scores.csv")
    write_summary(summarise(cases), folder / "summary.json")
    for rank in ("best", "worst"):
        Figure(figsize=(0.2, 0.2)).savefig(folder / f"overlay_{rank}_one.png")
    return folder


def _site(size: int) -> dict[str, int]:
    return {f"bytes_{what}": size for what in ("weights_down", "weights_up", "features_down", "features_up")}


def _line(number: int, **changes: object) -> dict[str, object]:
    metrics = {"loss": 5.0 - number, "similarity_gap": 0.1, "spread": 0.5}
    line = {"round": number, "count": 8, "metrics": metrics, "validation": {"partition_knn": 0.4}}
    return line | {"sites": {"site-1": _site(2**20), "site-10": _site(3 * 2**20)}} | changes


def _rounds(file: Path) -> Path:
    lines = [_line(0), _line(1), _line(2, count=0, metrics={}, sites={"site-1": _site(0), "site-10": _site(0)})]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"round": 3, "cou')
    return file


def test_page_has_scores_curves_traffic_pictures_and_facts(tmp_path: Path) -> None:
    arms = {"random": _arm(tmp_path / "r", (0.5, 0.6), missed=True), "<fcl>": _arm(tmp_path / "f", (0.7, 0.7))}
    facts = {"Hardware": "2 cores", "Note": "<script>alert(1)</script>"}
    rounds = _rounds(tmp_path / "rounds.jsonl")
    page = write_report(tmp_path / "new" / "out.html", title="Study", arms=arms, rounds=rounds, facts=facts).read_text()
    assert page.lstrip().startswith("<!DOCTYPE html>")
    assert "Research use only" in page
    assert "0.600 ± 0.141" in page  # Dice of rv, random: 0.5 and 0.7
    assert "+0.200 ± 0.000" in page  # rv, <fcl> against random
    assert "better in 2 of 2" in page
    assert "<td>1 / 0</td>" in page  # lv missed once by random
    # Dots, loss, kNN, similarity, monitors; and an overlay for each arm and rank.
    assert page.count("<svg") == 5
    assert page.count("data:image/png;base64,") == 4
    assert page.index("worst volume by Dice: one") < page.index("best volume by Dice: one")
    # The final validation is no round, and its zeros enter no mean.
    assert '<th scope="row">site-1</th><td>2</td><td>1.00</td>' in page
    assert '<th scope="row">site-10</th><td>2</td><td>3.00</td>' in page
    assert '<th scope="row">all sites, all rounds</th><td>4</td><td>8.00</td>' in page
    assert "2 cores" in page


def test_page_loads_nothing_and_escapes_what_it_is_given(tmp_path: Path) -> None:
    facts = {"Note": "<script>alert(1)</script>"}
    arms = {"<fcl>": _arm(tmp_path / "f", (0.7, 0.7))}
    page = write_report(tmp_path / "out.html", title="a & b", arms=arms, rounds=None, facts=facts).read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "&lt;fcl&gt;" in page
    assert "a &amp; b" in page
    assert "http" not in page
    assert "Pre-training" not in page
    assert "Traffic" not in page


def test_problems_of_all_files_are_reported_together(tmp_path: Path) -> None:
    good, bad = _arm(tmp_path / "good", (0.5, 0.6)), _arm(tmp_path / "bad", (0.5, 0.6))
    (bad / "summary.json").write_text("{")
    (bad / "scores.csv").write_text("")
    (tmp_path / "empty.jsonl").write_text("")
    arms = {"good": good, "bad": bad, "gone": tmp_path / "gone"}
    with pytest.raises(ValueError, match="cannot be written") as error:
        write_report(tmp_path / "out.html", title="t", arms=arms, rounds=tmp_path / "empty.jsonl", facts={})
    text = str(error.value)
    assert f"{bad / 'summary.json'}: not JSON" in text
    assert f"{bad / 'scores.csv'}: empty" in text
    assert f"{tmp_path / 'gone' / 'scores.csv'}: missing" in text
    assert f"{tmp_path / 'empty.jsonl'}: empty" in text
    assert str(good) not in text
    assert not (tmp_path / "out.html").exists()


def test_arms_scored_on_other_volumes_are_refused(tmp_path: Path) -> None:
    arms = {"a": _arm(tmp_path / "a", (0.5, 0.6)), "b": _arm(tmp_path / "b", (0.5, 0.6), case="three")}
    with pytest.raises(ValueError, match=r"same volumes and classes: 'b'.*4 that differ"):
        write_report(tmp_path / "out.html", title="t", arms=arms, rounds=None, facts={})


def test_no_arms_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one evaluation"):
        write_report(tmp_path / "out.html", title="t", arms={}, rounds=None, facts={})
