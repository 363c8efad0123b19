from __future__ import annotations

import itertools

import pytest
import torch

from fcl.transforms.bspline import control_points, evaluate, largest_magnitude

SIZES = [((9, 14), 4.0), ((1, 7), 2.5), ((6, 5, 8), 3.0), ((16, 16), 16.0), ((33, 20), 1.0)]


def random_control(size, spacing, batch, seed):
    points = control_points(size, spacing)
    return torch.rand(batch, *points.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def bspline(u: float) -> list[float]:
    return [(1 - u) ** 3 / 6, (3 * u**3 - 6 * u**2 + 4) / 6, (-3 * u**3 + 3 * u**2 + 3 * u + 1) / 6, u**3 / 6]


@pytest.mark.parametrize(("size", "spacing"), [((5, 7), 3.0), ((3, 4, 5), 2.0)])
def test_values_equal_the_sum_over_64_or_16_control_points(size, spacing):
    dims = len(size)
    control = random_control(size, spacing, 2, 0)
    result = evaluate(control, size, spacing)
    for index in itertools.product(*map(range, size)):
        cells = [int(i / spacing) for i in index]
        weights = [bspline(i / spacing - cell) for i, cell in zip(index, cells, strict=True)]
        expected = torch.zeros(2, dims)
        for taps in itertools.product(range(4), repeat=dims):
            weight = 1.0
            for axis, tap in enumerate(taps):
                weight *= weights[axis][tap]
            place = tuple(cell + tap for cell, tap in zip(cells, taps, strict=True))
            expected += weight * control[(slice(None), *place)]
        torch.testing.assert_close(result[(slice(None), *index)], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("size", "spacing"), SIZES)
def test_control_points_in_their_places_leave_every_voxel_in_its_own(size, spacing):
    result = evaluate(control_points(size, spacing)[None], size, spacing)[0]
    axes = [torch.arange(length) - (length - 1) / 2 for length in size]
    torch.testing.assert_close(result, torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("size", "spacing"), SIZES)
def test_equal_control_points_give_equal_values(size, spacing):
    shift = torch.arange(1.0, len(size) + 1)
    control = shift.expand(1, *control_points(size, spacing).shape)
    result = evaluate(control, size, spacing)
    assert result.shape == (1, *size, len(size))
    torch.testing.assert_close(result, shift.expand_as(result))


@pytest.mark.parametrize(("size", "spacing"), SIZES)
def test_no_voxel_moves_further_than_the_control_points(size, spacing):
    assert evaluate(random_control(size, spacing, 3, 1), size, spacing).abs().max() <= 1.0 + 1e-6


def test_space_folds_beyond_the_largest_magnitude_only():
    size, spacing = (40, 40), 8.0
    # Control points that pull towards a line from both sides, and random corners of what is allowed.
    points = control_points(size, spacing).shape[:-1]
    rows = torch.arange(points[0])[:, None].expand(points)
    towards = torch.where(rows < 4, 1.0, -1.0)[None, ..., None] * torch.tensor([1.0, 0.0])
    random = random_control(size, spacing, 64, 0).sign()

    def smallest_jacobian(control: torch.Tensor) -> float:
        field = evaluate(control, size, spacing)
        along_rows = field.diff(dim=1)[:, :, :-1]
        along_columns = field.diff(dim=2)[:, :-1]
        determinant = (1 + along_rows[..., 0]) * (1 + along_columns[..., 1]) - along_rows[..., 1] * along_columns[
            ..., 0
        ]
        return float(determinant.min())

    limit = largest_magnitude(2, spacing)
    assert smallest_jacobian(limit * random) > 0
    assert smallest_jacobian(limit * towards) > 0
    assert smallest_jacobian(3 * limit * towards) < 0
