"""Every overlay in ``configs/finetuning``: it fits ``finetune.json``, trains, resumes, sends only what is declared."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow

import fcl
from fcl.data.phantom import generate
from fcl.evaluation.history import HISTORY_FILE, read_history
from fcl.federation import Participant
from flare_app.egress import EgressPolicy

CONFIGS = fcl.bundle_root() / "configs"
OVERLAYS = sorted(path.stem for path in (CONFIGS / "finetuning").glob("*.json"))
SMALL: dict[str, Any] = {
    "channels": [4, 8],
    "spatial_size": [32, 32],
    "pixdim": [6.0, 6.0],
    "batch_size": 8,
    "steps_per_epoch": 4,
    "max_epochs": 3,
    "val_interval": 3,
    "learning_rate": 0.02,
    "annotated": 1,
    "threads": 1,
    "device": "$torch.device('cpu')",
}
# From the first epoch on, so that few epochs tell something.
SOON: dict[str, dict[str, Any]] = {name: {"train::variants::0::start": 0} for name in ("mean_teacher", "self_training")}
IN_ROUNDS_ONLY = {"fedprox"}
UNLABELLED = ["adversarial", "mean_teacher", "self_training"]


pytestmark = pytest.mark.usefixtures("own_thread_count")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(generate(tmp_path_factory.mktemp("finetuning") / "phantom", sites=1, patients=4, folds=4, seed=0))


def open_overlays(names: list[str], data: Path, out: Path, **values: Any) -> ConfigWorkflow:
    files = [str(CONFIGS / name) for name in ("finetune.json", *names)]
    soon = SOON.get(Path(names[0]).stem, {}) if len(names) == 1 else {}
    extra = {"dataset_dir": str(data), "cache_dir": f"{data}_cache", "output_dir": str(out), **SMALL, **soon, **values}
    workflow = ConfigWorkflow(files, workflow_type="train", logging_file=False, **extra)
    workflow.add_property("participant", required=True, config_id="participant")
    workflow.initialize()
    return workflow


def open_overlay(name: str, data: Path, out: Path, **values: Any) -> ConfigWorkflow:
    return open_overlays([f"finetuning/{name}.json"], data, out, **values)


def never() -> bool:
    return False


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_trains_in_rounds_resumes_and_keeps_its_word(overlay: str, data: Path, tmp_path: Path) -> None:
    participant: Any = open_overlay(overlay, data, tmp_path).participant
    assert isinstance(participant, Participant)
    losses: list[float] = []
    participant.trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: losses.append(engine.state.output["loss"].item())
    )
    participant.begin_round(0, 3, participant.weights())
    first = participant.train(never)
    assert all(math.isfinite(loss) for loss in losses)
    assert len(set(losses)) == len(losses) == 4
    policy = EgressPolicy()
    assert [name for name in first.weights if not policy.allows_weight(name)] == []
    assert [name for name in first.metrics if not policy.allows_metric(name)] == []

    torch.save(participant.state_dict(), tmp_path / "state.pt")
    restored: Any = open_overlay(overlay, data, tmp_path).participant
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    results = []
    for each in (participant, restored):
        each.begin_round(1, 3, {name: value * 0.999 for name, value in first.weights.items()})
        results.append(each.train(never))
    assert same(results[0].weights, results[1].weights)
    assert same(participant.trainer.network.state_dict(), restored.trainer.network.state_dict())
    assert results[0].metrics == results[1].metrics


def train(overlay: str, data: Path, out: Path, until: int | None = None, **values: Any) -> list[float]:
    """Run at one site; gives the mean loss of each epoch."""
    workflow = open_overlay(overlay, data, out, **values)
    trainer, losses = workflow.trainer, []
    # Attached before the run's own handlers: a stop lets the epoch's checkpoint be written all the same.
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: losses.append(engine.state.metrics["loss"]))
    if until is not None:
        trainer.add_event_handler(Events.EPOCH_COMPLETED(once=until), lambda engine: engine.terminate())
    workflow.run()
    return losses


@pytest.mark.parametrize("overlay", [name for name in OVERLAYS if name not in IN_ROUNDS_ONLY])
def test_loss_falls_at_one_site_and_a_stopped_run_ends_like_a_straight_one(
    overlay: str, data: Path, tmp_path: Path
) -> None:
    straight = train(overlay, data, tmp_path / "straight")
    assert straight[-1] < 0.97 * straight[0]
    assert math.isfinite(straight[-1])
    begun = train(overlay, data, tmp_path / "stopped", until=1)
    resumed = train(overlay, data, tmp_path / "stopped", resume=True)
    assert begun + resumed == straight
    ends = [torch.load(tmp_path / name / "model_last.pt", weights_only=True) for name in ("straight", "stopped")]
    assert same(*ends)
    histories = [read_history(tmp_path / name / HISTORY_FILE) for name in ("straight", "stopped")]
    assert histories[0] == histories[1]
    ((steps, metrics),) = histories[0]
    assert steps == SMALL["max_epochs"] * SMALL["steps_per_epoch"]
    assert list(metrics) == ["mean_dice", "dice_rv", "dice_myo", "dice_lv"]


def test_fedprox_is_refused_where_there_are_no_rounds(data: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r".") as caught:
        train("fedprox", data, tmp_path)
    assert "FedProx pulls towards the global weights of a round" in root_cause(caught.value)


def test_overlays_combine(data: Path, tmp_path: Path) -> None:
    names = [f"finetuning/{name}.json" for name in OVERLAYS if name != "unet_3d"]  # which would take long
    soon = {"train::variants::2::start": 0, "train::variants::3::start": 0}
    participant: Any = open_overlays(names, data, tmp_path, **soon).participant
    assert list(participant.variants.parts) == ["Adversarial", "FedProx", "MeanTeacher", "SelfTraining"]
    for number in range(2):
        participant.begin_round(number, 2, participant.weights())
        report = participant.train(never)
    assert {"loss", "accuracy", "agreement", "divergence", "kept_share"} == report.metrics.keys()
    assert all(math.isfinite(value) for value in report.metrics.values())


@pytest.mark.parametrize("overlay", UNLABELLED)
def test_unlabelled_scans_are_those_of_training_patients_without_their_labels(
    overlay: str, data: Path, tmp_path: Path
) -> None:
    workflow = open_overlay(overlay, data, tmp_path)
    split, slices = (workflow.parser.get_parsed_content(name) for name in ("site_split", "train::unlabelled"))
    (part,) = workflow.participant.variants.parts.values()
    assert part.slices is slices
    patients = {info.patient for info in slices.dataset.volume_infos}
    assert len(patients) == 2  # of four, one is annotated and one validates
    assert patients.isdisjoint({record.patient for record in (*split.train, *split.validation)})
    assert "label" not in slices.dataset[[0]]


@pytest.mark.parametrize("overlay", UNLABELLED)
def test_without_unlabelled_scans_one_site_alone_is_told_the_way_out(overlay: str, data: Path, tmp_path: Path) -> None:
    workflow = open_overlay(overlay, data, tmp_path, annotated=None)
    with pytest.raises(Exception, match=r".") as caught:
        workflow.run()
    assert "set `annotated` below the number" in root_cause(caught.value)


@pytest.mark.parametrize("overlay", UNLABELLED)
def test_without_unlabelled_scans_a_site_of_a_federation_trains_supervised(
    overlay: str, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reports, states = [], []
    for names in ([f"finetuning/{overlay}.json"], []):
        participant: Any = open_overlays(names, data, tmp_path, annotated=None).participant
        for number in range(2):
            participant.begin_round(number, 2, participant.weights())
            reports.append(participant.train(never))
        states.append(participant.state_dict())
        if names:
            participant.load_state_dict(states[0])
    assert same(reports[1].weights, reports[3].weights)
    assert reports[1].metrics == reports[3].metrics
    told = [record for record in caplog.records if "this site has no training volume without" in record.message]
    assert len(told) == 1


def test_fedbn_leaves_a_model_of_the_sites_own(data: Path, tmp_path: Path) -> None:
    participant: Any = open_overlay("fedbn", data, tmp_path).participant
    participant.begin_round(0, 2, participant.weights())
    sent = participant.train(never).weights
    local = {
        name: value.clone() for name, value in participant.trainer.network.state_dict().items() if name not in sent
    }
    assert {name.rsplit(".", 1)[-1] for name in local} == {
        "weight", "bias", "running_mean", "running_var", "num_batches_tracked"
    }  # fmt: skip
    average = {name: value * 0.5 for name, value in sent.items()}
    participant.begin_round(1, 2, average)
    assert same(torch.load(tmp_path / "own.pt", weights_only=True)["weights"], {**average, **local})


@pytest.mark.parametrize("overlay", ["finetuning/heavy_augmentation.json", "privacy/dp_sgd.json"])
def test_the_encoder_has_a_rate_of_its_own(overlay: str, data: Path, tmp_path: Path) -> None:
    participant: Any = open_overlays([overlay], data, tmp_path, encoder_learning_rate=0.0).participant
    before = {name: value.clone() for name, value in participant.trainer.network.named_parameters()}
    participant.begin_round(0, 2, participant.weights())
    participant.train(never)
    for name, value in participant.trainer.network.named_parameters():
        assert torch.equal(value, before[name]) == name.startswith("encoder."), name


@pytest.mark.parametrize(("overlay", "message"), [("fedprox", "FedProx would add"), ("mixup", "labels are soft")])
def test_what_breaks_differential_privacy_is_refused(overlay: str, message: str, data: Path, tmp_path: Path) -> None:
    files = [f"finetuning/{overlay}.json", "privacy/dp_sgd.json"]

    def run() -> None:
        participant: Any = open_overlays(files, data, tmp_path).participant
        participant.begin_round(0, 2, participant.weights())
        participant.train(never)

    with pytest.raises(Exception, match=r".") as caught:
        run()
    assert message in root_cause(caught.value)


@pytest.mark.parametrize(
    ("overlay", "values", "message"),
    [
        ("mixup", {"train::augmentation::transforms::2::alpha": 0}, "alpha must be above 0"),
        ("fedprox", {"train::variants::0::mu": -1}, "mu must be 0 or more, got -1"),
        ("fedbn", {"norm_stats": "layers"}, "local_layers, got 'layers'"),
        ("adversarial", {"varients": []}, "varients"),
    ],
)
def test_bad_requests_are_refused_with_the_reason(
    overlay: str, values: dict[str, Any], message: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(Exception, match=r".") as caught:
        open_overlay(overlay, data, tmp_path, **values).participant.weights()
    assert message in root_cause(caught.value)
