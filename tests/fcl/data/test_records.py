from __future__ import annotations

import pytest

from fcl.data import VolumeRecord, as_items

BARE = {"image": "i.nii.gz", "patient": "p", "volume": "v", "phase": "ED"}


@pytest.mark.parametrize(
    ("label", "frame", "extra"),
    [(None, None, {}), ("l.nii.gz", None, {"label": "l.nii.gz"}), (None, 0, {"frame": 0})],
)
def test_item_has_no_key_for_what_is_absent(label, frame, extra):
    record = VolumeRecord("i.nii.gz", label, "p", "v", "ED", frame)
    assert as_items([record]) == [{**BARE, **extra}]
