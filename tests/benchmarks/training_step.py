"""How near training comes to the arithmetic it must do: epochs against the same networks on a resident batch.

    python -m tests.benchmarks.training_step --out runs/benchmarks/training_step.json
    python -m tests.benchmarks.training_step --steps 20 --repeats 5 --set batch_size=64
    pip install --no-deps --target runs/lightly lightly==1.3.3    # once, for the row of lightly; no later one imports
    PYTHONPATH=runs/lightly python -m tests.benchmarks.training_step    # its losses without torchvision

Each row is a ratio of two timings taken in turn in one run, so that a busy machine slows both. The bound is forward,
backward and optimizer of the row's own networks (for FCL with the momentum network's forward pass) on one batch that
never changes: no data, no augmentation, no bank, no logging. Beside it the way that MONAI's tutorials write it:
dictionary transforms for each slice, ``CacheDataset``, ``DataLoader`` with workers, and the same networks and loss.
Beside FCL's step on the resident batch (both encoders, bank, draw, loss, optimizer, no augmentation) stands lightly's
MoCo with its memory bank, on the same networks and batch. Inference is of one volume, all its slices in a batch.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from monai.data import CacheDataset, DataLoader
from monai.inferers import SliceInferer
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
)

from fcl.commandline import key_value
from fcl.data.phantom import generate
from fcl.engines.inferers import AutocastInferer, volume_inferer
from flare_app.precedence import Precedence
from flare_app.workflow import bundle_folder, config_files, open_workflow

SIZE = {"spatial_size": [96, 96], "pixdim": [2.0, 2.0], "batch_size": 32}


@dataclass(frozen=True)
class Row:
    """One ratio.

    Args:
        what: is measured.
        against: what.
        seconds, reference_seconds: of a step, median over repeats.
        ratio: speed of what is measured as a share of the reference's; above 1 it is faster.
        low, high: least and greatest ratio of a repeat.
    """

    what: str
    against: str
    seconds: float
    reference_seconds: float
    ratio: float
    low: float
    high: float


def side_by_side(what: str, against: str, measured: Callable[[], float], reference: Callable[[], float], n: int) -> Row:
    """Time both in turn ``n`` times, after one of each to warm up; they give seconds of a step."""
    measured(), reference()
    pairs = [(measured(), reference()) for _ in range(n)]
    ratios = [b / a for a, b in pairs]
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"{what} against {against}: {statistics.median(ratios):.2f}", file=sys.stderr, flush=True)
    return Row(what, against, ours, theirs, statistics.median(ratios), min(ratios), max(ratios))


def timed(step: Callable[[], None], steps: int) -> Callable[[], float]:
    """Seconds of one of ``steps`` steps."""

    def run() -> float:
        _synchronise()
        began = time.perf_counter()
        for _ in range(steps):
            step()
        _synchronise()
        return (time.perf_counter() - began) / steps

    return run


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Bench:
    """A bundle's training on the phantom, its bound, and the same in MONAI's dictionary idiom.

    Args:
        config: of the bundle.
        data: folder of the phantom.
        steps: of an epoch.
        overrides: further keys.
    """

    def __init__(self, config: str, data: Path, steps: int, overrides: Mapping[str, Any]) -> None:
        root = bundle_folder(None)
        keys = {
            "dataset_dir": str(data),
            "cache_dir": str(data / "cache"),
            "output_dir": str(data / "out"),
            "steps_per_epoch": steps,
            **SIZE,
            **overrides,
        }
        self.workflow, participant = open_workflow(
            root, config_files(root, [config], None), {}, precedence=Precedence(first=keys)
        )
        self.trainer: Any = participant.trainer  # type: ignore[attr-defined]
        self.steps = steps
        self.device = self.trainer.state.device
        self._loader = self.trainer.data_loader
        self.batch = {name: tensor.to(self.device) for name, tensor in next(iter(self._loader)).items()}

    def epoch(self) -> float:
        """Seconds of a step of a whole epoch, as a federation runs it."""
        state = self.trainer.state
        state.epoch, state.iteration, state.max_epochs, state.epoch_length = 0, 0, 1, self.steps
        _synchronise()
        began = time.perf_counter()
        self.trainer.run()
        _synchronise()
        return (time.perf_counter() - began) / self.steps

    def bound(self) -> None:
        """Forward, backward and optimizer on the resident batch."""
        image = self.batch["image"]
        network, momentum = self.trainer.network, getattr(self.trainer, "momentum_network", None)
        network.train()
        if momentum is not None:
            with torch.no_grad():
                self.trainer.inferer(image, momentum)
        out = self.trainer.inferer(image, network)
        self.trainer.optimizer.zero_grad(set_to_none=True)
        out.float().square().mean().backward()
        self.trainer.optimizer.step()

    def whole_step(self) -> None:
        """The trainer's own iteration on the resident batch; augmentation is left out."""
        augmentation, self.trainer.augmentation = self.trainer.augmentation, lambda image, generator: (image, None)
        self.trainer._iteration(self.trainer, self.batch)
        self.trainer.augmentation = augmentation

    def lightly_moco(self) -> Callable[[], None]:
        """A step of MoCo as lightly's examples write it, with as many features in its memory as FCL draws.

        Raises:
            ImportError: when lightly, or what it imports, is not there.
        """
        os.environ["LIGHTLY_DID_VERSION_CHECK"] = "True"  # else it asks its makers' server
        from lightly.loss import NTXentLoss
        from lightly.models.utils import update_momentum

        trainer = self.trainer
        network, momentum, image = trainer.network, trainer.momentum_network, self.batch["image"]
        criterion = NTXentLoss(temperature=0.1, memory_bank_size=trainer.method.drawn_features).to(self.device)

        def step() -> None:
            update_momentum(network, momentum, m=trainer.momentum)
            query = trainer.inferer(image, network)
            with torch.no_grad():
                key = trainer.inferer(image, momentum)
            loss = criterion(query, key)
            loss.backward()
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()

        return step

    def inference(self) -> tuple[Callable[[], None], Callable[[], None], Callable[[], None]]:
        """A volume of ten slices: as the bundle infers it, one slice after the other, and the network alone."""
        network = self.trainer.network.eval()
        volume = self.batch["image"][:10].movedim(0, -1)[None].contiguous()
        size, dtype = volume.shape[2:4], self.trainer.inferer.dtype

        def run_with(inferer: Callable[..., Any], image: torch.Tensor) -> Callable[[], None]:
            @torch.inference_mode()
            def step() -> None:
                inferer(image, network)

            return step

        batched = AutocastInferer(dtype, volume_inferer(size, None))
        one_by_one = AutocastInferer(dtype, SliceInferer(roi_size=size, sw_batch_size=1, spatial_dim=2))
        slices = self.batch["image"][:10]
        return run_with(batched, volume), run_with(one_by_one, volume), run_with(AutocastInferer(dtype), slices)

    def dictionary(self, views: int) -> Callable[[], float]:
        """Seconds of a step with data prepared slice by slice; ``views`` augmented copies of each."""
        dataset = self._loader.dataset
        keys = ["image"] if views > 1 else ["image", "label"]
        items = [{key: dataset[[row]][key][0] for key in keys} for row in range(len(dataset))]
        modes = ["bilinear", "nearest"][: len(keys)]
        transform = Compose(
            [
                RandAffined(
                    keys=keys,
                    prob=0.9,
                    rotate_range=0.5,
                    scale_range=(-0.25, 0.35),
                    translate_range=10,
                    mode=modes,
                    padding_mode="zeros",
                ),
                RandFlipd(keys=keys, prob=0.5, spatial_axis=0),
                RandScaleIntensityd(keys="image", factors=0.2, prob=0.8),
                RandAdjustContrastd(keys="image", prob=0.8, gamma=(0.6, 1.6)),
                RandGaussianNoised(keys="image", prob=0.5, std=0.08),
                RandGaussianSmoothd(keys="image", prob=0.3, sigma_x=(0.5, 1.2), sigma_y=(0.5, 1.2)),
            ]
        )
        cached = CacheDataset(
            items, transform=lambda item: [transform(dict(item)) for _ in range(views)], progress=False
        )
        loader = DataLoader(
            cached,
            batch_size=len(self.batch["image"]),
            shuffle=True,
            drop_last=True,
            num_workers=min(2, os.cpu_count() or 1),
            persistent_workers=True,
            collate_fn=lambda pairs: [
                torch.stack([pair[i]["image"].as_tensor() for pair in pairs]) for i in range(views)
            ],
        )

        def batches() -> Iterator[list[torch.Tensor]]:
            while True:
                yield from loader

        stream = batches()

        def step() -> None:
            self.batch["image"] = next(stream)[-1].to(self.device)
            self.bound()

        return timed(step, self.steps)


def run(steps: int, repeats: int, overrides: Mapping[str, Any]) -> list[Row]:
    """All rows."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = generate(Path(folder), sites=1, patients=12, folds=2, seed=0)
        for config, views in (("configs/pretrain.json", 2), ("configs/finetune.json", 1)):
            bench = Bench(config, data, steps, overrides)
            name = Path(config).stem
            bound = timed(bench.bound, steps)
            rows.append(side_by_side(f"{name}: epoch", "bound", bench.epoch, bound, repeats))
            rows.append(
                side_by_side(f"{name}: epoch", "dictionary transforms", bench.epoch, bench.dictionary(views), repeats)
            )
            rows += _steps(bench, steps, repeats) if views > 1 else _inference(bench, steps, repeats)
            bench.workflow.finalize()
    return rows


def _steps(bench: Bench, steps: int, repeats: int) -> list[Row]:
    try:
        other = bench.lightly_moco()
    except ImportError as error:
        print(f"no row of lightly: {error}", file=sys.stderr)
        return []
    own = timed(bench.whole_step, steps)
    return [side_by_side("pretrain: step", "lightly, MoCo", own, timed(other, steps), repeats)]


def _inference(bench: Bench, steps: int, repeats: int) -> list[Row]:
    batched, one_by_one, network = (timed(step, steps) for step in bench.inference())
    return [
        side_by_side("inference: volume", "bound", batched, network, repeats),
        side_by_side("inference: volume", "slice by slice", batched, one_by_one, repeats),
    ]


def as_markdown(rows: Sequence[Row], where: Mapping[str, Any]) -> str:
    """The table under a line on the machine."""
    lines = [
        f"{where['gpu'] or where['cpu']}, {where['cores']} cores, {where['threads']} threads\n",
        "| what | against | s/step | reference s/step | speed ratio | range |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.what} | {row.against} | {row.seconds:.4f} | {row.reference_seconds:.4f} | {row.ratio:.2f} "
        f"| {row.low:.2f} to {row.high:.2f} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def hardware() -> dict[str, Any]:
    """What the numbers were taken on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), cpu)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpu": gpu}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8, help="of an epoch (8)")
    parser.add_argument("--repeats", type=int, default=3, help="of every timing (3)")
    parser.add_argument("--set", type=key_value, action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, help="JSON file to write, and the table beside it")
    options = parser.parse_args(arguments)
    torch.set_num_threads(os.cpu_count() or 1)
    rows = run(options.steps, options.repeats, dict(options.set))
    where = hardware()
    table = as_markdown(rows, where)
    print(table)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.with_suffix(".md").write_text(table)
        options.out.write_text(json.dumps({"hardware": where, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
