"""The two transforms that MONAI lacks for stacks of slices; all others in ``preprocessing`` are MONAI's own."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor, NibabelReader
from monai.transforms import InvertibleTransform, LoadImaged, MapTransform
from monai.transforms.spatial.functional import orientation
from monai.utils import TraceKeys

# Short-axis stacks are oblique: which anatomical axis lies nearest to their normal differs between patients, so "RAS"
# would move the slice axis out of the last place for some and turn the base-to-apex order round for others. The slice
# axis therefore stays where the file has it; only the in-plane axes are turned. On ACDC, whose affines are diagonal
# (LPS), this equals Orientationd("RAS").
SLICE_AXIS = 2


class FrameReader(NibabelReader):
    """Reads one frame of a 4-D NIfTI; voxels of other frames are not kept in memory."""

    def __init__(self, frame: int) -> None:
        super().__init__()
        self.frame = frame

    def read(self, data: Any, **kwargs: Any) -> Any:
        """The frame of file ``data`` as a 3-D nibabel image."""
        return super().read(data, **kwargs).slicer[..., self.frame]


class LoadFramed(LoadImaged):
    """``LoadImaged`` that, for an item with a frame number, loads that frame of the 4-D file only.

    Args:
        keys: items that hold file names.
        frame_key: item that holds the 0-based frame; without it files load as by ``LoadImaged``.
        allow_missing_keys: skip keys that an item lacks.
    """

    def __init__(self, keys: KeysCollection, frame_key: str = "frame", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, reader="NibabelReader", dtype=np.float32, allow_missing_keys=allow_missing_keys)
        self.frame_key = frame_key

    def __call__(self, data: Mapping[Hashable, Any], reader: Any = None) -> dict[Hashable, Any]:
        frame = data.get(self.frame_key)
        return super().__call__(data, reader if frame is None else FrameReader(frame))


class OrientInPlaned(MapTransform, InvertibleTransform):
    """Turn the first two axes of a stack to right and anterior (or superior), and leave the slice axis alone.

    The in-plane axes are swapped and flipped, never resampled, so that they follow the order R, A, S of the anatomical
    axes nearest to them, in their positive direction.

    Args:
        keys: items with ``MetaTensor`` of shape (1, X, Y, Z).
        allow_missing_keys: skip keys that an item lacks.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            affine = _affine(d[key])
            turn = _in_plane_turn(affine)
            d[key] = orientation(d[key], affine, turn, lazy=False, transform_info=self.get_transform_info())
        return d

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Undo the turn on each key."""
        d = dict(data)
        for key in self.key_iterator(d):
            turn = _in_plane_turn(self.pop_transform(d[key])[TraceKeys.EXTRA_INFO]["original_affine"])
            back = nib.orientations.ornt_transform(_in_plane_turn(np.eye(4)), turn)
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


def _in_plane_turn(affine: np.ndarray) -> np.ndarray:
    """(3, 2) orientation in nibabel's form: for each axis its new place and its sign."""
    source = nib.io_orientation(affine)
    turn = np.array([[0.0, source[0, 1]], [1.0, source[1, 1]], [float(SLICE_AXIS), 1.0]])
    if source[0, 0] > source[1, 0]:
        turn[:2, 0] = [1.0, 0.0]
    return turn
