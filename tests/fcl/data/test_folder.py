from __future__ import annotations

import numpy as np
import pytest

from fcl.data import DataProblems, read_folder


def test_reads_nifti_files_sorted_and_unlabelled(tmp_path, nifti):
    for name in ("b.nii", "a.nii.gz", ".hidden.nii"):
        nifti(tmp_path / name, np.ones((2, 2, 2), np.int16))
    (tmp_path / "notes.txt").write_text("x", encoding="utf-8")
    records = read_folder(tmp_path)
    assert [(r.volume, r.patient, r.label, r.frame) for r in records] == [
        ("a", "a", None, None),
        ("b", "b", None, None),
    ]


def test_folder_without_volumes(tmp_path):
    (tmp_path / "a.dcm").write_text("x", encoding="utf-8")
    with pytest.raises(DataProblems, match=r"no \.nii"):
        read_folder(tmp_path)


def test_volumes_one_folder_down_are_found_for_the_user(tmp_path, nifti):
    (tmp_path / "images").mkdir()
    (tmp_path / "checks").mkdir()
    nifti(tmp_path / "images/a.nii.gz", np.ones((2, 2, 2), np.int16))
    with pytest.raises(DataProblems, match="give its folder 'images'"):
        read_folder(tmp_path)


def test_two_files_of_one_name(tmp_path, nifti):
    for name in ("a.nii", "a.nii.gz"):
        nifti(tmp_path / name, np.ones((2, 2, 2), np.int16))
    with pytest.raises(DataProblems, match="same volume name 'a'"):
        read_folder(tmp_path)
