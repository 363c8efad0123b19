from __future__ import annotations

import re
from dataclasses import replace

import pytest

from fcl.data import VolumeRecord
from fcl.data.consistency import find_leaks, find_oddities
from fcl.data.summary import VolumeSummary


def volume(name: str, **changes) -> VolumeSummary:
    record = VolumeRecord(f"/data/{name}.nii.gz", f"/data/{name}_gt.nii.gz", name, name)
    summary = VolumeSummary(
        record,
        (100, 100, 10),
        (1.5, 1.5, 9.0),
        "LPS",
        (0.0, 0.0, 1.0),
        (0.0, 50.0, 900.0),
        name,
        {"lv": 90.0, "myo": 99.0},
    )
    return replace(summary, **changes)


SITE = [volume(name) for name in "abcde"]
LABELS = {"lv": 3, "myo": 2}


def test_a_site_whose_volumes_fit_together():
    assert find_oddities(SITE, LABELS) == []
    assert find_oddities([], LABELS) == []
    assert find_leaks(SITE, ["a", "b"], ["c"]) == []


def test_an_image_on_both_sides_of_the_split():
    site = [*SITE, volume("f", digest="a")]
    (leak,) = find_leaks(site, ["a", "b"], ["c", "f"])
    assert leak.file == "/data/f.nii.gz"
    assert "has the voxels of a, which is trained on" in leak.what
    assert find_leaks(site, ["b"], ["f", "a"]) == []


ODD = {
    "copy": ({"digest": "a"}, 2, "has the same voxels as a"),
    "in-plane spacing": ({"spacing": (3.0, 3.0, 9.0)}, 2, "has spacing 3 x 3 x 9 mm, the median is 1.5 x 1.5 x 9 mm"),
    "slice distance": ({"spacing": (1.5, 1.5, 0.9)}, 2, "has spacing 1.5 x 1.5 x 0.9 mm"),
    "upside down": ({"across": (0.0, 0.1, -0.995)}, 2, "slices that run against those of most"),
    "another plane": ({"across": (0.0, 1.0, 0.1)}, 2, "slices that run across those of most"),
    "empty image": ({"quantiles": (0.0, 0.0, 0.0)}, 2, "has 0 in 98 % of its voxels"),
    "empty label": ({"label_ml": {"lv": 0.0, "myo": 0.0}}, 2, "has no labelled voxel"),
    "partial label": ({"label_ml": {"lv": 90.0, "myo": 0.0}}, 2, r"lacks myo \(2\), which others have"),
    "another axis": ({}, 0, "counted along axis 0, where voxels are 1.5 mm apart; along axis 2 they are 9 mm"),
}


@pytest.mark.parametrize("case", ODD)
def test_each_oddity_is_the_only_one(case):
    changes, slice_axis, expected = ODD[case]
    site = [*SITE, volume("f", **changes)]
    (found,) = find_oddities(site, LABELS, slice_axis)
    assert re.search(expected, str(found))
    assert found.fix


def test_a_structure_that_nobody_has():
    (found,) = find_oddities(SITE, {**LABELS, "rv": 1})
    assert "no label map holds rv (1)" in found.what


def test_a_cine_file_is_named_once():
    frames = [
        replace(
            volume(f"c{t}", spacing=(4.0, 4.0, 9.0)),
            record=VolumeRecord("/data/cine.nii.gz", None, "c", f"c{t}", "cine", t),
        )
        for t in range(2)
    ]
    assert len(find_oddities([*SITE, *frames])) == 1
