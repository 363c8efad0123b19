from __future__ import annotations

import gzip
import hashlib
import json
import struct
import zipfile

import nibabel as nib
import numpy as np
import pytest

from fcl.data import DataProblems, read_datalist
from fcl.data.check import find_problems
from fcl.importing import import_msd, import_nifti

TABLE = {"0": "background", "1": "Anterior", "2": "Posterior part"}


def volume(file, shape=(5, 6, 4), text=b""):
    file.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(len(file.name)).integers(0, 3, shape).astype(np.uint8)
    image = nib.Nifti1Image(voxels, np.diag([1.0, 1.5, 2.0, 1.0]))
    image.header["descrip"] = text
    nib.save(image, file)
    return file


def fingerprint(folder):
    return {path: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def msd(tmp_path):
    """Two labelled volumes and one of the test set, in MSD's layout."""
    root = tmp_path / "Task04_Hippo campus"
    for number in (1, 2):
        volume(root / f"imagesTr/hippo_{number:03d}.nii.gz")
        volume(root / f"labelsTr/hippo_{number:03d}.nii.gz")
    volume(root / "imagesTs/hippo_003.nii.gz")
    entries = [
        {"image": f"./imagesTr/hippo_{n:03d}.nii.gz", "label": f"./labelsTr/hippo_{n:03d}.nii.gz"} for n in (1, 2)
    ]
    content = {"name": "Hippo", "labels": TABLE, "training": entries, "test": ["./imagesTs/hippo_003.nii.gz"]}
    (root / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return root


def change(root, **values):
    file = root / "dataset.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}), encoding="utf-8")


@pytest.mark.parametrize("copy", [False, True])
def test_msd_keeps_names_and_takes_its_table_of_labels(tmp_path, msd, copy):
    before = fingerprint(msd)
    report = import_msd(msd, tmp_path / "out", copy=copy)
    assert fingerprint(msd) == before
    records = read_datalist(tmp_path / "out")
    assert [(r.volume, r.patient, r.label is not None) for r in records] == [
        ("hippo_001", "hippo_001", True),
        ("hippo_002", "hippo_002", True),
        ("hippo_003", "hippo_003", False),
    ]
    overlay = json.loads((tmp_path / "out/overlay.json").read_text())
    assert overlay["labels"] == {"anterior": 1, "posterior_part": 2}
    image = tmp_path / "out/images/hippo_001.nii.gz"
    assert image.is_symlink() != copy
    assert np.array_equal(nib.load(image).dataobj, nib.load(msd / "imagesTr/hippo_001.nii.gz").dataobj)
    assert np.allclose(nib.load(image).affine, np.diag([1.0, 1.5, 2.0, 1.0]))
    assert dict(report.volumes) == {"labelled volumes": 2, "unlabelled volumes": 1}


def test_msd_archive_is_copied_out(tmp_path, msd):
    with zipfile.ZipFile(tmp_path / "task.zip", "w") as archive:
        for file in msd.rglob("*"):
            archive.write(file, file.relative_to(tmp_path).as_posix())
    import_msd(tmp_path / "task.zip", tmp_path / "out")
    assert not (tmp_path / "out/images/hippo_001.nii.gz").is_symlink()
    assert len(read_datalist(tmp_path / "out")) == 3


def test_channel_of_a_file_with_several(tmp_path, msd):
    for number in (1, 2):
        volume(msd / f"imagesTr/hippo_{number:03d}.nii.gz", (5, 6, 4, 2))
    change(msd, test=[])
    with pytest.raises(DataProblems, match="has 2 channels along its fourth axis") as caught:
        import_msd(msd, tmp_path / "out")
    assert len(caught.value.problems) == 2
    with pytest.raises(DataProblems, match="has 2 channels, none is 2"):
        import_msd(msd, tmp_path / "out", channel=2)
    import_msd(msd, tmp_path / "out", channel=1)
    assert [(r.frame, r.volume) for r in read_datalist(tmp_path / "out")] == [
        (1, "hippo_001_t01"),
        (1, "hippo_002_t01"),
    ]


def voxels_of(file, voxels):
    """Writes a file as other tools do: nibabel alone refuses 64-bit integers."""
    nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 1.5, 2.0, 1.0]), dtype=voxels.dtype), file)


@pytest.mark.parametrize(
    ("low", "high", "given", "expected"),
    [
        (0, 255, np.int64, np.uint8),
        (-128, 127, np.int64, np.int8),
        (-1, 128, np.int64, np.int16),
        (0, 65535, np.uint64, np.uint16),
        (-(2**31), 2**31 - 1, np.int64, np.int32),
        (0, 2**32 - 1, np.uint64, np.uint32),
        (0, 4, np.int32, np.int32),
    ],
)
def test_wide_integers_are_copied_as_the_smallest_type_that_holds_them(tmp_path, msd, low, high, given, expected):
    voxels = np.zeros((5, 6, 4), given)
    voxels[0, 0, :2] = low, high
    voxels_of(msd / "imagesTr/hippo_001.nii.gz", voxels)
    voxels_of(msd / "labelsTr/hippo_001.nii.gz", (voxels > 0).astype(np.int64))
    import_msd(msd, tmp_path / "out", copy=True)
    image, label = (nib.load(tmp_path / f"out/{folder}/hippo_001.nii.gz") for folder in ("images", "labels"))
    assert (image.get_data_dtype(), label.get_data_dtype()) == (expected, np.uint8)
    assert np.array_equal(image.dataobj, voxels)
    assert np.array_equal(label.dataobj, voxels > 0)


def unknown_type(file):
    content = bytearray(gzip.decompress(file.read_bytes()))
    content[70:72] = struct.pack("<h", 9999)
    file.write_bytes(gzip.compress(content))


def cut_short(file):
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes())[:-40]))


def too_wide(file):
    voxels_of(file, np.full((5, 6, 4), 2**40, np.int64))


@pytest.mark.parametrize(
    ("spoil", "what"), [(cut_short, "truncated or corrupt"), (too_wide, "holds int64 voxels that cannot be copied")]
)
def test_voxels_that_cannot_be_copied_are_a_problem_of_their_file(tmp_path, msd, spoil, what):
    # Nothing but the voxels is wrong, so it shows only when the files are written.
    spoil(msd / "labelsTr/hippo_001.nii.gz")
    spoil(msd / "imagesTs/hippo_003.nii.gz")
    with pytest.raises(DataProblems, match=what) as caught:
        import_msd(msd, tmp_path / "out", copy=True)
    assert [problem.file.rsplit("/", 1)[1] for problem in caught.value.problems] == [
        "hippo_001.nii.gz",
        "hippo_003.nii.gz",
    ]
    assert [path.name for path in tmp_path.iterdir()] == [msd.name]
    report = import_msd(msd, tmp_path / "out", copy=True, skip_problems=True)
    assert len(report.left_out) == 2
    assert (report.cases, dict(report.volumes)) == (1, {"labelled volumes": 1})
    assert [record.volume for record in read_datalist(tmp_path / "out")] == ["hippo_002"]
    assert [path.name for path in (tmp_path / "out").rglob("*.nii.gz")] == ["hippo_002.nii.gz"] * 2


def test_when_no_voxels_can_be_copied_nothing_is_written(tmp_path):
    too_wide(volume(tmp_path / "in/a.nii.gz"))
    with pytest.raises(DataProblems, match="more than 32 bits hold"):
        import_nifti(tmp_path / "in", tmp_path / "out", copy=True, skip_problems=True)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


MSD_WRONG = {
    "missing file": (lambda root: (root / "imagesTr/hippo_001.nii.gz").unlink(), "hippo_001.nii.gz: is missing"),
    "missing label": (lambda root: (root / "labelsTr/hippo_002.nii.gz").unlink(), "hippo_002.nii.gz: is missing"),
    "no table": (lambda root: change(root, labels={}), "has no table of labels"),
    "strange entry": (lambda root: change(root, training=[{"label": "x"}]), r"training\[0\] is"),
    "nothing": (lambda root: change(root, training=[], test=[]), "lists no volume"),
    "no JSON": (lambda root: (root / "dataset.json").write_text("{"), "cannot be read"),
    "a list": (lambda root: (root / "dataset.json").write_text("[]"), "holds a list"),
    "no NIfTI": (lambda root: (root / "imagesTr/hippo_001.nii.gz").write_bytes(b"x"), "is no NIfTI"),
    "type of voxels": (lambda root: unknown_type(root / "imagesTr/hippo_001.nii.gz"), "data code 9999 not recognized"),
    "4-D label": (lambda root: volume(root / "labelsTr/hippo_001.nii.gz", (5, 6, 4, 2)), "label map of 4 axes"),
}


@pytest.mark.parametrize("case", MSD_WRONG)
def test_msd_that_cannot_be_read(tmp_path, msd, case):
    spoil, expected = MSD_WRONG[case]
    spoil(msd)
    with pytest.raises(DataProblems, match=expected):
        import_msd(msd, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tree_gets_pseudonyms_and_clean_headers(tmp_path):
    root = tmp_path / "in"
    for name in ("Meier Ä/01 heart.nii.gz", "Meier Ä/02 heart.nii", "Schulz/01 heart.nii.gz"):
        volume(root / name, text=b"Meier")
    volume(root / "Schulz/01 heart_gt.nii.gz")
    import_nifti(root, tmp_path / "out", label_suffix="_gt", patient="^([^/]+)/", labels={"lv": 1, "rv": 2}, copy=True)
    records = read_datalist(tmp_path / "out")
    assert sorted(r.volume for r in records if r.label) in (["case-0001_v01"], ["case-0002_v01"])
    assert sorted(len([r for r in records if r.patient == case]) for case in ("case-0001", "case-0002")) == [1, 2]
    for record in records:
        header = nib.load(record.image).header
        assert header["descrip"].item() == b""
        assert np.allclose(header.get_zooms(), (1.0, 1.5, 2.0))
    assert json.loads((tmp_path / "out/overlay.json").read_text())["labels"] == {"lv": 1, "rv": 2}
    assert "Meier" not in (tmp_path / "out/dataset.json").read_text()
    assert "Meier" in (tmp_path / "out/private/sources.csv").read_text()


def test_labels_in_a_folder_of_their_own_and_cine_files(tmp_path):
    volume(tmp_path / "in/images/a.nii.gz")
    volume(tmp_path / "in/images/b.nii.gz", (5, 6, 4, 3))
    volume(tmp_path / "in/labels/images/a_seg.nii")
    report = import_nifti(tmp_path / "in", tmp_path / "out", "_seg", tmp_path / "in/labels", key=False)
    assert dict(report.volumes) == {"labelled volumes": 1, "unlabelled volumes": 3}
    assert sorted(str(r.frame) for r in read_datalist(tmp_path / "out")) == ["0", "1", "2", "None"]
    assert (tmp_path / "out/images").exists()
    assert not (tmp_path / "out/private").exists()


@pytest.mark.parametrize("copy", [False, True])
def test_a_fourth_axis_of_one_is_no_cine_and_needs_no_channel(tmp_path, copy):
    for name in ("a", "a_gt", "b"):
        volume(tmp_path / f"in/{name}.nii.gz", (5, 6, 4, 1))
    report = import_nifti(tmp_path / "in", tmp_path / "out", "_gt", copy=copy)
    assert dict(report.volumes) == {"labelled volumes": 1, "unlabelled volumes": 1}
    records = read_datalist(tmp_path / "out")
    assert [r.frame for r in records] == [None, None]
    assert find_problems(records) == []
    assert nib.load(records[0].image).shape == ((5, 6, 4) if copy else (5, 6, 4, 1))


def test_channel_of_images_in_a_tree(tmp_path):
    for name, shape in (("a", (5, 6, 4, 2)), ("a_gt", (5, 6, 4)), ("b", (5, 6, 4, 2))):
        volume(tmp_path / f"in/{name}.nii.gz", shape)
    with pytest.raises(DataProblems, match=r"has 2 channels along its fourth axis.*--channel 0"):
        import_nifti(tmp_path / "in", tmp_path / "out", "_gt")
    import_nifti(tmp_path / "in", tmp_path / "out", "_gt", channel=1)
    assert [r.frame for r in read_datalist(tmp_path / "out")] == [1, 1]


def test_colours_are_refused(tmp_path):
    (tmp_path / "in").mkdir()
    voxels_of(tmp_path / "in/a.nii", np.zeros((5, 6, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")]))
    with pytest.raises(DataProblems, match=r"a\.nii: has colours or complex numbers as voxels"):
        import_nifti(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"label_suffix": "_seg"}, "no label map for any of them"),
        ({"patient": "(x[0-9]+)"}, "does not match --patient"),
    ],
)
def test_tree_that_is_not_as_described(tmp_path, options, expected):
    volume(tmp_path / "in/a.nii.gz")
    with pytest.raises(DataProblems, match=expected):
        import_nifti(tmp_path / "in", tmp_path / "out", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("pattern", ["(", "x"])
def test_patient_needs_a_group(tmp_path, pattern):
    with pytest.raises(ValueError, match="--patient"):
        import_nifti(tmp_path, tmp_path / "out", patient=pattern)
