from __future__ import annotations

import pytest
import torch
from monai.engines import IterationEvents

from fcl.data import SliceLoader, UnlabelledSlices
from fcl.engines import SelfTraining
from tests.fcl.engines.hosted import run_round, same

UNLABELLED = ["v2", "v3"]


def slices(cache, size: int = 6) -> SliceLoader:
    return SliceLoader(UnlabelledSlices(cache, UNLABELLED), size, seed=0)


def test_pseudo_labels_are_the_predictions_of_the_network_that_the_epoch_found(segmenting, cache) -> None:
    variant = SelfTraining(slices(cache), start=1, interval=2)
    participant = segmenting(variant)
    run_round(participant, 0)
    assert variant.labels is None
    network, seen = participant.trainer.network, []
    for number in (1, 2, 3):
        network.eval()
        with torch.no_grad():
            images = torch.cat([variant.slices.dataset[[row]]["image"] for row in range(16)])
            seen.append(network(images).argmax(dim=1))
        report = run_round(participant, number)
        # Made in rounds 1 and 3, kept in round 2.
        assert torch.equal(variant.labels.long(), seen[0] if number < 3 else seen[2])
    assert report.metrics["kept_share"] == pytest.approx(float((seen[0] == seen[2]).float().mean()))


def test_before_the_first_labels_it_is_plain_supervised_training(segmenting, cache) -> None:
    plain, later = segmenting(), segmenting(SelfTraining(slices(cache), start=5, interval=1))
    assert same(run_round(plain, 0).weights, run_round(later, 0).weights)


def test_the_step_adds_the_trainers_loss_on_pseudo_labels(segmenting, cache) -> None:
    variant = SelfTraining(slices(cache), start=0, interval=9, weight=0.25)
    participant = segmenting(variant)
    trainer, asked = participant.trainer, []
    trainer.prepare_batch.augmentation = None
    loss_function = trainer.loss_function

    def note(prediction, label):
        asked.append((label, loss_function(prediction, label)))
        return asked[-1][1]

    trainer.loss_function = note
    totals = []
    trainer.add_event_handler(
        IterationEvents.MODEL_COMPLETED, lambda engine: totals.append(engine.state.output["loss"].item())
    )
    run_round(participant, 0)
    (_, supervised), (pseudo, extra) = asked[:2]
    assert totals[0] == pytest.approx(supervised.item() + 0.25 * extra.item())
    rows = next(iter(slices(cache)))["row"]
    assert torch.equal(pseudo[:, 0], variant.labels[rows].long())


def test_a_site_that_missed_the_first_labels_makes_them_at_once(segmenting, cache) -> None:
    variant = SelfTraining(slices(cache), start=1, interval=4)
    run_round(segmenting(variant), 3)
    assert variant.labels is not None


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        (range(1, 17), [6, 11, 16]),
        ([6, 8, 9, 10, 12, 14, 15, 16, 18], [6, 12, 18]),  # a site that rests in some rounds
        ([8, 9, 12, 13, 14, 20, 21], [8, 13, 20]),  # one that joins late, and rests for long
    ],
)
def test_labels_are_renewed_when_the_interval_is_over_whichever_rounds_a_site_takes_part_in(
    segmenting, cache, monkeypatch, epochs, expected
) -> None:
    renewed = []
    monkeypatch.setattr(
        "fcl.engines.self_training.pseudo_labels",
        lambda network, dataset, engine: renewed.append(engine.state.epoch) or torch.zeros(1, dtype=torch.uint8),
    )
    engine, variant = segmenting().trainer, SelfTraining(slices(cache), start=5, interval=5)
    for epoch in epochs:
        engine.state.epoch = epoch
        variant.begin_epoch(engine)
        restored = SelfTraining(slices(cache), start=5, interval=5)
        restored.load_state_dict(variant.state_dict())
        variant = restored
    assert renewed == expected


@pytest.mark.parametrize("done", [1, 2, 3])
def test_resumed_run_continues_bit_for_bit(check_resume, cache, done: int) -> None:
    check_resume(lambda: SelfTraining(slices(cache), start=1, interval=2), done)


def test_kept_labels_take_little_room(segmenting, cache) -> None:
    variant = SelfTraining(slices(cache), start=0, interval=1)
    variant.labels = torch.zeros(16, 32, 32, dtype=torch.uint8)
    variant.labels[:, 8:20, 8:20] = 1
    state = variant.state_dict()
    assert state["labels"].numel() < 0.02 * variant.labels.numel()
    other = SelfTraining(slices(cache), start=0, interval=1)
    other.load_state_dict(state)
    assert torch.equal(other.labels, variant.labels)


@pytest.mark.parametrize("values", [(-1, 1, 1.0), (0, 0, 1.0), (0, 1, 0.0), (0, 1, float("nan"))])
def test_wrong_values_are_refused(cache, values) -> None:
    with pytest.raises(ValueError, match="start must be 0 or more, interval at least 1 and weight above 0"):
        SelfTraining(slices(cache), *values)
