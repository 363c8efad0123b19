from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread

from fcl.evaluation.side_by_side import draw_side_by_side, main


def volume(path: Path, data: np.ndarray) -> str:
    nib.save(nib.Nifti1Image(data, np.diag([1.5, 1.5, 8.0, 1.0])), path)
    return str(path)


def test_a_column_for_the_image_the_truth_and_each_prediction(tmp_path: Path) -> None:
    truth = np.zeros((30, 40, 6), dtype=np.uint8)
    truth[10:20, 10:20, 1:5] = 1
    noise = np.random.default_rng(0).normal(size=truth.shape).astype(np.float32)
    files = ["--image", volume(tmp_path / "a.nii.gz", noise), "--truth", volume(tmp_path / "b.nii.gz", truth)]
    same, empty = (volume(tmp_path / f"{n}.nii.gz", truth * n) for n in (1, 0))
    for name, last in (("empty", empty), ("equal", same)):
        out = str(tmp_path / f"{name}.png")
        assert main([f"x={same}", f"y={last}", *files, "--label", "lv=1", "--out", out]) == 0
    differing, equal = (imread(tmp_path / f"{name}.png") for name in ("empty", "equal"))
    columns = np.array_split(np.arange(equal.shape[1]), 4)
    assert np.isin(np.flatnonzero((differing != equal).any(axis=(0, 2))), columns[3]).all()
    assert (differing != equal).any()
    # Each column has its heading.
    assert all((equal[:20, column, 0] < 0.5).any() for column in columns)


def test_nifti_2_is_drawn_as_nifti_1_is(tmp_path: Path) -> None:
    truth = np.zeros((8, 8, 4), dtype=np.uint8)
    truth[2:6, 2:6, 1:3] = 1
    pictures = []
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        file = tmp_path / f"{kind.__name__}.nii"
        nib.save(kind(truth, np.diag([1.5, 1.5, 8.0, 1.0])), file)
        draw_side_by_side(file, {"truth": file}, {"lv": 1}, tmp_path / "out.png")
        pictures.append((tmp_path / "out.png").read_bytes())
    assert pictures[0] == pictures[1]


def test_a_map_on_another_grid_is_refused(tmp_path: Path) -> None:
    image, other = (volume(tmp_path / f"{n}.nii.gz", np.zeros((4, 4, n), np.uint8)) for n in (2, 3))
    with pytest.raises(ValueError, match=r"has shape \(4, 4, 2\), but .*3.nii.gz has shape \(4, 4, 3\)"):
        draw_side_by_side(Path(image), {"truth": Path(other)}, {"lv": 1}, tmp_path / "out.png")
