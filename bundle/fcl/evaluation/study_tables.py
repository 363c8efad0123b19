"""Tables of the page about a study: arms compared, structures and phases, and what no number could be taken from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fcl.evaluation.page import show_spread
from fcl.evaluation.study_pairs import Paired
from fcl.evaluation.study_results import ALL_PHASES, by_class
from fcl.evaluation.study_runs import Evaluation, uneven

Label = Callable[[str], str]  # an arm's name for readers


def pair_tables(lines: Sequence[Paired], label: Label) -> list[tuple[str, list[list[str]]]]:
    """Name and rows of a table for each reference."""
    tables: dict[str, list[list[str]]] = {}
    for line in lines:
        tables.setdefault(label(line.reference), []).append(_pair_row(line, label))
    return list(tables.items())


def _pair_row(line: Paired, label: Label) -> list[str]:
    found, runs = line.found, line.over_runs
    return [
        line.mode,
        str(line.annotated),
        f"{label(found.arm)} − {label(line.reference)}",
        f"{found.value:.3f} − {found.reference:.3f}",
        f"{found.difference:+.3f}",
        _interval(found.low, found.high),
        f"{found.better} of {found.patients}",
        f"{found.p:.2g}",
        f"{runs.better} of {runs.runs}",
        _interval(runs.low, runs.high),
    ]


def _interval(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"{low:+.3f} to {high:+.3f}"


def class_tables(evaluations: Sequence[Evaluation], label: Label) -> list[dict[str, Any]]:
    """Dice and HD95 by class and phase, for each mode and N."""
    groups: dict[tuple[str, int], dict[str, list[Evaluation]]] = {}
    for e in evaluations:
        groups.setdefault((e.mode, e.annotated), {}).setdefault(e.arm, []).append(e)
    modes = list(dict.fromkeys(e.mode for e in evaluations))
    tables = []
    for (mode, count), own in sorted(groups.items(), key=lambda item: (modes.index(item[0][0]), item[0][1])):
        others = uneven([e for e in evaluations if e.mode == mode])
        scores = {arm: by_class(runs) for arm, runs in own.items()}
        phases = dict.fromkeys(phase for own_scores in scores.values() for phase in own_scores)
        classes = list(dict.fromkeys(name for own_scores in scores.values() for name in own_scores[ALL_PHASES]))
        rows = [
            (
                label(arm) + (f" ({len(own[arm])})" if others else ""),
                phase,
                [_dice_and_distance(own_scores.get(phase, {}).get(name)) for name in classes],
            )
            for arm, own_scores in scores.items()
            for phase in phases
        ]
        tables.append({"mode": mode, "annotated": count, "classes": classes, "rows": rows, "uneven": others})
    return tables


def _dice_and_distance(metrics: Mapping[str, Mapping[str, Any]] | None) -> tuple[str, str]:
    if metrics is None:
        return "–", "–"
    return _with_count(metrics["dice"], 3), _with_count(metrics["hd95_mm"], 1)


def _with_count(values: Mapping[str, Any], digits: int) -> str:
    """A mean over fewer volumes than there are must not look like that of an arm that found the structure in all."""
    shown, scored, volumes = show_spread(values, digits), values["scored"], values["volumes"]
    return shown if scored == volumes else f"{shown} ({scored} of {volumes})"


def left_out(evaluation: Evaluation, label: Label) -> str:
    """Which models' scores hold no Dice, in words."""
    e, models = evaluation, list(evaluation.scores)
    whose = "" if models == ["all"] else f", {'model' if len(models) == 1 else 'models'} of {', '.join(models)}"
    return f"{label(e.arm)}, {e.mode}, N = {e.annotated}, fold {e.fold}, seed {e.seed}{whose}"
