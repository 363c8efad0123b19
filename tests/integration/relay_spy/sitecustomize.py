"""Loaded by Python at the start of every process of a provisioned system whose PYTHONPATH begins with this folder.

At the server, ``$SPY_FILE`` makes it write one JSON line for every message that the server passes on from one site to
another, with the names of the marks (``$SPY_MARKS``: name to hexadecimal bytes) that can be read in it. At a site,
``$SPY_REQUESTS`` (round to text) plants a text in each request for features, and while the file ``$SPY_CLEAR`` exists
requests are made, and answered, without encryption: the control that shows that the spy can see.
"""

from __future__ import annotations

import json
import os
from pathlib import Path


def _listen(file: Path) -> None:
    from nvflare.fuel.f3.cellnet.core_cell import CoreCell

    marks = {name: bytes.fromhex(text) for name, text in json.loads(os.environ["SPY_MARKS"]).items()}
    forward = CoreCell._forward

    def spy(self, endpoint, origin, destination, msg_type, message):  # type: ignore[no-untyped-def]
        payload = bytes(message.payload or b"")
        found = [name for name, mark in marks.items() if mark in payload]
        line = {"from": origin, "to": destination, "type": msg_type, "bytes": len(payload), "found": found}
        with file.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        return forward(self, endpoint, origin, destination, msg_type, message)

    CoreCell._forward = spy


def _plant(texts: dict[str, str]) -> None:
    from nvflare.apis.impl.task_controller import TaskController
    from nvflare.app_common.app_constant import AppConstants

    ask = TaskController.broadcast_and_wait

    def planted(self, task, *arguments, **options):  # type: ignore[no-untyped-def]
        text = texts[str(task.data.get_header(AppConstants.CURRENT_ROUND))]
        repeats = 1 if len(text) < 100 else 4096
        task.data.set_header("planted", text * repeats)
        if Path(os.environ["SPY_CLEAR"]).exists():
            task.secure = False
        return ask(self, task, *arguments, **options)

    TaskController.broadcast_and_wait = planted

    from flare_app import peers

    in_clear = peers._in_clear
    peers._in_clear = lambda request: not Path(os.environ["SPY_CLEAR"]).exists() and in_clear(request)


if "SPY_FILE" in os.environ:
    _listen(Path(os.environ["SPY_FILE"]))
if "SPY_REQUESTS" in os.environ:
    _plant(json.loads(os.environ["SPY_REQUESTS"]))
