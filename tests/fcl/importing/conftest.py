"""Tiny DICOM series, written on the fly."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

ROWS, COLUMNS = 20, 24
ROW = (0.0, 1.0, 0.0)  # direction of increasing column, LPS
COLUMN = (-0.6, 0.0, -0.8)
NORMAL = np.cross(ROW, COLUMN)
GAP = 8.0
Writer = Callable[..., list[Path]]


def pixels(z: int, t: int) -> np.ndarray:
    """(ROWS, COLUMNS), another for each slice and phase."""
    return (np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS) + 1000 * z + 100 * t).astype(np.int16)


def write_image(file: Path, z: int = 0, t: int = 0, number: int = 1, **tags: Any) -> Path:
    """One image of the stack; ``tags`` replace or, as ``None``, remove."""
    values: dict[str, Any] = {
        "SOPClassUID": MRImageStorage,
        "SOPInstanceUID": generate_uid(),
        "PatientID": "MRN-77",
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.3.4",
        "SeriesNumber": 7,
        "SeriesDescription": "cine SAX",
        "InstanceNumber": number,
        "TriggerTime": 20.0 + 40.0 * t + z,
        "SliceLocation": -float(z),
        "SliceThickness": 6.0,
        "ImageType": ["ORIGINAL", "PRIMARY"],
        "Rows": ROWS,
        "Columns": COLUMNS,
        "PixelSpacing": [1.5, 1.25],
        "ImageOrientationPatient": [*ROW, *COLUMN],
        "ImagePositionPatient": [round(float(v), 6) for v in np.array([10.0, 20.0, 30.0]) + GAP * z * NORMAL],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "PixelData": pixels(z, t).tobytes(),
        **tags,
    }
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = MRImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = values["SOPInstanceUID"]
    for tag, value in values.items():
        if value is not None:
            setattr(dataset, tag, value)
    file.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(file, enforce_file_format=True)
    return file


@pytest.fixture
def series() -> Writer:
    """Writes a cine stack under names and in an order that tell nothing; InstanceNumber counts phases, then slices."""

    def write(folder: Path, slices: int = 4, phases: int = 3, **tags: Any) -> list[Path]:
        places = [(z, t) for z in range(slices) for t in range(phases)]
        order = np.random.default_rng(0).permutation(len(places))
        return [
            write_image(folder / f"bild {order[i]:03d}", z, t, number=i + 1, **tags) for i, (z, t) in enumerate(places)
        ]

    return write


@pytest.fixture(scope="session")
def real_sunnybrook() -> Path:
    """The real cine studies, where this machine has them."""
    default = Path(__file__).resolve().parents[4] / "shared" / "data" / "sunnybrook"
    folder = Path(os.environ.get("FCL_SUNNYBROOK_DIR", default))
    if not folder.is_dir():
        pytest.skip(f"needs the Sunnybrook data: set FCL_SUNNYBROOK_DIR (tried {folder})")
    return folder
