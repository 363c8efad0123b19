from __future__ import annotations

import math

import pytest
import torch
from monai.transforms import Affine

from fcl.transforms import BatchRandSpatial

IMAGE = torch.rand(3, 2, 12, 12, generator=torch.Generator().manual_seed(0))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def disc(size: int = 48) -> torch.Tensor:
    """Two labelled blobs off the centre, (1, 1, size, size)."""
    axis = torch.arange(size)
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    left = (rows - 0.4 * size) ** 2 + (columns - 0.35 * size) ** 2 < (0.15 * size) ** 2
    right = (rows - 0.55 * size) ** 2 + (columns - 0.7 * size) ** 2 < (0.1 * size) ** 2
    return (left.long() + 2 * right.long())[None, None]


@pytest.mark.parametrize("shape", [(3, 2, 9, 7), (2, 1, 5, 6, 4)])
def test_defaults_change_nothing(shape):
    image = torch.rand(shape, generator=generator())
    label = torch.randint(0, 4, (shape[0], 1, *shape[2:]), generator=generator())
    moved, moved_label = BatchRandSpatial(spatial_dims=len(shape) - 2)(image, label)
    assert torch.equal(moved, image)
    assert torch.equal(moved_label, label)


@pytest.mark.parametrize(("angle", "quarters"), [(math.pi / 2, -1), (-math.pi / 2, 1), (math.pi, 2)])
def test_quarter_turns_equal_rot90(angle, quarters):
    moved, _ = BatchRandSpatial(rotate_range=(angle, angle))(IMAGE)
    torch.testing.assert_close(moved, torch.rot90(IMAGE, quarters, (2, 3)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("dims", "probs", "axes"),
    [(2, 1.0, (2, 3)), (2, [1, 0], (2,)), (2, [0, 1], (3,)), (3, [0, 1, 0], (3,)), (3, 1.0, (2, 3, 4))],
)
def test_flips_equal_flip(dims, probs, axes):
    image = torch.rand(2, 1, *(6, 7, 5)[:dims], generator=generator())
    moved, _ = BatchRandSpatial(spatial_dims=dims, flip_prob=probs)(image)
    torch.testing.assert_close(moved, torch.flip(image, axes), atol=1e-5, rtol=0)


def test_shift_moves_content_by_voxels_and_fills_with_zeros():
    moved, _ = BatchRandSpatial(translate_range=(2.0, 2.0))(IMAGE)
    expected = torch.zeros_like(IMAGE)
    expected[:, :, 2:, 2:] = IMAGE[:, :, :-2, :-2]
    torch.testing.assert_close(moved, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("factor", "share"), [(2.0, 4.0), (0.5, 0.25)])
def test_scale_enlarges_structures(factor, share):
    label = torch.zeros(1, 1, 40, 40, dtype=torch.int64)
    label[:, :, 12:28, 14:26] = 1
    _, moved = BatchRandSpatial(scale_range=(factor, factor))(label.float(), label)
    assert moved.sum() / label.sum() == pytest.approx(share)


@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
@pytest.mark.parametrize(
    ("size", "angles", "factor", "shear", "shift"),
    [
        ((16, 16), [0.4], 1.0, 0.0, 0.0),
        ((16, 11), [0.4], 1.3, 0.1, 2.0),
        ((9, 20), [-2.5], 0.7, -0.2, -1.5),
        ((9, 12, 7), [0.3, -0.2, 0.9], 1.2, 0.1, 1.0),
    ],
)
def test_all_together_equal_monais_affine(size, angles, factor, shear, shift, padding_mode):
    dims = len(size)
    image = torch.rand(2, 2, *size, generator=generator())
    ours = BatchRandSpatial(
        spatial_dims=dims,
        rotate_range=[(angle, angle) for angle in angles] if dims == 3 else (angles[0], angles[0]),
        scale_range=(factor, factor),
        shear_range=(shear, shear),
        translate_range=(shift, shift),
        padding_mode=padding_mode,
    )
    # MONAI's numbers describe where voxels come from, so factors and shifts are inverse, and the shift comes unscaled.
    theirs = Affine(
        rotate_params=angles,
        shear_params=[shear] * (dims * (dims - 1)),
        translate_params=[-shift / factor] * dims,
        scale_params=[1 / factor] * dims,
        padding_mode=padding_mode,
        image_only=True,
    )
    moved, _ = ours(image)
    for sample in range(2):
        torch.testing.assert_close(moved[sample], theirs(image[sample]).as_tensor(), atol=2e-4, rtol=0)


def test_crop_enlarges_a_part_that_lies_inside():
    rows = torch.arange(20.0).view(1, 1, 20, 1).expand(64, 1, 20, 20)
    moved, _ = BatchRandSpatial(crop_prob=1.0, crop_range=(0.5, 0.5), padding_mode="border")(rows, None, generator())
    steps = moved.diff(dim=2)[:, :, 1:-1]
    torch.testing.assert_close(steps, torch.full_like(steps, 0.5), atol=1e-4, rtol=0)
    first = moved[:, 0, 0, 0]
    assert first.min() < 1.0
    assert 8.0 < first.max() <= 10.0
    ones, _ = BatchRandSpatial(crop_prob=1.0, crop_range=(0.3, 0.9))(torch.ones(64, 1, 20, 20), None, generator())
    torch.testing.assert_close(ones, torch.ones_like(ones))  # nothing from outside of the image


@pytest.mark.parametrize(("dims", "size"), [(2, (40, 30)), (3, (12, 16, 20))])
def test_elastic_moves_voxels_smoothly_and_at_most_by_its_magnitude(dims, size):
    position = torch.arange(float(size[0])).view(1, 1, -1, *[1] * (dims - 1)).expand(16, 1, *size)
    transform = BatchRandSpatial(
        spatial_dims=dims, elastic_prob=1.0, elastic_spacing=10, elastic_magnitude=(4.0, 4.0), padding_mode="border"
    )
    moved, _ = transform(position, None, generator())
    shift = (moved - position).flatten(1)
    assert shift.abs().max() <= 4.0 + 1e-3
    assert (shift.abs().amax(dim=1) > 0.5).all()
    assert (moved.diff(dim=2) >= -1e-3).all()  # order is kept: nothing folds


def test_elastic_bends_before_the_map():
    """A crop to a quarter shows the same bending, of a quarter of the image."""
    size, fixed = (24, 24), {"elastic_prob": 1.0, "elastic_spacing": 8.0, "elastic_magnitude": (3.0, 3.0)}
    columns = torch.arange(24.0).expand(1, 1, *size)
    bent, _ = BatchRandSpatial(**fixed, padding_mode="border")(columns, None, generator())
    shrunk, _ = BatchRandSpatial(**fixed, scale_range=(4.0, 4.0))(columns, None, generator())
    inner = (..., slice(4, -4), slice(4, -4))
    torch.testing.assert_close((shrunk - 11.5)[inner], (bent - 11.5)[inner] / 4, atol=1e-3, rtol=0)


def test_image_and_label_stay_aligned():
    label = disc().expand(16, -1, -1, -1)
    transform = BatchRandSpatial(
        rotate_range=math.pi,
        scale_range=(0.8, 1.25),
        shear_range=0.1,
        translate_range=4,
        flip_prob=0.5,
        crop_prob=0.5,
        elastic_prob=0.5,
        elastic_magnitude=6,
    )
    image = torch.cat([(label == index).float() for index in range(3)], dim=1)
    moved, moved_label = transform(image, label, generator())
    assert moved_label.dtype == torch.int64
    assert set(moved_label.unique().tolist()) == {0, 1, 2}
    for index in (1, 2):
        theirs, ours = moved[:, index] > 0.5, moved_label[:, 0] == index
        dice = 2 * (theirs & ours).sum() / (theirs.sum() + ours.sum())
        assert dice > 0.97


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_label_keeps_dtype_and_marker_of_unlabelled(dtype):
    label = torch.full((2, 1, 8, 8), 255).to(dtype)
    _, moved = BatchRandSpatial(rotate_range=(0.3, 0.3), padding_mode="border")(torch.rand(2, 1, 8, 8), label)
    assert moved.dtype == dtype
    assert (moved == 255).all()


FULL = {
    "prob": 0.5,
    "rotate_range": 1.0,
    "scale_range": (0.8, 1.2),
    "flip_prob": 0.3,
    "crop_prob": 0.3,
    "elastic_prob": 0.4,
    "elastic_magnitude": 4.0,
}


def test_one_seed_gives_one_result_with_or_without_a_label():
    transform = BatchRandSpatial(**FULL)
    image, label = torch.rand(8, 1, 16, 16), torch.randint(0, 4, (8, 1, 16, 16))
    first, first_label = transform(image, label, generator(3))
    again, again_label = transform(image, label, generator(3))
    assert torch.equal(first, again)
    assert torch.equal(first_label, again_label)
    assert torch.equal(first, transform(image, None, generator(3))[0])
    assert not torch.equal(first, transform(image, None, generator(4))[0])


def test_without_a_generator_the_global_one_is_drawn_from():
    transform, image = BatchRandSpatial(**FULL), torch.rand(8, 1, 16, 16)
    torch.manual_seed(5)
    first, _ = transform(image)
    torch.manual_seed(5)
    assert torch.equal(first, transform(image)[0])


@pytest.mark.parametrize(
    "argument",
    [{"rotate_range": 1.0, "prob": 0.3}, {"flip_prob": [0.3, 0.0]}, {"crop_prob": 0.3}, {"elastic_prob": 0.3}],
)
def test_probabilities_hold_per_sample(argument):
    image = torch.rand(2000, 1, 4, 4, generator=generator())
    moved, _ = BatchRandSpatial(**argument)(image, None, generator())
    changed = (moved != image).flatten(1).any(dim=1).float().mean()
    assert float(changed) == pytest.approx(0.3, abs=0.04)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_come_back_as_they_came(dtype):
    image = IMAGE.to(dtype)
    moved, _ = BatchRandSpatial(rotate_range=(math.pi / 2, math.pi / 2))(image)
    assert moved.dtype == dtype
    torch.testing.assert_close(moved, torch.rot90(image, -1, (2, 3)), atol=1e-2, rtol=0)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_slab_moves_in_its_plane_slice_by_slice_alike(channels):
    slab = torch.rand(6, channels, 14, 12, 5, generator=generator(1))
    label = torch.randint(0, 4, (6, 1, 14, 12, 5), generator=generator(2))
    transform = BatchRandSpatial(**FULL)
    moved, moved_label = transform(slab, label, generator())
    assert moved.shape == slab.shape
    assert moved_label.dtype == label.dtype
    assert not torch.equal(moved, slab)
    for z in range(5):
        alone, alone_label = transform(slab[..., z], label[..., z], generator())
        torch.testing.assert_close(moved[..., z], alone, atol=1e-6, rtol=0)
        assert torch.equal(moved_label[..., z], alone_label)


def test_the_input_is_left_alone_and_nothing_is_recorded_for_gradients():
    image = IMAGE.clone().requires_grad_()
    moved, _ = BatchRandSpatial(**FULL)(image, None, generator())
    assert not moved.requires_grad
    assert torch.equal(image.detach(), IMAGE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spatial_dims": 4}, "spatial_dims must be 2 or 3, got 4"),
        ({"prob": 1.1, "rotate_range": 1}, "prob is a probability"),
        ({"flip_prob": [0.5]}, r"one number or 2, got \[0.5\]"),
        ({"flip_prob": 2}, "flip_prob is a probability"),
        ({"scale_range": (-0.1, 0.1)}, "scale_range holds factors"),
        ({"crop_range": (0.5, 1.5)}, "at most 1"),
        ({"mode": "nearest"}, "got 'nearest' in 2-D"),
        ({"mode": "bicubic", "spatial_dims": 3}, "got 'bicubic' in 3-D"),
        ({"padding_mode": "wrap"}, "got 'wrap'"),
        ({"elastic_spacing": 0}, "at least 1 voxel"),
        ({"elastic_prob": 0.1, "elastic_spacing": 10, "elastic_magnitude": 8}, "at most 4.89 voxels"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        BatchRandSpatial(**arguments)


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        (torch.rand(1, 4, 4), None, "4 or 5 axes"),
        (torch.zeros(1, 1, 4, 4, dtype=torch.int64), None, "floating-point"),
        (torch.rand(1, 1, 4, 4), torch.zeros(1, 4, 4), "does not fit"),
        (torch.rand(1, 1, 4, 4), torch.zeros(1, 1, 5, 4), "does not fit"),
    ],
)
def test_bad_batches_are_refused(image, label, message):
    with pytest.raises(ValueError, match=message):
        BatchRandSpatial(rotate_range=1)(image, label)
