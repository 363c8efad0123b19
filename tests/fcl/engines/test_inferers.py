from __future__ import annotations

import pytest
import torch
from torch import nn

from fcl.engines import AutocastInferer, volume_inferer


@pytest.mark.parametrize(("dtype", "inside"), [(None, torch.float32), (torch.bfloat16, torch.bfloat16)])
def test_network_runs_in_the_dtype_and_returns_float32(dtype: torch.dtype | None, inside: torch.dtype) -> None:
    seen = []
    network = nn.Conv2d(1, 2, 3, padding=1)
    network.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    output = AutocastInferer(dtype)(torch.rand(2, 1, 8, 8), network)
    assert seen == [inside]
    assert output.dtype == torch.float32
    assert output.shape == (2, 2, 8, 8)


def test_volumes_go_through_slice_by_slice() -> None:
    network = nn.Conv2d(1, 2, 3, padding=1)
    volume = torch.rand(1, 1, 8, 8, 5)
    with torch.no_grad():
        output = AutocastInferer(None, volume_inferer([8, 8], slab_depth=None))(volume, network)
        expected = torch.stack([network(volume[..., z]) for z in range(5)], dim=-1)
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize(
    ("slices", "batches"),
    [(1, [1]), (32, [32]), (33, [17, 16]), (64, [32, 32]), (65, [22, 22, 21]), (97, [25, 25, 25, 22])],
)
def test_a_long_volume_goes_through_in_equal_batches(slices: int, batches: list[int]) -> None:
    shown = []

    def network(image: torch.Tensor) -> torch.Tensor:
        shown.append(len(image))
        return 2 * image

    volume = torch.rand(1, 1, 8, 8, slices)
    assert torch.equal(volume_inferer([8, 8], slab_depth=None)(volume, network), 2 * volume)
    assert shown == batches


@pytest.mark.parametrize("slices", [2, 5, 6, 11])
def test_the_slab_window_slides_through_volumes_of_any_depth(slices: int) -> None:
    windows = []

    def network(slab: torch.Tensor) -> torch.Tensor:
        windows.append(tuple(slab.shape[1:]))
        # What a slice becomes depends on it alone, so windows that overlap must agree, whatever their weights.
        return torch.cat([2 * slab, slab + 1], dim=1)

    volume = torch.rand(1, 1, 8, 8, slices)
    output = AutocastInferer(None, volume_inferer([8, 8], slab_depth=5))(volume, network)
    assert set(windows) == {(1, 8, 8, 5)}
    torch.testing.assert_close(output, torch.cat([2 * volume, volume + 1], dim=1))
