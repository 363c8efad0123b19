from __future__ import annotations

import gc
import sys

import pytest

from flare_app.memory import keep_for_good, peak_mib, reset_peak


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


def test_later_collections_look_at_what_is_new_alone() -> None:
    old = [[1]]
    try:
        keep_for_good()
        new = [[1]]
        looked_at = {id(thing) for thing in gc.get_objects()}
        assert id(old) not in looked_at
        assert id(new) in looked_at
    finally:
        gc.unfreeze()
