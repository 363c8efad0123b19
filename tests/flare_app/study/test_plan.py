from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

import fcl
from flare_app.study import plan as planning
from flare_app.study.loading import load_study
from flare_app.study.plan import left_out, plan
from flare_app.study.settings import Study

from .conftest import CONTENT, SPLIT, arms_file


def _keys(study: Study, split: dict[str, object] = SPLIT, **wanted: list[object]) -> dict[str, str]:
    return {cell.name: cell.configuration for cell in plan(study, study.select(**wanted), split)}


def test_cells_come_after_what_they_need_and_arms_stay_level(study: Study) -> None:
    assert list(_keys(study, annotated=[1])) == [
        "pretrain_fcl_fold0_seed0",
        "features_fcl_fold0_seed0",
        "finetune_random_n1_local_fold0_seed0",
        "evaluate_random_n1_local_fold0_seed0",
        "finetune_fcl_n1_local_fold0_seed0",
        "evaluate_fcl_n1_local_fold0_seed0",
        "finetune_random_n1_federated_fold0_seed0",
        "evaluate_random_n1_federated_fold0_seed0",
        "finetune_fcl_n1_federated_fold0_seed0",
        "evaluate_fcl_n1_federated_fold0_seed0",
    ]


def test_numbers_of_cells(study: Study) -> None:
    names = list(_keys(study, arms=["random", "fcl"], annotated=[1, 2], folds=[0, 1], seeds=[0, 1, 2]))
    runs = 2 * 3  # folds and seeds
    counts = {stage: sum(name.startswith(stage) for name in names) for stage in planning.STAGES}
    assert counts == {"pretrain": runs, "finetune": runs * 2 * 2 * 2}
    assert sum(name.startswith("features") for name in names) == 1
    assert len(names) == len(set(names))


def test_features_are_looked_at_in_the_partitions_that_the_encoder_was_taught(study_file: Path) -> None:
    changes = {"set::pixdim": [3.0, 3.0], "arms::fcl::pretrain::set": {"partitions": 6, "momentum": 0.9}}
    for given, looked in ((changes, {"pixdim": [3.0, 3.0], "partitions": 6}), ({}, {})):
        study = load_study([study_file], changes=given)
        (cell,) = (cell for cell in plan(study, study.select(), SPLIT) if cell.stage == "features")
        assert cell.training == {"set": looked}


def test_the_cells_of_several_commands_are_no_others(study: Study) -> None:
    asked = [study.select(arms=["random"], folds=[0, 1]), study.select(arms=["random", "fcl"], folds=[0])]
    names = [cell.name for cell in planning.plan_all(study, asked, SPLIT)]
    assert len(names) == len(set(names)) == sum("random" in n for n in names) + sum("fcl" in n for n in names)
    assert {name.split("_fold")[1][0] for name in names if "fcl" in name} == {"0"}
    assert {name.split("_fold")[1][0] for name in names if "random" in name} == {"0", "1"}


def test_arms_that_learn_without_annotation_are_left_out_where_none_would_be(study_file: Path) -> None:
    study = load_study([study_file], changes={"arms::fcl::unannotated": 1, "arms::fcl::label": "FCL"})
    wanted: dict[str, list[object]] = {"annotated": [1, 2], "folds": [0, 1], "modes": ["local"]}
    tuned = [name for name in _keys(study, SPLIT, **wanted) if name.startswith("finetune_fcl")]
    assert tuned == ["finetune_fcl_n1_local_fold0_seed0"]
    assert left_out(study, study.select(**wanted), SPLIT) == [
        "not fine-tuned: FCL, N=1, fold 1. It learns from at least 1 more of a site's 1 training patients, without "
        "annotation",
        "not fine-tuned: FCL, N=2, fold 0, 1. It learns from at least 1 more of a site's 1 training patients, without "
        "annotation",
    ]
    assert left_out(study, study.select(arms=["random"], annotated=[1, 2]), SPLIT) == []


def test_arms_that_pretrain_alike_share_it_whichever_is_asked_for(study: Study) -> None:
    names = [name for name in _keys(study, arms=["fcl_slow"]) if name.startswith("pretrain")]
    assert names == ["pretrain_fcl_fold0_seed0"]
    cells = plan(study, study.select(arms=["fcl", "fcl_slow"]), SPLIT)
    assert sum(cell.stage == "pretrain" for cell in cells) == 1
    tuned = [cell for cell in cells if cell.stage == "finetune" and cell.mode == "local" and cell.annotated == 1]
    assert {cell.after.name for cell in tuned if cell.after} == set(names)
    assert tuned[0].configuration != tuned[1].configuration


def test_a_second_stage_goes_on_from_the_first_which_comes_before_it_and_is_shared(study_file: Path) -> None:
    stage = {"method": "mim", "exchange": "none", "after": "fcl"}
    study = load_study([study_file], changes={"arms::fcl_slow::pretrain": stage})
    cells = plan(study, study.select(arms=["fcl_slow"], modes=["local"], annotated=[1]), SPLIT)
    names = [cell.name for cell in cells]
    assert names[:2] == ["pretrain_fcl_fold0_seed0", "pretrain_fcl_slow_fold0_seed0"]
    assert [cell.name for cell in cells[-1].chain()] == [*names[:2], *names[-2:]]
    assert cells[0] in plan(study, study.select(arms=["fcl"]), SPLIT)
    longer = load_study([study_file], changes={"arms::fcl_slow::pretrain": stage, "arms::fcl::pretrain::rounds": 3})
    assert _keys(longer, arms=["fcl_slow"])[names[1]] != cells[1].configuration


@pytest.mark.parametrize(
    ("changes", "changed"),
    [
        ({"pretrain::rounds": 3}, {"pretrain_fcl", "features_fcl", "finetune_fcl", "evaluate_fcl"}),
        ({"finetune::local::rounds": 3}, {"finetune_random", "finetune_fcl", "evaluate_random", "evaluate_fcl"}),
        ({"arms::fcl::finetune::local::set": {"learning_rate": 1}}, {"finetune_fcl", "evaluate_fcl"}),
        ({"evaluate::set": {"largest_component": True}}, {"evaluate_random", "evaluate_fcl"}),
        ({"title": "other", "references": []}, set()),
    ],
)
def test_a_changed_setting_changes_the_keys_of_what_depends_on_it(
    study_file: Path, changes: dict[str, object], changed: set[str]
) -> None:
    before, after = (_keys(load_study([study_file], changes=c), modes=["local"]) for c in ({}, changes))
    assert before.keys() == after.keys()
    assert {"_".join(name.split("_")[:2]) for name in before if before[name] != after[name]} == changed


def test_another_split_or_bundle_file_changes_the_keys_that_depend_on_it(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _keys(study)
    split = copy.deepcopy(SPLIT)
    split["sites"]["site-1"]["folds"][0].append("another")
    assert not {name for name, key in _keys(study, split).items() if key == before[name]}
    configs = tmp_path / "bundle" / "configs"
    for name in ("pretrain", "finetune", "evaluate", "features", "data/phantom", "methods/fcl"):
        file = configs / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        content = json.loads((fcl.bundle_root() / "configs" / f"{name}.json").read_text())
        file.write_text(json.dumps({**content, "changed": True} if name == "evaluate" else content))
    monkeypatch.setattr(planning.fcl, "bundle_root", lambda: configs.parent)
    changed = {name for name, key in _keys(study).items() if key != before[name]}
    assert changed == {name for name in before if name.startswith("evaluate")}


def test_an_encoder_from_elsewhere_counts_by_its_content(study_file: Path, tmp_path: Path) -> None:
    def keys(name: str, content: bytes) -> dict[str, str]:
        (tmp_path / name).write_bytes(content)
        study = load_study([study_file, arms_file(tmp_path, moved={"encoder": str(tmp_path / name)})])
        return _keys(study, arms=["moved"], modes=["local"])

    one = keys("one.pt", b"weights")
    assert not [name for name in one if name.startswith(("pretrain", "features"))]
    assert keys("two.pt", b"weights") == one
    assert not set(keys("one.pt", b"other weights").values()) & set(one.values())


def test_the_order_of_a_preset_s_keys_does_not_matter(study_file: Path, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(json.dumps(dict(reversed(CONTENT.items()))))
    assert _keys(load_study([study_file])) == _keys(load_study([tmp_path / "other.json"]))
