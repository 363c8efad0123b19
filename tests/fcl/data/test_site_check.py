from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fcl.data import DataProblems, SiteCheck, build_slice_cache, read_acdc, site_records, write_split
from fcl.data import site_check as module

LABELS = {"rv": 1, "myo": 2, "lv": 3}


@pytest.fixture
def made(acdc, tmp_path):
    """Makes checks of one site, each as a process of its own would."""
    folder = acdc(patients=3)

    def make(**arguments):
        split = site_records(read_acdc(folder), fold=0, folds=3)
        return SiteCheck(
            **{"split": split, "partitions": 4, "labels": LABELS, "cache_dir": tmp_path / "c", **arguments}
        )

    return make


@pytest.fixture
def reads(monkeypatch):
    """Counts how often the files are read in full."""
    counted = []
    for name in ("find_problems", "summarise"):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, f=original, n=name: counted.append(n) or f(*a))
    return counted


def test_sound_files_are_read_once(made, reads):
    made().verify()
    first = made().summaries()
    made().verify()
    made().require_sound_files()
    assert reads == ["find_problems", "summarise"]
    assert [s.record.volume for s in first] == [r.volume for r in made().split.records]


def test_what_is_remembered_equals_what_was_read(made):
    first = made()
    first.verify()
    assert made().summaries() == module.summarise(first.split.records, LABELS)


def test_memory_names_no_patient_and_no_path(made, tmp_path):
    made().verify()
    (file,) = (tmp_path / "c").iterdir()
    assert "patient" not in file.read_text()
    assert str(tmp_path) not in file.read_text()


@pytest.mark.parametrize("change", ["touched", "partitions", "labels", "damaged memory"])
def test_files_are_read_again_after(made, reads, tmp_path, change):
    check = made()
    check.verify()
    arguments = {}
    if change == "touched":
        os.utime(check.split.records[0].image, (0, 0))
    elif change == "partitions":
        arguments["partitions"] = 3
    elif change == "labels":
        arguments["labels"] = {"a": 1, "b": 2, "c": 3}
    else:
        next((tmp_path / "c").iterdir()).write_text("[{]")
    made(**arguments).verify()
    assert reads == 2 * ["find_problems", "summarise"]


def test_all_problems_at_once_with_their_kinds_and_nothing_is_remembered(made, nifti, tmp_path, caplog):
    check = made()
    train, held_out = check.split.train[0], check.split.validation[0]
    other = check.split.train[2]
    os.replace(train.image, tmp_path / "gone.nii.gz")
    nifti(Path(other.label), np.full((20, 24, 6), 9, np.uint8))
    shutil.copy(check.split.train[1].image, held_out.image)
    with pytest.raises(DataProblems) as error:
        made().verify()
    assert error.value.counts == {"files": 1, "labels": 1, "leak": 1}
    assert "Worth a look" in caplog.text  # the leak is a copy as well
    assert not (tmp_path / "c").exists()


def test_oddities_are_logged_and_end_a_strict_check_alone(made, nifti, caplog):
    record = made().split.train[0]
    rng = np.random.default_rng(1)
    nifti(Path(record.image), rng.integers(0, 9, (20, 24, 6), dtype=np.int16), np.diag([-3, -3, 8.0, 1]))
    nifti(Path(record.label), np.ones((20, 24, 6), np.uint8), np.diag([-3, -3, 8.0, 1]))
    made().verify()
    assert "has spacing 3 x 3 x 8 mm" in caplog.text
    with pytest.raises(DataProblems) as error:
        made().verify(strict=True)
    assert error.value.counts == {"labels": 2, "spacing": 1}


def test_patients_without_a_fold_are_an_oddity(made, tmp_path, caplog):
    write_split({"sites": {"a": {"folds": [["patient001"], ["patient002"]]}}}, tmp_path / "split.json")
    everything = made().split.records
    check = made(split=site_records(everything, tmp_path / "split.json"))
    caplog.clear()
    check.verify()
    assert "1 patient of the data is in no fold: patient003" in caplog.text
    with pytest.raises(DataProblems) as error:
        check.verify(strict=True)
    assert error.value.counts == {"split": 1}


def test_memory_that_cannot_be_written_is_no_failure(made, tmp_path, caplog):
    (tmp_path / "c").write_text("a file")
    check = made()
    check.verify()
    assert "the next check reads all files again" in caplog.text


def test_cache_is_built_on_the_word_of_the_check(made, reads, preprocessing, tmp_path):
    check = made()
    check.verify()
    build = {"records": check.split.records, "preprocessing": preprocessing, "cache_dir": tmp_path / "s"}
    assert len(build_slice_cache(**build, check=made().require_sound_files).volumes) == 6
    assert reads == ["find_problems", "summarise"]
    fresh = made(cache_dir=tmp_path / "empty", split=replace(check.split, records=check.split.records[:2]))
    os.truncate(check.split.records[0].image, 40)
    with pytest.raises(DataProblems, match="truncated or corrupt"):
        build_slice_cache(check.split.records[:2], preprocessing, tmp_path / "bad", check=fresh.require_sound_files)


def test_memory_is_plain_json(made, tmp_path):
    made().verify()
    (file,) = (tmp_path / "c").iterdir()
    assert {"shape", "spacing", "digest", "quantiles"} < set(json.loads(file.read_text())[0])
