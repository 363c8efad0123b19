"""The table of methods from logs of rounds."""

from __future__ import annotations

import pytest

from tests.benchmarks.methods import ON_AN_ENCODER, as_markdown, shares_features, summarise

MIB = 2**20


def line(loss, knn, seconds, features=0):
    site = {
        "bytes_weights_up": 2 * MIB,
        "bytes_weights_down": 3 * MIB,
        "bytes_features_up": features,
        "bytes_features_down": 0,
        "seconds": seconds,
    }
    return {
        "metrics": {"loss": loss, "spread": 0.5},
        "validation": {"partition_knn": knn},
        "sites": {"a": site, "b": site},
    }


LAST = {"metrics": {}, "validation": {"partition_knn": 0.8}, "sites": {}}


def test_a_row_is_the_mean_over_sites_and_rounds():
    row = summarise("x", [line(4.0, 0.3, 100.0, MIB), line(3.0, 0.5, 10.0), line(2.0, 0.6, 20.0), LAST])
    assert (row.up, row.down) == pytest.approx((2 + 1 / 3, 3))
    assert row.features == pytest.approx(1 / 3)
    assert row.seconds == 15.0  # the first round also starts everything
    assert row.loss == (4.0, 2.0)
    assert row.knn == (0.3, 0.8)
    assert "| x | 2.33 / 3.00 | 0.33 | 15.0 | 4.000 → 2.000 | 0.50 → 0.50 | 0.30 → 0.80 |" in as_markdown([row])


def test_what_went_wrong_stands_out():
    collapsed = line(5.0, 0.2, 1.0)
    collapsed["metrics"] = {"loss": 5.0, "spread": 0.01}
    row = summarise("x", [line(4.0, 0.3, 1.0), collapsed])
    assert "| **4.000 → 5.000** | **0.50 → 0.01** |" in as_markdown([row])


def test_a_run_without_a_round_is_refused():
    with pytest.raises(ValueError, match="the run of x has no trained round"):
        summarise("x", [LAST])


def test_it_knows_which_overlays_share_features():
    assert [name for name in ("fcl", "fedca", "byol", "random") if shares_features(name)] == ["fcl", "fedca"]
    assert not any(shares_features(name) for name in ON_AN_ENCODER)
