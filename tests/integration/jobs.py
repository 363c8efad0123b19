"""Jobs that the integration tests run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from flare_app.job import JOBS, JobSettings

# A bundle that takes no time: what is seen is the federation.
FAKE = JobSettings(
    "fake",
    ("configs/fake.json",),
    data="toy",
    exchange="features",
    rounds=2,
    best_metric="mean_dice",
    bundle_root=str(Path(__file__).parents[1] / "flare_app" / "fake_bundle"),
)

# The real method, small: momentum encoder, optimizer, feature bank and random augmentations cross the rounds.
PRETRAIN = replace(
    JOBS["fcl_pretrain"],
    data="phantom",
    rounds=2,
    overrides={
        "channels": [8, 16, 32],
        "spatial_size": [48, 48],
        "pixdim": [4.0, 4.0],
        "batch_size": 8,
        "steps_per_epoch": 4,
        "fold": 0,
    },
)
