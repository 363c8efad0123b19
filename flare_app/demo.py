"""The whole method on made-up data: a federation pre-trains an encoder, few annotations fine-tune it, a page reports.

Two arms are fine-tuned in the same way on the same annotated patients: one from random weights, one from the
federation's encoder. What is finished is kept: a second run goes on where the first stopped.

Examples:
    python -m flare_app.demo
    python -m flare_app.demo --workspace runs/longer --rounds 40 --finetune_epochs 20
    python -m flare_app.demo --workspace runs/tiny --sites 2 --patients 2 --rounds 2 --finetune_epochs 1
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flare_app.job import RESULTS
from flare_app.meter import Meter
from flare_app.processes import end_like_ctrl_c
from flare_app.records import ROUNDS_FILE
from flare_app.rounds_view import look_at_rounds
from flare_app.steps import StepFailed, Steps, read_progress, run_process

ARMS = ("random", "fcl")
_FOLDS = 2
_PRETRAIN_STEPS = 10
_FINETUNE_STEPS = 20
_FINETUNE_RATE = 0.005  # above the bundle's: steps are few
_ANNOTATED = 1
_CHANNELS = (16, 32, 64, 128, 256)
# A coarse grid keeps the demo within minutes.
_GRID: dict[str, Any] = {"spatial_size": [64, 64], "pixdim": [3.0, 3.0]}


@dataclass(frozen=True)
class Demo:
    """What the command line asked for.

    Args:
        workspace: folder of everything the demo writes.
        sites: hospitals.
        patients: of each hospital.
        rounds: of federated pre-training.
        finetune_epochs: of 20 steps, for each arm.
        seed: of data, training and the choice of annotated patients.
        channels: of the network, finest resolution first.
    """

    workspace: Path
    sites: int
    patients: int
    rounds: int
    finetune_epochs: int
    seed: int
    channels: tuple[int, ...]

    @property
    def shared(self) -> dict[str, Any]:
        """Settings that every step must see the same."""
        return {**_GRID, "channels": list(self.channels)}

    @property
    def phantom(self) -> Path:
        return self.workspace / "phantom"

    @property
    def encoder(self) -> Path:
        return self.workspace / "pretrain" / RESULTS / "last.pt"

    @property
    def rounds_log(self) -> Path:
        return self.workspace / "pretrain" / RESULTS / ROUNDS_FILE

    @property
    def report(self) -> Path:
        return self.workspace / "report.html"

    def model(self, arm: str) -> Path:
        return self.workspace / f"finetune_{arm}" / "model_last.pt"

    def scores(self, arm: str) -> Path:
        return self.workspace / f"evaluate_{arm}"


def run_demo(demo: Demo, console: Console) -> None:
    """All steps; see the module."""
    steps = Steps(demo.workspace, console)
    steps.do(
        "phantom",
        {"sites": demo.sites, "patients": demo.patients, "seed": demo.seed, "folds": _FOLDS},
        (),
        demo.phantom,
        [demo.phantom / "split.json"],
        lambda: _phantom(demo, console),
    )
    steps.do(
        "pretrain",
        {"rounds": demo.rounds, "steps": _PRETRAIN_STEPS, "seed": demo.seed, **demo.shared},
        ["phantom"],
        demo.workspace / "pretrain",
        [demo.encoder, demo.rounds_log],
        lambda: _pretrain(demo, console),
    )
    tuning = {"epochs": demo.finetune_epochs, "steps": _FINETUNE_STEPS, "learning_rate": _FINETUNE_RATE}
    tuning |= {"annotated": _ANNOTATED, "seed": demo.seed}
    for arm in ARMS:
        steps.do(
            f"finetune_{arm}",
            {**tuning, **demo.shared},
            ["phantom", "pretrain"] if arm == "fcl" else ["phantom"],
            demo.model(arm).parent,
            [demo.model(arm)],
            lambda arm=arm: _finetune(demo, console, arm),  # type: ignore[misc]
        )
        steps.do(
            f"evaluate_{arm}",
            demo.shared,
            ["phantom", f"finetune_{arm}"],
            demo.scores(arm),
            [demo.scores(arm) / "scores.csv", demo.scores(arm) / "summary.json"],
            lambda arm=arm: _evaluate(demo, console, arm),  # type: ignore[misc]
        )
    _write_report(demo, steps.seconds)
    _print_result(demo, console)


def _phantom(demo: Demo, console: Console) -> None:
    options = {"out": demo.phantom, "sites": demo.sites, "patients": demo.patients, "seed": demo.seed, "folds": _FOLDS}
    command = [sys.executable, "-m", "fcl.data.phantom"]
    for name, value in options.items():
        command += [f"--{name}", str(value)]

    def look() -> tuple[int, str]:
        return sum(1 for _ in demo.phantom.glob("patient*")), ""

    with Meter(console, "phantom, patients", demo.sites * demo.patients) as meter:
        run_process(command, demo.workspace / "logs" / "phantom.log", meter, look)


def _pretrain(demo: Demo, console: Console) -> None:
    settings = demo.workspace / "site_settings.json"
    own = {"split_file": str(demo.phantom / "split.json"), "site": "{SITE_NAME}", "cache_dir": _cache(demo)}
    settings.write_text(json.dumps({"dataset_dir": str(demo.phantom), "data": "phantom", **own}, indent=2))
    command = [sys.executable, "-m", "flare_app.job", "run", "fcl_pretrain", "--sites", str(demo.sites)]
    command += ["--workspace", str(demo.workspace / "pretrain"), "--rounds", str(demo.rounds)]
    command += ["--seed", str(demo.seed), "--site-settings", str(settings)]
    for key, value in {"steps_per_epoch": _PRETRAIN_STEPS, **demo.shared}.items():
        command += ["--set", f"{key}={json.dumps(value)}"]

    with Meter(console, "pre-training, rounds", demo.rounds) as meter:
        log = demo.workspace / "logs" / "pretrain.log"
        run_process(command, log, meter, lambda: look_at_rounds(demo.rounds_log, demo.rounds))


def _finetune(demo: Demo, console: Console, arm: str) -> None:
    options: dict[str, Any] = {
        "cache_dir": _cache(demo),
        "annotated": _ANNOTATED,
        "batch_size": 8,
        "learning_rate": _FINETUNE_RATE,
        "max_epochs": demo.finetune_epochs,
        "steps_per_epoch": _FINETUNE_STEPS,
        "val_interval": max(1, demo.finetune_epochs // 2),
        "seed": demo.seed,
        "output_dir": str(demo.model(arm).parent),
    }
    if arm == "fcl":
        options["pretrained"] = str(demo.encoder)
    _bundle(demo, console, "finetune", arm, options, demo.finetune_epochs * _FINETUNE_STEPS)


def _evaluate(demo: Demo, console: Console, arm: str) -> None:
    options = {"ckpt": str(demo.model(arm)), "output_dir": str(demo.scores(arm))}
    held_out = json.loads((demo.phantom / "split.json").read_text())["sites"].values()
    volumes = 2 * sum(len(site["folds"][0]) for site in held_out)  # ED and ES
    _bundle(demo, console, "evaluate", arm, options, volumes)


def _bundle(demo: Demo, console: Console, config: str, arm: str, options: Mapping[str, Any], total: int) -> None:
    """One of the bundle's configs on the phantom; progress is read from its log."""
    import fcl

    configs = fcl.bundle_root() / "configs"
    files = [str(configs / f"{config}.json"), str(configs / "data" / "phantom.json")]
    data = {"dataset_dir": str(demo.phantom), "split_file": str(demo.phantom / "split.json")}
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(files)]
    command += ["--logging_file", str(configs / "logging.conf")]
    for key, value in {**data, **demo.shared, "threads": os.cpu_count(), **options}.items():
        command += [f"--{key}", str(value)]
    log = demo.workspace / "logs" / f"{config}_{arm}.log"
    unit = "steps" if config == "finetune" else "volumes"

    def look() -> tuple[int, str]:
        return read_progress(log.read_text(errors="replace"), total)

    with Meter(console, f"{config} {arm}, {unit}", total) as meter:
        run_process(command, log, meter, look)


def _cache(demo: Demo) -> str:
    return str(demo.workspace / "cache")


def _write_report(demo: Demo, seconds: Mapping[str, float]) -> None:
    from fcl.evaluation.page import machine_facts
    from fcl.evaluation.report import write_report

    annotated = demo.sites * _ANNOTATED
    training = demo.patients - len(_first_fold(demo))
    facts = {
        "Data": f"phantom of {demo.sites} hospitals with {demo.patients} patients each, seed {demo.seed}; made up: the "
        "numbers show that the software works, and nothing about patients",
        "Pre-training": f"{demo.rounds} rounds of {_PRETRAIN_STEPS} steps at each hospital on its {training} training "
        "patients, no labels",
        "Fine-tuning": f"{demo.finetune_epochs * _FINETUNE_STEPS} steps of 8 slices for each arm, on the {annotated} "
        f"annotated patients that both share ({_ANNOTATED} of each hospital); last weights, none chosen by validation",
        "Scored on": "the patients of fold 0, which no training saw; one seed, so differences of a few hundredths may "
        "be chance",
        "Grid": f"{_GRID['spatial_size'][0]} × {_GRID['spatial_size'][1]} pixels of {_GRID['pixdim'][0]} mm; scores on "
        "each volume's own grid",
        "Minutes": ", ".join(f"{name} {value / 60:.1f}" for name, value in seconds.items())
        + f"; together {sum(seconds.values()) / 60:.1f}",
        **machine_facts(),
        "Command": f"python -m flare_app.demo --sites {demo.sites} --patients {demo.patients} --rounds {demo.rounds} "
        f"--finetune_epochs {demo.finetune_epochs} --seed {demo.seed} --channels {' '.join(map(str, demo.channels))}",
    }
    arms = {arm: demo.scores(arm) for arm in ARMS}
    write_report(
        demo.report, title="Federated contrastive learning: demo", arms=arms, rounds=demo.rounds_log, facts=facts
    )


def _first_fold(demo: Demo) -> list[str]:
    return json.loads((demo.phantom / "split.json").read_text())["sites"]["site-1"]["folds"][0]


def _print_result(demo: Demo, console: Console) -> None:
    summaries = {arm: json.loads((demo.scores(arm) / "summary.json").read_text()) for arm in ARMS}
    classes = list(summaries[ARMS[0]]["classes"])
    table = Table(title=f"Dice on {summaries[ARMS[0]]['cases']} volumes that no training saw, made-up data")
    table.add_column("encoder from")
    for name in (*classes, "mean"):
        table.add_column(name, justify="right")
    for arm, summary in summaries.items():
        values = [summary["classes"][name]["dice"]["mean"] for name in classes] + [summary["mean_dice"]]
        table.add_row(arm, *("-" if value is None else f"{value:.3f}" for value in values))
    console.print(table)
    console.print("One seed and few volumes: differences of a few hundredths may be chance.")
    paths = {"report": demo.report, **{f"checkpoint {arm}": demo.model(arm) for arm in ARMS}, "encoder": demo.encoder}
    for name, path in paths.items():
        console.print(f"{name}: {path}", soft_wrap=True, highlight=False)


def _at_least(least: int) -> Callable[[str], int]:
    def count(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {value}")
        return value

    return count


def parse(argv: Sequence[str] | None = None) -> Demo:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m flare_app.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workspace", type=Path, default=Path("runs/demo"), help="folder for everything (runs/demo)")
    parser.add_argument("--sites", type=_at_least(2), default=4, metavar="N", help="hospitals (4)")
    parser.add_argument("--patients", type=_at_least(_FOLDS), default=6, metavar="N", help="of each hospital (6)")
    parser.add_argument("--rounds", type=_at_least(1), default=8, metavar="N", help="of pre-training (8)")
    parser.add_argument(
        "--finetune_epochs", type=_at_least(1), default=10, metavar="N", help=f"of {_FINETUNE_STEPS} steps each (10)"
    )
    parser.add_argument("--seed", type=_at_least(0), default=0, metavar="N", help="of everything (0)")
    parser.add_argument(
        "--channels", type=_at_least(1), nargs="+", default=_CHANNELS, metavar="N", help=f"of the network {_CHANNELS}"
    )
    arguments = vars(parser.parse_args(argv))
    paths = {"workspace": arguments["workspace"].resolve(), "channels": tuple(arguments["channels"])}
    return Demo(**{**arguments, **paths})


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; gives the exit code."""
    demo, console = parse(argv), Console()
    end_like_ctrl_c()
    try:
        run_demo(demo, console)
    except StepFailed as error:
        console.print(str(error), markup=False, highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on after the last finished step")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
