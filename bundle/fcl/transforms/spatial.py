"""Random crops, flips, rotations, scalings, shears, shifts and elastic deformations of a batch, by one resampling.

Letters: B batch, C image channels, n spatial dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from fcl.transforms.affine import rotation, shearing
from fcl.transforms.bspline import control_points, evaluate, largest_magnitude
from fcl.transforms.ranges import (
    Range,
    between,
    between_factors,
    factor_range,
    magnitude_range,
    probability,
    symmetric_range,
)

_MODES = ("bilinear", "bicubic")
_PADDINGS = ("zeros", "border", "reflection")


class BatchRandSpatial:
    """Moves every sample of a batch in its own way; image and label stay aligned.

    In 2-D a batch of slabs (B, C, H, W, D) is moved in-plane: all slices of a sample alike, none mixed with its
    neighbours. Where slices are thick that is the motion wanted: turned out of its plane or bent along the last axis, a
    slab would show content between slices, 5 to 10 mm apart, that nobody measured.

    The defaults change nothing: name in the config what is wanted. All numbers are drawn at once and whatever the
    outcome, so a generator in the same state gives the same result, with or without a label.

    Args:
        spatial_dims: axes that move, 2 or 3.
        prob: of rotation, scaling, shear and shift (together), per sample.
        rotate_range: radians, ``r`` for (-r, r) or (low, high); in 3-D also one of these for each axis.
        scale_range: factors, even in the logarithm; 2 shows structures twice as large.
        shear_range: as in MONAI's ``RandAffine``, for every pair of axes.
        translate_range: voxels, ``r`` for (-r, r) or (low, high), for every axis.
        flip_prob: of turning an axis round; one for all axes or one for each.
        crop_prob: of cutting out a part and enlarging it to the full size.
        crop_range: side of that part as a share of the image's, within 0..1; its place is uniform.
        elastic_prob: of a smooth random deformation.
        elastic_spacing: voxels between the control points of its B-spline.
        elastic_magnitude: voxels that a control point moves at most along an axis, ``m`` for (0, m) or (low, high),
            drawn per sample; of the result, and bounded so that anatomy cannot fold.
        mode: interpolation of the image, ``"bilinear"`` (in 3-D trilinear) or, in 2-D, ``"bicubic"``. Labels: nearest.
        padding_mode: outside of the image: ``"zeros"`` (labels: background), ``"border"`` or ``"reflection"``.

    Raises:
        ValueError: for values out of range.
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        prob: float = 1.0,
        rotate_range: Range | Sequence[Range] = 0.0,
        scale_range: Sequence[float] = (1.0, 1.0),
        shear_range: Range = 0.0,
        translate_range: Range = 0.0,
        flip_prob: float | Sequence[float] = 0.0,
        crop_prob: float = 0.0,
        crop_range: Sequence[float] = (0.6, 1.0),
        elastic_prob: float = 0.0,
        elastic_spacing: float = 24.0,
        elastic_magnitude: Range = (0.0, 8.0),
        mode: str = "bilinear",
        padding_mode: str = "zeros",
    ) -> None:
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}")
        if mode not in _MODES or (mode == "bicubic" and spatial_dims == 3):
            raise ValueError(f'mode must be "bilinear" or, in 2-D, "bicubic"; got {mode!r} in {spatial_dims}-D')
        if padding_mode not in _PADDINGS:
            raise ValueError(f"padding_mode must be one of {_PADDINGS}, got {padding_mode!r}")
        self.spatial_dims = spatial_dims
        self.rotate_ranges = _rotate_ranges(rotate_range, spatial_dims)
        self.scale_range = factor_range(scale_range, "scale_range")
        self.shear_range = symmetric_range(shear_range, "shear_range")
        self.translate_range = symmetric_range(translate_range, "translate_range")
        still = {*self.rotate_ranges, self.shear_range, self.translate_range} == {(0.0, 0.0)}
        # What cannot move is not resampled, which would round.
        self.prob = 0.0 if still and self.scale_range == (1.0, 1.0) else probability(prob, "prob")
        flips = [flip_prob] * spatial_dims if isinstance(flip_prob, int | float) else list(flip_prob)
        if len(flips) != spatial_dims:
            raise ValueError(f"flip_prob must be one number or {spatial_dims}, got {flip_prob}")
        self.flip_probs = tuple(probability(each, "flip_prob") for each in flips)
        self.crop_prob = probability(crop_prob, "crop_prob")
        self.crop_range = factor_range(crop_range, "crop_range")
        if self.crop_range[1] > 1.0:
            raise ValueError(f"crop_range is a share of the image's side, so at most 1; got {crop_range}")
        self.elastic_prob = probability(elastic_prob, "elastic_prob")
        self.elastic_spacing = float(elastic_spacing)
        self.elastic_magnitude = magnitude_range(elastic_magnitude, "elastic_magnitude")
        if not self.elastic_spacing >= 1.0:
            raise ValueError(f"elastic_spacing must be at least 1 voxel, got {elastic_spacing}")
        limit = largest_magnitude(spatial_dims, self.elastic_spacing)
        if self.elastic_prob > 0.0 and self.elastic_magnitude[1] > limit:
            raise ValueError(
                f"elastic_magnitude {elastic_magnitude} lets the image fold: with elastic_spacing {elastic_spacing} it "
                f"may be at most {limit:.2f} voxels"
            )
        self.mode = mode
        self.padding_mode = padding_mode

    @torch.no_grad()
    def __call__(
        self, image: Tensor, label: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The moved batch. Samples that nothing was drawn for come back bit for bit.

        Args:
            image: floating point.
            label: class indices; its dtype stays.
            generator: on the image's device; the device's own by default.

        Shape:
            image: (B, C, H, W[, D]); label: (B, 1, H, W[, D]).
        """
        axes = {2: (4, 5), 3: (5,)}[self.spatial_dims]
        if image.ndim not in axes or not image.is_floating_point():
            raise ValueError(
                f"expected a floating-point image with {' or '.join(map(str, axes))} axes, "
                f"got {image.dtype} of shape {tuple(image.shape)}"
            )
        if label is not None and (label.ndim != image.ndim or label.shape[2:] != image.shape[2:]):
            raise ValueError(f"label of shape {tuple(label.shape)} does not fit an image of {tuple(image.shape)}")
        grid, moved = self._grid(image, generator)
        in_plane = image.ndim > self.spatial_dims + 2

        def resample(source: Tensor, mode: str) -> Tensor:
            # A slab's slices become channels, which one grid moves alike.
            flat = source.movedim(-1, 1).flatten(1, 2) if in_plane else source
            # In float32: the coordinates of a half-precision grid would be off by a good part of a voxel.
            warped = functional.grid_sample(flat.float(), grid, mode, self.padding_mode, align_corners=False)
            warped = torch.where(moved.view(-1, *[1] * (flat.ndim - 1)), warped.to(source.dtype), flat)
            return warped.unflatten(1, (source.shape[-1], -1)).movedim(1, -1).contiguous() if in_plane else warped

        return resample(image, self.mode), None if label is None else resample(label, "nearest")

    def _grid(self, image: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Where every voxel comes from, (B, H, W[, D], n) for grid_sample, and (B,) whether a sample moves at all."""
        batch, dims = len(image), self.spatial_dims
        size = tuple(image.shape[2 : 2 + dims])
        angles, shears = len(self.rotate_ranges), dims * (dims - 1)
        columns = [1, angles, 1, shears, dims, dims, 1, 1, dims, 1, 1]
        drawn = torch.rand(batch, sum(columns), generator=generator, device=image.device).split(columns, dim=1)
        gate, turn, zoom, shear, shift, flip, crop_gate, crop_side, crop_place, elastic_gate, strength = drawn

        chosen = (gate < self.prob).float()
        angle = torch.stack([between(turn[:, i], bounds) for i, bounds in enumerate(self.rotate_ranges)], dim=1)
        # Multiplying by the 0/1 gate turns what was not chosen into the identity: no angle, factor 1, no shift.
        scale = between_factors(zoom, self.scale_range) ** chosen
        matrix = rotation(angle * chosen) @ shearing(between(shear, self.shear_range) * chosen, dims)
        mirrored = flip < torch.tensor(self.flip_probs, device=image.device)
        matrix = matrix * (torch.where(mirrored, -1.0, 1.0) / scale)[:, None, :]

        cropped = crop_gate < self.crop_prob
        side = torch.where(cropped, between(crop_side, self.crop_range), 1.0)
        # Up to the outermost voxels' centres: half a voxel further, the padding would shine in.
        room = (1.0 - side) * (torch.tensor(size, device=image.device) - 1) / 2
        offset = (2.0 * crop_place - 1.0) * room - between(shift, self.translate_range) * chosen

        bent = elastic_gate < self.elastic_prob
        points = control_points(size, self.elastic_spacing, image.device).expand(batch, *[-1] * (dims + 1))
        if self.elastic_prob > 0.0:
            bend = torch.rand(points.shape, generator=generator, device=image.device) * 2.0 - 1.0
            points = points + bend * (between(strength, self.elastic_magnitude) * bent).view(-1, *[1] * (dims + 1))
        # Bent first and mapped then, so that the bound against folding holds whatever the map shrinks.
        places = (points.flatten(1, -2) * side[:, :, None] + offset[:, None, :]) @ matrix.transpose(1, 2)
        # grid_sample without align_corners counts half images from the centre, and axes from the innermost.
        places = (places * 2.0 / torch.tensor(size, device=image.device)).flip(-1).view(points.shape)
        grid = evaluate(places, size, self.elastic_spacing)
        moved = (chosen > 0) | mirrored.any(dim=1, keepdim=True) | cropped | bent
        return grid, moved[:, 0]


def _rotate_ranges(value: Range | Sequence[Range], dims: int) -> tuple[tuple[float, float], ...]:
    if dims == 2:
        return (symmetric_range(value, "rotate_range"),)  # type: ignore[arg-type]
    if not isinstance(value, int | float) and len(value) == 3:
        return tuple(symmetric_range(each, "rotate_range") for each in value)
    return (symmetric_range(value, "rotate_range"),) * 3  # type: ignore[arg-type]
