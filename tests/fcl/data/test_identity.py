from __future__ import annotations

import pytest

from fcl.data import OrientInPlaned, VolumeRecord, data_identity, site_records

RECORDS = [VolumeRecord(f"/data/p{n}.nii", f"/data/p{n}_gt.nii", f"p{n}", f"v{n}") for n in range(8)]
TURN = OrientInPlaned("image")


def identity(records=RECORDS, preprocessing=TURN, partitions=4, **choice):
    return data_identity(site_records(records, **choice), preprocessing, partitions)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"annotated": 2}, {"training data"}),
        ({"annotated": 6, "seed": 0}, set()),
        ({"fold": 1}, {"training data", "validation data"}),
        ({"seed": 3}, {"training data", "validation data"}),
        ({"preprocessing": OrientInPlaned("image", slice_axis=0)}, {"preprocessing"}),
        ({"partitions": 6}, {"preprocessing"}),
        ({"preprocessing": OrientInPlaned("image")}, set()),
    ],
)
def test_what_differs_is_named(other, expected):
    ours, theirs = identity(), identity(**other)
    assert {what for what in ours if ours[what] != theirs[what]} == expected


def test_a_folder_that_has_moved_is_the_same_data_and_no_patient_is_named():
    moved = [VolumeRecord(r.image.replace("/data", "/x"), r.label, r.patient, r.volume) for r in RECORDS]
    assert identity() == identity(moved)
    assert "v0" not in str(identity())
