from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from fcl.config.dataset import describe_dataset, overlay_file
from fcl.data import DataProblems


@pytest.fixture
def dataset(tmp_path):
    for name in "abc":
        nib.save(nib.Nifti1Image(np.ones((4, 5, 6), np.int16), np.eye(4)), tmp_path / f"{name}.nii.gz")
    entries = [{"image": f"{name}.nii.gz"} for name in "abc"]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": entries}), encoding="utf-8")
    return tmp_path


def test_overlay_and_options_are_read_over_the_base(dataset):
    found = describe_dataset("datalist", {"dataset_dir": str(dataset), "folds": 3, "fold": 0, "partitions": 2})
    assert [record.volume for record in found.records] == ["a", "b", "c"]
    assert (len(found.split.train), len(found.split.validation), found.undivided) == (2, 1, "")
    assert (found.labels, found.partitions, found.slice_axis) == ({"rv": 1, "myo": 2, "lv": 3}, 2, 2)


def test_too_few_patients_for_the_folds_is_said_not_raised(dataset):
    found = describe_dataset("datalist", {"dataset_dir": str(dataset)})
    assert found.split is None
    assert "3 patients are too few" in found.undivided


def test_an_overlay_of_ones_own(dataset):
    overlay = json.loads(overlay_file("datalist").read_text())
    (dataset / "mine.json").write_text(
        json.dumps({**overlay, "labels": {"liver": 7}, "slice_axis": 1}), encoding="utf-8"
    )
    found = describe_dataset(str(dataset / "mine.json"), {"dataset_dir": str(dataset)})
    assert (found.labels, found.slice_axis) == ({"liver": 7}, 1)


def test_what_the_reader_finds_is_not_wrapped(tmp_path):
    with pytest.raises(DataProblems, match="does not exist"):
        describe_dataset("datalist", {"dataset_dir": str(tmp_path / "absent")})


@pytest.mark.parametrize(
    ("data", "overrides", "expected"),
    [("acdcc", {}, "no dataset 'acdcc': give one of acdc, datalist"), ("acdc", {"label": {}}, "did you mean 'labels'")],
)
def test_misspelt_names(data, overrides, expected):
    with pytest.raises(ValueError, match=expected):
        describe_dataset(data, overrides)
