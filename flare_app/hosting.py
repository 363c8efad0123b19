"""Setting up a job's bundle at a site: the job's files and overrides, this site's own settings, seed and folders."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.bundle.reference_resolver import ReferenceResolver
from nvflare.apis.app_validation import AppValidationKey
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext

import fcl
from fcl.card import FIELDS, declared_in
from fcl.federation import DataStatistics, Participant, PrivateWeights
from flare_app.overreach import overreach
from flare_app.precedence import Precedence
from flare_app.protocol import SiteError, without_paths
from flare_app.site import SETTINGS_FILE, HostedJob, SiteSettings, read_settings, site_seed
from flare_app.state import SiteStates, seed_everything
from flare_app.workflow import (
    bundle_folder,
    check_data,
    config_files,
    config_hash,
    declared,
    open_workflow,
    parse_workflow,
    unknown_keys,
)

logger = logging.getLogger(__name__)

# Overlay of made-up data, where nobody names others and nothing is real but the simulator.
SIMULATED_DATA = "phantom"

# What a job without code may set for statistics. By all else it could choose patients, or edges of histograms, and tell
# a single patient from the difference of two answers. (`fold` chooses none: statistics are of all folds.)
_OF_STATISTICS = ("fold", "labels", "slice_axis")


@dataclass(frozen=True)
class Hosted:
    """A bundle that is ready for its first round.

    Args:
        workflow: to be finalized at the end.
        participant: that it declares.
        settings: of this site.
        configuration: what all sites must have in common, as a hash and in plain words.
        declared: what this site says for the card of the weights.
        models: folder for models that the site keeps.
        states: where the site's state goes after each round; None when the job keeps none.
    """

    workflow: Any
    participant: Participant
    settings: SiteSettings
    configuration: dict[str, Any]
    declared: dict[str, Any]
    models: Path
    states: SiteStates | None


@dataclass(frozen=True)
class _Found:
    """A job's bundle at this site, not yet parsed."""

    site: str
    settings: SiteSettings
    root: Path
    files: list[Path]
    overrides: dict[str, Any]
    precedence: Precedence
    output: Path


def host(
    job: HostedJob, fl_ctx: FLContext, key: Mapping[str, str], shows_features: bool, threads: int | None
) -> Hosted:
    """Open the bundle of ``job`` at the site of ``fl_ctx``, with data that have been checked.

    Args:
        job: what to open.
        fl_ctx: of the running job.
        key: fingerprint of the site's key where weights are encrypted, else empty.
        shows_features: whether the job has sites show features.
        threads: of torch, where the site's settings name no number; None leaves torch as it is.

    Raises:
        SiteError: naming what is missing or not allowed; its text may leave the site.
        DataProblems: when the site's data are not fit.
    """
    found = _find(job, fl_ctx, threads)
    configuration = {
        "config_hash": config_hash(found.root, job.config, {**job.overrides, **key}, job.seed),
        "settings": without_paths(
            {"config": list(job.config), "overrides": dict(job.overrides), "seed": job.seed, **key}
        ),
    }
    models, states = found.output, None
    if job.checkpoint_dir is not None:
        folder, workspace = Path(job.checkpoint_dir), fl_ctx.get_engine().get_workspace()
        models = folder / found.site if folder.is_absolute() else Path(workspace.get_root_dir()) / folder
        states = SiteStates(models)
    workflow, participant = open_workflow(
        found.root, found.files, found.overrides, found.settings.data_check, found.precedence
    )
    unread = found.precedence.unread(workflow.parser)
    if unread and shows_features and participant.shares_features and "features" not in found.settings.withhold:
        raise SiteError(
            f"nothing in {found.files[0].name} heeds {', '.join(unread)} of this site's feature_privacy, "
            "and its features would leave without"
        )
    _require_private_weights(found, participant)
    declared_here = _declared(workflow)
    return Hosted(workflow, participant, found.settings, configuration, declared_here, models, states)


def _require_private_weights(found: _Found, participant: Participant) -> None:
    asked, config = found.settings.weight_privacy, found.files[0].name
    if asked is None:
        return
    if not isinstance(participant, PrivateWeights):
        raise SiteError(
            f"this site sets weight_privacy, so that weights leave it from private training alone, and {config} as "
            "this job has it trains without: fine-tune with configs/privacy/dp_sgd.json (the job's "
            "--method ../privacy/dp_sgd), or have the site leave weight_privacy out for this job"
        )
    unmet = [key for key, value in asked.items() if getattr(participant.weight_privacy, key) != value]
    if unmet:
        raise SiteError(
            f"training of {config} would not keep to {', '.join(unmet)} of this site's weight_privacy: have the job's "
            "configuration refer to them as configs/privacy/dp_sgd.json does"
        )


def _declared(workflow: Any) -> dict[str, Any]:
    if "card" not in workflow.parser:
        return {}
    told = declared_in(workflow.parser.get_parsed_content("card"))
    untold = [name for name in FIELDS if name not in told and name in workflow.parser]
    if untold:
        logger.warning("not declared for the card of the weights, as it is no plain setting: %s", ", ".join(untold))
    return told


def host_statistics(job: HostedJob, fl_ctx: FLContext, threads: int | None) -> DataStatistics:
    """Open the bundle of ``job`` for statistics of this site's data, which have been checked; no network is built.

    Args:
        job: what to open.
        fl_ctx: of the running job.
        threads: as in :func:`host`.

    Raises:
        SiteError: as :func:`host`.
        DataProblems: as :func:`host`.
    """
    found = _find(job, fl_ctx, threads)
    beyond = [repr(key) for key in found.overrides if ReferenceResolver.split_id(key)[0] not in _OF_STATISTICS]
    if beyond and not _may_bring_code(fl_ctx):
        raise SiteError(
            f"a job of statistics without the right to bring code may set {', '.join(_OF_STATISTICS)} alone: leave "
            f"out the override of {', '.join(beyond)}. What else statistics are of is the site's"
        )
    workflow = parse_workflow(found.root, found.files, found.overrides, "data_statistics", found.precedence)
    check_data(workflow, found.settings.data_check)
    return declared(workflow, "data_statistics", DataStatistics, found.files)  # type: ignore[type-abstract]


def _find(job: HostedJob, fl_ctx: FLContext, threads: int | None) -> _Found:
    site = fl_ctx.get_identity_name()
    workspace, job_id = fl_ctx.get_engine().get_workspace(), fl_ctx.get_job_id()
    settings = read_settings(site, workspace.get_site_config_dir())
    threads = settings.threads or threads
    if threads is not None:
        torch.set_num_threads(threads)
    root = bundle_folder(job.bundle_root)
    if not _may_bring_code(fl_ctx):
        beyond = overreach(job.config, job.data, job.overrides, root, job.checkpoint_dir)
        if beyond:
            raise SiteError(f"a job without the right to bring code must do without {', '.join(beyond)}")
        root = fcl.bundle_root()  # the same folder, by a path that the job did not choose
    simulated = bool(fl_ctx.get_prop(FLContextKey.SIMULATE_MODE, False))
    files = config_files(root, job.config, data_overlay(settings, job.data, root, simulated))
    unknown = unknown_keys(root, job.config, job.overrides)
    if unknown:
        raise SiteError(unknown)
    seed = site_seed(job.seed, site)
    seed_everything(seed)
    output = Path(workspace.get_run_dir(job_id)) / "fcl"
    first = {
        "seed": seed,
        "site": site,
        "output_dir": str(output),
        **({"from_card": dict(job.from_card)} if job.from_card else {}),
    }
    precedence = Precedence.of(settings, None if settings.data is None else files[-1], first)
    logger.info("%s: opening %s with seed %d", site, ", ".join(file.name for file in files), seed)
    return _Found(site, settings, root, files, dict(job.overrides), precedence, output)


def data_overlay(settings: SiteSettings, job_data: str | None, root: Path, simulated: bool) -> str:
    """The overlay that reads a site's data: the site's, else the job's, else the simulator's.

    Args:
        settings: of the site.
        job_data: overlay that the job names.
        root: the bundle's folder.
        simulated: whether this is FLARE's simulator.

    Raises:
        SiteError: where nobody has said what the data are: they must not be guessed, let alone made up.
    """
    named = settings.data or job_data
    if named is not None:
        return named
    if settings.dataset_dir is not None:
        known = ", ".join(sorted(file.stem for file in (root / "configs" / "data").glob("*.json")))
        raise SiteError(
            'this site sets "dataset_dir" but not how to read it: set "data" beside it, to "datalist" for a folder '
            f"with dataset.json, else to one of {known}, or the path of a JSON overlay"
        )
    if not simulated:
        raise SiteError(
            f'this site has not said where its data are: write "data" and "dataset_dir" into local/{SETTINGS_FILE} '
            f"(local/{SETTINGS_FILE}.sample in its kit shows how)"
        )
    return SIMULATED_DATA


def _may_bring_code(fl_ctx: FLContext) -> bool:
    """Whether FLARE found code in the job, and the right to it, when it deployed the job here."""
    # That the job's folder for code exists by now tells nothing: its own checkpoint_dir may have made it.
    meta = fl_ctx.get_prop(FLContextKey.JOB_META)
    return isinstance(meta, dict) and meta.get(AppValidationKey.BYOC) is True
