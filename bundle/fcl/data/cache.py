"""The slice cache: every slice of a site, preprocessed once, in one memory-mapped array.

Letters: N slices, S partitions, D slices of one volume, z index of a slice in its volume.

Volumes are preprocessed by as many threads as torch may use, each with transforms of its own (MONAI's keep what they
read last), and written in the order of the records as they come: neither their number nor who was first changes a byte,
and memory holds a few volumes whatever their number.

Limits: the lock needs a file system with working locks, as local disks have.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from filelock import FileLock, Timeout

from .check import check_records
from .fingerprint import cache_key
from .parallel import in_order, one_thread_per_operation
from .problems import DataProblems, Problem
from .progress import track
from .records import VolumeRecord

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
UNLABELLED = 255
_INDEX, _IMAGES, _LABELS = "index.json", "images.f16", "labels.u8"
_HALF_BUILT = ".tmp"
_MAX_HALF = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class VolumeInfo:
    """What the cache knows of a volume; ``slices`` is its D."""

    volume: str
    patient: str
    phase: str
    labelled: bool
    slices: int


class SliceCache:
    """A finished cache folder, read only. Pickles as its folder name, so that workers map the same file.

    Attributes:
        images: (N, 1, H, W) float16 memory map.
        labels: (N, 1, H, W) uint8 memory map, 255 in volumes without label; ``None`` when no volume has one.
        volume: (N,) int64 index into ``volumes``.
        position: (N,) float32, z / D in [0, 1).
        partition: (N,) int64, floor(z * S / D).
        volumes: one ``VolumeInfo`` per volume, in the order of the records.
        partitions: S.

    Raises:
        ValueError: when the folder is no complete cache of this version.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            index = json.loads((self.folder / _INDEX).read_text(encoding="utf-8"))
            if index["version"] != FORMAT_VERSION:
                raise ValueError(f"format version {index['version']}, this code reads {FORMAT_VERSION}")
            self.volumes = [VolumeInfo(**info) for info in index["volumes"]]
            self.partitions = int(index["partitions"])
            counts = [info.slices for info in self.volumes]
            shape = (sum(counts), 1, *index["spatial_size"])
            self.images = _map(self.folder / _IMAGES, np.float16, shape)
            labelled = any(info.labelled for info in self.volumes)
            self.labels = _map(self.folder / _LABELS, np.uint8, shape) if labelled else None
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.folder} is no complete slice cache ({error}); delete it") from error
        self.volume = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
        depth = np.repeat(np.array(counts, dtype=np.int64), counts)
        z = np.concatenate([np.arange(count, dtype=np.int64) for count in counts])
        self.position = (z / depth).astype(np.float32)
        self.partition = z * self.partitions // depth

    def __len__(self) -> int:
        return len(self.volume)

    def __reduce__(self) -> tuple[type[SliceCache], tuple[Path]]:
        return SliceCache, (self.folder,)


def build_slice_cache(
    records: Sequence[VolumeRecord],
    preprocessing: Callable[[dict[str, Any]], Mapping[str, Any]],
    cache_dir: str | Path,
    partitions: int = 4,
    progress: bool = True,
    labels: Mapping[str, int] | None = None,
    wait_s: float = 7200.0,
    slice_axis: int = 2,
    check: Callable[[], None] | None = None,
) -> SliceCache:
    """Open the cache of these records and transforms, building it first if it is not there.

    The folder name is a hash of files, frames, transforms, partitions and labels. A build goes to a temporary folder
    that is renamed when complete, under a lock that the operating system drops with its process: a process that asks
    meanwhile waits and then opens the same cache, and a killed build leaves nothing that the next one would trust.

    Args:
        records: volumes, e.g. ``SiteSplit.records``.
        preprocessing: maps ``VolumeRecord.as_item()`` to ``image`` (1, H, W, D) and, if present, ``label``; nothing
            random. Threads work on deep copies of it.
        cache_dir: folder of all caches.
        partitions: S.
        progress: show bars (where stderr is a terminal or ``FCL_PROGRESS=1``).
        labels: declared structures and values, for the check of the label files.
        wait_s: how long to wait for another process that builds the same cache.
        slice_axis: which axis of the files counts slices, for the check; ``preprocessing`` puts it last.
        check: takes the place of :func:`check_records` before a build, e.g. ``SiteCheck.require_sound_files``.

    Raises:
        DataProblems: everything wrong with the volumes, from :func:`check_records` and from the transforms' results.
        TimeoutError: when another process has held the lock for ``wait_s`` seconds.
        OSError: when ``cache_dir`` cannot be written.
    """
    if partitions < 1:
        raise ValueError(f"partitions must be at least 1, got {partitions}")
    if not records:
        check_records(records, partitions, labels)
    root = Path(cache_dir).expanduser()
    folder = root / cache_key(records, preprocessing, partitions, labels, FORMAT_VERSION)
    if folder.is_dir() and (cache := _open_complete(folder)):
        return cache
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot create the cache folder {root} ({error}). Set --cache_dir or FCL_CACHE_DIR") from error
    lock = FileLock(f"{folder}.lock")
    _acquire(lock, folder, wait_s)
    try:
        _sweep(root, folder)
        if folder.is_dir():
            if cache := _open_complete(folder):
                return cache
            shutil.rmtree(folder)
        half_built = folder.with_name(folder.name + _HALF_BUILT)
        if check is not None:
            check()
        with one_thread_per_operation() as threads:
            if check is None:
                check_records(records, partitions, labels, progress, slice_axis, threads)
            try:
                half_built.mkdir()
                _write(records, preprocessing, half_built, partitions, progress, threads)
                half_built.rename(folder)
            except BaseException:
                shutil.rmtree(half_built, ignore_errors=True)
                raise
    finally:
        lock.release()
    cache = SliceCache(folder)
    logger.info("Slice cache %s: %d volumes, %d slices", folder, len(cache.volumes), len(cache))
    return cache


def _open_complete(folder: Path) -> SliceCache | None:
    try:
        return SliceCache(folder)
    except ValueError as error:
        logger.warning("%s. It is built anew", error)
        return None


def _acquire(lock: FileLock, folder: Path, wait_s: float) -> None:
    try:
        try:
            lock.acquire(timeout=min(1.0, wait_s))
        except Timeout:
            logger.info("Another process builds %s; waiting for it", folder)
            lock.acquire(timeout=max(0.0, wait_s - 1.0))
    except Timeout:
        raise TimeoutError(
            f"{lock.lock_file} has been held for {wait_s:g} s. If no process builds this cache, delete the file"
        ) from None


def _sweep(root: Path, own: Path) -> None:
    """Remove what killed builds left; a folder whose lock is held is being built and stays."""
    for leftover in root.glob(f"*{_HALF_BUILT}"):
        key = leftover.name.removesuffix(_HALF_BUILT)
        if key == own.name:
            shutil.rmtree(leftover, ignore_errors=True)
            continue
        try:
            with FileLock(root / f"{key}.lock", timeout=0):
                shutil.rmtree(leftover, ignore_errors=True)
        except Timeout:
            continue


def _write(
    records: Sequence[VolumeRecord],
    preprocessing: Callable[[dict[str, Any]], Mapping[str, Any]],
    folder: Path,
    partitions: int,
    progress: bool,
    threads: int,
) -> None:
    problems: list[Problem] = []
    infos: list[VolumeInfo] = []
    size: tuple[int, int] | None = None
    any_label = any(record.label is not None for record in records)
    with open(folder / _IMAGES, "wb") as images, open(folder / _LABELS, "wb") as labels:
        results = in_order(_Preprocess(preprocessing), records, threads)
        tracked = track(results, "preprocessing", "volume", progress, total=len(records))
        for record, result in zip(records, tracked, strict=True):
            try:
                if isinstance(result, ValueError):
                    raise result
                image, label = result
                size = size or image.shape[2:]
                _require(image, size, partitions)
            except ValueError as error:
                fix = "correct `preprocessing`, or leave the volume out"
                problems.append(Problem(record.image, str(error), fix, "preprocessing"))
                continue
            _append(images, image)
            if any_label:
                _append(labels, np.full_like(image, UNLABELLED, dtype=np.uint8) if label is None else label)
            infos.append(VolumeInfo(record.volume, record.patient, record.phase, label is not None, len(image)))
    if problems:
        raise DataProblems(problems)
    index = {
        "version": FORMAT_VERSION,
        "partitions": partitions,
        "spatial_size": size,
        "volumes": [asdict(info) for info in infos],
    }
    (folder / _INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")


class _Preprocess:
    """Preprocesses volumes; each thread has its own copy of the transforms."""

    def __init__(self, preprocessing: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
        self._original = preprocessing
        self._copying = threading.Lock()
        self._own = threading.local()

    def __call__(self, record: VolumeRecord) -> tuple[np.ndarray, np.ndarray | None] | ValueError:
        """Image and label, or what is wrong with them: one bad volume must not hide the others."""
        if not hasattr(self._own, "preprocessing"):
            with self._copying:
                self._own.preprocessing = copy.deepcopy(self._original)
        try:
            return _preprocess(record, self._own.preprocessing)
        except ValueError as error:
            return error


def _preprocess(
    record: VolumeRecord, preprocessing: Callable[[dict[str, Any]], Mapping[str, Any]]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Image (D, 1, H, W) float16 and label (D, 1, H, W) uint8 of one volume."""
    try:
        item = preprocessing(record.as_item())
    except Exception as error:
        cause = error.__cause__ or error
        raise ValueError(f"preprocessing failed ({type(cause).__name__}: {cause})") from error
    image = _slices_first(item["image"])
    if not np.isfinite(image).all() or np.abs(image).max() > _MAX_HALF:
        raise ValueError(f"preprocessing gives values outside float16, {image.min():g} to {image.max():g}")
    if record.label is None:
        return image.astype(np.float16), None
    label = _slices_first(item["label"])
    if label.shape != image.shape:
        raise ValueError(f"preprocessing gives image slices {image.shape} but label slices {label.shape}")
    return image.astype(np.float16), np.rint(label).astype(np.uint8)


def _slices_first(volume: Any) -> np.ndarray:
    array = torch.as_tensor(volume).detach().cpu().numpy()
    if array.ndim != 4 or array.shape[0] != 1:
        raise ValueError(f"preprocessing gives shape {array.shape}, expected (1, H, W, D)")
    return np.ascontiguousarray(np.moveaxis(array, -1, 0))


def _require(image: np.ndarray, size: tuple[int, ...], partitions: int) -> None:
    if image.shape[2:] != tuple(size):
        raise ValueError(f"preprocessing gives slices {image.shape[2:]}, those of the first volume are {tuple(size)}")
    if len(image) < partitions:
        raise ValueError(f"preprocessing leaves {len(image)} slices, fewer than the {partitions} partitions")


def _append(stream: BinaryIO, array: np.ndarray) -> None:
    stream.write(np.ascontiguousarray(array).data)


def _map(file: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> np.memmap:
    expected = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if (found := os.path.getsize(file)) != expected:
        raise ValueError(f"{file.name} has {found} bytes, expected {expected}")
    return np.memmap(file, dtype=dtype, mode="r", shape=shape)
