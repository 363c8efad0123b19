from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fcl.data import UnlabelledSlices
from fcl.engines.pseudo_labels import pseudo_labels


class Given(nn.Module):
    """Gives the class that is painted into the image, and notes the batches that it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[torch.Tensor] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.batches.append(image)
        return nn.functional.one_hot(image[:, 0].long(), 3).movedim(-1, 1).float()


def engine() -> SimpleNamespace:
    state = SimpleNamespace(device=torch.device("cpu"))
    return SimpleNamespace(state=state, inferer=lambda image, network: network(image))


class Painted:
    """Two volumes of 40 and 3 slices, with rows as a dataset has them."""

    volume = torch.tensor([0] * 40 + [1] * 3)

    def __init__(self, image: torch.Tensor) -> None:
        self.image = image

    def __getitem__(self, rows):
        return {"image": self.image[torch.as_tensor(rows)]}


def test_each_batch_holds_slices_of_one_volume(cache) -> None:
    slices = UnlabelledSlices(cache, ["v2", "v3"])
    network, shown = nn.Conv2d(1, 3, 1), []
    network.register_forward_pre_hook(lambda module, given: shown.append(given[0]))
    labels = pseudo_labels(network, slices, engine())  # type: ignore[arg-type]
    assert [len(batch) for batch in shown] == [info.slices for info in slices.volume_infos]
    expected = network(torch.cat(shown)).argmax(dim=1)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels.long(), expected)


def test_of_each_class_the_largest_part_of_a_volume_stays() -> None:
    image = torch.zeros(43, 1, 8, 8)
    image[5:8, 0, 1:3, 1:3] = 1  # 12 voxels in three slices: one part
    image[20, 0, 1:4, 1:4] = 1  # 9 voxels
    image[30, 0, 5, 5] = 2  # the only one of its class
    image[41, 0, 2, 2] = 1  # another volume
    network = Given()
    kept = pseudo_labels(network, Painted(image), engine(), largest_component=True)  # type: ignore[arg-type]
    expected = image[:, 0].clone()
    expected[20] = 0
    assert torch.equal(kept.float(), expected)
    assert [len(batch) for batch in network.batches] == [20, 20, 3]
    assert torch.equal(pseudo_labels(network, Painted(image), engine()).float(), image[:, 0])  # type: ignore[arg-type]


@pytest.mark.parametrize("largest_component", [False, True])
def test_slabs_are_labelled_one_by_one(largest_component: bool) -> None:
    image = torch.zeros(43, 1, 8, 8, 3)
    image[3, 0, 1:3, 1:3, 0] = 1
    image[3, 0, 6, 6, 2] = 1
    labels = pseudo_labels(Given(), Painted(image), engine(), largest_component)  # type: ignore[arg-type]
    assert labels.shape == (43, 8, 8, 3)
    assert int(labels.sum()) == (4 if largest_component else 5)
