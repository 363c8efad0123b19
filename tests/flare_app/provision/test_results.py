from __future__ import annotations

from pathlib import Path

import pytest
from nvflare.apis.event_type import EventType

from flare_app.provision.results import ResultCopy
from tests.flare_app.loopback import FakeEngine


@pytest.mark.parametrize("absolute", [False, True])
def test_what_was_kept_elsewhere_is_in_the_run_folder_at_the_end(absolute: bool, tmp_path: Path) -> None:
    chosen = str(tmp_path / "stable") if absolute else "state"
    kept = tmp_path / "stable/server" if absolute else tmp_path / "state"
    kept.mkdir(parents=True)
    for name in ("last.pt", "last.card.json", "previous.pt", "resume_00003.pt", "rounds.jsonl"):
        (kept / name).write_text(name)
    copy, context = ResultCopy(chosen), FakeEngine(tmp_path).context("server")
    copy.handle_event(EventType.START_RUN, context)
    assert not (tmp_path / "job").exists()
    copy.handle_event(EventType.END_RUN, context)
    assert sorted(file.name for file in (tmp_path / "job/fcl").iterdir()) == [
        "last.card.json",
        "last.pt",
        "rounds.jsonl",
    ]
