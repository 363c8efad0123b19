"""The two transforms that MONAI lacks for stacks of slices; all others in ``preprocessing`` are MONAI's own."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor, NibabelReader
from monai.transforms import InvertibleTransform, LoadImaged, MapTransform
from monai.transforms.spatial.functional import orientation

from .unpacked import unpacked

# Short-axis stacks are oblique: which anatomical axis lies nearest to their normal differs between patients, so "RAS"
# would move the slice axis out of the last place for some and turn the base-to-apex order round for others. The slice
# axis is therefore one of the file's, and keeps its direction; only the in-plane axes are turned. On ACDC, whose
# affines are diagonal (LPS), this equals Orientationd("RAS").
SLICE_AXIS = 2

# Cosines of directions that differ by less are equal: headers round them to about 1e-7 (quaternions in float32), text
# in DICOM to 1e-6, so that at 45 degrees the last digit would choose the turn.
_EQUALLY_NEAR = 1e-4


class FrameReader(NibabelReader):
    """Reads one frame (or channel) of a 4-D NIfTI, without the voxels of others; of a 3-D one, its label say, all."""

    def __init__(self, frame: int) -> None:
        super().__init__()
        self.frame = frame

    def read(self, data: Any, **kwargs: Any) -> Any:
        """The frame of file ``data`` as a 3-D nibabel image."""
        image = super().read(data, **kwargs)
        return unpacked(image).slicer[..., self.frame] if len(image.shape) == 4 else image


@contextmanager
def _without_word_of_other_readers() -> Iterator[None]:
    """MONAI makes readers of every kind, whichever is asked for; that of DICOM on a GPU says when it lacks one."""
    logger = logging.getLogger("monai.data.nvimgcodec_pydicom_plugin")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader", category=UserWarning)
            yield
    finally:
        logger.setLevel(level)


class LoadFramed(LoadImaged):
    """``LoadImaged`` that, for an item with a frame number, loads that frame of the 4-D file only.

    Args:
        keys: items that hold file names.
        frame_key: item that holds the 0-based frame; without it files load as by ``LoadImaged``.
        allow_missing_keys: skip keys that an item lacks.
    """

    def __init__(self, keys: KeysCollection, frame_key: str = "frame", allow_missing_keys: bool = False) -> None:
        with _without_word_of_other_readers():
            super().__init__(keys, reader="NibabelReader", dtype=np.float32, allow_missing_keys=allow_missing_keys)
        self.frame_key = frame_key

    def __call__(self, data: Mapping[Hashable, Any], reader: Any = None) -> dict[Hashable, Any]:
        frame = data.get(self.frame_key)
        return super().__call__(data, reader if frame is None else FrameReader(frame))


class OrientInPlaned(MapTransform, InvertibleTransform):
    """Put the slice axis of a volume last, and turn the two others to right and anterior (or superior).

    The in-plane axes are swapped and flipped, never resampled, so that they follow the order R, A, S of the anatomical
    axes nearest to them, in their positive direction; of two that are equally near, the first. The slice axis keeps its
    direction. All keys get the turn of the first one that is there: they lie on one grid, but their headers may be
    rounded differently, and an image must not be turned apart from its label.

    Args:
        keys: items with ``MetaTensor`` of shape (1, X, Y, Z).
        allow_missing_keys: skip keys that an item lacks.
        slice_axis: which axis of the files counts slices: 0, 1 or 2.

    Raises:
        ValueError: when ``slice_axis`` is another number.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False, slice_axis: int = SLICE_AXIS) -> None:
        super().__init__(keys, allow_missing_keys)
        if slice_axis not in (0, 1, 2):
            raise ValueError(f"slice_axis must be 0, 1 or 2, an axis of the files, got {slice_axis!r}")
        self.slice_axis = slice_axis

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        turn: np.ndarray | None = None
        for key in self.key_iterator(d):
            affine = _affine(d[key])
            turn = _turn(affine, self.slice_axis) if turn is None else turn
            # Written down, as the inverse of one key does not know which other key gave the turn.
            info = {**self.get_transform_info(), "turn": turn}
            d[key] = orientation(d[key], affine, np.copy(turn), lazy=False, transform_info=info)
        return d

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Undo the turn on each key."""
        d = dict(data)
        for key in self.key_iterator(d):
            turn = self.pop_transform(d[key])["turn"]
            back = nib.orientations.ornt_transform(nib.io_orientation(np.eye(4)), turn)
            with self.trace_transform(False):
                d[key] = orientation(
                    d[key], _affine(d[key]), back, lazy=False, transform_info=self.get_transform_info()
                )
        return d


def _affine(volume: MetaTensor) -> np.ndarray:
    if not isinstance(volume, MetaTensor) or volume.ndim != 4:
        raise ValueError(
            f"OrientInPlaned takes a MetaTensor of shape (1, X, Y, Z), got {type(volume).__name__} of shape "
            f"{tuple(volume.shape)}: put it after LoadFramed and EnsureChannelFirstd."
        )
    return torch.as_tensor(volume.affine).cpu().numpy().astype(np.float64)


def _turn(affine: np.ndarray, slice_axis: int) -> np.ndarray:
    """(3, 2) orientation in nibabel's form: for each axis its new place and its sign."""
    source = _nearest_axes(affine)
    turn = source.copy()
    in_plane = [axis for axis in range(3) if axis != slice_axis]
    turn[sorted(in_plane, key=lambda axis: source[axis, 0]), 0] = [0, 1]
    turn[slice_axis] = [2, 1]
    return turn


def _nearest_axes(affine: np.ndarray) -> np.ndarray:
    """(3, 2) anatomical axis nearest to each of the file's, and its sign: ``nibabel.io_orientation`` but for ties."""
    left, _, right = np.linalg.svd(affine[:3, :3] / nib.affines.voxel_sizes(affine))
    rotation = left @ right  # the nearest to the affine
    nearness = np.abs(rotation)
    strength = nearness.max(axis=0)
    found = np.empty((3, 2))
    for _ in range(3):
        axis = _first_largest(strength)
        nearest = _first_largest(nearness[:, axis])
        found[axis] = nearest, np.sign(rotation[nearest, axis])
        strength[axis] = nearness[nearest] = -1  # taken
    return found


def _first_largest(values: np.ndarray) -> int:
    return int(np.flatnonzero(values > values.max() - _EQUALLY_NEAR)[0])
