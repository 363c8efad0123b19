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
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcl.commandline import key_value

if TYPE_CHECKING:
    from nvflare.job_config.api import FedJob

# A site asks for its next task this often (s); FLARE's 2 s would pace the short rounds of a simulation.
_TASK_REQUEST_INTERVAL = 0.2

# Tensors travel inside their message. FLARE would have the receiver fetch them afterwards, piece by piece, and wait for
# minutes, whatever the task's own timeout, when the sender has vanished in between.
_INLINE = {"tensor_download_chunk_size": 0}

_LOG = str(Path(__file__).parent / "log_config.json")

RESULTS = Path("server/simulate_job/fcl")  # within a workspace of the simulator

# Options that mean something to a job that does not train, beside those of the command itself.
_WITHOUT_TRAINING = {"seed", "data", "min_sites", "bundle_root", "min_patients"}


@dataclass(frozen=True)
class JobSettings:
    """All that a job can be told.

    Args:
        name: of the job and its folder.
        config: the bundle's config files, in order of merging.
        methods: folder in the bundle's ``configs`` whose overlays fit ``config``.
        data: overlay in the bundle's ``configs/data`` for sites that name none themselves.
        overrides: config keys set at every site.
        seed: of the job.
        bundle_root: see :class:`flare_app.executor.FCLExecutor`.
        trains: whether it trains; else it compares the sites' data (:mod:`flare_app.statistics`), and of the others
            ``min_sites`` and ``start_timeout_s`` matter.
        min_patients: aggregates of fewer patients stay at the site, which may set a higher limit itself.

    The others are those of :class:`flare_app.controller.FCLController`.
    """

    name: str
    config: tuple[str, ...]
    methods: str = "methods"
    data: str | None = "phantom"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    rounds: int = 10
    min_sites: int = 2
    exchange: str = "none"
    route: str = "peer"
    task_timeout_s: int = 3600
    start_timeout_s: int = 7200
    max_norm_ratio: float | None = 3.0
    max_offences: int = 2
    admit_late: bool = True
    validate_every: int = 1
    best_metric: str | None = None
    pretrained: str | None = None
    checkpoint_dir: str | None = None
    resume: bool = False
    encryption: str = "none"
    weight_bits: int = 32
    server_optimizer: Mapping[str, Any] | None = None
    feature_bits: int = 16
    fan_out: int | None = None
    pull_rows: int | None = None
    overlap: bool = False
    max_update_norm: float | None = None
    bundle_root: str | None = None
    trains: bool = True
    min_patients: int = 5


JOBS = {
    "fcl_pretrain": JobSettings("fcl_pretrain", ("configs/pretrain.json",), exchange="features"),
    "finetune": JobSettings("finetune", ("configs/finetune.json",), methods="finetuning", best_metric="mean_dice"),
    # All patients, however few: none are held out.
    "data_statistics": JobSettings(
        "data_statistics", ("configs/pretrain.json",), overrides={"fold": None}, trains=False
    ),
}


def build_job(settings: JobSettings) -> FedJob:
    """The job, for FLARE to export or to run in any environment."""
    return _training_job(settings) if settings.trains else _statistics_job(settings)


def _statistics_job(settings: JobSettings) -> FedJob:
    from nvflare.job_config.defs import FilterType

    from flare_app.egress import EgressFilter
    from flare_app.protocol import TaskName
    from flare_app.statistics.controller import DataStatisticsController
    from flare_app.statistics.executor import DataStatisticsExecutor

    job = _empty_job(settings)
    controller = DataStatisticsController(min_sites=settings.min_sites, task_timeout_s=settings.start_timeout_s)
    job.to_server(controller, id="controller")
    tasks = [TaskName.STATISTICS]
    job.to_clients(
        DataStatisticsExecutor(
            config=list(settings.config),
            data=settings.data,
            overrides=dict(settings.overrides) or None,
            seed=settings.seed,
            bundle_root=settings.bundle_root,
        ),
        tasks=tasks,
    )
    policy = {"features": [], "weights": [], "min_patients": settings.min_patients}
    job.to_clients(EgressFilter(policy), tasks=tasks, filter_type=FilterType.TASK_RESULT)
    return job


def _empty_job(settings: JobSettings) -> FedJob:
    from nvflare.job_config.api import FedJob

    job = FedJob(name=settings.name, min_clients=settings.min_sites)
    # FLARE would copy what it finds by following imports, which misses most of a package.
    job.set_app_packages(["flare_app", "fcl"])
    job.to_server({"server": {"task_request_interval": _TASK_REQUEST_INTERVAL}, **_INLINE})
    job.to_clients(_INLINE)
    job.add_file_to_clients(str(Path(__file__).parent / "job_custom"), app_folder_type="custom")
    return job


def _training_job(settings: JobSettings) -> FedJob:
    from nvflare.job_config.defs import FilterType

    from flare_app.controller import FCLController
    from flare_app.egress import EgressFilter
    from flare_app.encryption.filters import DECRYPTED_TASKS, ENCRYPTED_TASKS, WeightDecryptor, WeightEncryptor
    from flare_app.executor import FCLExecutor
    from flare_app.protocol import TaskName

    job = _empty_job(settings)
    job.to_server(
        FCLController(
            num_rounds=settings.rounds,
            min_sites=settings.min_sites,
            exchange=settings.exchange,
            route=settings.route,
            task_timeout_s=settings.task_timeout_s,
            start_timeout_s=settings.start_timeout_s,
            max_norm_ratio=settings.max_norm_ratio,
            max_offences=settings.max_offences,
            admit_late=settings.admit_late,
            validate_every=settings.validate_every,
            best_metric=settings.best_metric,
            pretrained=settings.pretrained,
            checkpoint_dir=settings.checkpoint_dir,
            resume=settings.resume,
            encryption=settings.encryption,
            weight_bits=settings.weight_bits,
            server_optimizer=None if settings.server_optimizer is None else dict(settings.server_optimizer),
            feature_bits=settings.feature_bits,
            fan_out=settings.fan_out,
            pull_rows=settings.pull_rows,
            overlap=settings.overlap,
            max_update_norm=settings.max_update_norm,
        ),
        id="controller",
    )
    if settings.checkpoint_dir is not None:
        from flare_app.provision.results import ResultCopy

        job.to_server(ResultCopy(settings.checkpoint_dir), id="results")
    job.to_clients(
        FCLExecutor(
            config=list(settings.config),
            data=settings.data,
            overrides=dict(settings.overrides) or None,
            seed=settings.seed,
            bundle_root=settings.bundle_root,
            checkpoint_dir=settings.checkpoint_dir,
        ),
        tasks=list(TaskName.ALL),
    )
    # A site's own privacy.json may be stricter; this one names what the job itself needs.
    shown = [] if settings.exchange == "none" else [settings.exchange]
    encrypted = ENCRYPTED_TASKS if settings.encryption == "he" else ()
    # FLARE takes one chain of filters for each task.
    plain = [task for task in TaskName.ALL if task not in encrypted]
    job.to_clients(EgressFilter({"features": shown}), tasks=plain, filter_type=FilterType.TASK_RESULT)
    if encrypted:
        encryptor = WeightEncryptor(settings.max_norm_ratio, settings.max_update_norm)
        for last in (EgressFilter({"features": shown}), encryptor):
            job.to_clients(last, tasks=list(encrypted), filter_type=FilterType.TASK_RESULT)
        job.to_clients(WeightDecryptor(), tasks=list(DECRYPTED_TASKS), filter_type=FilterType.TASK_DATA)
    return job


def export_job(settings: JobSettings, out: Path, self_contained: bool = False, config_only: bool = False) -> Path:
    """Write the job folder ``out/<name>``; one that was exported there before is replaced.

    By default the job has no code but the right to: the packages are installed at server and sites.

    Args:
        settings: of the job.
        out: the folder that holds job folders.
        self_contained: copy the bundle's configs and both packages into the job, with a stamp that each site checks;
            sites need only their dependencies.
        config_only: leave out the folder for code; each site holds the job's classes against its allow list.

    Raises:
        ValueError: when asked for both.
    """
    if self_contained and config_only:
        raise ValueError("a job is self-contained or config-only, not both")
    build_job(settings).export_job(str(out))
    folder = out / settings.name
    _order_filter_tasks(folder / "app" / "config" / "config_fed_client.json")
    custom = folder / "app" / "custom"
    if config_only:
        shutil.rmtree(custom)
    if self_contained:
        from flare_app.provision.shipped import SHIPPED_CLASSES, ship

        (custom / "README.md").unlink()
        ship(custom)
        for config in sorted((folder / "app" / "config").glob("config_fed_*.json")):
            text = config.read_text()
            for plain, checking in SHIPPED_CLASSES.items():
                text = text.replace(f'"{plain}"', f'"{checking}"')
            config.write_text(text)
    return folder


def _order_filter_tasks(config: Path) -> None:
    """FLARE keeps the tasks of a filter as a set, so that each export would write them in another order."""
    content = json.loads(config.read_text())
    for chain in (*content["task_data_filters"], *content["task_result_filters"]):
        chain["tasks"].sort()
    config.write_text(json.dumps(content, indent=4))


def run_job(settings: JobSettings, sites: int, workspace: Path, log: str = _LOG) -> int:
    """Run the job in FLARE's simulator, with a process for each site; gives FLARE's exit code, 0 when all went well.

    Args:
        settings: of the job.
        sites: how many.
        workspace: folder to run in; what is there, but for its ``local``, is removed.
        log: a logging configuration, or one of FLARE's modes. By default the console shows what this app has to say,
            and the log files in the workspace everything.
    """
    if settings.encryption == "he":
        from flare_app.provision.encryption import write_contexts

        write_contexts(workspace / "startup")  # which the simulator keeps, and hands to all
    # One thread for each site: with fewer the simulator restarts the sites' processes, and they lose their state.
    return int(build_job(settings).simulator_run(str(workspace), n_clients=sites, threads=sites, log_config=log) or 0)


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
    options.add_argument("--data", metavar="NAME", help="overlay in the bundle's configs/data (phantom)")
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
        help="sites pull features while they train and use them one round later",
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
        "--log", choices=("concise", "msg_only", "full", "verbose"), default=_LOG, help="FLARE's own logging"
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
    if arguments.command == "export":
        print(export_job(settings, arguments.out, arguments.self_contained, arguments.config_only))
        return 0
    if settings.encryption == "he" and importlib.util.find_spec("tenseal") is None:
        parser.error("--encryption he needs the package tenseal: pip install 'fcl[he]', with Python 3.12 or older")
    if arguments.site_settings is not None:
        from flare_app.site import SETTINGS_VARIABLE  # torch and FLARE come along, which --help needs not

        os.environ[SETTINGS_VARIABLE] = str(arguments.site_settings.resolve())
    if settings.checkpoint_dir is not None:
        settings = replace(settings, checkpoint_dir=str(Path(settings.checkpoint_dir).resolve()))
    settings = replace(settings, min_sites=min(settings.min_sites, arguments.sites))
    workspace = arguments.workspace.resolve()
    code = run_job(settings, arguments.sites, workspace, arguments.log)
    results = Path(settings.checkpoint_dir) / "server" if settings.checkpoint_dir else workspace / RESULTS
    if not settings.trains:
        print(f"compare the sites: fcl data compare {workspace}" if code == 0 else f"the job failed (code {code})")
        return code
    kept = "encrypted weights (readable at the sites: global.pt)" if settings.encryption == "he" else "global weights"
    print(f"{kept} and log of rounds: {results}" if code == 0 else f"the job failed (code {code}), see above")
    return code


if __name__ == "__main__":
    sys.exit(main())
