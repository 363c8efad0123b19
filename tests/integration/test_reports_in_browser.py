"""The reports as readers see them: opened in a headless Chromium, on a laptop and a phone, by day and by night."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from fcl.evaluation import CaseScore, ClassScore, write_csv
from fcl.evaluation.convergence import Validations
from fcl.evaluation.study_report import Arm, StudyReport, write_study_report
from fcl.evaluation.study_runs import Evaluation
from flare_app.command.__main__ import main
from tests.flare_app.fabricated import write_workspace

CHECKS = Path(__file__).with_name("browser_checks.js").read_text(encoding="utf-8")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Nothing but the page itself: no updates, no accounts, no first-run pages.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
ARMS = {"random": "random initialisation", "fcl": "federated contrastive learning"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    found = os.environ.get("FCL_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no Chromium: none of {', '.join(NAMES)} is on the PATH, and FCL_CHROMIUM names none")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=list(FLAGS))
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    log = write_workspace(folder / "run")
    assert main(["report", str(folder / "run"), "--out", str(folder / "run.html")]) == 0
    return {"run": folder / "run.html", "study": _study(folder, log)}


def _study(folder: Path, log: Path) -> Path:
    evaluations = []
    for place, arm in enumerate(ARMS):
        for annotated in (1, 4):
            for seed in (0, 1):
                scores = folder / f"{arm}-{annotated}-{seed}" / "scores.csv"
                scores.parent.mkdir()
                cases = [
                    CaseScore(
                        f"patient-{n}_{phase}",
                        f"patient-{n}",
                        phase,
                        _scores(0.5 + 0.1 * place + 0.02 * n + 0.01 * seed),
                    )
                    for n in range(3)
                    for phase in ("ED", "ES")
                ]
                write_csv(cases, scores)
                Figure(figsize=(3, 2)).savefig(scores.parent / "overlay_worst_patient-0_ED.png")
                evaluations.append(Evaluation(arm, "federated", annotated, 0, seed, {"all": scores}))
    features = folder / "features.npz"
    rng = np.random.default_rng(0)
    np.savez(features, features=rng.normal(size=(40, 8)), partition=np.arange(40) % 4)
    report = StudyReport(
        title="Label efficiency on a cohort that never was",
        description="Numbers are made up.",
        arms={arm: Arm(label) for arm, label in ARMS.items()},
        references=["random"],
        evaluations=evaluations,
        unfinished=2,
        published=None,
        protocol={},
        validations=[
            Validations(
                arm, "federated", 1, 0, 0, site, [(10 * n, {"mean_dice": 0.1 * n + 0.03 * place}) for n in range(6)]
            )
            for arm in ARMS
            for place, site in enumerate(("site-1", "site-2"))
        ],
        pretraining={"fcl": log},
        partitions={"fcl": 4},
        finetuning={},
        shown="Fold 0, seed 0.",
        features={
            "fcl": (
                "fold 0, seed 0",
                {state: {"site-1": features, "site-2": features} for state in ("before", "after")},
            )
        },
        costs=(("arm", "MiB in", "MiB out", "minutes"), [(label, "12.0", "12.0", "3.4") for label in ARMS.values()]),
        facts={"Command": f"python -m flare_app.study --out /{'folder/' * 20}"},
    )
    return write_study_report(folder / "study.html", report)


def _scores(dice: float) -> dict[str, ClassScore]:
    return {
        name: ClassScore(dice - 0.05 * place, 4.0, 1.0, in_truth=True, in_prediction=True)
        for place, name in enumerate(("rv", "myo", "lv"))
    }


def test_page_of_a_run_has_all_parts(pages: dict[str, Path]) -> None:
    page = pages["run"].read_text()
    for heading in ("Curves", "Sites", "Seconds and bytes", "What left the sites", "How it was run"):
        assert f"<h2>{heading}</h2>" in page, heading
    assert "round 2, site-2 late: no answer to &#39;train&#39; within 60 s" in page
    assert "site-10 is missing in 3 of 5 rounds (rejected 2, excluded 1)." in page
    # Loss, kNN, similarity, monitors; six more by site, two from the log; parts, seconds, and bytes twice.
    assert page.count("<svg") == 4 + 6 + 2 + 4
    for absent in ("<script", "http", "src="):
        assert absent not in page, absent


@pytest.mark.parametrize("name", ["run", "study"])
@pytest.mark.parametrize("width", [1366, 390])
def test_page_is_legible(name: str, width: int, browser: Any, pages: dict[str, Path]) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        page, said, asked = context.new_page(), [], []
        page.on("console", lambda message, said=said: said.append(message.text))
        page.on("pageerror", lambda error, said=said: said.append(str(error)))
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.goto(pages[name].as_uri())
        assert page.evaluate(CHECKS) == [], scheme
        assert said == []
        assert [url for url in asked if not url.startswith("data:")] == [pages[name].as_uri()]
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        context.close()
    assert grounds[0] == "rgb(255, 255, 255)" != grounds[1]


def test_print_shows_what_is_folded_away_on_light_ground(browser: Any, pages: dict[str, Path]) -> None:
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    page.goto(pages["run"].as_uri())
    page.emulate_media(media="print")
    folded = page.evaluate("document.querySelector('details figure').getBoundingClientRect().height")
    assert folded > 60
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    context.close()
