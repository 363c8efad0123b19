"""What must hold before the first round: one architecture, one configuration, sites whose processes stay alive."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nvflare.private.fed.utils.fed_utils import split_gpus

from flare_app.aggregation import spec_difference, tensor_spec
from flare_app.state import RunState


def restarting_sites(simulator_arguments: Any, sites: int) -> str | None:
    """Why FLARE's simulator would start each site's process anew for every task; None when it would not.

    Args:
        simulator_arguments: the server engine's arguments; those of a provisioned server name no threads.
        sites: number of clients.
    """
    slots = getattr(simulator_arguments, "threads", None)
    gpu_groups = split_gpus(simulator_arguments.gpu) if getattr(simulator_arguments, "gpu", None) else []
    if len(gpu_groups) > 1:  # one thread for each group, whatever -t says
        slots = len(gpu_groups)
    if slots is None or slots >= sites:
        return None
    return (
        f"the simulator has {slots} thread(s) or GPU group(s) for {sites} clients: it would start each site's process "
        "anew for every task, and optimizer, momentum encoder and feature bank would be lost between rounds. "
        f"Run it with -t {sites}"
    )


def disagreement(reports: Mapping[str, Mapping[str, Any]], exchanging: bool) -> str | None:
    """How the sites do not fit together; None when they do.

    Args:
        reports: site to what it told of itself (``spec``, ``config_hash``, ``shares_features``).
        exchanging: whether features are to be exchanged.
    """
    problems = []
    first, reference = next(iter(reports.items()))
    for site, report in reports.items():
        difference = spec_difference(reference["spec"], report["spec"])
        if difference:
            problems.append(f"{site} has another architecture than {first}: {difference}")
        elif report["config_hash"] != reference["config_hash"]:
            problems.append(f"{site} has another version of the bundle or of its config files than {first}")
        if exchanging and not report["shares_features"]:
            problems.append(f"{site} runs a method that has no features to share: set exchange to 'none'")
    return "; ".join(problems) or None


def other_run(found: RunState, spec: Mapping[str, str], config_hash: str) -> str | None:
    """Why a checkpoint is not of this job; None when it is."""
    difference = spec_difference(spec, tensor_spec(found.weights))
    if difference:
        return f"the checkpoint to resume from is of another architecture: {difference}"
    if found.config_hash != config_hash:
        return (
            f"the checkpoint to resume from was made with another configuration (hash {found.config_hash}, now "
            f"{config_hash}; it had {found.settings}): restore that one, or start in a new checkpoint_dir"
        )
    return None
