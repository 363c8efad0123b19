"""Steps of the methods that compare views: who learns, who follows, what is kept; and that they learn on a toy."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Events
from torch import nn

from fcl.data import SliceDataset, SliceLoader
from fcl.engines import (
    PartitionKNN,
    Prediction,
    PretrainTrainer,
    QueueContrast,
    RegionContrast,
    Rotation,
    SwappedAssignment,
    Untrained,
    ViewContrast,
)
from fcl.losses import (
    GlobalContrastLoss,
    LocalContrastLoss,
    PositionContrastLoss,
    PredictionLoss,
    QueueContrastLoss,
    SwappedAssignmentLoss,
)
from fcl.networks import (
    ContrastiveNetwork,
    PredictiveNetwork,
    ProjectionHead,
    PrototypeNetwork,
    RegionNetwork,
    UNetDecoder,
    UNetEncoder,
)
from fcl.transforms import BatchCompose, BatchRandIntensity, BatchRandSpatial
from tests.fcl.engines.hosted import copies

NORM = ("group", {"num_groups": 4})


def encoder():
    return UNetEncoder(2, 1, (8, 16, 32), NORM)


def head(outputs=16):
    return ProjectionHead(32, 32, outputs, batch_norm=True)


def trainer_of(cache, method, network, *, momentum_network=None, steps=4, momentum=0.9, lr=2e-3, handlers=()):
    dataset = SliceDataset(cache, [f"v{i}" for i in range(4)])
    return PretrainTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=SliceLoader(dataset, 16, steps),
        network=network,
        momentum_network=momentum_network,
        optimizer=torch.optim.AdamW(network.parameters(), lr),
        method=method,
        augmentation=BatchCompose(
            [BatchRandSpatial(rotate_range=0.2, flip_prob=0.5), BatchRandIntensity(brightness=0.1)]
        ),
        momentum=momentum,
        train_handlers=list(handlers),
    )


def predictive():
    torch.manual_seed(0)
    return PredictiveNetwork(encoder(), head(), ProjectionHead(16, 16, 16, batch_norm=True))


@pytest.mark.parametrize(
    ("make_method", "make_network"),
    [
        (lambda: Prediction(PredictionLoss(0.5)), predictive),
        (lambda: QueueContrast(QueueContrastLoss(), 24), lambda: ContrastiveNetwork(encoder(), head())),
    ],
)
def test_the_momentum_network_follows_and_gets_no_gradient(cache, make_method, make_network):
    network = make_network()
    trainer = trainer_of(cache, make_method(), network, momentum_network=copy.deepcopy(network), steps=2, momentum=0.75)
    seen = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: seen.append(copies(network)))
    before = copies(network)
    trainer.run()
    for name, follower in trainer.momentum_network.named_parameters():
        expected = 0.75 * (0.75 * before[name] + 0.25 * seen[0][name]) + 0.25 * seen[1][name]
        assert torch.allclose(follower, expected, atol=1e-6), name
        assert follower.grad is None
        assert not follower.requires_grad


def test_the_predictor_of_the_target_is_never_used(cache):
    network = predictive()
    target = copy.deepcopy(network)
    trainer = trainer_of(cache, Prediction(PredictionLoss()), network, momentum_network=target, steps=1, momentum=1.0)
    nn.init.constant_(target.predictor[-1].weight, float("nan"))
    trainer.run()
    assert all(torch.isfinite(value).all() for value in network.state_dict().values())


def test_a_prediction_from_one_view_meets_the_target_of_the_other(cache):
    network = predictive()
    before, target = copy.deepcopy(network), copy.deepcopy(network)
    method, views, compared = Prediction(PredictionLoss()), [], []
    method.loss_function.register_forward_pre_hook(lambda loss, given: compared.append(given[:2]))
    trainer = trainer_of(cache, method, network, momentum_network=target, steps=1, momentum=1.0)
    augment = trainer.augmentation

    def remembered(image, generator):
        views.append(augment(image, generator=generator))
        return views[-1]

    trainer.augmentation = remembered
    trainer.run()
    (first, _), (second, _) = views
    with torch.no_grad():
        for (prediction, other), (ours, theirs) in zip(compared, ((first, second), (second, first)), strict=True):
            torch.testing.assert_close(prediction, before.predict(ours))
            torch.testing.assert_close(other, target(theirs))


def test_a_queue_holds_the_latest_keys_and_leaves_out_the_slices_own(cache):
    network = ContrastiveNetwork(encoder(), head())
    method = QueueContrast(QueueContrastLoss(), 24)
    masks = []
    original = method.loss_function.forward

    def spy(q, k, queue, is_negative):
        masks.append((len(queue), is_negative))
        return original(q, k, queue, is_negative)

    method.loss_function.forward = spy
    trainer_of(cache, method, network, momentum_network=copy.deepcopy(network), steps=3).run()
    assert [length for length, _ in masks] == [0, 16, 24]
    rows = method.queue.rows
    assert len(rows) == 24
    # 32 slices, 16 a batch: the third batch meets slices of the first two.
    assert 0 < int((~masks[2][1]).sum()) <= 16
    saved = method.state_dict()
    method.begin_round()
    assert len(method.queue) == 0
    method.load_state_dict(saved)
    assert torch.equal(method.queue.rows, rows)


def test_a_step_without_negatives_is_left_out_of_the_means(cache):
    network, seen = ContrastiveNetwork(encoder(), head()), []
    trainer = trainer_of(
        cache, QueueContrast(QueueContrastLoss(), 24), network, momentum_network=copy.deepcopy(network), steps=3
    )
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: seen.append(dict(e.state.output)))
    trainer.run()
    assert seen[0]["loss"] == 0.0
    for name in ("loss", "positive_similarity", "negative_similarity"):
        mean = (float(seen[1][name]) + float(seen[2][name])) / 2
        assert trainer.state.metrics[name] == pytest.approx(mean, rel=1e-5)


def test_prototypes_learn_and_stay_unit_vectors_in_the_scores(cache):
    torch.manual_seed(0)
    network = PrototypeNetwork(encoder(), head(), 16, 6)
    before = network.prototypes.detach().clone()
    trainer = trainer_of(cache, SwappedAssignment(SwappedAssignmentLoss(), 20), network)
    trainer.run()
    assert not torch.equal(before, network.prototypes)
    assert float(network.scores(torch.eye(16)).detach().abs().max()) <= 1.0
    assert {"prototype_entropy", "spread", "alignment"} <= trainer.state.metrics.keys()


def test_regions_train_the_decoder_and_never_the_encoder(cache):
    torch.manual_seed(0)
    network = RegionNetwork(UNetEncoder(2, 1, (8, 16, 32), "batch"), UNetDecoder(2, 1, (8, 16, 32), NORM), 2, 8)
    network.load_encoder({f"encoder.{name}": value for name, value in network.encoder.state_dict().items()})
    before = copies(network)
    trainer_of(cache, RegionContrast(LocalContrastLoss(across_volumes=True)), network).run()
    after = network.state_dict()
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"decoder", "head", "project"}


def test_regions_go_on_from_a_restored_state_without_the_file_of_the_encoder(cache):
    def make():
        network = RegionNetwork(UNetEncoder(2, 1, (8, 16, 32), "batch"), UNetDecoder(2, 1, (8, 16, 32), NORM), 2, 8)
        return trainer_of(cache, RegionContrast(LocalContrastLoss()), network, steps=1)

    trained, restored = make(), make()
    encoder_weights = {f"encoder.{name}": value for name, value in trained.network.encoder.state_dict().items()}
    restored.method.load_state_dict(trained.method.state_dict())  # of no step yet: it may be random
    with pytest.raises(ValueError, match="none was given"):
        restored.run()
    trained.network.load_encoder(encoder_weights)
    trained.run()
    restored = make()
    restored.network.load_state_dict(trained.network.state_dict())
    restored.method.load_state_dict(trained.method.state_dict())
    restored.run()


@pytest.mark.parametrize(
    "loss", [GlobalContrastLoss(), PositionContrastLoss(), GlobalContrastLoss(0.1, "other_partitions", True)]
)
def test_it_learns_partitions_of_held_out_volumes(cache, loss):
    torch.manual_seed(0)
    network = ContrastiveNetwork(encoder(), head())
    monitor = PartitionKNN(network, cache, ["v0", "v1", "v2", "v3"], ["v4", "v5"], neighbours=5)
    trainer = trainer_of(cache, ViewContrast(loss, 1, with_original=True), network, steps=24, handlers=[monitor])
    losses = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: losses.append(float(e.state.output["loss"])))
    trainer.run()
    assert sum(losses[-10:]) < sum(losses[:10])
    assert trainer.state.metrics["partition_knn"] >= 0.6
    assert trainer.state.metrics["spread"] > 0.1


def test_a_step_without_a_loss_changes_nothing(cache):
    network = ContrastiveNetwork(encoder(), head())
    before = copies(network)
    trainer = trainer_of(cache, Untrained(), network)
    trainer.run()
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert trainer.state.metrics["loss"] == 0.0


def test_metrics_are_means_over_the_epoch(cache):
    class Counting(Untrained):
        def __init__(self):
            self.values = iter([1.0, 2.0, 6.0])

        def __call__(self, step):
            value = torch.tensor(next(self.values))
            return {"loss": value, "positive_similarity": value, "negative_similarity": value / 2}

    trainer = trainer_of(cache, Counting(), ContrastiveNetwork(encoder(), head()), steps=3)
    trainer.run()
    assert trainer.state.metrics["loss"] == pytest.approx(3.0)
    assert trainer.state.metrics["similarity_gap"] == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("method", "make", "message"),
    [
        (Prediction(PredictionLoss()), predictive, "Prediction cannot run: it needs a momentum_network"),
        (SwappedAssignment(SwappedAssignmentLoss()), predictive, "must offer scores; got a PredictiveNetwork"),
        (Rotation(nn.CrossEntropyLoss()), encoder, "must offer embed, head; got a UNetEncoder"),
    ],
)
def test_a_method_that_lacks_its_networks_is_refused(cache, method, make, message):
    with pytest.raises(ValueError, match=message):
        trainer_of(cache, method, make())


@pytest.mark.parametrize(
    ("size", "slices", "way_out"),
    [(1, 32, "set batch_size to 2 or more"), (16, 1, "give the site more patients")],
)
def test_batches_of_one_slice_are_refused_at_the_start(size, slices, way_out):
    network = ContrastiveNetwork(encoder(), head())
    with pytest.raises(ValueError, match=f"a step needs two slices or more.*{way_out}"):
        PretrainTrainer(
            device="cpu",
            max_epochs=1,
            train_data_loader=SimpleNamespace(batch_size=size, dataset=range(slices)),
            network=network,
            optimizer=torch.optim.AdamW(network.parameters()),
            method=Untrained(),
            augmentation=BatchCompose([]),
        )


@pytest.mark.parametrize(("word", "expected"), [("true", True), ("False", False)])
def test_the_slice_as_it_is_becomes_a_view_by_a_word_too(word, expected):
    assert ViewContrast(GlobalContrastLoss(), 2, word).with_original is expected


def test_a_word_that_is_neither_true_nor_false_is_refused():
    with pytest.raises(ValueError, match="with_original must be true or false, got 'no'"):
        ViewContrast(GlobalContrastLoss(), 2, "no")


@pytest.mark.parametrize(("views", "original"), [(1, False), (0, True), (1, "false")])
def test_one_view_alone_is_refused(views, original):
    with pytest.raises(ValueError, match="two views or more"):
        ViewContrast(GlobalContrastLoss(), views, original)
