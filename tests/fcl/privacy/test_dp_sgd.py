"""DP-SGD by patient on a toy: bounds, sampling, accounts, and rounds of a federation."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import MeanDice, from_engine
from monai.inferers import SliceInferer
from monai.losses import DiceCELoss
from monai.transforms import AsDiscreted

from fcl.data import SliceCache, SliceDataset, SliceLoader
from fcl.engines import AugmentBatch, LabelledVolumes, WarmupCosine
from fcl.federation import Participant, PrivateWeights, WeightPrivacy
from fcl.networks import SegmentationUNet
from fcl.privacy import epsilon_of
from fcl.privacy.dp_sgd import AugmentPatients, PatientBatches, PatientOptimizer
from fcl.privacy.segmentation import PrivateSegmentationParticipant
from fcl.transforms import BatchCompose, BatchRandIntensity, BatchRandSpatial
from tests.fcl.engines.hosted import run_round

INSTANCE = ("instance", {"affine": True})
STEPS = 3


def silent(shape, std):
    return torch.zeros(*shape, dtype=torch.float64)


def network(norm: Any = INSTANCE) -> SegmentationUNet:
    torch.manual_seed(0)
    return SegmentationUNet(2, 1, 2, channels=(4, 8), norm=norm)


def loss(batch: bool = False) -> DiceCELoss:
    return DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=batch)


def make_participant(cache: SliceCache, sample_rate: float = 0.5, noise=1.0, **options: Any):
    net = network()
    batches = PatientBatches(SliceDataset(cache, ["v0", "v1", "v2", "v3"]), sample_rate, 4, STEPS)
    source = options.pop("source", None)
    optimizer = PatientOptimizer(
        torch.optim.AdamW(net.parameters(), lr=0.01),
        net,
        batches,
        noise,
        options.pop("clip", 1.0),
        **({"noise": source} if source else {}),
    )
    schedule = WarmupCosine(optimizer)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=batches,
        network=net,
        optimizer=optimizer,
        loss_function=loss(options.pop("mixing", False)),
        prepare_batch=AugmentPatients(BatchRandSpatial(rotate_range=1.0, flip_prob=0.5)),
        train_handlers=[schedule],
        decollate=False,
    )
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(LabelledVolumes(cache, ["v5"]), batch_size=1, generator=torch.Generator()),
        network=net,
        inferer=SliceInferer(roi_size=(32, 32), sw_batch_size=8, spatial_dim=2),
        postprocessing=AsDiscreted("pred", argmax=True),
        key_val_metric={
            "mean_dice": MeanDice(
                include_background=False, num_classes=2, output_transform=from_engine(["pred", "label"])
            )
        },
    )
    return PrivateSegmentationParticipant(trainer, evaluator, schedule, **options)


def test_gradient_of_a_step_is_the_sum_of_the_patients_clipped_means(cache: SliceCache) -> None:
    net, clip = network(), 0.05
    batches = PatientBatches(SliceDataset(cache), 1.0, 3, 1)
    optimizer = PatientOptimizer(torch.optim.SGD(net.parameters(), lr=0.0), net, batches, 1.0, clip, noise=silent)
    batch = next(iter(batches))
    assert batch["patient"].tolist() == [p for p in range(6) for _ in range(3)]
    # By hand: a backward pass for each patient on a network without hooks.
    plain, expected = network(), [torch.zeros_like(p) for p in net.parameters()]
    norms = []
    for patient in range(6):
        rows = batch["patient"] == patient
        gradient = torch.autograd.grad(loss()(plain(batch["image"][rows]), batch["label"][rows]), plain.parameters())
        norms.append(float(torch.cat([g.flatten() for g in gradient]).norm()))
        for total, own in zip(expected, gradient, strict=True):
            total += own * min(1.0, clip / norms[-1])
    assert max(norms) > clip
    loss()(net(batch["image"]), batch["label"]).backward()
    optimizer.group(batch["patient"])
    optimizer.step()
    for parameter, total in zip(net.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, total / 6, atol=1e-6)


def test_replacing_a_patient_moves_the_sum_by_twice_the_clip_at_most(cache: SliceCache) -> None:
    clip = 0.1
    batches = PatientBatches(SliceDataset(cache, ["v0", "v1"]), 1.0, 4, 1)
    batch = next(iter(batches))
    sums = []
    for factor in (1.0, 1000.0):
        net = network()
        optimizer = PatientOptimizer(torch.optim.SGD(net.parameters(), lr=0.0), net, batches, 1.0, clip, noise=silent)
        image = torch.where(batch["patient"][:, None, None, None] == 0, factor * batch["image"].flip(3), batch["image"])
        loss()(net(image), batch["label"]).backward()
        optimizer.group(batch["patient"])
        optimizer.step()
        sums.append(torch.cat([2 * p.grad.flatten() for p in net.parameters()]))
    assert 0 < float((sums[0] - sums[1]).norm()) <= 2 * clip * 1.001


@pytest.mark.parametrize("patient", [0, 3, 5])
def test_a_patient_more_leaves_the_augmentation_of_all_others_as_it_is(cache: SliceCache, patient: int) -> None:
    """Which is what the clipped sum's bound of one patient rests on."""
    batch = next(iter(PatientBatches(SliceDataset(cache), 1.0, 4, 1)))
    augment = AugmentPatients(
        BatchCompose(
            [
                BatchRandSpatial(rotate_range=1.0, flip_prob=0.5, elastic_prob=0.5, elastic_magnitude=(0.0, 2.0)),
                BatchRandIntensity(brightness=0.2, noise_prob=0.5),
            ]
        )
    )
    others = batch["patient"] != patient
    with_all, labels_with_all = augment(batch)
    alone, labels_alone = augment({name: value[others] for name, value in batch.items()})
    assert torch.equal(with_all[others], alone)
    assert torch.equal(labels_with_all[others], labels_alone)
    assert not torch.equal(with_all, batch["image"])


def test_seeds_of_augmentation_are_a_patients_own_and_nobody_can_repeat_them(cache: SliceCache) -> None:
    seen: set[int] = set()
    for _ in range(3):
        np.random.seed(0)
        torch.manual_seed(0)
        batch = next(iter(PatientBatches(SliceDataset(cache), 1.0, 4, 1)))
        seeds = batch["seed"].view(6, 4)
        assert torch.equal(seeds, seeds[:, :1].expand(6, 4))
        seen |= set(seeds[:, 0].tolist())
    assert len(seen) == 18


def test_noise_is_multiplier_times_clip_over_the_expected_patients(cache: SliceCache) -> None:
    asked = []
    participant = make_participant(
        cache,
        noise=3.0,
        clip=0.5,
        source=lambda shape, std: asked.append(std) or torch.ones(*shape, dtype=torch.float64),
    )
    participant.begin_round(0, 1, participant.weights())
    participant.loader._rng = type("Nobody", (), {"random": lambda self, count: torch.ones(count).numpy()})()
    participant.train(lambda: False)
    assert set(asked) == {1.5}
    # Nobody was drawn: what is left is the noise, over 4 patients at rate 0.5.
    assert all(torch.allclose(p.grad, torch.full_like(p, 0.5)) for p in participant.trainer.network.parameters())


def test_noise_is_added_in_double_precision_and_the_sum_is_rounded(cache: SliceCache) -> None:
    net = network()
    batches = PatientBatches(SliceDataset(cache), 1.0, 2, 1)
    # Above half a step of single precision at 1; rounded to single precision by itself, just that half.
    small = 2.0**-24 + 2.0**-50
    optimizer = PatientOptimizer(
        torch.optim.SGD(net.parameters(), lr=0.0),
        net,
        batches,
        1.0,
        1.0,
        noise=lambda shape, std: silent(shape, std) + small,
    )
    for parameter in net.parameters():
        parameter.summed_grad = torch.ones_like(parameter)
    optimizer.add_noise()
    assert all(torch.equal(p.grad, torch.full_like(p, 1 + 2.0**-23)) for p in net.parameters())


def test_patients_are_drawn_independently_at_the_rate(cache: SliceCache) -> None:
    batches = PatientBatches(SliceDataset(cache), 0.3, 2, 400)
    drawn = torch.zeros(6)
    sizes = []
    for _ in range(400):
        patients = [p for p in batches._draw()["patient"].unique().tolist() if p >= 0]
        drawn[patients] += 1
        sizes.append(len(patients))
    # Six standard deviations around the binomial's mean.
    assert ((drawn / 400 - 0.3).abs() < 6 * (0.3 * 0.7 / 400) ** 0.5).all()
    assert {0, 1, 2, 3} <= set(sizes)


def test_who_is_drawn_cannot_be_foretold(cache: SliceCache) -> None:
    """The amplification by sampling that the account takes holds as long as nobody knows the sample."""
    data = SliceDataset(cache, ["v0", "v1", "v2", "v3", "v4", "v5"])
    drawn = [[batch["patient"].unique().tolist() for batch in PatientBatches(data, 0.5, 1, 12)] for _ in range(3)]
    assert drawn[0] != drawn[1] or drawn[1] != drawn[2]


def test_slices_of_a_patient_are_its_own_and_repeat_when_they_run_out(cache: SliceCache) -> None:
    for slices in (5, 11):
        batches = PatientBatches(SliceDataset(cache), 1.0, slices, 1)
        batch = next(iter(batches))
        assert torch.equal(batch["volume"], batch["patient"])
        assert len(batch["row"]) == 6 * slices
        distinct = [len(set(batch["row"][batch["patient"] == p].tolist())) for p in range(6)]
        assert all(count == 5 for count in distinct) if slices == 5 else all(count <= 8 for count in distinct)


def test_rounds_train_from_the_global_weights_and_report_epsilon_alone(cache: SliceCache) -> None:
    participant = make_participant(cache)
    assert isinstance(participant, Participant)
    before = participant.weights()
    reports = [run_round(participant, number) for number in range(3)]
    for number, report in enumerate(reports, start=1):
        assert report.metrics == {
            "dp_epsilon": pytest.approx(epsilon_of([(1.0, 0.5, number * STEPS)], 1e-5)),
            "dp_delta": 1e-5,
        }
    assert isinstance(participant, PrivateWeights)
    assert participant.weight_privacy == WeightPrivacy(1.0, 0.5, 1.0, None, 1e-5)
    assert any(not torch.equal(before[name], reports[-1].weights[name]) for name in before)
    assert not any("hook" in name or "_module" in name for name in before)
    given = {name: torch.zeros_like(tensor) for name, tensor in before.items()}
    participant.begin_round(3, 4, given)
    assert all(torch.equal(participant.weights()[name], given[name]) for name in given)
    assert set(participant.validate()) == {"mean_dice", "count"}


def test_it_learns_when_noise_is_weak(cache: SliceCache) -> None:
    participant = make_participant(cache, sample_rate=1.0, noise=0.01)
    participant.loader.steps = 10
    for number in range(8):
        run_round(participant, number, 8)
    assert participant.validate()["mean_dice"] > 0.7


def test_noise_differs_between_equal_runs(cache: SliceCache) -> None:
    weights = [run_round(make_participant(cache, sample_rate=1.0)).weights for _ in range(2)]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_round_beyond_the_budget_is_refused_and_state_carries_the_account(cache: SliceCache, tmp_path) -> None:
    budget = epsilon_of([(1.0, 0.5, 2 * STEPS)], 1e-5) + 1e-9
    participant = make_participant(cache, epsilon_budget=budget)
    run_round(participant, 0)
    torch.save(participant.state_dict(), tmp_path / "site.pt")
    resumed = make_participant(cache, epsilon_budget=budget)
    resumed.load_state_dict(torch.load(tmp_path / "site.pt", weights_only=True))
    run_round(resumed, 1)
    with pytest.raises(RuntimeError, match="beyond the budget"):
        run_round(resumed, 2)


def test_steps_are_on_the_ledger_before_they_are_done(cache: SliceCache, tmp_path) -> None:
    participant = make_participant(cache, ledger=tmp_path / "ledger.json")
    participant.trainer.run = lambda: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        run_round(participant)
    entry = json.loads((tmp_path / "ledger.json").read_text())["entries"][0]
    assert (entry["scope"], entry["sample_rate"], entry["steps"]) == ("weights", 0.5, STEPS)
    assert entry["patients"] == ["p0", "p1", "p2", "p3"]


def test_a_loss_that_mixes_slices_is_refused(cache: SliceCache) -> None:
    with pytest.raises(ValueError, match="not the mean over its slices"):
        run_round(make_participant(cache, sample_rate=1.0, mixing=True))


def test_the_loss_is_looked_at_until_a_batch_has_shown_more_than_one_slice(cache: SliceCache) -> None:
    """Of a batch of one slice, as when no patient is drawn, any loss is the mean over the slices."""
    participant = make_participant(cache, sample_rate=1.0, mixing=True)
    drawn = iter([torch.ones(4), torch.zeros(4)])  # nobody, then everybody
    participant.loader._rng = type("Drawn", (), {"random": lambda self, count: next(drawn).numpy()})()
    with pytest.raises(ValueError, match="not the mean over its slices"):
        run_round(participant)
    assert next(drawn, None) is None


def test_steps_without_grouping_are_refused(cache: SliceCache) -> None:
    net = network()
    batches = PatientBatches(SliceDataset(cache), 1.0, 2, 1)
    optimizer = PatientOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), net, batches, 1.0, 1.0)
    batch = next(iter(batches))
    loss()(net(batch["image"]), batch["label"]).backward()
    with pytest.raises(RuntimeError, match="grouped by patient"):
        optimizer.step()
    # Nor does the grouping of one step serve for the next.
    optimizer.group(batch["patient"])
    optimizer.step()
    optimizer.zero_grad()
    loss()(net(batch["image"]), batch["label"]).backward()
    with pytest.raises(RuntimeError, match="grouped by patient"):
        optimizer.step()


def test_layers_that_mix_samples_are_refused(cache: SliceCache) -> None:
    net = network("batch")
    batches = PatientBatches(SliceDataset(cache), 1.0, 2, 1)
    with pytest.raises(ValueError, match="choose another `norm`"):
        PatientOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), net, batches, 1.0, 1.0)


def test_an_ordinary_loader_is_refused(cache: SliceCache) -> None:
    participant = make_participant(cache)
    participant.trainer.data_loader = SliceLoader(SliceDataset(cache), 4, 1)
    with pytest.raises(TypeError, match="got SliceLoader, AugmentPatients, PatientOptimizer"):
        PrivateSegmentationParticipant(participant.trainer, participant.evaluator, participant.schedule)


def test_augmentation_by_place_in_the_batch_is_refused(cache: SliceCache) -> None:
    participant = make_participant(cache)
    participant.trainer.prepare_batch = AugmentBatch(BatchRandSpatial(flip_prob=0.5))
    with pytest.raises(TypeError, match="got PatientBatches, AugmentBatch, PatientOptimizer"):
        PrivateSegmentationParticipant(participant.trainer, participant.evaluator, participant.schedule)


def test_a_scaled_loss_is_refused(cache: SliceCache) -> None:
    """Whether a step is left out then is seen in the gradients before any noise."""
    participant = make_participant(cache)
    participant.trainer.scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(ValueError, match="set precision to fp32 or bf16"):
        PrivateSegmentationParticipant(participant.trainer, participant.evaluator, participant.schedule)


@pytest.mark.parametrize(("rate", "slices"), [(0.0, 2), (1.5, 2), (0.5, 0)])
def test_refuses_impossible_sampling(cache: SliceCache, rate: float, slices: int) -> None:
    with pytest.raises(ValueError, match="sample_rate must lie"):
        PatientBatches(SliceDataset(cache), rate, slices, 1)
