from __future__ import annotations

import pytest

from fcl.data import DataProblems, read_acdc


def test_frames_and_phases_come_from_info_cfg(acdc):
    root = acdc(patients=2)
    (root / "patient002" / "Info.cfg").write_text("ED: 3\nES: 1\n", encoding="utf-8")
    records = read_acdc(root)
    assert [(r.volume, r.phase) for r in records] == [
        ("patient001_frame01", "ED"),
        ("patient001_frame03", "ES"),
        ("patient002_frame01", "ES"),
        ("patient002_frame03", "ED"),
    ]
    assert all(r.image.endswith(f"{r.patient}/{r.volume}.nii.gz") for r in records)
    assert all(r.label and r.label.endswith(f"{r.volume}_gt.nii.gz") for r in records)


def test_cine_frames_are_unlabelled_and_leave_out_ed_and_es(acdc):
    root = acdc(patients=1, cine=5)
    cine = [r for r in read_acdc(root) if r.phase == "cine"]
    assert [(r.volume, r.frame, r.label) for r in cine] == [(f"patient001_4d_t{t:02d}", t, None) for t in (1, 3, 4)]
    assert len(read_acdc(root, cine=False)) == 2


def test_frame_without_label_is_unlabelled(acdc):
    root = acdc(patients=1)
    (root / "patient001" / "patient001_frame03_gt.nii.gz").unlink()
    assert [r.label is None for r in read_acdc(root)] == [False, True]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ED: 1\n", "gives ES as ''"),
        ("ED: first\nES: 3\n", "gives ED as 'first'"),
        ("ED: 0\nES: 3\n", "gives ED as '0'"),
        ("ED: 3\nES: 3\n", "gives frame 3 as both"),
    ],
)
def test_unusable_info_names_file_and_value(acdc, text, expected):
    root = acdc(patients=1)
    (root / "patient001" / "Info.cfg").write_text(text, encoding="utf-8")
    with pytest.raises(DataProblems, match=expected) as caught:
        read_acdc(root)
    assert caught.value.problems[0].file == str(root / "patient001" / "Info.cfg")


def test_all_patients_are_reported_at_once_with_what_else_is_known(acdc):
    root = acdc(patients=3)
    (root / "patient001" / "Info.cfg").unlink()
    (root / "patient002" / "Info.cfg").write_text("", encoding="utf-8")
    (root / "patient003" / "patient003_frame03.nii.gz").unlink()
    with pytest.raises(DataProblems) as caught:
        read_acdc(root)
    assert [p.file.rsplit("/", 1)[1] for p in caught.value.problems] == [
        "Info.cfg",
        "Info.cfg",
        "patient003_frame03.nii.gz",
    ]


def test_folder_that_cannot_be_read(tmp_path, acdc):
    with pytest.raises(ValueError, match="--dataset_dir"):
        read_acdc(None)
    with pytest.raises(DataProblems, match="does not exist"):
        read_acdc(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataProblems, match="is empty"):
        read_acdc(tmp_path / "empty")
    acdc(patients=1)
    with pytest.raises(DataProblems, match=r"holds no patientNNN folder.*its folder 'acdc'"):
        read_acdc(tmp_path)


def test_unreadable_cine_becomes_one_record_for_the_content_check(acdc):
    root = acdc(patients=1, cine=4)
    (root / "patient001" / "patient001_4d.nii.gz").write_bytes(b"\x1f\x8b broken")
    assert [r.volume for r in read_acdc(root) if r.phase == "cine"] == ["patient001_4d_t00"]


def test_real_data_have_two_labelled_frames_per_patient(real_acdc):
    records = read_acdc(real_acdc)
    assert len(records) == 2 * len({r.patient for r in records})
    assert all(r.label for r in records)
    assert {(r.volume, r.phase) for r in records} >= {("patient090_frame04", "ED"), ("patient090_frame11", "ES")}
