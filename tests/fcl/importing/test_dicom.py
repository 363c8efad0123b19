from __future__ import annotations

import json
import stat
import zipfile

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless

from fcl.data import DataProblems, read_datalist
from fcl.importing import Choice, import_dicom

from .conftest import COLUMNS, ROWS, pixels, write_image

PLANTED = "Zebrafink"
PLAIN = Choice()


def contents(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_cine_series_becomes_one_file_and_a_frame_each(tmp_path, series):
    series(tmp_path / "in", slices=4, phases=3, RescaleSlope=2, RescaleIntercept=-50)
    report = import_dicom(tmp_path / "in", tmp_path / "out", PLAIN)
    assert contents(tmp_path / "out") == ["dataset.json", "images/case-0001_s01.nii.gz", "private/sources.csv"]
    image = nib.load(tmp_path / "out/images/case-0001_s01.nii.gz")
    assert image.shape == (COLUMNS, ROWS, 4, 3)
    assert image.get_data_dtype() == np.int16
    for z in range(4):
        for t in range(3):
            assert np.array_equal(image.dataobj[..., z, t], 2 * pixels(z, t).T - 50)
    assert np.allclose(image.header.get_zooms(), (1.25, 1.5, 8.0, 0.04))
    assert image.header.get_xyzt_units() == ("mm", "sec")
    assert np.allclose(image.get_qform(), image.get_sform(), atol=1e-4)
    records = read_datalist(tmp_path / "out")
    assert [(r.patient, r.frame, r.phase, r.label) for r in records] == [
        ("case-0001", t, "cine", None) for t in range(3)
    ]
    assert report.cases == 1
    assert dict(report.volumes) == {"unlabelled cine frames": 3}
    assert any("not square" in note for note in report.notes)


def test_fractions_are_kept_as_floats(tmp_path, series):
    series(tmp_path / "in", RescaleSlope=0.5, RescaleIntercept=0)
    import_dicom(tmp_path / "in", tmp_path / "out", PLAIN)
    image = nib.load(tmp_path / "out/images/case-0001_s01.nii.gz")
    assert image.get_data_dtype() == np.float32
    assert np.array_equal(image.dataobj[..., 1, 2], pixels(1, 2).T / 2)


def test_static_series_has_three_axes(tmp_path, series):
    series(tmp_path / "in", phases=1)
    with pytest.raises(DataProblems, match=r"one phase only \(--static takes it\)"):
        import_dicom(tmp_path / "in", tmp_path / "out", PLAIN)
    import_dicom(tmp_path / "in", tmp_path / "out", Choice(static=True))
    assert nib.load(tmp_path / "out/images/case-0001_s01.nii.gz").shape == (COLUMNS, ROWS, 4)
    assert [r.frame for r in read_datalist(tmp_path / "out")] == [None]


def text_tags() -> dict[str, str]:
    """Every kind of text that says who, where and when, filled with one word; dates with one date."""
    names = (
        "PatientName", "PatientID", "OtherPatientIDs", "PatientAddress", "PatientComments", "EthnicGroup", "Occupation",
        "InstitutionName", "InstitutionAddress", "StationName", "ReferringPhysicianName", "OperatorsName",
        "PerformingPhysicianName", "StudyDescription", "SeriesDescription", "ProtocolName", "StudyID", "ImageComments",
        "AccessionNumber", "DeviceSerialNumber", "ManufacturerModelName", "AdditionalPatientHistory",
        "RequestedProcedureDescription", "PerformedProcedureStepDescription", "DerivationDescription",
    )  # fmt: skip
    dates = ("PatientBirthDate", "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "InstanceCreationDate")
    return {**dict.fromkeys(names, PLANTED), **dict.fromkeys(dates, "19330730")}


def test_nothing_planted_leaves_the_private_folder(tmp_path, series):
    uids = {"StudyInstanceUID": "1.2.777.1", "SeriesInstanceUID": "1.2.777.2", "FrameOfReferenceUID": "1.2.777.3"}
    source = tmp_path / PLANTED / f"{PLANTED} 19330730"
    for file in series(source, **text_tags(), **uids):
        dataset = pydicom.dcmread(file)
        dataset.add_new((0x0009, 0x0010), "LO", PLANTED)
        dataset.add_new((0x0009, 0x1001), "LO", PLANTED)
        dataset.save_as(file)
    import_dicom(source, tmp_path / "out", PLAIN)
    searched = 0
    for file in (tmp_path / "out").rglob("*"):
        inner = file.relative_to(tmp_path / "out")
        for word in (PLANTED, "19330730", "1.2.777"):
            assert word.lower() not in inner.as_posix().lower()
            if file.is_file() and inner.parts[0] != "private":
                raw = file.read_bytes()
                unpacked = nib.load(file).header.binaryblock if file.name.endswith(".nii.gz") else b""
                assert word.encode() not in raw + unpacked
                searched += 1
    assert searched == 6
    assert PLANTED in (tmp_path / "out/private/sources.csv").read_text()


def test_key_is_private_and_can_be_left_out(tmp_path, series):
    series(tmp_path / "in")
    import_dicom(tmp_path / "in", tmp_path / "out", PLAIN)
    key = tmp_path / "out/private/sources.csv"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert "must never leave the site" in key.read_text().splitlines()[0]
    assert key.read_text().splitlines()[2] == "case-0001,images/case-0001_s01.nii.gz,MRN-77,1.2.3,1.2.3.4"
    import_dicom(tmp_path / "in", tmp_path / "keyless", PLAIN, key=False)
    assert not (tmp_path / "keyless/private").exists()


def test_one_case_for_one_patient_whatever_the_folders(tmp_path, series):
    series(tmp_path / "in/a/x", SeriesInstanceUID="1.1")
    series(tmp_path / "in/b", SeriesInstanceUID="1.2", StudyInstanceUID="1.9")
    series(tmp_path / "in/a/y", SeriesInstanceUID="1.3", PatientID="MRN-78", StudyInstanceUID="1.8")
    import_dicom(tmp_path / "in", tmp_path / "out", PLAIN)
    by_patient = {}
    for row in (tmp_path / "out/private/sources.csv").read_text().splitlines()[2:]:
        case, _, patient, *_ = row.split(",")
        by_patient.setdefault(patient, []).append(case)
    assert sorted(map(len, by_patient.values())) == [1, 2]
    assert {case for cases in by_patient.values() for case in cases} == {"case-0001", "case-0002"}
    assert all(len(set(cases)) == 1 for cases in by_patient.values())


def test_choice_of_series(tmp_path, series):
    series(tmp_path / "in/sax", SeriesInstanceUID="1.1")
    series(tmp_path / "in/lax", SeriesInstanceUID="1.2", slices=1, SeriesDescription="cine 4ch")
    told = []
    import_dicom(tmp_path / "in", tmp_path / "out", PLAIN, tell=told.append)
    assert sorted((row.description, row.why) for row in told[0].rows) == [
        ("cine 4ch", "fewer than 4 parallel slices"),
        ("cine SAX", ""),
    ]
    assert told[0].summary() == "15 files, 15 images in 2 series, 1 taken"
    with pytest.raises(DataProblems, match="2 series, none of them taken: another description"):
        import_dicom(tmp_path / "in", tmp_path / "none", Choice(description="perfusion"))


def test_slices_that_are_series_of_their_own_are_joined(tmp_path):
    for z in range(4):
        for t in range(2):
            write_image(tmp_path / f"in/{z}{t}", z, t, SeriesInstanceUID=f"1.{z}", SeriesNumber=z)
    with pytest.raises(DataProblems, match="4 series, none of them taken"):
        import_dicom(tmp_path / "in", tmp_path / "out", PLAIN)
    import_dicom(tmp_path / "in", tmp_path / "out", Choice(join_series=True))
    assert nib.load(tmp_path / "out/images/case-0001_s01.nii.gz").shape == (COLUMNS, ROWS, 4, 2)


LOST = {
    "inverted": ({"PhotometricInterpretation": "MONOCHROME1"}, "3 images that are not MONOCHROME2"),
    "burnt in": ({"BurnedInAnnotation": "YES"}, "3 images with text burnt into the pixels"),
    "localiser": ({"ImageType": ["DERIVED", "SECONDARY", "LOCALIZER"]}, "3 localisers"),
    "no image": ({"Rows": None, "PixelData": None}, "3 DICOM files without image"),
}


@pytest.mark.parametrize("case", LOST)
def test_series_is_not_taken_without_its_last_slice(tmp_path, series, case):
    tags, reason = LOST[case]
    series(tmp_path / "in/a", slices=4)
    for t in range(3):
        write_image(tmp_path / f"in/b/{t}", 4, t, number=13 + t, **tags)
    series(tmp_path / "in/c", SeriesInstanceUID="1.3")
    with pytest.raises(DataProblems, match=rf"in/a \(series 7, 12 images\): has 3 files more .*\({reason}\)") as caught:
        import_dicom(tmp_path / "in", tmp_path / "out", PLAIN)
    assert len(caught.value.problems) == 1
    report = import_dicom(tmp_path / "in", tmp_path / "out", PLAIN, skip_problems=True)
    assert dict(report.volumes) == {"unlabelled cine frames": 3}


def test_files_of_other_series_are_left_out_as_ever(tmp_path, series):
    series(tmp_path / "in/a", SeriesInstanceUID="", StudyInstanceUID="")
    (tmp_path / "in/notes.txt").write_text("no DICOM", encoding="utf-8")
    write_image(tmp_path / "in/b", ImageType=["ORIGINAL", "LOCALIZER"], SeriesInstanceUID="1.9")
    told = []
    import_dicom(tmp_path / "in", tmp_path / "out", PLAIN, tell=told.append)
    assert told[0].summary() == "14 files, 12 images in 1 series, 1 taken; left out: 1 localisers, 1 no DICOM files"


def test_joined_series_are_not_taken_without_one_that_was_left_out(tmp_path):
    for z in range(5):
        tags = {"PhotometricInterpretation": "MONOCHROME1"} if z == 4 else {}
        for t in range(2):
            write_image(tmp_path / f"in/{z}{t}", z, t, SeriesInstanceUID=f"1.{z}", SeriesNumber=z, **tags)
    with pytest.raises(DataProblems, match="has 2 files more that cannot be used"):
        import_dicom(tmp_path / "in", tmp_path / "out", Choice(join_series=True))


@pytest.mark.parametrize("begin", ["file meta", "image"])
def test_slices_without_preamble_are_slices(tmp_path, series, begin):
    files = series(tmp_path / "in", slices=4, phases=2)
    for file in files[-2:]:
        content = file.read_bytes()[132:]  # the preamble and DICM
        length = int.from_bytes(content[8:12], "little")  # of the file meta, after its first element
        file.write_bytes(content if begin == "file meta" else content[12 + length :])
    import_dicom(tmp_path / "in", tmp_path / "out", PLAIN)
    image = nib.load(tmp_path / "out/images/case-0001_s01.nii.gz")
    assert image.shape == (COLUMNS, ROWS, 4, 2)
    assert np.array_equal(image.dataobj[..., 3, 1], pixels(3, 1).T)


def spoil_pixels(file):
    dataset = pydicom.dcmread(file)
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    dataset.PixelData = pydicom.encaps.encapsulate([b"no JPEG"])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(file)


def test_all_problems_of_all_series_at_once_and_nothing_half_written(tmp_path, series):
    series(tmp_path / "in/a", SeriesInstanceUID="1.1")[5].unlink()
    spoil_pixels(series(tmp_path / "in/b", SeriesInstanceUID="1.2")[0])
    series(tmp_path / "in/c", SeriesInstanceUID="1.3")
    write_image(tmp_path / "in/d", PixelSpacing=[1.0])
    with pytest.raises(DataProblems) as caught:
        import_dicom(tmp_path / "in", tmp_path / "out", PLAIN)
    found = [problem.what for problem in caught.value.problems]
    assert len(found) == 3
    assert "is DICOM that cannot be read" in found[0]
    assert "has 2 phases at slice 2 of 4" in found[1]
    assert "1 images whose pixels cannot be read" in found[2]
    assert "JPEG 2000" in found[2]
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    report = import_dicom(tmp_path / "in", tmp_path / "out", PLAIN, skip_problems=True)
    assert len(report.left_out) == 3
    assert dict(report.volumes) == {"unlabelled cine frames": 3}
    assert [path.name for path in (tmp_path / "out/images").iterdir()] == ["case-0001_s01.nii.gz"]


def test_truncated_pixels(tmp_path, series):
    files = series(tmp_path / "in")
    files[3].write_bytes(files[3].read_bytes()[:-100])
    with pytest.raises(DataProblems, match="1 images whose pixels cannot be read"):
        import_dicom(tmp_path / "in", tmp_path / "out", PLAIN)


def test_folder_without_images(tmp_path):
    (tmp_path / "in").mkdir()
    write_image(tmp_path / "in/a", ImageType=["DERIVED", "LOCALIZER"])
    with pytest.raises(DataProblems, match=r"no image that can be used \(1 localisers\)"):
        import_dicom(tmp_path / "in", tmp_path / "out", PLAIN)


def test_result_of_an_earlier_import_is_not_touched(tmp_path, series):
    series(tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious").write_text("1", encoding="utf-8")
    with pytest.raises(DataProblems, match="exists already"):
        import_dicom(tmp_path / "in", tmp_path / "out", PLAIN)
    assert contents(tmp_path / "out") == ["precious"]


def test_paths_with_spaces_and_letters_and_zip_archives(tmp_path, series):
    source = tmp_path / "Aufnahmen für Ärzte" / "心臓 1"
    with zipfile.ZipFile(tmp_path / "Archiv ö.zip", "w") as archive:
        for file in series(source):
            archive.write(file, file.relative_to(tmp_path).as_posix())
    for place, out in ((source, "aus Ordner"), (tmp_path / "Archiv ö.zip", "aus Archiv")):
        import_dicom(place, tmp_path / "Ergebnis é" / out, PLAIN)
    first, second = (
        (tmp_path / "Ergebnis é" / out / "images/case-0001_s01.nii.gz") for out in ("aus Ordner", "aus Archiv")
    )
    assert first.read_bytes() == second.read_bytes()
    assert json.loads((tmp_path / "Ergebnis é/aus Archiv/dataset.json").read_text())["training"][0]["frame"] == 0


@pytest.mark.parametrize("choice", [{"min_slices": 0}, {"tolerance_mm": 0.0}, {"description": "("}])
def test_choice_checks_itself(choice):
    with pytest.raises(ValueError, match="--"):
        Choice(**choice)
