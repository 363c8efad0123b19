from __future__ import annotations

import pytest
import torch

from fcl.data import SliceLoader, UnlabelledSlices
from fcl.engines import MeanTeacher
from fcl.engines.pseudo_labels import pseudo_labels
from tests.fcl.engines.hosted import run_round, same

UNLABELLED = ["v2", "v3"]


def slices(cache, size: int = 8) -> SliceLoader:
    return SliceLoader(UnlabelledSlices(cache, UNLABELLED), size, seed=0)


def test_until_it_starts_training_is_plainly_supervised(segmenting, cache) -> None:
    plain, taught = segmenting(), segmenting(MeanTeacher(slices(cache), start=2, ramp=0))
    for number in range(2):
        assert same(run_round(plain, number).weights, run_round(taught, number).weights)
    assert not same(run_round(plain, 2).weights, run_round(taught, 2).weights)


def test_the_teacher_is_a_moving_average_of_the_network(segmenting, cache) -> None:
    variant = MeanTeacher(slices(cache), start=0, ramp=0, momentum=0.75)
    participant = segmenting(variant)
    network = participant.trainer.network
    expected = {name: value.clone() for name, value in network.state_dict().items()}
    follow = variant._follow

    def follow_and_note(current) -> None:
        for name, value in current.state_dict().items():
            moving = value.dtype.is_floating_point
            expected[name] = 0.75 * expected[name] + 0.25 * value if moving else value.clone()
        follow(current)

    variant._follow = follow_and_note
    participant.trainer.run()
    assert variant.teacher is not None
    assert not variant.teacher.training
    for name, value in variant.teacher.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    assert not same(variant.teacher.state_dict(), network.state_dict())


def test_in_a_federation_the_average_is_the_teacher_of_a_round(segmenting, cache) -> None:
    variant = MeanTeacher(slices(cache), start=0, ramp=0, largest_component=True)
    participant = segmenting(variant)
    for number in range(2):
        weights = {name: value + 0.01 for name, value in participant.weights().items()}
        participant.begin_round(number, 2, weights)
        begin, labels = variant.begin_epoch, []
        average = {k: v.clone() for k, v in participant.trainer.network.state_dict().items()}

        def begin_and_note(engine, begin=begin, labels=labels) -> None:
            begin(engine)
            labels.append(
                (variant._labels, engine.network, {k: v.clone() for k, v in engine.network.state_dict().items()})
            )
            assert same(variant.teacher.state_dict(), engine.network.state_dict())

        variant.begin_epoch = begin_and_note
        participant.train(lambda: False)
        variant.begin_epoch = begin
        assert same(variant.teacher.state_dict(), average)  # it stands still, and the next round makes its own
        assert variant.state_dict()["teacher"] == {}
        made, network, state = labels[0]
        network.load_state_dict(state)
        expected = pseudo_labels(network, variant.slices.dataset, participant.trainer, largest_component=True)
        assert torch.equal(made, expected)


def test_images_are_pasted_from_an_annotated_and_an_unlabelled_slice_with_their_labels(segmenting, cache) -> None:
    variant = MeanTeacher(slices(cache), start=0, ramp=0, share=0.5)
    participant = segmenting(variant)
    trainer, asked = participant.trainer, []
    trainer.prepare_batch.augmentation = None
    loss_function = trainer.loss_function

    def note(prediction, label):
        asked.append(label)
        return loss_function(prediction, label)

    trainer.loss_function = note
    inputs = []
    trainer.network.register_forward_pre_hook(
        lambda module, given: inputs.append(given[0]) if module.training else None
    )
    run_round(participant, 0)
    known = next(iter(SliceLoader(trainer.data_loader.dataset, 8, seed=0)))
    new = next(iter(slices(cache)))
    pasted, label = inputs[1], asked[1]  # after the supervised ones
    from_known = (pasted == known["image"]) & (pasted != new["image"])
    assert torch.equal(torch.where(from_known, known["image"], new["image"]), pasted)
    shares = from_known.float().mean(dim=(1, 2, 3))
    # A box of half the side covers a quarter; noise makes equal pixels rare.
    assert torch.allclose(shares[:4], torch.tensor(0.25), atol=0.01)
    assert torch.allclose(shares[4:], torch.tensor(0.75), atol=0.01)
    assert torch.equal(label[from_known], known["label"][from_known])


def test_the_weight_grows_over_the_ramp(segmenting, cache) -> None:
    variant = MeanTeacher(slices(cache), start=1, ramp=3, weight=2.0)
    participant = segmenting(variant)
    loss_function, taught, added = participant.trainer.loss_function, [], []

    def note(prediction, label):
        taught.append(loss_function(prediction, label))
        return taught[-1]

    def call(engine):
        terms = MeanTeacher.__call__(variant, engine)
        added.append((terms["loss"].item(), taught[-1].item()))
        return terms

    participant.trainer.loss_function = note
    participant.variants.parts["MeanTeacher"] = call
    call.begin_epoch, call.begin_round = variant.begin_epoch, variant.begin_round
    call.logs, call.idle = variant.logs, False
    shares = []
    for number in range(6):
        added.clear()
        run_round(participant, number)
        shares.append(added[0][0] / added[0][1])
    assert shares == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0, 2.0])


def test_a_site_that_joins_late_begins_with_the_network_that_it_was_given(segmenting, cache) -> None:
    variant = MeanTeacher(slices(cache), start=1, ramp=0)
    report = run_round(segmenting(variant), 4)
    assert variant.teacher is not None
    assert 0.0 < report.metrics["agreement"] <= 1.0


@pytest.mark.parametrize("done", [1, 2, 3])
def test_resumed_run_continues_bit_for_bit(check_resume, cache, done: int) -> None:
    check_resume(lambda: MeanTeacher(slices(cache), start=1, ramp=2), done)


def test_state_that_is_restored_and_saved_again_before_an_epoch_is_whole(segmenting, cache) -> None:
    variant = MeanTeacher(slices(cache), start=0, ramp=0)
    segmenting(variant).trainer.run()
    assert variant.state_dict()["teacher"]
    other = MeanTeacher(slices(cache), start=0, ramp=0)
    other.load_state_dict(variant.state_dict())
    assert same(other.state_dict()["teacher"], variant.state_dict()["teacher"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"start": -1, "ramp": 0}, "start and ramp must be 0 or more and weight above 0"),
        ({"start": 0, "ramp": 0, "weight": 0.0}, "start and ramp must be 0 or more and weight above 0"),
        ({"start": 0, "ramp": 0, "momentum": 1.0}, "momentum must be from 0 to below 1"),
        ({"start": 0, "ramp": 0, "share": 1.0}, "share between 0 and 1"),
        ({"start": 0, "ramp": 0, "largest_component": "no"}, "must be true or false"),
    ],
)
def test_wrong_values_are_refused(cache, values, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MeanTeacher(slices(cache), **values)


@pytest.mark.parametrize("word", ["true", "false"])
def test_the_largest_component_is_chosen_by_a_word_as_in_evaluation(cache, word: str) -> None:
    assert MeanTeacher(slices(cache), start=0, ramp=0, largest_component=word).largest_component is (word == "true")
