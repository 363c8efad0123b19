"""From an encoder to a segmentation by the cards of the files alone, with the real bundle at the sites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigWorkflow

import fcl
from fcl.card import card_of
from fcl.data.phantom import generate
from fcl.networks import UNetEncoder, read_card, read_weights, write_weights
from tests.flare_app.loopback import Federation

CONFIGS = fcl.bundle_root() / "configs"
SITES = ["st-elsewhere", "princeton"]
NETWORK: dict[str, Any] = {"spatial_dims": 2, "channels": [4, 8], "strides": [[2, 2]], "norm": "batch"}
IMAGES: dict[str, Any] = {"spatial_size": [32, 32], "pixdim": [6.0, 6.0]}

pytestmark = pytest.mark.usefixtures("own_thread_count")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(generate(tmp_path_factory.mktemp("cards") / "phantom", sites=1, patients=4, folds=4, seed=0))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("encoder") / "last.pt"
    trained = UNetEncoder(2, 1, NETWORK["channels"], norm=NETWORK["norm"])
    weights = {f"encoder.{name}": tensor for name, tensor in trained.state_dict().items()}
    write_weights(file, weights, card_of({**NETWORK, "method": "FCL", "data_license": "CC0 1.0"}, sites=3, rounds=9))
    return file


def fine_tune(root: Path, data: Path, encoder: Path, **overrides: Any) -> Federation:
    small = {"batch_size": 4, "steps_per_epoch": 1, "device": "cpu", "split_file": None, **IMAGES}
    executor = {
        "config": ["configs/finetune.json"],
        "data": "acdc",
        "bundle_root": None,
        "overrides": {**small, "dataset_dir": str(data), "cache_dir": f"{data}_cache", **overrides},
    }
    controller = {"num_rounds": 1, "pretrained": str(encoder), "best_metric": "mean_dice"}
    return Federation(root, SITES, controller, executor, job_policy={"features": []}).run()


def test_a_federation_fine_tunes_an_encoder_and_its_model_is_evaluated_by_what_the_cards_say(
    data: Path, encoder: Path, tmp_path: Path
) -> None:
    federation = fine_tune(tmp_path, data, encoder)
    assert federation.panics == []
    model = federation.results / "last.pt"
    card = read_card(model)
    assert {name: card["architecture"][name] for name in NETWORK} == NETWORK
    assert {name: card["preprocessing"][name] for name in IMAGES} == IMAGES
    assert card["preprocessing"]["labels"] == {"rv": 1, "myo": 2, "lv": 3}
    assert (card["stage"], card["sites"], card["rounds"]) == ("fine-tuning", 2, 1)
    assert card["data_license"] == "CC BY-NC-SA 4.0"
    assert card["pretrained"] == {"method": "FCL", "data_license": "CC0 1.0", "sites": 3, "rounds": 9}
    assert card["metrics"]["mean_dice"] >= 0
    for name in ("last", "best"):
        for file in (federation.results / f"{name}.pt", federation.results / f"{name}.card.json"):
            content = file.read_bytes()
            secrets = [*SITES, "patient0", "phantom", str(tmp_path)]
            assert [secret for secret in secrets if secret.encode() in content] == [], file.name

    workflow = ConfigWorkflow(
        [str(CONFIGS / "evaluate.json"), str(CONFIGS / "data" / "acdc.json")],
        workflow_type="eval",
        logging_file=False,
        dataset_dir=str(data),
        output_dir=str(tmp_path / "out"),
        ckpt=str(model),
        threads=1,
        device="$torch.device('cpu')",
    )
    workflow.initialize()
    loaded, kept = workflow.network_def.state_dict(), read_weights(model)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in kept.items())
    assert workflow.dataset[0]["image"].shape[1:3] == (32, 32)


def test_a_job_that_asks_for_another_network_learns_both_values_and_no_path(
    data: Path, encoder: Path, tmp_path: Path
) -> None:
    federation = fine_tune(tmp_path, data, encoder, channels=[8, 16])
    (reason,) = federation.panics
    expected = "the pre-trained weights are of another architecture: channels: its card says [4, 8], the configuration"
    assert f"all {len(SITES)} sites: {expected} [8, 16]" in reason
    assert str(tmp_path) not in reason
