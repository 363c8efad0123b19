"""Several runs of the bundle, one after the other, in one process.

A site's fine-tuning on one patient can take less time than Python needs to start and to import torch and MONAI, and a
study has hundreds of them. Each run is what ``python -m monai.bundle run`` would do, with a workflow of its own that
seeds everything anew, so that its result does not depend on what ran before it.

    python -m flare_app.study.bundle_runs runs.json

where the file lists ``{"config_file": [...], "options": {...}}``.
"""

from __future__ import annotations

import gc
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import fcl

_DONE = re.compile(r"^run (\d+)/\d+ done$", re.MULTILINE)


def runs_done(log: str) -> int:
    """How many runs the log of such a process says are done."""
    return max((int(number) for number in _DONE.findall(log)), default=0)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; gives the exit code."""
    from monai.bundle import run

    (file,) = sys.argv[1:] if argv is None else argv
    runs = json.loads(Path(file).read_text(encoding="utf-8"))
    logging_file = str(fcl.bundle_root() / "configs" / "logging.conf")
    for number, entry in enumerate(runs, 1):
        run(config_file=entry["config_file"], logging_file=logging_file, **entry["options"])
        gc.collect()  # a workflow's parts refer to each other, and hold the slices of a site
        print(f"run {number}/{len(runs)} done", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
