from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.metrics import Average
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import MeanDice, from_engine
from monai.inferers import SliceInferer
from monai.losses import DiceCELoss
from monai.transforms import AsDiscreted
from torch import nn

from fcl.data import SliceCache, SliceDataset, SliceLoader
from fcl.engines import AugmentBatch, LabelledVolumes, SegmentationParticipant, WarmupCosine
from fcl.engines.schedule import warmup_cosine
from fcl.federation import FeatureSet, Participant
from fcl.networks import CheckpointError, SegmentationUNet, read_weights
from fcl.transforms import BatchRandSpatial
from tests.fcl.engines.hosted import run_round, same

STEPS = 4
RATE = 0.01


def make_participant(
    cache: SliceCache, norm: Any = "batch", validation: tuple[str, ...] = ("v5",), **options: Any
) -> SegmentationParticipant:
    torch.manual_seed(0)
    network = SegmentationUNet(2, 1, 2, channels=(4, 8), norm=norm, dropout=0.1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE)
    schedule = WarmupCosine(optimizer)
    dataset = SliceDataset(cache, ["v0", "v1", "v2"])
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=SliceLoader(dataset, 8, STEPS, seed=0),
        network=network,
        optimizer=optimizer,
        loss_function=DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True),
        prepare_batch=AugmentBatch(BatchRandSpatial(rotate_range=1.0, flip_prob=0.5), seed=0),
        key_train_metric={"loss": Average(output_transform=lambda output: output["loss"].item())},
        train_handlers=[schedule],
        decollate=False,
    )
    volumes = LabelledVolumes(cache, validation)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(volumes, batch_size=1, generator=torch.Generator()),
        network=network,
        inferer=SliceInferer(roi_size=(32, 32), sw_batch_size=8, spatial_dim=2),
        postprocessing=AsDiscreted("pred", argmax=True),
        key_val_metric={
            "mean_dice": MeanDice(
                include_background=False, num_classes=2, output_transform=from_engine(["pred", "label"])
            )
        },
    )
    return SegmentationParticipant(trainer, evaluator, schedule, **options)


def test_it_is_a_participant_that_tells_its_sizes(cache: SliceCache) -> None:
    participant = make_participant(cache)
    assert isinstance(participant, Participant)
    assert participant.describe() == {"slices": 24, "volumes": 3, "validation_volumes": 1}


def test_loss_falls_and_dice_rises_over_rounds(cache: SliceCache) -> None:
    participant = make_participant(cache)
    before = participant.validate()
    losses = [run_round(participant, number, 15).metrics["loss"] for number in range(15)]
    after = participant.validate()
    assert losses[-1] < 0.5 * losses[0]
    assert after["mean_dice"] > max(0.8, before["mean_dice"])


def test_validation_is_the_dice_of_whole_volumes(cache: SliceCache) -> None:
    participant = make_participant(cache, validation=("v4", "v5"))
    result = participant.validate()
    network = participant.trainer.network.eval()
    expected = []
    for volume in LabelledVolumes(cache, ("v4", "v5")):
        with torch.no_grad():
            predicted = network(volume["image"].permute(3, 0, 1, 2)).argmax(1).permute(1, 2, 0) == 1
        true = volume["label"][0] == 1
        expected.append(2 * (predicted & true).sum() / (predicted.sum() + true.sum()))
    assert result == {"mean_dice": pytest.approx(float(torch.stack(expected).mean()), abs=1e-6), "count": 2.0}


def test_no_validation_volumes_give_no_metrics(cache: SliceCache) -> None:
    assert make_participant(cache, validation=()).validate() == {}


def test_validation_does_not_change_training(cache: SliceCache) -> None:
    plain, validated = make_participant(cache), make_participant(cache)
    for participant in (plain, validated):
        torch.manual_seed(1)
        participant.begin_round(0, 2, participant.weights())
        if participant is validated:
            participant.validate()
        participant.train(lambda: False)
    assert same(plain.weights(), validated.weights())


def test_resumed_run_continues_bit_for_bit(cache: SliceCache) -> None:
    straight = make_participant(cache)
    for number in range(2):
        run_round(straight, number, 3)
    file = io.BytesIO()
    torch.save({"state": straight.state_dict(), "weights": straight.weights()}, file)
    run_round(straight, 2, 3)

    torch.manual_seed(123)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = make_participant(cache)
    resumed.load_state_dict(saved["state"])
    resumed.begin_round(2, 3, saved["weights"])
    resumed.train(lambda: False)
    assert same(straight.weights(), resumed.weights())
    assert same(straight.trainer.network.state_dict(), resumed.trainer.network.state_dict())


def test_learning_rate_follows_the_progress_of_all_rounds(cache: SliceCache) -> None:
    participant = make_participant(cache)
    group = participant.trainer.optimizer.param_groups[0]
    for number in range(3):
        run_round(participant, number, 3)
        done = (number + 1) * STEPS
        assert group["lr"] == pytest.approx(RATE * warmup_cosine(done / (3 * STEPS + 1)))


def test_stop_ends_the_round_early(cache: SliceCache) -> None:
    participant = make_participant(cache)
    steps = 0

    def should_stop() -> bool:
        nonlocal steps
        steps += 1
        return steps > 2

    participant.begin_round(0, 2, participant.weights())
    report = participant.train(should_stop)
    assert participant.trainer.state.iteration <= 3
    assert participant.loader.state_dict()["drawn"] < STEPS
    assert report.count == 24
    # The next round starts where the schedule expects it, not where the stop left off.
    participant.begin_round(1, 2, participant.weights())
    participant.train(lambda: False)
    assert participant.trainer.state.iteration == 2 * STEPS


@pytest.mark.parametrize(("keep", "steps"), [(True, 2 * STEPS), (False, STEPS), ("False", STEPS)])
def test_optimizer_lives_on_unless_told_otherwise(cache: SliceCache, keep: bool | str, steps: int) -> None:
    participant = make_participant(cache, keep_optimizer=keep)
    for number in range(2):
        run_round(participant, number, 2)
    state = next(iter(participant.trainer.optimizer.state.values()))
    assert int(state["step"]) == steps


def test_a_word_that_is_neither_true_nor_false_is_refused(cache: SliceCache) -> None:
    with pytest.raises(ValueError, match="keep_optimizer must be true or false, got 'no'"):
        make_participant(cache, keep_optimizer="no")


def test_local_statistics_neither_leave_nor_change(cache: SliceCache) -> None:
    participant = make_participant(cache, norm_stats="local")
    run_round(participant, 0, 2)
    weights = participant.weights()
    assert not any("running" in name or "num_batches" in name for name in weights)
    before = {k: v.clone() for k, v in participant.trainer.network.state_dict().items() if "running" in k}
    participant.begin_round(1, 2, {name: torch.zeros_like(tensor) for name, tensor in weights.items()})
    after = participant.trainer.network.state_dict()
    assert before
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_sites_own_normalisation_survives_rounds_and_a_restart(cache: SliceCache, tmp_path: Path) -> None:
    options: Any = {"norm_stats": "local_layers", "own_checkpoint": tmp_path / "own.pt"}
    participant = make_participant(cache, **options)
    run_round(participant, 0, 3)
    sent = participant.weights()
    own = {k: v.clone() for k, v in participant.trainer.network.state_dict().items() if k not in sent}
    fresh = make_participant(cache, **options).trainer.network.state_dict()
    scales = [name for name in own if name.endswith("N.weight")]
    assert scales
    assert not any(torch.equal(own[name], fresh[name]) for name in scales)

    file = io.BytesIO()
    torch.save(participant.state_dict(), file)
    resumed = make_participant(cache, **options)
    average = {name: torch.zeros_like(value) for name, value in sent.items()}
    results = []
    for each in (participant, resumed):
        file.seek(0)
        each.load_state_dict(torch.load(file, weights_only=True))
        each.begin_round(1, 3, average)
        assert same(each.trainer.network.state_dict(), {**average, **own})
        # What the site evaluates and keeps: the average with its own normalisation.
        assert same(read_weights(tmp_path / "own.pt"), each.trainer.network.state_dict())
        results.append(each.train(lambda: False).weights)
    assert same(*results)


def test_the_loss_scale_of_float16_outlives_a_restart(cache: SliceCache) -> None:
    def in_float16(first_scale: float) -> SegmentationParticipant:
        plain = make_participant(cache)
        assert "scaler" not in plain.state_dict()
        plain.trainer.scaler = torch.amp.GradScaler("cpu", init_scale=first_scale)
        return SegmentationParticipant(plain.trainer, plain.evaluator, plain.schedule)

    resumed = in_float16(2.0)
    resumed.load_state_dict(in_float16(8.0).state_dict())
    assert resumed.trainer.scaler.get_scale() == 8.0


def test_pretrained_encoder_goes_into_the_encoder_only(cache: SliceCache) -> None:
    participant = make_participant(cache, norm=("group", {"num_groups": 2}))
    decoder = {k: v.clone() for k, v in participant.trainer.network.decoder.state_dict().items()}
    encoder = {k: torch.full_like(v, 0.5) for k, v in participant.trainer.network.encoder.state_dict().items()}
    offered = {f"encoder.{name}": tensor for name, tensor in encoder.items()}
    report = participant.load_pretrained({**offered, "head.0.weight": torch.zeros(3)})
    assert len(report.matched) == len(encoder)
    assert report.unexpected == ("head.0.weight",)
    assert same(dict(participant.trainer.network.encoder.state_dict()), encoder)
    assert same(dict(participant.trainer.network.decoder.state_dict()), decoder)
    with pytest.raises(CheckpointError):
        participant.load_pretrained({name.removeprefix("encoder."): tensor for name, tensor in offered.items()})


def test_features_are_refused_with_the_way_out(cache: SliceCache) -> None:
    participant = make_participant(cache)
    assert not participant.shares_features
    with pytest.raises(RuntimeError, match="exchange to none"):
        participant.publish("features")
    with pytest.raises(RuntimeError, match="exchange to none"):
        participant.receive("site-2", FeatureSet(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long)), 0)


def test_nan_scores_are_not_reported(cache: SliceCache, monkeypatch: pytest.MonkeyPatch) -> None:
    participant = make_participant(cache)
    participant.trainer.state.metrics.update(loss=1.0, odd=float("nan"), table={"a": 1})
    monkeypatch.setattr(participant.trainer, "run", lambda: None)
    assert participant.train(lambda: False).metrics == {"loss": 1.0}


def test_batches_must_come_from_a_resumable_augmentation(cache: SliceCache) -> None:
    participant = make_participant(cache)
    participant.trainer.prepare_batch = nn.Identity()
    with pytest.raises(TypeError, match="AugmentBatch"):
        SegmentationParticipant(participant.trainer, participant.evaluator, participant.schedule)
