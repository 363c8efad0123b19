"""Jobs that bring their code along: stamped when they are written, refused where other code would run in its place.

FLARE puts a job's code at the end of Python's path. A site that has these packages installed would run its own version
under the job's name, and nobody would notice.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from nvflare.apis.executor import Executor
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

import fcl
import flare_app
from flare_app.asking import AskingController
from flare_app.controller import FCLController
from flare_app.executor import FCLExecutor
from flare_app.protocol import TaskName, refusal
from flare_app.statistics.controller import DataStatisticsController
from flare_app.statistics.executor import DataStatisticsExecutor

STAMP = "fcl_code.json"
# Side by side, as in the bundle: fcl finds configs/ beside itself.
PARTS = ("fcl", "flare_app", "configs")


def running_code() -> dict[str, Path]:
    """The folders that this process imports the packages, and reads the bundle's configs, from."""
    package = Path(fcl.__file__).parent
    return {"fcl": package, "flare_app": Path(flare_app.__file__).parent, "configs": package.parent / "configs"}


def ship(custom: Path) -> None:
    """Copy the code that runs here into a job's folder for code, with a stamp beside it."""
    for name, source in running_code().items():
        shutil.copytree(source, custom / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    stamp = {"version": fcl.__version__, "sha256": content_hash({name: custom / name for name in PARTS})}
    (custom / STAMP).write_text(json.dumps(stamp, indent=2) + "\n")


def content_hash(folders: dict[str, Path]) -> str:
    """SHA-256 over the names and contents of all files, but for compiled ones and FLARE's signatures."""
    digest = hashlib.sha256()
    for name in sorted(folders):
        for file in _files(folders[name]):
            content = file.read_bytes()
            digest.update(f"{name}/{file.relative_to(folders[name]).as_posix()} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()


def other_code(custom: Path) -> str | None:
    """Why the code that runs here is not the one that the job in ``custom`` brought; None when it is.

    The reason names versions and hashes, no paths: it is fit to leave the site.
    """
    try:
        stamp = json.loads((custom / STAMP).read_text())
    except (OSError, ValueError):
        return f"the job says that it brings its code, but its {STAMP} cannot be read"
    parts = running_code()
    found = content_hash(parts)
    if found == stamp["sha256"]:
        return None
    elsewhere = [name for name, folder in parts.items() if folder.resolve() != (custom / name).resolve()]
    if not elsewhere:
        return f"the job's code was changed on the way: its content is {found[:12]}, stamped was {stamp['sha256'][:12]}"
    return (
        f"other code than the job's would run here: {' and '.join(elsewhere)} of version {fcl.__version__}, content "
        f"{found[:12]}, hide what the job brings, version {stamp['version']}, content {stamp['sha256'][:12]}. "
        "Uninstall them here (pip uninstall fcl), install the same ones, or submit the job without code"
    )


def _files(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.rglob("*")):
        signature = file.name.startswith(".__nvfl_")  # put into each folder when the job is submitted
        if file.is_file() and not signature and "__pycache__" not in file.parts and file.suffix != ".pyc":
            yield file


class _StampedExecutor(Executor):
    """Beside an executor of a job that brings its code: it refuses the first task where other code runs."""

    first_task = TaskName.INITIALIZE

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        if task_name == self.first_task:
            custom = Path(fl_ctx.get_engine().get_workspace().get_app_custom_dir(fl_ctx.get_job_id()))
            problem = other_code(custom)
            self.logger.info(f"code: {', '.join(str(folder) for folder in running_code().values())}")
            if problem:
                self.logger.error(problem)
                return refusal(problem)
        return super().execute(task_name, shareable, fl_ctx, abort_signal)


class _StampedController(AskingController):
    """Beside a controller of a job that brings its code: it ends the job where other code runs."""

    def run(self) -> None:
        problem = other_code(Path(self.engine.get_workspace().get_app_custom_dir(self.fl_ctx.get_job_id())))
        if problem:
            self.panic(f"server: {problem}")
            return
        super().run()


class ShippedExecutor(_StampedExecutor, FCLExecutor):
    """The executor of a job that brings its code."""


class ShippedController(_StampedController, FCLController):
    """The controller of a job that brings its code."""


class ShippedStatisticsExecutor(_StampedExecutor, DataStatisticsExecutor):
    """The same for statistics of the data."""

    first_task = TaskName.STATISTICS


class ShippedStatisticsController(_StampedController, DataStatisticsController):
    """The same for statistics of the data."""


SHIPPED_CLASSES = {
    f"{base.__module__}.{base.__name__}": f"{checking.__module__}.{checking.__name__}"
    for base, checking in (
        (FCLExecutor, ShippedExecutor),
        (FCLController, ShippedController),
        (DataStatisticsExecutor, ShippedStatisticsExecutor),
        (DataStatisticsController, ShippedStatisticsController),
    )
}
