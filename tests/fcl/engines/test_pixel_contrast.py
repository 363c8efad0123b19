"""Where a view's pixels come from, and that comparing them by it trains encoder and decoder."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Events

from fcl.data import SliceDataset, SliceLoader
from fcl.engines import PixelContrast, PretrainTrainer
from fcl.losses import PixelContrastLoss
from fcl.networks import PixelNetwork, UNetDecoder, UNetEncoder
from fcl.transforms import BatchCompose, BatchRandIntensity, BatchRandSpatial

CHANNELS = (4, 8, 16)


def trainer_of(cache, *transforms, steps=4, pixels=32, apart=8.0, seed=0):
    torch.manual_seed(0)
    network = PixelNetwork(UNetEncoder(2, 1, CHANNELS), UNetDecoder(2, 1, CHANNELS), 2, 16)
    return PretrainTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=SliceLoader(SliceDataset(cache, [f"v{i}" for i in range(4)]), 8, steps),
        network=network,
        optimizer=torch.optim.AdamW(network.parameters(), 0.01),
        method=PixelContrast(PixelContrastLoss(apart=apart), pixels),
        augmentation=BatchCompose([*transforms]),
        seed=seed,
    )


@pytest.mark.parametrize("motion", [{"flip_prob": 1.0}, {"flip_prob": 0.5, "translate_range": 6.0}, {}])
def test_each_pixel_of_a_view_is_the_one_that_it_is_said_to_show(cache, motion):
    trainer = trainer_of(cache, BatchRandSpatial(**motion))
    image = torch.rand(5, 1, 12, 20).round(decimals=2)
    # Whole pixels only, so that nothing is interpolated.
    trainer.augmentation.transforms[0].translate_range = (6.0, 6.0) if "translate_range" in motion else (0.0, 0.0)
    view, origin = trainer.augment_and_locate(image)
    shown = image.flatten(1).gather(1, origin.clamp(min=0).flatten(1)).view_as(image)
    torch.testing.assert_close(view, shown.masked_fill((origin < 0)[:, None], 0.0), atol=1e-4, rtol=0)
    assert (origin < 0).any().item() is ("translate_range" in motion)
    assert bool((origin == torch.arange(240).view(12, 20)).all()) is (not motion)


def test_brightness_moves_nothing(cache):
    trainer = trainer_of(cache, BatchRandIntensity(brightness=0.3))
    view, origin = trainer.augment_and_locate(torch.rand(2, 1, 8, 8))
    assert torch.equal(origin[1], torch.arange(64).view(8, 8))
    assert view.shape == (2, 1, 8, 8)


def test_it_learns_to_tell_places_apart_and_trains_encoder_and_decoder(cache):
    trainer = trainer_of(cache, BatchRandSpatial(rotate_range=0.3, flip_prob=0.0, translate_range=3.0), steps=60)
    start = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    accuracy = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: accuracy.append(float(engine.state.output["accuracy"]))
    )
    trainer.run()
    assert sum(accuracy[-10:]) > sum(accuracy[:10]) + 2.0
    now = trainer.network.state_dict()
    assert {name.split(".")[0] for name in now if not torch.equal(start[name], now[name])} == {
        "encoder",
        "decoder",
        "head",
    }


def test_views_moved_out_of_sight_and_small_maps_are_no_errors(cache):
    trainer = trainer_of(cache, BatchRandSpatial(translate_range=(40.0, 40.0)), steps=1, pixels=5000)
    trainer.run()
    assert trainer.state.metrics["loss"] == 0.0


def test_the_same_seed_draws_the_same(cache):
    losses = []
    for seed in (0, 0, 1):
        trainer = trainer_of(cache, BatchRandSpatial(rotate_range=0.3), steps=2, seed=seed)
        trainer.run()
        losses.append(trainer.state.metrics["loss"])
    assert losses[0] == losses[1] != losses[2]


def test_refuses_to_draw_nothing():
    with pytest.raises(ValueError, match="pixels must be at least 1"):
        PixelContrast(PixelContrastLoss(), pixels=0)
