"""Any organ by one JSON overlay: those of bundle/docs/datasets.md on made-up data in MSD's layout."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

import fcl
from fcl.data import SliceCache, read_datalist
from flare_app.command.__main__ import main

CONFIGS = fcl.bundle_root() / "configs"
DOCUMENT = (fcl.bundle_root() / "docs" / "datasets.md").read_text(encoding="utf-8")
OVERLAYS = [json.loads(text) for text in re.findall(r"```json\n(.*?)```", DOCUMENT, re.DOTALL)]
HIPPOCAMPUS, SPLEEN = OVERLAYS
TINY = {"channels": [4, 8, 16], "norm": ["group", {"num_groups": 2}], "threads": 1, "folds": 2}
SHAPE = (22, 26, 14)


def write_msd(root: Path, values: tuple[int, int] = (1, 2), shape: tuple[int, int, int] = SHAPE) -> Path:
    """Two blocks one behind the other along the second axis, in four volumes."""
    rng = np.random.default_rng(0)
    entries = []
    for number in range(4):
        label = np.zeros(shape, np.uint8)
        label[6:16, 4:12, 3:9], label[6:16, 12:20, 3:9] = values
        image = (rng.normal(0, 20, shape) + 200 * label).astype(np.int16)
        for kind, voxels in (("images", image), ("labels", label)):
            file = root / f"{kind}Tr" / f"hippo_{number:03d}.nii.gz"
            file.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(voxels, np.eye(4)), file)
        entries.append({"image": f"./imagesTr/{file.name}", "label": f"./labelsTr/{file.name}"})
    table = {"0": "background", str(values[0]): "Anterior", str(values[1]): "Posterior"}
    (root / "dataset.json").write_text(json.dumps({"labels": table, "training": entries, "test": []}), encoding="utf-8")
    return root


def workflow(base: str, overlay: dict[str, Any], folder: Path, dataset_dir: Path, **values: Any) -> ConfigWorkflow:
    file = folder / "overlay.json"
    file.write_text(json.dumps(overlay), encoding="utf-8")
    return ConfigWorkflow(
        config_file=[str(CONFIGS / f"{base}.json"), str(file)],
        workflow_type="train" if base in ("pretrain", "finetune") else "infer",
        logging_file=False,
        **{**TINY, "dataset_dir": str(dataset_dir), "output_dir": str(folder / base), **values},
    )


def test_msd_dataset_is_sliced_along_the_axis_that_the_overlay_names(tmp_path: Path) -> None:
    source = write_msd(tmp_path / "Task04 Hippocampus")
    assert main(["data", "import", "msd", str(source), "--out", str(tmp_path / "data")]) == 0
    assert json.loads((tmp_path / "data/overlay.json").read_text())["labels"] == HIPPOCAMPUS["labels"]
    (tmp_path / "h.json").write_text(json.dumps(HIPPOCAMPUS), encoding="utf-8")
    check = ["data", "check", "--data", str(tmp_path / "h.json"), "--dataset-dir", str(tmp_path / "data")]
    assert main(check) == 0
    run = workflow("pretrain", HIPPOCAMPUS, tmp_path, tmp_path / "data", cache_dir=str(tmp_path / "cache"))
    run.initialize()
    cache: SliceCache = run.parser.get_parsed_content("slice_cache")
    assert [info.slices for info in cache.volumes] == [SHAPE[1]] * 4
    assert cache.images.shape[2:] == (48, 48)
    # Along the second axis come 4 empty slices, 8 of the first structure, 8 of the second, 6 empty ones.
    present = [sorted(set(np.unique(cache.labels[row])) - {0}) for row in range(SHAPE[1])]
    assert present == [[]] * 4 + [[1]] * 8 + [[2]] * 8 + [[]] * 6
    assert np.count_nonzero(cache.labels[5]) == 10 * 6


def test_window_of_ct_is_declared_not_programmed(tmp_path: Path) -> None:
    run = workflow("pretrain", SPLEEN, tmp_path, write_msd(tmp_path / "ct", (1, 1)), spatial_size=[48, 48])
    run.initialize()
    preprocessing = run.parser.get_parsed_content("preprocessing")
    record = run.parser.get_parsed_content("records")[0]
    voxels = np.asarray(nib.load(record.image).dataobj)
    found = preprocessing(record.as_item())["image"]
    assert found.max() == pytest.approx(float(np.clip((voxels.max() + 160) / 400, 0, 1)), abs=0.05)
    assert found.shape == (1, 48, 48, SHAPE[2])


def test_values_with_gaps_are_classes_inside_and_values_again_outside(tmp_path: Path) -> None:
    data = write_msd(tmp_path / "gaps", (3, 7))
    overlay = {**HIPPOCAMPUS, "labels": {"anterior": 3, "posterior": 7}}
    trained = workflow("finetune", overlay, tmp_path, data, cache_dir=str(tmp_path / "cache"))
    trained.initialize()
    assert set(np.unique(trained.parser.get_parsed_content("slice_cache").labels)) == {0, 1, 2}
    # A network that says "second class" everywhere, so that what is written and scored is known.
    state = trained.parser.get_parsed_content("network_def").state_dict()
    weight, bias = list(state)[-2:]
    state |= {weight: torch.zeros_like(state[weight]), bias: torch.tensor([0.0, 0.0, 9.0])}
    torch.save(state, tmp_path / "model.pt")
    scored = workflow("evaluate", overlay, tmp_path, data, ckpt=str(tmp_path / "model.pt"))
    scored.initialize()
    scored.run()
    voxels, structure = int(np.prod(SHAPE)), 10 * 8 * 6
    summary = json.loads((tmp_path / "evaluate/summary.json").read_text())
    assert summary["mean_dice"] == pytest.approx(0.5 * 2 * structure / (structure + voxels), abs=1e-4)
    written = nib.load(tmp_path / "evaluate/predictions" / f"{read_datalist(data)[0].volume}.nii.gz")
    assert written.shape == SHAPE
    assert np.all(np.asarray(written.dataobj) == 7)
