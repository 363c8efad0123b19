from __future__ import annotations

import copy

import pytest
import torch
from monai.engines import IterationEvents

from fcl.engines import FedProx
from fcl.losses import ProximalLoss


def distance(network: torch.nn.Module, weights: dict[str, torch.Tensor]) -> float:
    pairs = [(p.detach(), weights[name]) for name, p in network.named_parameters() if name in weights]
    return float(sum((own - other).square().sum() for own, other in pairs) ** 0.5)


def test_weights_stay_nearer_the_larger_mu_is(segmenting) -> None:
    moved = []
    for mu in (0.0, 1.0, 100.0):
        participant = segmenting(FedProx(mu))
        start = participant.weights()
        participant.begin_round(0, 1, start)
        participant.train(lambda: False)
        moved.append(distance(participant.trainer.network, start))
    assert moved[0] > 1.2 * moved[2]
    assert moved[0] > moved[1] > moved[2]


def test_mu_of_zero_is_plain_averaging(segmenting) -> None:
    results = []
    for variants in ((), (FedProx(0.0),)):
        participant = segmenting(*variants)
        participant.begin_round(0, 1, participant.weights())
        results.append(participant.train(lambda: False).weights)
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_the_pull_is_towards_the_global_weights_of_the_round(segmenting) -> None:
    fedprox = FedProx(0.5)
    participant = segmenting(fedprox)
    trainer, terms = participant.trainer, []

    @trainer.on(IterationEvents.LOSS_COMPLETED)
    def note(engine) -> None:
        terms.append((copy.deepcopy(engine.network), fedprox(engine)["loss"].item()))

    for number, factor in enumerate((1.0, 0.5)):
        weights = {name: value * factor for name, value in participant.weights().items()}
        participant.begin_round(number, 2, weights)
        report = participant.train(lambda: False)
        network, loss = terms[-1]
        names = dict(network.named_parameters())
        expected = ProximalLoss(0.5)(names.values(), (weights[name] for name in names)).loss
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        assert terms[-3][1] == 0.0  # the first step of a round is taken at the global weights
        assert report.metrics["divergence"] > 0


def test_what_stays_at_the_site_is_free(segmenting) -> None:
    fedprox = FedProx(0.5)
    participant = segmenting(fedprox, norm_stats="local_layers")
    participant.begin_round(0, 1, participant.weights())
    participant.train(lambda: False)
    network = participant.trainer.network
    with torch.no_grad():
        before = float(fedprox(participant.trainer)["loss"])
        for name, parameter in network.named_parameters():
            if name not in participant.weights():
                parameter.add_(1.0)
        assert float(fedprox(participant.trainer)["loss"]) == before


def test_a_resumed_round_is_the_same(segmenting) -> None:
    straight = segmenting(FedProx(0.1))
    straight.begin_round(0, 2, straight.weights())
    weights = straight.train(lambda: False).weights
    state = copy.deepcopy(straight.state_dict())
    resumed = segmenting(FedProx(0.1))
    resumed.load_state_dict(state)
    results = []
    for participant in (straight, resumed):
        participant.begin_round(1, 2, {name: value * 0.9 for name, value in weights.items()})
        results.append(participant.train(lambda: False).weights)
    assert all(torch.equal(results[0][name], results[1][name]) for name in weights)


def test_a_training_without_rounds_is_refused_with_the_way_out(segmenting) -> None:
    with pytest.raises(RuntimeError, match="--method fedprox"):
        segmenting(FedProx()).trainer.run()


def test_negative_strength_is_refused() -> None:
    with pytest.raises(ValueError, match="mu must be 0 or more, got -1"):
        FedProx(-1)
