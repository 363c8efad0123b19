"""How a hospital's scanner turns anatomy into a volume: geometry, contrast, coil sensitivity, blur and noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from .phantom_anatomy import Heart, slice_at

_SUBSLICES = 3  # averaged over the slice thickness: partial volume along z


@dataclass(frozen=True)
class Scanner:
    """One hospital's protocol.

    Args:
        spacing: in-plane pixel, mm.
        step: distance of slices, mm.
        matrix: pixels a side.
        gamma: exponent of the grey values, the hospital's contrast.
        bias: depth of the coil's sensitivity profile, share of the signal.
        blur: standard deviation of the point spread, pixels.
        noise: standard deviation of the complex noise, share of the white level.
        level: grey value of white in the file.
        shift: standard deviation of the displacement between breath-holds, mm.
    """

    spacing: float
    step: float
    matrix: int
    gamma: float
    bias: float
    blur: float
    noise: float
    level: float
    shift: float


def draw_scanner(rng: np.random.Generator) -> Scanner:
    """A hospital at random."""
    spacing = float(rng.uniform(1.25, 1.9))
    return Scanner(
        spacing=round(spacing, 4),
        step=float(rng.choice([6.0, 8.0, 10.0])),
        matrix=int(np.clip(round(rng.uniform(195, 245) / spacing / 2) * 2, 112, 160)),
        gamma=float(rng.uniform(0.75, 1.45)),
        bias=float(rng.uniform(0.15, 0.5)),
        blur=float(rng.uniform(0.4, 0.9)),
        noise=float(rng.uniform(0.02, 0.06)),
        level=float(rng.uniform(300, 1500)),
        shift=float(rng.uniform(0.4, 1.6)),
    )


def scan(heart: Heart, scanner: Scanner, session: int) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Image and label map (X, Y, Z) of ``heart`` at its phase.

    Args:
        heart: the patient.
        scanner: the hospital.
        session: seed of what is the same in all phases of an examination (placement, breath-holds) and, with the
            phase, of the noise.
    """
    fixed = np.random.default_rng(session)
    noise = np.random.default_rng((session, round(1000 * heart.phase)))
    slices = int(np.clip(round(heart.length / scanner.step) + fixed.integers(-1, 3), 7, 14))
    first = -fixed.uniform(0.0, 1.2) * scanner.step / heart.length
    places = first + np.arange(slices) * scanner.step / heart.length
    shifts = fixed.normal(0.0, scanner.shift, (slices, 2))
    offset = fixed.normal(0.0, 5.0, 2)
    half = scanner.matrix * scanner.spacing / 2
    axis = (np.arange(scanner.matrix, dtype=np.float32) + 0.5) * scanner.spacing - half
    x, y = np.meshgrid(axis, axis, indexing="ij")
    sensitivity = _sensitivity(x, y, half, scanner.bias, fixed)
    thick = scanner.step / heart.length * 0.8
    images, labels = [], []
    for place, (sx, sy) in zip(places, shifts, strict=True):
        px, py = x - np.float32(sx + offset[0]), y - np.float32(sy + offset[1])
        parts = [
            slice_at(heart, float(place + thick * (i / _SUBSLICES - 0.5 + 0.5 / _SUBSLICES)), px, py, scanner.spacing)
            for i in range(_SUBSLICES)
        ]
        image = np.mean([part[0] for part in parts], axis=0)
        images.append(image)
        labels.append(parts[_SUBSLICES // 2][1])
    volume = np.stack(images, axis=2)
    texture = gaussian_filter(fixed.standard_normal(volume.shape), (2.0, 2.0, 0.6)) * 0.35
    volume = np.clip(volume * (1.0 + texture), 0.0, None) ** scanner.gamma * sensitivity[..., None]
    volume = gaussian_filter(volume, (scanner.blur, scanner.blur, 0.0))
    real = volume + noise.normal(0.0, scanner.noise, volume.shape)
    imaginary = noise.normal(0.0, scanner.noise, volume.shape)
    magnitude = np.hypot(real, imaginary)  # Rician, as magnitude images are
    return np.round(magnitude * scanner.level).astype(np.int16), np.stack(labels, axis=2)


def _sensitivity(
    x: NDArray[np.float32], y: NDArray[np.float32], half: float, depth: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """A surface coil's profile: brightest near one point of the chest wall."""
    angle = rng.uniform(-np.pi, 0.0)
    distance = np.hypot(x - half * np.cos(angle), y - half * np.sin(angle)) / (2 * half)
    return (1.0 - depth * distance).astype(np.float32)
