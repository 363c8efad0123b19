"""Every pre-training method through the FLARE job, on the phantom: the measured columns of ``bundle/docs/methods.md``.

    python -m tests.benchmarks.methods --out runs/methods.md
    python -m tests.benchmarks.methods --methods simclr byol --sites 2 --rounds 4 --set steps_per_epoch=5

One run of FLARE's simulator per method, one after the other. A method that shares features is run with
``exchange features``, the others with ``none``. Times are those of this machine as busy as it is.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fcl
from flare_app.job import RESULTS
from tests.benchmarks.simulated import MIB, run_job, run_parser, tabulate

METHODS = fcl.bundle_root() / "configs" / "methods"
ON_AN_ENCODER = {"local_lr": "gd", "local_ld": "gd", "pixel_contrast": "fcl"}  # and whose encoder they stand on


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        method: name of the overlay.
        up, down: MiB that a site sends and receives in a round, mean over sites and rounds.
        features: MiB of features that a site sends in a round.
        seconds: of a site's training task, mean over sites and rounds but the first.
        loss: mean loss of the first and of the last round.
        spread: of the features in the first and in the last round (0: collapse, 1: uniform); None where the method
            reports none. Pooled encoder features (pretext tasks) begin near 0.05, so only a fall tells.
        knn: partition kNN accuracy of the initial weights and of the last ones, 0..1.
    """

    method: str
    up: float
    down: float
    features: float
    seconds: float
    loss: tuple[float, float]
    spread: tuple[float, float] | None
    knn: tuple[float | None, float | None]


def shares_features(method: str) -> bool:
    """Whether the overlay keeps the participant that publishes features."""
    return "participant" not in json.loads((METHODS / f"{method}.json").read_text(encoding="utf-8"))


def summarise(method: str, rounds: Sequence[dict[str, Any]]) -> Row:
    """The row of a run from the lines of its ``rounds.jsonl``.

    Raises:
        ValueError: when there is no trained round.
    """
    trained = [line for line in rounds if line["metrics"]]
    if not trained:
        raise ValueError(f"the run of {method} has no trained round")

    def mean(name: str, lines: Sequence[dict[str, Any]] = trained) -> float:
        values = [site[name] for line in lines for site in line["sites"].values()]
        return sum(values) / len(values)

    measured = [line["validation"]["partition_knn"] for line in rounds if "partition_knn" in line["validation"]]
    return Row(
        method=method,
        up=(mean("bytes_weights_up") + mean("bytes_features_up")) / MIB,
        down=(mean("bytes_weights_down") + mean("bytes_features_down")) / MIB,
        features=mean("bytes_features_up") / MIB,
        seconds=mean("seconds", trained[1:] or trained),
        loss=(trained[0]["metrics"]["loss"], trained[-1]["metrics"]["loss"]),
        spread=(trained[0]["metrics"]["spread"], trained[-1]["metrics"]["spread"])
        if "spread" in trained[0]["metrics"]
        else None,
        knn=(measured[0], measured[-1]) if measured else (None, None),
    )


def as_markdown(rows: Sequence[Row]) -> str:
    """The table; a rising loss and a spread that fell below a quarter stand out in bold."""
    lines = [
        "| method | MiB up / down a round and site | of these features up | s a round | loss, first → last round "
        "| spread, first → last | kNN, before → after |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        first, last = row.loss
        loss = f"{first:.3f} → {last:.3f}"
        spread = "–" if row.spread is None else f"{row.spread[0]:.2f} → {row.spread[1]:.2f}"
        collapsed = row.spread is not None and row.spread[1] < row.spread[0] / 4
        before, after = ("–" if value is None else f"{value:.2f}" for value in row.knn)
        lines.append(
            f"| {row.method} | {row.up:.2f} / {row.down:.2f} | {row.features:.2f} | {row.seconds:.1f} "
            f"| {f'**{loss}**' if last > first else loss} "
            f"| {f'**{spread}**' if collapsed else spread} | {before} → {after} |"
        )
    return "\n".join(lines) + "\n"


def run(method: str, workspace: Path, arguments: argparse.Namespace) -> Row:
    """Run one method; raises ``RuntimeError`` with the end of its output when it fails."""
    options = ["--method", method, "--exchange", "features" if shares_features(method) else "none"]
    if method in ON_AN_ENCODER:
        encoder = workspace / ON_AN_ENCODER[method] / RESULTS / "last.pt"
        if not encoder.is_file():
            raise RuntimeError(f"{method} stands on the encoder of {ON_AN_ENCODER[method]}: run that before it")
        options += ["--pretrained", str(encoder)]
    return summarise(method, run_job("fcl_pretrain", workspace / method, arguments, options))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; gives the exit code: 1 when a method failed."""
    known = sorted(path.stem for path in METHODS.glob("*.json"))
    parser = run_parser(__doc__, Path("runs/methods"))
    parser.add_argument("--methods", nargs="+", choices=known, default=known, metavar="NAME", help=", ".join(known))
    arguments = parser.parse_args(argv)
    workspace = arguments.workspace.resolve()
    methods = sorted(arguments.methods, key=lambda name: name in ON_AN_ENCODER)
    return tabulate(methods, lambda method: run(method, workspace, arguments), as_markdown, arguments.out)


if __name__ == "__main__":
    sys.exit(main())
