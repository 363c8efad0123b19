"""Pre-training learns: features of held-out patients tell the partition better than the random encoder's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigWorkflow

import fcl
from fcl.data.phantom import generate

ACDC = Path(os.environ.get("FCL_ACDC_DIR", Path(__file__).parents[3] / "shared" / "data" / "acdc"))
CONFIG = fcl.bundle_root() / "configs" / "pretrain.json"


def accuracy_before_and_after(dataset_dir: Path, cache_dir: Path) -> tuple[float, float]:
    """Partition kNN accuracy on the validation fold, at a size at which training takes half a minute."""
    overrides: dict[str, Any] = {
        "dataset_dir": str(dataset_dir),
        "cache_dir": str(cache_dir),
        "spatial_size": [48, 48],
        "pixdim": [4.0, 4.0],
        "channels": [16, 32, 64, 128],
        "steps_per_epoch": 20,
        "max_epochs": 6,
        "val_interval": 0,
        "device": "$torch.device('cpu')",
        "run": ["$@train::trainer.run()"],
    }
    workflow = ConfigWorkflow(str(CONFIG), workflow_type="train", logging_file=False, **overrides)
    workflow.add_property("participant", required=True, config_id="participant")
    workflow.initialize()
    before = workflow.participant.validate()["partition_knn"]
    workflow.run()
    return before, workflow.participant.validate()["partition_knn"]


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_on_the_phantom(tmp_path: Path) -> None:
    data = generate(tmp_path / "phantom", sites=2, patients=8, folds=4)
    before, after = accuracy_before_and_after(data, tmp_path / "cache")
    assert after > before + 0.1
    assert after > 0.6


@pytest.mark.slow
@pytest.mark.skipif(not ACDC.is_dir(), reason=f"no ACDC in {ACDC}; set FCL_ACDC_DIR")
def test_on_acdc(tmp_path: Path) -> None:
    data = tmp_path / "acdc"
    data.mkdir()
    for patient in sorted(ACDC.glob("patient*"))[:32]:
        (data / patient.name).symlink_to(patient)
    before, after = accuracy_before_and_after(data, tmp_path / "cache")
    assert after > before + 0.05
