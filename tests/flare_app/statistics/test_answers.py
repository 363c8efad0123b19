from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from flare_app.protocol import with_report
from flare_app.statistics.answers import checked, other_axes
from flare_app.statistics.controller import DataStatisticsController
from tests.flare_app.loopback import Federation


def _report(high: float = 40.0, totals: Mapping[str, Any] | None = None, **slices: Any) -> dict[str, Any]:
    """Of nine patients; keywords are what is told of the measure ``slices``, in place of what is right."""
    right = {
        "count": 10,
        "failure_count": 1,
        "mean": 10.0,
        "stddev": 1.0,
        "histogram": {"low": 0.0, "high": high, "counts": [7, 0], "withheld": 2},
    }
    told = {name: {"slices": value} for name, value in {**right, **slices}.items()}
    totals = {"patients": 10, "volumes": 10, "slices": 90, **(totals or {})}
    return {"enough": True, "totals": totals, "statistics": {"min": {}, "max": {}, **told}}


def _compared(root: Path, reports: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """The document of a job in which each site answers with its report, the last by name first; and its panics."""
    federation = Federation(root, sorted(reports))
    federation.execute = lambda site, *_: with_report(reports[site])  # type: ignore[assignment,method-assign]
    controller = DataStatisticsController(min_sites=1)
    federation.connect(controller)
    controller.run()
    return json.loads((root / "server/job/fcl/statistics.json").read_text()), federation.panics


BROKEN = {
    "mean as text": _report(mean="10"),
    "mean as a list": _report(mean=[10.0]),
    "mean that is none": _report(mean=float("nan")),
    "huge deviation": _report(stddev=1e200),
    "negative deviation": _report(stddev=-1.0),
    "count with a fraction": _report(count=10.5),
    "no patients": _report(count=1),
    "extreme as text": _report(min="0"),
    "histogram without its beginning": _report(histogram={"high": 40.0, "counts": [9, 0], "withheld": 0}),
    "histogram that ends before it begins": _report(high=-1.0),
    "histogram of other patients": _report(histogram={"low": 0.0, "high": 40.0, "counts": [9, 9], "withheld": 0}),
    "histogram that withholds others": _report(histogram={"low": 0.0, "high": 40.0, "counts": [9, 0], "withheld": 2}),
    "histogram that does not say what it withholds": _report(histogram={"low": 0.0, "high": 40.0, "counts": [9, 0]}),
    "histogram of many bins": _report(histogram={"low": 0.0, "high": 40.0, "counts": [9] + [0] * 64, "withheld": 0}),
    "histogram in text": _report(histogram={"low": 0.0, "high": 40.0, "counts": "90", "withheld": 0}),
    "totals as text": _report(totals={"patients": "10"}),
    "totals of something else": _report(totals={"names": 3}),
    "enough of another kind": {**_report(), "enough": 1},
    "no statistics": {"enough": True, "totals": _report()["totals"]},
}


@pytest.mark.parametrize("report", BROKEN.values(), ids=BROKEN.keys())
def test_a_malformed_answer_is_refused(report: dict[str, Any]) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        checked(report)


def test_an_answer_in_the_form_that_was_agreed_is_taken() -> None:
    histogram = {"low": 0.0, "high": 40.0, "counts": [7, 0], "withheld": 2}
    measure = {"count": 9, "mean": 10.0, "stddev": 1.0, "histogram": histogram}
    expected = {"totals": {"patients": 10, "volumes": 10, "slices": 90}, "measures": {"slices": measure}}
    assert checked(_report()) == expected
    assert set(checked({"enough": False})) == {"withheld"}


@pytest.mark.parametrize("what", ["mean as text", "huge deviation", "histogram without its beginning"])
def test_a_malformed_answer_leaves_the_comparison_to_the_others(tmp_path: Path, what: str) -> None:
    # site-3 answers first
    document, panics = _compared(tmp_path, {"site-1": _report(), "site-2": _report(), "site-3": BROKEN[what]})
    assert panics == []
    assert document["overall"]["sites"] == ["site-1", "site-2"]
    assert "what it tells of 'slices' is not in the form that was agreed" in document["left_out"]["site-3"]


def test_the_odd_one_is_left_out_though_it_answers_first(tmp_path: Path) -> None:
    reports = {"site-1": _report(), "site-2": _report(), "site-3": _report(), "site-4": _report(high=99.0)}
    document, panics = _compared(tmp_path, reports)
    assert panics == []
    assert list(document["left_out"]) == ["site-4"]
    assert "its histogram of slices has another range" in document["left_out"]["site-4"]
    assert document["overall"]["measures"]["slices"]["histogram"] == {
        "low": 0.0,
        "high": 40.0,
        "counts": [21, 0],
        "withheld": 6,
        "sites": 3,
    }


@pytest.mark.parametrize(("highs", "odd"), [([4, 5], [1]), ([4, 5, 5], [0]), ([4, 5, 5, 4], [1, 2]), ([4, 4], [])])
def test_most_have_the_right_axes_and_of_equally_many_the_first_by_name(highs: list[float], odd: list[int]) -> None:
    told = {f"site-{i}": checked(_report(high=high)) for i, high in reversed(list(enumerate(highs)))}
    assert sorted(other_axes({**told, "site-9": checked({"enough": False})})) == [f"site-{i}" for i in odd]


def test_a_site_that_is_left_out_has_no_say_in_further_measures() -> None:
    told = {site: checked(_report(high=high)) for site, high in (("a", 5.0), ("b", 4.0), ("c", 4.0))}
    for site, width in (("a", 1.0), ("b", 2.0)):
        told[site]["measures"]["width"] = {"histogram": {"low": 0.0, "high": width, "counts": [9]}}
    assert list(other_axes(told)) == ["a"]
