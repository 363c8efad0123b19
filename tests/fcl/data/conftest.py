"""Tiny datasets in ACDC's layout, and preprocessing as the bundle's configs declare it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    ResizeWithPadOrCropd,
    ScaleIntensityRangePercentilesd,
    Spacingd,
)

from fcl.data import LoadFramed, OrientInPlaned

LPS = np.diag([-1.5, -1.5, 8.0, 1.0])
Writer = Callable[..., Path]


def write_nifti(file: Path, voxels: np.ndarray, affine: np.ndarray = LPS) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), file)
    return file


@pytest.fixture
def nifti() -> Writer:
    return write_nifti


@pytest.fixture
def acdc(tmp_path: Path) -> Callable[..., Path]:
    """Writes patients of two labelled frames (20 x 24 x 6 voxels), ED 1 and ES 3, with ``cine`` frames on demand."""

    def write(patients: int = 3, cine: int = 0, slices: int = 6) -> Path:
        root = tmp_path / "acdc"
        rng = np.random.default_rng(0)
        for number in range(1, patients + 1):
            name = f"patient{number:03d}"
            for frame in (1, 3):
                image = rng.integers(0, 1000, (20, 24, slices), dtype=np.int16)
                label = np.zeros((20, 24, slices), np.uint8)
                label[5:15, 6:18], label[7:12, 8:14], label[9:11, 10:12] = 1, 2, 3
                write_nifti(root / name / f"{name}_frame{frame:02d}.nii.gz", image)
                write_nifti(root / name / f"{name}_frame{frame:02d}_gt.nii.gz", label)
            (root / name / "Info.cfg").write_text("ED: 1\nES: 3\nGroup: NOR\nHeight: 170\n", encoding="utf-8")
            if cine:
                frames = rng.integers(0, 1000, (20, 24, slices, cine), dtype=np.int16)
                write_nifti(root / name / f"{name}_4d.nii.gz", frames)
        return root

    return write


@pytest.fixture
def preprocessing() -> Compose:
    both = ["image", "label"]
    return Compose(
        [
            LoadFramed(both, allow_missing_keys=True),
            EnsureChannelFirstd(both, allow_missing_keys=True),
            OrientInPlaned(both, allow_missing_keys=True),
            Spacingd(
                both, (2.0, 2.0, -1.0), mode=("bilinear", "nearest"), padding_mode="border", allow_missing_keys=True
            ),
            ScaleIntensityRangePercentilesd("image", 1, 99, 0.0, 1.0, clip=True),
            ResizeWithPadOrCropd(both, (16, 16, -1), allow_missing_keys=True),
        ]
    )


@pytest.fixture(scope="session")
def real_acdc() -> Path:
    """The real challenge data, where this machine has them."""
    default = Path(__file__).resolve().parents[4] / "shared" / "data" / "acdc"
    folder = Path(os.environ.get("FCL_ACDC_DIR", default))
    if not folder.is_dir():
        pytest.skip(f"needs the ACDC data: set FCL_ACDC_DIR (tried {folder})")
    return folder
