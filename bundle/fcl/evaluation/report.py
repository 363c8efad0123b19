"""One HTML page about a study, self-contained: scores, pre-training curves, traffic, pictures, and how it was run."""

from __future__ import annotations

import base64
import csv
import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fcl.evaluation.figures import Series, dice_by_volume, over_rounds
from fcl.evaluation.table import describe_values

_METRICS = (("dice", "Dice", 3), ("hd95_mm", "HD95 (mm)", 1), ("assd_mm", "ASSD (mm)", 2))
_TRAFFIC = ("weights_down", "weights_up", "features_down", "features_up")
_PACKAGES = ("fcl", "torch", "monai", "nvflare", "pytorch-ignite", "nibabel", "numpy")
_RANKS = ("worst", "median", "best")


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
        "mean_dice": [_number(summary["mean_dice"], 3) for summary in summaries],
        "metrics": [
            (heading, [_cells(summary, metric, digits, classes) for summary in summaries])
            for metric, heading, digits in _METRICS
        ],
        "gains": [_gains(scores[0], other, classes) for other in scores[1:]],
        "missed": [[summary["classes"][name]["missed"] for name in classes] for summary in summaries],
        "invented": [[summary["classes"][name]["invented"] for name in classes] for summary in summaries],
        "dots": dice_by_volume({name: _dice(rows, classes) for name, rows in zip(arms, scores, strict=True)}),
        "curves": [over_rounds(*curve) for curve in _curves(lines)],
        "traffic": _traffic(lines),
        "rounds": len(_trained(lines)),
        "pictures": [(name, _overlays(Path(folder))) for name, folder in arms.items()],
        "facts": dict(facts),
    }
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = _data_uri
    text = environment.get_template("report.html.j2").render(page)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.part")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, target)
    return target


def machine_facts() -> dict[str, str]:
    """This machine and the installed versions of what results depend on, as facts for a report."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = {"Processor": f"{_processor()}, {cores} cores", "System": platform.platform(terse=True)}
    if torch.cuda.is_available():
        found["GPU"] = torch.cuda.get_device_name()
    versions = [f"python {platform.python_version()}"]
    for name in _PACKAGES:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return {**found, "Versions": ", ".join(versions)}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _read(
    arms: Mapping[str, Path], rounds: Path | None
) -> tuple[list[dict[str, Any]], list[list[dict[str, str]]], list[dict[str, Any]]]:
    """Summaries and score rows of the arms, lines of the rounds; all that is wrong is reported together."""
    problems: list[str] = []
    texts: dict[Path, str] = {}
    wanted = [Path(folder) / name for folder in arms.values() for name in ("summary.json", "scores.csv")]
    for file in [*wanted, *([Path(rounds)] if rounds else [])]:
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
    lines = []
    if rounds:
        # A crash can cut the last line short; the rounds before it stand.
        whole = [line for line in texts[Path(rounds)].split("\n")[:-1] if line.strip()]
        lines = [_parse(Path(rounds), line, problems) for line in whole]
        if not whole and texts[Path(rounds)].strip():
            problems.append(f"{rounds}: holds no whole line")
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
    return [_spread(summary["classes"][name][metric], digits) for name in classes]


def _gains(base: Sequence[dict[str, str]], other: Sequence[dict[str, str]], classes: Sequence[str]) -> dict[str, Any]:
    """Difference in Dice volume by volume, over the volumes for which both arms have a value."""
    before, after = ({(r["case"], r["class"]): float(r["dice"]) for r in rows if r["dice"]} for rows in (base, other))
    both = [key for key in before if key in after]
    cells = [
        _spread(describe_values(after[key] - before[key] for key in both if key[1] == name), 3, "+") for name in classes
    ]
    cases = sorted({case for case, _ in both})
    means = [statistics.fmean(after[key] - before[key] for key in both if key[0] == case) for case in cases]
    return {"cells": cells, "better": sum(mean > 0 for mean in means), "of": len(means)}


def _dice(rows: Sequence[dict[str, str]], classes: Sequence[str]) -> dict[str, list[float]]:
    return {name: [float(row["dice"]) for row in rows if row["class"] == name and row["dice"]] for name in classes}


def _curves(lines: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, list[Series]]]:
    """Title, unit of y, and series of each figure for which there is something to draw."""

    def trained(key: str, label: str) -> Series:
        return Series(label, [(line["round"] + 1, line["metrics"][key]) for line in lines if key in line["metrics"]])

    def validated(key: str, label: str) -> Series:
        # Of the weights that a round began with: x is the number of rounds behind them.
        return Series(label, [(line["round"], line["validation"][key]) for line in lines if key in line["validation"]])

    similarities = [
        trained("positive_similarity", "positive pairs"),
        trained("negative_similarity", "negatives"),
        trained("similarity_gap", "gap"),
    ]
    health = [trained("spread", "spread"), trained("alignment", "alignment"), validated("uniformity", "uniformity")]
    figures = [
        ("Loss", "FCL loss (nats)", [trained("loss", "mean over sites")]),
        ("Partition kNN", "accuracy (share of slices)", [validated("partition_knn", "validation patients")]),
        ("Similarity", "cosine", similarities),
        ("Collapse monitors", "value", health),
    ]
    drawn = [(title, unit, [s for s in series if s.points]) for title, unit, series in figures]
    return [figure for figure in drawn if figure[2]]


def _traffic(lines: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, list[str]]]:
    """Site, rounds it took part in, and mean MiB of a round in the order of ``_TRAFFIC``; last the sum of all."""
    entries: dict[str, list[Mapping[str, Any]]] = {}
    for line in _trained(lines):
        for site, entry in line["sites"].items():
            entries.setdefault(site, []).append(entry)
    if not entries:
        return []
    rows = [
        (site, len(own), [_mib(statistics.fmean(entry[f"bytes_{kind}"] for entry in own)) for kind in _TRAFFIC])
        for site, own in sorted(entries.items(), key=lambda item: (len(item[0]), item[0]))
    ]
    every = [entry for own in entries.values() for entry in own]
    total = [_mib(sum(entry[f"bytes_{kind}"] for entry in every)) for kind in _TRAFFIC]
    return [*rows, ("all sites, all rounds", sum(row[1] for row in rows), total)]


def _trained(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Without the line of the final validation."""
    return [line for line in lines if line["count"]]


def _mib(count: float) -> str:
    return f"{count / 2**20:.{2 if count >= 2**20 else 4}f}"


def _overlays(folder: Path) -> list[tuple[str, bytes]]:
    """Caption and PNG of the pictures, worst first."""
    found = []
    for rank in _RANKS:
        for file in sorted(folder.glob(f"overlay_{rank}_*.png")):
            case = file.stem.removeprefix(f"overlay_{rank}_")
            found.append((f"{rank} volume by Dice: {case}", file.read_bytes()))
    return found


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _number(value: float | None, digits: int, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign}.{digits}f}"


def _spread(values: Mapping[str, Any], digits: int, sign: str = "") -> str:
    mean = _number(values["mean"], digits, sign)
    return mean if values["std"] is None else f"{mean} ± {values['std']:.{digits}f}"
