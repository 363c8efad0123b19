"""What can be known of a job before any process starts: whether its words are the bundle's, and what sites refuse."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path

import fcl
from flare_app.job.definition import JobSettings


def job_problem(settings: JobSettings, here: bool, config_only: bool = False) -> str | None:
    """Why a job could not do what it says at any site; None when nothing is seen.

    Args:
        settings: of the job.
        here: whether it runs on this machine; else bundle and overlays of its own may lie at the sites alone.
        config_only: whether it goes to sites that admit no code.
    """
    root = fcl.bundle_root() if settings.bundle_root is None else Path(settings.bundle_root)
    if config_only and (beyond := _beyond(settings, root)):
        return (
            f"a job without code must do without {', '.join(beyond)}: leave it out, have each site write paths and its "
            "own overlay into local/fcl_site.json, or export without --config-only for sites that admit code"
        )
    if not (root / "configs").is_dir():
        return f"--bundle-root {root} has no folder configs" if here else None
    return "; ".join(_unknown_names(settings, root, here)) or _unknown_keys(settings, root)


def _beyond(settings: JobSettings, root: Path) -> list[str]:
    from flare_app.overreach import overreach  # brings MONAI along, which takes seconds

    return overreach(settings.config, settings.data, settings.overrides, root, settings.checkpoint_dir)


def _unknown_names(settings: JobSettings, root: Path, here: bool) -> Iterator[str]:
    methods = root / "configs" / settings.methods
    for name in settings.config:
        file = root / name
        if not file.is_file():
            kind = "method" if file.parent == methods else "configuration"
            yield _no(kind, file.stem, file.parent)
    if settings.data is None:
        return
    folder, is_path = root / "configs" / "data", settings.data.endswith(".json")
    file = root / settings.data if is_path else folder / f"{settings.data}.json"
    at_sites = Path(settings.data).is_absolute() and not here
    if not file.is_file() and not at_sites:
        yield f"{_no('dataset', settings.data, folder)}, or the path of a JSON overlay, absolute or within the bundle"


def _no(kind: str, name: str, folder: Path) -> str:
    known = sorted(file.stem for file in folder.glob("*.json"))
    close = difflib.get_close_matches(name, known, n=1)
    hint = f", did you mean {close[0]!r}?" if close else "."
    return f"no {kind} {name!r}{hint} Give one of {', '.join(known) or 'none'}"


def _unknown_keys(settings: JobSettings, root: Path) -> str | None:
    if not settings.overrides:
        return None
    from flare_app.workflow import unknown_keys  # brings MONAI along, which takes seconds

    return unknown_keys(root, settings.config, settings.overrides)
