from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest
from filelock import Timeout

from flare_app.storage import StorageError, alone_with_children, keep_as, replacing, storing


def _interrupted(file: Path) -> None:
    with replacing(file) as stream:
        stream.write(b"tw")
        raise KeyboardInterrupt


def test_content_takes_the_place_of_the_file_only_when_whole(tmp_path: Path) -> None:
    file = tmp_path / "new" / "state"
    with replacing(file) as stream:
        stream.write(b"one")
    with pytest.raises(KeyboardInterrupt):
        _interrupted(file)
    assert file.read_bytes() == b"one"
    assert [entry.name for entry in file.parent.iterdir()] == ["state"]


@pytest.mark.parametrize("links", [True, False])
def test_a_file_keeps_its_name_beside_the_other(tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not links:

        def refuse(*_: object) -> None:
            raise PermissionError

        monkeypatch.setattr(os, "link", refuse)
    new, old = tmp_path / "new", tmp_path / "old"
    new.write_text("two")
    old.write_text("one")
    for _ in range(2):  # again: two names of one file are a case of their own
        keep_as(new, old)
        assert (new.read_text(), old.read_text()) == ("two", "two")
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["new", "old"]
    new.unlink()
    assert old.read_text() == "two"


def _no_locks(*_: object) -> None:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


@pytest.mark.parametrize("locks", [True, False])
@pytest.mark.filterwarnings("ignore:flock not supported")
def test_a_folder_is_for_one_command_at_a_time(tmp_path: Path, locks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not locks:
        monkeypatch.setattr(fcntl, "flock", _no_locks)
    for _ in range(2):
        with alone_with_children(tmp_path), pytest.raises(Timeout), alone_with_children(tmp_path):
            pass


def test_message_says_what_where_why_and_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "folder"
    with pytest.raises(StorageError) as caught, storing(folder, "the state"), replacing(folder / "x"):
        pass
    message = str(caught.value)
    assert message.startswith(f"the state cannot be written to {folder}: Not a directory. ")
    assert message.endswith("free space or give write access there, then resume the job")
    assert isinstance(caught.value.__cause__, OSError)


def test_other_errors_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), storing(tmp_path, "x"):
        1 / 0  # noqa: B018
