"""What evaluation and inference do to a prediction, as their configurations declare it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import KeepLargestConnectedComponentd

CONFIGS = Path(__file__).parents[2] / "bundle" / "configs"


def steps(base: str, **values: Any) -> list[Any]:
    parser = ConfigParser()
    parser.read_config(CONFIGS / f"{base}.json")
    parser.update({"from_card": {}, "dataset_dir": "data", **values})
    return list(parser.get_parsed_content("postprocessing").transforms)


@pytest.mark.parametrize("base", ["evaluate", "inference"])
def test_of_each_class_only_the_largest_component_stays_where_that_is_asked_for(base: str) -> None:
    assert not any(isinstance(step, KeepLargestConnectedComponentd) for step in steps(base))
    (keep,) = [
        step for step in steps(base, largest_component="true") if isinstance(step, KeepLargestConnectedComponentd)
    ]
    pred = torch.zeros(1, 12, 12, 3)
    pred[:, 1:4, 1:4], pred[:, 8, 8, 0] = 1, 1
    pred[:, 6:8, 1:4], pred[:, 10, 10] = 3, 3
    expected = pred.clone()
    expected[:, 8, 8, 0] = expected[:, 10, 10] = 0
    assert torch.equal(torch.as_tensor(keep({"pred": pred})["pred"]), expected)


def test_a_word_that_is_no_switch_is_refused() -> None:
    with pytest.raises(RuntimeError) as refused:
        steps("inference", largest_component="yes")
    assert "largest_component must be true or false, got 'yes'" in str(refused.value.__cause__)
