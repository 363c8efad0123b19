"""What the phantom promises to those who build on it: layout, geometry, determinism, anatomy that changes with the phase."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fcl.data.acdc import read_acdc
from fcl.data.phantom import ensure_phantom, generate, main
from fcl.data.splits import read_split

SMALL = {"sites": 2, "patients": 2, "seed": 3, "folds": 2}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("phantom") / "data", **SMALL, cine_frames=3)


def contents(folder: Path) -> dict[str, bytes]:
    """A patient's files, by the part of their name that does not hold the patient's number."""
    return {file.name.removeprefix(folder.name): file.read_bytes() for file in sorted(folder.iterdir())}


def patients_of(root: Path, site: str) -> list[Path]:
    return [root / name for name in sorted(sum(read_split(root / "split.json")["sites"][site]["folds"], []))]


def voxels(root: Path, value: int, phase: str) -> list[int]:
    records = [r for r in read_acdc(root) if r.phase == phase]
    return [int((np.asarray(nib.load(r.label).dataobj) == value).sum()) for r in records]


def test_it_reads_as_acdc_with_labels_at_ed_and_es_and_an_unlabelled_cine(phantom: Path) -> None:
    records = read_acdc(phantom)
    assert len({record.patient for record in records}) == 4
    for phase in ("ED", "ES"):
        labelled = [record for record in records if record.phase == phase]
        assert len(labelled) == 4
        assert all(record.label is not None for record in labelled)
    cine = [record for record in records if record.phase == "cine"]
    assert cine
    assert all(record.label is None and record.frame is not None for record in cine)


def test_info_names_the_frames_and_the_group(phantom: Path) -> None:
    for folder in phantom.glob("patient*"):
        lines = (folder / "Info.cfg").read_text().splitlines()
        info = dict(line.split(": ") for line in lines)
        assert set(info) == {"ED", "ES", "Group", "Height", "NbFrame", "Weight"}
        assert info["Group"] in {"NOR", "DCM", "HCM", "MINF", "RV"}
        for phase in ("ED", "ES"):
            assert (folder / f"{folder.name}_frame{int(info[phase]):02d}_gt.nii.gz").is_file()


def test_volumes_have_the_size_and_spacing_of_a_scanner(phantom: Path) -> None:
    for record in read_acdc(phantom, cine=False):
        image, label = nib.load(record.image), nib.load(record.label)
        assert image.get_data_dtype() == np.int16
        assert image.shape == label.shape
        np.testing.assert_array_equal(image.affine, label.affine)
        px, py, step = (float(size) for size in image.header.get_zooms())
        assert px == py
        assert 1.2 <= px <= 1.9
        assert 5 <= step <= 10
        assert all(110 <= side <= 160 for side in image.shape[:2])
        assert 7 <= image.shape[2] <= 14
        assert np.asarray(image.dataobj).std() > 0


def test_every_hospital_has_a_scanner_of_its_own(phantom: Path) -> None:
    spacing = [
        {
            float(nib.load(file).header.get_zooms()[0])
            for folder in patients_of(phantom, site)
            for file in folder.glob("*_gt*")
        }
        for site in ("site-1", "site-2")
    ]
    assert [len(values) for values in spacing] == [1, 1]
    assert spacing[0] != spacing[1]


def test_labels_are_acdc_s_and_the_ventricle_contracts(phantom: Path) -> None:
    for record in read_acdc(phantom, cine=False):
        assert set(np.unique(np.asarray(nib.load(record.label).dataobj))) == {0, 1, 2, 3}
    for at_rest, contracted in zip(voxels(phantom, 3, "ED"), voxels(phantom, 3, "ES"), strict=True):
        assert 0 < contracted < at_rest


def test_the_right_ventricle_ends_before_the_left_does_towards_the_apex(phantom: Path) -> None:
    for record in read_acdc(phantom, cine=False):
        label = np.asarray(nib.load(record.label).dataobj)
        last = {value: np.flatnonzero((label == value).any(axis=(0, 1))).max() for value in (1, 2)}
        assert last[1] <= last[2]


def test_same_arguments_give_the_same_bytes_and_another_seed_other_ones(phantom: Path, tmp_path: Path) -> None:
    again = generate(tmp_path / "again", **SMALL, cine_frames=3)
    other = generate(tmp_path / "other", **{**SMALL, "seed": 4}, cine_frames=3)
    assert (again / "split.json").read_bytes() == (phantom / "split.json").read_bytes()
    for folder in sorted(phantom.glob("patient*")):
        assert contents(again / folder.name) == contents(folder)
        assert contents(other / folder.name) != contents(folder)


def test_more_patients_and_no_cine_leave_earlier_patients_as_they_were(phantom: Path, tmp_path: Path) -> None:
    larger = generate(tmp_path / "larger", **{**SMALL, "patients": 3})
    for site in ("site-1", "site-2"):
        for before, after in zip(patients_of(phantom, site), patients_of(larger, site), strict=False):
            kept = {name: data for name, data in contents(before).items() if not name.endswith("_4d.nii.gz")}
            assert contents(after) == kept


def test_each_patient_is_in_one_fold_of_one_site(phantom: Path) -> None:
    sites = read_split(phantom / "split.json")["sites"]
    assert list(sites) == ["site-1", "site-2"]
    named = [name for site in sites.values() for fold in site["folds"] for name in fold]
    assert sorted(named) == sorted(folder.name for folder in phantom.glob("patient*"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"sites": 0}, "got 0, 2, 0"), ({"cine_frames": -1}, "got 2, 2, -1"), ({"folds": 3}, "got 3")],
)
def test_counts_that_cannot_be_are_refused(wrong: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        generate(tmp_path / "data", **{**SMALL, **wrong})
    assert not (tmp_path / "data").exists()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        generate(tmp_path, **SMALL)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_ensured_phantom_is_made_once_and_again_after_an_unfinished_one(tmp_path: Path) -> None:
    one = {"sites": 1, "patients": 1, "folds": 1}
    first = Path(ensure_phantom(tmp_path, **one))
    marked = first / "split.json"
    before = marked.stat().st_mtime_ns
    assert Path(ensure_phantom(tmp_path, **one)) == first
    assert marked.stat().st_mtime_ns == before
    first.rename(first.with_name(f"{first.name}.part"))
    assert Path(ensure_phantom(tmp_path, **one)) == first
    assert json.loads(marked.read_text())["sites"] == {"site-1": {"folds": [["patient001"]]}}


def test_the_command_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["phantom", "--out", str(tmp_path / "data"), "--patients", "2"])
    with pytest.raises(SystemExit):
        main()
    assert "folds must lie in 1..2" in capsys.readouterr().err
