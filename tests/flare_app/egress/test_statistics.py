from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext

from flare_app.egress import EgressError, EgressPolicy, read_manifest
from flare_app.egress.statistics import NAMES, cleansed
from flare_app.protocol import TaskName, report_of, with_report
from tests.flare_app.egress.payloads import egress_filter
from tests.flare_app.loopback import FakeEngine, asking


def told(patients: int = 24, labelled: int = 24, **changes: Any) -> dict[str, Any]:
    """Statistics of slices (with a range), of intensities (without one) and of a structure."""
    tables: dict[str, dict[str, Any]] = {name: {} for name in NAMES}
    for measure, missing in (("slices", 0), ("intensity_low", 0), ("share_lv", patients - labelled)):
        tables["count"][measure], tables["failure_count"][measure] = patients, missing
        tables["mean"][measure], tables["stddev"][measure] = 9.87654321, 0.123456789
    tables["min"]["intensity_low"], tables["max"]["intensity_low"] = -100.0, 200.0
    tables["histogram"]["slices"] = {"low": 0.0, "high": 40.0, "counts": [0, patients, 0], "withheld": 0}
    tables["histogram"]["share_lv"] = {"low": 0.0, "high": 0.1, "counts": [labelled, 0, 0], "withheld": 0}
    totals = {"patients": patients, "volumes": 2 * patients, "slices": 20 * patients}
    return {"enough": True, "totals": totals, "statistics": tables, **changes}


def test_enough_patients_pass_rounded() -> None:
    report, withheld = cleansed(EgressPolicy(), told())
    assert withheld == []
    assert report["totals"] == {"patients": 24, "volumes": 48, "slices": 480}
    assert report["statistics"]["mean"] == dict.fromkeys(("slices", "intensity_low", "share_lv"), 9.877)
    assert report["statistics"]["stddev"]["slices"] == 0.1235
    assert report["statistics"]["histogram"]["slices"] == {
        "low": 0.0,
        "high": 40.0,
        "counts": [0, 24, 0],
        "withheld": 0,
    }


def test_extremes_move_outwards_by_the_noise() -> None:
    random.seed(3)
    tables = cleansed(EgressPolicy(), told())[0]["statistics"]
    assert -130 <= tables["min"]["intensity_low"] <= -110
    assert 220 <= tables["max"]["intensity_low"] <= 260


def test_who_knows_how_python_was_seeded_cannot_undo_the_noise() -> None:
    random.seed(3)
    tables = cleansed(EgressPolicy(), told())[0]["statistics"]
    extremes = tables["min"]["intensity_low"], tables["max"]["intensity_low"]
    drawn, as_it_would_be = random.random(), random.Random(3)
    assert drawn == as_it_would_be.random()  # the seed goes on as if nothing had been drawn
    guessed = random.Random(3)
    undone = extremes[0] / (1 + guessed.uniform(0.1, 0.3)), extremes[1] / (1 + guessed.uniform(0.1, 0.3))
    assert undone != pytest.approx((-100.0, 200.0), rel=1e-3)
    random.seed(3)
    again = cleansed(EgressPolicy(), told())[0]["statistics"]
    assert (again["min"]["intensity_low"], again["max"]["intensity_low"]) != extremes


@pytest.mark.parametrize(("patients", "policy"), [(4, {}), (24, {"min_patients": 25}), (24, {"statistics": ()})])
def test_a_site_with_too_few_tells_nothing_but_that(patients: int, policy: dict[str, Any]) -> None:
    report, withheld = cleansed(EgressPolicy(**policy), told(patients, patients))
    assert report == {"enough": False}
    assert withheld == ["slices", "intensity_low", "share_lv"]
    assert cleansed(EgressPolicy(), report) == ({"enough": False}, [])


def test_few_labelled_patients_hide_their_structure_and_their_number() -> None:
    report, withheld = cleansed(EgressPolicy(), told(labelled=4))
    assert withheld == ["share_lv"]
    assert all("share_lv" not in table for table in report["statistics"].values())


def test_histograms_with_nearly_as_many_bins_as_patients_stay() -> None:
    report, withheld = cleansed(EgressPolicy(), told(patients=6, labelled=6))  # 3 bins are not fewer than half of 6
    assert withheld == ["slices", "share_lv"]
    assert report["statistics"]["histogram"] == {}
    assert report["statistics"]["mean"]["slices"] == 9.877
    assert cleansed(EgressPolicy(max_bins_percent=100), told(patients=6, labelled=6))[1] == []


def _histogram(counts: list[int], least: int, withheld: int = 0) -> tuple[list[int], int] | None:
    """Counts and withheld patients of a histogram that has left; None when it stayed."""
    report = told(sum(counts) + withheld, sum(counts) + withheld)
    report["statistics"]["histogram"]["slices"].update(counts=counts, withheld=withheld)
    policy = EgressPolicy(min_bin_patients=least, max_bins_percent=100)
    left, kept_back = cleansed(policy, report)
    again, _ = cleansed(policy, copy.deepcopy(left))
    assert again["statistics"]["histogram"] == left["statistics"]["histogram"]  # the job's filter runs after the site's
    found = left["statistics"]["histogram"].get("slices")
    assert (found is None) == ("slices" in kept_back)
    return None if found is None else (found["counts"], found["withheld"])


@pytest.mark.parametrize(
    ("counts", "least", "expected"),
    [
        ([9, 3, 4, 8], 3, ([9, 3, 4, 8], 0)),  # as many as the least are enough
        ([0, 24, 0, 0], 3, ([0, 24, 0, 0], 0)),
        ([9, 2, 2, 8], 3, ([9, 0, 0, 8], 4)),
        ([9, 1, 1, 8], 2, ([9, 0, 0, 8], 2)),
        # The rest would give one hidden bin back, and two patients would be too few together: the next smallest goes.
        ([9, 2, 7, 8], 3, ([9, 0, 0, 8], 9)),
        ([9, 4, 2, 8], 3, ([9, 0, 0, 8], 6)),
        ([9, 1, 1, 8], 3, ([9, 0, 0, 0], 10)),
        ([9, 1, 0, 8], 3, ([9, 0, 0, 0], 9)),
        ([9, 1, 0, 8], 1, ([9, 1, 0, 8], 0)),
        ([2, 2, 2, 1], 3, None),
        ([24, 1], 3, None),
    ],
)
def test_bins_of_few_patients_cannot_be_told_from_empty_ones(
    counts: list[int], least: int, expected: tuple[list[int], int] | None
) -> None:
    assert _histogram(counts, least) == expected


def test_a_stricter_filter_adds_to_what_an_earlier_one_hid() -> None:
    assert _histogram([9, 0, 0, 4, 8], 5, withheld=4) == ([9, 0, 0, 0, 8], 8)
    assert _histogram([9, 0, 7, 0, 8], 5, withheld=3) == ([9, 0, 0, 0, 8], 10)


def test_measures_that_the_policy_does_not_name_stay() -> None:
    report, withheld = cleansed(EgressPolicy(statistics=("share_*",)), told())
    assert withheld == ["slices", "intensity_low"]
    assert all(set(table) <= {"share_lv"} for table in report["statistics"].values())


def test_a_second_filter_finds_nothing_more_to_withhold() -> None:
    policy = EgressPolicy(statistics=("slices",))
    once, _ = cleansed(policy, told(patients=6, labelled=6))
    twice, withheld = cleansed(policy, copy.deepcopy(once))
    assert (twice, withheld) == (once, [])


def _set(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    *above, last = path.split(".")

    def change(report: dict[str, Any]) -> None:
        for key in above:
            report = report[key]
        report[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (_set("patients", ["patient007"]), "statistics.keys"),
        (_set("enough", False), "statistics.keys"),
        (_set("totals.names", 3), "statistics.totals"),
        (_set("totals.slices", 3.5), "statistics.totals"),
        (_set("statistics.quantile", {}), "statistics.names"),
        (_set("statistics.count.patient007", 24), "statistics.measures"),
        (_set("statistics.mean.colour", 1.0), "statistics.measures"),
        (_set("statistics.mean", [1.0]), "statistics.measures"),
        (_set("statistics.mean.slices", float("nan")), "statistics.values"),
        (_set("statistics.mean.slices", "patient007"), "statistics.values"),
        (_set("statistics.count.slices", 24.5), "statistics.values"),
        (_set("statistics.histogram.slices.names", []), "statistics.values"),
        (_set("statistics.histogram.slices.counts", [1, 1]), "statistics.values"),
        (_set("statistics.histogram.slices.withheld", 1), "statistics.values"),
        (_set("statistics.histogram.slices.withheld", "patient007"), "statistics.values"),
        (_set("statistics.histogram.slices.withheld", -1), "statistics.values"),
        (_set("statistics.histogram.slices.counts", [0] * 65 + [24]), "statistics.values"),
    ],
)
def test_anything_undeclared_is_refused(change: Callable[[dict[str, Any]], None], rule: str) -> None:
    report = told()
    change(report)
    with pytest.raises(EgressError) as error:
        cleansed(EgressPolicy(), report)
    assert error.value.rule == rule


def _context(root: Path) -> FLContext:
    engine = FakeEngine(root)
    fl_ctx = engine.context("hospital-a")
    fl_ctx.set_prop(FLContextKey.TASK_NAME, TaskName.STATISTICS, private=True, sticky=False)
    fl_ctx.set_peer_context(engine.context("server"))
    with asking(fl_ctx, "server"):
        return fl_ctx


def test_the_filter_lets_out_what_is_cleansed_and_the_manifest_says_what(tmp_path: Path) -> None:
    payload = egress_filter().process(with_report(told(labelled=4)), _context(tmp_path))
    assert set(report_of(payload)["statistics"]["mean"]) == {"slices", "intensity_low"}
    held, sent = read_manifest(tmp_path / "egress" / "hospital-a.jsonl")[0]
    assert (held["event"], held["name"]) == ("withheld", "statistics")
    assert held["why"].endswith("share_lv")
    assert (sent["event"], sent["measures"], sent["patients"]) == ("sent", ["intensity_low", "slices"], 24)


def test_statistics_are_no_answer_to_another_task(tmp_path: Path) -> None:
    fl_ctx = _context(tmp_path)
    fl_ctx.set_prop(FLContextKey.TASK_NAME, TaskName.VALIDATE, private=True, sticky=False)
    with pytest.raises(EgressError):
        egress_filter().process(with_report(told()), fl_ctx)


def test_policy_limits_are_checked() -> None:
    for settings in ({"max_bins_percent": 101}, {"min_patients": 0}, {"min_bin_patients": 0}, {"statistics": "slices"}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            EgressPolicy.from_dict(settings)
