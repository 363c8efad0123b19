from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from fcl.data import DataStatistics, SiteCheck, generate, read_acdc, site_records
from fcl.data.measures import share_name

LABELS = {"rv": 1, "myo": 2, "lv": 3}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """A check of three patients of the phantom, the last without labels, and its volumes by patient."""
    root = tmp_path_factory.mktemp("measures")
    generate(root / "data", patients=3, sites=1, folds=1)
    for file in sorted((root / "data" / "patient003").glob("*_gt.nii.gz")):
        file.unlink()
    records = read_acdc(root / "data")
    split = site_records(records, fold=None)
    by_patient = {}
    for record in records:
        label = None if record.label is None else np.asarray(nib.load(record.label).dataobj)
        by_patient.setdefault(record.patient, []).append((nib.load(record.image), label))
    return SiteCheck(split, 4, LABELS, root / "cache"), by_patient


def loops(by_patient, of):
    """One value a patient, in loop form."""
    return np.array([np.mean([of(image, label) for image, label in volumes]) for volumes in by_patient.values()])


def quantile(q):
    return lambda image, label: np.quantile(image.get_fdata(), q)


def centre(image, label):
    low, median, high = np.quantile(image.get_fdata(), (0.01, 0.5, 0.99))
    return (median - low) / (high - low)


REFERENCES = {
    "in_plane_spacing_mm": lambda image, label: np.sqrt(np.prod(image.header.get_zooms()[:2])),
    "slice_distance_mm": lambda image, label: image.header.get_zooms()[2],
    "slices": lambda image, label: image.shape[2],
    "in_plane_pixels": lambda image, label: np.sqrt(image.shape[0] * image.shape[1]),
    "intensity_low": quantile(0.01),
    "intensity_median": quantile(0.5),
    "intensity_high": quantile(0.99),
    "intensity_centre": centre,
}


@pytest.mark.parametrize("measure", REFERENCES)
def test_aggregates_are_those_of_numpy(phantom, measure):
    check, by_patient = phantom
    statistics = DataStatistics(check, bins=7)
    expected = loops(by_patient, REFERENCES[measure])
    assert (statistics.count(measure), statistics.missing(measure)) == (3, 0)
    assert statistics.mean(measure) == pytest.approx(expected.mean(), rel=1e-6)
    assert statistics.stddev(measure) == pytest.approx(expected.std(ddof=1), rel=1e-4, abs=1e-6)
    assert statistics.extremes(measure) == pytest.approx((expected.min(), expected.max()), rel=1e-6)
    if statistics.measures()[measure] is None:
        with pytest.raises(ValueError, match="no declared range"):
            statistics.histogram(measure)
    else:
        counts, _ = np.histogram(expected, bins=7, range=statistics.measures()[measure])
        assert statistics.histogram(measure) == counts.tolist()


def test_shares_are_of_the_labelled_patients(phantom):
    check, by_patient = phantom
    statistics = DataStatistics(check)
    labelled = {name: by_patient[name] for name in ("patient001", "patient002")}
    for label, value in LABELS.items():
        expected = loops(labelled, lambda image, label, value=value: np.mean(label == value))
        assert statistics.missing(f"share_{label}") == 1
        assert statistics.mean(f"share_{label}") == pytest.approx(expected.mean(), rel=1e-5)


def test_totals_count_patients_volumes_and_slices(phantom):
    check, by_patient = phantom
    slices = sum(image.shape[2] for volumes in by_patient.values() for image, _ in volumes)
    assert DataStatistics(check).totals() == {"patients": 3, "volumes": 6, "slices": slices}


def test_values_beyond_a_range_count_in_its_last_bins(phantom):
    check, _ = phantom
    statistics = DataStatistics(check, bins=2, ranges={"slices": [1000, 2000], "in_plane_pixels": [1, 2]})
    assert statistics.histogram("slices") == [3, 0]
    assert statistics.histogram("in_plane_pixels") == [0, 3]


@pytest.mark.parametrize(
    "arguments",
    [{"bins": 0}, {"ranges": {"colour": [0, 1]}}, {"ranges": {"slices": [2, 1]}}, {"ranges": {"slices": [2]}}],
)
def test_bad_settings_are_refused(phantom, arguments):
    with pytest.raises(ValueError, match=r"at least 1 bin|no range"):
        DataStatistics(phantom[0], **arguments)


def test_names_of_structures_are_letters_that_stay_apart(phantom, tmp_path):
    assert share_name("left ventricle (2)") == "share_left_ventricle____"
    with pytest.raises(ValueError, match="differ in letters"):
        DataStatistics(SiteCheck(phantom[0].split, 4, {"t1": 1, "t2": 2}, tmp_path))
