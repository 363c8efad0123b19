"""Predicted label maps as NIfTI files in the geometry of the image they belong to."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from fcl.data.check import load_nifti


def write_label_map(label_map: np.ndarray, like: str | Path, path: str | Path) -> None:
    """Write a label map with the header of ``like``: affine, its codes and units stay as they are, voxels are uint8.

    MONAI's ``SaveImage`` keeps the affine only, not which of qform and sform a viewer shall believe. NIfTI-2 stays
    NIfTI-2; of an image that is no NIfTI the geometry is kept.

    Args:
        label_map: (H, W, D), values 0..255.
        like: the image it was made from; of a 4-D file, one frame.
        path: file to write; its folder is made.

    Raises:
        ValueError: when the shape is not that of the image, or the file would replace the image.
    """
    path, like = Path(path), Path(like)
    if path.exists() and path.samefile(like):
        raise ValueError(f"the label map would replace its own image {like}: choose another --output_dir.")
    source = load_nifti(like)
    if label_map.shape != source.shape[:3]:
        raise ValueError(f"{like} has shape {source.shape}, the label map made for it {label_map.shape}.")
    kind = nib.Nifti2Image if isinstance(source.header, nib.Nifti2Header) else nib.Nifti1Image
    header = kind.header_class.from_header(source.header)
    header.set_data_dtype(np.uint8)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(kind(label_map.astype(np.uint8), source.affine, header), path)


class WriteLabelMapd(MapTransform):
    """Postprocessing step that writes ``<output_dir>/<volume>.nii.gz`` and passes the data on.

    Args:
        keys: label maps (1, H, W, D) on the native grid.
        output_dir: folder for the files.
        image_key: ``MetaTensor`` that knows the file it came from.
        name_key: the volume's name.
    """

    def __init__(
        self, keys: KeysCollection, output_dir: str | Path, image_key: str = "image", name_key: str = "volume"
    ) -> None:
        super().__init__(keys)
        self.output_dir = Path(output_dir)
        self.image_key = image_key
        self.name_key = name_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            label_map = torch.as_tensor(d[key])[0].cpu().numpy()
            source = d[self.image_key].meta["filename_or_obj"]
            write_label_map(label_map, source, self.output_dir / f"{d[self.name_key]}.nii.gz")
        return d
