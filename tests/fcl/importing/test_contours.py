from __future__ import annotations

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from fcl.data import DataProblems, read_datalist
from fcl.importing import Choice, ContourSource, import_dicom
from fcl.importing.contours import LABELS

PHASES = 3


def square(half: float, centre: tuple[float, float] = (12.0, 10.0)) -> str:
    x, y = centre
    corners = [(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]
    return "".join(f"{a:.2f} {b:.2f}\n" for a, b in corners)


class Study:
    """A cine of 6 slices and 3 phases; ED is frame 0 on slices 1 to 4, ES frame 2 on slices 2 to 3."""

    def __init__(self, root, series):
        self.dicom, self.drawn, self.out, self.link = root / "dicom", root / "drawn", root / "out", root / "link.csv"
        series(self.dicom, slices=6, phases=PHASES)
        self.link.write_text("patient_id,original_id\nMRN-77,SC-1\n", encoding="utf-8")
        for z in (1, 2, 3, 4):
            self.draw("i", z, 0, square(3.5))
            self.draw("o", z, 0, square(5.5))
        for z in (2, 3):
            self.draw("i", z, 2, square(2.5))

    def draw(self, kind, z, t, text):
        file = self.drawn / "SC-1" / f"{kind}-contours" / f"IM-0001-{z * PHASES + t + 1:04d}-{kind}contour-manual.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return file

    def run(self, **options):
        return import_dicom(
            self.dicom, self.out, Choice(), ContourSource(self.drawn, self.link), progress=False, **options
        )


@pytest.fixture
def study(tmp_path, series):
    return Study(tmp_path, series)


def test_label_maps_are_what_was_drawn_and_where(study):
    study.run()
    records = {r.volume: r for r in read_datalist(study.out)}
    ed = records["case-0001_s01_frame00"]
    assert (ed.phase, ed.frame) == ("ED", None)
    image, label, cine = nib.load(ed.image), nib.load(ed.label), nib.load(study.out / "images/case-0001_s01.nii.gz")
    expected = np.zeros((24, 20), np.uint8)
    expected[7:18, 5:16], expected[9:16, 7:14] = LABELS["myo"], LABELS["lv"]
    assert label.shape == image.shape == (24, 20, 4)
    assert all(np.array_equal(label.dataobj[..., z], expected) for z in range(4))
    assert np.array_equal(image.dataobj, cine.dataobj[:, :, 1:5, 0])
    assert np.allclose(image.affine, label.affine)
    assert np.allclose(image.affine @ [2, 3, 0, 1], cine.affine @ [2, 3, 1, 1])


def test_frames_without_epicardium_have_a_cavity_and_stay_aside(study):
    report = study.run()
    content = json.loads((study.out / "dataset.json").read_text())
    (partial,) = content["partial"]
    assert (partial["phase"], partial["labels"]) == ("ES", ["lv"])
    label = nib.load(study.out / partial["label"])
    assert label.shape[2] == 2
    assert set(np.unique(label.dataobj)) == {0, LABELS["lv"]}
    assert content["labels"] == {"0": "background", "2": "myo", "3": "lv"}
    cine = [entry["frame"] for entry in content["training"] if entry.get("phase") == "cine"]
    assert cine == [1, 2]
    assert dict(report.volumes) == {
        "labelled volumes": 1,
        "labelled volumes, cavity only": 1,
        "unlabelled cine frames": 2,
    }


def test_they_are_trained_on_when_asked_for(study):
    study.run(include_partial=True)
    content = json.loads((study.out / "dataset.json").read_text())
    assert "partial" not in content
    assert [entry.get("labels") for entry in content["training"] if "label" in entry] == [None, ["lv"]]
    assert [entry["frame"] for entry in content["training"] if "frame" in entry] == [1]


def test_the_larger_cavity_is_end_diastole_whatever_the_order(study):
    for z in (1, 2, 3, 4):
        study.draw("i", z, 0, square(2.5))
    for z in (2, 3):
        study.draw("i", z, 2, square(4.5))
    study.run(include_partial=True)
    assert {r.volume[-2:]: r.phase for r in read_datalist(study.out) if r.label} == {"00": "ES", "02": "ED"}


def test_without_a_link_file_folders_are_named_by_patient(study):
    shutil.move(study.drawn / "SC-1", study.drawn / "MRN-77")
    import_dicom(study.dicom, study.out, Choice(), ContourSource(study.drawn), progress=False)
    assert sum(r.label is not None for r in read_datalist(study.out)) == 1


def test_one_contour_beyond_the_last_pair_is_not_taken(study):
    study.draw("i", 5, 0, square(1.5))
    report = study.run()
    assert nib.load(study.out / "labels/case-0001_s01_frame00.nii.gz").shape[2] == 4
    assert any("beyond the first or last pair" in note for note in report.notes)


WRONG = {
    "no such image": (lambda s: s.draw("i", 99, 0, square(3)), "is on image 298, which .* lacks"),
    "empty": (lambda s: s.draw("i", 2, 0, ""), "is empty"),
    "crossing": (lambda s: s.draw("o", 2, 0, "1 1\n9 9\n9 1\n1 9.5\n"), "crosses itself"),
    "outside": (lambda s: s.draw("o", 2, 0, square(11)), "leaves its image"),
    "between pixels": (lambda s: s.draw("i", 2, 0, square(0.2, (12.5, 10.5))), "encloses no pixel centre"),
    "beside its epicardium": (lambda s: s.draw("i", 2, 0, square(3.5, (5, 10))), "does not lie inside the epicardium"),
    "gap": (
        lambda s: (s.drawn / "SC-1/i-contours/IM-0001-0010-icontour-manual.txt").unlink(),
        "no pair of contours on slice 4, between contoured ones",
    ),
    "epicardium alone": (lambda s: s.draw("o", 2, 1, square(5)), "an epicardium but no endocardium"),
    "link without columns": (lambda s: s.link.write_text("a,b\n1,2\n"), "is no link file"),
    "link to another patient": (
        lambda s: s.link.write_text("patient_id,original_id\nMRN-1,SC-1\n"),
        "has 10 contours, but no series was taken for it",
    ),
    "no contours": (lambda s: shutil.rmtree(s.drawn), "holds no folder of contours"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_reported_and_nothing_is_written(study, case):
    spoil, expected = WRONG[case]
    spoil(study)
    with pytest.raises(DataProblems, match=expected):
        study.run()
    assert not study.out.exists()


def test_two_series_that_fit_need_a_choice(study, series):
    series(study.dicom / "again", slices=6, phases=PHASES, SeriesInstanceUID="1.2.9")
    with pytest.raises(DataProblems, match="fits 2 series of its patient"):
        study.run()


def test_a_frame_with_a_problem_can_be_left_out(study):
    study.draw("i", 2, 0, "")
    report = study.run(skip_problems=True)
    assert [problem.what for problem in report.left_out] == ["is empty"]
    assert not (study.out / "labels/case-0001_s01_frame00.nii.gz").exists()
    assert len([r for r in read_datalist(study.out) if r.phase == "cine"]) == 3


def test_real_contours_lie_on_the_ventricle(tmp_path, real_sunnybrook):
    drawn = tmp_path / "drawn"
    shutil.copytree(real_sunnybrook / "contourfiles/SC-HF-I-2", drawn / "SC-HF-I-2")
    source = ContourSource(drawn, real_sunnybrook / "link.csv")
    import_dicom(real_sunnybrook / "dicoms/SCD0000201", tmp_path / "out", Choice(), source, True, progress=False)
    labelled = {r.phase: r for r in read_datalist(tmp_path / "out") if r.label is not None}
    assert sorted(labelled) == ["ED", "ES"]
    volume = {}
    for phase, record in labelled.items():
        image, label = (np.asarray(nib.load(file).dataobj) for file in (record.image, record.label))
        assert image.shape == label.shape == (256, 256, 9)
        assert nib.affines.voxel_sizes(nib.load(record.image).affine) == pytest.approx([1.367, 1.367, 10.0], abs=0.01)
        volume[phase] = np.count_nonzero(label == LABELS["lv"]) * 1.367188**2 * 10 / 1000
        if phase == "ED":
            # Blood is bright in this sequence and muscle dark, on every slice but the most apical ones.
            bright = [
                image[label[..., z] == 3, z].mean() > 1.5 * image[label[..., z] == 2, z].mean() for z in range(3, 9)
            ]
            assert all(bright)
    assert 30 < volume["ES"] < volume["ED"] < 400  # ml
