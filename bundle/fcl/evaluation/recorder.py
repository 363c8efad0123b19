"""Collects the scores of an evaluation run and writes its results; a handler for a MONAI evaluator."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data.utils import affine_to_spacing
from numpy.typing import ArrayLike, DTypeLike

from fcl.data.check import load_nifti
from fcl.evaluation.metrics import CaseScore, score_volume
from fcl.evaluation.overlays import RANKS, choose_cases, draw_case
from fcl.evaluation.table import print_summary, read_rows, summarise, write_csv, write_summary

logger = logging.getLogger(__name__)


class ScoreRecorder:
    """Scores each prediction on the volume's native grid; at the end writes ``scores.csv``, ``summary.json``, pictures.

    Expects decollated output with ``pred`` (1, H, W, D), a label map on the native grid, and in the batch ``truth`` of
    the same shape and ``volume``. ``engine.state.metrics["mean_dice"]`` is set at the end. What an earlier evaluation
    left in the same folders goes when a new one starts: its pictures and label maps would pass for the new one's.

    Args:
        data: the dataset's items (``image``, ``truth``, ``volume``, ``patient``, ``phase``; ``frame`` of a 4-D image).
        labels: class name to value.
        output_dir: folder for the results; made when missing.
        predictions_dir: where the predicted label maps were written, ``<volume>.nii.gz``; pictures are drawn from them.
        overlays: volumes to draw, by their mean Dice: worst, median, best.
        slice_axis: which axis of the files counts slices: pictures are cut along it.

    Raises:
        ValueError: on other ``overlays``.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        labels: Mapping[str, int],
        output_dir: str | Path,
        predictions_dir: str | Path,
        overlays: Collection[str] = RANKS,
        slice_axis: int = 2,
    ) -> None:
        if isinstance(overlays, str) or not set(overlays) <= set(RANKS):
            raise ValueError(f"overlays must be a list of {', '.join(RANKS)}, or of some of them; got {overlays!r}.")
        self.items = {item["volume"]: item for item in data}
        self.labels = dict(labels)
        self.output_dir = Path(output_dir)
        self.predictions_dir = Path(predictions_dir)
        self.overlays = overlays
        self.slice_axis = slice_axis
        self.scores: list[CaseScore] = []

    def attach(self, engine: Engine) -> None:
        """Register on the evaluator."""
        engine.add_event_handler(Events.STARTED, self._clear)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._score)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _clear(self, engine: Engine) -> None:
        self.scores = []
        scores, summary = self.output_dir / "scores.csv", self.output_dir / "summary.json"
        earlier = {row.get("case") for row in read_rows(scores)} if scores.is_file() else set()
        found = [file for rank in RANKS for file in self.output_dir.glob(f"overlay_{rank}_*.png")]
        found += [self.predictions_dir / f"{case}.nii.gz" for case in earlier]
        # The scores last: they say which label maps are an evaluation's.
        for file in (*found, summary, scores):
            file.unlink(missing_ok=True)

    def _score(self, engine: Engine) -> None:
        for batch, output in zip(engine.state.batch, engine.state.output, strict=True):
            truth, item = batch["truth"], self.items[batch["volume"]]
            classes = score_volume(
                torch.as_tensor(output["pred"])[0].cpu().long(),
                torch.as_tensor(truth)[0].cpu().long(),
                affine_to_spacing(truth.affine).tolist(),
                self.labels,
            )
            self.scores.append(CaseScore(item["volume"], item["patient"], item["phase"], classes))

    def _write(self, engine: Engine) -> None:
        self.output_dir.mkdir(parents=True, exist_ok=True)
        summary = summarise(self.scores)
        write_csv(self.scores, self.output_dir / "scores.csv")
        write_summary(summary, self.output_dir / "summary.json")
        for rank, case in choose_cases(self.scores, self.overlays).items():
            self._draw(rank, case)
        print_summary(summary)
        logger.info("scores, summary and pictures are in %s", self.output_dir)
        if summary["mean_dice"] is not None:
            engine.state.metrics["mean_dice"] = summary["mean_dice"]

    def _draw(self, rank: str, case: CaseScore) -> None:
        item = self.items[case.case]
        image, truth, prediction = (
            load_nifti(file) for file in (item["image"], item["truth"], self.predictions_dir / f"{case.case}.nii.gz")
        )
        # Indexed before it is an array, so that no other frame is read.
        voxels = image.dataobj[..., item["frame"]] if len(image.shape) == 4 else image.dataobj
        in_plane = [axis for axis in range(3) if axis != self.slice_axis]
        scores = "  ".join(f"{name} {score.dice:.2f}" for name, score in case.classes.items())
        draw_case(
            self._slices_last(voxels, np.float32),
            {
                "truth": self._slices_last(truth.dataobj, np.uint8),
                "prediction": self._slices_last(prediction.dataobj, np.uint8),
            },
            spacing=[image.header.get_zooms()[axis] for axis in (*in_plane, self.slice_axis)],
            labels=self.labels,
            title=f"{rank}: {case.case} {case.phase}   Dice {scores}",
            path=self.output_dir / f"overlay_{rank}_{case.case}.png",
        )

    def _slices_last(self, voxels: ArrayLike, dtype: DTypeLike) -> np.ndarray:
        return np.moveaxis(np.asarray(voxels).astype(dtype), self.slice_axis, -1)
