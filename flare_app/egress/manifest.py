"""The site's own record of what left it: one JSON object per line, appended over all jobs."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nvflare.apis.fl_context import FLContext

FOLDER = "egress"


class Manifest:
    """Appends whole lines to a file; safe between threads, and between the processes of two jobs at one site.

    Args:
        file: created with its folder when the first line is written.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock = threading.Lock()

    def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Write ``lines`` and wait until they are on the disk.

        Raises:
            OSError: when they are not, e.g. on a full disk.
        """
        text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines).encode()
        with self._lock:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o640)
            try:
                # A line that a crash cut short must not swallow the next one.
                size = os.fstat(descriptor).st_size
                if size and os.pread(descriptor, 1, size - 1) != b"\n":
                    text = b"\n" + text
                if os.write(descriptor, text) != len(text):
                    raise OSError(f"{self.file} could not be written in full: is the disk full?")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


_manifests: dict[Path, Manifest] = {}
_manifests_lock = threading.Lock()


def manifest_of(fl_ctx: FLContext) -> Manifest:
    """The one of this site: ``egress/<site>.jsonl`` in its workspace."""
    file = Path(fl_ctx.get_workspace().get_root_dir()) / FOLDER / f"{fl_ctx.get_identity_name()}.jsonl"
    with _manifests_lock:
        return _manifests.setdefault(file, Manifest(file))


def now() -> str:
    """UTC in ISO 8601, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_manifest(file: Path) -> tuple[list[dict[str, Any]], int]:
    """All whole lines of a manifest, and how many there are besides that cannot be read."""
    lines, damaged = [], 0
    for text in file.read_text(errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if isinstance(line, dict) and "event" in line:
            lines.append(line)
        else:
            damaged += bool(text.strip())
    return lines, damaged
