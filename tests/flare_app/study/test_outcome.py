from __future__ import annotations

import csv
import json
import math
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from fcl.evaluation import CaseScore, ClassScore, write_csv
from flare_app.study.loading import load_study
from flare_app.study.outcome import Outcome
from flare_app.study.plan import Cell, plan, plan_all
from flare_app.study.run import Ledger, run_cells
from flare_app.study.settings import Study
from flare_app.study.words import protocol, study_facts

from .conftest import SPLIT, FakeCells


class _Page(HTMLParser):
    """Headings, cells of tables, and everything that a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: dict[str, list[str]] = {}
        self.fetched: list[str] = []
        self.svgs = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.svgs += tag == "svg"
        # Within an SVG, href points at a part of it.
        self.fetched += [v for k, v in attrs if k in ("src", "href", "xlink:href", "srcset") and v and v[0] != "#"]

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            continue

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.text.setdefault(self.open[-1], []).append(data.strip())


@pytest.fixture
def finished(study_file: Path, cells: FakeCells, console: Console) -> Outcome:
    study = load_study([study_file], changes={"published": "published.json"})
    return _run(study, cells, console)


def _run(study: Study, cells: FakeCells, console: Console, **wanted: list[object]) -> Outcome:
    ledger = Ledger(cells.out, cells, console)
    todo = plan(study, study.select(**wanted), SPLIT)
    outcome = Outcome(study, plan(study, study.select(), SPLIT), ledger.seconds, cells)
    cells.out.mkdir(parents=True)
    outcome.write_tables()
    run_cells(todo, ledger, console, outcome.add)
    return outcome


def _page(outcome: Outcome) -> tuple[str, _Page]:
    file = outcome.write_report({"Configuration": outcome.configuration})
    assert file is not None
    page = _Page()
    page.feed(file.read_text())
    return file.read_text(), page


def test_evaluations_are_appended_as_they_come(finished: Outcome) -> None:
    out = finished.cells.out
    appended = (out / "results.csv").read_text().splitlines(), json.loads((out / "results.json").read_text())
    finished.write_tables()
    whole = (out / "results.csv").read_text().splitlines(), json.loads((out / "results.json").read_text())
    assert sorted(appended[0]) == sorted(whole[0])
    assert appended[0][0] == whole[0][0]
    assert len(appended[1]["evaluations"]) == len(whole[1]["evaluations"]) == 8
    assert appended[1]["evaluations"][0] in whole[1]["evaluations"]
    assert appended[1]["dice"] == []


def test_tables_hold_every_volume_and_what_the_report_shows(finished: Outcome) -> None:
    finished.write_tables()
    out = finished.cells.out
    with (out / "results.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    # Arms x N x (two sites' models and a federated one) x patients x phases x classes.
    assert len(rows) == 2 * 2 * 3 * 2 * 2 * 2
    first = rows[0]
    assert [first[k] for k in ("arm", "mode", "annotated", "fold", "seed", "model", "case", "phase", "class")] == [
        "random", "local", "1", "0", "0", "site-1", "site-1a_ED", "ED", "a",
    ]  # fmt: skip
    content = json.loads((out / "results.json").read_text())
    dice = {(e["mode"], e["arm"], e["annotated"]): e["mean"] for e in content["dice"]}
    assert dice[("local", "random", 1)] == pytest.approx(0.6)
    assert dice[("federated", "fcl", 2)] == pytest.approx(0.75)
    compared = [(e["mode"], e["annotated"], e["reference"], e["found"]["arm"]) for e in content["comparisons"]]
    assert compared == [(mode, n, "random", "fcl") for n in (1, 2) for mode in ("local", "federated")]
    assert content["comparisons"][0]["over_runs"] == {"runs": 1, "better": 1, "low": None, "high": None}
    equal = {(e["mode"], e["annotated"]): e["needed"] for e in content["label_efficiency"]}
    assert equal[("local", 1)]["patients"] == pytest.approx(2**0.5)
    assert equal[("local", 2)] == {"patients": 2, "bound": "more than"}
    entry = content["evaluations"][-1]
    assert (entry["arm"], entry["mode"], entry["annotated"]) == ("fcl", "federated", 2)
    assert entry["dice"] == {"all": pytest.approx(0.75)}
    assert set(entry["minutes"]) == {"pretrain", "finetune", "evaluate"}


def test_an_evaluation_without_any_dice_does_not_end_the_study(
    study: Study, cells: FakeCells, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    do = cells.do

    def nothing_to_find(cell: Cell) -> None:
        do(cell)
        for file in cells.outputs(cell):
            if file.name == "scores.csv" and cell.arm == "fcl":
                absent = ClassScore(math.nan, math.nan, math.nan, in_truth=False, in_prediction=False)
                write_csv([CaseScore("site-1a_ED", "site-1a", "ED", {"a": absent})], file)

    monkeypatch.setattr(cells, "do", nothing_to_find)
    outcome = _run(study, cells, console, annotated=[1], modes=["federated"])
    outcome.write_tables()
    content = json.loads((cells.out / "results.json").read_text())
    assert {e["arm"]: e["dice"]["all"] for e in content["evaluations"]} == {"random": pytest.approx(0.6), "fcl": None}
    assert [e["arm"] for e in content["dice"]] == ["random"]
    assert (content["comparisons"], content["label_efficiency"]) == ([], [])
    assert "(no structure in truth or prediction)" in _page(outcome)[0]


def test_minutes_of_both_stages_of_pre_training_count_and_the_first_is_named(
    study_file: Path, cells: FakeCells, console: Console
) -> None:
    study = load_study([study_file], changes={"arms::fcl_slow::pretrain": {"method": "mim", "after": "fcl"}})
    outcome = _run(study, cells, console, arms=["fcl_slow"], annotated=[1], modes=["local"])
    outcome = Outcome(study, plan(study, study.select(arms=["fcl_slow"]), SPLIT), outcome.seconds, cells)
    outcome.write_tables()
    entry = json.loads((cells.out / "results.json").read_text())["evaluations"][0]
    seconds = [outcome.seconds(cell) for cell in outcome.known if cell.stage == "pretrain"]
    assert len(seconds) == 2
    assert entry["minutes"]["pretrain"] == pytest.approx(sum(each or 0.0 for each in seconds) / 60)
    facts = study_facts(study, study.select(arms=["fcl_slow"]), cells.cohort, "command", 60.0)
    assert facts["Arms"].startswith("fcl_slow: after FCL, method mim, federation")


def test_validations_are_kept_by_steps_and_site(finished: Outcome) -> None:
    finished.write_tables()
    out = finished.cells.out
    with (out / "validation.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    # Arms x N x sites x (two epochs alone and three lines of the federation's log).
    assert len(rows) == 2 * 2 * 2 * (2 + 3)
    shown = ("arm", "mode", "annotated", "fold", "seed", "site", "steps", "mean_dice", "dice_a")
    assert [[row[name] for name in shown] for row in rows[:2]] == [
        ["random", "local", "1", "0", "0", "site-1", "3", "0.3", "0.2"],
        ["random", "local", "1", "0", "0", "site-1", "6", "0.4", ""],
    ]
    assert {row["steps"] for row in rows if row["mode"] == "federated"} == {"0", "3", "6"}
    found = json.loads((out / "results.json").read_text())["validation"]
    assert {"mode": "local", "arm": "random", "annotated": 2, "steps": 6, "mean": 0.4, "std": 0.0, "count": 2} in found


def test_a_study_that_validates_nothing_has_no_curve(study_file: Path, cells: FakeCells, console: Console) -> None:
    study = load_study([study_file], changes={"finetune::local::validate_every": 0})
    outcome = _run(study, cells, console, modes=["local"], arms=["random"])
    outcome.write_tables()
    assert len((cells.out / "validation.csv").read_text().splitlines()) == 1
    assert json.loads((cells.out / "results.json").read_text())["validation"] == []
    assert "--set finetune::local::validate_every=" in _page(outcome)[0]


def test_page_shows_all_parts_and_fetches_nothing(finished: Outcome) -> None:
    text, page = _page(finished)
    assert page.text["h2"] == [
        "Dice against annotated patients",
        "Dice against fine-tuning steps",
        "Arms compared, patient by patient",
        "Label efficiency",
        "By structure and phase",
        "Worst volumes",
        "Feature space",
        "Training",
        "Bytes and minutes",
        "How it was run",
    ]
    assert "http" not in text
    assert "<script" not in text
    assert [what for what in page.fetched if not what.startswith("data:image/png;base64,")] == []
    # A curve for each mode, one over steps for each mode and N, the feature space, kNN, loss of federated fine-tuning,
    # two monitors of FCL.
    assert page.svgs == 2 + 4 + 1 + 2 + 2
    assert len(page.fetched) == 2 * 2  # the worst volume of each arm and mode
    for what in ("prefers-color-scheme: dark", "@media print", "max-width: 40rem"):
        assert what in text, what


def test_page_has_ours_beside_published_and_says_what_differs(finished: Outcome) -> None:
    text, page = _page(finished)
    cells = page.text["td"]
    # FCL, local: ours and published for N = 1 and 2; 4 and 8, which were not run, have the published column alone.
    start = cells.index("0.506 ± 0.056") - 1
    assert cells[start : start + 6] == [
        "0.650", "0.506 ± 0.056", "0.750", "0.631 ± 0.051", "0.745 ± 0.017", "0.824 ± 0.025",
    ]  # fmt: skip
    assert "MICCAI 2021" in text
    assert "ACDC, 100 patients, 10 sites of 10" in cells
    assert "6 patients, 2 sites of 3" in cells
    assert finished.configuration in cells
    assert "more than 2" in cells
    # In 3 rounds at each site: of weights and of features, in FCL's pre-training and two federated fine-tunings.
    assert cells.count("3.00 / 3.00") == 3 * 2


def test_every_published_difference_has_its_counterpart(finished: Outcome) -> None:
    _, page = _page(finished)
    published = json.loads(
        (Path(__file__).parents[3] / "bundle" / "configs" / "studies" / "published.json").read_text()
    )
    assert set(protocol(finished.study, finished.cells.cohort)) == set(published["protocol"])
    assert set(published["protocol"]) <= set(page.text["th"])


def test_unfinished_study_says_so_and_shows_what_there_is(study: Study, cells: FakeCells, console: Console) -> None:
    outcome = _run(study, cells, console, arms=["random"], annotated=[1], modes=["local"])
    text, page = _page(outcome)
    assert "still missing: 7." in text
    assert "not all arms have the same runs" not in text
    assert "Arms compared, patient by patient" not in page.text["h2"]
    assert "Feature space" not in page.text["h2"]


def test_nothing_finished_gives_no_page(study: Study, cells: FakeCells, console: Console) -> None:
    cells.out.mkdir(parents=True)
    outcome = Outcome(study, plan(study, study.select(), SPLIT), Ledger(cells.out, cells, console).seconds, cells)
    outcome.write_tables()
    assert outcome.write_report({}) is None


def test_facts_name_how_each_arm_was_trained(study: Study, cells: FakeCells) -> None:
    chosen = study.select(arms=["random", "fcl", "fcl_slow"])
    facts = study_facts(study, chosen, cells.cohort, "python -m flare_app.study", 90)
    assert facts["Arms"].split(". ") == [
        "random: no pre-training",
        "FCL: method fcl, federation, exchange features, 2 rounds of 3 steps",
        "fcl_slow: method fcl, federation, exchange features, 2 rounds of 3 steps; local fine-tuning, "
        "learning_rate 0.0001",
    ]
    assert facts["Minutes"].startswith("1.5 ")


def test_facts_say_where_an_arm_has_a_schedule_of_its_own(study_file: Path, cells: FakeCells) -> None:
    study = load_study([study_file], changes={"arms::random::finetune::local": {"rounds": 9, "method": "mean_teacher"}})
    facts = study_facts(study, study.select(arms=["random"]), cells.cohort, "", 0)
    assert facts["Arms"] == "random: no pre-training; local fine-tuning, mean_teacher, 9 rounds of 3 steps"


def test_features_are_of_the_first_fold_that_was_pictured(study: Study, cells: FakeCells, console: Console) -> None:
    ledger = Ledger(cells.out, cells, console)
    asked = [study.select(arms=["fcl"], annotated=[1], modes=["local"], folds=[fold]) for fold in (1, 0)]
    known = plan_all(study, asked, SPLIT)
    cells.out.mkdir(parents=True)
    outcome = Outcome(study, known, ledger.seconds, cells)
    outcome.write_tables()
    run_cells(known, ledger, console, outcome.add)
    page = outcome.write_report({})
    assert page is not None
    run, states = outcome._features()["fcl"]
    assert {str(file).split("_fold")[1][0] for files in states.values() for file in files.values()} == {"0"}
    assert run == "fold 0, seed 0"
    assert "Feature space of FCL, fold 0, seed 0, before" in page.read_text()
