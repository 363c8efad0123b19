"""The jobs, each defined once: exported as folders that FLARE runs as they are, or run here in FLARE's simulator.

Examples:
    python -m flare_app.job run fcl_pretrain --sites 4 --workspace runs/pretrain --rounds 5
    python -m flare_app.job run fcl_pretrain --sites 4 --workspace runs/alone --exchange none --seed 1
    python -m flare_app.job run finetune --sites 4 --workspace runs/finetune \\
        --pretrained runs/pretrain/server/simulate_job/fcl/last.pt --set annotated=1
    python -m flare_app.job run finetune --sites 4 --workspace runs/prox --method fedprox
    python -m flare_app.job run fcl_pretrain --workspace runs/long --rounds 50 --checkpoint-dir runs/state --resume
    python -m flare_app.job run finetune --workspace runs/encrypted --encryption he
    python -m flare_app.job run fcl_pretrain --workspace runs/lean --weight-bits 8 --feature-bits 8 --fan-out 3
    python -m flare_app.job run fcl_pretrain --sites 10 --workspace runs/turns --rounds 100 --sites-per-round 4
    python -m flare_app.job run data_statistics --sites 4 --workspace runs/statistics
    python -m flare_app.job export fcl_pretrain --out jobs
    python -m flare_app.job export fcl_pretrain --out runs/jobs --self-contained
    nvflare simulator jobs/fcl_pretrain -n 4 -t 4 -w runs/pretrain

From Python, in any of FLARE's environments:
    SimEnv(num_clients=4).deploy(build_job(JOBS["fcl_pretrain"]))
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fcl.commandline import key_value
from flare_app.job.check import job_problem
from flare_app.job.definition import JOBS, LOG, RESULTS, JobSettings, export_job, run_job
from flare_app.job.workspace import workspace_problem
from flare_app.processes import end_children, end_like_ctrl_c

# Options whose paths are read, or written for a later run, while the job runs.
_NEEDED = ("checkpoint_dir", "pretrained", "site_settings", "bundle_root")

# Options that mean something to a job that does not train, beside those of the command itself.
_WITHOUT_TRAINING = {"seed", "data", "min_sites", "bundle_root", "min_patients"}


def _settings(arguments: argparse.Namespace) -> JobSettings:
    settings = JOBS[arguments.job]
    given = {
        name: getattr(arguments, name)
        for name in (
            "rounds",
            "exchange",
            "route",
            "seed",
            "data",
            "min_sites",
            "task_timeout_s",
            "validate_every",
            "checkpoint_dir",
            "encryption",
            "weight_bits",
            "feature_bits",
            "fan_out",
            "pull_rows",
            "overlap",
            "sites_per_round",
            "bundle_root",
            "min_patients",
        )
    }
    given = {name: value for name, value in given.items() if value is not None}
    if not settings.trains:
        others = {name: getattr(arguments, name) for name in ("method", "pretrained", "resume", "server_optimizer")}
        idle = sorted({*given, *(name for name, value in others.items() if value)} - _WITHOUT_TRAINING)
        if idle:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in idle)
            raise ValueError(f"{arguments.job} trains nothing: leave out {options}")
    settings = replace(settings, **given)
    methods = tuple(f"configs/{settings.methods}/{name}.json" for name in arguments.method)
    # The simulator runs in its own workspace: a path relative to this folder would point elsewhere there.
    pretrained = str(Path(arguments.pretrained).resolve()) if arguments.pretrained else None
    return replace(
        settings,
        config=settings.config + methods,
        overrides={**settings.overrides, **dict(arguments.set)},
        pretrained=pretrained,
        resume=arguments.resume,
        server_optimizer=_server_optimizer(arguments.server_optimizer),
    )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _workspace_problem(arguments: argparse.Namespace) -> str | None:
    given = {name: getattr(arguments, name) for name in _NEEDED}
    needed = {f"--{name.replace('_', '-')}": str(path) for name, path in given.items() if path}
    site_settings = arguments.site_settings or os.environ.get("FCL_SITE_SETTINGS") or None
    return workspace_problem(arguments.workspace, needed, dict(arguments.set), site_settings and str(site_settings))


def _server_optimizer(given: Sequence[str] | None) -> dict[str, Any] | None:
    """Settings of :class:`flare_app.server_optimizer.ServerOptimizer` from its words on the command line."""
    if given is None:
        return None
    from flare_app.server_optimizer import ServerOptimizer

    settings = {"name": given[0], **dict(map(key_value, given[1:]))}
    ServerOptimizer(settings)
    return settings


def _parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("job", choices=sorted(JOBS))
    options.add_argument("--rounds", type=int, metavar="N", help="rounds in all")
    options.add_argument("--exchange", choices=("none", "prototypes", "features"), help="what sites show each other")
    options.add_argument("--route", choices=("peer", "relay"), help="between sites, or through the server")
    options.add_argument(
        "--method",
        action="append",
        default=[],
        metavar="NAME",
        help="overlay in configs/methods (finetune: configs/finetuning); several are merged in their order",
    )
    options.add_argument(
        "--data",
        metavar="NAME",
        help="overlay in configs/data, for sites that name none (each site must; in the simulator: phantom)",
    )
    options.add_argument(
        "--set", type=key_value, action="append", default=[], metavar="KEY=VALUE", help="config key, set at all sites"
    )
    options.add_argument("--seed", type=int, metavar="N")
    options.add_argument("--min-sites", type=int, metavar="N", help="fewer accepted results in a round end the job (2)")
    options.add_argument(
        "--min-patients", type=_count, metavar="N", help="data_statistics: of fewer a site tells nothing (5)"
    )
    options.add_argument("--task-timeout-s", type=int, metavar="S", help="wait for results this long (3600)")
    options.add_argument("--validate-every", type=int, metavar="N", help="rounds between validations (1; 0: never)")
    options.add_argument("--pretrained", metavar="FILE", help="checkpoint to start from, read at the server")
    options.add_argument("--checkpoint-dir", metavar="DIR", help="keep what a later --resume needs")
    options.add_argument(
        "--encryption", choices=("none", "he"), help="he: the server averages weights that it cannot read (none)"
    )
    options.add_argument(
        "--weight-bits", type=int, choices=(32, 16, 8, 4), help="in which changes of weights travel (32)"
    )
    options.add_argument(
        "--server-optimizer",
        nargs="+",
        metavar=("NAME", "KEY=VALUE"),
        help="makes a step of the averaged update, e.g. Adam lr=0.01, or SGD lr=1 momentum=0.9 (plain averaging)",
    )
    options.add_argument("--feature-bits", type=int, choices=(16, 8), help="in which features travel (16)")
    options.add_argument(
        "--fan-out", type=_count, metavar="N", help="peers whose features a site gets in a round (all)"
    )
    options.add_argument("--pull-rows", type=_count, metavar="N", help="rows that it gets of each of them (all)")
    options.add_argument(
        "--overlap",
        action="store_true",
        default=None,
        help="sites pull features while they train and use them one round later; not with --sites-per-round",
    )
    options.add_argument(
        "--sites-per-round", type=_count, metavar="N", help="of the sites, how many train in a round, all in turn (all)"
    )
    options.add_argument("--resume", action="store_true", help="go on from the checkpoints in --checkpoint-dir")
    options.add_argument("--bundle-root", metavar="DIR", help="another bundle than the installed one")
    parser = argparse.ArgumentParser(
        prog="python -m flare_app.job", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    export = commands.add_parser("export", parents=[options], help="write the job folder")
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder that will hold the job folder")
    code = export.add_mutually_exclusive_group()
    code.add_argument("--self-contained", action="store_true", help="with the code inside, stamped")
    code.add_argument("--config-only", action="store_true", help="without the right to code; needs sites' allow lists")
    run = commands.add_parser("run", parents=[options], help="run in FLARE's simulator")
    run.add_argument("--sites", type=int, default=4, metavar="N", help="clients, named site-1 to site-N (4)")
    run.add_argument("--workspace", type=Path, required=True, metavar="DIR", help="emptied first, but for its local/")
    run.add_argument("--site-settings", type=Path, metavar="FILE", help="fcl_site.json for all; may hold {SITE_NAME}")
    run.add_argument(
        "--log", choices=("concise", "msg_only", "full", "verbose"), default=LOG, help="FLARE's own logging"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; gives the exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        settings = _settings(arguments)
    except (ValueError, argparse.ArgumentTypeError) as error:
        parser.error(str(error))
    if arguments.resume and not arguments.checkpoint_dir:
        parser.error("--resume needs --checkpoint-dir")
    try:
        exporting = arguments.command == "export"
        if problem := job_problem(settings, not exporting, exporting and arguments.config_only):
            parser.error(problem)
        if exporting:
            print(export_job(settings, arguments.out, arguments.self_contained, arguments.config_only))
            return 0
        if problem := _workspace_problem(arguments):
            parser.error(problem)
        return _run(parser, arguments, settings)
    except ValueError as error:  # settings that do not go together
        parser.error(str(error))
    except OSError as error:
        print(f"{error}: free space, or give a folder of your own", file=sys.stderr)
        return 1


def _run(parser: argparse.ArgumentParser, arguments: argparse.Namespace, settings: JobSettings) -> int:
    if settings.encryption == "he" and importlib.util.find_spec("tenseal") is None:
        parser.error("--encryption he needs the package tenseal: pip install 'fcl[he]', with Python 3.12 or older")
    if arguments.site_settings is not None:
        from flare_app.site import SETTINGS_VARIABLE  # torch and FLARE come along, which --help needs not

        os.environ[SETTINGS_VARIABLE] = str(arguments.site_settings.resolve())
    if settings.checkpoint_dir is not None:
        settings = replace(settings, checkpoint_dir=str(Path(settings.checkpoint_dir).resolve()))
    settings = replace(settings, min_sites=min(settings.min_sites, arguments.sites))
    workspace = arguments.workspace.resolve()
    end_like_ctrl_c()
    try:
        code = run_job(settings, arguments.sites, workspace, arguments.log)
    except KeyboardInterrupt:
        print("interrupted; no process that was started here is left", file=sys.stderr)
        return 130
    finally:
        end_children()
    results = Path(settings.checkpoint_dir) / "server" if settings.checkpoint_dir else workspace / RESULTS
    if not settings.trains:
        print(f"compare the sites: fcl data compare {workspace}" if code == 0 else f"the job failed (code {code})")
        return code
    kept = "encrypted weights (readable at the sites: global.pt)" if settings.encryption == "he" else "global weights"
    print(f"{kept} and log of rounds: {results}" if code == 0 else f"the job failed (code {code}), see above")
    return code


if __name__ == "__main__":
    sys.exit(main())
