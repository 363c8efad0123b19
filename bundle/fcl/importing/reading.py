"""DICOM files as hospitals have them: identifiers against the standard's spelling, files without its preamble."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

# A file without preamble begins with its first element, of group 0002 or 0008. Others are no DICOM, and are not read:
# pydicom would take any text for elements, and its numbers for lengths.
_FIRST_GROUPS = (b"\x02\x00", b"\x08\x00")
_OF_EVERY_IMAGE = ("SOPClassUID", "Rows")


@contextmanager
def lenient() -> Iterator[None]:
    """Take identifiers that break DICOM's spelling, as anonymisers write them, without a warning that shows them."""
    before = pydicom.config.settings.reading_validation_mode
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    try:
        yield
    finally:
        pydicom.config.settings.reading_validation_mode = before


def read_dicom(file: Path, tags: Sequence[str] | None = None, pixels: bool = False) -> pydicom.FileDataset:
    """A file's elements; an image without the standard's 128 bytes of preamble is read too.

    Args:
        file: to read.
        tags: read these, and two that every image has; ``None`` reads all.
        pixels: read the pixels as well.

    Raises:
        InvalidDicomError: on a file that is no DICOM.
        Exception: what pydicom raises on a damaged one.
    """
    specific = None if tags is None else [*tags, *_OF_EVERY_IMAGE]
    try:
        return pydicom.dcmread(file, stop_before_pixels=not pixels, specific_tags=specific)
    except InvalidDicomError:
        with open(file, "rb") as stream:
            if stream.read(2) not in _FIRST_GROUPS:
                raise
        dataset = pydicom.dcmread(file, stop_before_pixels=not pixels, specific_tags=specific, force=True)
        if any(tag not in dataset for tag in _OF_EVERY_IMAGE):
            raise
        _name_coding(dataset)
        return dataset


def _name_coding(dataset: pydicom.FileDataset) -> None:
    """Say how pixels are stored where no file meta does: as the elements are, for without it nothing is compressed."""
    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = FileMetaDataset()
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
