"""The page about one federated run, self-contained: curves, sites, seconds, bytes, what left, and how it was run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fcl.evaluation.drawing import Drawing, Series
from fcl.evaluation.federation_log import TRAFFIC, pretraining_curves, traffic_by_site, trained, validated
from fcl.evaluation.figures import over_rounds
from fcl.evaluation.page import show_mib, show_number, write_page
from fcl.evaluation.run_facts import Run, reasons, seconds, site_facts, warnings
from fcl.evaluation.run_figures import STATE_COLOURS, mean_and_sites, participation, stacked_rounds, stacked_sites

# Measurements that are shown by site at once: where they come from, key, title, unit.
_MAIN = (
    ("metrics", "loss", "Loss", "loss"),
    ("validation", "partition_knn", "Partition kNN", "accuracy (share of slices)"),
    ("validation", "mean_dice", "Validation Dice", "mean Dice (0 to 1)"),
)
_TRAFFIC_WORDS = {
    "weights_down": "weights in",
    "weights_up": "weights out",
    "features_down": "features in",
    "features_up": "features out",
}
_EGRESS = ("tensors", "rows", "bytes", "reports", "withheld", "refused", "epsilon")


def write_run_report(path: str | Path, run: Run) -> Path:
    """Write the page, which loads nothing from anywhere.

    Returns:
        The file.

    Raises:
        ValueError: without a line of the log.
    """
    if not run.lines:
        raise ValueError("a report on a run needs at least one finished round")
    page = {
        "title": run.title,
        "warnings": warnings(run),
        "tiles": _tiles(run),
        "curves": _curves(run),
        "others": _others(run),
        "part": participation(run.training_states) if run.training_states else None,
        "site_head": ["site", *STATE_COLOURS, "slices a round", "seconds a round", "waits (s)", "peak MiB", "ε"],
        "site_rows": [_site_row(run, site) for site in run.sites],
        "reasons": reasons(run),
        "costs": _costs(run),
        "traffic": traffic_by_site(run.lines),
        "egress": _egress_rows(run),
        "facts": dict(run.facts),
    }
    return write_page(path, "run.html.j2", page)


def _tiles(run: Run) -> list[tuple[str, str]]:
    done = len(run.trained)
    tiles = [("rounds", f"{done} of {run.total}" if run.total else str(done)), ("sites", str(len(run.sites)))]
    for kind, key, title, _ in _MAIN:
        values = [line[kind][key] for line in run.lines if key in line[kind]]
        if values:
            tiles.append((f"{title}, last", f"{values[-1]:.3f}"))
    tiles.append(("minutes of rounds", f"{seconds(run)['all_rounds'] / 60:.1f}"))
    every = sum(entry[f"bytes_{kind}"] for line in run.trained for entry in line["sites"].values() for kind in TRAFFIC)
    tiles.append(("MiB in and out of sites", f"{every / 2**20:.0f}" if every >= 10 * 2**20 else show_mib(every)))
    return tiles


def _curves(run: Run) -> list[Drawing]:
    """The measurements that matter first: of each site, or several means in one figure."""
    drawn = [
        mean_and_sites(title, unit, *_by_site(run, kind, key))
        for kind, key, title, unit in _MAIN
        if any(key in line[kind] for line in run.lines)
    ]
    together = [
        (title, unit, series) for title, unit, series in pretraining_curves(run.lines) if title not in _main_titles()
    ]
    classes = _keys(run, "validation", "dice_")
    if classes:
        series = [validated(run.lines, key, key.removeprefix("dice_")) for key in classes]
        together.append(("Validation Dice by structure", "Dice (0 to 1)", series))
    return drawn + [over_rounds(title, unit, series) for title, unit, series in together]


def _main_titles() -> set[str]:
    return {title for _, _, title, _ in _MAIN}


def _others(run: Run) -> list[Drawing]:
    """Every other measurement, by site."""
    main = {(kind, key) for kind, key, _, _ in _MAIN}
    drawn = [
        mean_and_sites(f"{key.replace('_', ' ')}{' (validation)' if kind == 'validation' else ''}", "value", *lines)
        for kind in ("metrics", "validation")
        for key in _keys(run, kind)
        if (kind, key) not in main
        for lines in [_by_site(run, kind, key)]
    ]
    for name, title, unit in (
        ("update_norm", "Norm of the updates", "L2 norm"),
        ("peak_mib", "Memory of the site's process", "MiB, most of the round"),
    ):
        series = [_entry_series(run, site, name) for site in run.sites]
        series = [line for line in series if line.points]
        if series:
            drawn.append(mean_and_sites(title, unit, None, series))
    return drawn


def _keys(run: Run, kind: str, start: str = "") -> list[str]:
    return list(dict.fromkeys(key for line in run.lines for key in line[kind] if key.startswith(start)))


def _by_site(run: Run, kind: str, key: str) -> tuple[Series, list[Series]]:
    read = trained if kind == "metrics" else validated
    sites = [read(_of_site(run, site), key, site) for site in run.sites]
    return read(run.lines, key, "mean"), [line for line in sites if line.points]


def _of_site(run: Run, site: str) -> list[Mapping[str, Any]]:
    """The log as if there were this site alone."""
    return [
        {**line["sites"][site], "round": line["round"]}
        for line in run.lines
        if site in line["sites"] and site in (*line["accepted"], *line["resting"])
    ]


def _entry_series(run: Run, site: str, name: str) -> Series:
    """Something that the log has of each site beside its measurements; zero and nothing are left out."""
    return Series(site, [(line["round"] + 1, line[name]) for line in _of_site(run, site) if line.get(name)])


def _site_row(run: Run, site: str) -> list[str]:
    found = site_facts(run, site)
    return [
        site,
        *(str(count or "–") for count in found["rounds"].values()),
        show_number(found["slices_per_round"], 0),
        show_number(found["seconds"], 1),
        show_number(found["waits"], 1),
        show_number(found["peak_mib"] or None, 0),
        show_number(found["epsilon"], 2),
    ]


def _costs(run: Run) -> list[Drawing]:
    rounds = seconds(run)["rounds"]
    if not rounds:
        return []
    spent = _spent(rounds)
    by_round, by_site = {}, {}
    for kind, words in _TRAFFIC_WORDS.items():
        moved = [
            (line["round"] + 1, sum(entry[f"bytes_{kind}"] for entry in line["sites"].values()) / 2**20)
            for line in run.trained
        ]
        if any(value for _, value in moved):
            by_round[words] = moved
            by_site[words] = {site: site_facts(run, site)["bytes"][kind] / 2**20 for site in run.sites}
    drawn = [stacked_rounds("Seconds by round", "seconds", spent)]
    if by_round:
        drawn += [
            stacked_rounds("Bytes by round, all sites", "MiB", by_round),
            stacked_sites("Bytes by site, all rounds", "MiB", by_site),
        ]
    return drawn


def _spent(rounds: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Seconds of the rounds in parts: those of the slowest site, if the log has them, and the rest."""
    # "sharing" is before the task whose seconds are told.
    names = dict.fromkeys(name for entry in rounds for name in entry["of_these"] if name != "sharing")
    parts = {f"slowest site: {n}": [(e["round"], e["of_these"].get(n, 0.0)) for e in rounds] for n in names}
    other = [
        (e["round"], max(0.0, e["slowest_site"] - sum(e["of_these"].get(name, 0.0) for name in names))) for e in rounds
    ]
    if any(value > 0.01 * entry["all"] for (_, value), entry in zip(other, rounds, strict=True)):
        parts["slowest site: other" if names else "slowest site"] = other
    return {**parts, "the rest: messages, averaging": [(entry["round"], entry["rest"]) for entry in rounds]}


def _egress_rows(run: Run) -> list[list[str]]:
    return [
        [site, receiver, *(_egress_cell(name, found[name]) for name in _EGRESS)]
        for site, receivers in (run.egress or {}).items()
        for receiver, found in receivers.items()
    ]


def _egress_cell(name: str, value: Any) -> str:
    if name == "bytes":
        return show_mib(value)
    return show_number(value, 2) if name == "epsilon" else str(value)
