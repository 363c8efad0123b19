"""The zipped bundle where this project is not installed, and DICOM in and out."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from monai.bundle import ConfigWorkflow

import fcl
from fcl.data.phantom import generate
from fcl.exporting.archive import FOLDER, write_zip
from fcl.networks import SegmentationUNet, write_weights
from tests.fcl.exporting.test_segmentation import places_in_dicom, places_in_nifti, write_stack

CONFIGS = fcl.bundle_root() / "configs"
# One process for all, since each takes seconds to load torch and MONAI. Nothing may be fetched.
ELSEWHERE = """
import runpy, socket, sys

def refuse(*arguments):
    raise OSError("no network here")

socket.socket.connect = refuse
root, images, out = sys.argv[1:]
sys.argv = ["monai.bundle", "run", "--config_file", f"{root}/configs/inference.json", "--dataset_dir", images]
sys.argv += ["--output_dir", out, "--threads", "1"]
runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)

from pathlib import Path
import fcl
import monai.bundle
import torch

print("fcl of", fcl.__file__)
network = monai.bundle.load(Path(root).name, bundle_dir=Path(root).parent, workflow_type="inference", device="cpu")
weights = torch.load(root + "/models/model.pt", weights_only=True)
print("loaded", all(torch.equal(tensor, weights[name].float()) for name, tensor in network.state_dict().items()))
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = Path(generate(tmp_path_factory.mktemp("data") / "phantom", sites=1, patients=1, seed=0, folds=1))
    return next(data.glob("patient*/*_frame??.nii.gz"))


def test_zip_runs_and_loads_where_this_project_is_not(image: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(write_zip(tmp_path)) as archive:
        archive.extractall(tmp_path / "there")
    root = tmp_path / "there" / FOLDER
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "heart.nii.gz").symlink_to(image)
    # -S: no .pth file of an editable installation is read, the installed packages come by PYTHONPATH alone.
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = sysconfig.get_paths()["purelib"]
    command = [sys.executable, "-S", "-c", ELSEWHERE, str(root), str(tmp_path / "images"), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"fcl of {root / 'fcl' / '__init__.py'}" in done.stdout
    assert "loaded True" in done.stdout
    label_map = nib.load(tmp_path / "out" / "heart.nii.gz")
    assert label_map.shape == nib.load(image).shape
    assert set(np.unique(np.asarray(label_map.dataobj))) == {0, 1, 2, 3}


def test_dicom_comes_back_as_dicom_and_as_nifti(tmp_path: Path, own_thread_count: None) -> None:
    write_stack(tmp_path / "scan", (0.0, 1.0, 0.0, -0.6, 0.0, -0.8))
    torch.manual_seed(0)  # untrained, so that every structure is found somewhere
    write_weights(tmp_path / "model.pt", SegmentationUNet(2, 1, 4, [4, 8], norm="instance").state_dict(), {})
    run = ConfigWorkflow(
        [str(CONFIGS / "inference.json"), str(CONFIGS / "dicom.json")],
        workflow_type="infer",
        logging_file=False,
        dataset_dir=str(tmp_path / "scan"),
        output_dir=str(tmp_path / "out"),
        ckpt=str(tmp_path / "model.pt"),
        channels=[4, 8],
        norm="instance",
        spatial_size=[16, 16],
        threads=1,
    )
    run.initialize()
    run.run()
    (record,) = run.parser.get_parsed_content("records")
    label_map = nib.load(tmp_path / "out" / f"{record.volume}.nii.gz")
    segmentation = pydicom.dcmread(tmp_path / "out" / f"{record.volume}.dcm")
    assert [segment.SegmentLabel for segment in segmentation.SegmentSequence] == ["rv", "myo", "lv"]
    voxels = np.asarray(label_map.dataobj)
    for number in (1, 2, 3):
        assert places_in_dicom(segmentation, number) == places_in_nifti(label_map, voxels, number) != set()
