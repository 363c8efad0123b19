from __future__ import annotations

import json
from pathlib import Path

import pytest

import fcl
from flare_app.study.loading import load_study
from flare_app.study.settings import Study, StudyError

from .conftest import arms_file


def test_later_files_presets_and_changes_lie_over_earlier_ones(study_file: Path, tmp_path: Path) -> None:
    (tmp_path / "more.json").write_text(json.dumps({"pretrain": {"steps": 7}, "arms": {"extra": {}}}))
    study = load_study([study_file, tmp_path / "more.json"], "large", {"finetune::local::rounds": 5, "set::fold": 3})
    assert study["pretrain"] == {"where": "federation", "rounds": 9, "steps": 7, "validate_every": 1}
    assert list(study["arms"]) == ["random", "fcl", "fcl_slow", "extra"]
    assert study.finetuning("random", "local")["rounds"] == 5
    assert study.finetuning("random", "federated")["rounds"] == 2
    assert study.finetuning("random", "local")["set"] == {"fold": 3}
    assert study.preset == "large"


def test_first_preset_is_taken_when_none_is_named(study: Study) -> None:
    assert study.preset == "small"


def test_an_arm_like_another_takes_all_but_its_names_from_it(study_file: Path, tmp_path: Path) -> None:
    more = arms_file(
        tmp_path,
        fcl_twice={"like": "fcl_long", "finetune": {"local": {"set": {"learning_rate": 0.5}}}},
        fcl_long={"like": "fcl", "pretrain": {"rounds": 20}},
        unlearned={"like": "fcl_long", "pretrain": None},
    )
    study = load_study([study_file, more])
    fcl_rounds = study.pretraining("fcl")
    assert fcl_rounds is not None
    assert study.pretraining("fcl_long") == study.pretraining("fcl_twice") == {**fcl_rounds, "rounds": 20}
    assert study.finetuning("fcl_twice", "local")["set"] == {"learning_rate": 0.5}
    assert study.finetuning("fcl_long", "local") == study.finetuning("fcl", "local")
    assert study.pretraining("unlearned") is None
    assert (study.label("fcl_long"), study.published("fcl_long")) == ("fcl_long", None)
    alone = load_study([study_file, more], changes={"arms::fcl_long::like": None, "arms::fcl_long::pretrain": None})
    assert alone.pretraining("fcl_long") is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"arms::fcl_slow::like": "fcll"},
            "arms::fcl_slow: like names no arm, got 'fcll'; choose from random, fcl, fcl_slow",
        ),
        ({"arms::fcl_slow::like": ["fcl"]}, "arms::fcl_slow: like names no arm, got ['fcl']"),
        ({"arms::fcl::like": "fcl"}, "arms::fcl: like leads in a circle: fcl is like fcl"),
        (
            {"arms::fcl::like": "fcl_slow", "arms::fcl_slow::like": "fcl"},
            "arms::fcl: like leads in a circle: fcl is like fcl_slow is like fcl",
        ),
    ],
)
def test_an_arm_like_none_that_can_be_found_is_told(study_file: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(StudyError) as error:
        load_study([study_file], changes=changes)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"after": "random"}, "after names no arm that pre-trains, got 'random'; choose from fcl, fcl_slow"),
        ({"after": ["fcl"]}, "after names no arm that pre-trains, got ['fcl']"),
        ({"after": "fcl_slow"}, "after leads in a circle: fcl_slow comes after fcl_slow"),
        ({"after": "fcl", "where": "pool"}, "only a federation goes on from another arm's encoder, got where 'pool'"),
    ],
)
def test_a_stage_that_cannot_follow_another_is_told(study_file: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(StudyError) as error:
        load_study([study_file], changes={f"arms::fcl_slow::pretrain::{key}": value for key, value in changes.items()})
    assert f"arms::fcl_slow::pretrain: {message}" in str(error.value)


def test_fine_tuning_follows_no_arm(study_file: Path) -> None:
    with pytest.raises(StudyError, match="unknown key 'arms::fcl::finetune::local::after'"):
        load_study([study_file], changes={"arms::fcl::finetune::local::after": "fcl_slow"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"arms::flc::pretrain::set::momentum": 0.5},
            "there is no arm 'flc', did you mean 'fcl'? A new arm belongs in a file, after --config",
        ),
        ({"arms::zzz": {}}, "there is no arm 'zzz', choose from random, fcl, fcl_slow. A new arm belongs in a file"),
        ({"arms": {"flc": {}}}, "there is no arm 'flc', did you mean 'fcl'?"),
    ],
)
def test_a_change_makes_no_arm(study_file: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(StudyError) as error:
        load_study([study_file], changes=changes)
    assert message in str(error.value)


def test_an_arm_whose_name_is_none_of_a_file_is_told(study_file: Path, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="'a/b' names files"):
        load_study([study_file, arms_file(tmp_path, **{"a/b": {}})])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretrain::round": 3}, "unknown key 'pretrain::round', did you mean 'rounds'?"),
        ({"pretrain::rounds": 0}, "arms::fcl::pretrain: rounds must be a whole number of at least 1, got 0"),
        ({"arms::fcl::pretrain::method": "fcll"}, "there is no method 'fcll'; choose from byol"),
        ({"finetune::local::where": "home"}, "where must be one of federation, sites, pool, got 'home'"),
        ({"finetune::federated::alone": 2}, "finetune::federated: alone is how many sites fine-tune where each does"),
        ({"pretrain::sites_per_round": 1}, "sites_per_round must be a whole number of at least 2, or null for all"),
        ({"finetune::local::alone": 0}, "alone is how many sites fine-tune where each does so by itself, got 0"),
        ({"arms::fcl::finetune::both": {}}, "there is no mode 'both'; choose from local, federated"),
        ({"references": ["none"]}, "references: there is no arm 'none'"),
        ({"arms::fcl::unannotated": -1}, "arms::fcl: unannotated must be a whole number, got -1"),
        ({"folds": 1}, "folds must be a whole number of at least 2, got 1"),
        ({"run": 3}, "run must be a JSON object, got 3"),
        ({"title": ""}, "title is missing"),
        ({"pretrain": None}, "pretrain is missing"),
        ({"pretrain::where": None}, "pretrain: where must be one of federation, sites, pool, got None"),
        ({"run::annotated": 2}, "run::annotated must be a list, got 2"),
        ({"arms::fcl": None}, "arms::fcl must be a JSON object, got None"),
        ({"arms::fcl::finetune": None}, "arms::fcl::finetune must be a JSON object, got None"),
        ({"finetune::federated": None}, "finetune::federated must be a JSON object, got None"),
        ({"published": "none.json"}, "published: there is no file 'none.json' in"),
        ({"published": 3}, "published: there is no file 3 in"),
        ({"evaluate::set": None}, "evaluate::set must be a JSON object, got None"),
        ({"arms::fcl::pretrain::set": 1}, "arms::fcl::pretrain::set must be a JSON object, got 1"),
        ({"arms::random::encoder": "none.pt"}, "arms::random: the encoder none.pt does not exist"),
        ({"arms::fcl::encoder": __file__}, "arms::fcl: give an encoder that there is, or pretrain one, not both"),
    ],
)
def test_wrong_settings_are_explained(study_file: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(StudyError) as error:
        load_study([study_file], changes=changes)
    assert message in str(error.value)
    assert str(study_file) in str(error.value)


def test_missing_file_and_preset_are_told_with_what_there_is(study_file: Path, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"no preset 'huge'; choose from small, large"):
        load_study([study_file], "huge")
    with pytest.raises(StudyError, match=r"none\.json does not exist; bundle/configs/studies has ablation\.json"):
        load_study([tmp_path / "none.json"])


def test_committed_arms_name_rows_of_the_published_tables() -> None:
    studies = fcl.bundle_root() / "configs" / "studies"
    study = load_study([studies / "acdc.json"])
    published = json.loads((studies / study["published"]).read_text())
    rows = {study.published(arm) for arm in study["arms"]} - {None}
    for mode in study.modes:
        assert set(published["tables"][mode]) == rows
        assert {len(row) for row in published["tables"][mode].values()} == {len(published["annotated"])}
