from __future__ import annotations

import json

import numpy as np
import pytest

from fcl.data import VolumeRecord
from fcl.data.summary import statistics, summarise

LABELS = {"lv": 3, "myo": 2}
LPS = np.diag([-1.5, -2.0, 8.0, 1.0])


def test_numbers_of_a_volume(tmp_path, nifti):
    voxels = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    label = np.zeros((4, 5, 6), np.uint8)
    label[:2, 0, 0], label[:3, 1, 1] = 3, 2
    record = VolumeRecord(
        str(nifti(tmp_path / "v.nii.gz", voxels, LPS)), str(nifti(tmp_path / "l.nii.gz", label, LPS)), "p", "v"
    )
    (found,) = summarise([record], LABELS)
    assert (found.shape, found.spacing, found.orientation) == ((4, 5, 6), (1.5, 2.0, 8.0), "LPS")
    assert found.across == (0, 0, 1)
    assert found.quantiles == pytest.approx(np.quantile(voxels, (0.01, 0.5, 0.99)))
    assert found.label_ml == pytest.approx({"lv": 2 * 24 / 1000, "myo": 3 * 24 / 1000})
    assert summarise([record], LABELS, slice_axis=1)[0].across == (0, -1, 0)


def test_frames_of_a_cine_and_copies_of_them(tmp_path, nifti):
    frames = np.random.default_rng(0).integers(0, 99, (4, 5, 6, 3), dtype=np.int16)
    frames[..., 2] = frames[..., 0]
    cine = str(nifti(tmp_path / "c.nii.gz", frames))
    alone = str(nifti(tmp_path / "a.nii.gz", frames[..., 1].astype(np.float32)))
    records = [VolumeRecord(cine, None, "p", f"c_t{t:02d}", "cine", t) for t in range(3)]
    first, second, third, single = summarise([*records, VolumeRecord(alone, None, "q", "a")])
    assert first.digest == third.digest != second.digest == single.digest


def test_what_cannot_be_read_is_left_to_the_check(tmp_path, nifti):
    good = VolumeRecord(str(nifti(tmp_path / "g.nii.gz", np.ones((3, 3, 3), np.int16))), None, "p", "g")
    (tmp_path / "bad.nii.gz").write_bytes(b"no gzip")
    bad = [VolumeRecord(str(tmp_path / name), None, "p", name) for name in ("bad.nii.gz", "absent.nii.gz")]
    assert [s.record.volume for s in summarise([*bad, good])] == ["g"]


def test_statistics_count_and_spread(tmp_path, nifti):
    records = []
    for place, (step, depth) in enumerate([(8.0, 6), (10.0, 8), (6.0, 7)]):
        voxels = np.full((4, 5, depth), place, np.int16)
        affine = np.diag([1.5, 1.5, step, 1.0])
        label = (
            str(nifti(tmp_path / f"l{place}.nii.gz", np.full((4, 5, depth), 3, np.uint8), affine)) if place else None
        )
        file = str(nifti(tmp_path / f"v{place}.nii.gz", voxels, affine))
        records.append(VolumeRecord(file, label, f"p{place // 2}", f"v{place}", "ED" if label else ""))
    found = statistics(summarise(records, {"lv": 3}))
    assert (found["patients"], found["volumes"], found["labelled"]) == (2, 3, 2)
    assert found["phases"] == {"-": 1, "ED": 2}
    assert found["orientations"] == {"RAS": 3}
    assert found["spacing_mm"][2] == {"median": 8.0, "min": 6.0, "max": 10.0}
    assert found["shape"][2] == {"median": 7.0, "min": 6.0, "max": 8.0}
    assert found["intensity"]["50 %"] == {"median": 1.0, "min": 0.0, "max": 2.0}
    assert found["label_ml"]["lv"]["max"] == pytest.approx(4 * 5 * 8 * 22.5 / 1000)
    assert json.loads(json.dumps(found)) == found


def test_statistics_of_nothing():
    assert statistics([])["volumes"] == 0
