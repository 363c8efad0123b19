"""A job on a running federation: submitted, followed to its end, its result fetched."""

from __future__ import annotations

import io
import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcl.data.compare import STATISTICS_FILE
from flare_app.provision.kits import ProvisionError
from flare_app.records import ROUNDS_FILE

if TYPE_CHECKING:
    from nvflare.fuel.flare_api.flare_api import Session

COMPLETED = "FINISHED:COMPLETED"
_USER_FILES = ("fed_admin.json", "client.crt", "client.key", "rootCA.pem")  # of a user's kit, in startup/
_POLL_S = 1.0
# A line of the controller: "round 3/10: 4/4 sites, loss 0.71, 2.1 s, about 15 s left".
_ROUND = re.compile(r"round (\d+)/(\d+): (\d+/\d+ sites.*?), [\d.]+ s, about [^,]+ left")
# What FLARE logs when a job cannot go on; the controller's own reason among it.
_REASON = re.compile(r"- ERROR - .*?(?:\] - | - )(.*)")
_REPORTED = re.compile(r"due to reported failure from ([\w-]+): (.*)")


@dataclass(frozen=True)
class Progress:
    """How far a job is.

    Args:
        status: FLARE's word for it, such as ``RUNNING`` or ``FINISHED:COMPLETED``.
        done: rounds.
        total: rounds; None before the first.
        values: of the last round, in words.
    """

    status: str
    done: int = 0
    total: int | None = None
    values: str = ""

    @property
    def finished(self) -> bool:
        return self.status.startswith("FINISHED")

    def short(self) -> str:
        """What matters most, for a line of a terminal."""
        parts = [
            part for part in self.values.split(", ") if part.startswith(("loss ", "validation ")) or "sites" in part
        ]
        return ", ".join(parts) or self.status.lower()


@dataclass(frozen=True)
class Outcome:
    """A job that has ended.

    Args:
        job_id: FLARE's.
        status: FLARE's word, ``FINISHED:COMPLETED`` when all went well.
        refusals: site to what it said when it refused the job.
        failures: site to FLARE's word for how its process of the job ended; the reason stands in the site's own log.
        errors: what the server logged as errors, in order.
    """

    job_id: str
    status: str
    refusals: dict[str, str]
    failures: dict[str, str]
    errors: tuple[str, ...]

    @property
    def completed(self) -> bool:
        return self.status == COMPLETED

    def explain(self) -> str:
        """What the user needs to know of a job that did not complete."""
        lines = [f"job {self.job_id} ended as {self.status}"]
        lines += [f"  {site} refused it: {reason}" for site, reason in sorted(self.refusals.items())]
        for site, reason in sorted(self.failures.items()):
            lines.append(f"  its process at {site} ended early ({reason}): the log of that site says why")
        lines += [f"  {error}" for error in self.errors]
        return "\n".join(lines)


@contextmanager
def admin_session(kit: Path, timeout_s: float = 20.0) -> Iterator[Session]:
    """A session of FLARE's API as the user that a startup kit belongs to.

    Raises:
        ProvisionError: when the folder is no such kit, the server does not answer, or it refuses what is asked of it.
    """
    from nvflare.fuel.flare_api.flare_api import new_secure_session

    missing = [f"startup/{name}" for name in _USER_FILES if not (kit / "startup" / name).is_file()]
    if missing:
        raise ProvisionError(f"{kit} is no startup kit of a user: it has no {', '.join(missing)}")
    file = kit / "startup/fed_admin.json"
    try:
        user = json.loads(file.read_text())["admin"]["username"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ProvisionError(f"{file} cannot be read, unpack the kit again: {error!r}") from error
    with _refusals_in_words(file, user):
        with redirect_stdout(io.StringIO()):  # it announces that it connects
            session = new_secure_session(user, str(kit.resolve()), timeout=timeout_s, auto_login_max_tries=1)
        try:
            yield session
        finally:
            session.close()


@contextmanager
def _refusals_in_words(kit_file: Path, user: str) -> Iterator[None]:
    """What FLARE's API raises, as one line with the way out."""
    from nvflare.apis.fl_exception import FLCommunicationError
    from nvflare.fuel.flare_api import api_spec as flare

    try:
        yield
    except (flare.NoConnection, flare.NoReply, flare.SessionClosed, FLCommunicationError) as error:
        raise ProvisionError(
            f"the server gives no answer ({error}): see that it runs, that {kit_file} names its host and port, that "
            "the kit is of the same making as its own, and that no firewall is between"
        ) from error
    except flare.JobNotFound as error:
        raise ProvisionError(f"the server knows no such job ({error}): give the id that submit has printed") from error
    except flare.AuthorizationError as error:
        raise ProvisionError(
            f"{user} may not do this ({error}): a lead follows and ends own jobs only, and org_admins submit none; use "
            "the kit of who submitted the job, or of a project administrator"
        ) from error
    except flare.AuthenticationError as error:
        raise ProvisionError(
            f"the server does not take {user} for a user of its own ({error}): use a kit of the same making as the "
            "server's"
        ) from error
    except flare.InvalidJobDefinition as error:
        raise ProvisionError(f"the server does not take the job: {error}. Export it anew") from error
    except (flare.JobNotRunning, flare.JobNotDone, flare.InternalError) as error:
        raise ProvisionError(f"the server cannot do this: {error}") from error


def require_job_folder(folder: Path) -> None:
    """Check that a folder is a job's.

    Raises:
        ProvisionError: when it is none.
    """
    if not (folder / "meta.json").is_file():
        raise ProvisionError(f"{folder} is no job folder: it has no meta.json")


@contextmanager
def resuming(folder: Path) -> Iterator[Path]:
    """A copy of a job folder that goes on from the checkpoints of the original's run.

    Raises:
        ProvisionError: when the folder is no job's, or that job keeps none.
    """
    with _copied(folder) as copy:
        file = copy / "app/config/config_fed_server.json"
        try:
            config = json.loads(file.read_text())
            arguments = config["workflows"][0]["args"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ProvisionError(
                f"{folder} is no job folder that python -m flare_app.job export has written: "
                f"{file.relative_to(copy)} cannot be read"
            ) from error
        if arguments.get("checkpoint_dir") is None:
            raise ProvisionError(f"{folder} keeps no checkpoints: export it with --checkpoint-dir")
        arguments["resume"] = True
        file.write_text(json.dumps(config, indent=4))
        yield copy


def submit(session: Session, folder: Path) -> str:
    """Submit a job folder and give the job's id.

    Raises:
        ProvisionError: when there is no such folder.
    """
    # FLARE signs what it submits in place: the signatures do not belong into the folder that is kept.
    with _copied(folder) as copy:
        return str(session.submit_job(str(copy)))


@contextmanager
def _copied(folder: Path) -> Iterator[Path]:
    """A job folder under its own name elsewhere, whatever the name was given as: ``.``, say."""
    require_job_folder(folder)
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(shutil.copytree(folder, Path(temporary) / folder.resolve().name))


def progress(session: Session, job_id: str) -> Progress:
    """How far the job is now; rounds are read from the log at the server, as the submitter may see it."""
    status = str(session.get_job_meta(job_id).get("status", ""))
    rounds = _ROUND.findall(server_log(session, job_id)) if status == "RUNNING" or status.startswith("FINISHED") else []
    if not rounds:
        return Progress(status)
    number, total, values = rounds[-1]
    return Progress(status, int(number), int(total), values)


def server_log(session: Session, job_id: str) -> str:
    """What the job's process at the server has logged so far; empty when there is none."""
    try:
        logs = session.get_job_logs(job_id, "server").get("logs", {})
    except Exception:  # FLARE raises, rather than answers, for a job whose process has not begun
        return ""
    return str(logs.get("server", ""))


def follow(
    session: Session, job_id: str, show: Callable[[Progress], None] = lambda seen: None, timeout_s: float = 0.0
) -> Outcome:
    """Watch a job until it ends.

    Args:
        session: of who may view it.
        job_id: FLARE's.
        show: called with each look at it.
        timeout_s: give up watching after; 0 never does.

    Raises:
        ProvisionError: when it runs for longer.
    """
    began = time.monotonic()
    while True:
        seen = progress(session, job_id)
        show(seen)
        if seen.finished:
            return outcome(session, job_id)
        if 0 < timeout_s < time.monotonic() - began:
            raise ProvisionError(
                f"job {job_id} is still {seen.status} after {timeout_s:.0f} s, {seen.done} rounds done\n"
                + "\n".join(server_log(session, job_id).splitlines()[-20:])
            )
        time.sleep(_POLL_S)


def outcome(session: Session, job_id: str) -> Outcome:
    """Of a job that has ended."""
    meta = session.get_job_meta(job_id)
    errors = dict.fromkeys(_REASON.findall(server_log(session, job_id)))
    status = str(meta["status"])
    failures = {} if status == COMPLETED else _failures(session, job_id)
    return Outcome(job_id, status, _refusals(meta), failures, tuple(errors))


def _refusals(meta: dict[str, Any]) -> dict[str, str]:
    """FLARE writes "site: reason" for each that was asked to deploy the job, and "site: OK"."""
    details = meta.get("job_deploy_detail") or []
    pairs = [str(entry).partition(": ") for entry in details]
    return {site: reason for site, _, reason in pairs if reason and reason != "OK"}


def download(session: Session, job_id: str, out: Path) -> Path:
    """Fetch the job's result into ``out/<job id>``; gives the folder with log of rounds or statistics.

    Raises:
        ProvisionError: when the result holds none.
    """
    folder = Path(session.download_job_result(job_id, str(out)))
    found = sorted([*folder.rglob(ROUNDS_FILE), *folder.rglob(STATISTICS_FILE)])
    if not found:
        raise ProvisionError(f"the result of job {job_id} in {folder} has no {ROUNDS_FILE} and no {STATISTICS_FILE}")
    return found[0].parent


def _failures(session: Session, job_id: str) -> dict[str, str]:
    """FLARE ends a whole job when a site's process does, and says of which site only in the server's own log."""
    try:
        found = session.grep_target("server", pattern=f"Failing job {job_id}", file="log.txt")
    except Exception:  # a user from another organisation than the server's may not read it
        return {}
    return dict(_REPORTED.findall(str(found)))
