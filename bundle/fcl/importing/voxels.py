"""Pixels of a stack to a NIfTI volume that holds geometry and nothing else."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import nibabel as nib
import numpy as np
from pydicom.pixels import apply_rescale

from fcl.data.problems import DataProblems, Problem

from .reading import lenient, read_dicom
from .stacks import Stack


def read_voxels(stack: Stack) -> np.ndarray:
    """(X, Y, D, T) voxels with rescale slope and intercept applied; int16 where that loses nothing, else float32.

    Raises:
        DataProblems: pixel data that is damaged, or compressed in a way for which no decoder is installed.
    """
    voxels = np.zeros(stack.shape, np.float32)
    failed: dict[str, list[Path]] = defaultdict(list)
    for z, images in enumerate(stack.grid):
        for t, image in enumerate(images):
            try:
                voxels[..., z, t] = _pixels(image.file).T
            except ValueError as error:
                failed[str(error)].append(image.file)
    if failed:
        fix = "export it again uncompressed, or install decoders: pip install pylibjpeg[all]"
        what = "has {} images whose pixels cannot be read, first {}: {}"
        raise DataProblems(
            [Problem(stack.name, what.format(len(files), files[0].name, why), fix) for why, files in failed.items()]
        )
    whole = voxels.astype(np.int16) if np.abs(voxels).max() < 2**15 else voxels
    return whole if np.array_equal(whole, voxels) else voxels


def _pixels(file: Path) -> np.ndarray:
    """(rows, columns) with rescale applied."""
    coding = ""
    try:
        with lenient():
            dataset = read_dicom(file, pixels=True)
            syntax = dataset.file_meta.TransferSyntaxUID
            coding = f"{syntax.name}, " if syntax.is_compressed else ""
            return apply_rescale(dataset.pixel_array, dataset)
    except Exception as error:  # decoders raise what they like
        first_line = (str(error).splitlines() or [""])[0]
        raise ValueError(f"{coding}{type(error).__name__}: {first_line}") from error


def write_volume(voxels: np.ndarray, affine: np.ndarray, file: Path, phase_step_s: float | None = None) -> None:
    """Write a volume, (X, Y, D) or (X, Y, D, T); one phase is written as three axes.

    The header is made anew: affine, units, and the time step of a cine.
    """
    if voxels.ndim == 4 and voxels.shape[3] == 1:
        voxels = voxels[..., 0]
    image = nib.Nifti1Image(voxels, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm", "sec")
    if voxels.ndim == 4:
        image.header.set_zooms((*image.header.get_zooms()[:3], phase_step_s or 1.0))
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, file)
