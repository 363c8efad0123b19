from __future__ import annotations

import numpy as np
import pytest

from flare_app.statistics.pooling import pooled

RNG = np.random.default_rng(0)
SITES = [RNG.normal(mean, 1.0, size) for mean, size in ((0.0, 5), (3.0, 8), (-2.0, 1))]


def _entry(values: np.ndarray) -> dict[str, object]:
    counts, _ = np.histogram(values, bins=4, range=(-6, 6))
    stddev = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    histogram = {"low": -6.0, "high": 6.0, "counts": counts.tolist(), "withheld": 0}
    extremes = {"about_min": float(values.min()), "about_max": float(values.max())}
    return {"count": len(values), "mean": float(values.mean()), "stddev": stddev, "histogram": histogram, **extremes}


def test_the_pool_is_that_of_all_values_together() -> None:
    found = pooled([{"size": _entry(values)} for values in SITES])["size"]
    expected = _entry(np.concatenate(SITES))
    assert found["histogram"] == {**expected["histogram"], "sites": 3}  # type: ignore[dict-item]
    for name in ("count", "mean", "stddev", "about_min", "about_max"):
        assert found[name] == pytest.approx(expected[name]), name


def test_sites_that_tell_nothing_of_a_measure_are_left_out_of_it() -> None:
    first, second = (_entry(values) for values in SITES[:2])
    del second["histogram"]
    found = pooled([{"size": first, "other": second}, {"size": second}])
    assert found["size"]["histogram"]["sites"] == 1
    assert found["other"]["count"] == 8
    assert pooled([]) == {}
    assert pooled([{"one": {"count": 1, "mean": 2.0, "stddev": 0.0}}])["one"]["stddev"] == 0.0
