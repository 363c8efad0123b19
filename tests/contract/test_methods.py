"""Every overlay in ``configs/methods``: it fits ``pretrain.json``, trains, and keeps the promises of a participant."""

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
from fcl.federation import Participant
from fcl.networks import UNetEncoder, write_weights
from flare_app.egress import EgressPolicy

CONFIGS = fcl.bundle_root() / "configs"
OVERLAYS = sorted(path.stem for path in (CONFIGS / "methods").glob("*.json"))
CHANNELS = [4, 8, 16]
NORM = ["instance", {"affine": True}]
# What each trains on besides an encoder and a head comes with the overlay; these only make it small.
SMALL: dict[str, Any] = {
    "channels": CHANNELS,
    "spatial_size": [32, 32],
    "pixdim": [6.0, 6.0],
    "batch_size": 8,
    "steps_per_epoch": 2,
    "drawn_features": 8,
    "max_epochs": 1,
    "val_interval": 1,
    "threads": 1,
    "device": "$torch.device('cpu')",
}
REGIONS = {"local_lr", "local_ld"}  # stand on a pre-trained encoder
UNTRAINED = {"random"}
SHARES_FEATURES = {name for name in OVERLAYS if name.startswith("fcl") and name != "fclopt"} | {"fedca"}


pytestmark = pytest.mark.usefixtures("own_thread_count")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(generate(tmp_path_factory.mktemp("methods") / "phantom", sites=1, patients=4, folds=4, seed=0))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("encoder") / "encoder.pt"
    weights = UNetEncoder(2, 1, CHANNELS, NORM).state_dict()
    write_weights(path, {f"encoder.{name}": value for name, value in weights.items()}, {})
    return path


def open_overlay(overlay: str, data: Path, encoder: Path | None, out: Path, **values: Any) -> ConfigWorkflow:
    files = [str(CONFIGS / "pretrain.json"), str(CONFIGS / "methods" / f"{overlay}.json")]
    extra = {"dataset_dir": str(data), "cache_dir": f"{data}_cache", "output_dir": str(out), **SMALL, **values}
    if overlay in REGIONS:
        extra |= {"network_def::blocks": 2, "network_def::pretrained": str(encoder) if encoder else None}
    if overlay in SHARES_FEATURES:
        extra |= {"participant::max_shared_rows": 5}
    if overlay in UNTRAINED:
        del extra["steps_per_epoch"]
    workflow = ConfigWorkflow(files, workflow_type="train", logging_file=False, **extra)
    workflow.add_property("participant", required=True, config_id="participant")
    workflow.initialize()
    return workflow


def never() -> bool:
    return False


def copies(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in state.items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_trains_resumes_and_keeps_its_word(overlay: str, data: Path, encoder: Path, tmp_path: Path) -> None:
    participant: Any = open_overlay(overlay, data, encoder, tmp_path).participant
    assert isinstance(participant, Participant)
    assert participant.shares_features is (overlay in SHARES_FEATURES)
    trainer = participant.trainer
    losses: list[float] = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: losses.append(float(engine.state.output["loss"]))
    )
    start = copies(trainer.network.state_dict())

    participant.monitor.interval = 1
    participant.begin_round(0, 3, participant.weights())
    first = participant.train(never)
    assert all(math.isfinite(loss) for loss in losses)
    assert "loss" in first.metrics
    # Of validation patients a site tells where validation is asked for, and nowhere else.
    assert {"partition_knn", "uniformity", "count"} <= participant.validate().keys()
    assert first.metrics.keys().isdisjoint(participant.validate())
    policy = EgressPolicy()
    assert [name for name in first.weights if not policy.allows_weight(name)] == []
    assert [name for name in first.metrics if not policy.allows_metric(name)] == []
    if overlay in UNTRAINED:
        assert same(start, trainer.network.state_dict())
        return
    assert len(set(losses)) == len(losses) == 2
    assert "spread" in first.metrics
    trained = trainer.network.state_dict()
    moved = {name.split(".")[0] for name in start if not torch.equal(start[name], trained[name])}
    assert ("encoder" in moved) is (overlay not in REGIONS)

    # A second round, and the same from the saved state in a new process' objects: bit for bit.
    torch.save(participant.state_dict(), tmp_path / "state.pt")
    after_first = copies(first.weights)
    restored: Any = open_overlay(overlay, data, None, tmp_path).participant
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    results, shown = [], []
    for each in (participant, restored):
        each.begin_round(1, 3, {name: value * 0.999 for name, value in after_first.items()})
        if each.shares_features:
            shown.append(each.publish("features").features)
        results.append(each.train(never))
    assert same(results[0].weights, results[1].weights)
    assert same(participant.trainer.network.state_dict(), restored.trainer.network.state_dict())
    assert results[0].metrics == results[1].metrics
    assert [len(rows) for rows in shown] == ([5, 5] if participant.shares_features else [])
    assert all(torch.equal(rows, shown[0]) for rows in shown)


def test_a_method_without_features_refuses_to_publish(data: Path, tmp_path: Path) -> None:
    participant: Any = open_overlay("byol", data, None, tmp_path).participant
    with pytest.raises(RuntimeError, match=r"Prediction has no features to exchange: set the job's exchange to none"):
        participant.publish("features")
    with pytest.raises(RuntimeError, match="no features to exchange"):
        participant.receive("site-2", None, 0)


def test_fedca_aligns_to_the_rounds_average_which_stands_still(data: Path, tmp_path: Path) -> None:
    participant: Any = open_overlay("fedca", data, None, tmp_path).participant
    trainer = participant.trainer
    for number in range(2):
        participant.begin_round(number, 2, {name: value + 0.01 for name, value in participant.weights().items()})
        average = copies(dict(trainer.network.named_parameters()))
        participant.train(never)
        assert same(average, dict(trainer.momentum_network.named_parameters()))
        assert not same(average, dict(trainer.network.named_parameters()))


def test_local_contrast_refuses_a_random_encoder(data: Path, tmp_path: Path) -> None:
    participant: Any = open_overlay("local_lr", data, None, tmp_path).participant
    participant.begin_round(0, 1, participant.weights())
    with pytest.raises(ValueError, match="network_def::pretrained"):
        participant.train(never)


def test_local_cl_federates_nothing_and_keeps_its_encoder(data: Path, tmp_path: Path) -> None:
    participant: Any = open_overlay("local_cl", data, None, tmp_path).participant
    assert participant.weights() == {}
    participant.begin_round(0, 2, {})
    report = participant.train(never)
    assert report.weights == {}
    assert report.count > 0
    kept = torch.load(tmp_path / "own.pt", weights_only=True)["weights"]
    assert same(kept, participant.trainer.network.state_dict())
    trained = copies(participant.trainer.network.state_dict())
    participant.begin_round(1, 2, {})
    assert same(trained, participant.trainer.network.state_dict())


def test_any_method_can_be_kept_at_its_site(data: Path, tmp_path: Path) -> None:
    participant: Any = open_overlay(
        "simclr", data, None, tmp_path, **{"participant::federated": ["encoder."]}
    ).participant
    assert {name.split(".")[0] for name in participant.weights()} == {"encoder"}


@pytest.mark.parametrize(
    ("overlay", "values", "message"),
    [
        ("byol", {"momentum_network": None}, "needs a momentum_network"),
        ("swav", {"participant::federated": ["prototype", "predictor"]}, "predictor"),
        ("simclr", {"temprature": 0.2}, "temprature"),
        ("simclr", {"precision": "fp16"}, 'needs a gradient scaler, and this training has none: use "bf16"'),
        ("gd", {"method::with_original": "no"}, "with_original must be true or false, got 'no'"),
    ],
)
def test_bad_requests_are_refused_with_the_reason(
    overlay: str, values: dict[str, Any], message: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(Exception, match=r".") as caught:
        _ = open_overlay(overlay, data, None, tmp_path, **values).participant
    error: BaseException = caught.value
    while error.__cause__ is not None:
        error = error.__cause__
    assert message in str(error)
