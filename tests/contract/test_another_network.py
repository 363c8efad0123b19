"""The overlays that the model card gives for another network: pre-trained, fine-tuned from it, segmenting."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigWorkflow

import fcl
from fcl.data.phantom import generate
from fcl.networks import read_weights

CONFIGS = fcl.bundle_root() / "configs"
CARD = fcl.bundle_root() / "docs/README.md"
SMALL: dict[str, Any] = {
    "spatial_size": [32, 32],
    "pixdim": [6.0, 6.0],
    "batch_size": 4,
    "steps_per_epoch": 1,
    "max_epochs": 1,
    "threads": 1,
    "device": "$torch.device('cpu')",
}

pytestmark = pytest.mark.usefixtures("own_thread_count")


def _overlays(folder: Path) -> list[Path]:
    section = CARD.read_text().split("#### Another network", 1)[1].split("\n#", 1)[0]
    blocks = re.findall(r"```json\n(.*?)```", section, re.DOTALL)
    paths = [folder / f"overlay_{number}.json" for number in range(len(blocks))]
    for path, block in zip(paths, blocks, strict=True):
        path.write_text(json.dumps(json.loads(block)))
    return paths


def _run(config: str, overlay: Path, out: Path, **values: Any) -> ConfigWorkflow:
    files = [str(CONFIGS / config), str(overlay)]
    workflow = ConfigWorkflow(files, workflow_type="train", logging_file=False, output_dir=str(out), **values)
    workflow.initialize()
    workflow.run()
    return workflow


def test_the_model_cards_network_goes_through_all_stages(tmp_path: Path) -> None:
    pretraining, finetuning = _overlays(tmp_path)
    data = Path(generate(tmp_path / "phantom", sites=1, patients=4, folds=4, seed=0))
    training = {**SMALL, "dataset_dir": str(data), "cache_dir": str(tmp_path / "cache")}
    _run("pretrain.json", pretraining, tmp_path / "pre", **training)
    encoder = {n: v for n, v in read_weights(tmp_path / "pre/model.pt").items() if n.startswith("encoder.")}
    assert len(encoder) > 50
    workflow = _run(
        "finetune.json",
        finetuning,
        tmp_path / "ft",
        **training,
        pretrained=str(tmp_path / "pre/model.pt"),
        learning_rate=0.0,
        encoder_learning_rate=0.0,
        weight_decay=0.0,
    )
    network = workflow.parser.get_parsed_content("network")
    parameters = dict(network.named_parameters())
    taken = [name for name in parameters if name.startswith("encoder.")]
    assert taken
    assert all(torch.equal(parameters[name], encoder[name]) for name in taken)
    tuned = str(tmp_path / "ft/model_last.pt")
    _run("evaluate.json", finetuning, tmp_path / "scores", dataset_dir=str(data), ckpt=tuned, threads=1)
    assert (tmp_path / "scores/summary.json").is_file()
