"""The FCL trainer and its federated participant on a toy that can be told apart."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Events

from fcl.data import SliceDataset, SliceLoader
from fcl.engines import FCL, PartitionKNN, PretrainParticipant, PretrainTrainer, WarmupCosine
from fcl.federation import FeatureSet, Participant
from fcl.losses import FCLLoss
from fcl.memory import FeatureBank
from fcl.networks import ContrastiveNetwork, ProjectionHead, UNetEncoder
from fcl.privacy import FeaturePolicy
from fcl.transforms import BatchCompose, BatchRandIntensity, BatchRandSpatial
from tests.fcl.engines.hosted import copies, same


def build(
    cache,
    *,
    steps=4,
    epochs=1,
    momentum=0.9,
    norm=("group", {"num_groups": 4}),
    seed=0,
    lr=2e-3,
    slab_depth=None,
    batch_norm=False,
    **participant,
):
    torch.manual_seed(0)

    def network():
        dims, strides = (2, None) if slab_depth is None else (3, [[2, 2, 1]] * 2)
        encoder = UNetEncoder(dims, 1, (8, 16, 32), norm, strides=strides)
        return ContrastiveNetwork(encoder, ProjectionHead(32, 32, 16, batch_norm))

    dataset = SliceDataset(cache, [f"v{i}" for i in range(4)], slab_depth=slab_depth)
    loader = SliceLoader(dataset, 16, steps, seed=seed)
    slices = SliceLoader(dataset, 32, shuffle=False)
    main = network()
    optimizer = torch.optim.AdamW(main.parameters(), lr)
    schedule = WarmupCosine(optimizer)
    monitor = PartitionKNN(
        main, cache, ["v0", "v1", "v2", "v3"], ["v4", "v5"], neighbours=5, interval=1, slab_depth=slab_depth
    )
    trainer = PretrainTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=loader,
        network=main,
        momentum_network=network(),
        optimizer=optimizer,
        method=FCL(FCLLoss(), FeatureBank(dataset.partition, dataset.volume, 16), slices=slices),
        augmentation=BatchCompose(
            [BatchRandSpatial(rotate_range=0.2, flip_prob=0.5), BatchRandIntensity(brightness=0.1)]
        ),
        momentum=momentum,
        seed=seed,
        train_handlers=[schedule, monitor],
    )
    return PretrainParticipant(trainer, schedule, monitor, seed=seed, **participant)


def never():
    return False


def test_one_step_moves_the_momentum_network_by_its_ema_and_the_main_one_by_its_gradient(cache):
    participant = build(cache, steps=1, momentum=0.75)
    trainer = participant.trainer
    before = copies(trainer.network)
    trainer.run()
    for name, main in trainer.network.named_parameters():
        follower = trainer.momentum_network.get_parameter(name)
        assert torch.allclose(follower, 0.75 * before[name] + 0.25 * main, atol=1e-6), name
        assert follower.grad is None
    assert not same(before, copies(trainer.network))


def test_the_batch_overwrites_its_rows_of_the_bank_only(cache):
    trainer = build(cache, steps=1).trainer
    seen = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: seen.append(engine.state.batch["row"]))
    trainer.method.refresh_bank(trainer)
    before = trainer.method.bank.local().features.clone()
    trainer.run()
    changed = (trainer.method.bank.local().features != before).any(dim=1)
    assert changed.nonzero()[:, 0].tolist() == sorted(seen[0].tolist())


def test_it_learns_partitions_of_held_out_volumes(cache):
    participant = build(cache, steps=40, epochs=5, lr=3e-3)
    random = participant.monitor.measure()["partition_knn"]
    losses = []
    participant.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda e: losses.append(e.state.metrics["loss"]))
    participant.trainer.run()
    learned = participant.monitor.measure()["partition_knn"]
    assert losses[-1] < losses[0]
    assert learned >= max(0.75, random)


def test_on_slabs_the_loss_falls_and_features_do_not_collapse(cache):
    participant = build(cache, slab_depth=3, batch_norm=True, lr=5e-3)
    reports = []
    for number in range(3):  # every round begins with a whole bank, so the losses compare
        participant.begin_round(number, 3, participant.weights())
        reports.append(participant.train(never).metrics)
    assert reports[-1]["loss"] < reports[0]["loss"] - 0.5
    assert reports[-1]["similarity_gap"] > reports[0]["similarity_gap"]
    assert reports[-1]["spread"] > 0.3


def test_terms_and_monitors_are_logged_each_epoch(cache):
    trainer = build(cache).trainer
    trainer.run()
    expected = {"loss", "local", "remote", "positive_similarity", "negative_similarity", "similarity_gap"}
    expected |= {"spread", "alignment", "partition_knn", "uniformity"}
    assert expected <= set(trainer.state.metrics)
    assert trainer.state.metrics["loss"] == pytest.approx(
        trainer.state.metrics["local"] + trainer.state.metrics["remote"], rel=1e-4
    )


def test_a_round_starts_from_the_global_weights_and_refreshes_the_bank(cache):
    participant = build(cache)
    assert isinstance(participant, Participant)
    given = {name: value + 0.01 for name, value in participant.weights().items()}
    participant.begin_round(3, 10, given)
    trainer = participant.trainer
    assert same(given, participant.weights())
    assert same(copies(trainer.network), copies(trainer.momentum_network))
    assert trainer.state.iteration == 3 * 4
    published = participant.publish("features")
    assert len(trainer.method.bank) == len(trainer.data_loader.dataset)
    assert len(published) == 32
    assert torch.allclose(published.features.norm(dim=1), torch.ones(32), atol=1e-5)
    assert len(participant.publish("prototypes")) == 4


def test_the_bank_is_made_once_a_round_and_not_by_a_site_that_validates_only(cache):
    participant = build(cache)
    made = []
    refresh = participant.trainer.method.refresh_bank
    participant.trainer.method.refresh_bank = lambda *given, **more: made.append(1) or refresh(*given, **more)
    weights = participant.weights()
    participant.begin_round(0, 3, weights)
    participant.validate()
    assert made == []
    participant.publish("features")
    participant.train(never)
    assert made == [1]
    participant.begin_round(1, 3, weights)
    participant.train(never)  # nothing shown, as without an exchange
    assert made == [1, 1]


def test_features_of_before_a_restored_state_are_not_shown(cache):
    participant = build(cache)
    saved = participant.state_dict()
    participant.begin_round(0, 3, participant.weights())
    participant.load_state_dict(saved)
    with pytest.raises(RuntimeError, match="published between begin_round and train"):
        participant.publish("features")


def test_peers_features_serve_for_max_age_rounds_whoever_trains(cache):
    participant = build(cache)
    rows = []
    for number in range(3):
        participant.begin_round(number, 3, participant.weights())
        if number == 0:
            participant.receive("site-2", FeatureSet(torch.eye(16)[:8], torch.arange(8) % 4), 0)
        rows.append(participant.train(never).metrics["bank_remote_rows"])
    assert rows == [8, 8, 0]


def test_momentum_network_may_stay_local_once_it_has_been_the_average(cache):
    participant = build(cache, momentum_sync="local")
    trainer = participant.trainer
    for number in (2, 3):  # it joins late, and does not train in the first round that it is asked to begin
        participant.begin_round(number, 6, {name: value + 0.5 for name, value in participant.weights().items()})
        assert same(copies(trainer.network), copies(trainer.momentum_network))
    participant.train(never)
    before = copies(trainer.momentum_network)
    restored = build(cache, momentum_sync="local")
    restored.load_state_dict(participant.state_dict())
    for each in (participant, restored):
        each.begin_round(4, 6, {name: value + 0.5 for name, value in each.weights().items()})
        assert same(before, copies(each.trainer.momentum_network))


def test_a_querys_own_key_is_in_the_bank_when_the_rest_is_drawn(cache):
    trainer = build(cache, steps=1).trainer
    method, given = trainer.method, []
    method.drawn_features = None
    method.loss_function.register_forward_pre_hook(lambda loss, arguments: given.append(arguments))
    trainer.run()
    k_BD, drawn_KD = given[0][1], given[0][7]
    assert (k_BD @ drawn_KD.T).max(dim=1).values == pytest.approx(1.0, abs=1e-5)


def test_a_restart_goes_on_with_the_random_numbers_of_the_gpu_too(cache, monkeypatch):
    hosted = build(cache)
    hosted.trainer.state.device = torch.device("cuda")
    numbers = {hosted.trainer.state.device: torch.arange(4, dtype=torch.uint8)}
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: numbers[device].clone())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: numbers.update({device: state}))
    participant = PretrainParticipant(hosted.trainer, hosted.schedule, hosted.monitor)
    saved = participant.state_dict()
    numbers[hosted.trainer.state.device] = torch.zeros(4, dtype=torch.uint8)
    participant.load_state_dict(saved)
    assert numbers[hosted.trainer.state.device].tolist() == [0, 1, 2, 3]


def test_received_features_are_drawn_and_change_the_result(cache):
    results = []
    for received in (False, True):
        participant = build(cache)
        participant.begin_round(0, 2, participant.weights())
        if received:
            participant.receive("site-2", FeatureSet(torch.eye(16)[:8], torch.arange(8) % 4), 0)
        results.append(participant.train(never))
    assert [report.metrics["bank_remote_rows"] for report in results] == [0, 8]
    assert not same(results[0].weights, results[1].weights)
    assert results[0].count == 32


def test_equal_seeds_give_equal_bits_and_a_restored_site_continues_bit_for_bit(cache, tmp_path):
    straight = build(cache)
    weights = straight.weights()
    for number in range(3):
        straight.begin_round(number, 3, weights)
        weights = straight.train(never).weights
        if number == 0:
            torch.save(straight.state_dict(), tmp_path / "site.pt")
            after_first = weights
    restored = build(cache)
    restored.load_state_dict(torch.load(tmp_path / "site.pt", weights_only=True))
    again = after_first
    for number in (1, 2):
        restored.begin_round(number, 3, again)
        again = restored.train(never).weights
    assert same(weights, again)


def test_a_restored_site_shows_the_rows_that_it_would_have_shown(cache):
    straight, restored = (build(cache, steps=1, max_shared_rows=5) for _ in range(2))
    straight.begin_round(0, 2, straight.weights())
    straight.publish("features")
    weights = straight.train(never).weights
    restored.load_state_dict(straight.state_dict())
    shown = []
    for participant in (straight, restored):
        participant.begin_round(1, 2, weights)
        shown.append(participant.publish("features"))
    assert len(shown[0]) == 5
    assert torch.equal(shown[0].features, shown[1].features)


def test_the_draw_does_not_depend_on_who_else_draws_random_numbers(cache):
    ends = []
    for seed in (1, 2):
        trainer = build(cache, steps=3).trainer
        trainer.method.drawn_features = 8
        torch.manual_seed(seed)
        trainer.run()
        ends.append(copies(trainer.network))
    assert same(*ends)


def test_should_stop_ends_the_round_early(cache):
    participant = build(cache, steps=50)
    participant.begin_round(0, 1, participant.weights())
    asked = []
    participant.train(lambda: len(asked) >= 3 or asked.append(1))
    assert participant.trainer.state.iteration < 6


@pytest.mark.parametrize(("policy", "travel"), [("average", True), ("local", False)])
def test_running_statistics_follow_the_policy(cache, policy, travel):
    participant = build(cache, norm="batch", norm_stats=policy)
    names = participant.weights()
    assert any(name.endswith("running_mean") for name in names) is travel
    assert not any(name.endswith("num_batches_tracked") for name in names)


def test_weights_of_another_architecture_are_refused(cache):
    participant = build(cache)
    with pytest.raises(ValueError, match="global weights do not fit"):
        participant.begin_round(0, 1, {"encoder.other": torch.zeros(1)})


@pytest.mark.parametrize("momentum", [-0.1, 1.5])
def test_refuses_a_momentum_out_of_range(cache, momentum):
    with pytest.raises(ValueError, match="momentum must lie in"):
        build(cache, momentum=momentum)


def test_at_one_site_the_bank_is_full_from_the_first_step_on(cache):
    trainer = build(cache, steps=1).trainer
    bank, drawn = trainer.method.bank, []
    trainer.add_event_handler(Events.ITERATION_STARTED, lambda engine: drawn.append(bank.complete))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: drawn.append(bank.complete))
    modes = trainer.momentum_network.training
    trainer.run()
    assert drawn == [False, True]
    assert trainer.momentum_network.training is modes


def test_a_bank_that_was_restored_is_not_filled_again(cache):
    trainer = build(cache, steps=1).trainer
    trainer.method.refresh_bank(trainer)
    trainer.method.slices = None  # whoever asked for them now would fail
    trainer.run()


@pytest.mark.parametrize("noise", [None, 1.0])
def test_a_round_makes_rows_as_steps_do_but_under_noise_each_from_its_slice_alone(cache, noise):
    participant = build(cache, feature_policy=FeaturePolicy(noise_multiplier=noise))
    method, seen = participant.trainer.method, []
    participant.trainer.momentum_network.register_forward_pre_hook(
        lambda network, given: seen.append((network.training, given[0]))
    )
    participant.begin_round(0, 2, participant.weights())
    participant.publish("features")
    (training, view), *others = seen
    assert training is (noise is None)
    assert not others
    stored = next(iter(method.slices))["image"]
    assert view.shape == stored.shape
    assert torch.equal(view, stored) is (noise is not None)


def test_a_slice_that_is_alone_in_its_batch_gets_its_row_under_batch_normalisation(cache):
    trainer = build(cache, batch_norm=True).trainer
    trainer.method.slices = SliceLoader(trainer.data_loader.dataset, 31, shuffle=False)
    trainer.method.refresh_bank(trainer)
    assert len(trainer.method.bank) == 32


def test_a_bank_is_not_shown_unless_all_its_rows_were_made_anew(cache):
    participant = build(cache)
    dataset = participant.trainer.data_loader.dataset
    participant.begin_round(0, 2, participant.weights())
    participant.train(never)
    # One batch of the two of a pass: the other rows would be those of the round before.
    participant.trainer.method.slices = SliceLoader(dataset, 16, steps=1, shuffle=False)
    participant.begin_round(1, 2, participant.weights())
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"16 of the bank's 32 rows were made.*let `slices` give every slice"):
            participant.publish("features")
    participant.trainer.method.slices = SliceLoader(dataset, 16, shuffle=False)
    assert len(participant.publish("features")) == 32


@pytest.mark.parametrize("what", ["volume", "partition", "slices", "loader"])
def test_participant_refuses_rows_that_are_not_of_the_slices_it_trains_on(cache, what):
    hosted = build(cache)
    trainer, dataset = hosted.trainer, hosted.trainer.data_loader.dataset
    others = SliceDataset(cache, ["v4", "v5", "v0", "v1"])
    assert torch.equal(others.volume, dataset.volume)  # labels alone do not tell them apart
    if what == "volume":  # each partition taken for a volume
        trainer.method.bank = FeatureBank(dataset.partition, dataset.partition, 16)
    elif what == "partition":
        trainer.method.bank = FeatureBank(dataset.volume, dataset.volume, 16)
    elif what == "slices":
        trainer.method.slices = SliceLoader(others, 32, shuffle=False)
    else:
        trainer.data_loader = SliceLoader(others, 16, 4)
    with pytest.raises(ValueError, match="must name one dataset"):
        PretrainParticipant(trainer, hosted.schedule, hosted.monitor)


def test_participant_needs_a_method_with_slices(cache):
    participant = build(cache)
    participant.trainer.method.slices = None
    with pytest.raises(ValueError, match="give it `slices`"):
        PretrainParticipant(participant.trainer, participant.schedule, participant.monitor)
