"""Building the slice cache: seconds by number of threads, the second start, and memory by number of volumes.

    python -m tests.benchmarks.slice_cache --out runs/benchmarks/slice_cache.json
    python -m tests.benchmarks.slice_cache --volumes 16 128 1000 --threads 2

Each row is a process of its own, with the preprocessing of ``pretrain.json`` on volumes of 216 x 256 x 10 voxels (the
size of ACDC's), all different. Memory is what the process held at most while it built, beyond what it held before.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import torch
from monai.bundle import ConfigParser

from fcl.data import VolumeRecord, build_slice_cache
from flare_app.memory import peak_mib, reset_peak
from flare_app.workflow import bundle_folder

_SHAPE, _SPACING = (216, 256, 10), (1.5, 1.5, 10.0)
_MIB = 2**20


@dataclass(frozen=True)
class Row:
    """One build.

    Args:
        volumes: how many.
        threads: that built.
        seconds: of the build, with the check of the files.
        second_start: seconds to open the finished cache.
        mib: memory that the build added at most.
        cache_mib: size of the finished cache.
    """

    volumes: int
    threads: int
    seconds: float
    second_start: float
    mib: float
    cache_mib: float


def write_volumes(folder: Path, count: int) -> list[VolumeRecord]:
    """Volumes of noise over a gradient, which compress about as badly as MR images do."""
    rng = np.random.default_rng(0)
    base = np.linspace(0, 400, _SHAPE[0])[:, None, None]
    records = []
    for number in range(count):
        voxels = (base + rng.normal(100, 20, _SHAPE)).clip(0).astype(np.int16)
        file = folder / f"volume{number:04d}.nii.gz"
        nib.save(nib.Nifti1Image(voxels, np.diag([*_SPACING, 1.0])), file)
        records.append(VolumeRecord(str(file), None, f"patient{number:04d}", f"volume{number:04d}"))
    return records


def measure(records: Sequence[VolumeRecord], threads: int, folder: Path) -> Row:
    """Build once and open again, in this process."""
    torch.set_num_threads(threads)
    parser = ConfigParser(ConfigParser.load_config_file(bundle_folder(None) / "configs" / "pretrain.json"))
    preprocessing = parser.get_parsed_content("preprocessing")
    preprocessing(records[0].as_item())  # what it loads when first used is not the build's
    reset_peak()
    before, began = psutil.Process().memory_info().rss / _MIB, time.perf_counter()
    cache = build_slice_cache(records, preprocessing, folder, progress=False)
    built, peak = time.perf_counter(), peak_mib()
    build_slice_cache(records, preprocessing, folder, progress=False)
    size = sum(file.stat().st_size for file in cache.folder.iterdir())
    return Row(len(records), threads, built - began, time.perf_counter() - built, peak - before, size / _MIB)


def as_markdown(rows: Sequence[Row]) -> str:
    """The table."""
    lines = [
        "| volumes | threads | s to build | s to open again | MiB held | MiB of cache |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.volumes} | {row.threads} | {row.seconds:.2f} | {row.second_start:.3f} | {row.mib:.0f} "
        f"| {row.cache_mib:.0f} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, nargs="+", default=[16, 128], metavar="N")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}), metavar="N")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON file to write")
    arguments = parser.parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        records = write_volumes(Path(folder), max(arguments.volumes))
        for volumes in arguments.volumes:
            for threads in arguments.threads:
                cache = Path(folder) / f"cache-{volumes}-{threads}"
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                    rows.append(pool.submit(measure, records[:volumes], threads, cache).result())
                print(as_markdown(rows).splitlines()[-1], flush=True)
    print(as_markdown(rows))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
