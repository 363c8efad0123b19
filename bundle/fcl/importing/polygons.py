"""Contours as polygons in pixel coordinates, and what is inside them.

A pair is (x, y): column and row of a pixel, whose centre lies at whole numbers; the first pixel is 0.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.path import Path as Outline


def read_polygon(file: Path, size: tuple[int, int], first_pixel: int = 0) -> np.ndarray:
    """(n, 2) corners of a contour file, one "x y" pair a line.

    Args:
        file: text file.
        size: (rows, columns) of its image.
        first_pixel: how the file counts it, 0 or 1; corners are given back counted from 0.

    Raises:
        ValueError: no pairs, fewer than three corners, corners outside the image, or a line that crosses another.
    """
    try:
        pairs = [
            [float(word) for word in line.split()]
            for line in file.read_text(encoding="utf-8").splitlines()
            if line.strip()
        ]
        points = np.array(pairs, dtype=float)
    except (OSError, ValueError) as error:
        raise ValueError(f"is no list of x y pairs ({error})") from error
    if points.size == 0:
        raise ValueError("is empty")
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise ValueError(f"is no list of x y pairs, shape {points.shape}")
    points = points[np.any(points != np.roll(points, 1, axis=0), axis=1)]
    if len(points) < 3 or area(points) == 0:
        raise ValueError(f"encloses nothing, {len(points)} different corners")
    points = points - first_pixel
    low, high = points.min(axis=0), points.max(axis=0)
    rows, columns = size
    if low.min() < -0.5 or high[0] > columns - 0.5 or high[1] > rows - 0.5:
        box = f"x {low[0]:g} to {high[0]:g}, y {low[1]:g} to {high[1]:g}"
        raise ValueError(f"leaves its image of {columns} x {rows} pixels: {box}")
    if crossing := _crossing(points):
        raise ValueError(f"crosses itself, lines from corner {crossing[0] + 1} and from corner {crossing[1] + 1}")
    return points


def area(points: np.ndarray) -> float:
    """Area of a polygon in square pixels (the shoelace formula)."""
    x, y = points.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def inside(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(columns, rows) mask of the pixels whose centre lies inside."""
    rows, columns = size
    x, y = np.meshgrid(np.arange(columns), np.arange(rows), indexing="ij")
    centres = np.column_stack([x.ravel(), y.ravel()])
    return Outline(points, closed=False).contains_points(centres).reshape(columns, rows)


def _crossing(points: np.ndarray) -> tuple[int, int] | None:
    """Two lines that cross in their inner parts; those that only touch are let pass, drawing tools make them."""
    start, end = points, np.roll(points, -1, axis=0)

    def side(origin: np.ndarray, target: np.ndarray, point: np.ndarray) -> np.ndarray:
        """(n, n): on which side of each line (first axis) each point (second axis) lies."""
        along = (target - origin)[:, None]
        to = point[None] - origin[:, None]
        return np.sign(along[..., 0] * to[..., 1] - along[..., 1] * to[..., 0])

    splits = side(start, end, start) * side(start, end, end) < 0
    crossed = np.argwhere(splits & splits.T)
    return (int(crossed[0, 0]), int(crossed[0, 1])) if len(crossed) else None
