"""Anatomy of the phantom: a short-axis view of heart and thorax as soft tissue maps, in millimetres.

No measured data is in it: shapes and sizes are ours, set by eye to the order of magnitude of adult hearts.

Letters: X, Y in-plane pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Array = NDArray[np.float32]

LABELS = {"rv": 1, "myo": 2, "lv": 3}
GROUPS = ("NOR", "DCM", "HCM", "MINF", "RV")

# Grey values in the order of a bright-blood cine: 0 air, 1 fat.
BLOOD, MYOCARDIUM, MUSCLE, LIVER, LUNG, FAT = 0.80, 0.36, 0.40, 0.47, 0.07, 0.95


@dataclass(frozen=True)
class Heart:
    """One patient's heart and the thorax around it. Lengths in mm, angles in radians, ``phase`` 0 at ED and 1 at ES."""

    group: str
    length: float
    radius: float
    wall: float
    septum: float
    ejection: float
    ellipticity: float
    rv_radius: float
    rv_angle: float
    centre: tuple[float, float]
    tilt: tuple[float, float]
    infarct: float
    papillary: tuple[float, float]
    chest: tuple[float, float]
    liver: float
    texture: int
    phase: float = field(default=0.0)

    def at(self, phase: float) -> Heart:
        """The same heart at another phase of its beat."""
        return replace(self, phase=phase)


def draw_heart(rng: np.random.Generator) -> Heart:
    """A patient at random; the disease groups are ACDC's, each with what it changes in size, wall or motion."""
    group = GROUPS[int(rng.integers(len(GROUPS)))]
    size = rng.normal(1.0, 0.09)
    heart = Heart(
        group=group,
        length=float(rng.uniform(72, 92) * size),
        radius=float(rng.uniform(21, 26) * size),
        wall=float(rng.uniform(7.5, 10.5)),
        septum=float(rng.uniform(0.9, 1.2)),
        ejection=float(rng.uniform(0.28, 0.38)),
        ellipticity=float(rng.uniform(0.9, 1.12)),
        rv_radius=float(rng.uniform(26, 33) * size),
        rv_angle=float(np.pi + rng.normal(0.0, 0.4)),
        centre=(float(rng.normal(6, 7)), float(rng.normal(-4, 7))),
        tilt=(float(rng.normal(0.12, 0.08)), float(rng.normal(0.05, 0.08))),
        infarct=float(rng.uniform(-np.pi, np.pi)),
        papillary=(float(rng.uniform(0.3, 1.0)), float(rng.uniform(-2.6, -1.6))),
        chest=(float(rng.uniform(135, 165)), float(rng.uniform(95, 120))),
        liver=float(rng.uniform(0.45, 0.75)),
        texture=int(rng.integers(2**31)),
    )
    if group == "DCM":
        return replace(heart, radius=heart.radius * 1.38, ejection=heart.ejection * 0.35)
    if group == "HCM":
        return replace(heart, radius=heart.radius * 0.86, wall=heart.wall * 1.55, septum=float(rng.uniform(1.2, 1.6)))
    if group == "MINF":
        return replace(heart, radius=heart.radius * 1.15, ejection=heart.ejection * 0.55)
    if group == "RV":
        return replace(heart, rv_radius=heart.rv_radius * 1.3)
    return heart


def _disc(x: Array, y: Array, cx: float, cy: float, radius: Array | float, soft: float) -> Array:
    """Soft membership 0..1 of a disc; ``soft`` mm across its edge."""
    distance = np.asarray(radius - np.hypot(x - cx, y - cy), dtype=np.float32)
    return np.clip(distance / soft + 0.5, 0.0, 1.0)


def _ellipse(x: Array, y: Array, cx: float, cy: float, rx: float, ry: float, soft: float) -> Array:
    scale = min(rx, ry)
    distance = (1.0 - np.hypot((x - cx) / rx, (y - cy) / ry)) * scale
    return np.clip(distance.astype(np.float32) / soft + 0.5, 0.0, 1.0)


def _paint(canvas: Array, membership: Array, value: Array | float) -> Array:
    return canvas + membership * (value - canvas)


def slice_at(heart: Heart, s: float, x: Array, y: Array, soft: float) -> tuple[Array, NDArray[np.uint8]]:
    """Grey values and labels of one infinitely thin slice.

    Args:
        heart: who, and at which phase.
        s: place along the long axis, 0 at the base and 1 at the apex; beyond either the heart has no labels.
        x, y: coordinates of the pixels in mm from the centre of the field of view, to the left and to the back.
        soft: width of edges in mm (a pixel).

    Returns:
        grey values (X, Y) about 0..1, labels (X, Y).
    """
    rng = np.random.default_rng(heart.texture)  # the same structures in every slice of a patient
    canvas = _thorax(heart, s, x, y, soft, rng)
    along = heart.length * (s - 0.4)
    cx, cy = heart.centre[0] + heart.tilt[0] * along, heart.centre[1] + heart.tilt[1] * along
    dx, dy = x - cx, (y - cy) * heart.ellipticity
    angle = np.arctan2(dy, dx)
    label = np.zeros(x.shape, np.uint8)
    if s < 0.0:  # atria and great vessels: blood that is no ventricle
        canvas = _paint(canvas, _disc(x, y, cx, cy, heart.radius * (1 + s), soft), BLOOD * 0.97)
        grown = _disc(x, y, cx - heart.rv_radius * 0.9, cy - 8, heart.rv_radius * (0.75 + s), soft)
        return _paint(canvas, grown, BLOOD * 0.93), label
    if s > 1.0:
        return canvas, label

    shape = float(np.sqrt(max(0.0, 1.0 - s**2.4)))
    beat = np.full(x.shape, heart.phase * heart.ejection, np.float32)
    wall = np.full(x.shape, heart.wall * (0.55 + 0.45 * shape), np.float32)
    towards_septum = np.cos(angle - heart.rv_angle)
    wall *= 1.0 + (heart.septum - 1.0) * np.clip(towards_septum, 0, 1)
    if heart.group == "MINF":
        scar = np.clip(np.cos(angle - heart.infarct) * 1.6 - 0.6, 0, 1)
        wall *= 1.0 - 0.45 * scar
        beat *= 1.0 - 0.9 * scar
    cavity = heart.radius * shape * (1.0 - beat)
    wall = wall * (1.0 + 0.9 * beat)
    wobble = 1.0 + 0.03 * np.sin(3 * angle + heart.infarct) + 0.02 * np.sin(5 * angle)
    radial = np.hypot(dx, dy) / wobble
    endo = np.clip((cavity - radial) / soft + 0.5, 0, 1).astype(np.float32)
    epi = np.clip((cavity + wall - radial) / soft + 0.5, 0, 1).astype(np.float32)

    rv_shape = float(np.clip(1.05 - (s / 0.82) ** 2.2, 0.0, 1.0) ** 0.6) if s < 0.84 else 0.0
    rv_radius = heart.rv_radius * rv_shape * (1.0 - 0.7 * heart.phase * heart.ejection)
    reach = (heart.radius * shape + heart.wall) * 0.72 + 0.18 * heart.rv_radius
    rx, ry = cx + reach * np.cos(heart.rv_angle), cy + reach * np.sin(heart.rv_angle)
    outflow = max(0.0, 1.0 - s / 0.22) * 0.35 * heart.rv_radius
    rv = np.maximum(
        _ellipse(x, y, rx, ry, max(rv_radius, 0.1), max(rv_radius * 1.12, 0.1), soft),
        _disc(x, y, rx + 4, ry - rv_radius * 0.75, outflow, soft) if outflow > 0 else np.float32(0),
    )
    free_wall = _ellipse(x, y, rx, ry, max(rv_radius, 0.1) + 3.2, max(rv_radius * 1.12, 0.1) + 3.2, soft)

    canvas = _paint(canvas, _disc(x, y, cx, cy, heart.radius * shape + heart.wall + 6.5, 4 * soft) * 0.6, FAT * 0.8)
    if rv_radius > 1.0:
        canvas = _paint(canvas, free_wall, MYOCARDIUM)
        canvas = _paint(canvas, rv, BLOOD * 0.9)
        trabeculae = gaussian_filter(rng.standard_normal(x.shape).astype(np.float32), 2.2 / soft)
        trabeculae = (trabeculae > 0.9 * trabeculae.std()) & (rv > 0.5)
        canvas = _paint(canvas, trabeculae.astype(np.float32) * 0.6, MYOCARDIUM)
    canvas = _paint(canvas, epi, MYOCARDIUM)
    canvas = _paint(canvas, endo, BLOOD)
    if 0.25 < s < 0.8:
        for turn in heart.papillary:
            radius = float(np.mean(cavity)) * 0.62
            muscle = _disc(x, y, cx + radius * np.cos(turn), cy + radius * np.sin(turn), 3.6, soft) * endo
            canvas = _paint(canvas, muscle, MYOCARDIUM * 1.1)
    if rv_radius > 1.0:
        label[rv >= 0.5] = LABELS["rv"]
    label[epi >= 0.5] = LABELS["myo"]
    label[endo >= 0.5] = LABELS["lv"]
    return canvas, label


def _thorax(heart: Heart, s: float, x: Array, y: Array, soft: float, rng: np.random.Generator) -> Array:
    """What surrounds the heart at the height ``s``: wall, lungs, liver, spine, aorta, stomach."""
    wide, deep = heart.chest
    canvas = np.zeros(x.shape, np.float32)
    canvas = _paint(canvas, _ellipse(x, y, -10, 12, wide, deep, soft), FAT)
    canvas = _paint(canvas, _ellipse(x, y, -10, 12, wide - 14, deep - 13, soft), MUSCLE)
    for side in (-1.0, 1.0):
        canvas = _paint(
            canvas,
            _ellipse(
                x,
                y,
                side * wide * 0.5 - 8,
                10 + 14 * s,
                wide * 0.42 * (1.1 - 0.25 * s),
                deep * (0.78 - 0.3 * max(s, 0)),
                2 * soft,
            ),
            LUNG,
        )
    rise = np.clip((s - 0.15) * 1.4, 0.0, 1.3)
    if rise > 0:
        canvas = _paint(
            canvas, _ellipse(x, y, -52, 52 - 22 * rise, 70 * heart.liver * rise + 8, 44 * rise + 6, 2 * soft), LIVER
        )
        canvas = _paint(canvas, _disc(x, y, 58, 46 - 12 * rise, 6 + 22 * rise * heart.liver, 2 * soft), 0.62)
    canvas = _paint(canvas, _disc(x, y, -22, 74, 17, soft), 0.55)
    canvas = _paint(canvas, _disc(x, y, -22, 92, 7, soft), 0.25)
    canvas = _paint(canvas, _disc(x, y, 8, 62, 11, soft), BLOOD)
    vessels = rng.uniform(-70, 70, (14, 2))
    for vx, vy in vessels:
        canvas = _paint(
            canvas,
            _disc(x, y, float(vx) * 1.3 + 18 * s, float(vy) - 10 * s, float(rng.uniform(1.5, 4)), soft) * 0.7,
            0.6,
        )
    return canvas
