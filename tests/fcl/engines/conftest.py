"""A tiny slice cache whose partitions can be told apart, for the engines' tests."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fcl.data import SliceCache
from fcl.data.cache import FORMAT_VERSION


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> SliceCache:
    """Six volumes of 8 slices, 32 x 32: a bright disc that grows from slice to slice, on noise."""
    folder = tmp_path_factory.mktemp("slices")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32]
    images, labels = [], []
    for _ in range(6):
        cx, cy = rng.uniform(12, 20, 2)
        for z in range(8):
            disc = (x - cx) ** 2 + (y - cy) ** 2 < (2 + 1.3 * z) ** 2
            images.append(np.clip(0.7 * disc + rng.normal(0.1, 0.05, disc.shape), 0, 1))
            labels.append(disc)
    np.stack(images)[:, None].astype(np.float16).tofile(folder / "images.f16")
    np.stack(labels)[:, None].astype(np.uint8).tofile(folder / "labels.u8")
    volumes = [{"volume": f"v{i}", "patient": f"p{i}", "phase": "ED", "labelled": True, "slices": 8} for i in range(6)]
    index = {"version": FORMAT_VERSION, "volumes": volumes, "partitions": 4, "spatial_size": [32, 32]}
    (folder / "index.json").write_text(json.dumps(index))
    return SliceCache(folder)
