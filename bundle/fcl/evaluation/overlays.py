"""Pictures of a few cases: image, truth and predictions side by side."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from fcl.evaluation.drawing import COLOURS
from fcl.evaluation.metrics import CaseScore

RANKS = ("worst", "median", "best")


def choose_cases(cases: Sequence[CaseScore], ranks: Collection[str] = RANKS) -> dict[str, CaseScore]:
    """The worst, the median and the best case by mean Dice (fewer of fewer cases; unscored ones are left out).

    Args:
        cases: to choose from.
        ranks: which of the three.
    """
    ranked = sorted((c for c in cases if not math.isnan(c.mean_dice)), key=lambda c: (c.mean_dice, c.case))
    if not ranked:
        return {}
    picked: dict[str, CaseScore] = {}
    for name, case in zip(RANKS, (ranked[0], ranked[(len(ranked) - 1) // 2], ranked[-1]), strict=True):
        if case not in picked.values():
            picked[name] = case
    return {name: case for name, case in picked.items() if name in ranks}


def choose_slices(truth: np.ndarray, count: int) -> list[int]:
    """``count`` indices along the last axis, evenly over the slices that show a structure (over all if none does)."""
    shown = np.flatnonzero(truth.any(axis=(0, 1)))
    candidates = shown if len(shown) else np.arange(truth.shape[-1])
    inner = (np.arange(count) + 0.5) / count * len(candidates)
    return sorted({int(candidates[int(i)]) for i in inner})


def crop_box(labels: np.ndarray, spacing: Sequence[float], margin_mm: float = 25.0) -> tuple[slice, slice]:
    """In-plane box around all structures with ``margin_mm`` on each side; the whole plane when there is none."""
    plane = labels.any(axis=-1)
    if not plane.any():
        return slice(None), slice(None)
    box = []
    for axis in (0, 1):
        hit = np.nonzero(plane)[axis]
        margin = round(margin_mm / spacing[axis])
        box.append(slice(max(0, int(hit.min()) - margin), min(plane.shape[axis], int(hit.max()) + margin + 1)))
    return box[0], box[1]


def draw_case(
    image: np.ndarray,
    maps: Mapping[str, np.ndarray],
    spacing: Sequence[float],
    labels: Mapping[str, int],
    title: str,
    path: str | Path,
    slices: int = 3,
) -> None:
    """Write a PNG with one row per slice and the columns image, then one for each label map.

    Args:
        image: (H, W, D) intensities.
        maps: heading to label map (H, W, D); the first, usually the truth, says which slices are shown.
        spacing: voxel size, mm; gives the pixels their true aspect.
        labels: class name to value.
        title: heading of the picture; empty for none.
        path: of the PNG.
        slices: rows at most.
    """
    rows = choose_slices(next(iter(maps.values())), slices)
    box = crop_box(np.logical_or.reduce([label_map > 0 for label_map in maps.values()]), spacing)
    low, high = np.percentile(image[box], (1, 99))
    columns: dict[str, np.ndarray | None] = {"image": None, **maps}
    figure = Figure(figsize=(2.4 * len(columns), 2.4 * len(rows) + 0.9), layout="constrained")
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for number, (line, z) in enumerate(zip(axes, rows, strict=True)):
        for axis, (heading, overlay) in zip(line, columns.items(), strict=True):
            shape = {"origin": "upper", "aspect": spacing[1] / spacing[0], "interpolation": "nearest"}
            axis.imshow(image[(*box, z)].T, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), **shape)
            if overlay is not None:
                axis.imshow(_colour(overlay[(*box, z)], labels).swapaxes(0, 1), **shape)
            axis.set_axis_off()
            if number == 0:
                axis.set_title(heading, fontsize=9)
        which = f"slice {z + 1}/{image.shape[-1]}"
        box_style = {"facecolor": "black", "linewidth": 0, "pad": 1.5}
        line[0].text(0.03, 0.03, which, color="w", fontsize=7, transform=line[0].transAxes, bbox=box_style)
    if title:
        figure.suptitle(title, fontsize=10)
    handles = [Patch(color=COLOURS[i % len(COLOURS)], label=name) for i, name in enumerate(labels)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)


def paint(image: np.ndarray, label_map: np.ndarray | None, labels: Mapping[str, int]) -> np.ndarray:
    """A slice (H, W) with intensities 0..1 as bytes (W, H, 3), as :func:`draw_case` turns it, with its structures."""
    picture = np.repeat(np.clip(image, 0, 1)[..., None], 3, axis=-1)
    if label_map is not None:
        over = _colour(label_map, labels)
        picture = picture * (1 - over[..., 3:]) + over[..., :3] * over[..., 3:]
    return (255 * picture).round().astype(np.uint8).swapaxes(0, 1)


def _colour(label_map: np.ndarray, labels: Mapping[str, int], alpha: float = 0.55) -> np.ndarray:
    picture = np.zeros((*label_map.shape, 4))
    for i, value in enumerate(labels.values()):
        picture[label_map == value] = to_rgba(COLOURS[i % len(COLOURS)], alpha)
    return picture
