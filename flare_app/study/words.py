"""A study's settings in words, as its report shows them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fcl
from flare_app.study.data import Cohort
from flare_app.study.settings import Selection, Study, listed, merge, steps_together


def protocol(study: Study, cohort: Cohort) -> dict[str, str]:
    """This study in the words in which ``published.json`` describes the published one."""
    shared = study["set"]
    sizes = [sum(map(len, site["folds"])) for site in cohort.split["sites"].values()]
    counts = sorted({min(sizes), max(sizes)})
    unlabelled = cohort.volumes - cohort.labelled
    arm = next(iter(study["arms"]))
    tuning = {mode: study.finetuning(arm, mode) for mode in study.modes}
    return {
        "Patients": f"{cohort.patients} patients, {len(sizes)} sites of {' to '.join(map(str, counts))}",
        "Folds": f"{study['folds']}; {cohort.held_out(0)} patients of all sites held out in the first",
        "Unlabelled images": f"{cohort.labelled} annotated volumes (their labels unused) and {unlabelled} others",
        "Network": f"2-D U-Net, channels {shared.get('channels', _default('channels'))}",
        "Image size": "{} pixels of {} mm".format(
            *("×".join(str(v) for v in shared.get(key, _default(key))) for key in ("spatial_size", "pixdim"))
        ),
        "Pre-training": f"{_schedule(study['pretrain'])}; bundle/configs/pretrain.json has the rest"
        if study["pretrain"]
        else "none in this study",
        "Fine-tuning": "; ".join(f"{mode}: {_schedule(entry)}" for mode, entry in tuning.items())
        + "; last weights, none chosen by validation; the same for all arms but where an arm says otherwise",
        "Dice": "for each volume on its native grid, mean over structures, then over volumes"
        + "".join(f"; {change}" for change in _changes(study["evaluate"])),
        "Spread": "over folds and seeds, each run counting once; local: over sites as well, in a table of its own",
    }


def study_facts(study: Study, chosen: Selection, cohort: Cohort, command: str, seconds: float) -> dict[str, str]:
    """How it was run."""
    return {
        "Data": f"{cohort.patients} patients, {cohort.volumes} volumes, {len(cohort.sites)} sites",
        "Preset": study.preset or "none",
        "Arms": ". ".join(_arm_in_words(study, arm) for arm in chosen.arms),
        "Folds and seeds": f"folds {listed(chosen.folds)} of {study['folds']}, seeds {listed(chosen.seeds)}",
        "Minutes": f"{seconds / 60:.1f} for all finished cells together",
        "Command": command,
    }


def _arm_in_words(study: Study, arm: str) -> str:
    return f"{study.label(arm)}: " + "; ".join([_pretraining_in_words(study, arm), *_finetuning_in_words(study, arm)])


def _pretraining_in_words(study: Study, arm: str) -> str:
    training = study.pretraining(arm)
    encoder = study["arms"][arm].get("encoder")
    if encoder:
        return f"starts from {Path(encoder).name}"
    if training is None:
        return "no pre-training"
    pooled = {"steps": steps_together(training, study["sites"])} if training["where"] == "pool" else {}
    first = [f"after {study.label(training['after'])}"] if training.get("after") else []
    parts = [f"method {training.get('method') or 'fcl'}", training["where"]]
    parts += [f"exchange {training.get('exchange') or 'none'}", _schedule({**training, **pooled})]
    return ", ".join([*first, *parts, *_changes(study["arms"][arm]["pretrain"])])


def _finetuning_in_words(study: Study, arm: str) -> list[str]:
    """What the arm itself says of each mode; its schedule where that is not the one of all."""
    return [
        ", ".join([f"{mode} fine-tuning", *_method(own), *_own_schedule(study, arm, mode), *_changes(own)])
        for mode, own in study["arms"][arm].get("finetune", {}).items()
    ]


def _method(training: Mapping[str, Any]) -> list[str]:
    return [training["method"]] if training.get("method") else []


def _own_schedule(study: Study, arm: str, mode: str) -> list[str]:
    common = study["finetune"][mode]
    own = _schedule(merge(common, study["arms"][arm]["finetune"][mode]))
    return [own] if own != _schedule(common) else []


def _changes(training: Mapping[str, Any]) -> list[str]:
    """Keys that it sets, the batch size apart: that is part of the schedule."""
    return [f"{key} {value}" for key, value in training.get("set", {}).items() if key != "batch_size"]


def _schedule(training: Mapping[str, Any]) -> str:
    size = training.get("set", {}).get("batch_size")
    batch = f" of {size} slices" if size else ""
    alone = f", at the first {training['alone']} sites" if training.get("alone") else ""
    turns = training.get("sites_per_round") if training["where"] == "federation" else None
    some = f", {turns} sites in each by turns" if turns else ""
    return f"{training['rounds']} rounds of {training['steps']} steps{batch}{some}{alone}"


def _default(key: str) -> Any:
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(str(fcl.bundle_root() / "configs" / "pretrain.json"))
    return parser.get_parsed_content(key)
