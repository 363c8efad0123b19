from __future__ import annotations

import json

import pytest

from fcl.data import DataProblems, VolumeRecord, read_datalist


def test_entries_become_records(tmp_path):
    entries = [
        {"image": "./images/b.nii.gz", "label": "labels/b.nii.gz", "patient": "p1", "phase": "ES"},
        "images/a.nii.gz",
        {"image": "images/c_4d.nii.gz", "frame": 3, "subject_id": "p0"},
    ]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": entries, "test": []}), encoding="utf-8")
    images, labels = tmp_path / "images", tmp_path / "labels"
    assert read_datalist(tmp_path) == [
        VolumeRecord(str(images / "a.nii.gz"), None, "a", "a"),
        VolumeRecord(str(images / "c_4d.nii.gz"), None, "p0", "c_4d_t03", frame=3),
        VolumeRecord(str(images / "b.nii.gz"), str(labels / "b.nii.gz"), "p1", "b", "ES"),
    ]


def test_all_unusable_entries_are_reported(tmp_path):
    content = {"training": [{"label": "x.nii.gz"}, 7, "a.nii.gz", {"image": "a.nii.gz"}, {"image": "b", "frame": "1"}]}
    (tmp_path / "list.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataProblems) as caught:
        read_datalist(tmp_path, "list.json", sections=("training", "validation"))
    found = [p.what for p in caught.value.problems]
    assert [what.split()[0] for what in found[:4]] == [f"training[{place}]" for place in (0, 1, 3, 4)]
    assert "no list 'validation'" in found[4]


@pytest.mark.parametrize("key", ["patient", "subject_id"])
def test_patient_zero_is_one_patient(tmp_path, key):
    entries = [{"image": f"{name}.nii.gz", key: number} for name, number in (("a", 0), ("b", 0), ("c", 1), ("d", ""))]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": entries}), encoding="utf-8")
    assert {r.volume: r.patient for r in read_datalist(tmp_path)} == {"a": "0", "b": "0", "c": "1", "d": "d"}


@pytest.mark.parametrize("value", [True, False, ["p1"], [], {"id": 1}, 1.0])
def test_what_names_no_patient_is_refused(tmp_path, value):
    content = {"training": [{"image": "a.nii.gz", "patient": value}]}
    (tmp_path / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataProblems, match=r"training\[0\] has patient .*neither text nor a whole number"):
        read_datalist(tmp_path)


@pytest.mark.parametrize(("text", "expected"), [("[1]", "holds a list"), ("{", "no JSON"), (None, "cannot be read")])
def test_unusable_file(tmp_path, text, expected):
    (tmp_path / "other").write_text("", encoding="utf-8")
    if text is not None:
        (tmp_path / "dataset.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataProblems, match=expected):
        read_datalist(tmp_path)
