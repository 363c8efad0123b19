from __future__ import annotations

import gzip
import os
import threading

import nibabel as nib
import numpy as np
import pytest

from fcl.data import LoadFramed
from fcl.data.unpacked import unpacked


@pytest.fixture
def opened(monkeypatch):
    """Names of the gzipped files, as often as they are decompressed as a whole."""
    names = []
    monkeypatch.setattr(
        "fcl.data.unpacked.gzip.open", lambda file: names.append(os.path.basename(file)) or gzip.GzipFile(file)
    )
    return names


@pytest.fixture
def cine(tmp_path):
    """Writes a cine of five frames with a slope, as scanners' converters do, and gives file and voxels."""

    def write(name="c.nii.gz", seed=0):
        stored = np.random.default_rng(seed).integers(0, 999, (8, 9, 6, 5), dtype=np.int16)
        image = nib.Nifti1Image(stored, np.diag([-1.5, -1.5, 8.0, 1.0]))
        image.header.set_slope_inter(0.5, -20)
        nib.save(image, tmp_path / name)
        return str(tmp_path / name), nib.load(tmp_path / name).get_fdata(dtype=np.float32)

    return write


def test_frames_of_a_gzipped_cine_are_decompressed_once(cine, opened):
    file, voxels = cine()
    load = LoadFramed("image")
    for frame in (0, 1, 2, 3, 4, 0):
        loaded = load({"image": file, "frame": frame})["image"]
        assert np.array_equal(loaded, voxels[..., frame])
        assert np.allclose(loaded.affine, nib.load(file).affine)
    assert opened == ["c.nii.gz"]


def test_one_file_is_kept_by_each_thread_until_it_changes(cine, opened):
    (a, voxels), (b, _) = cine("a.nii.gz"), cine("b.nii.gz", seed=1)
    load = LoadFramed("image")

    def read(file):
        return load({"image": file, "frame": 2})["image"]

    for file in (a, a, b, b, a):
        read(file)
    assert opened == ["a.nii.gz", "b.nii.gz", "a.nii.gz"]
    other = threading.Thread(target=read, args=(a,))
    other.start()
    other.join()
    assert len(opened) == 4
    assert np.array_equal(read(a), voxels[..., 2])
    _, changed = cine("a.nii.gz", seed=2)
    assert np.array_equal(read(a), changed[..., 2])


def test_file_that_is_not_compressed_is_read_in_parts_as_it_is(cine, opened):
    file, _ = cine("c.nii")
    image = nib.load(file)
    assert unpacked(image) is image
    assert opened == []


def test_damaged_file_is_not_kept(cine):
    file, _ = cine()
    os.truncate(file, os.path.getsize(file) - 30)
    for _ in range(2):
        with pytest.raises((OSError, EOFError)):
            unpacked(nib.load(file))
