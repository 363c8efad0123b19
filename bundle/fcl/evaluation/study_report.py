"""The page about a label-efficiency study, self-contained: figures, tables, pictures, and how it was run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fcl.evaluation.convergence import StepPoint, Validations, curves_by_steps
from fcl.evaluation.drawing import Drawing, Series
from fcl.evaluation.features import principal_plane, read_features, thin_out
from fcl.evaluation.federation_log import pretraining_curves, read_rounds, trained, validated
from fcl.evaluation.figures import dice_by_annotated, dice_by_steps, feature_space, over_rounds
from fcl.evaluation.label_efficiency import Needed
from fcl.evaluation.page import show_number, show_spread, write_page
from fcl.evaluation.study_pairs import paired
from fcl.evaluation.study_results import Curves, Point, curves, label_efficiency, worst_volume
from fcl.evaluation.study_runs import Evaluation, arm_pairs, on_common_runs, split_by_dice, unbalanced, uneven
from fcl.evaluation.study_tables import class_tables, left_out, pair_tables

_SHOWN_SLICES = 300  # of a picture of the feature space


@dataclass(frozen=True)
class Arm:
    """How reports show an arm.

    Args:
        label: name for readers.
        published: its row in the published tables; None where there is none.
    """

    label: str
    published: str | None = None


@dataclass(frozen=True)
class StudyReport:
    """What the page is made of.

    Args:
        title: heading.
        description: what a reader must know first.
        arms: arm to how it is shown, in order.
        references: arms that others are compared with; the first stands for no pre-training.
        evaluations: finished ones; at least one.
        unfinished: evaluations of the study that are still missing.
        published: content of a file like ``configs/studies/published.json``; None for data that nobody published on.
        protocol: the same words as there for this study.
        validations: of all fine-tunings that made any.
        pretraining: arm to the ``rounds.jsonl`` of a pre-training; arms without one are left out.
        partitions: arm to the partitions that kNN of its pre-training tells apart.
        finetuning: mode and arm to the ``rounds.jsonl`` of a fine-tuning.
        shown: in words, which runs these curves are of.
        features: arm to the run that its features are of, in words, and state of the encoder to site to file.
        costs: table of bytes and minutes: heading of each column, and rows.
        facts: how it was run.
    """

    title: str
    description: str
    arms: Mapping[str, Arm]
    references: Sequence[str]
    evaluations: Sequence[Evaluation]
    unfinished: int
    published: Mapping[str, Any] | None
    protocol: Mapping[str, str]
    validations: Sequence[Validations]
    pretraining: Mapping[str, Path]
    partitions: Mapping[str, int]
    finetuning: Mapping[str, Mapping[str, Path]]
    shown: str
    features: Mapping[str, tuple[str, Mapping[str, Mapping[str, Path]]]]
    costs: tuple[Sequence[str], Sequence[Sequence[str]]]
    facts: Mapping[str, str] = field(default_factory=dict)

    def label(self, arm: str) -> str:
        return self.arms[arm].label

    def place(self, arm: str) -> int:
        """The arm's place in the palette, among those that the page shows."""
        shown = {
            *(e.arm for e in self.evaluations),
            *self.pretraining,
            *(a for own in self.finetuning.values() for a in own),
            *(v.arm for v in self.validations),
        }
        return [name for name in self.arms if name in shown].index(arm)


def write_study_report(path: str | Path, report: StudyReport) -> Path:
    """Write the page, which loads nothing from anywhere.

    Returns:
        The file.

    Raises:
        ValueError: without evaluations, or for logs of rounds that cannot be read.
    """
    if not report.evaluations:
        raise ValueError("a study's report needs at least one finished evaluation")
    known, without_dice = split_by_dice(report.evaluations)
    report = replace(report, evaluations=known)
    found = curves(report.evaluations)
    page = {
        "title": report.title,
        "description": report.description,
        "unfinished": report.unfinished,
        "without_dice": [left_out(each, report.label) for each in without_dice],
        "tiles": _tiles(report, found),
        "figures": [_label_curve(report, mode, own) for mode, own in found.items()],
        "modes": [_mode_table(report, mode, own) for mode, own in found.items()],
        "source": report.published["source"] if report.published else "",
        "protocol": _protocol(report),
        **_convergence(report, list(found)),
        "pairs": pair_tables(paired(report.evaluations, report.references), report.label),
        "efficiency": _efficiency(report, found),
        "classes": class_tables(report.evaluations, report.label),
        "worst": _worst(report, found),
        "spaces": [_space(report.label(arm), run, states) for arm, (run, states) in report.features.items()],
        "shown": report.shown,
        **_training_curves(report),
        "costs": {"head": report.costs[0], "rows": report.costs[1]},
        "facts": dict(report.facts),
    }
    return write_page(path, "study.html.j2", page)


def _tiles(report: StudyReport, found: Curves) -> list[tuple[str, str]]:
    """The fewest annotations in a number, for the arms that others are compared with, on the runs that all have."""
    tiles: list[tuple[str, str]] = []
    for mode, own in found.items():
        fewest = min(count for curve in own.values() for count in curve)
        arms = [arm for arm in report.references or own if fewest in own.get(arm, {})]
        shown = curves(on_common_runs([e for arm in arms for e in _runs(report, mode, arm, fewest)])).get(mode, {})
        for arm, curve in shown.items():
            runs = "1 run" if curve[fewest].runs == 1 else f"{curve[fewest].runs} runs"
            tiles.append((f"Dice, {report.label(arm)}, {mode}, N = {fewest}, {runs}", f"{curve[fewest].mean:.3f}"))
    return tiles


def _label_curve(report: StudyReport, mode: str, own: Mapping[str, Mapping[int, Point]]) -> Drawing:
    lines = [
        Series(
            report.label(arm),
            [(float(count), point.mean) for count, point in curve.items()],
            [point.std for point in curve.values()],
        )
        for arm, curve in own.items()
    ]
    return dice_by_annotated(f"{mode} fine-tuning", lines, [report.place(arm) for arm in own])


def _mode_table(report: StudyReport, mode: str, own: Mapping[str, Mapping[int, Point]]) -> dict[str, Any]:
    """Ours beside the published numbers, each N in two columns where there are any."""
    published = (report.published or {}).get("tables", {}).get(mode, {})
    printed = report.published["annotated"] if report.published and published else []
    own_counts = sorted({count for curve in own.values() for count in curve})
    counts = sorted({*own_counts, *printed})
    columns = {n: [who for who, known in (("ours", own_counts), ("published", printed)) if n in known] for n in counts}
    own_runs = [e for e in report.evaluations if e.mode == mode]
    others = uneven(own_runs)
    rows = []
    for arm, curve in own.items():
        theirs = dict(zip(printed, published.get(report.arms[arm].published, []), strict=False))
        cells = []
        for count, sides in columns.items():
            shown = {"ours": _point(curve.get(count), others), "published": _printed(theirs.get(count))}
            cells += [(side, shown[side]) for side in sides]
        rows.append((report.label(arm), cells))
    runs = sorted({point.runs for curve in own.values() for point in curve.values()})
    by_site = any(point.std_sites is not None for curve in own.values() for point in curve.values())
    return {
        "mode": mode,
        "columns": columns,
        "published": bool(printed),
        "rows": rows,
        "uneven": others,
        "unbalanced": unbalanced(own_runs),
        "runs": " to ".join(str(count) for count in dict.fromkeys((runs[0], runs[-1]))),
        "own_counts": own_counts,
        "by_site": [
            (report.label(arm), [show_number(curve[c].std_sites if c in curve else None, 3) for c in own_counts])
            for arm, curve in own.items()
        ]
        if by_site
        else [],
    }


def _point(point: Point | None, with_runs: bool) -> str:
    if point is None:
        return "–"
    return show_spread({"mean": point.mean, "std": point.std}, 3) + (f" ({point.runs})" if with_runs else "")


def _printed(value: Sequence[float] | None) -> str:
    return "–" if value is None else show_spread({"mean": value[0], "std": value[1]}, 3)


def _protocol(report: StudyReport) -> list[tuple[str, str, str]]:
    """What differs, in words: subject, published, ours."""
    theirs = report.published["protocol"] if report.published else {}
    return [(subject, text, report.protocol.get(subject, "–")) for subject, text in theirs.items()]


def _convergence(report: StudyReport, modes: Sequence[str]) -> dict[str, Any]:
    """A figure for each mode and N that was validated, those whose arms have other runs, and the modes without any."""
    found = curves_by_steps(report.validations)
    own = {place: [v for v in report.validations if (v.mode, v.annotated) == place] for place in found}
    return {
        "convergence": [
            _step_curve(report, f"{mode} fine-tuning, N = {count}", own) for (mode, count), own in found.items()
        ],
        "uneven_steps": [f"{mode} fine-tuning, N = {count}" for mode, count in found if uneven(own[mode, count])],
        "unbalanced_steps": [f"{mode} fine-tuning, N = {n}" for mode, n in found if unbalanced(own[mode, n])],
        "unvalidated": [mode for mode in modes if mode not in {known for known, _ in found}],
    }


def _step_curve(report: StudyReport, title: str, own: Mapping[str, Mapping[int, StepPoint]]) -> Drawing:
    lines = [
        Series(
            report.label(arm),
            [(float(steps), point.mean) for steps, point in curve.items()],
            [point.std for point in curve.values()],
        )
        for arm, curve in own.items()
    ]
    return dice_by_steps(title, lines, [report.place(arm) for arm in own])


def _efficiency(report: StudyReport, found: Curves) -> list[dict[str, Any]]:
    """A table for each mode: what a reference needs for the Dice that an arm has at N."""
    equals = label_efficiency(report.evaluations, report.references)
    equal = {(e.mode, e.reference, e.arm, e.annotated): e.needed for e in equals}
    tables = []
    for mode, own in found.items():
        counts = sorted({count for curve in own.values() for count in curve})
        rows = [
            (
                report.label(reference),
                report.label(arm),
                [_needed(equal.get((mode, reference, arm, c))) for c in counts],
            )
            for reference, arm in arm_pairs(list(own), report.references)
        ]
        if rows:
            tables.append({"mode": mode, "counts": counts, "rows": rows})
    return tables


def _needed(needed: Needed | None) -> str:
    if needed is None:
        return "–"
    return " ".join(part for part in (needed.bound, f"{needed.patients:.3g}") if part)


def _worst(report: StudyReport, found: Curves) -> list[tuple[str, bytes]]:
    """Caption and PNG: of each mode and arm the worst volume with the fewest annotated patients."""
    pictures = []
    for mode, own in found.items():
        for arm, curve in own.items():
            fewest = min(curve)
            evaluation, who, case, dice = worst_volume(_runs(report, mode, arm, fewest))
            for file in evaluation.scores[who].parent.glob("overlay_worst_*.png"):
                model = "" if len(evaluation.scores) == 1 else f", model of {who}"
                caption = f"{report.label(arm)}, {mode}, N = {fewest}{model}: {case}, Dice {dice:.3f}"
                pictures.append((caption, file.read_bytes()))
    return pictures


def _runs(report: StudyReport, mode: str, arm: str, count: int) -> list[Evaluation]:
    return [e for e in report.evaluations if (e.mode, e.arm, e.annotated) == (mode, arm, count)]


def _training_curves(report: StudyReport) -> dict[str, Any]:
    problems: list[str] = []
    pretraining = {arm: read_rounds(file, problems) for arm, file in report.pretraining.items()}
    finetuning = {
        mode: {arm: read_rounds(file, problems) for arm, file in own.items()} for mode, own in report.finetuning.items()
    }
    if problems:
        raise ValueError("the report cannot be written:\n" + "\n".join(f"  {problem}" for problem in problems))
    together = []
    for count in sorted({report.partitions[arm] for arm in pretraining}):  # one of four is easier to tell than of six
        alike = {arm: lines for arm, lines in pretraining.items() if report.partitions[arm] == count}
        title = f"Partition kNN, {count} partitions"
        together.append((title, "accuracy (share of slices)", _all(report, alike, validated, "partition_knn")))
    for mode, own in finetuning.items():
        together += [(f"{mode} fine-tuning", "loss (Dice and cross-entropy)", _all(report, own, trained, "loss"))]
    return {
        "together": [
            over_rounds(title, unit, list(series.values()), [report.place(arm) for arm in series])
            for title, unit, series in together
            if series
        ],
        "monitors": [(report.label(arm), _monitors(lines)) for arm, lines in pretraining.items()],
    }


def _monitors(lines: Sequence[Mapping[str, Any]]) -> list[Drawing]:
    return [over_rounds(title, unit, series) for title, unit, series in pretraining_curves(lines)]


def _all(
    report: StudyReport, logs: Mapping[str, Sequence[Mapping[str, Any]]], read: Any, key: str
) -> dict[str, Series]:
    """Arm to its curve, of those that have one."""
    series = {arm: read(lines, key, report.label(arm)) for arm, lines in logs.items()}
    return {arm: line for arm, line in series.items() if line.points}


def _space(label: str, run: str, states: Mapping[str, Mapping[str, Path]]) -> Drawing:
    views: dict[str, Any] = {}
    for state, files in states.items():
        features_ND, partition_N, site_N = read_features(files)
        kept = thin_out(len(features_ND), _SHOWN_SLICES)
        plane_N2 = principal_plane(features_ND)[kept]
        partitions = [f"part {number + 1}" for number in range(int(partition_N.max()) + 1)]
        views[f"{state} pre-training"] = {
            "partition": (plane_N2, partition_N[kept], partitions),
            "site": (plane_N2, site_N[kept], list(files)),
        }
    return feature_space(
        f"Feature space of {label}, {run}, before and after pre-training, by partition and by site", views
    )
