"""Gzipped files of which frames are read one by one."""

from __future__ import annotations

import gzip
import os
import threading
from typing import Any

import nibabel as nib

_kept = threading.local()


def unpacked(image: Any) -> Any:
    """The image with voxels that can be read in parts at little cost: those of a gzipped file decompressed in memory.

    A gzip can only be read from its start, so that n frames read one by one would cost n / 2 times the whole file.
    Records of a file come one after another; each thread keeps the last file, as stored, and so never more than one.

    Args:
        image: nibabel image as loaded from a file.

    Raises:
        OSError, EOFError: when the file is missing or damaged.
    """
    file = image.get_filename()
    if not isinstance(image, nib.Nifti1Image) or file is None or not file.endswith(".gz"):
        return image
    status = os.stat(file)
    key = (os.path.abspath(file), status.st_size, status.st_mtime_ns)
    if getattr(_kept, "key", None) != key:
        _kept.key = _kept.voxels = None  # the last file goes before the next one comes
        with gzip.open(file) as stream:
            _kept.voxels = type(image).from_bytes(stream.read()).dataobj
        _kept.key = key
    return type(image)(_kept.voxels, image.affine, image.header)
