"""Bytes between hospitals: pre-training on the phantom with weights and features in fewer and fewer bits.

    python -m tests.benchmarks.bytes --out runs/benchmarks/bytes.md
    python -m tests.benchmarks.bytes --variants fedavg fcl-8 --sites 2 --rounds 3 --set steps_per_epoch=2
    python -m tests.benchmarks.bytes --finetune 20 --finetune-option=--set=annotated=1 --out runs/benchmarks/bytes.md

One run of FLARE's simulator per variant. The bytes are those of the tensors that travelled, as ``rounds.jsonl`` counts
them. The reference is federated averaging in float32 of encoder and projection head, without features.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flare_app.job import RESULTS
from tests.benchmarks.simulated import MIB, run_job, run_parser, tabulate

REFERENCE = "fedavg"
_FEATURES, _NONE = ["--exchange", "features"], ["--exchange", "none"]
_FCLOPT = ["--method", "fclopt", *_NONE]
VARIANTS: dict[str, list[str]] = {
    REFERENCE: ["--method", "simclr", *_NONE],
    "fcl": _FEATURES,
    "fcl-16": [*_FEATURES, "--weight-bits", "16"],
    "fcl-8": [*_FEATURES, "--weight-bits", "8", "--feature-bits", "8"],
    "fcl-4": [*_FEATURES, "--weight-bits", "4", "--feature-bits", "8"],
    "fclopt": _FCLOPT,
    "fclopt-8": [*_FCLOPT, "--weight-bits", "8"],
    "fclopt-4": [*_FCLOPT, "--weight-bits", "4"],
}


@dataclass(frozen=True)
class Row:
    """One line of the table, MiB of weights and features together, mean over the sites.

    Args:
        variant: name.
        up, down: that a site sends and receives in a round, mean over rounds.
        total: both ways in the whole training, the validation of the last weights included.
        knn: partition kNN accuracy of the last weights, 0..1.
        dice: mean Dice of the last weights after fine-tuning; None without.
    """

    variant: str
    up: float
    down: float
    total: float
    knn: float | None
    dice: float | None = None


def summarise(variant: str, rounds: Sequence[dict[str, Any]]) -> Row:
    """The row of a run from the lines of its ``rounds.jsonl``.

    Raises:
        ValueError: when there is no trained round.
    """
    trained = [line for line in rounds if line["metrics"]]
    if not trained:
        raise ValueError(f"the run of {variant} has no trained round")

    def mean(direction: str, lines: Sequence[dict[str, Any]]) -> float:
        """MiB of a site in a round."""
        sites = [site for line in lines for site in line["sites"].values()]
        return (
            sum(site[f"bytes_{what}_{direction}"] for site in sites for what in ("weights", "features"))
            / len(sites)
            / MIB
        )

    measured = [line["validation"]["partition_knn"] for line in rounds if "partition_knn" in line["validation"]]
    return Row(
        variant=variant,
        up=mean("up", trained),
        down=mean("down", trained),
        total=sum(mean("up", [line]) + mean("down", [line]) for line in rounds),
        knn=measured[-1] if measured else None,
    )


def last_dice(rounds: Sequence[dict[str, Any]]) -> float | None:
    """Mean Dice of the last weights that were validated."""
    measured = [line["validation"]["mean_dice"] for line in rounds if "mean_dice" in line["validation"]]
    return measured[-1] if measured else None


def as_markdown(rows: Sequence[Row]) -> str:
    """The table; shares are of the reference's total, where that was run."""
    whole = next((row.total for row in rows if row.variant == REFERENCE), None)
    lines = [
        "| variant | MiB up / down a round and site | MiB a training and site | share of fp32 FedAvg | kNN | Dice |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        share = "–" if whole is None else f"{100 * row.total / whole:.0f} %"
        knn, dice = ("–" if value is None else f"{value:.3f}" for value in (row.knn, row.dice))
        lines.append(f"| {row.variant} | {row.up:.2f} / {row.down:.2f} | {row.total:.1f} | {share} | {knn} | {dice} |")
    return "\n".join(lines) + "\n"


def run(variant: str, workspace: Path, arguments: argparse.Namespace) -> Row:
    """Run one variant; raises ``RuntimeError`` with the end of its output when it fails."""
    row = summarise(variant, run_job("fcl_pretrain", workspace / variant, arguments, VARIANTS[variant]))
    if not arguments.finetune:
        return row
    options = ["--pretrained", str(workspace / variant / RESULTS / "last.pt"), *arguments.finetune_option]
    lines = run_job("finetune", workspace / f"{variant}-finetune", arguments, options, arguments.finetune)
    return replace(row, dice=last_dice(lines))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; gives the exit code: 1 when a variant failed."""
    parser = run_parser(__doc__, Path("runs/bytes"))
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME", help=", ".join(VARIANTS)
    )
    parser.add_argument("--finetune", type=int, metavar="ROUNDS", help="fine-tune each encoder, for the Dice")
    parser.add_argument(
        "--finetune-option",
        action="append",
        default=[],
        metavar="OPTION",
        help="further one of that job: --finetune-option=--set=K=V",
    )
    arguments = parser.parse_args(argv)
    workspace = arguments.workspace.resolve()
    return tabulate(arguments.variants, lambda name: run(name, workspace, arguments), as_markdown, arguments.out)


if __name__ == "__main__":
    sys.exit(main())
