from __future__ import annotations

import stat
import zipfile

import pytest

from fcl.data import DataProblems
from fcl.importing.archives import opened


def entry(name: str, mode: int = stat.S_IFREG | 0o644) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


EVIL = {
    "../outside": (entry("../outside"), "leaves the archive's folder"),
    "a/../../outside": (entry("a/../../outside"), "leaves the archive's folder"),
    "backslashes": (entry("..\\outside"), "leaves the archive's folder"),
    "absolute": (entry("/tmp/outside"), "is an absolute path"),
    "drive": (entry("C:\\outside"), "is an absolute path"),
    "link": (entry("link", stat.S_IFLNK | 0o777), "is a link"),
    "pipe": (entry("pipe", stat.S_IFIFO | 0o644), "is a link or another special file"),
}


@pytest.mark.parametrize("case", EVIL)
def test_nothing_of_an_evil_archive_is_written(tmp_path, case):
    info, expected = EVIL[case]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("good", "1")
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(DataProblems, match=expected), opened(tmp_path / "a.zip", tmp_path / "out"):
        pytest.fail("it was opened")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_every_evil_entry_is_listed(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for info, _ in EVIL.values():
            archive.writestr(info, "x")
    with pytest.raises(DataProblems) as caught, opened(tmp_path / "a.zip", tmp_path / "out"):
        pass
    assert len(caught.value.problems) == len(EVIL)


def test_content_is_there_and_goes_again(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("Ordner ü/bild 1", "1")
    with opened(tmp_path / "a.zip", tmp_path / "out") as folder:
        assert (folder / "Ordner ü" / "bild 1").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_a_folder_is_itself_and_other_things_are_refused(tmp_path):
    with opened(tmp_path, tmp_path / "out") as folder:
        assert folder == tmp_path
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for name, expected in (("file", "neither a folder nor a zip"), ("absent", "does not exist")):
        with pytest.raises(DataProblems, match=expected), opened(tmp_path / name, tmp_path / "out"):
            pass
