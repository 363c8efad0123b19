"""The jobs, each defined once: exported as folders that FLARE runs as they are, or run here in FLARE's simulator."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nvflare.job_config.api import FedJob

# A site asks for its next task this often (s); FLARE's 2 s would pace the short rounds of a simulation.
_TASK_REQUEST_INTERVAL = 0.2

# Tensors travel inside their message. FLARE would have the receiver fetch them afterwards, piece by piece, and wait for
# minutes, whatever the task's own timeout, when the sender has vanished in between.
_INLINE = {"tensor_download_chunk_size": 0}

LOG = str(Path(__file__).parents[1] / "log_config.json")

RESULTS = Path("server/simulate_job/fcl")  # within a workspace of the simulator


@dataclass(frozen=True)
class JobSettings:
    """All that a job can be told.

    Args:
        name: of the job and its folder.
        config: the bundle's config files, in order of merging.
        methods: folder in the bundle's ``configs`` whose overlays fit ``config``.
        data: overlay in the bundle's ``configs/data`` for sites that name none themselves; None has each site say what
            its data are, and the simulator take a phantom.
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
    data: str | None = None
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
    sites_per_round: int | None = None
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
    job.to_clients(DataStatisticsExecutor(**_workflow(settings)), tasks=tasks)
    policy = {"features": [], "weights": [], "min_patients": settings.min_patients}
    job.to_clients(EgressFilter(policy), tasks=tasks, filter_type=FilterType.TASK_RESULT)
    return job


def _workflow(settings: JobSettings) -> dict[str, Any]:
    """What executors are told of the bundle's workflow that they run."""
    return {
        "config": list(settings.config),
        "data": settings.data,
        "overrides": dict(settings.overrides) or None,
        "seed": settings.seed,
        "bundle_root": settings.bundle_root,
    }


def _empty_job(settings: JobSettings) -> FedJob:
    from nvflare.job_config.api import FedJob

    job = FedJob(name=settings.name, min_clients=settings.min_sites)
    # FLARE would copy what it finds by following imports, which misses most of a package.
    job.set_app_packages(["flare_app", "fcl"])
    job.to_server({"server": {"task_request_interval": _TASK_REQUEST_INTERVAL}, **_INLINE})
    job.to_clients(_INLINE)
    job.add_file_to_clients(str(Path(__file__).parent / "custom"), app_folder_type="custom")
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
            # Without validation no round is the best.
            best_metric=settings.best_metric if settings.validate_every else None,
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
            sites_per_round=settings.sites_per_round,
            max_update_norm=settings.max_update_norm,
        ),
        id="controller",
    )
    if settings.checkpoint_dir is not None:
        from flare_app.provision.results import ResultCopy

        job.to_server(ResultCopy(settings.checkpoint_dir), id="results")
    executor = FCLExecutor(**_workflow(settings), checkpoint_dir=settings.checkpoint_dir)
    job.to_clients(executor, tasks=list(TaskName.ALL))
    # A site's own privacy.json may be stricter; this one names what the job itself needs, whatever the server asks for.
    shown = [] if settings.exchange == "none" else [settings.exchange]
    policy = {"features": shown, **({"routes": [settings.route]} if shown else {})}
    encrypted = ENCRYPTED_TASKS if settings.encryption == "he" else ()
    # FLARE takes one chain of filters for each task.
    plain = [task for task in TaskName.ALL if task not in encrypted]
    job.to_clients(EgressFilter(policy), tasks=plain, filter_type=FilterType.TASK_RESULT)
    if encrypted:
        encryptor = WeightEncryptor(settings.max_norm_ratio, settings.max_update_norm)
        for last in (EgressFilter(policy), encryptor):
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


def run_job(settings: JobSettings, sites: int, workspace: Path, log: str = LOG) -> int:
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
