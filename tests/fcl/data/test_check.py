from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Compose, EnsureChannelFirstd

from fcl.data import DataProblems, LoadFramed, Problem, VolumeRecord, check_records, read_acdc
from fcl.data.check import find_problems
from fcl.data.summary import summarise

LABELS = {"rv": 1, "myo": 2, "lv": 3}
BOTH = ("image", "label")
LPS = np.diag([-1.5, -1.5, 8.0, 1.0])


def image(**changes) -> np.ndarray:
    voxels = np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)
    for value in changes.values():
        voxels[1, 2, 3] = value
    return voxels


def label(value: float = 3, shape: tuple[int, ...] = (4, 5, 6)) -> np.ndarray:
    voxels = np.zeros(shape, np.float32)
    voxels[1, 2, 3] = value
    return voxels


def shifted(mm: float) -> np.ndarray:
    affine = LPS.copy()
    affine[0, 3] += mm
    return affine


CASES = {
    "nan": (image(at=np.nan), label(), LPS, LPS, "1 of 120 voxels NaN or infinite"),
    "infinite": (image(at=-np.inf), label(), LPS, LPS, "1 of 120 voxels NaN or infinite"),
    "constant": (np.full((4, 5, 6), 7.0, np.float32), label(), LPS, LPS, "constant, every voxel is 7"),
    "thin": (image()[..., :3], label(0, (4, 5, 6))[..., :3], LPS, LPS, "3 slices, shape 4x5x3, fewer than the 4"),
    "four axes": (np.stack([image()] * 2, -1), label(), LPS, LPS, "4-D, shape 4x5x6x2"),
    "two axes": (image()[..., 0], None, LPS, LPS, "has shape 4x5"),
    "strange label": (image(), label(5), LPS, LPS, r"label values 5, declared are \{'rv': 1"),
    "half a label": (image(), label(1.5), LPS, LPS, "label values 1.5"),
    "label NaN": (image(), label(np.nan), LPS, LPS, "label values nan"),
    "other shape": (image(), label(shape=(4, 5, 7)), LPS, LPS, "has shape 4x5x7, its image 4x5x6"),
    "other place": (image(), label(), LPS, shifted(2.5), "corners differ by up to 2.5 mm"),
}


@pytest.mark.parametrize("case", CASES)
def test_each_kind_of_damage(tmp_path, nifti, case):
    voxels, labels, affine, label_affine, expected = CASES[case]
    file = nifti(tmp_path / "v.nii.gz", voxels, affine)
    label_file = None if labels is None else str(nifti(tmp_path / "l.nii.gz", labels, label_affine))
    record = VolumeRecord(str(file), label_file, "p", "v")
    with pytest.raises(DataProblems, match=expected) as caught:
        check_records([record], 4, LABELS)
    assert len(caught.value.problems) >= 1
    assert all(str(tmp_path) in p.file and p.fix for p in caught.value.problems)


def test_flat_affine(tmp_path):
    header = nib.Nifti1Header()
    header.set_sform(np.diag([1.0, 1.0, 0.0, 1.0]), code=1)
    file = tmp_path / "v.nii.gz"
    nib.save(nib.Nifti1Image(image(), None, header), file)
    assert ["unusable affine" in p.what for p in find_problems([VolumeRecord(str(file), None, "p", "v")])] == [True]


def test_whole_data_and_a_rounded_affine_pass(tmp_path, nifti):
    nifti(tmp_path / "v.nii.gz", image())
    nifti(tmp_path / "l.nii.gz", label(), shifted(0.001))
    record = VolumeRecord(str(tmp_path / "v.nii.gz"), str(tmp_path / "l.nii.gz"), "p", "v")
    check_records([record], 4, LABELS)
    check_records([record], 6, None)


@pytest.mark.parametrize("keep", [0, 100, -1, -8])
def test_truncated_file(tmp_path, nifti, keep):
    noise = np.random.default_rng(0).integers(0, 1000, (20, 20, 6), dtype=np.int16)
    file = nifti(tmp_path / "v.nii.gz", noise)
    file.write_bytes(file.read_bytes()[:keep])
    assert ["truncated" in p.what for p in find_problems([VolumeRecord(str(file), None, "p", "v")])] == [True]


def test_truncated_without_compression(tmp_path, nifti):
    file = nifti(tmp_path / "v.nii", image())
    file.write_bytes(file.read_bytes()[:-50])
    assert ["truncated" in p.what for p in find_problems([VolumeRecord(str(file), None, "p", "v")])] == [True]


def test_unknown_data_type(tmp_path, nifti):
    file = nifti(tmp_path / "v.nii", image())
    content = bytearray(file.read_bytes())
    content[70:72] = (9999).to_bytes(2, "little")  # of the header: code of the voxels' type
    file.write_bytes(bytes(content))
    assert ["HeaderDataError" in p.what for p in find_problems([VolumeRecord(str(file), None, "p", "v")])] == [True]


def test_cine_frames_are_checked_one_by_one(tmp_path, nifti):
    frames = np.stack([image(), image(at=np.nan), np.zeros((4, 5, 6), np.float32)], -1)
    file = str(nifti(tmp_path / "c.nii.gz", frames))
    records = [VolumeRecord(file, None, "p", f"t{t}", "cine", t) for t in (0, 1, 2, 3)]
    found = [p.what for p in find_problems(records, 4)]
    assert [what.split(" has")[0].split(" is")[0] for what in found[:2]] == ["frame 1", "frame 2"]
    assert found[2] == "has 3 frames, shape 4x5x6x3, none with index 3"


@pytest.mark.parametrize("shape", [(4, 5, 6), (4, 5, 6, 1)])
def test_a_fourth_axis_of_one_counts_as_none(tmp_path, nifti, shape):
    file = str(nifti(tmp_path / "f.nii.gz", image().reshape(shape)))
    labels = str(nifti(tmp_path / "l.nii.gz", label().reshape(shape)))
    for frame in (None, 0):
        records = [VolumeRecord(file, labels, "p", "t0", frame=frame)]
        assert find_problems(records, 4, LABELS) == []
        assert [(s.shape, set(s.label_ml)) for s in summarise(records, LABELS)] == [((4, 5, 6), set(LABELS))]
        loaded = Compose([LoadFramed(BOTH), EnsureChannelFirstd(BOTH)])(records[0].as_item())
        assert [loaded[key].shape for key in BOTH] == [(1, 4, 5, 6)] * 2
    found = find_problems([VolumeRecord(file, None, "p", "t1", frame=1)])
    assert [p.what for p in found] == ["has 1 frames, shape 4x5x6, none with index 1"]


@pytest.mark.parametrize("kind", [[("R", "u1"), ("G", "u1"), ("B", "u1")], np.complex64])
@pytest.mark.parametrize("place", ["image", "label"])
def test_voxels_that_are_no_numbers(tmp_path, nifti, kind, place):
    files = {"image": image(), "label": label(), place: np.zeros((4, 5, 6), kind)}
    names = {key: str(nifti(tmp_path / f"{key}.nii", voxels)) for key, voxels in files.items()}
    record = VolumeRecord(names["image"], names["label"], "p", "v")
    (problem,) = find_problems([record], 4, LABELS)
    assert problem.kind == "files"
    assert problem.file == names[place]
    assert "has colours or complex numbers as voxels" in problem.what
    assert summarise([record], LABELS) == []


def test_everything_is_reported_at_once(acdc):
    root = acdc(patients=4)
    records = read_acdc(root)
    files = [record.image for record in records]
    (root / "patient001" / "patient001_frame01.nii.gz").unlink()
    with open(files[2], "r+b") as stream:
        stream.truncate(200)
    with pytest.raises(DataProblems) as caught:
        check_records([*records, records[-1]], 7, {"rv": 1, "myo": 2})
    text = str(caught.value)
    # 6 readable volumes are too thin for 7 partitions and all 8 labels hold the value 3; one file is missing,
    # one truncated, and one volume is named twice.
    assert len(caught.value.problems) == 6 + 8 + 1 + 1 + 1
    assert text.startswith("17 problems in the data:")
    assert all(str(problem) in text for problem in caught.value.problems)


def test_no_records_is_a_problem():
    with pytest.raises(DataProblems, match="no volume was given"):
        check_records([], 4, None)


def test_problem_reads_as_file_finding_and_way_out():
    assert str(Problem("a.nii", "is constant", "export it again")) == "a.nii: is constant. Way out: export it again."


def test_partitions_are_counted_along_the_slice_axis(tmp_path, nifti):
    record = VolumeRecord(str(nifti(tmp_path / "v.nii.gz", image()[..., :3])), None, "p", "v")
    assert find_problems([record], 4, slice_axis=1) == []
    assert ["3 slices" in p.what for p in find_problems([record], 4, slice_axis=2)] == [True]


def test_threads_find_the_same_in_the_same_order(acdc, nifti):
    root = acdc(patients=4)
    for number in (4, 2, 3):
        nifti(root / f"patient{number:03d}" / f"patient{number:03d}_frame01.nii.gz", np.zeros((20, 24, 6), np.int16))
    records = read_acdc(root)
    found = find_problems(records, threads=3)
    assert len(found) == 3
    assert found == find_problems(records)
