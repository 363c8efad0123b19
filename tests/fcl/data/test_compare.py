from __future__ import annotations

import json
import re

import pytest

from fcl.data.compare import find_outliers, read_statistics

USUAL = {
    "in_plane_spacing_mm": (1.5, 0.1),
    "slice_distance_mm": (9.0, 0.5),
    "slices": (10.0, 1.0),
    "intensity_low": (0.0, 0.0),
    "intensity_median": (100.0, 20.0),
    "intensity_high": (900.0, 50.0),
    "intensity_centre": (0.15, 0.03),
    "share_lv": (0.02, 0.005),
}


def site(**changes):
    told = {**USUAL, **changes}
    measures = {name: {"count": 9, "mean": v[0], "stddev": v[1]} for name, v in told.items() if v is not None}
    return {"totals": {"patients": 9, "volumes": 18, "slices": 180}, "measures": measures}


def document(**sites):
    return {"sites": sites, "left_out": {}, "overall": {"measures": dict.fromkeys(USUAL)}}


def three_and(**changes):
    return document(a=site(), b=site(slices=(11.0, 1.0)), c=site(intensity_median=(130.0, 20.0)), d=site(**changes))


def test_sites_that_agree():
    assert find_outliers(three_and()) == []


PLANTED = {
    "doubled spacing": ({"in_plane_spacing_mm": (3.0, 0.2)}, "in_plane_spacing_mm of d is 2 times the median"),
    "half the slices": ({"slices": (5.0, 1.0)}, "slices of d is 0.5 times the median of the others"),
    "thin slices": ({"slice_distance_mm": (1.0, 0.1)}, "slice_distance_mm of d is 0.11 times"),
    "inverted": ({"intensity_centre": (0.85, 0.03)}, r"intensity_centre of d is 0.85, that of the others 0.15"),
    "shifted": (
        {"intensity_low": (1000.0, 5.0)},
        r"intensity_low of d is 1000, .* deviations above the 0 of the others",
    ),
    "darker": ({"intensity_median": (5.0, 9.0)}, r"intensity_median of d is 5, \d\.\d standard deviations below"),
    "large structure": ({"share_lv": (0.05, 0.01)}, "share_lv of d is 2.5 times"),
    "empty structure": ({"share_lv": (0.0, 0.0)}, "share_lv of d is 0, the median of the others 0.02"),
}


@pytest.mark.parametrize("case", PLANTED)
def test_a_planted_difference_is_named_alone(case):
    changes, expected = PLANTED[case]
    (found,) = find_outliers(three_and(**changes))
    assert (found.site, found.measure) == ("d", next(iter(changes)))
    assert re.search(expected, found.what)
    assert found.fix


@pytest.mark.parametrize("low", [20.0, -20.0])
def test_a_little_noise_in_the_background_is_no_shift(low):
    assert find_outliers(three_and(intensity_low=(low, 0.0))) == []


def test_of_two_sites_both_are_named():
    found = find_outliers(document(a=site(), b=site(slices=(20.0, 1.0))))
    assert [(outlier.site, outlier.value, outlier.others) for outlier in found] == [("a", 10, 20), ("b", 20, 10)]


def test_what_a_site_does_not_tell_is_not_compared():
    withheld = {"withheld": "fewer patients"}
    assert find_outliers(document(a=site(), b=withheld)) == []
    assert find_outliers(document(a=site(), b=site(slices=None), c=site())) == []


def test_read_from_a_file_or_a_folder(tmp_path):
    file = tmp_path / "server" / "simulate_job" / "fcl" / "statistics.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(three_and()))
    assert read_statistics(tmp_path) == read_statistics(file) == three_and()
    (tmp_path / "statistics.json").write_text("{}")
    with pytest.raises(ValueError, match=r"found .*statistics\.json, .*statistics\.json"):
        read_statistics(tmp_path)
    with pytest.raises(ValueError, match="not written by a data_statistics job"):
        read_statistics(tmp_path / "statistics.json")
    with pytest.raises(ValueError, match="found none"):
        read_statistics(tmp_path / "elsewhere")
