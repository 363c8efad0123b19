"""What a training at one site leaves on disk: the best weights, the last weights, and all that a restart needs."""

from __future__ import annotations

import itertools
import logging
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.utils import is_scalar
from torch import Tensor, nn

from fcl.card import card_file, write_card
from fcl.data.splits import USED_SPLIT
from fcl.networks.weights import with_card

logger = logging.getLogger(__name__)

_RESUME_FILE = "resume.pt"
_MODELS = ("model.pt", "model_last.pt")
_RUN_FILES = (
    *_MODELS,
    *(card_file(Path(name)).name for name in _MODELS),
    _RESUME_FILE,
    "config.json",
    "validation.csv",
    "tensorboard",
)


def set_aside(folder: str | Path) -> Path | None:
    """Move what an earlier training left in ``folder`` to ``folder/earlier_N``, so that a new one overwrites nothing.

    Returns:
        Where it went; None when there was nothing.
    """
    found = [Path(folder, name) for name in _RUN_FILES if Path(folder, name).exists()]
    if not found:
        return None
    number = next(n for n in itertools.count(1) if not Path(folder, f"earlier_{n}").exists())
    target = Path(folder, f"earlier_{number}")
    target.mkdir()
    for path in found:
        path.rename(target / path.name)
    if (split := Path(folder, USED_SPLIT)).exists():
        shutil.copy(split, target)  # the new training may read it, and writes its own
    logger.info("%s held an earlier training: it is now in %s (--resume true would have continued it)", folder, target)
    return target


class RandomState:
    """PyTorch's global random numbers on the CPU and on ``device``, as an object with a state."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    def state_dict(self) -> dict[str, torch.Tensor]:
        state = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        torch.set_rng_state(state["cpu"].cpu())
        if self.device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"].cpu(), self.device)


def loss_scale(trainer: Engine) -> dict[str, Any]:
    """``scaler``: what scales the losses of a MONAI trainer in float16 up; empty where nothing does.

    Begun anew, it would leave out steps until it has found a scale again.
    """
    scaler = getattr(trainer, "scaler", None)
    return {} if scaler is None else {"scaler": scaler}


class Checkpoints:
    """Keeps ``model.pt`` (best), ``model_last.pt`` and ``resume.pt`` in a folder; a handler for a MONAI trainer.

    MONAI's ``CheckpointSaver`` forgets after a restart which score was best, and deletes the old file before the new is
    whole. Here every file is replaced in one step, and the best score is part of ``resume.pt``.

    ``model.pt`` and ``model_last.pt`` are plain state dicts, so that other MONAI tools load them; they carry their card
    all the same (:func:`fcl.networks.with_card`), and a readable copy lies beside each. Attach after the
    ``ValidationHandler``; without a validation, the last weights are the best.

    Args:
        folder: made when missing.
        network: whose weights are kept.
        state: further objects with ``state_dict`` and ``load_state_dict`` (optimizer, loader, random numbers). The loss
            scale of a trainer in float16 is kept besides.
        evaluator: the validating engine; its key metric tells the best.
        resume: continue from ``resume.pt`` where there is one.
        card: of this run (:func:`fcl.config.describe_run`); epochs and the last metrics are added. None writes none.
        data: digests of what is trained and validated on (:func:`fcl.data.data_identity`), by their names for a
            message; with others, the best score and the order of batches would not be this run's.
    """

    def __init__(
        self,
        folder: str | Path,
        network: nn.Module,
        state: Mapping[str, Any],
        evaluator: Engine | None = None,
        resume: bool = False,
        card: Mapping[str, Any] | None = None,
        data: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.network = network
        self.state = dict(state)
        self.evaluator = evaluator
        self.resume = resume
        self.card = card
        self.data = dict(data or {})

    def attach(self, engine: Engine) -> None:
        """Register on the trainer."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.state |= loss_scale(engine)
        engine.add_event_handler(Events.STARTED, self._restore)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)

    @property
    def _resume_path(self) -> Path:
        return self.folder / _RESUME_FILE

    def _restore(self, engine: Engine) -> None:
        if not self.resume or not self._resume_path.exists():
            return
        saved = torch.load(self._resume_path, map_location="cpu", weights_only=True)
        if saved["state"].keys() != self.state.keys():
            raise ValueError(
                f"{self._resume_path} has the state of {sorted(saved['state'])}, this run needs {sorted(self.state)}: "
                "it was written by another version or configuration. Choose another --output_dir."
            )
        if other := [what for what in self.data if saved.get("data", {}).get(what) != self.data[what]]:
            raise ValueError(
                f"{self._resume_path} was written with other {' and '.join(other)}: its best score and its batches are "
                "not this run's. Set site, split_file, split_seed, fold, folds, annotated and preprocessing as they "
                f"were (if patients joined the folder: --split_file {self.folder / USED_SPLIT}, where there is one); "
                "or take another --output_dir."
            )
        if saved["epoch_length"] != engine.state.epoch_length:
            raise ValueError(
                f"{self._resume_path} was written with {saved['epoch_length']} steps per epoch, this run has "
                f"{engine.state.epoch_length}, which moves the schedule. Keep the number or take another --output_dir."
            )
        self.network.load_state_dict(saved["network"])
        for name, holder in self.state.items():
            holder.load_state_dict(saved["state"][name])
        engine.state.epoch, engine.state.iteration = saved["epoch"], saved["iteration"]
        if self.evaluator is not None:
            self.evaluator.state.best_metric = saved["best_metric"]
            self.evaluator.state.best_metric_epoch = saved["best_metric_epoch"]
        logger.info("continuing after epoch %d from %s", saved["epoch"], self._resume_path)

    def _save(self, engine: Engine) -> None:
        weights = self.network.state_dict()
        best_epoch = -1 if self.evaluator is None else self.evaluator.state.best_metric_epoch
        best, last = (self.folder / name for name in _MODELS)
        for file in (best, last) if best_epoch in (-1, engine.state.epoch) else (last,):
            self._write_model(weights, file, engine)
        _replace(
            {
                "network": weights,
                "state": {name: holder.state_dict() for name, holder in self.state.items()},
                "epoch": engine.state.epoch,
                "iteration": engine.state.iteration,
                "epoch_length": engine.state.epoch_length,
                "data": self.data,
                "best_metric": -math.inf if self.evaluator is None else float(self.evaluator.state.best_metric),
                "best_metric_epoch": best_epoch,
            },
            self._resume_path,
        )

    def _write_model(self, weights: Mapping[str, Tensor], file: Path, engine: Engine) -> None:
        if self.card is None:
            _replace(weights, file)
            return
        measured = engine if self.evaluator is None else self.evaluator
        metrics = {name: float(value) for name, value in measured.state.metrics.items() if is_scalar(value)}
        card = {
            **self.card,
            "epochs": engine.state.epoch,
            "metrics": {name: value for name, value in metrics.items() if math.isfinite(value)},
        }
        _replace(with_card(weights, card), file)
        write_card(card, file)


def _replace(content: Mapping[str, Any], path: Path) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    torch.save(content, unfinished)
    os.replace(unfinished, path)
