from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fcl.evaluation.features import principal_plane, read_features, thin_out


def test_plane_has_the_directions_of_largest_variance() -> None:
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(200, 2)) * (3.0, 1.0)
    basis = np.linalg.qr(rng.normal(size=(6, 2)))[0]
    plane = principal_plane(hidden @ basis.T + 7.0)
    assert plane.mean(axis=0) == pytest.approx(0.0, abs=1e-9)
    assert plane.var(axis=0) == pytest.approx(np.linalg.eigvalsh(np.cov(hidden.T, bias=True))[::-1])


def test_pictures_repeat_whatever_the_sign_of_the_directions() -> None:
    points = np.random.default_rng(1).normal(size=(30, 4))
    np.testing.assert_allclose(principal_plane(points), principal_plane(points[::-1])[::-1], atol=1e-9)


def test_sites_are_told_apart(tmp_path: Path) -> None:
    for name, count in (("a", 3), ("b", 2)):
        np.savez(tmp_path / f"{name}.npz", features=np.full((count, 4), count), partition=np.arange(count))
    features, partition, site = read_features({name: tmp_path / f"{name}.npz" for name in "ab"})
    assert features.shape == (5, 4)
    assert partition.tolist() == [0, 1, 2, 0, 1]
    assert site.tolist() == [0, 0, 0, 1, 1]


def test_rows_are_thinned_evenly() -> None:
    assert thin_out(3, 10) == [0, 1, 2]
    assert thin_out(9, 3) == [0, 4, 8]
