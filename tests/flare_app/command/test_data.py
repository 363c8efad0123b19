from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from flare_app.command.__main__ import main


def volume(file, voxels, affine=None):
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine), file)


@pytest.fixture
def dataset(tmp_path):
    """Four labelled patients; a.nii.gz and d.nii.gz hold the same voxels."""
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 99, (8, 9, 6), dtype=np.int16) for name in "abc"}
    entries = []
    for name, voxels in {**images, "d": images["a"]}.items():
        volume(tmp_path / f"{name}.nii.gz", voxels, np.diag([1, 1, 4, 1]))
        volume(tmp_path / f"{name}_gt.nii.gz", (voxels > 50).astype(np.uint8), np.diag([1, 1, 4, 1]))
        entries.append({"image": f"{name}.nii.gz", "label": f"{name}_gt.nii.gz"})
    (tmp_path / "dataset.json").write_text(json.dumps({"training": entries}), encoding="utf-8")
    (tmp_path / "mine.json").write_text(
        json.dumps(
            {
                "records": {
                    "_target_": "fcl.data.read_datalist",
                    "dataset_dir": "@dataset_dir",
                    "datalist": "dataset.json",
                },
                "labels": {"organ": 1},
            }
        ),
        encoding="utf-8",
    )
    return tmp_path


def run(task, dataset, *more):
    return main(["data", task, "--data", str(dataset / "mine.json"), "--dataset-dir", str(dataset), *more])


def test_check_finds_the_image_on_both_sides(dataset, capsys):
    split = {"sites": {"site-1": {"folds": [["a", "b"], ["c", "d"]]}}}
    (dataset / "split.json").write_text(json.dumps(split), encoding="utf-8")
    assert run("check", dataset, "--split-file", str(dataset / "split.json"), "--fold", "0", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["patients"], found["volumes"], found["labelled"]) == (4, 4, 4)
    assert ["is trained on" in problem["what"] for problem in found["problems"]] == [True]
    assert ["same voxels as a" in oddity["what"] for oddity in found["oddities"]] == [True]


def test_check_of_one_side_passes_and_says_so(dataset, capsys):
    assert run("check", dataset, "--set", "folds=1") == 0
    out = capsys.readouterr().out
    assert "4 volumes of 4 patients, 4 labelled: 0 problems" in out
    assert "1 oddity:" in out
    assert "not divided into training and validation" not in out


def test_check_shows_every_problem(dataset, capsys):
    (dataset / "b.nii.gz").write_bytes(b"x")
    volume(dataset / "c_gt.nii.gz", np.full((8, 9, 6), 5, np.uint8), np.diag([1, 1, 4, 1]))
    assert run("check", dataset) == 1
    out = capsys.readouterr().out
    assert "2 problems:" in out
    assert "truncated or corrupt" in out
    assert "label values 5" in out


def test_stats(dataset, capsys):
    assert run("stats", dataset, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["spacing_mm"][2]["median"] == 4
    assert found["label_ml"]["organ"]["max"] < 8 * 9 * 6 * 4 / 1000
    assert run("stats", dataset) == 0
    assert "organ (ml)" in capsys.readouterr().out


def test_split_of_any_dataset(dataset, capsys):
    out = dataset / "new" / "split.json"
    assert run("split", dataset, "--sites", "1", "--folds", "2", "--together", "a", "d", "--out", str(out)) == 0
    sites = json.loads(out.read_text())["sites"]
    assert any({"a", "d"} <= set(fold) for fold in sites["site-1"]["folds"])
    assert run("split", dataset, "--sites", "9", "--out", str(out)) == 2
    assert "too few for 9 sites" in capsys.readouterr().err


def test_a_group_of_its_own_does_not_part_the_twins(tmp_path):
    names = ["a", "b", "c", "d", "e", "f", "patient074", "patient076"]
    for name in names:
        volume(tmp_path / f"{name}.nii.gz", np.zeros((2, 2, 2), np.uint8))
    content = {"training": [f"{name}.nii.gz" for name in names]}
    (tmp_path / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    records = {"_target_": "fcl.data.read_datalist", "dataset_dir": "@dataset_dir", "datalist": "dataset.json"}
    (tmp_path / "mine.json").write_text(json.dumps({"records": records}), encoding="utf-8")
    out = tmp_path / "split.json"
    for seed in ("0", "1", "2"):
        options = ["--sites", "2", "--folds", "2", "--seed", seed, "--out", str(out)]
        assert run("split", tmp_path, *options, "--together", "a", "b") == 0
        folds = [set(fold) for site in json.loads(out.read_text())["sites"].values() for fold in site["folds"]]
        assert all(any(group <= fold for fold in folds) for group in ({"a", "b"}, {"patient074", "patient076"}))


def test_channel_that_a_message_names_can_be_given(tmp_path, capsys):
    volume(tmp_path / "in/a.nii.gz", np.arange(48, dtype=np.int16).reshape(2, 3, 4, 2))
    volume(tmp_path / "in/a_gt.nii.gz", np.zeros((2, 3, 4), np.uint8))
    words = ["data", "import", "nifti", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--label-suffix", "_gt"]
    assert main(words) == 1
    assert "choose one: --channel 0" in capsys.readouterr().out
    assert main([*words, "--channel", "0"]) == 0


def test_list_of_tags(capsys):
    assert main(["data", "import", "dicom", "--list-tags"]) == 0
    out = capsys.readouterr().out
    assert "ImagePositionPatient" in out
    assert "PatientID" in out.split("written nowhere but")[1]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["dicom", "x"], "--out <new folder>"),
        (["contours", "x", "--out", "y"], "give --contours"),
        (["dicom", "x", "--out", "y", "--series-description", "("], "no regular expression"),
        (["nifti", "x", "--out", "y", "--label", "lv=big"], "whole numbers"),
    ],
)
def test_arguments_that_make_no_sense(words, expected, capsys):
    assert main(["data", "import", *words]) == 2
    assert expected in capsys.readouterr().err
