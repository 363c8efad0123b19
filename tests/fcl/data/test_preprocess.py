from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, Orientationd, ResizeWithPadOrCropd
from scipy.spatial.transform import Rotation

from fcl.data import LoadFramed, OrientInPlaned, VolumeRecord, as_items, read_acdc
from fcl.data.preprocess import _nearest_axes


def volume(affine: np.ndarray) -> MetaTensor:
    return MetaTensor(torch.arange(4 * 5 * 3, dtype=torch.float32).reshape(1, 4, 5, 3), affine=affine)


@pytest.mark.parametrize("signs", [(1, 1), (1, -1), (-1, 1), (-1, -1)])
@pytest.mark.parametrize("swap", [False, True])
def test_turns_diagonal_affines_as_orientation_to_ras_does(signs, swap):
    affine = np.diag([signs[0] * 1.5, signs[1] * 1.2, 8.0, 1.0])
    if swap:
        affine = affine[:, [1, 0, 2, 3]]
    expected = Orientationd("image", axcodes="RAS", labels=None)({"image": volume(affine)})["image"]
    turned = OrientInPlaned("image")({"image": volume(affine)})["image"]
    assert torch.equal(turned, expected)
    assert torch.allclose(turned.affine, expected.affine)


@pytest.mark.parametrize("seed", range(12))
def test_oblique_stacks_keep_their_slice_axis_their_place_in_the_world_and_are_restored(seed):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.random(rng=np.random.default_rng(seed)).as_matrix() * [1.4, 1.4, 9.0]
    affine[:3, 3] = 10, -20, 30
    source = volume(affine)
    transform = OrientInPlaned("image")
    turned = transform({"image": source})["image"]
    assert turned.shape[-1] == 3
    assert np.allclose(turned.affine[:3, 2], affine[:3, 2])
    for place in np.ndindex(4, 5, 3):
        world = affine @ [*place, 1]
        there = np.rint(np.linalg.inv(turned.affine.numpy()) @ world).astype(int)[:3]
        assert turned[(0, *there)] == source[(0, *place)]
    restored = transform.inverse({"image": turned})["image"]
    assert torch.equal(restored, source)
    assert np.allclose(restored.affine, affine)
    assert restored.applied_operations == []


def rotated_in_plane(degrees: float, flips: tuple[int, int] = (-1, -1)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("z", degrees, degrees=True).as_matrix() * [flips[0] * 1.4, flips[1] * 1.4, 8.0]
    affine[:3, 3] = 90.3, 12.7, 3.2
    return affine


@pytest.mark.parametrize("flips", [(1, 1), (-1, -1), (-1, 1), (1, -1)])
@pytest.mark.parametrize("off", [-1e-6, 1e-6])
def test_between_two_axes_the_last_digit_of_an_affine_does_not_choose_the_turn(flips, off):
    exact, rounded = (
        OrientInPlaned("image")({"image": volume(rotated_in_plane(degrees, flips))})["image"]
        for degrees in (45, 45 + off)
    )
    assert torch.equal(exact, rounded)


@pytest.mark.parametrize("missing", [None, "image", "label"])
def test_image_and_label_of_one_grid_turn_together_and_are_restored(missing):
    # 0.02 degrees apart: too much for a tie, but no more than a header's rounding moves the corners of a small volume.
    source = {"image": volume(rotated_in_plane(44.99)), "label": volume(rotated_in_plane(45.01))}
    source.pop(missing, None)
    transform = OrientInPlaned(["image", "label"], allow_missing_keys=True)
    turned = transform(source)
    first = next(iter(turned.values()))
    for key, original in source.items():
        assert torch.equal(turned[key], first)
        assert torch.equal(transform.inverse({key: turned[key]})[key], original)


@pytest.mark.parametrize("seed", range(12))
def test_nearest_axes_are_those_of_nibabel(seed):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.random(rng=np.random.default_rng(seed)).as_matrix() * [1.4, 1.4, 9.0]
    assert np.array_equal(_nearest_axes(affine), nib.io_orientation(affine))


def test_orientation_refuses_what_has_no_affine():
    with pytest.raises(ValueError, match=r"got Tensor of shape \(1, 2, 2, 2\)"):
        OrientInPlaned("image")({"image": torch.zeros(1, 2, 2, 2)})


def test_frame_of_a_cine_file(tmp_path, nifti):
    frames = np.random.default_rng(0).integers(0, 99, (4, 5, 3, 6), dtype=np.int16)
    file = nifti(tmp_path / "c.nii.gz", frames)
    item = VolumeRecord(str(file), None, "p", "p_4d_t04", "cine", 4).as_item()
    loaded = LoadFramed(["image", "label"], allow_missing_keys=True)(item)["image"]
    assert loaded.dtype == torch.float32
    assert np.array_equal(loaded, frames[..., 4])
    assert np.allclose(loaded.affine, nib.load(file).affine)


def test_volume_without_label_gives_slices_along_the_last_axis(acdc, preprocessing):
    record = next(r for r in read_acdc(acdc(patients=1, cine=2)) if r.phase == "cine")
    item = preprocessing(record.as_item())
    assert item["image"].shape == (1, 16, 16, 6)
    assert item["image"].dtype == torch.float32
    assert item["image"].min() == 0
    assert item["image"].max() == 1
    assert "label" not in item


def test_label_is_restored_on_the_native_grid(acdc, preprocessing):
    record = read_acdc(acdc(patients=1))[0]
    uncropped = ResizeWithPadOrCropd(["image", "label"], (24, 24, -1))
    preprocessing = Compose([*preprocessing.transforms[:-1], uncropped])
    item = preprocessing(as_items([record])[0])
    item["prediction"] = MetaTensor(item["label"].clone(), meta=dict(item["image"].meta))
    item["prediction"].applied_operations = []
    inverted = Invertd("prediction", preprocessing, "image", nearest_interp=True, to_tensor=True)(item)["prediction"]
    native = nib.load(record.label).get_fdata()
    assert inverted.shape[1:] == native.shape
    assert np.mean(inverted[0].numpy() == native) > 0.97


def test_real_stacks_keep_their_slices_and_are_restored(real_acdc, preprocessing):
    larger = ResizeWithPadOrCropd(["image", "label"], (160, 160, -1))
    preprocessing = Compose([*preprocessing.transforms[:-1], larger])
    for record in [r for r in read_acdc(real_acdc) if r.volume in ("patient001_frame01", "patient090_frame04")]:
        native = nib.load(record.label)
        item = preprocessing(record.as_item())
        assert item["image"].shape == (1, 160, 160, native.shape[2])
        item["prediction"] = MetaTensor(item["label"].as_tensor(), meta=dict(item["image"].meta))
        restored = Invertd("prediction", preprocessing, "image", nearest_interp=True)(item)["prediction"]
        assert np.allclose(restored.affine, native.affine)
        for value in (1, 2, 3):
            ours, theirs = restored[0].numpy() == value, native.get_fdata() == value
            assert 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()) > 0.93


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_any_axis_can_count_slices(seed, slice_axis):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.random(rng=np.random.default_rng(seed)).as_matrix() * [1.4, 1.5, 1.6]
    source = volume(affine)
    transform = OrientInPlaned("image", slice_axis=slice_axis)
    turned = transform({"image": source})["image"]
    assert turned.shape[-1] == (4, 5, 3)[slice_axis]
    assert np.allclose(turned.affine[:3, 2], affine[:3, slice_axis])
    for place in np.ndindex(4, 5, 3):
        there = np.rint(np.linalg.inv(turned.affine.numpy()) @ affine @ [*place, 1]).astype(int)[:3]
        assert turned[(0, *there)] == source[(0, *place)]
    restored = transform.inverse({"image": turned})["image"]
    assert torch.equal(restored, source)
    assert np.allclose(restored.affine, affine)


def test_slice_axis_must_be_one_of_the_file():
    with pytest.raises(ValueError, match="slice_axis must be 0, 1 or 2"):
        OrientInPlaned("image", slice_axis=3)


def test_channel_of_an_image_and_the_label_that_has_none(tmp_path, nifti):
    channels = np.random.default_rng(0).integers(0, 99, (4, 5, 3, 2), dtype=np.int16)
    label = (channels[..., 0] > 50).astype(np.uint8)
    files = {"image": channels, "label": label}
    names = {key: str(nifti(tmp_path / f"{key}.nii.gz", voxels)) for key, voxels in files.items()}
    item = VolumeRecord(names["image"], names["label"], "p", "v", frame=1).as_item()
    loaded = LoadFramed(["image", "label"])(item)
    assert np.array_equal(loaded["image"], channels[..., 1])
    assert np.array_equal(loaded["label"], label)


def test_loading_nifti_says_nothing_of_readers_for_other_files(
    recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    LoadFramed(keys="image")
    assert [str(warning.message) for warning in recwarn] == []
    assert caplog.records == []
