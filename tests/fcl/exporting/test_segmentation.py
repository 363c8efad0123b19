from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from pydicom.uid import generate_uid

from fcl.data.problems import DataProblems
from fcl.exporting.dicom_source import DicomRecords
from fcl.exporting.segmentation import WriteSegmentationd
from fcl.exporting.segments import segments_of
from tests.fcl.importing.conftest import COLUMNS, ROWS, pixels, write_image

LABELS = {"rv": 1, "myo": 5, "spot": 9}
ANATOMY = ["91723000", "SCT", "Anatomical Structure"]
CODES = {
    "rv": {"category": ANATOMY, "type": ["53085002", "SCT", "Right ventricle"]},
    "myo": {"category": ANATOMY, "type": ["49848007", "SCT", "Left Ventricle Myocardium"]},
    "*": {"category": ["85756007", "SCT", "Tissue"], "type": ["85756007", "SCT", "Tissue"]},
}
# Directions of increasing column and row: as scanned, each axis flipped, axes exchanged, oblique.
ORIENTATIONS = (
    (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    (1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
    (0.0, 1.0, 0.0, 1.0, 0.0, 0.0),
    (0.0, 1.0, 0.0, -0.6, 0.0, -0.8),
)
DEPTH = 5


def write_stack(folder: Path, orientation: Sequence[float], phases: int = 1, **tags: Any) -> None:
    """Slices 7 mm apart under names that tell nothing of their order."""
    normal = np.cross(orientation[:3], orientation[3:])
    order = np.random.default_rng(1).permutation(DEPTH)
    frame_of_reference = generate_uid()
    for z in range(DEPTH):
        for t in range(phases):
            write_image(
                folder / f"{order[z]}{t}",
                z,
                t,
                number=1 + z * phases + t,
                **{
                    "ImageOrientationPatient": list(orientation),
                    "ImagePositionPatient": [
                        round(float(v), 6) for v in np.array([-40.0, 25.0, 60.0]) + 7 * z * normal
                    ],
                    "FrameOfReferenceUID": frame_of_reference,
                    "PatientName": "Müller^Zoë",
                    "StudyDate": "20200102",
                    **tags,
                },
            )


def out_of_place(folder: Path) -> None:
    """A stack with one slice a millimetre from where it belongs."""
    write_stack(folder, ORIENTATIONS[0])
    first = next(file for file in folder.iterdir() if pydicom.dcmread(file).InstanceNumber == 1)
    image = pydicom.dcmread(first)
    image.ImagePositionPatient[2] -= 1
    image.save_as(first)


def single_image(folder: Path) -> None:
    write_image(folder / "a")


def mixed_sizes(folder: Path) -> None:
    write_stack(folder, ORIENTATIONS[0])
    half = {"Rows": ROWS // 2, "PixelData": bytes(ROWS * COLUMNS)}
    write_image(folder / "more", ImageOrientationPatient=list(ORIENTATIONS[0]), **half)


def lop_sided(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """A label map that no turn or flip leaves as it is, with one empty slice."""
    label_map = np.random.default_rng(seed).choice([0, 0, 0, 1, 5], shape).astype(np.uint8)
    label_map[..., 1] = 0
    label_map[2, 3, 0] = 9
    return label_map


def write(folder: Path, records: DicomRecords, volume: str, label_map: np.ndarray) -> pydicom.Dataset:
    writer = WriteSegmentationd("pred", folder, records, LABELS, CODES)
    writer({"pred": torch.from_numpy(label_map)[None], "volume": volume})
    return pydicom.dcmread(folder / f"{volume}.dcm")


def places_in_dicom(segmentation: pydicom.Dataset, number: int) -> set[tuple[float, ...]]:
    """Where the voxels of a segment are, LPS mm, by the geometry of the file alone."""
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    orientation = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    between_rows, between_columns = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    frames = segmentation.pixel_array.reshape(-1, ROWS, COLUMNS)
    found = set()
    for frame, group in zip(frames, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
        if group.SegmentIdentificationSequence[0].ReferencedSegmentNumber == number:
            origin = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
            for row, column in np.argwhere(frame):
                place = origin + column * between_columns * orientation[:3] + row * between_rows * orientation[3:]
                found.add(tuple(np.round(place, 3) + 0.0))
    return found


def places_in_nifti(image: nib.Nifti1Image, label_map: np.ndarray, value: int) -> set[tuple[float, ...]]:
    points = nib.affines.apply_affine(np.diag([-1, -1, 1, 1]) @ image.affine, np.argwhere(label_map == value))
    return {tuple(np.round(point, 3) + 0.0) for point in points}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_voxel_is_where_the_nifti_has_it(orientation: tuple[float, ...], tmp_path: Path) -> None:
    write_stack(tmp_path / "scan", orientation)
    records = DicomRecords(tmp_path / "scan")
    (record,) = records
    image = nib.load(record.image)
    label_map = lop_sided(image.shape)
    segmentation = write(tmp_path / "out", records, record.volume, label_map)
    for number, value in enumerate(LABELS.values(), 1):
        expected = places_in_nifti(image, label_map, value)
        assert len(expected) == np.count_nonzero(label_map == value) > 0
        assert places_in_dicom(segmentation, number) == expected


def test_each_slice_refers_to_the_image_it_lies_on(tmp_path: Path) -> None:
    write_stack(tmp_path / "scan", ORIENTATIONS[-1])
    records = DicomRecords(tmp_path / "scan")
    label_map = lop_sided((COLUMNS, ROWS, DEPTH))
    write(tmp_path / "out", records, records[0].volume, label_map)
    read = hd.seg.segread(tmp_path / "out" / f"{records[0].volume}.dcm")
    images = {d.SOPInstanceUID: d for d in map(pydicom.dcmread, (tmp_path / "scan").iterdir())}
    uids = [uid for _, _, uid in read.get_source_image_uids()]
    assert sorted(uids) == sorted(images)
    frames = read.get_pixels_by_source_instance(uids, combine_segments=True, assert_missing_frames_are_empty=True)
    for uid, frame in zip(uids, frames, strict=True):
        z = next(z for z in range(DEPTH) if np.array_equal(images[uid].pixel_array, pixels(z, 0)))
        numbers = label_map[..., z].T
        assert np.array_equal(frame, np.select([numbers == 1, numbers == 5, numbers == 9], [1, 2, 3], 0))


def test_header_names_structures_and_patient(tmp_path: Path) -> None:
    write_stack(tmp_path / "scan", ORIENTATIONS[0])
    records = DicomRecords(tmp_path / "scan")
    segmentation = write(tmp_path / "out", records, records[0].volume, lop_sided((COLUMNS, ROWS, DEPTH)))
    found = [
        (s.SegmentNumber, s.SegmentLabel, s.SegmentedPropertyTypeCodeSequence[0].CodeValue, s.SegmentAlgorithmType)
        for s in segmentation.SegmentSequence
    ]
    assert found == [
        (1, "rv", "53085002", "AUTOMATIC"),
        (2, "myo", "49848007", "AUTOMATIC"),
        (3, "spot", "85756007", "AUTOMATIC"),
    ]
    assert segmentation.PatientID == "MRN-77"
    assert str(segmentation.PatientName) == "Müller^Zoë"
    assert segmentation.SeriesNumber == 1007
    assert segmentation.SeriesInstanceUID != "1.2.3.4"
    assert "MRN-77" not in records[0].volume + records[0].patient


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_dates_that_are_none_are_left_empty(tmp_path: Path) -> None:
    write_stack(tmp_path / "scan", ORIENTATIONS[0], PatientBirthDate="00000000", StudyDate="20120000", StudyTime="1230")
    records = DicomRecords(tmp_path / "scan")
    segmentation = write(tmp_path / "out", records, records[0].volume, lop_sided((COLUMNS, ROWS, DEPTH)))
    assert [str(segmentation[tag].value or "") for tag in ("PatientBirthDate", "StudyDate", "StudyTime")] == [
        "",
        "",
        "1230",
    ]


def test_nothing_found_is_a_segmentation_too(tmp_path: Path) -> None:
    write_stack(tmp_path / "scan", ORIENTATIONS[0])
    records = DicomRecords(tmp_path / "scan")
    segmentation = write(tmp_path / "out", records, records[0].volume, np.zeros((COLUMNS, ROWS, DEPTH), np.uint8))
    assert len(segmentation.SegmentSequence) == 3
    assert not segmentation.pixel_array.any()


def test_phases_of_a_cine_are_one_series(tmp_path: Path) -> None:
    write_stack(tmp_path / "scan", ORIENTATIONS[-1], phases=2)
    records = DicomRecords(tmp_path / "scan")
    assert [record.frame for record in records] == [0, 1]
    files = [
        write(tmp_path / "out", records, record.volume, lop_sided((COLUMNS, ROWS, DEPTH), seed))
        for seed, record in enumerate(records)
    ]
    assert len({file.SeriesInstanceUID for file in files}) == 1
    assert [file.InstanceNumber for file in files] == [1, 2]
    referred = [
        {i.ReferencedSOPInstanceUID for i in f.ReferencedSeriesSequence[0].ReferencedInstanceSequence} for f in files
    ]
    assert [len(uids) for uids in referred] == [DEPTH, DEPTH]
    assert not referred[0] & referred[1]


def test_series_without_frame_of_reference_is_left_out_beforehand(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_stack(tmp_path / "scan" / "a", ORIENTATIONS[0], FrameOfReferenceUID=None)
    with pytest.raises(DataProblems, match="lacks FrameOfReferenceUID"):
        DicomRecords(tmp_path / "scan")
    write_stack(tmp_path / "scan" / "b", ORIENTATIONS[0], SeriesInstanceUID="1.2.3.5", SeriesNumber=8)
    (record,) = DicomRecords(tmp_path / "scan")
    assert record.volume.endswith("_series8")
    assert "lacks FrameOfReferenceUID" in caplog.text
    assert f"{tmp_path / 'scan' / 'a'} (series 7, 5 images)" in caplog.text


def test_bad_series_is_left_out_and_named_with_the_rest_segmented(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mixed_sizes(tmp_path / "scan" / "a")
    write_stack(tmp_path / "scan" / "b", ORIENTATIONS[0], SeriesInstanceUID="1.2.3.5", SeriesNumber=8)
    write_stack(tmp_path / "scan" / "c", ORIENTATIONS[0], SeriesInstanceUID="1.2.3.6", SeriesNumber=9, PixelData=b"..")
    (record,) = DicomRecords(tmp_path / "scan")
    assert record.volume.endswith("_series8")
    assert "(series 7, 6 images): mixes 2 image sizes" in caplog.text
    assert "(series 9, 5 images): has 5 images whose pixels cannot be read" in caplog.text
    assert "MRN-77" not in caplog.text


def test_series_that_lost_its_last_slice_is_left_out_and_counts_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_stack(tmp_path / "scan" / "a", ORIENTATIONS[0])
    last = next(f for f in (tmp_path / "scan" / "a").iterdir() if pydicom.dcmread(f).InstanceNumber == DEPTH)
    image = pydicom.dcmread(last)
    image.PhotometricInterpretation = "MONOCHROME1"
    image.save_as(last)
    write_stack(tmp_path / "scan" / "b", ORIENTATIONS[0], SeriesInstanceUID="1.2.3.5", SeriesNumber=8)
    with caplog.at_level("INFO"):
        (record,) = DicomRecords(tmp_path / "scan")
    assert record.volume.endswith("_series8")
    assert (
        "(series 7, 4 images): has 1 files more that cannot be used (1 images that are not MONOCHROME2)" in caplog.text
    )
    assert "2 taken; left out: 1 images that are not MONOCHROME2" in caplog.text


def test_images_without_preamble_are_segmented(tmp_path: Path) -> None:
    write_stack(tmp_path / "scan", ORIENTATIONS[0])
    for file in (tmp_path / "scan").iterdir():
        file.write_bytes(file.read_bytes()[132:])
    records = DicomRecords(tmp_path / "scan")
    label_map = lop_sided((COLUMNS, ROWS, DEPTH))
    segmentation = write(tmp_path / "out", records, records[0].volume, label_map)
    assert len(segmentation.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == DEPTH


def test_folder_without_any_good_series_is_told_with_all_its_problems(tmp_path: Path) -> None:
    mixed_sizes(tmp_path / "scan" / "a")
    write_stack(tmp_path / "scan" / "b", ORIENTATIONS[0], SeriesInstanceUID="1.2.3.5", FrameOfReferenceUID=None)
    with pytest.raises(DataProblems) as caught:
        DicomRecords(tmp_path / "scan")
    assert [problem.what.split()[0] for problem in caught.value.problems] == ["mixes", "lacks"]


@pytest.mark.parametrize("spoilt", [out_of_place, single_image, mixed_sizes])
def test_ways_out_are_open_to_inference(spoilt: Callable[[Path], None], tmp_path: Path) -> None:
    """An option ``--records::x`` sets the argument x; others are of the import command, and told as such."""
    spoilt(tmp_path / "scan")
    with pytest.raises(DataProblems) as caught:
        DicomRecords(tmp_path / "scan")
    told = re.sub(r"\(fcl data import [^)]*\)", "", str(caught.value))
    options = {option.removeprefix("records::") for option in re.findall(r"--([\w:-]+)", told)}
    assert options <= set(inspect.signature(DicomRecords).parameters)


def test_split_series_are_sent_to_the_import(tmp_path: Path) -> None:
    for z in range(DEPTH):
        write_image(tmp_path / "scan" / f"{z}", z, SeriesInstanceUID=f"1.2.3.{z + 4}")
    with pytest.raises(DataProblems, match=r"NIfTI volumes first \(fcl data import dicom --static --join-series\)"):
        DicomRecords(tmp_path / "scan")


def test_tolerance_that_a_way_out_names_helps(tmp_path: Path) -> None:
    out_of_place(tmp_path / "scan")
    with pytest.raises(DataProblems, match="raise --records::tolerance_mm above"):
        DicomRecords(tmp_path / "scan")
    assert len(DicomRecords(tmp_path / "scan", tolerance_mm=2.0)) == 1


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"min_slices": 0}, "--records::min_slices must be at least 1"),
        ({"tolerance_mm": 0}, "--records::tolerance_mm must be above 0"),
        ({"series_description": "("}, "--records::series_description '\\(' is no regular expression"),
    ],
)
def test_wrong_setting_is_named_as_inference_names_it(wrong: dict[str, Any], told: str, tmp_path: Path) -> None:
    write_image(tmp_path / "scan" / "a")
    with pytest.raises(ValueError, match=told):
        DicomRecords(tmp_path / "scan", **wrong)


def test_label_map_of_another_shape_is_refused(tmp_path: Path) -> None:
    write_stack(tmp_path / "scan", ORIENTATIONS[0])
    records = DicomRecords(tmp_path / "scan")
    with pytest.raises(ValueError, match="shape"):
        write(tmp_path / "out", records, records[0].volume, np.zeros((ROWS, COLUMNS, DEPTH), np.uint8))


def test_structures_without_codes_are_named_all_at_once() -> None:
    with pytest.raises(ValueError, match="rv, spot"):
        segments_of(LABELS, {"myo": CODES["myo"], "rv": {"type": ["1", "SCT", "x"]}})


def test_folder_without_a_stack_is_told(tmp_path: Path) -> None:
    write_image(tmp_path / "scan" / "a")
    with pytest.raises(DataProblems, match="fewer than 4 parallel slices"):
        DicomRecords(tmp_path / "scan")


def test_series_of_several_frames_of_reference_gets_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_stack(tmp_path / "scan", ORIENTATIONS[0])
    for file in (tmp_path / "scan").iterdir():
        image = pydicom.dcmread(file)
        image.FrameOfReferenceUID = generate_uid()
        image.save_as(file)
    records = DicomRecords(tmp_path / "scan")
    segmentation = write(tmp_path / "out", records, records[0].volume, lop_sided((COLUMNS, ROWS, DEPTH)))
    first = pydicom.dcmread(records.source(records[0].volume).images[0])
    assert segmentation.FrameOfReferenceUID == first.FrameOfReferenceUID
    assert "5 frames of reference" in caplog.text
    assert first.SOPInstanceUID not in caplog.text
