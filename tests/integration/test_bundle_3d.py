"""Pre-train, fine-tune, evaluate and infer in 3-D, on slabs of a tiny phantom."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

import fcl
from fcl.data.phantom import generate

CONFIGS = fcl.bundle_root() / "configs"
CHANNELS = [4, 8, 16]
TINY: dict[str, Any] = {"threads": 1, "device": "$torch.device('cpu')"}
# The later stages find the network in the card of the weights, evaluation and inference the size as well.
SIZE: dict[str, Any] = {"spatial_size": [32, 32], "pixdim": [6.0, 6.0]}
NETWORK = {"channels": CHANNELS, **SIZE}
FEW_STEPS = {"batch_size": 4, "steps_per_epoch": 3, "max_epochs": 1, "val_interval": 1}


pytestmark = pytest.mark.usefixtures("own_thread_count")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(generate(tmp_path_factory.mktemp("data") / "phantom", sites=1, patients=3, folds=3, seed=0))


def workflow(base: str, kind: str, overlay: str | None, data: Path, out: Path, **values: Any) -> ConfigWorkflow:
    files = [f"{base}.json"] + (["data/acdc.json"] if base != "inference" else [])
    files += overlay.split("+") if overlay else []
    common: dict[str, Any] = {"dataset_dir": str(data), "output_dir": str(out)}
    if base in ("pretrain", "finetune"):
        common["cache_dir"] = f"{data}_cache"
    if base != "inference":
        common["folds"] = 3
    driven = ConfigWorkflow(
        [str(CONFIGS / file) for file in files],
        workflow_type=kind,
        logging_file=False,
        **{**TINY, **common, **values},
    )
    driven.initialize()
    return driven


@pytest.fixture(scope="module")
def pretrained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrain")
    driven = workflow("pretrain", "train", "methods/fcl_3d.json", data, folder, **NETWORK, **FEW_STEPS)
    driven.run()
    assert {"loss", "partition_knn", "uniformity"} <= driven.parser.get_parsed_content(
        "train::trainer"
    ).state.metrics.keys()
    return folder / "model.pt"


@pytest.fixture(scope="module")
def tuned(data: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finetune")
    driven = workflow("finetune", "train", None, data, folder, pretrained=str(pretrained), **SIZE, **FEW_STEPS)
    assert driven.parser.get_parsed_content("slab_depth") == 5
    offered = torch.load(pretrained, weights_only=True)
    taken = driven.network_def.encoder.state_dict()
    assert all(torch.equal(tensor, offered[f"encoder.{name}"]) for name, tensor in taken.items())
    driven.run()
    assert driven.parser.get_parsed_content("validate::evaluator").state.metrics["mean_dice"] >= 0
    return folder / "model.pt"


def test_the_3d_network_is_evaluated_on_the_native_grid(data: Path, tuned: Path, tmp_path: Path) -> None:
    workflow("evaluate", "eval", None, data, tmp_path, ckpt=str(tuned), subset="validation").run()
    assert json.loads((tmp_path / "summary.json").read_text())["cases"] == 2
    for written in (tmp_path / "predictions").glob("*.nii.gz"):
        truth = nib.load(data / written.name.split("_")[0] / written.name.replace(".nii", "_gt.nii"))
        assert nib.load(written).shape == truth.shape


def test_the_3d_network_segments_volumes_of_any_depth(data: Path, tuned: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    source = nib.load(sorted(data.glob("patient*/*_frame??.nii.gz"))[0])
    for slices in (3, 7):  # fewer and more than the slab
        nib.save(source.slicer[..., :slices], images / f"depth{slices}.nii.gz")
    workflow("inference", "infer", None, images, tmp_path / "out", ckpt=str(tuned)).run()
    for slices in (3, 7):
        label_map = nib.load(tmp_path / "out" / f"depth{slices}.nii.gz")
        assert label_map.shape == (*source.shape[:2], slices)
        assert set(np.unique(np.asarray(label_map.dataobj))) <= {0, 1, 2, 3}


def test_features_of_slabs_are_shared_by_patient(data: Path, tmp_path: Path) -> None:
    driven = workflow(
        "pretrain",
        "train",
        "methods/fcl_3d.json",
        data,
        tmp_path,
        **NETWORK,
        **FEW_STEPS,
        noise_multiplier=1.0,
        rows_per_patient=3,
    )
    participant = driven.parser.get_parsed_content("participant")
    participant.begin_round(0, 1, participant.weights())
    features = participant.publish("features")
    assert features.features.shape == (2 * 3, 128)  # two patients to train on
    assert set(features.partition.tolist()) <= {0, 1, 2, 3}


@pytest.mark.parametrize("method", ["byol", "gd", "rotation"])
def test_other_methods_train_on_slabs_too(method: str, data: Path, tmp_path: Path) -> None:
    overlay = f"methods/{method}.json+methods/fcl_3d.json"
    driven = workflow("pretrain", "train", overlay, data, tmp_path, **NETWORK, **FEW_STEPS)
    encoder = driven.network_def.encoder
    before = encoder.stem.conv_0.conv.weight.detach().clone()
    assert before.shape == (CHANNELS[0], 1, 3, 3, 3)
    driven.run()
    assert not torch.equal(encoder.stem.conv_0.conv.weight, before)


def root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error)


@pytest.mark.parametrize(
    ("base", "overlay", "values", "message"),
    [
        ("pretrain", "methods/fcl_3d.json", {"slab_depth": 4}, "slab_depth must be an odd number"),
        ("pretrain", "methods/fcl_3d.json", {"strides": [[2, 2, 1]]}, "strides must be 2 entries"),
        ("pretrain", "methods/fcl_3d.json", {"strides": [2, 2], "slab_depth": 3}, "too small for 2 poolings"),
        ("pretrain", "methods/fcl_3d.json", {"slab_depth": None}, "expected 5 axes"),
        ("pretrain", "methods/mim.json+methods/fcl_3d.json", {}, "set spatial_dims to 2 and slab_depth to null"),
        (
            "pretrain",
            "methods/local_lr.json+methods/fcl_3d.json",
            {"network_def::blocks": 1},
            "regions are placed in 2-D",
        ),
        ("pretrain", "methods/pixel_contrast.json+methods/fcl_3d.json", {}, "pixels are compared in 2-D"),
        ("evaluate", None, {"spatial_dims": 2}, "spatial_dims: its card says 3, the configuration 2"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(
    base: str, overlay: str | None, values: dict[str, Any], message: str, data: Path, tuned: Path, tmp_path: Path
) -> None:
    values = {**values, "ckpt": str(tuned)} if base == "evaluate" else {**NETWORK, **FEW_STEPS, **values}
    with pytest.raises(Exception, match=r".") as caught:
        workflow(base, "train", overlay, data, tmp_path, **values).run()
    assert message in root_cause(caught.value)
