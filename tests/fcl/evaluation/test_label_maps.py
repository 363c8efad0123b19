from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from fcl.evaluation.label_maps import WriteLabelMapd, write_label_map


@pytest.fixture
def image(tmp_path: Path) -> Path:
    angle = 0.4
    affine = np.diag([1.3, 1.4, 8.0, 1.0])
    affine[:2, :2] = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ affine[:2, :2]
    affine[:3, 3] = (10, -20, 33.3)
    volume = nib.Nifti1Image(np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4), affine)
    volume.header.set_qform(affine, code=1)
    volume.header.set_sform(affine, code=2)
    volume.header.set_xyzt_units("mm", "sec")
    path = tmp_path / "image.nii.gz"
    nib.save(volume, path)
    return path


def test_geometry_is_the_images_own(image: Path, tmp_path: Path) -> None:
    label_map = np.random.default_rng(0).integers(0, 4, (6, 5, 4))
    write_label_map(label_map, image, tmp_path / "out" / "labels.nii.gz")
    source, written = nib.load(image), nib.load(tmp_path / "out" / "labels.nii.gz")
    np.testing.assert_array_equal(written.affine, source.affine)
    np.testing.assert_array_equal(np.asarray(written.dataobj), label_map)
    assert written.get_data_dtype() == np.uint8
    for field in ("qform_code", "sform_code", "xyzt_units"):
        assert written.header[field] == source.header[field]
    np.testing.assert_array_equal(written.header.get_zooms(), source.header.get_zooms())


@pytest.mark.parametrize(
    ("kind", "name", "written_as"),
    [
        (nib.Nifti2Image, "wide.nii", nib.Nifti2Image),
        (nib.Nifti2Pair, "wide.img", nib.Nifti2Image),
        (nib.Nifti1Pair, "pair.img", nib.Nifti1Image),
        (nib.MGHImage, "freesurfer.mgz", nib.Nifti1Image),
    ],
)
def test_other_kinds_of_image_keep_their_geometry(image: Path, tmp_path: Path, kind, name: str, written_as) -> None:
    source = kind.from_image(nib.load(image))
    nib.save(source, tmp_path / name)
    label_map = np.random.default_rng(0).integers(0, 4, (6, 5, 4))
    write_label_map(label_map, tmp_path / name, tmp_path / "labels.nii.gz")
    written = nib.load(tmp_path / "labels.nii.gz")
    assert type(written) is written_as
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(written.dataobj), label_map)
    np.testing.assert_allclose(written.affine, source.affine, atol=1e-5)
    np.testing.assert_allclose(written.header.get_zooms(), source.header.get_zooms(), rtol=1e-6)
    if kind is not nib.MGHImage:
        assert written.header["qform_code"] == source.header["qform_code"] == 1


def test_another_shape_is_refused(image: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\(6, 5, 4\).*\(6, 5, 3\)"):
        write_label_map(np.zeros((6, 5, 3)), image, tmp_path / "labels.nii.gz")


def test_image_is_never_replaced(image: Path) -> None:
    before = image.read_bytes()
    with pytest.raises(ValueError, match="--output_dir"):
        write_label_map(np.zeros((6, 5, 4)), image, image)
    assert image.read_bytes() == before


def test_transform_names_the_file_after_the_volume(image: Path, tmp_path: Path) -> None:
    item = {
        "image": MetaTensor(torch.zeros(1, 3, 3, 4), meta={"filename_or_obj": str(image)}),
        "pred": MetaTensor(torch.full((1, 6, 5, 4), 2.0)),
        "volume": "p1_ed",
    }
    assert WriteLabelMapd("pred", tmp_path / "out")(item)["pred"] is item["pred"]
    assert np.asarray(nib.load(tmp_path / "out" / "p1_ed.nii.gz").dataobj).tolist() == np.full((6, 5, 4), 2).tolist()
