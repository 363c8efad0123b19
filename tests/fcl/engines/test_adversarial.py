from __future__ import annotations

import math

import pytest
import torch
from monai.engines import IterationEvents
from monai.networks.nets import PatchDiscriminator
from torch import nn

from fcl.data import SliceLoader, UnlabelledSlices
from fcl.engines import Adversarial
from tests.fcl.engines.hosted import run_round, same


class Constant(nn.Module):
    """The same score everywhere, whatever it is shown; keeps what that was."""

    def __init__(self, score: float) -> None:
        super().__init__()
        self.score = nn.Parameter(torch.tensor(score))
        self.shown: list[torch.Tensor] = []

    def forward(self, x):
        self.shown.append(x)
        return [self.score.expand(len(x), 1, 2, 2) + 0.0 * x.mean()]


def variant(cache, discriminator: nn.Module | None = None, **options) -> Adversarial:
    torch.manual_seed(3)
    discriminator = discriminator or PatchDiscriminator(2, 4, 3, num_layers_d=2, norm="instance")
    return Adversarial(SliceLoader(UnlabelledSlices(cache, ["v2", "v3"]), 6, seed=0), discriminator, **options)


def test_the_added_loss_is_the_cross_entropy_of_being_taken_for_annotated(segmenting, cache) -> None:
    score = 0.7
    adversarial = variant(cache, Constant(score), weight=0.5, learning_rate=1e-12)
    participant = segmenting(adversarial)
    supervised, totals = [], []
    loss_function = participant.trainer.loss_function
    participant.trainer.loss_function = lambda *pair: supervised.append(loss_function(*pair)) or supervised[-1]
    participant.trainer.add_event_handler(
        IterationEvents.MODEL_COMPLETED, lambda engine: totals.append(engine.state.output["loss"].item())
    )
    report = run_round(participant, 0)
    for total, own in zip(totals, supervised, strict=True):
        assert total == pytest.approx(own.item() + 0.5 * math.log1p(math.exp(-score)), rel=1e-5)
    # Everything is taken for annotated: right for one half.
    assert report.metrics["accuracy"] == pytest.approx(0.5)


def test_the_discriminator_sees_image_and_probabilities_of_both_kinds(segmenting, cache) -> None:
    constant = Constant(0.0)
    run_round(segmenting(variant(cache, constant)), 0)
    annotated, unannotated, again = constant.shown[:3]
    assert annotated.shape == (8, 3, 32, 32)
    assert unannotated.shape == again.shape == (6, 3, 32, 32)
    assert torch.allclose(annotated[:, 1:].sum(dim=1), torch.ones(8, 32, 32), atol=1e-5)
    assert not annotated.requires_grad
    assert not unannotated.requires_grad
    assert again.requires_grad
    assert torch.equal(unannotated, again.detach())


def test_each_network_learns_from_its_own_loss_only(segmenting, cache) -> None:
    score = 0.7
    constant = Constant(score)
    participant, seen = segmenting(variant(cache, constant, learning_rate=1e-12)), []
    participant.trainer.add_event_handler(
        IterationEvents.BACKWARD_COMPLETED, lambda engine: seen.append(float(constant.score.grad))
    )
    run_round(participant, 0)
    # Half of that of "annotated is true" and half of "unannotated is false"; nothing of the segmenting network's loss.
    assert seen == pytest.approx(3 * [1 / (1 + math.exp(-score)) - 0.5], rel=1e-4)
    assert constant.score.requires_grad
    plain, fooling = segmenting(), segmenting(variant(cache))
    assert not same(run_round(plain, 0).weights, run_round(fooling, 0).weights)


def test_discriminator_learns_to_tell_what_can_be_told(cache) -> None:
    adversarial = variant(cache, learning_rate=0.01)
    torch.manual_seed(0)
    bright, dark = torch.rand(6, 3, 32, 32) + 1.0, torch.rand(6, 3, 32, 32)
    accuracies = [float(adversarial._train_discriminator(bright, dark)) for _ in range(25)]
    assert accuracies[-1] > 0.95


def test_resumed_run_continues_bit_for_bit(check_resume, cache) -> None:
    one, other = (each.discriminator.state_dict() for each in check_resume(lambda: variant(cache), 1))
    assert same(one, other)


@pytest.mark.parametrize("values", [{"weight": 0.0}, {"weight": -1.0}, {"learning_rate": 0.0}])
def test_wrong_values_are_refused(cache, values) -> None:
    with pytest.raises(ValueError, match="weight and learning_rate must be above 0"):
        variant(cache, **values)
