"""The tables and the picture of the study's page, from what its models scored.

    python -m tests.benchmarks.study_page                               # anew from bundle/docs/study_scores.csv
    python -m tests.benchmarks.study_page --results <dir>/results.csv   # take in what a study measured, then the same

A table of the page lies between ``<!-- table: NAME -->`` and ``<!-- end -->``; nobody edits it by hand, and a test
looks whether it says what the scores say. What is compared is listed here, so that p is adjusted over all of it.
"""

from __future__ import annotations

import argparse
import csv
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fcl.evaluation.compare import Difference, adjusted, paired_difference, t_half_width

DOCS = Path(__file__).parents[2] / "bundle" / "docs"
PAGE, SCORES, SITES, PICTURE = (
    DOCS / name for name in ("study.md", "study_scores.csv", "study_sites.csv", "study.png")
)
SUPERVISED = 0.915  # nnU-Net with all labels, at full size (methods.md)
_COLUMNS = ("Dice (95 %, patients)", "better in", "p", "folds 0, 1, 2, 3", "95 %, folds")
KEYS = ("arm", "mode", "annotated", "fold", "seed")

# (arm, mode, annotated, fold, seed) to who to Dice: a patient's over models, volumes and structures, or a model's.
Key = tuple[str, str, int, int, int]
Scores = dict[Key, dict[str, float]]


@dataclass(frozen=True)
class Comparison:
    """Dice of ``arm`` minus that of ``reference`` over the patients of the folds that both have.

    Args:
        label: what the row says.
        arm, reference: of the study.
        annotated: patients of a site, N.
        of_reference: N of the reference, where it differs.
        mode: ``"local"`` or ``"federated"``.
        seed: of training and of the choice of patients.
        folds: fewer than both have.
    """

    label: str
    arm: str
    reference: str
    annotated: int = 1
    of_reference: int | None = None
    mode: str = "local"
    seed: int = 0
    folds: tuple[int, ...] | None = None


WITHOUT_FIRST = (1, 2, 3)  # fold 0 chose the six partitions
MEAN_TEACHER, BOTH, BOTH_SLOW = (  # after 1,350 steps; slow: the encoder at an eighth of the rate
    "random_mean_teacher_longer",
    "fcl_mean_teacher_longer",
    "fcl_slow_encoder_mean_teacher_longer",
)
MAIN = (
    Comparison("**FCL − random, 450 steps**", "fcl", "random"),
    Comparison("the same without fold 0, which chose six partitions", "fcl", "random", folds=WITHOUT_FIRST),
    Comparison("the same with a second seed", "fcl", "random", seed=1),
    Comparison("**FCL − random, 1,350 steps**", "fcl_longer", "random_longer"),
    Comparison("the same without fold 0", "fcl_longer", "random_longer", folds=WITHOUT_FIRST),
    Comparison("mean teacher − random, 1,350 steps", MEAN_TEACHER, "random_longer"),
    Comparison("**FCL and mean teacher − random, 1,350 steps**", BOTH, "random_longer"),
    Comparison("the same, slow encoder", BOTH_SLOW, "random_longer"),
    Comparison("**FCL and mean teacher − mean teacher, 1,350 steps**", BOTH, MEAN_TEACHER),
    Comparison("the same without fold 1, which chose the rate", BOTH, MEAN_TEACHER, folds=(0, 2, 3)),
    Comparison("the same, slow encoder", BOTH_SLOW, MEAN_TEACHER),
    Comparison("FCL and mean teacher − FCL, 1,350 steps", BOTH, "fcl_longer"),
    Comparison("FCL, 1,350 − 450 steps", "fcl_longer", "fcl"),
    Comparison("random, 1,350 − 450 steps", "random_longer", "random"),
    Comparison("the same, N=2", "random_longer", "random", 2),
    Comparison("the same, N=4", "random_longer", "random", 4),
    Comparison("the same, N=6, all", "random_longer", "random", 6),
    Comparison("mean teacher, N=1 − random, N=2, 1,350 steps", MEAN_TEACHER, "random_longer", of_reference=2),
    Comparison("FCL and mean teacher, N=1 − random, N=2, 1,350 steps", BOTH, "random_longer", of_reference=2),
    Comparison("FCL − random, N=2", "fcl", "random", 2),
    Comparison("FCL − random, N=2, 1,350 steps", "fcl_longer", "random_longer", 2),
    Comparison("FCL, one rate − random, N=2, 1,350 steps", "fcl_rates_longer", "random_longer", 2),
    Comparison("**FCL and mean teacher − random, N=2, 1,350 steps**", BOTH, "random_longer", 2),
    Comparison("FCL and mean teacher, slow encoder − random, N=2, 1,350 steps", BOTH_SLOW, "random_longer", 2),
    Comparison("FCL − random, N=4", "fcl", "random", 4),
    Comparison("FCL − random, N=4, 1,350 steps", "fcl_longer", "random_longer", 4),
    Comparison("FCL, one rate − random, N=4, 1,350 steps", "fcl_rates_longer", "random_longer", 4),
    Comparison("mean teacher − random, N=4, 1,350 steps", MEAN_TEACHER, "random_longer", 4),
    Comparison("**FCL and mean teacher − random, N=4, 1,350 steps**", BOTH, "random_longer", 4),
    Comparison("the same, slow encoder", BOTH_SLOW, "random_longer", 4),
    Comparison("FCL and mean teacher − mean teacher, N=4, 1,350 steps", BOTH, MEAN_TEACHER, 4),
    Comparison("FCL − random, N=6, all", "fcl", "random", 6),
    Comparison("FCL, one rate − random, N=6, all, 1,350 steps", "fcl_rates_longer", "random_longer", 6),
    Comparison("**FCL − random, federated**", "fcl", "random", mode="federated"),
    Comparison("mean teacher − random, federated", "random_mean_teacher", "random", mode="federated"),
    Comparison("**FCL and mean teacher − random, federated**", "fcl_mean_teacher", "random", mode="federated"),
    Comparison(
        "FCL and mean teacher − mean teacher, federated", "fcl_mean_teacher", "random_mean_teacher", mode="federated"
    ),
    Comparison("FCL − random, federated, N=6, all", "fcl", "random", 6, mode="federated"),
)
RATES = (
    Comparison("supervised, 450 steps, N=1", "fcl_rates", "fcl"),
    Comparison("supervised, 1,350 steps, N=1", "fcl_rates_longer", "fcl_longer"),
    Comparison("the same, N=2", "fcl_rates_longer", "fcl_longer", 2),
    Comparison("the same, N=4", "fcl_rates_longer", "fcl_longer", 4),
    Comparison("mean teacher, 1,350 steps, N=1", BOTH, BOTH_SLOW),
    Comparison("mean teacher, 1,350 steps, N=2", BOTH, BOTH_SLOW, 2),
    Comparison("mean teacher, 1,350 steps, N=4", BOTH, BOTH_SLOW, 4),
)
ABLATION = (
    Comparison("no features exchanged, only weights", "fcl_no_exchange", "fcl"),
    Comparison("prototypes in place of features", "fcl_prototypes", "fcl"),
    Comparison("no instance term", "fcl_no_instance", "fcl"),
    Comparison("no positives among the rows of others", "fcl_no_matching", "fcl"),
    Comparison("positives out of the denominator", "fcl_excluding", "fcl"),
    Comparison("a quarter of the rows drawn (K = 256)", "fcl_fewer_drawn", "fcl"),
    Comparison("momentum 0.9 in place of 0.99", "fcl_fast_momentum", "fcl"),
    Comparison("momentum 0.999", "fcl_slow_momentum", "fcl"),
    Comparison("twice the rounds", "fcl_long", "fcl"),
    Comparison("then regions, which teach the decoder too", "fcl_then_regions", "fcl"),
    Comparison("then masked images, encoder and decoder", "fcl_then_mim", "fcl"),
    Comparison("four partitions", "fcl_four_partitions", "fcl"),
)
OTHERS = (
    Comparison("prototypes − nothing exchanged", "fcl_prototypes", "fcl_no_exchange"),
    Comparison("four partitions − random weights", "fcl_four_partitions", "random"),
    Comparison("four, positives by continuous position − four", "fcl_four_position", "fcl_four_partitions"),
    Comparison("six − four, positives by continuous position", "fcl", "fcl_four_position"),
    Comparison("six − four, with the mean teacher, 1,350 steps", BOTH_SLOW, "fcl_four_mean_teacher_longer"),
)
WAYS = (  # of fine-tuning, for the ablation
    {"annotated": 1},
    {"annotated": 2},
    {"annotated": 1, "mode": "federated"},
)
ENCODERS = (
    ("random, supervised", "450", "random", 0),
    ("FCL, supervised", "450", "fcl", 0),
    ("random, supervised, second seed", "450", "random", 1),
    ("FCL, supervised, second seed", "450", "fcl", 1),
    ("random, supervised", "1,350", "random_longer", 0),
    ("FCL, supervised", "1,350", "fcl_longer", 0),
    ("random, mean teacher", "1,350", MEAN_TEACHER, 0),
    ("FCL, mean teacher", "1,350", BOTH, 0),
    ("FCL, mean teacher, slow encoder", "1,350", BOTH_SLOW, 0),
)
SUPERVISED_ARMS = {"random": "random", "FCL": "fcl"}
ARMS_ALONE = {
    **SUPERVISED_ARMS,
    "random, 1,350 steps": "random_longer",
    "FCL, 1,350 steps": "fcl_longer",
    "FCL, one rate, 1,350 steps": "fcl_rates_longer",
    "random, mean teacher, 1,350 steps": MEAN_TEACHER,
    "FCL, mean teacher, 1,350 steps": BOTH,
    "FCL, mean teacher, slow encoder, 1,350 steps": BOTH_SLOW,
}
FEDERATED_ARMS = {
    **SUPERVISED_ARMS,
    "random, mean teacher": "random_mean_teacher",
    "FCL, mean teacher": "fcl_mean_teacher",
}


def read_scores(file: Path) -> Scores:
    """A CSV of ``KEYS``, who and Dice."""
    scores: Scores = defaultdict(dict)
    with file.open(newline="", encoding="utf-8") as stream:
        for arm, mode, annotated, fold, seed, who, dice in list(csv.reader(stream))[1:]:
            scores[arm, mode, int(annotated), int(fold), int(seed)][who] = float(dice)
    return dict(scores)


def write_scores(file: Path, who: str, scores: Mapping[Key, Mapping[str, float]]) -> None:
    """What :func:`read_scores` reads, in a fixed order."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*KEYS, who, "dice"])
        writer.writerows([*key, name, f"{value:.5f}"] for key in sorted(scores) for name, value in scores[key].items())


def take_in(results: Path, who: str, known: Scores) -> Scores:
    """Means of a study's ``results.csv`` for each patient or model; a run that was known is replaced."""
    values: dict[Key, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with results.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            if row["dice"]:
                key = (row["arm"], row["mode"], int(row["annotated"]), int(row["fold"]), int(row["seed"]))
                values[key][row[who]].append(float(row["dice"]))
    means = {key: {name: statistics.fmean(own[name]) for name in sorted(own)} for key, own in values.items()}
    return {**known, **means}


def folds(scores: Scores, comparison: Comparison) -> list[int]:
    """Those that both arms have."""
    pairs = ((comparison.arm, comparison.annotated), (comparison.reference, _count(comparison)))
    have = [
        {key[3] for key in scores if (key[0], key[1], key[2], key[4]) == (arm, comparison.mode, count, comparison.seed)}
        for arm, count in pairs
    ]
    return sorted(have[0] & have[1] & set(comparison.folds or have[0]))


def by_fold(scores: Scores, comparison: Comparison) -> dict[int, float]:
    """Fold to mean difference over its patients."""
    return {
        fold: statistics.fmean(_patients(scores, comparison.arm, comparison.annotated, comparison, [fold]).values())
        - statistics.fmean(_patients(scores, comparison.reference, _count(comparison), comparison, [fold]).values())
        for fold in folds(scores, comparison)
    }


def compared(scores: Scores) -> dict[Comparison, Difference]:
    """Every comparison that was run, p adjusted over all of them."""
    changes = [replace(comparison, **way) for comparison in ABLATION for way in WAYS]
    found: dict[Comparison, Difference] = {}
    for comparison in (*MAIN, *RATES, *changes, *OTHERS):
        if common := folds(scores, comparison):
            right = _patients(scores, comparison.arm, comparison.annotated, comparison, common)
            left = _patients(scores, comparison.reference, _count(comparison), comparison, common)
            found[comparison] = paired_difference(comparison.arm, "all", left, right, len(left))
    return dict(zip(found, adjusted(list(found.values())), strict=True))


def tables(scores: Scores) -> dict[str, str]:
    """Name to Markdown."""
    lines = compared(scores)
    return {
        "encoders": _encoders(scores),
        "labels": _by_fold(scores, "local", (1, 2, 4, 6), ARMS_ALONE),
        "federated": _by_fold(scores, "federated", (1, 6), FEDERATED_ARMS),
        "differences": _differences(scores, lines, MAIN),
        "rates": _differences(scores, lines, RATES),
        "ablation": _ablation(scores, lines),
        "others": _differences(scores, lines, OTHERS),
        "adjusted": f"p is adjusted over the {len(lines)} comparisons of this page.",
    }


def filled(page: str, blocks: Mapping[str, str]) -> str:
    """The page with each table anew.

    Raises:
        ValueError: when the page lacks a table, or has one that is not known.
    """
    if set(re.findall(r"<!-- table: (\w+) -->", page)) != set(blocks):
        raise ValueError(f"study.md must have the tables {', '.join(blocks)}")
    return re.sub(
        r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)",
        lambda found: f"{found[1]}\n{blocks[found[2]]}\n\n{found[3]}",
        page,
        flags=re.DOTALL,
    )


def draw(scores: Scores, file: Path) -> None:
    """Dice against annotated patients, sites alone: lines with the spread over folds, of three or more."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained", dpi=130)
    axes = figure.subplots()
    shown = (
        ("random weights, 450 steps", "random", "o-", "#0072B2"),
        ("FCL, 450 steps", "fcl", "s-", "#D55E00"),
        ("random weights, 1,350 steps", "random_longer", "o:", "#56B4E9"),
        ("FCL, 1,350 steps", "fcl_longer", "s", "#E69F00"),
        ("FCL and mean teacher, slow encoder, 1,350 steps", BOTH_SLOW, "D:", "#009E73"),
        ("FCL and mean teacher, 1,350 steps", BOTH, "^:", "#CC79A7"),
    )
    for place, (label, arm, style, colour) in enumerate(shown):
        counts = [count for count in (1, 2, 4, 6) if len(_means(scores, arm, "local", count)) > 2]
        means = [_means(scores, arm, "local", count) for count in counts]
        axes.errorbar(
            [count + 0.05 * (place - 2) for count in counts],
            [statistics.fmean(own) for own in means],
            yerr=[statistics.stdev(own) for own in means],
            fmt=style,
            color=colour,
            capsize=3,
            markersize=5,
            label=label,
        )
    axes.set(xlabel="annotated patients of each site, N", ylabel="mean Dice per volume", xticks=(1, 2, 4, 6))
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    figure.savefig(file, metadata={"Software": None})


def _count(comparison: Comparison) -> int:
    return comparison.of_reference or comparison.annotated


def _patients(scores: Scores, arm: str, count: int, comparison: Comparison, common: Sequence[int]) -> dict[str, float]:
    runs = (scores[arm, comparison.mode, count, fold, comparison.seed] for fold in common)
    return {patient: dice for run in runs for patient, dice in run.items()}


def _means(scores: Scores, arm: str, mode: str, count: int, seed: int = 0) -> list[float]:
    """Of the four folds, as far as they were run."""
    keys = [(arm, mode, count, fold, seed) for fold in range(4)]
    return [statistics.fmean(scores[key].values()) for key in keys if key in scores]


def _encoders(scores: Scores) -> str:
    rows = [["encoder from, fine-tuning", "steps", *(f"fold {fold}" for fold in range(4)), "mean"]]
    for label, steps, arm, seed in ENCODERS:
        if _means(scores, arm, "local", 1, seed):
            rows.append([label, steps, *_fold_cells(scores, arm, "local", 1, seed)])
    return _markdown(rows)


def _by_fold(scores: Scores, mode: str, counts: Sequence[int], arms: Mapping[str, str]) -> str:
    rows = [["encoder from", "N", *(f"fold {fold}" for fold in range(4)), "mean"]]
    for count in counts:
        for label, arm in arms.items():
            if _means(scores, arm, mode, count):
                rows.append([label, str(count), *_fold_cells(scores, arm, mode, count, 0)])
    return _markdown(rows)


def _fold_cells(scores: Scores, arm: str, mode: str, count: int, seed: int) -> list[str]:
    keys = [(arm, mode, count, fold, seed) for fold in range(4)]
    cells = [f"{statistics.fmean(scores[key].values()):.3f}" if key in scores else "" for key in keys]
    means = _means(scores, arm, mode, count, seed)
    spread = f" ± {statistics.stdev(means):.3f}" if len(means) > 1 else ""
    return [*cells, f"{statistics.fmean(means):.3f}{spread}"]


def _differences(scores: Scores, lines: Mapping[Comparison, Difference], wanted: Sequence[Comparison]) -> str:
    rows = [["difference", *_COLUMNS, "of the error"]]
    for comparison in wanted:
        if comparison in lines:
            line = lines[comparison]
            share = f"{100 * line.difference / (SUPERVISED - line.reference):.0f} %"
            rows.append([comparison.label, *_cells(line, by_fold(scores, comparison)), _minus(share)])
    return _markdown(rows)


def _ablation(scores: Scores, lines: Mapping[Comparison, Difference]) -> str:
    names = ("alone, N=1", "alone, N=2", "federated, N=1")
    rows = [["change to FCL", "arm", "fine-tuning", *_COLUMNS]]
    for comparison in ABLATION:
        first = True
        for name, way in zip(names, WAYS, strict=True):
            if line := lines.get(own := replace(comparison, **way)):  # type: ignore[arg-type]
                said = [comparison.label, f"`{comparison.arm}`"] if first else ["", ""]
                rows.append([*said, name, *_cells(line, by_fold(scores, own))])
                first = False
    return _markdown(rows)


def _cells(line: Difference, own: Mapping[int, float]) -> list[str]:
    p = "< 0.001" if line.p < 0.001 else f"{line.p:.2g}"
    each = ", ".join(_signed(own[fold]) if fold in own else "·" for fold in range(4))
    over = ""
    if len(own) > 2:
        mean, half = statistics.fmean(own.values()), t_half_width(list(own.values()))
        over = f"{_signed(mean - half)} to {_signed(mean + half)}"
    patients = f"{_signed(line.difference)} ({_signed(line.low or 0.0)} to {_signed(line.high or 0.0)})"
    return [patients, f"{line.better} of {line.patients}", p, each, over]


def _signed(value: float) -> str:
    return "0.000" if abs(value) < 0.0005 else _minus(f"{value:+.3f}")


def _minus(text: str) -> str:
    return "0 %" if text == "-0 %" else text.replace("-", "−")


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", nargs="*", type=Path, default=[], metavar="results.csv", help="of study folders")
    for results in parser.parse_args(arguments).results:
        for file, who in ((SCORES, "patient"), (SITES, "model")):
            write_scores(file, who, take_in(results, who, read_scores(file) if file.exists() else {}))
    scores = read_scores(SCORES)
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), tables(scores)), encoding="utf-8")
    draw(scores, PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
