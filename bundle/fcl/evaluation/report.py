"""One self-contained HTML page about a study: scores, pre-training curves, pictures, cost, and how it was run."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import math
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fcl.evaluation.figures import curve, dice_by_case
from fcl.evaluation.table import describe_values

_PACKAGES = ("fcl", "torch", "monai", "nvflare", "pytorch-ignite", "nibabel", "numpy")
_METRICS = (("dice", "Dice", 3), ("hd95_mm", "HD95 (mm)", 1), ("assd_mm", "ASSD (mm)", 2))


@dataclass(frozen=True)
class RunResult:
    """One arm of the study.

    Args:
        name: as the tables show it.
        folder: output of an evaluation: ``summary.json``, ``scores.csv``, ``overlay_*.png``.
        minutes: of its training; None when not known.
    """

    name: str
    folder: Path
    minutes: float | None = None


@dataclass(frozen=True)
class Picture:
    """A picture and what it shows."""

    caption: str
    path: Path


def write_report(
    out_html: str | Path,
    *,
    title: str,
    runs: Sequence[RunResult],
    pretrain_rounds: Sequence[Mapping[str, Any]] | None = None,
    pictures: Sequence[Picture] | None = None,
    config: Mapping[str, Any] | None = None,
    hardware: Mapping[str, str] | None = None,
    versions: Mapping[str, str] | None = None,
    minutes: Mapping[str, float] | None = None,
    partitions: int = 4,
    notes: Sequence[str] = (),
) -> Path:
    """Write the report; it loads nothing from anywhere.

    Args:
        out_html: file to write, replaced in one step; its folder is made when missing.
        title: heading.
        runs: the arms, the one that the others are compared with first.
        pretrain_rounds: lines of the federation's ``rounds.jsonl``.
        pictures: overlays; None takes those in the arms' folders.
        config: settings of the study; shown with their hash.
        hardware: by default this machine's.
        versions: by default those of the installed packages.
        minutes: stage to wall time.
        partitions: S, for the level of chance of the partition accuracy.
        notes: sentences on what the reader must know.

    Returns:
        The file.

    Raises:
        ValueError: without runs, with two of one name, or with runs of different classes.
        FileNotFoundError: a run's folder lacks its results; all that is missing is listed.
    """
    summaries, scores = _read(runs)
    classes = list(summaries[0]["classes"])
    rounds = [line for line in pretrain_rounds or [] if line.get("sites") and line.get("metrics")]
    settings = dict(config or {})
    page = {
        "title": title,
        "runs": runs,
        "classes": classes,
        "metrics": [_table(metric, heading, digits, summaries, classes) for metric, heading, digits in _METRICS],
        "mean_dice": [_number(summary["mean_dice"], 3) for summary in summaries],
        "cases": [summary["cases"] for summary in summaries],
        "differences": [_differences(scores[0], other, classes) for other in scores[1:]],
        "strip": Markup(dice_by_case({run.name: _by_class(s, classes) for run, s in zip(runs, scores, strict=True)})),
        "curves": [Markup(svg) for svg in _curves(pretrain_rounds or [], rounds, partitions)],
        "rounds": len(rounds),
        "traffic": _traffic(rounds),
        "pictures": [(p.caption, _inline(p.path)) for p in (_overlays(runs) if pictures is None else pictures)],
        "minutes": {name: f"{value:.1f}" for name, value in (minutes or {}).items()},
        "hardware": dict(hardware) if hardware is not None else machine(),
        "versions": dict(versions) if versions is not None else installed_versions(),
        "config": json.dumps(settings, indent=2, default=str) if settings else "",
        "config_hash": hash_of(settings),
        "notes": list(notes),
    }
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    text = environment.get_template("report.html.j2").render(page)
    target = Path(out_html)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.part")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, target)
    return target


def hash_of(config: Mapping[str, Any]) -> str:
    """12 hex digits that name a set of settings, whatever their order."""
    return hashlib.sha256(json.dumps(dict(config), sort_keys=True, default=str).encode()).hexdigest()[:12]


def machine() -> dict[str, str]:
    """What this machine computes with."""
    found = {"processor": _processor(), "cores": str(os.cpu_count()), "system": platform.platform(terse=True)}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["memory"] = f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"
    if torch.cuda.is_available():
        found["GPU"] = torch.cuda.get_device_name()
    return found


def installed_versions() -> dict[str, str]:
    """Of Python and the packages that results depend on, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _read(runs: Sequence[RunResult]) -> tuple[list[dict[str, Any]], list[list[dict[str, str]]]]:
    names = [run.name for run in runs]
    if not runs or len(set(names)) < len(names):
        raise ValueError(f"runs must be at least one, each with a name of its own; got {names}")
    wanted = [run.folder / file for run in runs for file in ("summary.json", "scores.csv")]
    missing = [str(file) for file in wanted if not file.is_file()]
    if missing:
        raise FileNotFoundError(f"no results at {', '.join(missing)}: run evaluate.json with that --output_dir first")
    summaries = [json.loads((run.folder / "summary.json").read_text(encoding="utf-8")) for run in runs]
    kinds = {run.name: sorted(summary["classes"]) for run, summary in zip(runs, summaries, strict=True)}
    if any(kind != kinds[names[0]] for kind in kinds.values()):
        raise ValueError(f"the runs have different classes: {kinds}")
    scores = []
    for run in runs:
        with open(run.folder / "scores.csv", newline="", encoding="utf-8") as file:
            scores.append(list(csv.DictReader(file)))
    return summaries, scores


def _table(
    metric: str, heading: str, digits: int, summaries: Sequence[Mapping[str, Any]], classes: Sequence[str]
) -> dict[str, Any]:
    rows = [[_spread(summary["classes"][name][metric], digits) for name in classes] for summary in summaries]
    return {"heading": heading, "rows": rows}


def _differences(base: Sequence[dict[str, str]], other: Sequence[dict[str, str]], classes: Sequence[str]) -> list[str]:
    """Mean and spread over volumes of (other - base) in Dice, for each class; volumes that both arms have a value for."""
    before, after = (
        {(row["case"], row["class"]): row["dice"] for row in rows if row["dice"]} for rows in (base, other)
    )
    cells = []
    for name in classes:
        gains = [float(after[key]) - float(before[key]) for key in before if key[1] == name and key in after]
        cells.append(_spread(describe_values(gains), 3, sign="+"))
    return cells


def _by_class(rows: Sequence[dict[str, str]], classes: Sequence[str]) -> dict[str, list[float]]:
    return {name: [float(row["dice"]) for row in rows if row["class"] == name and row["dice"]] for name in classes}


def _curves(lines: Sequence[Mapping[str, Any]], rounds: Sequence[Mapping[str, Any]], partitions: int) -> list[str]:
    loss = [(line["round"] + 1, line["metrics"]["loss"]) for line in rounds if "loss" in line["metrics"]]
    # Validation is of the weights that a round began with: x is the number of rounds behind them.
    known = [(line["round"], line["validation"]["partition_knn"]) for line in lines if _validated(line)]
    figures = []
    if loss:
        figures.append(curve(loss, "FCL loss"))
    if known:
        figures.append(curve(known, "partition kNN accuracy", "rounds done", (1 / partitions, "chance")))
    return figures


def _validated(line: Mapping[str, Any]) -> bool:
    value = line.get("validation", {}).get("partition_knn")
    return value is not None and math.isfinite(value)


def _traffic(rounds: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """What one site sends and receives in a round: mean over sites and rounds."""
    entries = [entry for line in rounds for entry in line["sites"].values()]
    if not entries:
        return []
    mean = {
        (what, way): statistics.fmean(entry[f"bytes_{what}_{way}"] for entry in entries)
        for what in ("weights", "features")
        for way in ("up", "down")
    }
    return [(what, _size(mean[what, "up"]), _size(mean[what, "down"])) for what in ("weights", "features")]


def _size(count: float) -> str:
    return f"{count / 2**20:.2f} MiB" if count >= 2**19 else f"{count / 2**10:.1f} KiB"


def _overlays(runs: Sequence[RunResult]) -> list[Picture]:
    found = []
    for run in runs:
        for path in sorted(run.folder.glob("overlay_*.png")):
            rank, _, case = path.stem.removeprefix("overlay_").partition("_")
            found.append(Picture(f"{run.name}: {rank} volume by Dice, {case}", path))
    return found


def _inline(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _number(value: float | None, digits: int, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign}.{digits}f}"


def _spread(values: Mapping[str, Any], digits: int, sign: str = "") -> str:
    mean = _number(values["mean"], digits, sign)
    return mean if values["std"] is None else f"{mean} ± {values['std']:.{digits}f}"
