from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flare_app.study.loading import load_study
from flare_app.study.settings import Study, StudyError, merge, steps_together

from .conftest import arms_file


def test_arm_says_only_what_differs(study: Study) -> None:
    assert study.pretraining("random") is None
    assert study.pretraining("fcl") == {
        "where": "federation", "rounds": 2, "steps": 3, "validate_every": 1, "method": "fcl", "exchange": "features",
        "set": {},
    }  # fmt: skip
    assert study.finetuning("fcl_slow", "local")["set"] == {"learning_rate": 0.0001}
    assert study.finetuning("fcl_slow", "federated")["set"] == {}
    assert (study.label("fcl"), study.label("random"), study.published("random")) == ("FCL", "random", None)


def test_merging_leaves_both_sides_alone() -> None:
    base, over = {"a": {"b": [1]}, "c": 1}, {"a": {"d": 2}, "c": {"e": 3}}
    assert merge(base, over) == {"a": {"b": [1], "d": 2}, "c": {"e": 3}}
    assert base == {"a": {"b": [1]}, "c": 1}


def test_selection_is_what_is_given_else_the_study_s_else_everything(study: Study) -> None:
    chosen = study.select(arms=["fcl_slow", "random"], annotated=[4])
    assert chosen.arms == ("random", "fcl_slow")
    assert (chosen.annotated, chosen.folds, chosen.seeds, chosen.modes) == ((4,), (0,), (0,), ("local", "federated"))


def test_unknown_choices_are_told_together_with_the_known_ones(study: Study) -> None:
    with pytest.raises(StudyError) as error:
        study.select(arms=["fcll"], folds=[2], modes=["both"], annotated=[0], seeds=[-1])
    assert str(error.value).splitlines() == [
        "arms: there is no 'fcll'; choose from random, fcl, fcl_slow",
        "folds: there is no 2; choose from 0, 1",
        "modes: there is no 'both'; choose from local, federated",
        "annotated: must be whole numbers of at least 1, got 0",
        "seeds: must be whole numbers of at least 0, got -1",
    ]


def test_an_arm_that_starts_from_an_encoder_asks_for_its_file(study_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "encoder.pt"
    file.touch()
    files = [study_file, arms_file(tmp_path, moved={"encoder": None})]
    study = load_study(files)
    assert study.select(arms=["random"]).arms == ("random",)
    with pytest.raises(StudyError, match=r"name its file, --set arms::moved::encoder=FILE"):
        study.select(arms=["random", "moved"])
    assert load_study(files, changes={"arms::moved::encoder": str(file)}).select(arms=["moved"]).arms


def test_a_study_whose_arms_pretrain_nothing_says_nothing_of_it(study_file: Path) -> None:
    arms = ("fcl", "fcl_slow")
    study = load_study([study_file], changes={"pretrain": None, **{f"arms::{arm}::pretrain": None for arm in arms}})
    assert [study.pretraining(arm) for arm in arms] == [None, None]


@pytest.mark.parametrize(
    ("turns", "steps"),
    [({}, 30), ({"sites_per_round": None}, 30), ({"sites_per_round": 4}, 12), ({"sites_per_round": 12}, 30)],
)
def test_one_place_takes_the_steps_of_the_sites_that_take_part(turns: dict[str, Any], steps: int) -> None:
    assert steps_together({"steps": 3, **turns}, 10) == steps
