from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fcl.evaluation import OverlayPictures, ViewPictures
from fcl.evaluation.drawing import COLOURS
from fcl.evaluation.overlays import paint
from fcl.transforms import BatchCompose, BatchRandIntensity, BatchRandSpatial


def _images(folder: Path) -> dict[str, list[tuple[int, int, int]]]:
    """Tag to step, height and width."""
    board = EventAccumulator(str(folder))
    board.Reload()
    tags = board.Tags()
    assert not [kind for kind in ("scalars", "histograms", "tensors") if tags[kind]]
    return {tag: [(event.step, event.height, event.width) for event in board.Images(tag)] for tag in tags["images"]}


def _volume(size: int, depth: int) -> dict[str, torch.Tensor]:
    label = torch.zeros(1, size, size, depth, dtype=torch.uint8)
    label[:, 2:4, 2:4, 1:] = 1
    return {"image": torch.rand(1, size, size, depth), "label": label, "pred": label.clone().float()}


def test_structures_are_painted_over_the_slice_and_turned_as_in_the_reports() -> None:
    image, structures = np.full((3, 2), 0.5), np.zeros((3, 2), int)
    structures[2, 0] = 7
    picture = paint(image, structures, {"lv": 7})
    assert picture.shape == (2, 3, 3)
    blue = [int(COLOURS[0][i : i + 2], 16) for i in (1, 3, 5)]
    assert picture[0, 2].tolist() == [round(0.55 * channel + 0.45 * 127.5) for channel in blue]
    assert (np.delete(picture.reshape(6, 3), 2, axis=0) == 128).all()
    assert (paint(image, None, {}) == 128).all()


def test_each_validation_shows_the_first_volumes_beside_truth_and_prediction(tmp_path: Path) -> None:
    volumes = [_volume(8, 5), _volume(8, 2), _volume(8, 5), _volume(8, 5)]
    evaluator = Engine(lambda engine, number: [volumes[number]])
    OverlayPictures(tmp_path, ["lv"], volumes=3, slices=2).attach(evaluator)
    for epoch in (1, 2):
        evaluator.state.epoch = epoch - 1
        evaluator.run(range(4), max_epochs=epoch)
    # Two slices high where as many show the structure, three pictures wide.
    assert _images(tmp_path) == {
        "slices/volume 1": [(1, 16, 24), (2, 16, 24)],
        "slices/volume 2": [(1, 8, 24), (2, 8, 24)],
        "slices/volume 3": [(1, 16, 24), (2, 16, 24)],
    }


class _Slices:
    def __init__(self, shape: tuple[int, ...]) -> None:
        self.image = torch.rand(7, 1, *shape)

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        return {"image": self.image[rows]}


@pytest.mark.parametrize("shape", [(8, 6), (8, 6, 3)])
def test_views_are_drawn_once_and_disturb_no_random_numbers(shape: tuple[int, ...], tmp_path: Path) -> None:
    dims = len(shape)
    augmentation = BatchCompose(
        [BatchRandSpatial(spatial_dims=dims, prob=1.0, rotate_range=0.5), BatchRandIntensity(prob=1.0, brightness=0.2)]
    )
    trainer = Engine(lambda engine, batch: None)
    trainer.data_loader = SimpleNamespace(dataset=_Slices(shape))  # type: ignore[attr-defined]
    trainer.augmentation = augmentation  # type: ignore[attr-defined]
    trainer.state.device = torch.device("cpu")  # type: ignore[attr-defined]
    ViewPictures(tmp_path, slices=2).attach(trainer)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    trainer.run([0], max_epochs=3)
    assert _images(tmp_path) == {"views/slice 1": [(0, 6, 24)], "views/slice 2": [(0, 6, 24)]}
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()


def test_none_wanted_writes_nothing_and_nonsense_is_refused(tmp_path: Path) -> None:
    evaluator = Engine(lambda engine, batch: [_volume(8, 2)])
    OverlayPictures(tmp_path / "x", ["lv"], volumes=0).attach(evaluator)
    ViewPictures(tmp_path / "x", slices=0).attach(evaluator)
    evaluator.run([0])
    assert not (tmp_path / "x").exists()
    with pytest.raises(ValueError, match="got -1 and 3"):
        OverlayPictures(tmp_path, ["lv"], volumes=-1)
    with pytest.raises(ValueError, match="slices must be at least 0, got -2"):
        ViewPictures(tmp_path, slices=-2)
