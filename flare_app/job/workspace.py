"""What FLARE's simulator would remove when it starts in a workspace: all but its ``local`` and ``startup``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_KEPT = ("local", "startup")
# What an earlier run, and `fcl report` of it, leave there.
_OF_A_RUN = re.compile(r"local|startup|server|site-\d+|report\.html|_process_rc\.txt")


def workspace_problem(
    given: Path, needed: Mapping[str, str], overrides: Mapping[str, Any], site_settings: str | None
) -> str | None:
    """Why the simulator must not be given this workspace: what it would remove, or a path that it would misread.

    Args:
        given: the workspace, as the user wrote it.
        needed: paths that the job reads, or writes for a later run, by the option that names them.
        overrides: of the bundle's configuration, some of which may be paths.
        site_settings: JSON file whose values may be paths too; one that cannot be read is the sites' to refuse.
    """
    workspace = given.resolve()
    if re.search(r"[\s'\"#\\]", str(workspace)):
        return (
            f"--workspace {str(workspace)!r} has a space, quote, backslash or # in its path, at which FLARE's "
            "simulator would cut it: give a path without"
        )
    rule = "is emptied first (but for its local/)"
    emptied = f"--workspace {given}, which {rule}: move it out, or give another workspace"
    for option, path in needed.items():
        if _removed(path, workspace):
            return f"{option} {path} lies in {emptied}"
    values = {f"--set {key}": value for key, value in overrides.items()}
    values.update({f"{site_settings}: {key}": value for key, value in _entries(site_settings)})
    for name, value in values.items():
        # A site's name is put in later; what is not there yet nobody can lose.
        path = value.partition("{SITE_NAME}")[0] if isinstance(value, str) else ""
        if Path(path).is_absolute() and Path(path).exists() and _removed(path, workspace):
            return f"{name}={value} lies in {emptied}"
    strangers = sorted(entry.name for entry in _listed(workspace) if not _OF_A_RUN.fullmatch(entry.name))
    if strangers:
        more = f" and {len(strangers) - 3} more" if len(strangers) > 3 else ""
        return (
            f"--workspace {given} {rule}, and holds what no earlier run left there: "
            f"{', '.join(strangers[:3])}{more}. Give a new folder, or remove them"
        )
    return None


def _removed(path: str, workspace: Path) -> bool:
    resolved = Path(path).resolve()
    if not resolved.is_relative_to(workspace):
        return False
    return resolved.relative_to(workspace).parts[:1] not in [(kept,) for kept in _KEPT]


def _listed(workspace: Path) -> Iterator[Path]:
    return workspace.iterdir() if workspace.is_dir() else iter(())


def _entries(site_settings: str | None) -> list[tuple[str, Any]]:
    try:
        content = json.loads(Path(site_settings).read_text()) if site_settings else {}
    except (OSError, ValueError):
        return []
    return list(content.items()) if isinstance(content, dict) else []
