from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from fcl.data import DataProblems
from fcl.importing import scan
from fcl.importing.stacks import arrange

from .conftest import COLUMN, COLUMNS, GAP, NORMAL, ROW, ROWS


@pytest.fixture
def images(tmp_path, series):
    series(tmp_path, slices=5, phases=3)
    return scan(tmp_path).instances


def numbers(stack):
    return [[image.number for image in row] for row in stack.grid]


def moved(image, z=0.0, **changes):
    return replace(image, position=tuple(np.array(image.position) + z * NORMAL), **changes)


def test_place_of_every_voxel_follows_the_standard(images):
    """DICOM PS3.3 C.7.6.2.1.1: position + row direction * column * spacing[1] + column direction * row * spacing[0]."""
    stack = arrange("s", images, 0.1)
    assert stack.shape == (COLUMNS, ROWS, 5, 3)
    for i, j, z in itertools.product((0, 7, COLUMNS - 1), (0, 9, ROWS - 1), range(5)):
        lps = np.array([10, 20, 30]) + np.array(ROW) * i * 1.25 + np.array(COLUMN) * j * 1.5 + NORMAL * GAP * z
        ras = stack.affine @ [i, j, z, 1]
        assert np.allclose(ras[:3], lps * [-1, -1, 1], atol=1e-4)


def test_slices_by_position_and_phases_by_trigger_time(images):
    stack = arrange("s", images, 0.1)
    assert numbers(stack) == [[3 * z + t + 1 for t in range(3)] for z in range(5)]
    assert stack.phase_key == "TriggerTime"
    assert stack.phase_step_s == pytest.approx(0.04)


def test_phases_by_the_next_tag_where_one_is_missing(images):
    plain = [replace(image, trigger=None) for image in images]
    assert arrange("s", plain, 0.1).phase_key == "InstanceNumber"
    temporal = [replace(image, trigger=0.0, temporal=-float(image.number)) for image in images]
    stack = arrange("s", temporal, 0.1)
    assert stack.phase_key == "TemporalPositionIdentifier"
    assert numbers(stack) == [[3 * z + t + 1 for t in (2, 1, 0)] for z in range(5)]
    assert stack.phase_step_s is None


def test_phases_that_share_a_trigger_time_are_told_apart_by_the_next_tag(images):
    images = [replace(image, temporal=float((image.number - 1) % 3 + 1)) for image in images]
    twice = [replace(image, trigger=60.0 if image.temporal > 1 else 20.0) for image in images]
    stack = arrange("s", twice, 0.1)
    assert stack.phase_key == "TemporalPositionIdentifier"
    assert numbers(stack) == [[3 * z + t + 1 for t in range(3)] for z in range(5)]


def test_second_acquisition_in_a_series_is_no_further_phases(images):
    """Its InstanceNumbers go on where those of the first end, and must not pass for an order of phases."""
    again = [replace(image, uid=image.uid + "1", number=image.number + 15) for image in images]
    with pytest.raises(DataProblems, match="has duplicates at slice 1 of 5: 6 images, TriggerTime"):
        arrange("s", [*images, *again], 0.1)


def test_one_slice_takes_its_thickness(images):
    one = arrange("s", [image for image in images if image.number <= 3], 0.1)
    assert np.allclose(np.linalg.norm(one.affine[:3, 2]), 6.0)


def without(*left_out):
    return lambda images: [image for image in images if image.number not in left_out]


FAULTS = {
    "patients": (lambda images: [*images[:-1], replace(images[-1], patient="other")], "mixes 2 patients"),
    "sizes": (lambda images: [*images[:-1], replace(images[-1], size=(8, 8))], "mixes 2 image sizes"),
    "spacings": (lambda images: [*images[:-1], replace(images[-1], spacing=(1.0, 1.0))], "mixes 2 pixel spacings"),
    "orientations": (
        lambda images: [*images[:-1], replace(images[-1], orientation=(1, 0, 0, 0, 1, 0))],
        "mixes 2 orientations",
    ),
    "copies": (lambda images: [*images, images[0]], "holds 1 images a second time"),
    "missing slice": (without(7, 8, 9), r"lacks about 1 slices.*between slices 2 and 3 \(16.00 mm\)"),
    "missing phase": (without(8), "has 2 phases at slice 3 of 5, 3 elsewhere"),
    "sent twice": (
        lambda images: [*images, *(replace(image, uid=image.uid + "1") for image in images if image.number == 5)],
        "has duplicates at slice 2 of 5: 4 images, TriggerTime 61 repeated",
    ),
    "overlapping": (
        lambda images: [*images, *(moved(i, -5.0, uid=i.uid + "1") for i in images if i.number in (4, 5, 6))],
        "overlapping slices",
    ),
    "unequal": (lambda images: [moved(image, (image.number > 12) * 1.0) for image in images], "unequal spacing"),
    "sheared": (
        lambda images: [
            replace(image, position=tuple(np.array(image.position) + np.array(ROW) * 4 * ((image.number - 1) // 3)))
            for image in images
        ],
        "is sheared: its last slice is shifted by 16.0 mm",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_each_fault_is_named_with_a_way_out(images, case):
    spoil, expected = FAULTS[case]
    with pytest.raises(DataProblems, match=expected) as caught:
        arrange("series 7", spoil(images), 0.1)
    assert all(problem.file == "series 7" and problem.fix for problem in caught.value.problems)


def test_all_faults_at_once(images):
    with pytest.raises(DataProblems) as caught:
        arrange("s", without(2, 7, 8, 9, 14)(images), 0.1)
    assert len(caught.value.problems) == 3  # one gap, two slices that lack a phase


def test_tolerance_is_a_setting(images):
    spoilt = [moved(image, (image.number > 12) * 0.3) for image in images]
    with pytest.raises(DataProblems, match="raise --spacing-tolerance"):
        arrange("s", spoilt, 0.1)
    assert arrange("s", spoilt, 0.5).shape[2] == 5
