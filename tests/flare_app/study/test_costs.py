from __future__ import annotations

from pathlib import Path

from flare_app.study.costs import cost_table
from flare_app.study.loading import load_study
from flare_app.study.plan import plan

from .conftest import SPLIT, FakeCells, arms_file


def test_every_stage_of_an_arm_counts_also_where_arms_share_it(
    study_file: Path, tmp_path: Path, cells: FakeCells
) -> None:
    study = load_study([study_file, arms_file(tmp_path, then={"pretrain": {"method": "mim", "after": "fcl"}})])
    chosen = study.select(arms=["random", "fcl", "fcl_slow", "then"], annotated=[1], modes=["local"])
    known = plan(study, chosen, SPLIT)
    for cell in known:
        cells.do(cell)
    minutes = {"pretrain_fcl_fold0_seed0": 3.0, "pretrain_then_fold0_seed0": 4.0}
    head, rows = cost_table(study, known, lambda cell: 60 * minutes.get(cell.name, 1.0), cells)
    assert head == [
        "arm",
        "pre-training, minutes",
        "local fine-tuning, minutes",
        "local evaluation, minutes",
        "pre-training, weights in / out, MiB",
        "pre-training, features in / out, MiB",
    ]
    assert rows == [
        ["random", "–", "1.0", "1.0", "–", "–"],
        ["FCL", "3.0", "1.0", "1.0", "3.00 / 3.00", "3.00 / 3.00"],
        ["fcl_slow", "3.0", "1.0", "1.0", "3.00 / 3.00", "3.00 / 3.00"],
        ["then", "7.0", "1.0", "1.0", "6.00 / 6.00", "6.00 / 6.00"],
    ]
