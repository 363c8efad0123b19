"""What becomes of the networks at the start of a round: FedEMA's mixing, FCLOpt's prediction."""

from __future__ import annotations

import copy

import pytest
import torch
from ignite.engine import Events

from fcl.engines import (
    Average,
    AverageKeepingMomentum,
    DivergenceMixing,
    MethodParticipant,
    PartitionKNN,
    PredictedMomentum,
    Prediction,
    QueueContrast,
    WarmupCosine,
)
from fcl.engines.rounds import momentum_factors
from fcl.federation import Participant
from fcl.losses import PredictionLoss, QueueContrastLoss
from tests.fcl.engines.test_contrastive import copies, predictive, trainer_of


def site(cache, at_round_start, steps=2, momentum=0.9, method=None, **arguments):
    network = predictive()
    trainer = trainer_of(
        cache,
        method or Prediction(PredictionLoss()),
        network,
        momentum_network=copy.deepcopy(network),
        steps=steps,
        momentum=momentum,
    )
    schedule = WarmupCosine(trainer.optimizer)
    schedule.attach(trainer)
    monitor = PartitionKNN(network, cache, ["v0", "v1"], ["v4"], neighbours=3, interval=0)
    return MethodParticipant(trainer, schedule, monitor, at_round_start=at_round_start, **arguments)


def never():
    return False


def shifted(weights, by):
    return {name: value + by for name, value in weights.items()}


def parameters(module):
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def close(one, other, atol=1e-6):
    return all(torch.allclose(one[name], other[name], atol=atol) for name in one)


def test_average_copies_and_keeping_keeps_the_momentum_network_after_the_first_round(cache):
    for strategy, copied in ((Average(), True), (AverageKeepingMomentum(), False)):
        participant = site(cache, strategy, steps=1, momentum=1.0)
        trainer = participant.trainer
        for number in range(2, 5):  # it joins late
            before = parameters(trainer.momentum_network)
            participant.begin_round(number, 5, shifted(participant.weights(), 0.1))
            given = parameters(trainer.network)
            participant.train(never)  # momentum 1: the momentum network shows what the round began with
            expected = given if copied or number == 2 else before
            assert close(expected, parameters(trainer.momentum_network))


def test_mixing_keeps_tau_of_the_own_network_in_the_first_round_that_has_one(cache):
    participant = site(cache, DivergenceMixing(0.7), steps=1)
    trainer = participant.trainer
    started = []
    trainer.add_event_handler(Events.STARTED, lambda e: started.append(copies(trainer.network)))
    participant.begin_round(0, 4, participant.weights())
    own = participant.train(never).weights
    given = shifted(own, 0.01)
    participant.begin_round(1, 4, given)
    assert torch.equal(
        trainer.network.state_dict()["encoder.stem.conv_0.conv.weight"], given["encoder.stem.conv_0.conv.weight"]
    )
    report = participant.train(never)
    for name, value in own.items():
        assert torch.allclose(started[1][name], 0.7 * value + 0.3 * given[name], atol=1e-5), name
    assert report.metrics["kept_share"] == pytest.approx(0.7)

    # Half as far apart, half of mu; far apart, all of its own.
    distance = report.metrics["divergence"]
    for factor, mu in ((0.5, 0.35), (10.0, 1.0)):
        own = participant.weights()
        participant.begin_round(2, 4, shifted(own, 0.01 * factor))
        metrics = participant.train(never).metrics
        assert metrics["divergence"] == pytest.approx(distance * factor, rel=1e-3)
        assert metrics["kept_share"] == pytest.approx(mu, rel=1e-3)


def test_a_round_begun_twice_mixes_with_what_the_site_trained_last(cache):
    participant = site(cache, DivergenceMixing(0.7), steps=1)
    trainer, started = participant.trainer, []
    trainer.add_event_handler(Events.STARTED, lambda e: started.append(copies(trainer.network)))
    participant.begin_round(0, 4, participant.weights())
    own = participant.train(never).weights
    for shift in (1.0, 0.01):
        given = shifted(own, shift)
        participant.begin_round(1, 4, given)
    participant.train(never)
    for name, value in own.items():
        assert torch.allclose(started[1][name], 0.7 * value + 0.3 * given[name], atol=1e-5), name


def test_the_divergence_is_that_of_the_encoder(cache):
    participant = site(cache, DivergenceMixing(0.7), steps=1)
    participant.begin_round(0, 4, participant.weights())
    participant.train(never)
    for part, apart in (("head.", False), ("encoder.", True)):
        own = participant.weights()
        participant.begin_round(1, 4, {name: value + 0.1 * name.startswith(part) for name, value in own.items()})
        assert (participant.train(never).metrics["divergence"] > 0) is apart


def test_a_queue_is_empty_when_a_round_begins(cache):
    method, queued = QueueContrast(QueueContrastLoss(), 100), []
    method.loss_function.register_forward_pre_hook(lambda loss, given: queued.append(len(given[2])))
    participant = site(cache, Average(), method=method)
    for number in range(2):
        participant.begin_round(number, 2, participant.weights())
        participant.train(never)
    assert queued == [0, 16, 0, 16]


def test_mixing_with_an_unchanged_average_changes_nothing(cache):
    participant = site(cache, DivergenceMixing(0.5), steps=1)
    for number in range(2):
        own = participant.weights()
        participant.begin_round(number, 2, own)
        metrics = participant.train(never).metrics
    assert metrics["divergence"] == 0.0
    assert metrics["kept_share"] == 0.0


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_factors_are_those_of_a_network_that_moves_evenly(momentum, steps):
    theta, new, xi = 0.3, 1.7, -2.0
    average = xi
    for e in range(1, steps + 1):
        average = momentum * average + (1 - momentum) * (theta + e / steps * (new - theta))
    kept, share = momentum_factors(momentum, steps)
    assert kept * xi + (1 - kept) * theta + share * (new - theta) == pytest.approx(average, abs=1e-9)


def evenly(trainer, change):
    """Replace training by steps of equal size; gives the handlers' trainer back."""

    def step(engine, batch):
        with torch.no_grad():
            for value in trainer.network.parameters():
                value += change
        trainer._follow()
        return {"loss": torch.zeros(())}

    trainer._process_function = step


def test_sites_that_move_evenly_predict_the_average_momentum_network_exactly(cache):
    sites = [site(cache, PredictedMomentum(), steps=4, momentum=0.8) for _ in range(2)]
    for participant, change in zip(sites, (0.01, -0.03), strict=True):
        evenly(participant.trainer, change)
    weights = sites[0].weights()
    for number in range(3):
        reports, targets = [], []
        for participant in sites:
            participant.begin_round(number, 3, weights)
            reports.append(participant.train(never))
            targets.append(parameters(participant.trainer.momentum_network))
        weights = {name: (reports[0].weights[name] + reports[1].weights[name]) / 2 for name in weights}
        average = {name: (targets[0][name] + targets[1][name]) / 2 for name in targets[0]}
        assert all(report.metrics["target_distance"] < 1e-3 for report in reports)
        for participant in sites:  # what the next round begins with
            follower = copy.deepcopy(participant.at_round_start)
            participant.begin_round(number + 1, 4, weights)
            follower.start(participant.trainer, {})
            assert close(average, parameters(participant.trainer.momentum_network), atol=1e-5)


def test_a_site_that_rested_predicts_over_all_steps_since_its_last_round(cache, tmp_path):
    sites = [site(cache, PredictedMomentum(), steps=4, momentum=0.8) for _ in range(3)]
    steady, rested, restored = sites
    for participant in sites:
        evenly(participant.trainer, 0.01)
    weights = steady.weights()
    for participant in (steady, rested):
        participant.begin_round(0, 4, weights)
        participant.train(never)
    torch.save(rested.state_dict(), tmp_path / "site.pt")
    restored.load_state_dict(torch.load(tmp_path / "site.pt", weights_only=True))
    for number in (1, 2):
        steady.begin_round(number, 4, steady.weights())
        steady.train(never)
    weights = steady.weights()
    for participant in sites:
        participant.begin_round(3, 4, weights)
        participant.at_round_start.start(participant.trainer, {})
        assert close(*(parameters(each.trainer.momentum_network) for each in (steady, participant)), atol=1e-5)


def test_one_site_that_corrects_always_goes_on_with_its_own_momentum_network(cache):
    """Its own error is the average error then."""
    participant = site(cache, PredictedMomentum(max_distance=0.0), steps=3)
    weights = participant.weights()
    for number in range(2):
        participant.begin_round(number, 3, weights)
        report = participant.train(never)
        weights = report.weights
    assert report.metrics["target_distance"] > 0
    assert report.metrics["target_corrected"] == 1.0
    ours = parameters(participant.trainer.momentum_network)
    participant.begin_round(2, 3, weights)
    participant.at_round_start.start(participant.trainer, {})
    assert close(ours, parameters(participant.trainer.momentum_network), atol=1e-5)


def test_the_expected_distance_continues_the_last_two():
    strategy = PredictedMomentum()
    assert strategy.expected_distance == 0.0
    for distances, expected in (([0.1], 0.1), ([0.1, 0.3], 0.5), ([0.3, 0.1], 0.0)):
        strategy._distances = distances
        assert strategy.expected_distance == pytest.approx(expected)


@pytest.mark.parametrize(
    "make", [lambda: DivergenceMixing(0.7), lambda: PredictedMomentum(0.0), Average, AverageKeepingMomentum]
)
def test_a_restored_site_continues_bit_for_bit(cache, tmp_path, make):
    first = site(cache, make())
    weights = first.weights()
    for number in range(2):
        first.begin_round(number, 4, weights)
        weights = first.train(never).weights
    torch.save(first.state_dict(), tmp_path / "site.pt")
    second = site(cache, make())
    second.load_state_dict(torch.load(tmp_path / "site.pt", weights_only=True))
    given = shifted(weights, 0.001)
    results = []
    for participant in (first, second):
        assert isinstance(participant, Participant)
        participant.begin_round(2, 4, given)
        results.append(participant.train(never))
    assert all(torch.equal(results[0].weights[name], results[1].weights[name]) for name in weights)
    assert results[0].metrics == results[1].metrics
    assert close(*(parameters(p.trainer.momentum_network) for p in (first, second)), atol=0)


def test_what_is_not_federated_stays(cache):
    participant = site(cache, Average(), steps=1, federated=["encoder.", "head."])
    predictor = copies(participant.trainer.network.predictor)
    assert {name.split(".")[0] for name in participant.weights()} == {"encoder", "head"}
    participant.begin_round(0, 1, shifted(participant.weights(), 0.5))
    assert all(
        torch.equal(value, predictor[name])
        for name, value in participant.trainer.network.predictor.state_dict().items()
    )
    with pytest.raises(ValueError, match="global weights do not fit"):
        participant.begin_round(0, 1, {"encoder.other": torch.zeros(1)})
    with pytest.raises(
        ValueError, match=r"federated names decoder\., but the network's parts are encoder, head, predictor"
    ):
        site(cache, Average(), federated=["decoder."])


def test_a_pretrained_encoder_reaches_both_networks(cache):
    participant = site(cache, Average())
    weights = {name: torch.zeros_like(value) for name, value in participant.weights().items()}
    report = participant.load_pretrained(weights)
    assert report.matched
    for network in (participant.trainer.network, participant.trainer.momentum_network):
        assert all(float(value.abs().sum()) == 0.0 for value in network.encoder.state_dict().values())


def test_should_stop_ends_the_round_early(cache):
    participant = site(cache, Average(), steps=50)
    participant.begin_round(0, 1, participant.weights())
    asked = []
    participant.train(lambda: len(asked) >= 3 or asked.append(1))
    assert participant.trainer.state.iteration < 6


@pytest.mark.parametrize(
    ("make", "message"),
    [(lambda: DivergenceMixing(1.1), "tau must lie"), (lambda: PredictedMomentum(-1), "max_distance must not")],
)
def test_refuses_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()
