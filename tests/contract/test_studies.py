"""The studies that are shipped ask for jobs that can be built."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from flare_app.job import JOBS, build_job
from flare_app.study.loading import load_study
from flare_app.study.plan import STAGES

STUDIES = Path(__file__).parents[2] / "bundle" / "configs" / "studies"
OVER = {"ablation": ["acdc.json"]}  # what is merged over other studies, to those
PRESETS = [
    ([*(STUDIES / base for base in OVER.get(file.stem, [])), file], preset)
    for file in sorted(STUDIES.glob("*.json"))
    for preset in json.loads(file.read_text(encoding="utf-8")).get("presets", {})
]

IDS = [f"{files[-1].stem}-{preset}" for files, preset in PRESETS]


def test_there_are_studies_to_check() -> None:
    assert {files[-1].name for files, _ in PRESETS} == {"ablation.json", "acdc.json", "phantom.json", "sunnybrook.json"}


@pytest.mark.parametrize(("files", "preset"), PRESETS, ids=IDS)
def test_each_compares_with_random_weights_on_folds_that_its_patients_fill(files: list[Path], preset: str) -> None:
    study = load_study(files, preset)
    assert next(iter(study["arms"])) == "random"
    assert study["patients"] is None or study["patients"] >= study["folds"]


@pytest.mark.parametrize(("files", "preset"), PRESETS, ids=IDS)
def test_every_federation_of_a_study_is_a_job(files: list[Path], preset: str) -> None:
    study = load_study(files, preset)
    trainings = [("pretrain", study.pretraining(arm)) for arm in study["arms"]]
    trainings += [("finetune", study.finetuning(arm, mode)) for arm in study["arms"] for mode in study.modes]
    asked = {
        (stage, training.get("exchange") or "none", training["validate_every"])
        for stage, training in trainings
        if training is not None and training["where"] == "federation"
    }
    assert asked or "federated" not in study.modes
    for stage, exchange, every in asked:
        assert (
            build_job(replace(JOBS[STAGES[stage][2]], exchange=exchange, validate_every=every)).name == STAGES[stage][2]
        )


def test_each_arm_of_the_ablation_changes_the_study_s_fcl_in_one_stage() -> None:
    study = load_study([STUDIES / "acdc.json", STUDIES / "ablation.json"], "cpu")
    arms = [arm for arm in study["run"]["arms"] if arm not in ("random", "fcl")]
    for arm in arms:
        ways = [(study.pretraining(arm), study.pretraining("fcl"))]
        ways += [(study.finetuning(arm, mode), study.finetuning("fcl", mode)) for mode in study.modes]
        changed = [own != reference for own, reference in ways]
        assert changed in ([True, False, False], [False, True, True]), arm
    ways_of = {arm: [study.pretraining(arm), *(study.finetuning(arm, mode) for mode in study.modes)] for arm in arms}
    assert len({json.dumps(ways) for ways in ways_of.values()}) == len(arms)
