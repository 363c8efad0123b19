"""How few annotated patients are enough: pre-train in several ways, fine-tune with N, compare on held-out patients.

Examples:
    python -m flare_app.study --config bundle/configs/studies/phantom.json --out runs/study
    python -m flare_app.study --config bundle/configs/studies/acdc.json --dataset_dir <ACDC> --out runs/acdc
    python -m flare_app.study --config bundle/configs/studies/acdc.json --dataset_dir <ACDC> --out runs/acdc \\
        --preset cpu --arms random fcl --annotated 1 2 --folds 0 1 --modes local
    python -m flare_app.study --config bundle/configs/studies/acdc.json bundle/configs/studies/ablation.json \\
        --dataset_dir <ACDC> --out runs/ablation --preset cpu --set pretrain::rounds=80

What is finished is kept: the same command goes on after the last finished cell, and cells whose settings changed are
done again (changes of the code are not seen). ``--plan`` lists the cells and does none, ``--report`` writes results and
report of what is finished.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from filelock import Timeout
from rich.console import Console

from fcl.commandline import key_value
from flare_app.processes import end_like_ctrl_c
from flare_app.steps import StepFailed
from flare_app.storage import alone_with_children
from flare_app.study.asked import note, noted, recall, remember
from flare_app.study.cells import Cells, all_threads
from flare_app.study.data import prepare_cohort
from flare_app.study.loading import load_study
from flare_app.study.outcome import Outcome
from flare_app.study.plan import left_out, plan, plan_all
from flare_app.study.run import Ledger, run_cells
from flare_app.study.words import study_facts

_MACHINES_FILE = "machines.json"


def run_study(arguments: argparse.Namespace, console: Console) -> None:
    """All that the command line asks for; see the module.

    Raises:
        StudyError, fcl.data.DataProblems: when it cannot be done.
        StepFailed: when a cell fails.
    """
    study = load_study(arguments.config, arguments.preset, dict(arguments.set))
    chosen = study.select(
        **{name: getattr(arguments, name) for name in ("arms", "annotated", "folds", "seeds", "modes")}
    )
    out = arguments.out.resolve()
    dataset_dir, split_file = (path and path.resolve() for path in (arguments.dataset_dir, arguments.split_file))
    cohort = prepare_cohort(study, chosen, out, dataset_dir, split_file, tie=not arguments.plan)
    cells = Cells(out, cohort, study["data"], arguments.threads or all_threads(), console)
    ledger = Ledger(out, cells, console)
    todo = plan(study, chosen, cohort.split)
    for line in left_out(study, chosen, cohort.split):
        console.print(line, soft_wrap=True, highlight=False)
    if arguments.plan:
        for cell in todo:
            spent = ledger.seconds(cell)
            state = f"done in {spent / 60:.1f} min" if spent is not None else "to do"
            state += " again, its settings or the bundle's configuration files changed" if ledger.outdated(cell) else ""
            console.print(f"{cell.name}: {state}", soft_wrap=True, highlight=False)
        return
    if not arguments.report:
        remember(out, chosen)
    earlier, lacking = recall(out, study)
    for arm in lacking:
        console.print(
            f"not in results and report: {arm}, whose encoder no file is named for: --set arms::{arm}::encoder=FILE",
            soft_wrap=True,
            highlight=False,
        )
    asked = earlier or [chosen]
    outcome = Outcome(study, plan_all(study, asked, cohort.split), ledger.seconds, cells)

    def publish() -> None:
        outcome.write_tables()
        facts = study_facts(
            study,
            study.together(asked),
            cohort,
            shlex.join(["python", "-m", "flare_app.study", *arguments.given]),
            _spent(outcome),
        )
        page = outcome.write_report({**facts, "Configuration": outcome.configuration, **_machines(out)})
        for name, path in {"results": out / "results.csv", "report": page}.items():
            console.print(f"{name}: {path or 'none yet'}", soft_wrap=True, highlight=False)

    if not arguments.report:
        try:
            _note_machine(out)
            outcome.write_tables()
            run_cells(todo, ledger, console, outcome.add)
        except BaseException:
            try:
                publish()
            except Exception as error:  # what stopped the study is what one must learn
                console.print(f"nor could the report be written: {error}", markup=False, soft_wrap=True)
            raise
    publish()


def _spent(outcome: Outcome) -> float:
    return sum(outcome.seconds(cell) or 0.0 for cell in outcome.known)


def _note_machine(out: Path) -> None:
    """A study may go on elsewhere: the report names every machine that it ran on."""
    from fcl.evaluation.page import machine_facts

    note(out / _MACHINES_FILE, machine_facts())


def _machines(out: Path) -> dict[str, str]:
    named = [
        (key if n == 1 else f"{key} ({n})", value)
        for n, facts in enumerate(noted(out / _MACHINES_FILE), 1)
        for key, value in facts.items()
    ]
    return dict(named)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    given = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="python -m flare_app.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, nargs="+", required=True, metavar="FILE", help="study, merged in order")
    parser.add_argument("--dataset_dir", type=Path, metavar="DIR", help="the data; not needed for the phantom")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for everything")
    parser.add_argument("--split_file", type=Path, metavar="FILE", help="sites and folds, instead of dividing anew")
    parser.add_argument("--preset", metavar="NAME", help="quick, cpu, full (the study's first)")
    parser.add_argument("--arms", nargs="+", metavar="NAME", help="some of the study's")
    parser.add_argument("--annotated", nargs="+", type=int, metavar="N", help="annotated patients of each site")
    parser.add_argument("--folds", nargs="+", type=int, metavar="N", help="held-out folds, from 0")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N")
    parser.add_argument("--modes", nargs="+", metavar="NAME", help="federated, local")
    parser.add_argument(
        "--set", type=key_value, action="append", default=[], metavar="A::B=VALUE", help="a value of the study"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="of torch, for all processes together (all cores)")
    parser.add_argument("--plan", action="store_true", help="list the cells, do none")
    parser.add_argument("--report", action="store_true", help="only write results and report of what is finished")
    return argparse.Namespace(**vars(parser.parse_args(given)), given=given)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; gives the exit code."""
    arguments, console = parse(argv), Console()
    end_like_ctrl_c()
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        with alone_with_children(arguments.out):
            run_study(arguments, console)
    except Timeout:
        console.print(
            f"another study is running in {arguments.out}, or processes of one that was killed: wait for them",
            markup=False,
            soft_wrap=True,
        )
        return 1
    except (StepFailed, ValueError, FileNotFoundError) as error:
        console.print(str(error), markup=False, highlight=False, soft_wrap=True)
        return 1
    except OSError as error:
        console.print(
            f"{error}. Once that is mended, the same command goes on after the last finished cell",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        return 1
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on after the last finished cell")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
