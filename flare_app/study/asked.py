"""What commands in a study's folder asked for and where they ran, kept so that one report holds all of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flare_app.storage import replacing
from flare_app.study.settings import Selection, Study, read_kept

ASKED_FILE = "asked.json"


def remember(out: Path, chosen: Selection) -> None:
    """Note what a command in ``out`` asks for.

    Raises:
        StudyError: when the file that keeps it cannot be read.
    """
    note(out / ASKED_FILE, asdict(chosen))


def recall(out: Path, study: Study) -> tuple[list[Selection], list[str]]:
    """What commands in ``out`` asked for, without what the study no longer has.

    Returns:
        What was asked for, and the arms that are left out of it since their encoder's file is not named this time.

    Raises:
        StudyError: when the file that keeps it cannot be read.
    """
    lacking = [arm for arm in study["arms"] if study.lacks_encoder(arm)]
    arms = [arm for arm in study["arms"] if arm not in lacking]
    known = {"arms": arms, "folds": range(study["folds"]), "modes": study.modes}
    asked, entries = [], noted(out / ASKED_FILE)
    for earlier in entries:
        kept = {name: [v for v in values if v in known.get(name, values)] for name, values in earlier.items()}
        if all(kept.values()):
            asked.append(study.select(**kept))
    return asked, [arm for arm in lacking if any(arm in earlier.get("arms", ()) for earlier in entries)]


def note(file: Path, entry: dict[str, Any]) -> None:
    """Put ``entry`` at the end of the list in ``file`` unless it is in it."""
    entry, entries = json.loads(json.dumps(entry)), noted(file)  # as it will be read again
    if entry not in entries:
        with replacing(file) as stream:
            stream.write((json.dumps([*entries, entry], indent=2) + "\n").encode())


def noted(file: Path) -> Sequence[Any]:
    """The list in ``file``, empty when there is none.

    Raises:
        StudyError: when it cannot be read.
    """
    return read_kept(file, list) if file.is_file() else []
