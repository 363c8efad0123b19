from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from fcl.data import DataProblems, SliceCache, build_slice_cache, read_acdc

LABELS = {"rv": 1, "myo": 2, "lv": 3}


class Counting:
    """Preprocessing that counts its volumes, in all its copies together, and fails at the one asked for."""

    def __init__(self, transform, fail_at: int | None = None) -> None:
        self.transform = transform
        self._state = {"count": 0, "fail_at": fail_at}

    def __deepcopy__(self, memo):
        one = Counting(copy.deepcopy(self.transform, memo))
        one._state = self._state
        return one

    def __call__(self, item):
        self._state["count"] += 1
        if self._state["count"] == self._state["fail_at"]:
            raise KeyboardInterrupt
        return self.transform(item)

    @property
    def count(self) -> int:
        return self._state["count"]


@pytest.fixture(autouse=True)
def _count_is_no_setting(monkeypatch):
    monkeypatch.setattr("fcl.data.fingerprint._GAINED", ("_tracing", "filenames", "_state"))


def test_rows_are_the_preprocessed_slices(acdc, preprocessing, tmp_path):
    records = read_acdc(acdc(patients=2, cine=3))
    cache = build_slice_cache(records, preprocessing, tmp_path / "cache", labels=LABELS)
    assert cache.images.dtype == np.float16
    assert cache.labels is not None
    assert [info.volume for info in cache.volumes] == [record.volume for record in records]
    row = 0
    for number, record in enumerate(records):
        item = preprocessing(record.as_item())
        for z in range(6):
            assert np.array_equal(cache.images[row, 0], item["image"][0, ..., z].numpy().astype(np.float16))
            expected = item["label"][0, ..., z].numpy() if record.label else np.full((16, 16), 255)
            assert np.array_equal(cache.labels[row, 0], expected)
            assert (cache.volume[row], cache.position[row]) == (number, np.float32(z / 6))
            row += 1
    assert row == len(cache)
    assert [info.labelled for info in cache.volumes] == [record.label is not None for record in records]


class SecondFirst:
    """Preprocessing that ends the first volume after the second, and keeps what it read last, as MONAI's readers do."""

    def __init__(self, transform, first: str) -> None:
        self.transform, self.first = transform, first
        self._state = {"second_done": threading.Event()}

    def __deepcopy__(self, memo):
        one = SecondFirst(copy.deepcopy(self.transform, memo), self.first)
        one._state = self._state
        return one

    def __call__(self, item):
        self.last = item
        if item["volume"] == self.first:
            assert self._state["second_done"].wait(30)
        result = self.transform(self.last)
        if item["volume"] != self.first:
            self._state["second_done"].set()
        return result


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_and_their_order_change_no_byte(acdc, preprocessing, tmp_path, own_thread_count, threads):
    records = read_acdc(acdc(patients=3, cine=3))
    torch.set_num_threads(threads)
    own = SecondFirst(preprocessing, records[0].volume) if threads > 1 else preprocessing
    cache = build_slice_cache(records, own, tmp_path / "cache")
    assert torch.get_num_threads() == threads
    items = [preprocessing(record.as_item()) for record in records]
    images = np.concatenate([np.moveaxis(item["image"].numpy(), -1, 0) for item in items])
    assert np.array_equal(cache.images, images.astype(np.float16))
    assert [info.volume for info in cache.volumes] == [record.volume for record in records]


@pytest.mark.parametrize(("slices", "partitions"), [(6, 4), (7, 4), (4, 4), (9, 2), (5, 1), (11, 3)])
def test_partitions_are_ordered_blocks(acdc, preprocessing, tmp_path, slices, partitions):
    records = read_acdc(acdc(patients=1, slices=slices))
    cache = build_slice_cache(records, preprocessing, tmp_path / "cache", partitions=partitions)
    one = [int(np.floor(z * partitions / slices)) for z in range(slices)]
    assert cache.partition.tolist() == one * 2
    assert set(one) == set(range(partitions))
    assert cache.partition.dtype == np.int64
    assert cache.position.dtype == np.float32


def test_volumes_of_different_depth(acdc, preprocessing, tmp_path, nifti):
    root = acdc(patients=1)
    voxels = np.random.default_rng(1).integers(0, 9, (20, 24, 9), dtype=np.int16)
    nifti(root / "patient001" / "patient001_frame03.nii.gz", voxels)
    nifti(root / "patient001" / "patient001_frame03_gt.nii.gz", np.zeros((20, 24, 9), np.uint8))
    cache = build_slice_cache(read_acdc(root), preprocessing, tmp_path / "cache")
    assert [info.slices for info in cache.volumes] == [6, 9]
    assert cache.volume.tolist() == [0] * 6 + [1] * 9
    assert cache.position[6:].tolist() == pytest.approx([z / 9 for z in range(9)])


def test_no_labels_at_all(acdc, preprocessing, tmp_path):
    root = acdc(patients=1)
    for file in root.glob("*/*_gt.nii.gz"):
        file.unlink()
    assert build_slice_cache(read_acdc(root), preprocessing, tmp_path / "cache").labels is None


def test_second_call_opens_and_a_changed_file_builds_anew(acdc, preprocessing, tmp_path):
    records = read_acdc(acdc(patients=1))
    counting = Counting(preprocessing)
    first = build_slice_cache(records, counting, tmp_path / "cache")
    assert build_slice_cache(records, counting, tmp_path / "cache").folder == first.folder
    assert counting.count == 2
    with open(records[0].image, "ab") as stream:
        stream.write(b"\0")
    assert build_slice_cache(records, counting, tmp_path / "cache").folder != first.folder
    assert counting.count == 4


def test_pickles_as_a_folder_name(acdc, preprocessing, tmp_path):
    cache = build_slice_cache(read_acdc(acdc(patients=1)), preprocessing, tmp_path / "cache")
    packed = pickle.dumps(cache)
    assert len(packed) < 1000
    assert np.array_equal(pickle.loads(packed).images, cache.images)


def test_interrupted_build_leaves_nothing_and_the_next_one_succeeds(acdc, preprocessing, tmp_path):
    records = read_acdc(acdc(patients=2))
    with pytest.raises(KeyboardInterrupt):
        build_slice_cache(records, Counting(preprocessing, fail_at=3), tmp_path / "cache")
    assert [path for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []
    assert len(build_slice_cache(records, Counting(preprocessing), tmp_path / "cache")) == 24


def test_leftovers_of_killed_builds_are_swept(acdc, preprocessing, tmp_path):
    records = read_acdc(acdc(patients=1))
    root = tmp_path / "cache"
    folder = build_slice_cache(records, preprocessing, root).folder
    folder.rename(folder.with_name(folder.name + ".tmp"))  # as if killed before the rename
    (root / "0123.tmp").mkdir()
    (root / "0123.tmp" / "images.f16").write_bytes(b"half")
    assert build_slice_cache(records, preprocessing, root).folder == folder
    assert list(root.glob("*.tmp")) == []


@pytest.mark.parametrize("file", ["images.f16", "labels.u8", "index.json"])
def test_damaged_cache_is_built_anew(acdc, preprocessing, tmp_path, file):
    records = read_acdc(acdc(patients=1))
    cache = build_slice_cache(records, preprocessing, tmp_path / "cache")
    whole = {path.name: path.read_bytes() for path in cache.folder.iterdir()}
    (cache.folder / file).write_bytes(whole[file][:-7])
    with pytest.raises(ValueError, match="no complete slice cache"):
        SliceCache(cache.folder)
    again = build_slice_cache(records, preprocessing, tmp_path / "cache")
    assert {path.name: path.read_bytes() for path in again.folder.iterdir()} == whole


def test_builders_at_the_same_time_build_once(acdc, preprocessing, tmp_path):
    # Locks of two threads exclude each other as those of two processes do: each opens the lock file for itself.
    records = read_acdc(acdc(patients=2))
    counting = Counting(preprocessing)
    start = threading.Barrier(3)
    folders = []

    def build() -> None:
        start.wait()
        folders.append(build_slice_cache(records, counting, tmp_path / "cache").folder)

    threads = [threading.Thread(target=build) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 3
    assert len(set(folders)) == 1
    assert counting.count == len(records)


def test_lock_of_a_living_process_times_out_and_that_of_a_dead_one_does_not_hold(acdc, preprocessing, tmp_path):
    records = read_acdc(acdc(patients=1))
    folder = build_slice_cache(records, preprocessing, tmp_path / "cache").folder
    (folder / "index.json").unlink()
    code = (
        "import sys, time, filelock as f; l = f.FileLock(sys.argv[1]); l.acquire(); print(flush=True); time.sleep(99)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, f"{folder}.lock"], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    try:
        with pytest.raises(TimeoutError, match=r"\.lock has been held"):
            build_slice_cache(records, preprocessing, tmp_path / "cache", wait_s=0.1)
    finally:
        holder.kill()
        holder.wait()
    assert len(build_slice_cache(records, preprocessing, tmp_path / "cache", wait_s=5)) == 12


def test_bad_folder_is_reported_in_full_before_anything_is_written(acdc, preprocessing, tmp_path, nifti):
    root = acdc(patients=3)
    nifti(root / "patient001" / "patient001_frame01.nii.gz", np.zeros((20, 24, 6), np.int16))
    (root / "patient003" / "patient003_frame03_gt.nii.gz").write_bytes(b"")
    counting = Counting(preprocessing)
    with pytest.raises(DataProblems) as caught:
        build_slice_cache(read_acdc(root), counting, tmp_path / "cache", labels=LABELS)
    assert ["constant" in p.what or "truncated" in p.what for p in caught.value.problems] == [True, True]
    assert counting.count == 0


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda item: {**item, "image": item["image"] * 1e6}, "outside float16"),
        (lambda item: {**item, "image": item["image"] * float("nan")}, "outside float16"),
        (lambda item: {key: item[key][..., :3] for key in ("image", "label")}, "leaves 3 slices, fewer than the 4"),
        (lambda item: {**item, "image": item["image"][0]}, "expected (1, H, W, D)"),
        (lambda item: {**item, "label": item["label"][:, :3]}, "label slices"),
        (lambda item: {}[item], "preprocessing failed (TypeError"),
    ],
)
def test_unusable_results_of_preprocessing_are_reported_for_every_volume(
    acdc, preprocessing, tmp_path, spoil, expected
):
    records = read_acdc(acdc(patients=2))
    with pytest.raises(DataProblems) as caught:
        build_slice_cache(records, lambda item: spoil(preprocessing(item)), tmp_path / "cache")
    assert [p.file for p in caught.value.problems] == [record.image for record in records]
    assert all(expected in p.what for p in caught.value.problems)


def test_slices_of_different_size(acdc, preprocessing, tmp_path, nifti):
    root = acdc(patients=1)
    preprocessing.transforms = preprocessing.transforms[:-1]
    nifti(root / "patient001" / "patient001_frame03.nii.gz", np.random.default_rng(0).random((20, 32, 6)))
    (root / "patient001" / "patient001_frame03_gt.nii.gz").unlink()
    with pytest.raises(DataProblems, match=r"gives slices \(15, 24\), those of the first volume are \(15, 18\)"):
        build_slice_cache(read_acdc(root), preprocessing, tmp_path / "cache")


def test_unusable_arguments(preprocessing, tmp_path):
    with pytest.raises(ValueError, match="partitions must be at least 1, got 0"):
        build_slice_cache([], preprocessing, tmp_path, partitions=0)
    with pytest.raises(DataProblems, match="no volume was given"):
        build_slice_cache([], preprocessing, tmp_path)
