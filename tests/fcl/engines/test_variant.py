from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from monai.engines import IterationEvents

from fcl.engines import Variant, Variants
from tests.fcl.engines.hosted import run_round, same


class Decay(Variant):
    """The squared weights, and how often it was asked."""

    logs = ("steps",)

    def __init__(self, weight: float = 0.1) -> None:
        self.weight = weight
        self.steps, self.epochs, self.rounds = 0, [], 0

    def begin_round(self, weights):
        self.rounds += 1

    def begin_epoch(self, engine):
        self.epochs.append(engine.state.epoch)

    def __call__(self, engine):
        self.steps += 1
        square = sum(p.square().sum() for p in engine.network.parameters())
        return {"loss": self.weight * square, "steps": torch.tensor(float(self.steps))}

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state) -> None:
        self.steps = state["steps"]


class Nothing(Variant):
    def __call__(self, engine):
        return {"loss": torch.zeros(())}


class Idle(Decay):
    needs = "{name} has no bread"
    idle = True

    def prepare(self, device):
        raise AssertionError("an idle variant is not asked")


def test_an_idle_one_is_left_out_of_rounds_and_refused_without(segmenting, caplog) -> None:
    plain, idle = segmenting(), segmenting(part := Idle())
    for number in range(2):
        plainly, idly = run_round(plain, number), run_round(idle, number)
    assert same(plainly.weights, idly.weights)
    assert plainly.metrics == idly.metrics
    assert (part.steps, part.epochs, part.rounds) == (0, [], 0)
    assert [record.message for record in caplog.records] == ["trained without Idle: Idle has no bread"]
    segmenting(Idle()).load_state_dict(idle.state_dict())
    with pytest.raises(ValueError, match=r"variants \[\], this one has \['Decay'\]: .* and the scans"):
        segmenting(Decay()).load_state_dict(idle.state_dict())
    with pytest.raises(ValueError, match="Idle has no bread"):
        segmenting(Idle()).trainer.run()


def test_none_is_plain_supervised_training(segmenting) -> None:
    plain, with_nothing = segmenting(), segmenting(Nothing())
    assert same(run_round(plain, 0).weights, run_round(with_nothing, 0).weights)
    assert Variants().state_dict() == {}


def test_loss_is_added_and_scalars_become_means_of_the_epoch(segmenting) -> None:
    decay = Decay()
    participant = segmenting(decay, Nothing())
    losses, gradients = [], []
    trainer = participant.trainer
    supervised = trainer.loss_function
    trainer.loss_function = lambda *pair: losses.append(supervised(*pair)) or losses[-1]

    @trainer.on(IterationEvents.MODEL_COMPLETED)
    def check(engine) -> None:
        gradients.append((engine.state.output["loss"].item(), engine.network.decoder.logits.weight.grad.clone()))

    report = run_round(participant, 0)
    assert (decay.rounds, decay.epochs, decay.steps) == (1, [1], 3)
    assert report.metrics["steps"] == pytest.approx(2.0)
    first = segmenting()
    square = sum(float(p.detach().square().sum()) for p in first.trainer.network.parameters())
    assert gradients[0][0] == pytest.approx(losses[0].item() + 0.1 * square, rel=1e-5)

    @first.trainer.on(IterationEvents.BACKWARD_COMPLETED)
    def compare(engine) -> None:
        if engine.state.iteration == 1:
            layer = engine.network.decoder.logits.weight
            assert torch.allclose(gradients[0][1], layer.grad + 0.2 * layer, atol=1e-5)

    run_round(first, 0)


def test_state_travels_and_other_variants_are_refused(segmenting) -> None:
    participant = segmenting(Decay())
    run_round(participant, 0)
    file = io.BytesIO()
    torch.save(participant.state_dict(), file)
    file.seek(0)
    restored = segmenting(Decay())
    restored.load_state_dict(torch.load(file, weights_only=True))
    assert restored.variants.parts["Decay"].steps == 3
    with pytest.raises(ValueError, match=r"variants \['Decay'\], this one has \['Nothing'\]"):
        segmenting(Nothing()).load_state_dict(participant.state_dict())


def test_two_of_a_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="once, got Decay, Nothing, Decay"):
        Variants([Decay(), Nothing(), Decay()])
