from __future__ import annotations

import pytest
import torch

from fcl.data import SliceDataset, UnlabelledSlices, build_slice_cache, read_acdc


@pytest.fixture
def cache(acdc, preprocessing, tmp_path):
    return build_slice_cache(read_acdc(acdc(patients=2)), preprocessing, tmp_path / "cache")


def test_labels_in_the_cache_stay_out_of_sight(cache) -> None:
    names = ["patient002_frame01", "patient002_frame03"]
    plain, unlabelled = SliceDataset(cache, names), UnlabelledSlices(cache, names)
    assert len(unlabelled) == len(plain)
    batch = unlabelled[[0, 3]]
    assert "label" in plain[[0, 3]]
    assert batch.keys() == plain[[0, 3]].keys() - {"label"}
    assert torch.equal(batch["image"], plain[[0, 3]]["image"])


def test_no_volume_and_unknown_ones_are_refused(cache) -> None:
    with pytest.raises(ValueError, match="no volume among the 0 asked for"):
        UnlabelledSlices(cache, [])
    with pytest.raises(ValueError, match="lacks 1 volumes"):
        UnlabelledSlices(cache, ["patient009_frame01"])
