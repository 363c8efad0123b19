"""One HTML page about a study, self-contained: scores, pre-training curves, traffic, pictures, and how it was run."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fcl.evaluation.federation_log import pretraining_curves, read_rounds, traffic_by_site, trained_rounds
from fcl.evaluation.figures import dice_by_volume, over_rounds
from fcl.evaluation.overlays import RANKS
from fcl.evaluation.page import show_number, show_spread, write_page
from fcl.evaluation.table import describe_values

_METRICS = (("dice", "Dice", 3), ("hd95_mm", "HD95 (mm)", 1), ("assd_mm", "ASSD (mm)", 2))


def write_report(
    path: str | Path, *, title: str, arms: Mapping[str, Path], rounds: Path | None, facts: Mapping[str, str]
) -> Path:
    """Write the report; the page loads nothing from anywhere.

    Args:
        path: HTML file to write, replaced in one step; its folder is made when missing.
        title: heading.
        arms: name of an arm to the output folder of its evaluation (``scores.csv``, ``summary.json``, ``overlay_*``);
            the first is the one that the others are compared with.
        rounds: the federation's ``rounds.jsonl``; None leaves curves and traffic out.
        facts: what a reader must know to judge or repeat the study: hardware, minutes, versions, configuration.

    Returns:
        The file.

    Raises:
        ValueError: without arms, for files that are missing, empty or unreadable (all of them named), or when the arms
            were not scored on the same volumes and classes.
    """
    if not arms:
        raise ValueError("arms must name at least one evaluation, got none")
    summaries, scores, lines = _read(arms, rounds)
    classes = list(summaries[0]["classes"])
    page = {
        "title": title,
        "arms": list(arms),
        "classes": classes,
        "cases": summaries[0]["cases"],
        "mean_dice": [show_number(summary["mean_dice"], 3) for summary in summaries],
        "metrics": [
            (heading, [_cells(summary, metric, digits, classes) for summary in summaries])
            for metric, heading, digits in _METRICS
        ],
        "gains": [_gains(scores[0], other, classes) for other in scores[1:]],
        "missed": [[summary["classes"][name]["missed"] for name in classes] for summary in summaries],
        "invented": [[summary["classes"][name]["invented"] for name in classes] for summary in summaries],
        "dots": dice_by_volume({name: _dice(rows, classes) for name, rows in zip(arms, scores, strict=True)}),
        "curves": [over_rounds(*curve) for curve in pretraining_curves(lines, "FCL loss (nats)")],
        "traffic": traffic_by_site(lines),
        "rounds": len(trained_rounds(lines)),
        "pictures": [(name, _overlays(Path(folder))) for name, folder in arms.items()],
        "facts": dict(facts),
    }
    return write_page(path, "report.html.j2", page)


def _read(
    arms: Mapping[str, Path], rounds: Path | None
) -> tuple[list[dict[str, Any]], list[list[dict[str, str]]], list[dict[str, Any]]]:
    """Summaries and score rows of the arms, lines of the rounds; all that is wrong is reported together."""
    problems: list[str] = []
    texts: dict[Path, str] = {}
    wanted = [Path(folder) / name for folder in arms.values() for name in ("summary.json", "scores.csv")]
    for file in wanted:
        texts[file] = file.read_text(encoding="utf-8") if file.is_file() else ""
        if not file.is_file():
            problems.append(f"{file}: missing")
        elif not texts[file].strip():
            problems.append(f"{file}: empty")
    summaries, scores = [], []
    for summary_file, scores_file in zip(wanted[::2], wanted[1::2], strict=True):
        summaries.append(_parse(summary_file, texts[summary_file], problems))
        scores.append(list(csv.DictReader(texts[scores_file].splitlines())))
        if texts[scores_file].strip() and not scores[-1]:
            problems.append(f"{scores_file}: has no rows")
    lines = read_rounds(Path(rounds), problems) if rounds else []
    if problems:
        raise ValueError(
            "the report cannot be written:\n"
            + "\n".join(f"  {problem}" for problem in problems)
            + "\nAn arm is the --output_dir of a finished evaluate.json, the rounds those of flare_app.job."
        )
    volumes = [{(row["case"], row["class"]) for row in rows} for rows in scores]
    for name, found in zip(arms, volumes, strict=True):
        if found != volumes[0]:
            raise ValueError(
                f"the arms must be scored on the same volumes and classes: {name!r} ({arms[name]}) has "
                f"{len(found ^ volumes[0])} that differ from those of {next(iter(arms))!r}"
            )
    return summaries, scores, lines


def _parse(file: Path, text: str, problems: list[str]) -> dict[str, Any]:
    try:
        return json.loads(text) if text.strip() else {}
    except ValueError as error:
        problems.append(f"{file}: not JSON ({error})")
        return {}


def _cells(summary: Mapping[str, Any], metric: str, digits: int, classes: Sequence[str]) -> list[str]:
    return [show_spread(summary["classes"][name][metric], digits) for name in classes]


def _gains(base: Sequence[dict[str, str]], other: Sequence[dict[str, str]], classes: Sequence[str]) -> dict[str, Any]:
    """Difference in Dice volume by volume, over the volumes for which both arms have a value."""
    before, after = ({(r["case"], r["class"]): float(r["dice"]) for r in rows if r["dice"]} for rows in (base, other))
    both = [key for key in before if key in after]
    cells = [
        show_spread(describe_values(after[key] - before[key] for key in both if key[1] == name), 3, "+")
        for name in classes
    ]
    cases = sorted({case for case, _ in both})
    means = [statistics.fmean(after[key] - before[key] for key in both if key[0] == case) for case in cases]
    return {"cells": cells, "better": sum(mean > 0 for mean in means), "of": len(means)}


def _dice(rows: Sequence[dict[str, str]], classes: Sequence[str]) -> dict[str, list[float]]:
    return {name: [float(row["dice"]) for row in rows if row["class"] == name and row["dice"]] for name in classes}


def _overlays(folder: Path) -> list[tuple[str, bytes]]:
    """Caption and PNG of the pictures, worst first."""
    found = []
    for rank in RANKS:
        for file in sorted(folder.glob(f"overlay_{rank}_*.png")):
            case = file.stem.removeprefix(f"overlay_{rank}_")
            found.append((f"{rank} volume by Dice: {case}", file.read_bytes()))
    return found
