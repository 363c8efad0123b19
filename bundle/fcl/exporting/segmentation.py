"""Label maps as DICOM SEG objects that refer to the images they were made from.

Such a file carries the patient's name, ids and dates, copied from the images as the standard wants it: it belongs into
the archive the images came from, and stays at the site.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from pydicom.uid import generate_uid
from pydicom.valuerep import DA, TM

import fcl
from fcl.importing.reading import lenient, read_dicom

from .dicom_source import DicomRecords, Source
from .segments import Codes, Segment, segments_of

logger = logging.getLogger(__name__)
logging.getLogger("highdicom").setLevel(logging.WARNING)  # else it logs the images' UIDs

# May be empty but not absent; archives of research data lack some.
_MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
)
_MOMENTS = {"DA": DA, "TM": TM}
_SERIES_OFFSET = 1000  # so that the new series is found beside its images in a list sorted by number
_NOTICE = "Research only, not for clinical use"


def write_segmentation(
    label_map: np.ndarray, source: Source, segments: Sequence[Segment], path: Path, made_by: str = "unknown"
) -> None:
    """Write ``path``, one binary segment for each structure; slices without any are left out.

    Args:
        label_map: (X, Y, D): column, row and slice of the images, as :mod:`fcl.importing.voxels` has them.
        source: the images.
        segments: structures; values of the label map that none has are background.
        path: file to write; its folder is made.
        made_by: which weights, for the header.

    Raises:
        ValueError: when label map and images differ in shape.
    """
    with lenient():
        images = [read_dicom(file) for file in source.images]
        _check_shape(images, label_map)
        _complete(images[0])
        _share_frame_of_reference(images, tell=source.phase == 0)
        number_of = np.zeros(256, np.uint8)
        for number, segment in enumerate(segments, 1):
            number_of[segment.value] = number
        frames = np.ascontiguousarray(number_of[label_map.transpose(2, 1, 0)])
        made = hd.seg.Segmentation(
            source_images=images,
            pixel_array=frames,
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[segment.describe(number) for number, segment in enumerate(segments, 1)],
            series_instance_uid=source.series,
            series_number=int(images[0].get("SeriesNumber") or 0) + _SERIES_OFFSET,
            sop_instance_uid=generate_uid(),
            instance_number=source.phase + 1,
            manufacturer="fcl",
            manufacturer_model_name="Federated contrastive learning for volumetric segmentation",
            software_versions=fcl.__version__,
            device_serial_number=made_by,
            content_label="FCL",
            content_description=_NOTICE,
            series_description=f"fcl segmentation. {_NOTICE}",
            # Slices that hold nothing are left out, unless none holds anything: a file without frames is no DICOM.
            omit_empty_frames=bool(frames.any()),
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        made.save_as(path)


def _check_shape(images: Sequence[pydicom.Dataset], label_map: np.ndarray) -> None:
    shape = (int(images[0].Columns), int(images[0].Rows), len(images))
    if label_map.shape != shape:
        raise ValueError(f"the images have shape {shape}, the label map made for them {label_map.shape}")


def _complete(image: pydicom.Dataset) -> None:
    """Empty what is absent, and dates that are none: anonymisers write day 0 of month 0."""
    for tag in _MAY_BE_EMPTY:
        if tag not in image:
            setattr(image, tag, None)
    for element in image:
        kind = _MOMENTS.get(element.VR)
        if kind is not None:
            try:
                kind(element.value)
            except ValueError:
                element.value = None


def _share_frame_of_reference(images: Sequence[pydicom.Dataset], tell: bool) -> None:
    """One series has one frame of reference; some anonymisers give each image another."""
    frames = {image.FrameOfReferenceUID for image in images}
    if len(frames) > 1:
        if tell:
            logger.warning("a series names %d frames of reference; that of its first slice is used", len(frames))
        for image in images:
            image.FrameOfReferenceUID = images[0].FrameOfReferenceUID


class WriteSegmentationd(MapTransform):
    """Postprocessing step that writes ``<output_dir>/<volume>.dcm`` and passes the data on.

    Args:
        keys: label maps (1, H, W, D) on the native grid.
        output_dir: folder for the files.
        records: the volumes and their images.
        labels: structure to value.
        segments: codes of structures, see :func:`fcl.exporting.segments.segments_of`.
        weights: file of the network; the first digits of its SHA-256 go into the header.
        name_key: the volume's name.

    Raises:
        ValueError: when a structure has no codes.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str | Path,
        records: DicomRecords,
        labels: Mapping[str, int],
        segments: Codes,
        weights: str | Path | None = None,
        name_key: str = "volume",
    ) -> None:
        super().__init__(keys)
        self.output_dir = Path(output_dir)
        self.records = records
        self.segments = segments_of(labels, segments)
        self.name_key = name_key
        self.made_by = hashlib.sha256(Path(weights).read_bytes()).hexdigest()[:16] if weights else "unknown"

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            label_map = torch.as_tensor(d[key])[0].cpu().numpy().astype(np.uint8)
            volume = d[self.name_key]
            path = self.output_dir / f"{volume}.dcm"
            write_segmentation(label_map, self.records.source(volume), self.segments, path, self.made_by)
        return d
