from __future__ import annotations

import errno
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from fcl.data import VolumeRecord
from flare_app.study import data as module
from flare_app.study.data import Cohort, prepare_cohort
from flare_app.study.loading import load_study
from flare_app.study.settings import Study, StudyError


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[VolumeRecord]:
    """Seven patients with one volume each; the last without label."""
    found = []
    for number in range(1, 8):
        image, label = (tmp_path / f"{kind}{number}.nii.gz" for kind in ("image", "label"))
        image.write_bytes(b"x" * number)
        label.write_bytes(b"y")
        found.append(VolumeRecord(str(image), str(label) if number < 7 else None, f"p{number}", f"p{number}_ed"))
    monkeypatch.setattr(module, "_records", lambda study, folder: found)
    return found


def _prepare(study: Study, tmp_path: Path, split: Path | None = None, **wanted: list[int]) -> Cohort:
    return prepare_cohort(study, study.select(**{"annotated": [1], **wanted}), tmp_path / "out", tmp_path, split)


def _study(study_file: Path, **changes: object) -> Study:
    return load_study([study_file], changes=changes)


@pytest.mark.usefixtures("records")
def test_patients_are_divided_once_and_kept(study: Study, tmp_path: Path) -> None:
    cohort = _prepare(study, tmp_path)
    assert (cohort.patients, cohort.volumes, cohort.labelled) == (7, 7, 6)
    assert cohort.sites == ["site-1", "site-2"]
    assert cohort.held_out(0) + cohort.held_out(1) == 7
    written = json.loads(cohort.split_file.read_text())
    assert written["sites"] == cohort.split["sites"]
    assert _prepare(study, tmp_path).split["sites"] == cohort.split["sites"]


@pytest.mark.usefixtures("records")
def test_a_look_at_the_plan_ties_the_folder_to_nothing(study: Study, tmp_path: Path) -> None:
    chosen = study.select(annotated=[1])
    prepare_cohort(study, chosen, tmp_path / "out", tmp_path, None, tie=False)
    assert not (tmp_path / "out").exists()
    _prepare(study, tmp_path)
    (tmp_path / "out" / "study.json").write_text('{"data": "another"}')
    with pytest.raises(StudyError, match="holds a study of another data set"):
        prepare_cohort(study, chosen, tmp_path / "out", tmp_path, None, tie=False)


def test_only_as_many_patients_as_wanted_are_taken(
    study_file: Path, tmp_path: Path, records: list[VolumeRecord]
) -> None:
    records[-1] = replace(records[-1], label=records[0].label)
    cohort = _prepare(_study(study_file, patients=2), tmp_path)
    assert [sum(map(len, site["folds"])) for site in cohort.split["sites"].values()] == [2, 2]
    with pytest.raises(StudyError, match=r"2 sites of 5 patients, 10 in all, but the folder holds 7.*patients=3"):
        _prepare(_study(study_file, patients=5), tmp_path)


@pytest.mark.usefixtures("records")
def test_more_annotated_patients_than_a_site_has_are_refused(study: Study, tmp_path: Path) -> None:
    split = tmp_path / "split.json"
    sites = {"site-1": {"folds": [["p1"], ["p2", "p3"]]}, "site-2": {"folds": [["p4"], ["p5", "p7"]]}}
    split.write_text(json.dumps({"sites": sites}))
    assert _prepare(study, tmp_path, split).patients == 6
    with pytest.raises(StudyError) as error:
        _prepare(study, tmp_path, split, annotated=[1, 2], folds=[0, 1])
    # p7 has no label.
    assert [re.findall(r"N=(\d).*(site-\d) has (\d).*fold (\d)", line) for line in str(error.value).splitlines()] == [
        [("2", "site-1", "1", "1")], [("2", "site-2", "1", "0")], [("2", "site-2", "1", "1")],
    ]  # fmt: skip


@pytest.mark.usefixtures("records")
def test_a_split_of_other_sites_or_folds_is_refused(study_file: Path, tmp_path: Path) -> None:
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"sites": {"site-1": {"folds": [["p1"], ["p2"], ["p3"]]}}}))
    with pytest.raises(StudyError, match=r"has 1 sites, the study 2.*\n.*has 3 folds in the split, the study 2"):
        _prepare(_study(study_file), tmp_path, split)


def test_a_folder_of_another_study_is_refused_with_the_way_out(
    study_file: Path, tmp_path: Path, records: list[VolumeRecord]
) -> None:
    _prepare(_study(study_file), tmp_path)
    with pytest.raises(StudyError, match=r"another split into sites and folds.*--out, or delete"):
        _prepare(_study(study_file, split_seed=1), tmp_path)
    Path(str(records[1].label)).write_bytes(b"z")  # as long as before
    with pytest.raises(StudyError, match="holds a study of other files"):
        _prepare(_study(study_file), tmp_path)
    Path(str(records[1].label)).write_bytes(b"y")
    _prepare(_study(study_file), tmp_path)
    Path(records[0].image).write_bytes(b"something else")
    with pytest.raises(StudyError, match="holds a study of other files, which cannot be continued"):
        _prepare(_study(study_file), tmp_path)


@pytest.mark.usefixtures("records")
def test_what_ties_a_folder_to_its_data_is_written_once_and_whole(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _prepare(study, tmp_path)
    file = tmp_path / "out" / "study.json"
    first = file.stat()
    _prepare(study, tmp_path)
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (first.st_ino, first.st_mtime_ns)
    file.unlink()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        _prepare(study, tmp_path)
    assert not file.exists()


@pytest.mark.usefixtures("records")
@pytest.mark.parametrize("content", ["", '{"data": "ph', "[]"])
def test_a_broken_tie_is_told_with_the_way_out(study: Study, tmp_path: Path, content: str) -> None:
    _prepare(study, tmp_path)
    file = tmp_path / "out" / "study.json"
    file.write_text(content)
    with pytest.raises(StudyError) as error:
        _prepare(study, tmp_path)
    assert str(file) in str(error.value)
    assert "Remove it: finished cells stay" in str(error.value)
    file.unlink()
    _prepare(study, tmp_path)
    assert json.loads(file.read_text())["data"] == "phantom"


def test_data_must_be_named_and_known(study_file: Path, tmp_path: Path) -> None:
    study = _study(study_file)
    with pytest.raises(StudyError, match="--dataset_dir"):
        prepare_cohort(study, study.select(), tmp_path / "out", None, None)
    with pytest.raises(StudyError, match=r"no data set 'acd' in bundle/configs/data; choose from acdc, datalist"):
        prepare_cohort(_study(study_file, data="acd"), study.select(), tmp_path / "out", tmp_path, None)


def test_phantom_is_made_with_its_own_split(study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FCL_CACHE_DIR", str(tmp_path / "cache"))
    study = _study(study_file, phantom={"seed": 3}, patients=2)
    cohort = prepare_cohort(study, study.select(annotated=[1]), tmp_path / "out", None, None)
    assert (cohort.patients, cohort.volumes, cohort.labelled) == (4, 8, 8)
    # A site has a scanner of its own: its patients stay together.
    assert cohort.split["sites"]["site-1"]["folds"] == [["patient001"], ["patient002"]]
