"""A tiny slice cache whose partitions can be told apart, and a segmentation of it, for the engines' tests."""

from __future__ import annotations

import io
import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.losses import DiceCELoss

from fcl.data import SliceCache, SliceDataset, SliceLoader
from fcl.data.cache import FORMAT_VERSION
from fcl.engines import AugmentBatch, LabelledVolumes, SegmentationParticipant, Variant, Variants, WarmupCosine
from fcl.networks import SegmentationUNet
from fcl.transforms import BatchRandSpatial


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


@pytest.fixture
def segmenting(cache: SliceCache) -> Callable[..., SegmentationParticipant]:
    """Makes a participant whose trainer has the given variants: annotated are v0 and v1, rounds have 3 steps."""

    def make(*variants: Variant, norm: str = "batch", **options: object) -> SegmentationParticipant:
        torch.manual_seed(0)
        network = SegmentationUNet(2, 1, 2, channels=(4, 8), norm=norm)
        optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
        schedule, together = WarmupCosine(optimizer, warmup=0.0), Variants(variants)
        trainer = SupervisedTrainer(
            device=torch.device("cpu"),
            max_epochs=1,
            train_data_loader=SliceLoader(SliceDataset(cache, ["v0", "v1"], labelled_only=True), 8, 3, seed=0),
            network=network,
            optimizer=optimizer,
            loss_function=DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True),
            prepare_batch=AugmentBatch(BatchRandSpatial(rotate_range=1.0, flip_prob=0.5), seed=0),
            train_handlers=[schedule, together],
            decollate=False,
        )
        evaluator = SupervisedEvaluator(torch.device("cpu"), DataLoader(LabelledVolumes(cache, ("v5",))), network)
        return SegmentationParticipant(trainer, evaluator, schedule, variants=together, **options)

    return make


@pytest.fixture
def check_resume(segmenting) -> Callable[[Callable[[], Variant], int], list[Variant]]:
    """Trains some rounds of 6, then lets the participant and one restored from its saved state train one more: both
    must end alike bit for bit. Takes what makes the variant and the rounds before; gives both variants."""

    def check(make: Callable[[], Variant], done: int) -> list[Variant]:
        variants = [make(), make()]
        straight, resumed = (segmenting(variant) for variant in variants)
        for number in range(done):
            straight.begin_round(number, 6, straight.weights())
            weights = straight.train(lambda: False).weights
        file = io.BytesIO()
        torch.save(straight.state_dict(), file)
        file.seek(0)
        torch.manual_seed(9)
        resumed.load_state_dict(torch.load(file, weights_only=True))
        ends = []
        for participant in (straight, resumed):
            participant.begin_round(done, 6, weights)
            ends.append(participant.train(lambda: False))
        assert ends[0].weights.keys() == ends[1].weights.keys()
        for name, value in ends[0].weights.items():
            assert torch.equal(value, ends[1].weights[name]), name
        assert ends[0].metrics == ends[1].metrics
        return variants

    return check
