"""A job that keeps its checkpoints in a stable folder still hands its result to who submitted it."""

from __future__ import annotations

import shutil
from pathlib import Path

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext

from flare_app.records import ROUNDS_FILE

_RESULTS = ("last.pt", "last.card.json", "best.pt", "best.card.json", ROUNDS_FILE)


class ResultCopy(FLComponent):
    """At the end of a run, copies the results into the run folder at the server: all that FLARE's API downloads.

    Args:
        checkpoint_dir: of the controller.
    """

    def __init__(self, checkpoint_dir: str) -> None:
        super().__init__()
        self.checkpoint_dir = checkpoint_dir

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        if event_type != EventType.END_RUN:
            return
        workspace = fl_ctx.get_engine().get_workspace()
        chosen = Path(self.checkpoint_dir)
        kept = chosen / "server" if chosen.is_absolute() else Path(workspace.get_root_dir()) / chosen
        run = Path(workspace.get_run_dir(fl_ctx.get_job_id())) / "fcl"
        run.mkdir(parents=True, exist_ok=True)
        for name in _RESULTS:
            if (kept / name).is_file():
                shutil.copyfile(kept / name, run / name)
