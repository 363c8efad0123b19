"""Files that are either whole or not there, and errors that name the folder that could not be written."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout, lock_descriptor

_LOCK = ".lock"
_LOCK_OF_CHILDREN = ".lock_of_children"
_PATIENCE_S = 30.0  # the process of a job that was just ended may take a moment to die


class StorageError(Exception):
    """A folder cannot be used. The message names it: fit for the log of the machine that it lies on, no other."""


@contextmanager
def storing(folder: Path, what: str) -> Iterator[None]:
    """Say what could not be written, where, and what to do.

    Raises:
        StorageError: in place of the ``OSError`` of a full disk, a read-only folder and the like.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{what} cannot be written to {folder}: {error.strerror or error}. Nothing that was saved before is lost: "
            "free space or give write access there, then resume the job"
        ) from error


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other jobs out of ``folder`` meanwhile; when this process dies, the system lets them in.

    Raises:
        StorageError: when another job is there, and stays.
    """
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=_PATIENCE_S)
    except Timeout as error:
        raise StorageError(
            f"another job writes to {folder}: wait for its end, or give this one a checkpoint_dir of its own"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def alone_with_children(folder: Path) -> Iterator[None]:
    """Keep other commands out of ``folder`` meanwhile, and after this process was killed until its children have ended.

    Children are those started with ``close_fds=False``: they have the descriptor of a lock, and keep it.

    Raises:
        filelock.Timeout: at once, when another command or its children are there.
    """
    with FileLock(folder / _LOCK, timeout=0), open(folder / _LOCK_OF_CHILDREN, "wb") as file:
        os.set_inheritable(file.fileno(), True)
        try:
            free = lock_descriptor(file.fileno(), blocking=False)
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            free = True  # a file system that knows no such locks: FileLock has found another way, children cannot
        if not free:
            raise Timeout(file.name)
        yield


@contextmanager
def replacing(file: Path) -> Iterator[BinaryIO]:
    """A stream whose content takes the place of ``file`` once it is whole and on the disk."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        with unfinished.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(unfinished, file)
        sync_folder(file.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` outlast a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def keep_as(file: Path, other: Path) -> None:
    """Give ``file`` the name ``other`` as well, in place of what had it; both names exist at any moment."""
    link = other.with_name(f".{other.name}.{os.getpid()}.part")
    try:
        try:
            os.link(file, link)
        except OSError:  # a file system without links
            shutil.copyfile(file, link)
        os.replace(link, other)
    finally:
        link.unlink(missing_ok=True)
