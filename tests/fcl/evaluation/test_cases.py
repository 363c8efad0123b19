from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fcl.data import DataProblems, VolumeRecord, write_split
from fcl.data.splits import USED_SPLIT
from fcl.evaluation.cases import evaluation_cases, inference_cases

LABELS = {"rv": 1}


def record(folder: Path, name: str, labels: tuple[int, ...] | None = (0, 1)) -> VolumeRecord:
    rng = np.random.default_rng(0)
    nib.save(nib.Nifti1Image(rng.normal(size=(4, 4, 3)).astype(np.float32), np.eye(4)), folder / f"{name}.nii.gz")
    if labels is not None:
        nib.save(
            nib.Nifti1Image(rng.choice(labels, (4, 4, 3)).astype(np.uint8), np.eye(4)), folder / f"{name}_gt.nii.gz"
        )
    label = None if labels is None else str(folder / f"{name}_gt.nii.gz")
    return VolumeRecord(str(folder / f"{name}.nii.gz"), label, patient=name[:2], volume=name, phase="ED")


def test_truth_is_kept_apart_from_preprocessing(tmp_path: Path) -> None:
    labelled, unlabelled = record(tmp_path, "p1_a"), record(tmp_path, "p2_a", labels=None)
    items = evaluation_cases([labelled, unlabelled], [], "validation", LABELS)
    assert items == [
        {"image": labelled.image, "truth": labelled.label, "volume": "p1_a", "patient": "p1", "phase": "ED"}
    ]


def test_subset_all_takes_everything(tmp_path: Path) -> None:
    first, second = record(tmp_path, "p1_a"), record(tmp_path, "p2_a")
    assert [item["volume"] for item in evaluation_cases([first], [first, second], "all", LABELS)] == ["p1_a", "p2_a"]


@pytest.mark.parametrize(
    ("held_out", "expected"),
    [
        (
            0,
            r"1 of the 2 patients to score was not held out when the model beside .*split_used\.json --fold 0",
        ),
        (None, r"2 of the 2 patients to score were not held out.*held none out.*--subset all"),
    ],
)
def test_what_a_model_was_trained_on_is_no_validation(
    held_out: int | None, expected: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = [record(tmp_path, name) for name in ("p1_a", "p1_b", "p2_a")]
    folds = [["p1"], ["p2"]] if held_out is not None else [["p1", "p2"]]
    write_split({"held_out": held_out, "sites": {"site-1": {"folds": folds}}}, tmp_path / USED_SPLIT)
    with pytest.raises(ValueError, match=expected):
        evaluation_cases(records, [], "validation", LABELS, tmp_path / "model.pt")
    assert len(evaluation_cases(records, records, "all", LABELS, tmp_path / "model.pt")) == 3
    assert "the scores flatter it. " + ("None were" if held_out is None else "Those that were: --split") in caplog.text
    if held_out == 0:
        assert len(evaluation_cases(records[:2], [], "validation", LABELS, tmp_path / "model.pt")) == 2
    assert len(evaluation_cases(records, [], "validation", LABELS, tmp_path / "elsewhere" / "model.pt")) == 3


def test_bad_requests_are_refused(tmp_path: Path) -> None:
    unlabelled = record(tmp_path, "p1_a", labels=None)
    with pytest.raises(ValueError, match="none with a label"):
        evaluation_cases([unlabelled], [], "validation", LABELS)
    with pytest.raises(ValueError, match="'test'"):
        evaluation_cases([unlabelled], [unlabelled], "test", LABELS)  # type: ignore[arg-type]


def test_all_problems_of_the_files_are_told_at_once(tmp_path: Path) -> None:
    records = [record(tmp_path, "p1_a", labels=(0, 7)), record(tmp_path, "p2_a", labels=(0, 9))]
    with pytest.raises(DataProblems) as caught:
        evaluation_cases(records, [], "validation", LABELS)
    assert len(caught.value.problems) == 2


def test_inference_takes_images_only(tmp_path: Path) -> None:
    items = inference_cases([record(tmp_path, "p1_a")])
    assert list(items[0]) == ["image", "patient", "volume", "phase"]
