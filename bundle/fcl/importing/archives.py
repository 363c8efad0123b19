"""Zip archives as input, unpacked only when every entry stays inside the folder it is unpacked to."""

from __future__ import annotations

import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath

from fcl.data.problems import DataProblems, Problem

_ENCRYPTED = 0x1


@contextmanager
def opened(source: Path, near: Path) -> Iterator[Path]:
    """``source`` itself when it is a folder; of a zip archive, a folder with its content that is removed afterwards.

    Args:
        source: folder or ``.zip`` file.
        near: the content is unpacked beside it, on the disk that has room for the result.

    Raises:
        DataProblems: no such folder, no archive, or entries that would be written elsewhere; nothing is unpacked then.
    """
    source = source.expanduser()
    if source.is_dir():
        yield source
        return
    if not source.is_file() or not zipfile.is_zipfile(source):
        what = "is neither a folder nor a zip archive" if source.exists() else "does not exist"
        raise DataProblems([Problem(str(source), what, "give a folder, or a .zip of one")])
    near = near.expanduser().absolute()
    with zipfile.ZipFile(source) as archive:
        faults = [Problem(f"{source}: {info.filename!r}", why, "make the archive again from the folder itself")
                  for info in archive.infolist() for why in _faults(info)]  # fmt: skip
        size, free = sum(info.file_size for info in archive.infolist()), shutil.disk_usage(near.parent).free
        if size > free:
            what = f"unpacks to {size / 2**20:.0f} MiB, {free / 2**20:.0f} MiB are free"
            faults.append(Problem(str(source), what, "free disk space, or give --out on another disk"))
        if faults:
            raise DataProblems(faults)
        with tempfile.TemporaryDirectory(prefix=f".{near.name}.", suffix=".unzipped", dir=near.parent) as folder:
            try:
                archive.extractall(folder)
            except (zipfile.BadZipFile, OSError, EOFError) as error:
                raise DataProblems([Problem(str(source), f"cannot be unpacked ({error})", "copy it again")]) from error
            yield Path(folder)


def _faults(info: zipfile.ZipInfo) -> Iterator[str]:
    """Why an entry must not be unpacked. zipfile would strip such paths in silence; here the archive is refused."""
    posix, windows = PurePosixPath(info.filename), PureWindowsPath(info.filename)
    if posix.is_absolute() or windows.drive or windows.root:
        yield "is an absolute path"
    if ".." in posix.parts or ".." in windows.parts:
        yield "leaves the archive's folder"
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        yield "is a link or another special file"
    if info.flag_bits & _ENCRYPTED:
        yield "is encrypted"
