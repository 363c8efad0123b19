from __future__ import annotations

import json
import subprocess
import sys

import pytest

from fcl.data import DataProblems, VolumeRecord, make_split, read_acdc, read_split, site_records, write_split
from fcl.data.splits import main

NAMES = [f"patient{n:03d}" for n in range(1, 101)]


def records(patients, unlabelled=()) -> list[VolumeRecord]:
    return [
        VolumeRecord(f"{p}_{f}.nii", None if p in unlabelled or f == "4d" else f"{p}_{f}_gt.nii", p, f"{p}_{f}")
        for p in patients
        for f in ("ED", "ES", "4d")
    ]


@pytest.mark.parametrize(
    ("patients", "sites", "folds"),
    [(80, 10, 4), (100, 10, 5), (80, 10, 5), (83, 7, 3), (9, 2, 4), (13, 1, 5), (100, 3, 1)],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_patient_once_and_sizes_balanced(patients, sites, folds, seed):
    split = make_split(NAMES[:patients], sites, folds, seed)
    all_folds = [content["folds"] for content in split["sites"].values()]
    assert sorted(p for site in all_folds for fold in site for p in fold) == NAMES[:patients]
    site_sizes = [sum(map(len, site)) for site in all_folds]
    assert len(site_sizes) == sites
    assert max(site_sizes) - min(site_sizes) <= 1
    for site in all_folds:
        assert len(site) == folds
        sizes = [len(fold) for fold in site]
        assert max(sizes) - min(sizes) <= 1


def test_acdc_shape_of_the_study():
    split = make_split(NAMES[:80], 10, 4)
    assert list(split["sites"]) == [f"site-{n}" for n in range(1, 11)]
    assert [[len(fold) for fold in c["folds"]] for c in split["sites"].values()] == [[2, 2, 2, 2]] * 10


def folds_of(patients, seed, together) -> list[set[str]]:
    split = make_split(patients, 5, 4, seed, together)
    return [set(fold) for content in split["sites"].values() for fold in content["folds"]]


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_together(seed):
    together = (("patient005", "patient006"), ("patient006", "patient003"))
    assert any({"patient005", "patient006", "patient003"} <= fold for fold in folds_of(NAMES[:80], seed, together))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("together", [(), (("patient005", "patient006"),), (("patient076", "patient003"),)])
def test_twins_stay_together_whatever_else_does(seed, together):
    joined = {"patient074", "patient076"}.union(*(group for group in together if "patient076" in group))
    assert any(joined <= fold for fold in folds_of(NAMES[:80], seed, together))


def test_names_that_are_not_in_the_data_are_no_group():
    with pytest.raises(ValueError, match=r"lack patients .* together: \['nobody', 'patient099'\]"):
        make_split(NAMES[:80], 5, 4, together=(("patient010", "patient099"), ("nobody",)))
    # The twins are there for ACDC: other data do without.
    make_split(NAMES[:75], 5, 4)


def test_seed_decides():
    assert make_split(NAMES, 4, 4, 1) == make_split(reversed(NAMES), 4, 4, 1) != make_split(NAMES, 4, 4, 2)


@pytest.mark.parametrize(
    ("patients", "sites", "folds", "expected"),
    [
        (7, 2, 4, "7 patients are too few for 2 sites of 4 folds"),
        (8, 0, 4, "at least 1, got 0 and 4"),
        (8, 2, 0, "at least 1, got 2 and 0"),
    ],
)
def test_numbers_that_cannot_be(patients, sites, folds, expected):
    with pytest.raises(ValueError, match=expected):
        make_split(NAMES[:patients], sites, folds)


def test_file_is_restored_and_holds_one_fold_per_line(tmp_path):
    split = make_split(NAMES[:16], 2, 4)
    write_split(split, tmp_path / "new" / "split.json")
    assert read_split(tmp_path / "new" / "split.json") == split
    lines = (tmp_path / "new" / "split.json").read_text(encoding="utf-8").splitlines()
    assert sum('["patient' in line for line in lines) == 8


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([1], ['has no "sites"']),
        ({"sites": {}}, ['has no "sites"']),
        ({"sites": {"a": {"folds": [["p"]]}}, "sede": 1}, ["unknown key 'sede'"]),
        ({"sites": {"a": {"folds": [["p"], []]}}}, ["a fold 1 is []"]),
        ({"sites": {"a": {"folds": []}, "b": 3}}, ["a has no list", "b has no list"]),
        (
            {"sites": {"a": {"folds": [["p"], ["p", "q"]]}, "b": {"folds": [["q"]]}}},
            ["p is in a fold 0", "q is in a fold 1"],
        ),
        ({"sites": {"a": {"folds": [["p"]], "fold": 2}}}, ["a has the unknown key 'fold'"]),
        ({"sites": {"a": {"folds": [[7]]}}}, ["a fold 0 is [7]"]),
        ({"sites": {"a": {"folds": [["p"]]}}, "held_out": 1}, ["held_out is 1"]),
        ({"sites": {"a": {"folds": [["p"]]}}, "held_out": "0"}, ["held_out is '0'"]),
    ],
)
def test_every_fault_of_a_file_is_reported(tmp_path, content, expected):
    (tmp_path / "s.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataProblems) as caught:
        read_split(tmp_path / "s.json")
    assert len(caught.value.problems) == len(expected)
    assert all(text in problem.what for text, problem in zip(expected, caught.value.problems, strict=True))


def test_file_that_is_missing_or_no_json(tmp_path):
    with pytest.raises(DataProblems, match="does not exist"):
        read_split(tmp_path / "s.json")
    (tmp_path / "s.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataProblems, match="no JSON"):
        read_split(tmp_path / "s.json")


def patients_of(volumes) -> set[str]:
    return {record.patient for record in volumes}


@pytest.mark.parametrize("fold", [0, 1, 2, 3, None])
def test_folds_without_a_file(fold):
    data = records(NAMES[:9])
    split = site_records(data, fold=fold, folds=4, seed=1)
    held_out = patients_of(split.validation)
    assert patients_of(split.train) == set(NAMES[:9]) - held_out
    assert len(held_out) in ((0,) if fold is None else (2, 3))
    assert split.records == data
    assert split.train_volumes + split.validation_volumes == [r.volume for r in split.train + split.validation]


def test_folds_without_a_file_cover_all_patients_once():
    data = records(NAMES[:9])
    held_out = [p for fold in range(4) for p in patients_of(site_records(data, fold=fold).validation)]
    assert sorted(held_out) == NAMES[:9]


@pytest.fixture
def split_file(tmp_path):
    write_split(make_split(NAMES[:16], 2, 4), tmp_path / "split.json")
    return tmp_path / "split.json"


def test_a_site_of_a_file_and_all_of_its_sites(split_file):
    data = records(NAMES[:20])
    folds = {site: content["folds"] for site, content in read_split(split_file)["sites"].items()}
    two = site_records(data, split_file, "site-2", fold=1)
    assert patients_of(two.validation) == set(folds["site-2"][1])
    assert patients_of(two.train) == {p for i in (0, 2, 3) for p in folds["site-2"][i]}
    assert patients_of(two.records) == {p for fold in folds["site-2"] for p in fold}
    union = site_records(data, split_file, fold=1)
    assert patients_of(union.validation) == set(folds["site-1"][1]) | set(folds["site-2"][1])
    assert patients_of(union.records) == set(NAMES[:16])


def test_annotated_choices_are_nested_labelled_and_per_site(split_file):
    data = records(NAMES[:16], unlabelled=NAMES[:2])
    chosen = [site_records(data, split_file, "site-1", annotated=n).train for n in (1, 2, 3)]
    assert [len(patients_of(volumes)) for volumes in chosen] == [1, 2, 3]
    assert patients_of(chosen[0]) < patients_of(chosen[1]) < patients_of(chosen[2])
    assert all(record.label for record in chosen[2])
    every = site_records(data, split_file, "site-1")
    one = site_records(data, split_file, "site-1", annotated=1)
    assert (one.validation, one.records) == (every.validation, every.records)
    union = patients_of(site_records(data, split_file, annotated=1).train)
    other = site_records(data, split_file, "site-2", annotated=1).train
    assert union == patients_of(one.train) | patients_of(other)
    assert len(union) == 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"site": "site-3"}, "no site 'site-3', only .* Set `site` to one of them, or to all"),
        ({"site": 3}, "no site '3', only"),
        ({"site": "site-1", "fold": 4}, "fold must be 0 to 3, or the word none to hold none out, got 4"),
        ({"fold": "null"}, "fold must be 0 to 3, or the word none to hold none out, got 'null'"),
        ({"fold": True}, "or the word none to hold none out, got True"),
        ({"fold": 1.0}, "or the word none to hold none out, got 1.0"),
        ({"site": "site-1", "annotated": 99}, "annotated is 99, but only 6"),
        ({"annotated": 0}, "annotated must be at least 1, or the word all, got 0"),
        ({"annotated": "null"}, "annotated must be at least 1, or the word all, got 'null'"),
        ({"annotated": 2.5}, "annotated must be at least 1, or the word all, got 2.5"),
        ({"split_file": 3}, "split_file must be a path, or the word none, got 3"),
    ],
)
def test_unusable_arguments(split_file, arguments, expected):
    with pytest.raises(ValueError, match=expected):
        site_records(records(NAMES[:16]), **{"split_file": split_file, **arguments})


@pytest.mark.parametrize("word", ["none", "None"])
def test_words_of_the_command_line_stand_for_null(split_file, word):
    data = records(NAMES[:16])
    assert site_records(data, split_file, "all", word, annotated="all") == site_records(data, split_file, fold=None)
    assert site_records(data, word) == site_records(data)


def test_a_site_that_is_called_all_can_be_chosen(tmp_path):
    write_split(
        {"description": "", "seed": 0, "sites": {"ALL": {"folds": [["a"]]}, "b": {"folds": [["b"]]}}}, tmp_path / "s"
    )
    data = [VolumeRecord(name, None, name, name) for name in "ab"]
    assert patients_of(site_records(data, tmp_path / "s", "ALL", fold=None).train) == {"a"}
    assert patients_of(site_records(data, tmp_path / "s", "all", fold=None).train) == {"a", "b"}


def test_patients_that_the_data_lack_are_named(split_file):
    with pytest.raises(DataProblems, match=r"names patients that the data lack: \['patient015', 'patient016'\]"):
        site_records(records(NAMES[:14]), split_file)


def test_patients_in_no_fold_are_told(split_file, caplog):
    site_records(records(NAMES[:16]), split_file)
    assert not caplog.records
    for site in (None, "site-1"):
        caplog.clear()
        split = site_records(records(NAMES[:20]), split_file, site)
        (oddity,) = split.oddities
        assert oddity.kind == "split"
        assert (
            f"{split_file}: 4 patients of the data are in no fold: patient017, patient018, patient019, …."
            in caplog.text
        )
    one = site_records(records(NAMES[:17]), split_file).oddities[0]
    assert one.what == "1 patient of the data is in no fold: patient017"


@pytest.mark.parametrize("fold", [1, None])
def test_the_division_can_be_written_and_read_as_a_split_file(tmp_path, fold):
    data = records(NAMES[:20])
    drawn = site_records(data, fold=fold)
    write_split(drawn.division, tmp_path / "used.json")
    assert read_split(tmp_path / "used.json")["held_out"] == fold
    again = site_records([*data, *records(["patient021"])], tmp_path / "used.json", fold=fold)
    assert (again.train, again.validation) == (drawn.train, drawn.validation)


def test_the_division_is_of_the_chosen_site_alone(split_file):
    division = site_records(records(NAMES[:16]), split_file, "site-2", fold=3).division
    assert (list(division["sites"]), division["held_out"]) == (["site-2"], 3)


def test_command_writes_a_file(acdc, tmp_path, capsys):
    root = acdc(patients=8)
    out = tmp_path / "split.json"
    common = ["--dataset_dir", str(root), "--out", str(out)]
    main([*common, "--sites", "2", "--folds", "2", "--together", "patient001", "patient002"])
    folds = [fold for content in read_split(out)["sites"].values() for fold in content["folds"]]
    assert {"patient001", "patient002"} in [set(fold) for fold in folds]
    assert "8 patients over 2 sites" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*common, "--sites", "9"])
    assert "too few" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*common, "--sites", "2", "--folds", "2", "--together", "patient001", "patient02"])
    assert "['patient02']" in capsys.readouterr().err


def test_a_group_on_the_command_line_does_not_part_the_twins(acdc, tmp_path):
    root = acdc(patients=76)
    out = tmp_path / "split.json"
    common = ["--dataset_dir", str(root), "--sites", "5", "--folds", "4", "--out", str(out)]
    for seed in ("0", "1", "2"):
        main([*common, "--seed", seed, "--together", "patient001", "patient002"])
        folds = [set(fold) for content in read_split(out)["sites"].values() for fold in content["folds"]]
        for group in ({"patient001", "patient002"}, {"patient074", "patient076"}):
            assert any(group <= fold for fold in folds)


def test_module_runs_without_a_warning_of_being_loaded_twice():
    command = [sys.executable, "-W", "error::RuntimeWarning", "-m", "fcl.data.splits", "--help"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_real_data_divide_as_the_study_needs(real_acdc):
    split = make_split({record.patient for record in read_acdc(real_acdc)}, 10, 4)
    folds = [fold for content in split["sites"].values() for fold in content["folds"]]
    assert [len(fold) for fold in folds] == [2] * 40
    assert ["patient074", "patient076"] in folds


@pytest.mark.parametrize("annotated", [None, 1, 2])
def test_unlabelled_volumes_are_the_rest_of_the_training_patients(annotated):
    names = NAMES[:8]
    everything = records(names, unlabelled=("patient003",))
    split = site_records(everything, fold=1, folds=4, annotated=annotated)
    validating = {record.patient for record in split.validation}
    labelled = {record.volume for record in split.train if record.label is not None}
    unlabelled = set(split.unlabelled_volumes)
    assert len(validating) == 2
    assert unlabelled.isdisjoint(labelled)
    assert unlabelled | labelled == {record.volume for record in everything if record.patient not in validating}
    if annotated is not None:
        assert len(labelled) == 2 * annotated
        # The annotated patients' own cine is no label, so it is there as well.
        assert {f"{record.patient}_4d" for record in split.train} <= unlabelled


def test_without_a_held_out_fold_no_patient_is_left_aside():
    split = site_records(records(NAMES[:4]), fold=None, annotated=1)
    assert len(split.unlabelled_volumes) == 3 * 3 + 1
