from __future__ import annotations

import warnings
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MediaStorageDirectoryStorage

from fcl.importing import KEPT, scan

from .conftest import write_image

LEFT_OUT = {
    "localiser": ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localisers"),
    "secondary capture": ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "secondary captures"),
    "screen": ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "secondary captures"),
    "burnt in": ({"BurnedInAnnotation": "YES"}, "images with text burnt into the pixels"),
    "colour": ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "images that are not MONOCHROME2"),
    "inverted": ({"PhotometricInterpretation": "MONOCHROME1"}, "images that are not MONOCHROME2"),
    "multi-frame": ({"NumberOfFrames": 12}, "multi-frame images (export them as single frames)"),
    "no place": ({"ImagePositionPatient": None}, "images without position in space"),
    "no image": ({"Rows": None, "PixelData": None}, "DICOM files without image"),
}


@pytest.mark.parametrize("case", LEFT_OUT)
def test_what_is_no_scan_is_counted(tmp_path, case):
    tags, reason = LEFT_OUT[case]
    write_image(tmp_path / "a", **tags)
    found = scan(tmp_path)
    assert (found.files, found.instances, dict(found.skipped), found.problems) == (1, [], {reason: 1}, [])


def test_any_name_and_any_depth(tmp_path):
    write_image(tmp_path / "Müller, 1" / "série 2" / "ÄÖ", number=3)
    (tmp_path / "DICOMDIR.txt").write_text("no DICOM", encoding="utf-8")
    found = scan(tmp_path)
    assert found.files == 2
    assert dict(found.skipped) == {"no DICOM files": 1}
    assert [(image.number, image.patient, image.spacing) for image in found.instances] == [(3, "MRN-77", (1.5, 1.25))]


@pytest.mark.parametrize("content", [b"\x02", b"\x02\x00 text", b"\x08\x00\xff\xff" * 9, b"n+1\0" * 99])
def test_what_only_begins_like_dicom_is_none(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    found = scan(tmp_path)
    assert (dict(found.skipped), found.problems) == ({"no DICOM files": 1}, [])


def test_what_a_copy_cut_off_is_named(tmp_path):
    whole = write_image(tmp_path / "whole").read_bytes()
    series = whole.index(b"1.2.3.4\0")
    lengths = {"empty": 0, "preamble": 132, "file meta": 150, "series": series - 8, "image": series + 30}
    for name, length in lengths.items():
        (tmp_path / name).write_bytes(whole[:length])
    (tmp_path / ".keep").touch()
    found = scan(tmp_path)
    named = {"empty", "preamble", "file meta", "series"}
    assert {Path(problem.file).name for problem in found.problems} == named
    assert all("copy or export it again" in problem.fix for problem in found.problems)
    assert dict(found.skipped) == {"no DICOM files": 1, "DICOM files without image": 1}


def test_a_link_to_nowhere_is_named(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "gone")
    assert [Path(problem.file).name for problem in scan(tmp_path).problems] == ["a"]


def test_a_directory_of_files_is_no_file_cut_off(tmp_path):
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2"
    dataset.FileSetID = "DISC"
    dataset.save_as(tmp_path / "DICOMDIR", enforce_file_format=True)
    found = scan(tmp_path)
    assert (dict(found.skipped), found.problems) == ({"DICOM files without image": 1}, [])


def test_series_of_what_is_left_out_is_kept(tmp_path):
    write_image(tmp_path / "a", BurnedInAnnotation="YES")
    assert [(f.series, f.study, f.description) for f in scan(tmp_path).left_out] == [("1.2.3.4", "1.2.3", "cine SAX")]


def test_without_patient_id_the_study_is_the_case(tmp_path):
    write_image(tmp_path / "a", PatientID="")
    assert scan(tmp_path).instances[0].patient == "1.2.3"


def test_damaged_file_is_reported_with_its_name(tmp_path):
    file = write_image(tmp_path / "damaged", ImagePositionPatient=[1.0, 2.0])
    assert [(p.file, "2 values, not 3" in p.what) for p in scan(tmp_path).problems] == [(str(file), True)]


def test_identifiers_are_not_shown_in_warnings(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_image(tmp_path / "a", StudyInstanceUID="1.2.99.0123")  # a part that begins with 0 is against DICOM
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scan(tmp_path).instances[0].study == "1.2.99.0123"


def test_the_list_of_kept_tags_holds_no_text_about_people():
    assert not [tag for tag in KEPT if tag.startswith(("Patient", "Study", "Series", "Institution", "Referring"))]
