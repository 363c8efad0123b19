"""What must hold before the first round: one architecture, one configuration, sites whose processes stay alive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nvflare.private.fed.utils.fed_utils import split_gpus

from flare_app.aggregation import spec_difference
from flare_app.averaging import Averaging
from flare_app.state import RunState

KEY = "encryption_key"  # among a site's settings: fingerprint of its key, where weights are encrypted


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


@dataclass(frozen=True)
class Signature:
    """What all sites of a job have in common.

    Args:
        spec: :func:`tensor_spec` of the weights.
        config_hash: of the job's configuration.
        settings: that configuration in plain words.
    """

    spec: Mapping[str, str]
    config_hash: str
    settings: Mapping[str, Any]

    @classmethod
    def of_most(cls, reports: Mapping[str, Mapping[str, Any]]) -> Signature:
        """What most sites tell of themselves; of equally many, those with the first site by name.

        Args:
            reports: site to what it told (``spec``, ``config_hash``, ``settings``); not empty.
        """
        found = [
            cls(reports[site]["spec"], reports[site]["config_hash"], reports[site]["settings"])
            for site in sorted(reports)
        ]
        return max(found, key=found.count)

    def misfit(self, report: Mapping[str, Any], exchanging: bool) -> str | None:
        """Why a site cannot take part; None when it can.

        Args:
            report: what it told of itself (also ``shares_features``).
            exchanging: whether features are to be exchanged.
        """
        difference = spec_difference(self.spec, report["spec"])
        if difference:
            return f"it has another architecture than the other sites: {difference}"
        if report["settings"].get(KEY) != self.settings.get(KEY):
            return (
                "its startup kit holds another encryption key than those of the other sites: kits of one consortium "
                "come from one run of provisioning"
            )
        if report["config_hash"] != self.config_hash:
            return "it has another version of the bundle or of its config files than the other sites"
        if exchanging and not report["shares_features"]:
            return "it runs a method that has no features to share: set exchange to 'none'"
        return None


def introduced(report: Mapping[str, Any]) -> str:
    """What a site tells of itself, as one line for the log."""
    shown = dict(report["description"])
    if report["resumed_round"]:
        shown["resumed after round"] = report["resumed_round"]
    return ", ".join(f"{name} {value}" for name, value in sorted(shown.items()))


def other_plan(found: RunState, rounds: int, settings: Mapping[str, Any]) -> str | None:
    """Why the server would not go on from a checkpoint as it was made; None when it would.

    Args:
        found: the checkpoint.
        rounds: in all, that the job asks for.
        settings: of the server, those that shape the weights.
    """
    if found.round > rounds:
        return (
            f"the checkpoint to resume from has {found.round} rounds done, and num_rounds is {rounds}: it counts all "
            f"rounds, set it to {found.round} or more"
        )
    changed = [
        f"{name} was {before}, now {settings.get(name)}"
        for name, before in found.server_settings.items()
        if before != settings.get(name)
    ]
    if changed:
        return (
            f"the checkpoint to resume from was made with another configuration ({'; '.join(changed)}): restore that "
            "one, or start in a new checkpoint_dir"
        )
    return None


def other_run(found: RunState, signature: Signature, averaging: Averaging) -> str | None:
    """Why a checkpoint is not of this job; None when it is."""
    if (KEY in found.settings) != (KEY in signature.settings):
        made = "with" if KEY in found.settings else "without"
        return f"the checkpoint to resume from was made {made} encryption of weights: resume the job that made it"
    if found.settings.get(KEY) != signature.settings.get(KEY):
        return "the checkpoint to resume from was encrypted with another key: resume with the startup kits of its time"
    difference = averaging.misfit(found.weights, signature.spec)
    if difference:
        return f"the checkpoint to resume from is of another architecture: {difference}"
    if found.config_hash != signature.config_hash:
        return (
            f"the checkpoint to resume from was made with another configuration (hash {found.config_hash}, now "
            f"{signature.config_hash}; it had {found.settings}): restore that one, or start in a new checkpoint_dir"
        )
    return None
