"""Several runs of the bundle, as many at a time as there are cores; one after the other where a GPU does the work.

A site's fine-tuning on one patient can take less time than Python needs to start and to import torch and MONAI, and a
study has hundreds of them; two threads hardly make one faster than one thread does, two processes do two in that time.
Each run is what ``python -m monai.bundle run`` would do, with a workflow of its own that seeds everything anew, so that
its result does not depend on what ran before or beside it.

    python -m flare_app.study.bundle_runs --threads 2 runs.json

where the file lists ``{"config_file": [...], "options": {...}}``.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import re
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import fcl

_DONE = re.compile(r"^run (\d+)/\d+ done$", re.MULTILINE)


def runs_done(log: str) -> int:
    """How many runs the log of such a process says are done."""
    return max((int(number) for number in _DONE.findall(log)), default=0)


def shares(threads: int, runs: int, gpu: bool) -> tuple[int, int]:
    """Processes, and threads of each, for so many threads in all."""
    processes = 1 if gpu else max(1, min(threads, runs))
    return processes, max(1, threads // processes)


def _run(entry: Mapping[str, Any], threads: int) -> None:
    from monai.bundle import run

    logging_file = str(fcl.bundle_root() / "configs" / "logging.conf")
    run(config_file=entry["config_file"], logging_file=logging_file, **entry["options"], threads=threads)
    gc.collect()  # a workflow's parts refer to each other, and hold the slices of a site


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; gives the exit code."""
    import torch

    parser = argparse.ArgumentParser(
        prog="python -m flare_app.study.bundle_runs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of torch, for all runs together (1)")
    parser.add_argument("runs", type=Path, metavar="FILE", help="JSON")
    arguments = parser.parse_args(argv)
    runs = json.loads(arguments.runs.read_text(encoding="utf-8"))
    processes, threads = shares(arguments.threads, len(runs), torch.cuda.is_available())
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(_run, entry, threads) for entry in runs]
        try:
            for number, future in enumerate(as_completed(futures), 1):
                future.result()
                print(f"run {number}/{len(runs)} done", flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
