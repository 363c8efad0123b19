"""Bytes between hospitals: pre-training on the phantom with weights and features in fewer and fewer bits.

    python -m tests.benchmarks.bytes --out runs/benchmarks/bytes.md
    python -m tests.benchmarks.bytes --variants fedavg fcl-8 --sites 2 --rounds 3 --set steps_per_epoch=2
    python -m tests.benchmarks.bytes --finetune 20 --finetune-option=--set=annotated=1 --seeds 0 1 2 --out bytes.md

One run of FLARE's simulator per variant and seed. The bytes are those of the tensors that travelled, as
``rounds.jsonl`` counts them. The reference is federated averaging in float32 of encoder and projection head, without
features.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
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
        knn: partition kNN accuracy of the last weights by seed, 0..1.
        dice: mean Dice of the last weights after fine-tuning, by seed; empty without.
    """

    variant: str
    up: float
    down: float
    total: float
    knn: tuple[float, ...]
    dice: tuple[float, ...] = ()


def summarise(variant: str, rounds: Sequence[dict[str, Any]]) -> Row:
    """The row of a run from the lines of its ``rounds.jsonl``.

    Raises:
        ValueError: when there is no trained round.
    """
    trained = [line for line in rounds if line["metrics"]]
    if not trained:
        raise ValueError(f"the run of {variant} has no trained round")

    def of_a_site(direction: str, lines: Sequence[dict[str, Any]]) -> float:
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
        up=of_a_site("up", trained),
        down=of_a_site("down", trained),
        total=sum(of_a_site("up", [line]) + of_a_site("down", [line]) for line in rounds),
        knn=tuple(measured[-1:]),
    )


def last_dice(rounds: Sequence[dict[str, Any]]) -> tuple[float, ...]:
    """Mean Dice of the last weights that were validated; empty where none were."""
    return tuple([line["validation"]["mean_dice"] for line in rounds if "mean_dice" in line["validation"]][-1:])


def of_seeds(rows: Sequence[Row]) -> Row:
    """One row of a variant's runs; the bytes are those of the first, which no seed changes."""
    knn, dice = (tuple(value for row in rows for value in getattr(row, name)) for name in ("knn", "dice"))
    return replace(rows[0], knn=knn, dice=dice)


def _shown(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds."""
    if not values:
        return "–"
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def as_markdown(rows: Sequence[Row]) -> str:
    """The table; shares are of the reference's total, where that was run."""
    whole = next((row.total for row in rows if row.variant == REFERENCE), None)
    lines = [
        "| variant | MiB up / down a round and site | MiB a training and site | share of fp32 FedAvg | kNN | Dice |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        share = "–" if whole is None else f"{100 * row.total / whole:.0f} %"
        lines.append(
            f"| {row.variant} | {row.up:.2f} / {row.down:.2f} | {row.total:.1f} | {share} | {_shown(row.knn)} | "
            f"{_shown(row.dice)} |"
        )
    return "\n".join(lines) + "\n"


def run(variant: str, workspace: Path, arguments: argparse.Namespace) -> Row:
    """Run one variant with all seeds; raises ``RuntimeError`` with the end of the output of one that fails."""
    return of_seeds([_run_once(variant, workspace, arguments, seed) for seed in arguments.seeds or [arguments.seed]])


def _run_once(variant: str, workspace: Path, arguments: argparse.Namespace, seed: int) -> Row:
    arguments = argparse.Namespace(**{**vars(arguments), "seed": seed})
    folder = workspace / f"{variant}-{seed}"
    row = summarise(variant, run_job("fcl_pretrain", folder, arguments, VARIANTS[variant]))
    if not arguments.finetune:
        return row
    # The seed also says which patients are annotated.
    options = ["--pretrained", str(folder / RESULTS / "last.pt"), "--set", f"split_seed={seed}"]
    lines = run_job(
        "finetune",
        workspace / f"{folder.name}-finetune",
        arguments,
        [*options, *arguments.finetune_option],
        arguments.finetune,
    )
    return replace(row, dice=last_dice(lines))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; gives the exit code: 1 when a variant failed."""
    parser = run_parser(__doc__, Path("runs/bytes"))
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME", help=", ".join(VARIANTS)
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", metavar="N", help="several, for mean and spread (that of --seed)"
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
