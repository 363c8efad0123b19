from __future__ import annotations

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fcl.data import ensure_phantom, generate, read_acdc, read_split
from fcl.data import phantom as module
from fcl.data.phantom import main

SMALL = {"sites": 2, "patients": 2, "folds": 2}


def _volumes(folder: Path) -> dict[str, np.ndarray]:
    """By path within the folder; files differ in the time that gzip writes into them, volumes must not."""
    return {
        str(file.relative_to(folder)): np.asarray(nib.Nifti1Image.from_filename(file).dataobj)
        for file in sorted(folder.glob("*/*.nii.gz"))
    }


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("phantom") / "a", **SMALL)


def test_same_seed_gives_the_same_data(phantom: Path, tmp_path: Path) -> None:
    again = generate(tmp_path / "again", **SMALL)
    first, second = _volumes(phantom), _volumes(again)
    assert first.keys() == second.keys()
    for name, volume in first.items():
        np.testing.assert_array_equal(volume, second[name], err_msg=name)
    for info in phantom.glob("*/Info.cfg"):
        assert info.read_text() == (again / info.parent.name / "Info.cfg").read_text()
    assert (phantom / "split.json").read_text() == (again / "split.json").read_text()


def test_other_seed_gives_other_data(phantom: Path, tmp_path: Path) -> None:
    other = generate(tmp_path / "other", sites=1, patients=1, folds=1, seed=1)
    name = "patient001/patient001_frame01.nii.gz"
    assert not np.array_equal(_volumes(phantom)[name], _volumes(other)[name])


def test_more_patients_never_change_earlier_ones(phantom: Path, tmp_path: Path) -> None:
    fewer = generate(tmp_path / "fewer", sites=2, patients=1, folds=1)
    many, few = _volumes(phantom), _volumes(fewer)
    # The second hospital's first patient is number 2 here and number 3 there.
    for site, (here, there) in enumerate((("patient001", "patient001"), ("patient002", "patient003"))):
        own = [volume for name, volume in few.items() if name.startswith(here)]
        same = [volume for name, volume in many.items() if name.startswith(there)]
        assert len(own) == len(same) == 4, site
        for a, b in zip(own, same, strict=True):
            np.testing.assert_array_equal(a, b)


def test_every_label_map_has_all_structures_and_its_images_grid(phantom: Path) -> None:
    labels = sorted(phantom.glob("*/*_gt.nii.gz"))
    assert len(labels) == 8
    for file in labels:
        label = nib.Nifti1Image.from_filename(file)
        image = nib.Nifti1Image.from_filename(file.with_name(file.name.replace("_gt", "")))
        assert np.unique(np.asarray(label.dataobj)).tolist() == [0, 1, 2, 3]
        assert label.shape == image.shape
        np.testing.assert_array_equal(label.affine, image.affine)


def test_acdc_reader_reads_it(phantom: Path) -> None:
    records = read_acdc(phantom)
    assert [record.patient for record in records[::2]] == [f"patient{number:03d}" for number in range(1, 5)]
    assert [record.phase for record in records] == ["ED", "ES"] * 4
    assert all(record.label and Path(record.label).is_file() for record in records)


def test_split_gives_each_hospital_its_patients(phantom: Path) -> None:
    sites = read_split(phantom / "split.json")["sites"]
    assert {site: entry["folds"] for site, entry in sites.items()} == {
        "site-1": [["patient001"], ["patient002"]],
        "site-2": [["patient003"], ["patient004"]],
    }


def test_hospitals_differ_in_spacing_and_patients_of_one_do_not(phantom: Path) -> None:
    spacing = [
        nib.Nifti1Image.from_filename(phantom / f"patient{n:03d}" / f"patient{n:03d}_frame01.nii.gz").header.get_zooms()
        for n in range(1, 5)
    ]
    assert spacing[0] == spacing[1]
    assert spacing[2] == spacing[3]
    assert abs(spacing[0][0] - spacing[2][0]) > 0.01


def test_cine_frames_are_read_as_unlabelled(tmp_path: Path) -> None:
    folder = generate(tmp_path / "cine", sites=1, patients=1, folds=1, cine_frames=3)
    cine = nib.Nifti1Image.from_filename(folder / "patient001" / "patient001_4d.nii.gz")
    frames = [record for record in read_acdc(folder) if record.phase == "cine"]
    assert cine.shape[3] == 3
    # The first frame is ED, which is there as a file of its own.
    assert [(record.frame, record.label) for record in frames] == [(1, None), (2, None)]
    assert len(read_acdc(folder)) == 4
    assert len(read_acdc(folder, cine=False)) == 2


def test_ensure_phantom_generates_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fake(out_dir: Path, **arguments: int) -> Path:
        calls.append(arguments)
        out_dir.mkdir()
        (out_dir / "split.json").write_text("{}")
        return out_dir

    monkeypatch.setattr(module, "generate", fake)
    first = ensure_phantom(tmp_path, **SMALL)
    assert Path(first, "split.json").is_file()
    assert ensure_phantom(tmp_path, **SMALL) == first
    assert len(calls) == 1
    assert ensure_phantom(tmp_path, **SMALL, seed=1) != first
    assert [call["seed"] for call in calls] == [0, 1]


def test_ensure_phantom_replaces_a_half_written_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(out_dir: Path, **arguments: int) -> Path:
        out_dir.mkdir()
        (out_dir / "patient001").mkdir()
        raise KeyboardInterrupt

    smallest = {"sites": 1, "patients": 1, "folds": 1}
    with monkeypatch.context() as patch:
        patch.setattr(module, "generate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ensure_phantom(tmp_path, **smallest)
    assert len(read_acdc(ensure_phantom(tmp_path, **smallest))) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sites": 0}, "at least 1"),
        ({"patients": 0}, "at least 1"),
        ({"cine_frames": -1}, "cine_frames 0"),
        ({"patients": 2, "folds": 3}, r"1\.\.2.*got 3"),
    ],
)
def test_impossible_counts_are_refused(tmp_path: Path, arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(tmp_path / "new", **arguments)
    assert not (tmp_path / "new").exists()


def test_command_refuses_a_folder_that_is_not_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    monkeypatch.setattr(sys, "argv", ["phantom", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert f"{tmp_path} is not empty" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]
