"""What a startup kit of FLARE needs on top for this app; by ``nvflare provision``, or to kits made otherwise."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from nvflare.app_common.default_component_policy import DEFAULT_CLASS_ALLOW_LIST
from nvflare.lighter.ctx import ProvisionContext
from nvflare.lighter.entity import Project
from nvflare.lighter.spec import Builder

from flare_app.provision.kits import keep_keys_to_owner

_HERE = Path(__file__).parent
DEAD_AFTER_S = 120
JOBS_STORAGE = "storage/jobs"  # within the server's workspace
_START_MARK = 'echo "WORKSPACE set to $WORKSPACE"'  # a line of FLARE's start script, by which that path is settled
_OUTCOME_S = (
    60  # shorter than DEAD_AFTER_S: a job that is done must not fail because a site vanished just before its end
)
_EXPORT = (
    f'export NVFL_JOB_STORE_ROOT="${{NVFL_JOB_STORE_ROOT:-$WORKSPACE/{JOBS_STORAGE}}}"\n'
    f'export NVFLARE_CLIENT_OUTCOME_WAIT_TIMEOUT="${{NVFLARE_CLIENT_OUTCOME_WAIT_TIMEOUT:-{_OUTCOME_S}}}"'
)
# Classes that a job without code of its own may name: FLARE's default list, and ours one by one.
OWN_CLASSES = json.loads((_HERE / "class_allow_list.json").read_text())["class_allow_list"]
_ROLES = ("project_admin", "org_admin", "lead")


class KitBuilder(Builder):
    """A step of provisioning, named in ``project.yml`` after ``StaticFileBuilder``.

    Args:
        dead_after_s: the server takes a site for dead that was silent for this long (s); FLARE's own default is 600.
    """

    def __init__(self, dead_after_s: int = DEAD_AFTER_S) -> None:
        self.dead_after_s = dead_after_s

    def initialize(self, project: Project, ctx: ProvisionContext) -> None:
        keep_keys_to_owner(Path(ctx.get_workspace()))

    def build(self, project: Project, ctx: ProvisionContext) -> None:
        for participant in [project.get_server(), *project.get_clients()]:
            adapt_kit(Path(ctx.get_ws_dir(participant)), self.dead_after_s)

    def finalize(self, project: Project, ctx: ProvisionContext) -> None:
        keep_keys_to_owner(Path(ctx.get_workspace()))  # steps end in reverse: CertBuilder has written its state


def adapt_kit(kit: Path, dead_after_s: int = DEAD_AFTER_S) -> list[str]:
    """Change a kit in place; once or more often, with the same result.

    What classes a job may name is filled into FLARE's ``resources.json.default`` alone. A ``resources.json`` is the
    hospital's, and may allow fewer on purpose.

    Args:
        kit: of a server or a site: the folder with ``startup`` and ``local``.
        dead_after_s: see :class:`KitBuilder`.

    Returns:
        Classes of this app that the kit's own ``resources.json`` does not allow.

    Raises:
        FileNotFoundError: when the folder is no such kit.
        ValueError: when a file of it is damaged, or of another version of FLARE.
    """
    local, server = kit / "local", (kit / "startup/fed_server.json").is_file()
    if not server and not (kit / "startup/fed_client.json").is_file():
        raise FileNotFoundError(
            f"{kit} is no kit of a server or a site: startup/fed_server.json or startup/fed_client.json is missing"
        )
    own = local / "resources.json"
    present = [file for file in (local / "resources.json.default", own) if file.is_file()]
    if not present:
        raise FileNotFoundError(f"{kit} is no kit of FLARE: local/resources.json.default is missing")
    for file in present:
        resources = _read_json(file)
        if file != own:
            # The key replaces FLARE's list as a whole.
            resources["class_allow_list"] = [*DEFAULT_CLASS_ALLOW_LIST, *OWN_CLASSES]
        if server:
            _adapt_server(resources, dead_after_s)
        else:
            resources["allow_log_streaming"] = False
        file.write_text(json.dumps(resources, indent=2) + "\n")
    if server:
        _keep_jobs_in_workspace(kit / "startup/sub_start.sh")
        _let_leads_read_their_logs(local / "authorization.json.default")
    else:
        _keep_files_from_coordinators(local / "authorization.json.default")
        _add_samples(local)
    return _missing_classes(own) if own.is_file() else []


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text()))
    except ValueError as error:
        raise ValueError(f"{file} cannot be read as JSON, correct it: {error}") from error


def _missing_classes(resources_file: Path) -> list[str]:
    allowed = json.loads(resources_file.read_text()).get("class_allow_list", DEFAULT_CLASS_ALLOW_LIST)
    # As FLARE reads it: a class, a package or module with all that is in it, or everything.
    return [
        name
        for name in OWN_CLASSES
        if not any(entry in ("*", name) or name.startswith(f"{entry.removesuffix('.')}.") for entry in allowed)
    ]


def _adapt_server(resources: dict[str, Any], dead_after_s: int) -> None:
    resources["servers"][0]["heart_beat_timeout"] = dead_after_s
    # FLARE 2.9 writes no snapshots any more, yet makes a folder for them, in the temp folder of the machine.
    resources.pop("snapshot_persistor", None)
    manager = next(entry for entry in resources["components"] if entry["id"] == "job_manager")
    manager["args"]["uri_root"] = JOBS_STORAGE


def _keep_jobs_in_workspace(script: Path) -> None:
    """FLARE's default is the same temp folder, which a reboot empties; it takes absolute paths only, known at start."""
    text = script.read_text()
    if _EXPORT in text:
        return
    if text.count(_START_MARK) != 1:
        raise ValueError(f"{script} is not the start script of FLARE 2.9: it has no line {_START_MARK!r}")
    script.write_text(text.replace(_START_MARK, f"{_START_MARK}\n{_EXPORT}"))


def _let_leads_read_their_logs(file: Path) -> None:
    """Who submitted a job may read what it logs at the server; no category of FLARE's rights has this command."""
    authorization = _read_json(file)
    authorization["permissions"]["lead"]["get_job_log"] = "n:submitter"
    file.write_text(json.dumps(authorization, indent=2) + "\n")


def _keep_files_from_coordinators(file: Path) -> None:
    """FLARE's console has `cat` and `grep` for every text file below a site's kit: logs, ledgers, keys of cases.

    They remain with those of the site's own organisation.
    """
    authorization = _read_json(file)
    permissions = authorization["permissions"]
    if permissions["project_admin"] == "any":
        permissions["project_admin"] = dict.fromkeys(permissions["lead"], "any")
    permissions["project_admin"]["shell_commands"] = "none"
    file.write_text(json.dumps(authorization, indent=2) + "\n")


def _add_samples(local: Path) -> None:
    """Files that a site's engineer renames to switch them on."""
    shutil.copyfile(_HERE / "fcl_site.json", local / "fcl_site.json.sample")
    # It replaces FLARE's sample, with which every job ends at a site that switches it on.
    for name in ("privacy.json", "privacy_weights_only.json"):
        shutil.copyfile(_HERE / name, local / f"{name}.sample")
    authorization = _read_json(local / "authorization.json.default")
    permissions = authorization["permissions"]
    rights = [right for right in permissions["lead"] if right != "byoc"]
    permissions["project_admin"] = {
        **dict.fromkeys(rights, "any"), "server-predeployed-flwr": "none", "shell_commands": "none"
    }  # fmt: skip
    for role in _ROLES:
        permissions[role]["byoc"] = "none"
    (local / "authorization.json.no_byoc.sample").write_text(json.dumps(authorization, indent=2) + "\n")
