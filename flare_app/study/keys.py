"""Whether the bundle has the configuration keys that a study sets: a cell would refuse others only after hours."""

from __future__ import annotations

from typing import Any

import fcl
from flare_app.study.plan import config_files
from flare_app.study.settings import Study


def key_problems(study: Study) -> list[str]:
    """Keys that the configuration of a stage lacks, each with the place in the study that brings it there.

    What the study sets for all stages lies under the keys of each of them, so each must know it.
    """
    from flare_app.workflow import unknown_keys

    settings: dict[str, tuple[list[str], dict[str, Any]]] = {
        "evaluate": (["evaluate.json"], study.evaluation()["set"]),
    }
    for arm in study["arms"]:
        pretraining = study.pretraining(arm)
        if pretraining is not None:
            settings[f"arms::{arm}::pretrain"] = (config_files("pretrain", pretraining), pretraining["set"])
        for mode in study.modes:
            training = study.finetuning(arm, mode)
            settings[f"arms::{arm}::finetune::{mode}"] = (config_files("finetune", training), training["set"])
    places: dict[str, list[str]] = {}
    for place, (files, keys) in settings.items():
        problem = unknown_keys(fcl.bundle_root() / "configs", files, keys)
        if problem is not None:
            places.setdefault(problem, []).append(f"{place}::set")
    return [
        f"{first}{f' (and {len(others)} more)' if others else ''}: {problem}"
        for problem, (first, *others) in places.items()
    ]
