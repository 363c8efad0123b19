"""Fine-tune, evaluate and infer through ``python -m monai.bundle run``, as the README has it, on a tiny phantom."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

from fcl.card import card_of
from fcl.data.phantom import generate
from fcl.networks import ContrastiveNetwork, ProjectionHead, UNetEncoder, read_card, write_weights

ROOT = Path(__file__).parents[2]
CONFIGS = Path("bundle", "configs")
CHANNELS = [4, 8, 16]
NORM = ["group", {"num_groups": 4}]
# Neither channels nor norm: fine-tuning finds them in the card of the encoder, evaluation and inference find them and
# the size in the card of the model.
TINY = {"threads": 1}
SIZE = {"spatial_size": [64, 64]}


def options(values: dict[str, Any]) -> list[str]:
    return [text for key, value in values.items() for text in (f"--{key}", str(value))]


def run_bundle(configs: str, **values: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", configs, *options({**TINY, **values})]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FCL_CACHE_DIR": str(values.get("dataset_dir", "")) + "_cache"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def with_acdc(base: str) -> str:
    return f"['bundle/configs/{base}.json','bundle/configs/data/acdc.json']"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(generate(tmp_path_factory.mktemp("data") / "phantom", sites=1, patients=4, seed=0))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(7)
    network = ContrastiveNetwork(UNetEncoder(2, 1, CHANNELS, norm=NORM), ProjectionHead(CHANNELS[-1], 8, 8))
    path = tmp_path_factory.mktemp("encoder") / "encoder.pt"
    write_weights(path, network.state_dict(), card_of({"spatial_dims": 2, "channels": CHANNELS, "norm": NORM}))
    return path


@pytest.fixture(scope="module")
def tuned(data: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finetune")
    result = run_bundle(
        with_acdc("finetune"),
        dataset_dir=data,
        pretrained=encoder,
        output_dir=folder,
        **SIZE,
        batch_size=8,
        steps_per_epoch=8,
        max_epochs=3,
        val_interval=1,
        learning_rate=0.02,
    )
    assert result.returncode == 0, result.stderr
    assert "epoch 3/3" in result.stderr
    assert "mean_dice" in result.stderr
    return folder


def test_fine_tuning_leaves_models_settings_and_logs(tuned: Path) -> None:
    best, last = (torch.load(tuned / name, weights_only=True) for name in ("model.pt", "model_last.pt"))
    assert best.keys() == last.keys()
    assert any(name.startswith("encoder.") for name in best)
    card = read_card(tuned / "model.pt")
    assert (card["architecture"]["channels"], card["architecture"]["norm"]) == (CHANNELS, NORM)
    assert card["preprocessing"]["spatial_size"] == SIZE["spatial_size"]
    assert card["data_license"] == "CC BY-NC-SA 4.0"
    assert card["epochs"] <= 3 == read_card(tuned / "model_last.pt")["epochs"]
    assert 0 < card["metrics"]["mean_dice"] <= 1
    written = (tuned / "model.card.json").read_text()
    assert json.loads(written) == card
    # The phantom's patients, and where all of it lay.
    assert not re.search(r"patient\d|/|\.nii", written)
    assert json.loads((tuned / "config.json").read_text())["max_epochs"] == 3
    assert list((tuned / "tensorboard").iterdir())


def test_evaluation_scores_cases_on_their_native_grid(data: Path, tuned: Path, tmp_path: Path) -> None:
    result = run_bundle(with_acdc("evaluate"), dataset_dir=data, ckpt=tuned / "model.pt", output_dir=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "mean Dice" in result.stdout
    with open(tmp_path / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 2 * 3
    assert {row["phase"] for row in rows} == {"ED", "ES"}
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["cases"] == 8
    assert 0 < summary["mean_dice"] <= 1
    assert len(list(tmp_path.glob("overlay_*.png"))) == 3
    for row in rows:
        truth = nib.load(data / row["patient"] / f"{row['case']}_gt.nii.gz")
        predicted = nib.load(tmp_path / "predictions" / f"{row['case']}.nii.gz")
        assert predicted.shape == truth.shape
        value = {"rv": 1, "myo": 2, "lv": 3}[row["class"]]
        p, t = (np.asarray(part.dataobj) == value for part in (predicted, truth))
        assert float(row["dice"]) == pytest.approx(2 * (p & t).sum() / (p.sum() + t.sum()), abs=1e-4)


def test_inference_writes_label_maps_like_the_images(data: Path, tuned: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for file in sorted(data.glob("patient*/*_frame??.nii.gz"))[:2]:
        shutil.copy(file, images)
    result = run_bundle(
        str(CONFIGS / "inference.json"), dataset_dir=images, ckpt=tuned / "model.pt", output_dir=tmp_path / "out"
    )
    assert result.returncode == 0, result.stderr
    written = sorted((tmp_path / "out").glob("*.nii.gz"))
    assert [file.name for file in written] == sorted(file.name for file in images.iterdir())
    for file in written:
        source, label_map = nib.load(images / file.name), nib.load(file)
        assert label_map.shape == source.shape
        assert label_map.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(label_map.affine, source.affine)
        assert set(np.unique(np.asarray(label_map.dataobj))) <= {0, 1, 2, 3}


def workflow(base: str, kind: str, data: Path, tmp_path: Path, **values: Any) -> ConfigWorkflow:
    files = [str(ROOT / CONFIGS / f"{base}.json")]
    if base != "inference":
        files.append(str(ROOT / CONFIGS / "data" / "acdc.json"))
    common = {"dataset_dir": str(data), "output_dir": str(tmp_path / "out")}
    if base == "finetune":
        common["cache_dir"] = f"{data}_cache"
    return ConfigWorkflow(
        files,
        meta_file=str(ROOT / CONFIGS / "metadata.json"),
        logging_file=False,
        workflow_type=kind,
        **{**TINY, **common, **values},
    )


def root_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@pytest.mark.parametrize(("base", "kind"), [("finetune", "train"), ("evaluate", "eval"), ("inference", "infer")])
def test_other_monai_tools_find_all_properties(base: str, kind: str, data: Path, tuned: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(next(data.glob("patient*/*_frame??.nii.gz")), images)
    extra = {} if base == "finetune" else {"ckpt": str(tuned / "model.pt")}
    driven = workflow(base, kind, images if base == "inference" else data, tmp_path, **extra)
    driven.initialize()
    if base != "finetune":
        assert driven.parser.get_parsed_content("spatial_size") == SIZE["spatial_size"]
        assert driven.network_def.encoder.channels == tuple(CHANNELS)
    assert driven.check_properties() == []
    driven.finalize()
    # What is only looked at leaves nothing behind.
    assert not (tmp_path / "out").exists()


def test_pretrained_encoder_is_what_training_starts_from(data: Path, encoder: Path, tmp_path: Path) -> None:
    driven = workflow("finetune", "train", data, tmp_path, pretrained=str(encoder))
    driven.initialize()
    offered = torch.load(encoder, weights_only=True)["weights"]
    for name, tensor in driven.network_def.encoder.state_dict().items():
        assert torch.equal(tensor, offered[f"encoder.{name}"])


@pytest.mark.parametrize(("values", "volumes"), [({}, 8), ({"subset": "validation"}, 2), ({"split": True}, 2)])
def test_evaluation_takes_the_held_out_fold_of_a_split_else_everything(
    values: dict[str, Any], volumes: int, data: Path, tuned: Path, tmp_path: Path
) -> None:
    if "split" in values:
        values = {"split_file": str(data / "split.json")}
    driven = workflow("evaluate", "eval", data, tmp_path, ckpt=str(tuned / "model.pt"), **values)
    driven.initialize()
    assert len(driven.dataset) == volumes


def test_a_single_patient_can_be_evaluated(data: Path, tuned: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "patient001", tmp_path / "data" / "patient001")
    driven = workflow("evaluate", "eval", tmp_path / "data", tmp_path, ckpt=str(tuned / "model.pt"))
    driven.initialize()
    assert [item["volume"] for item in driven.dataset.data] == sorted(item["volume"] for item in driven.dataset.data)
    assert len(driven.dataset) == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "--ckpt"),
        ({"ckpt": "missing.pt"}, "missing.pt"),
        ({"ckpt": "model.pt", "channels": [8, 16, 32]}, "channels"),
        ({"ckpt": "model.pt", "dataset_dir": None}, "--dataset_dir"),
        ({"ckpt": "model.pt", "labels": {"rv": 1, "myo": 1}}, "different values from 1 to 254"),
        ({"ckpt": "model.pt", "subst": "all"}, "subset"),
        ({"ckpt": "model.pt", "subset": "test"}, "'validation' or 'all'"),
    ],
)
def test_bad_requests_are_refused_with_the_way_out(
    values: dict[str, Any], message: str, data: Path, tuned: Path, tmp_path: Path
) -> None:
    if values.get("ckpt") == "model.pt":
        values = {**values, "ckpt": str(tuned / "model.pt")}
    driven = workflow("evaluate", "eval", data, tmp_path, **values)

    def run() -> None:
        driven.initialize()
        driven.run()

    with pytest.raises(Exception, match=r".") as caught:
        run()
    assert message in str(root_cause(caught.value))
    assert not (tmp_path / "out" / "summary.json").exists()


def test_undeclared_label_values_are_told_by_file(data: Path, tuned: Path, tmp_path: Path) -> None:
    broken = tmp_path / "data"
    shutil.copytree(data, broken)
    for file in sorted(broken.glob("patient*/*_gt.nii.gz"))[:2]:
        image = nib.load(file)
        voxels = np.asarray(image.dataobj).copy()
        voxels[0, 0, 0] = 9
        nib.save(nib.Nifti1Image(voxels, image.affine), file)
    driven = workflow("evaluate", "eval", broken, tmp_path, ckpt=str(tuned / "model.pt"))
    driven.initialize()
    with pytest.raises(Exception, match=r".") as caught:
        driven.run()
    text = str(root_cause(caught.value))
    assert text.startswith("2 problems")
    assert "label values 9" in text
