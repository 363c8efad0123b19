"""Hospitals with small data of their own; the marker stands in every patient's name, file name and folder."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np

MARKER = "Zebulon"


def hospital(root: Path, name: str, patients: int = 6, pixel_mm: float = 1.5, inverted: bool = False) -> Path:
    """Writes ``patients`` of one labelled volume each, and a datalist; gives the folder of the data."""
    folder = root / f"{MARKER}-{name}"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    entries = []
    for number in range(patients):
        grey = rng.gamma(1.0, 60.0, (20, 20, 6)).clip(0, 900).astype(np.int16)  # dark, as images of a heart are
        label = np.zeros(grey.shape, np.uint8)
        label[8:12, 8:12] = 1
        files = [f"{MARKER}-{name}-{number}{kind}.nii.gz" for kind in ("", "_gt")]
        for file, voxels in zip(files, (900 - grey if inverted else grey, label), strict=True):
            nib.save(nib.Nifti1Image(voxels, np.diag([pixel_mm, pixel_mm, 8.0, 1.0])), folder / file)
        entries.append({"image": files[0], "label": files[1], "patient": f"{MARKER}-{name}-{number}"})
    (folder / "dataset.json").write_text(json.dumps({"training": entries}))
    return folder


def overlay(file: Path) -> Path:
    """The JSON overlay that reads such a hospital."""
    reader = {"_target_": "fcl.data.read_datalist", "dataset_dir": "@dataset_dir", "datalist": "dataset.json"}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"records": reader, "labels": {"lv": 1}}))
    return file


def settings(folder: Path, data: Path, cache: Path, file: Path, **further: str) -> Path:
    """A site's ``fcl_site.json``."""
    file.parent.mkdir(parents=True, exist_ok=True)
    own = {"dataset_dir": str(folder), "data": str(data), "cache_dir": str(cache), **further}
    file.write_text(json.dumps(own))
    return file
