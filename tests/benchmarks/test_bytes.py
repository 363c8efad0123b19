"""The table of bytes from logs of rounds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flare_app.job.__main__ import _parser
from tests.benchmarks.bytes import VARIANTS, as_markdown, last_dice, of_seeds, summarise

MIB = 2**20


def line(up, down, features=0, knn=None, metrics=True):
    site = {
        "bytes_weights_up": up * MIB,
        "bytes_weights_down": down * MIB,
        "bytes_features_up": features * MIB,
        "bytes_features_down": 2 * features * MIB,
    }
    return {
        "metrics": {"loss": 1.0} if metrics else {},
        "validation": {} if knn is None else {"partition_knn": knn},
        "sites": {"a": site, "b": site},
    }


RUN = [line(1, 4, 0.5, knn=0.3), line(1, 1, 0.5), line(0, 1, knn=0.8, metrics=False)]


def test_a_row_is_of_one_site_and_its_total_of_the_whole_training():
    row = summarise("x", RUN)
    assert (row.up, row.down) == pytest.approx((1.5, 3.5))
    assert row.total == pytest.approx(1.5 + 5 + 1.5 + 2 + 1)
    assert (row.knn, row.dice) == ((0.8,), ())


def test_shares_are_of_the_reference():
    rows = [summarise("fedavg", [line(11, 11)]), summarise("fcl-8", RUN)]
    assert "| fcl-8 | 1.50 / 3.50 | 11.0 | 50 % | 0.800 | – |" in as_markdown(rows)
    assert "| fcl-8 | 1.50 / 3.50 | 11.0 | – | 0.800 | – |" in as_markdown(rows[1:])


def test_dice_is_that_of_the_last_validation():
    assert last_dice([{"validation": {"mean_dice": 0.5}}, {"validation": {}}, {"validation": {"mean_dice": 0.7}}]) == (
        0.7,
    )
    assert last_dice([{"validation": {}}]) == ()


def test_seeds_give_mean_and_spread():
    rows = [replace(summarise("x", RUN), dice=(dice,)) for dice in (0.5, 0.7)]
    assert "| 0.800 ± 0.000 | 0.600 ± 0.141 |" in as_markdown([of_seeds(rows)])


def test_a_run_without_a_round_is_refused():
    with pytest.raises(ValueError, match="the run of x has no trained round"):
        summarise("x", RUN[2:])


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_job_knows_the_options_of_every_variant(variant):
    _parser().parse_args(["run", "fcl_pretrain", "--workspace", "x", *VARIANTS[variant]])
