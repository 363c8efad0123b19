"""Rotation and restoration: what the network is asked, and that it learns to answer."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Events
from torch import nn

from fcl.engines import HiddenPatches, Holes, Restoration, Rotation, Swaps
from fcl.losses import RestorationLoss
from fcl.networks import ContrastiveNetwork, ProjectionHead, RestorationNetwork, UNetDecoder, UNetEncoder
from tests.fcl.engines.test_contrastive import NORM, copies, encoder, trainer_of

CHANNELS = (8, 16, 32)


def restoring_network(masked=False):
    torch.manual_seed(0)
    return RestorationNetwork(encoder(), UNetDecoder(2, 1, CHANNELS, NORM), masked)


class Asked(nn.Module):
    """Keeps what it was asked; predicts class 0."""

    def __init__(self):
        super().__init__()
        self.images = []
        self.head = nn.Linear(4, 4)

    def embed(self, x):
        self.images.append(x)
        return x.flatten(1)[:, :4]


def test_every_slice_is_seen_in_all_four_rotations(cache):
    network = Asked()
    targets = []

    class Loss(nn.CrossEntropyLoss):
        def forward(self, logits, target):
            targets.append(target)
            return super().forward(logits, target)

    trainer = trainer_of(cache, Rotation(Loss()), network, steps=1)
    trainer.run()
    asked, target = network.images[0], targets[0]
    assert len(asked) == len(target) == 4 * 16
    for turns in range(4):
        assert torch.equal(asked[target == turns], torch.rot90(asked[target == 0], turns, (2, 3)))


def test_slabs_are_turned_in_their_plane(cache):
    network = Asked()
    trainer = trainer_of(cache, Rotation(nn.CrossEntropyLoss()), network)
    trainer.augmentation = lambda image, generator: (image, None)
    batch = next(iter(trainer.data_loader))
    batch["image"] = torch.rand(len(batch["row"]), 1, 4, 4, 3)
    trainer._iteration(trainer, batch)
    for turns, turned in enumerate(network.images[0].split(len(batch["image"]))):
        for z in range(3):
            assert torch.equal(turned[..., z], torch.rot90(batch["image"][..., z], turns, (2, 3)))


def test_rotation_refuses_slices_that_are_not_square_and_heads_of_another_size(cache):
    trainer = trainer_of(
        cache, Rotation(nn.CrossEntropyLoss()), ContrastiveNetwork(encoder(), ProjectionHead(32, 8, 5))
    )
    with pytest.raises(ValueError, match="4 outputs, got 5: set feature_length"):
        trainer.run()
    trainer.augmentation = None
    batch = next(iter(trainer.data_loader))
    batch["image"] = batch["image"][:, :, :16]
    with pytest.raises(ValueError, match="square slices, got 16 x 32"):
        trainer._iteration(trainer, batch)


@pytest.mark.parametrize(
    ("corruption", "loss", "masked"),
    [
        (Holes(2, (0.2, 0.4)), RestorationLoss(), False),
        (Swaps(4, 6), RestorationLoss("everywhere"), False),
        (HiddenPatches(8, 0.5), RestorationLoss(patch_size=8), True),
    ],
)
def test_restoring_trains_encoder_and_decoder(cache, corruption, loss, masked):
    network = restoring_network(masked)
    before = copies(network)
    trainer = trainer_of(cache, Restoration(corruption, loss), network, steps=12, lr=5e-3)
    losses = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: losses.append(float(e.state.output["loss"])))
    trainer.run()
    assert sum(losses[-3:]) < sum(losses[:3])
    assert {"absolute_error", "corrupted_share", "spread"} <= trainer.state.metrics.keys()
    unmoved = [name for name, value in network.state_dict().items() if torch.equal(before[name], value)]
    assert unmoved == []


@pytest.mark.parametrize("patch_size", [None, 8])
def test_a_perfect_restoration_has_neither_loss_nor_error(cache, patch_size):
    loss = RestorationLoss(patch_size=patch_size)

    class Knowing(nn.Linear):
        """Turns the negative that the corruption makes of an image into what the loss wants."""

        embed = nn.Identity()

        def maps(self, x, hidden):
            return [-x]

        def decoder(self, maps):
            return loss.target(maps[-1])

    def negative(image, generator):
        return -image, torch.ones_like(image, dtype=torch.bool)

    trainer = trainer_of(cache, Restoration(negative, loss), Knowing(1, 1), steps=1)
    trainer.run()
    assert trainer.state.metrics["loss"] == 0.0
    assert trainer.state.metrics["absolute_error"] == 0.0


def test_what_is_hidden_has_no_influence_on_the_masked_maps_but_for_its_margin():
    network = restoring_network(masked=True).eval()
    image = torch.rand(1, 1, 32, 32)
    hidden = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    hidden[..., 8:16, 16:24] = True
    other = torch.where(hidden, torch.rand(1, 1, 32, 32), image)
    with torch.no_grad():
        plain = [a - b for a, b in zip(network.encoder(image), network.encoder(other), strict=True)]
        maps = network.maps(image.masked_fill(hidden, 0), hidden), network.maps(other.masked_fill(hidden, 0), hidden)
    assert all(float(difference.abs().max()) > 0 for difference in plain)
    assert all(torch.equal(a, b) for a, b in zip(*maps, strict=True))
    for level, features in enumerate(maps[0]):
        side = 2**level
        inside = features[0, :, 8 // side : 16 // side, 16 // side : 24 // side]
        assert torch.equal(inside, torch.zeros_like(inside))  # the token's initial value
        assert float(features.abs().max()) > 0


def test_encoder_and_decoder_are_named_as_in_the_segmentation_network():
    from fcl.networks import SegmentationUNet

    theirs = SegmentationUNet(2, 1, 4, CHANNELS, NORM).state_dict()
    ours = restoring_network().state_dict()
    assert ours.keys() == theirs.keys()
    assert {name for name in ours if ours[name].shape != theirs[name].shape} == {
        "decoder.logits.weight",
        "decoder.logits.bias",
    }


def test_a_decoder_for_other_channels_is_refused():
    with pytest.raises(ValueError, match=r"must restore 1 channel\(s\), it has 3"):
        RestorationNetwork(encoder(), UNetDecoder(2, 3, CHANNELS, NORM))


def test_three_dimensions_work_as_two():
    network = RestorationNetwork(
        UNetEncoder(3, 1, (4, 8), NORM), UNetDecoder(3, 1, (4, 8), ("group", {"num_groups": 2})), masked_maps=True
    )
    hidden = torch.zeros(2, 1, 8, 8, 4, dtype=torch.bool)
    hidden[..., :2, :2, :2] = True
    assert network.restore(torch.rand(2, 1, 8, 8, 4), hidden).shape == (2, 1, 8, 8, 4)
