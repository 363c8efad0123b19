from __future__ import annotations

import sys

import pytest

from flare_app.memory import peak_mib, reset_peak


def test_peak_counts_what_was_held_and_freed() -> None:
    before = peak_mib()
    block = bytearray(200 * 2**20)
    del block
    assert peak_mib() >= before
    assert peak_mib() > 200


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can reset the high-water mark")
def test_reset_forgets_an_earlier_peak() -> None:
    block = bytearray(b"\1" * (300 * 2**20))
    del block
    high = peak_mib()
    reset_peak()
    assert peak_mib() < high - 200
