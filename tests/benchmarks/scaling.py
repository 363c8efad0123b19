"""What more sites cost: time and bytes of a round for each site and for the server, and the server's memory.

    python -m tests.benchmarks.scaling --out runs/benchmarks/scaling.json --picture bundle/docs/scaling.png
    python -m tests.benchmarks.scaling --sites 4 10 --arms all

Controller, executors, exchange, egress filter, aggregation and feature bank are the real ones, and each payload passes
through FLARE's serialisation. Two things are not: the sites are light ones (right shapes, no training), all in a second
process, one after the other, and there is no network. So this tells what the federation itself costs beside training
and transport, and by which law it grows. Memory is that of the server's process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import torch
from nvflare.apis.shareable import Shareable
from nvflare.app_opt.pt.decomposers import TensorDecomposer
from nvflare.fuel.utils import fobs

from flare_app.protocol import TaskName
from flare_app.records import ROUNDS_FILE, read_rounds
from tests.flare_app.loopback import Federation

BUNDLE = Path(__file__).parent / "light_bundle"
# Arguments of the controller: everybody hears everybody, or a sample of constant size.
ARMS: dict[str, dict[str, Any]] = {
    "all": {},
    "sampled": {"fan_out": 8, "pull_rows": 128, "feature_bits": 8, "weight_bits": 8},
}
_MIB = 2**20


@dataclass(frozen=True)
class Row:
    """A federation of a size.

    Args:
        arm: key of ``ARMS``.
        sites: how many.
        weights_up, weights_down, features_up, features_down: MiB for each site and round.
        site_seconds: of work at a site in a round, without training: reading, coding, checking, filling the bank.
        server_seconds: of work at the server in a round.
        server_mib: most memory that the server's process held beyond what it had before the first round.
    """

    arm: str
    sites: int
    weights_up: float
    weights_down: float
    features_up: float
    features_down: float
    site_seconds: float
    server_seconds: float
    server_mib: float


def _federation(root: Path, sites: int, arguments: Mapping[str, Any]) -> Federation:
    return Federation(
        root,
        [f"site-{number + 1}" for number in range(sites)],
        controller={"exchange": "features", "validate_every": 0, "start_timeout_s": 7200, **arguments},
        executor={"config": ["configs/pretrain.json"], "data": "phantom", "bundle_root": str(BUNDLE)},
        job_policy={"features": ["features"]},
    )


def _serve(connection: Connection, root: Path, sites: int, arguments: Mapping[str, Any]) -> None:
    """The sites' process: does one task after the other, and tells how long each took."""
    torch.set_num_threads(1)
    fobs.register(TensorDecomposer)
    federation = _federation(root, sites, arguments)
    while (asked := connection.recv()) is not None:
        site, name, payload = asked
        began = time.perf_counter()
        reply = fobs.dumps(federation.execute(site, name, fobs.loads(payload)))
        connection.send((time.perf_counter() - began, reply))
        federation.replies.clear()


def measure(arm: str, sites: int, rounds: int, folder: Path) -> Row:
    """Run a federation of ``sites`` for ``rounds`` after one to warm up."""
    arguments = {"num_rounds": rounds + 1, "min_sites": sites, **ARMS[arm]}
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_serve, args=(theirs, folder / "sites", sites, arguments), daemon=True)
    process.start()
    theirs.close()  # else a process that died would be waited for without end
    federation = _federation(folder / "server", sites, arguments)
    seconds: dict[str, float] = {TaskName.SHARE: 0.0, TaskName.TRAIN: 0.0}
    waited = peak = before = 0.0
    began = time.perf_counter()
    memory = psutil.Process()

    def execute(site: str, name: str, payload: Shareable, by: str = "server") -> Shareable:
        nonlocal waited, peak, before, began
        if not before and name == TaskName.TRAIN and payload.get_header("current_round") == 1:
            before, waited, began = memory.memory_info().rss / _MIB, 0.0, time.perf_counter()
            seconds.update(dict.fromkeys(seconds, 0.0))
        message = fobs.dumps(payload)
        asked = time.perf_counter()
        ours.send((site, name, message))
        spent, reply = ours.recv()
        waited += time.perf_counter() - asked
        if name in seconds:
            seconds[name] += spent
        answer = fobs.loads(reply)
        peak = max(peak, memory.memory_info().rss / _MIB)
        return answer

    federation.execute = execute  # type: ignore[method-assign]
    federation.run()
    total = time.perf_counter() - began
    ours.send(None)
    process.join()
    if federation.panics:
        raise RuntimeError(f"the federation of {sites} sites failed: {federation.panics[0]}")
    lines = [line for line in read_rounds(federation.results / ROUNDS_FILE) if line["round"] > 0]
    entries = [entry for line in lines for entry in line["sites"].values()]

    def mean(name: str) -> float:
        return sum(entry[name] for entry in entries) / len(entries) / _MIB

    return Row(
        arm,
        sites,
        mean("bytes_weights_up"),
        mean("bytes_weights_down"),
        mean("bytes_features_up"),
        mean("bytes_features_down"),
        sum(seconds.values()) / rounds / sites,
        (total - waited) / rounds,
        peak - before,
    )


def as_markdown(rows: Sequence[Row]) -> str:
    """The table."""
    lines = [
        "| sites | exchange | weights, MiB up / down a site and round | features, MiB up / down | s a site "
        "| s at the server | MiB at the server |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.sites} | {row.arm} | {row.weights_up:.2f} / {row.weights_down:.2f} | {row.features_up:.2f} / "
        f"{row.features_down:.2f} | {row.site_seconds:.2f} | {row.server_seconds:.1f} | {row.server_mib:.0f} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Row], file: Path) -> None:
    """The curves: what a site receives, what it works, what the server holds, against the number of sites."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = (
        ("MiB that a site receives in a round", lambda row: row.weights_down + row.features_down),
        ("s of work at a site in a round, training left out", lambda row: row.site_seconds),
        ("MiB that rounds add at the server", lambda row: row.server_mib),
    )
    figure, axes = pyplot.subplots(1, len(panels), figsize=(12, 3.4), layout="constrained")
    for axis, (title, value) in zip(axes, panels, strict=True):
        for arm in dict.fromkeys(row.arm for row in rows):
            chosen = [row for row in rows if row.arm == arm]
            axis.plot([row.sites for row in chosen], [value(row) for row in chosen], marker="o", label=arm)
        axis.set(title=title, xlabel="sites")
        axis.title.set_fontsize(10)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0].legend(title="exchange")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sites", type=int, nargs="+", default=[4, 10, 25, 50, 100], metavar="N")
    parser.add_argument("--arms", nargs="+", choices=sorted(ARMS), default=list(ARMS))
    parser.add_argument("--rounds", type=int, default=2, metavar="N", help="measured, after one to warm up (2)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="rows as JSON, written after each")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="curves as PNG")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    fobs.register(TensorDecomposer)
    rows = []
    for arm in arguments.arms:
        for sites in arguments.sites:
            folder = Path(tempfile.mkdtemp())
            try:
                # A process of its own, so that one federation's memory is not another's.
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                    rows.append(pool.submit(measure, arm, sites, arguments.rounds, folder).result())
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            print(as_markdown(rows[-1:]).splitlines()[-1], flush=True)
            if arguments.out:
                arguments.out.parent.mkdir(parents=True, exist_ok=True)
                result = {"machine": platform.processor() or platform.machine(), "rows": [asdict(row) for row in rows]}
                arguments.out.write_text(json.dumps(result, indent=1))
    print(as_markdown(rows))
    if arguments.picture:
        draw(rows, arguments.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
