from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor

from fcl.evaluation import ScoreRecorder, write_label_map

AFFINE = np.diag([-1.5, -1.5, 9.0, 1.0])


def write_case(folder: Path, name: str) -> dict[str, str]:
    truth = np.zeros((12, 12, 4), dtype=np.uint8)
    truth[3:9, 3:9, 1:3] = 1
    nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(size=truth.shape), AFFINE), folder / f"{name}.nii.gz")
    nib.save(nib.Nifti1Image(truth, AFFINE), folder / f"{name}_gt.nii.gz")
    return {
        "image": str(folder / f"{name}.nii.gz"),
        "truth": str(folder / f"{name}_gt.nii.gz"),
        "volume": name,
        "patient": name[:2],
        "phase": "ED",
    }


@pytest.fixture
def engine(tmp_path: Path) -> tuple[Engine, ScoreRecorder, list[dict[str, str]]]:
    """An evaluator whose predictions miss 0, 1, 2 rows of the structure, one row per case."""
    items = [write_case(tmp_path, name) for name in ("p1_a", "p2_a", "p3_a")]

    def step(engine: Engine, index: int) -> list[dict[str, torch.Tensor]]:
        truth = torch.from_numpy(np.asarray(nib.load(items[index]["truth"]).dataobj).astype(np.float32))[None]
        prediction = truth.clone()
        prediction[:, 3 : 3 + index] = 0
        write_label_map(
            prediction[0].numpy(), items[index]["image"], tmp_path / "maps" / f"{items[index]['volume']}.nii.gz"
        )
        engine.state.batch = [
            {"truth": MetaTensor(truth, affine=torch.from_numpy(AFFINE)), "volume": items[index]["volume"]}
        ]
        return [{"pred": prediction}]

    recorder = ScoreRecorder(items, {"rv": 1}, tmp_path / "out", tmp_path / "maps")
    engine = Engine(step)
    recorder.attach(engine)
    return engine, recorder, items


def test_scores_pictures_and_summary_are_written(engine, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    evaluator, recorder, _ = engine
    state = evaluator.run([0, 1, 2])
    dice = [1.0, 2 * 5 / 11, 2 * 4 / 10]
    assert [score.mean_dice for score in recorder.scores] == pytest.approx(dice)
    # One missing row is one voxel of 1.5 mm, two are 3 mm.
    assert [score.classes["rv"].hd95_mm for score in recorder.scores] == pytest.approx([0.0, 1.5, 3.0])
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["mean_dice"] == state.metrics["mean_dice"] == pytest.approx(sum(dice) / 3)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == [
        "overlay_best_p1_a.png",
        "overlay_median_p2_a.png",
        "overlay_worst_p3_a.png",
    ]
    assert "3 volumes" in capsys.readouterr().out


@pytest.mark.parametrize("overlays", [["last"], ["worst", "last"], "worst"])
def test_overlays_are_a_list_of_known_ranks(overlays, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"list of worst, median, best.*got .*(last|worst)"):
        ScoreRecorder([], {"rv": 1}, tmp_path, tmp_path, overlays)


def test_only_the_overlays_asked_for_are_drawn(engine, tmp_path: Path) -> None:
    evaluator, recorder, _ = engine
    recorder.overlays = ["worst"]
    evaluator.run([0, 1, 2])
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["overlay_worst_p3_a.png"]


def test_a_second_run_starts_from_nothing(engine) -> None:
    evaluator, recorder, _ = engine
    evaluator.run([0])
    evaluator.run([1])
    assert [score.case for score in recorder.scores] == ["p2_a"]


def test_nothing_of_an_earlier_evaluation_in_the_folder_passes_for_the_new_one(engine, tmp_path: Path) -> None:
    evaluator, _, _ = engine
    evaluator.run([0, 1, 2])
    kept = tmp_path / "maps" / "of_somebody_else.nii.gz"
    kept.touch()

    def fail(engine: Engine) -> None:
        raise RuntimeError("cut")

    with evaluator.add_event_handler(Events.ITERATION_STARTED, fail), pytest.raises(RuntimeError, match="cut"):
        evaluator.run([1])
    assert list((tmp_path / "out").iterdir()) == []
    assert list((tmp_path / "maps").iterdir()) == [kept]


def test_of_a_4d_image_the_frame_is_drawn(engine, tmp_path: Path) -> None:
    evaluator, _, items = engine
    evaluator.run([0])
    written = tmp_path / "out" / "overlay_worst_p1_a.png"
    of_3d = written.read_bytes()
    volume = nib.load(items[0]["image"])
    frames = np.stack([np.zeros(volume.shape), volume.get_fdata(), np.zeros(volume.shape)], axis=-1)
    nib.save(nib.Nifti1Image(frames, AFFINE), items[0]["image"])
    items[0]["frame"] = 1
    evaluator.run([0])
    assert written.read_bytes() == of_3d


def test_of_nifti_2_the_same_is_drawn(engine, tmp_path: Path) -> None:
    evaluator, _, items = engine
    evaluator.run([0])
    written = tmp_path / "out" / "overlay_worst_p1_a.png"
    of_nifti_1 = written.read_bytes()
    for kind in ("image", "truth"):
        nib.save(nib.Nifti2Image.from_image(nib.load(items[0][kind])), items[0][kind])
    evaluator.run([0])
    assert isinstance(nib.load(tmp_path / "maps" / "p1_a.nii.gz"), nib.Nifti2Image)
    assert written.read_bytes() == of_nifti_1


@pytest.mark.parametrize("slice_axis", [0, 1])
def test_slices_are_drawn_along_their_own_axis(engine, tmp_path: Path, slice_axis: int) -> None:
    evaluator, recorder, items = engine
    evaluator.run([0])
    written = tmp_path / "out" / "overlay_worst_p1_a.png"
    along_the_last = written.read_bytes()
    for kind in ("image", "truth"):
        stored = nib.load(items[0][kind])
        voxels = np.moveaxis(np.asarray(stored.dataobj), -1, slice_axis)
        zooms = [1.5, 1.5]
        zooms.insert(slice_axis, 9.0)
        nib.save(nib.Nifti1Image(voxels, np.diag([*zooms, 1.0])), items[0][kind])
    recorder.slice_axis = slice_axis
    evaluator.run([0])
    assert written.read_bytes() == along_the_last


def test_unknown_volumes_are_no_silent_zero(engine) -> None:
    _, recorder, _ = engine
    truth = MetaTensor(torch.zeros(1, 2, 2, 2), affine=torch.from_numpy(AFFINE))
    state = SimpleNamespace(batch=[{"truth": truth, "volume": "p9_a"}], output=[{"pred": truth}])
    with pytest.raises(KeyError, match="p9_a"):
        recorder._score(SimpleNamespace(state=state))
