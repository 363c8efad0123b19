from __future__ import annotations

import pytest
import torch
from scipy import stats

from fcl.privacy import os_normal


def test_it_is_normal_with_the_standard_deviation_asked_for() -> None:
    drawn = os_normal((40, 500), 2.5)
    assert drawn.shape == (40, 500)
    assert drawn.dtype == torch.float64
    # Wrong once in a million runs.
    assert stats.kstest(drawn.flatten().numpy() / 2.5, "norm").pvalue > 1e-6
    assert float(drawn.std()) == pytest.approx(2.5, rel=0.04)


def test_seeds_do_not_repeat_it() -> None:
    torch.manual_seed(0)
    first = os_normal((8,), 1.0)
    torch.manual_seed(0)
    assert not torch.equal(first, os_normal((8,), 1.0))


@pytest.mark.parametrize("byte", [b"\x00", b"\xff"])
def test_extreme_entropy_gives_finite_noise(monkeypatch: pytest.MonkeyPatch, byte: bytes) -> None:
    monkeypatch.setattr("os.urandom", lambda count: byte * count)
    assert 8 < float(os_normal((1,), 1.0).abs()) < 9
