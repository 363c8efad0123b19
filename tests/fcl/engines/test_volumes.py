from __future__ import annotations

import numpy as np
import pytest
import torch

from fcl.data import SliceCache
from fcl.engines import LabelledVolumes, class_names


def test_volumes_are_stacked_along_the_last_axis(cache: SliceCache) -> None:
    volumes = LabelledVolumes(cache, ["v4", "v1"])
    assert volumes.names == ["v1", "v4"]
    item = volumes[1]
    assert item["image"].shape == item["label"].shape == (1, 32, 32, 8)
    assert (item["image"].dtype, item["label"].dtype) == (torch.float32, torch.uint8)
    rows = np.flatnonzero(cache.volume == 4)
    for z, row in enumerate(rows):
        np.testing.assert_array_equal(item["image"][..., z].numpy(), cache.images[row].astype(np.float32))
        np.testing.assert_array_equal(item["label"][..., z].numpy(), cache.labels[row])


def test_it_may_be_empty(cache: SliceCache) -> None:
    assert len(LabelledVolumes(cache, [])) == 0


def test_classes_come_in_the_order_of_their_values() -> None:
    assert class_names({"lv": 3, "rv": 1, "myo": 2}) == ["rv", "myo", "lv"]


def test_label_values_may_have_gaps() -> None:
    assert class_names({"lv": 3, "myo": 2}) == ["myo", "lv"]


@pytest.mark.parametrize("labels", [{}, {"rv": 255}, {"rv": 1.5}, {"rv": 1, "lv": 1}, {"bg": 0, "rv": 1}])
def test_labels_that_no_file_can_hold_are_refused(labels: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="from 1 to 254"):
        class_names(labels)
