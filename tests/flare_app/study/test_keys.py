from __future__ import annotations

from pathlib import Path

import pytest

from flare_app.study.loading import load_study
from flare_app.study.settings import StudyError


@pytest.mark.parametrize(
    ("change", "place", "message"),
    [
        (
            "evaluate::set::largest_componnet",
            "evaluate::set",
            "'largest_componnet' is not a key of evaluate.json; did you mean 'largest_component'?",
        ),
        (
            "pretrain::set::learning_rat",
            "arms::fcl::pretrain::set (and 1 more)",
            "'learning_rat' is not a key of pretrain.json; did you mean 'learning_rate'?",
        ),
        (
            "arms::fcl_slow::finetune::local::set::batchsize",
            "arms::fcl_slow::finetune::local::set",
            "'batchsize' is not a key of finetune.json; did you mean 'batch_size'?",
        ),
        # Laid under the keys of every stage, so each must know it.
        ("set::drawn_features", "evaluate::set", "'drawn_features' is not a key of evaluate.json"),
        ("set::drawn_features", "arms::random::finetune::local::set (and 5 more)", "is not a key of finetune.json"),
    ],
)
def test_keys_that_the_bundle_does_not_have_are_told_before_anything_runs(
    study_file: Path, change: str, place: str, message: str
) -> None:
    with pytest.raises(StudyError) as error:
        load_study([study_file], changes={change: 1})
    (line,) = (line for line in str(error.value).splitlines() if line.startswith(f"{place}: "))
    assert message in line


def test_a_method_s_own_keys_are_known(study_file: Path) -> None:
    start = {"train::variants::0::start": 15}
    load_study([study_file], changes={"arms::fcl::finetune::local": {"method": "mean_teacher", "set": start}})
