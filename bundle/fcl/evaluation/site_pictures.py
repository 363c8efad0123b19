"""Pictures of slices in the TensorBoard of a site's own folder. They show patients: they must stay there.

A federation takes a site's weights, features and numbers out of what its tasks return; these handlers write files below
``log_dir`` and put nothing into the engine's state, so that no picture can come along.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch.utils.tensorboard import SummaryWriter

from fcl.evaluation.overlays import choose_slices, paint


class OverlayPictures:
    """At each validation, a few slices side by side: image, truth over it, prediction over it.

    A handler for an evaluator whose outputs, after postprocessing, hold ``image``, ``label`` and ``pred`` (label maps,
    (1, H, W, D)) of whole volumes. The same volumes come again at each validation, as ``slices/volume <number>``; the
    step is the epoch, or in a federation the round that begins with these weights (1 the first).

    Args:
        log_dir: of TensorBoard, at the site.
        classes: names in the order of the label values 1, 2, ...
        volumes: shown at most; 0 shows none and writes nothing.
        slices: of each volume.
    """

    def __init__(self, log_dir: str | Path, classes: Sequence[str], volumes: int = 3, slices: int = 3) -> None:
        if volumes < 0 or slices < 1:
            raise ValueError(f"volumes must be at least 0 and slices at least 1, got {volumes} and {slices}.")
        self.log_dir = Path(log_dir)
        self.labels = {name: value for value, name in enumerate(classes, 1)}
        self.volumes = volumes
        self.slices = slices
        self._pictures: list[np.ndarray] = []

    def attach(self, engine: Engine) -> None:
        """Register on an evaluator."""
        if self.volumes:
            engine.add_event_handler(Events.STARTED, self._begin)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._keep)
            engine.add_event_handler(Events.COMPLETED, self._write)

    def _begin(self, engine: Engine) -> None:
        self._pictures = []

    def _keep(self, engine: Engine) -> None:
        for output in engine.state.output[: self.volumes - len(self._pictures)]:
            image, truth, prediction = (_array(output[name]) for name in ("image", "label", "pred"))
            rows = [
                np.concatenate(
                    [paint(image[..., z], shown, self.labels) for shown in (None, truth[..., z], prediction[..., z])], 1
                )
                for z in choose_slices(truth, self.slices)
            ]
            self._pictures.append(np.concatenate(rows, 0))

    def _write(self, engine: Engine) -> None:
        _write_pictures(self.log_dir, "slices/volume", self._pictures, engine.state.epoch)


class ViewPictures:
    """Once, when training begins: a few slices, each beside two augmented views of it, as the method will see them.

    A handler for :class:`fcl.engines.PretrainTrainer`. It draws from random numbers of its own, so that a training with
    pictures gives the same weights as one without.

    Args:
        log_dir: of TensorBoard, at the site.
        slices: shown; 0 shows none and writes nothing.
        seed: of the views.
    """

    def __init__(self, log_dir: str | Path, slices: int = 4, seed: int = 0) -> None:
        if slices < 0:
            raise ValueError(f"slices must be at least 0, got {slices}.")
        self.log_dir = Path(log_dir)
        self.slices = slices
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        """Register on the trainer."""
        if self.slices:
            engine.add_event_handler(Events.STARTED, self._write)

    def _write(self, engine: Any) -> None:
        dataset = engine.data_loader.dataset
        rows = np.unique(np.linspace(0, len(dataset) - 1, self.slices + 2)[1:-1].astype(int))
        image = dataset[rows]["image"].to(engine.state.device)
        generator = torch.Generator(device=image.device).manual_seed(self.seed)
        views = [image, *(engine.augmentation(image, generator=generator)[0] for _ in range(2))]
        shown = [
            np.concatenate([paint(_middle(_array(view[i])), None, {}) for view in views], 1) for i in range(len(image))
        ]
        _write_pictures(self.log_dir, "views/slice", shown, engine.state.epoch)


def _array(image: torch.Tensor) -> np.ndarray:
    """The first channel."""
    return torch.as_tensor(image)[0].detach().cpu().float().numpy()


def _middle(image: np.ndarray) -> np.ndarray:
    """Of a slab, its middle slice."""
    return image if image.ndim == 2 else image[..., image.shape[-1] // 2]


def _write_pictures(log_dir: Path, tag: str, pictures: Sequence[np.ndarray], step: int) -> None:
    """One by one as they differ in size; the file is closed, as no one else writes into it."""
    with SummaryWriter(str(log_dir)) as writer:
        for number, picture in enumerate(pictures, 1):
            writer.add_image(f"{tag} {number}", picture, step, dataformats="HWC")
