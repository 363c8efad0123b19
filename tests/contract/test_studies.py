"""The studies that are shipped ask for jobs that can be built."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from flare_app.job import JOBS, build_job
from flare_app.study.plan import STAGES
from flare_app.study.settings import load_study

STUDIES = Path(__file__).parents[2] / "bundle" / "configs" / "studies"
PRESETS = [
    (file, preset)
    for file in sorted(STUDIES.glob("*.json"))
    for preset in json.loads(file.read_text(encoding="utf-8")).get("presets", {})
]

IDS = [f"{file.stem}-{preset}" for file, preset in PRESETS]


def test_there_are_studies_to_check() -> None:
    assert {file.name for file, _ in PRESETS} == {"acdc.json", "phantom.json", "sunnybrook.json"}


@pytest.mark.parametrize(("file", "preset"), PRESETS, ids=IDS)
def test_each_compares_with_random_weights_on_folds_that_its_patients_fill(file: Path, preset: str) -> None:
    study = load_study([file], preset)
    assert next(iter(study["arms"])) == "random"
    assert study["patients"] is None or study["patients"] >= study["folds"]


@pytest.mark.parametrize(("file", "preset"), PRESETS, ids=IDS)
def test_every_federation_of_a_study_is_a_job(file: Path, preset: str) -> None:
    study = load_study([file], preset)
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
