"""Making startup kits from the one project file, for machines of their own or all for this one."""

from __future__ import annotations

import copy
import importlib.util
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

PROJECT_FILE = Path(__file__).parent / "project.yml"
_CONTEXTS = "flare_app.provision.encryption.ContextBuilder"
LOOPBACK = "localhost"  # a server of this name binds 127.0.0.1 alone


class ProvisionError(RuntimeError):
    """Kits cannot be made, or a federation on this machine does not do as asked."""


@dataclass(frozen=True)
class Kits:
    """Startup kits of a consortium.

    Args:
        folder: holds one kit for each participant, by name.
        server: name of the server.
        sites: names of the sites.
        users: names of the admins, by role; the first by name of each.
    """

    folder: Path
    server: str
    sites: tuple[str, ...]
    users: Mapping[str, str]

    def __getitem__(self, name: str) -> Path:
        return self.folder / name

    @classmethod
    def read(cls, folder: Path) -> Kits:
        """Kits that were made before, for all participants in one folder.

        Raises:
            ProvisionError: when the folder holds none.
        """
        servers = sorted(file.parents[1].name for file in folder.glob("*/startup/fed_server.json"))
        sites = sorted(file.parents[1].name for file in folder.glob("*/startup/fed_client.json"))
        if len(servers) != 1 or not sites:
            raise ProvisionError(f"{folder} must hold kits of one server and its sites, found {[*servers, *sites]}")
        users: dict[str, str] = {}
        for file in sorted(folder.glob("*/startup/fed_admin.json")):
            users.setdefault(_role(file.parents[1]), file.parents[1].name)
        return cls(folder, servers[0], tuple(sites), users)


def read_project(file: Path = PROJECT_FILE) -> dict[str, Any]:
    """The content of a project file.

    Raises:
        ProvisionError: when it is none.
    """
    try:
        project = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ProvisionError(f"{file} cannot be read as YAML: {error}") from error
    if not isinstance(project, dict) or not isinstance(project.get("participants"), list):
        raise ProvisionError(f"{file} is no project file: it lists no participants")
    return project


def on_this_machine(project: Mapping[str, Any], port: int, sites: int | None = None) -> dict[str, Any]:
    """The project with a server that binds loopback only, and with its first ``sites`` hospitals.

    Args:
        project: content of a project file.
        port: free port of this machine.
        sites: how many; all by default.

    Raises:
        ProvisionError: when there are fewer.
    """
    clients = [entry for entry in project["participants"] if entry["type"] == "client"]
    if sites is not None and not 1 <= sites <= len(clients):
        raise ProvisionError(f"the project has {len(clients)} sites, {sites} cannot take part")
    surplus = clients[sites:] if sites is not None else []
    kept = [entry for entry in project["participants"] if entry not in surplus]
    # One organisation may run several sites, or the server too: its users go with the last of them.
    left_out = {entry["org"] for entry in surplus} - {entry["org"] for entry in kept if entry["type"] != "admin"}
    participants = []
    for entry in kept:
        if entry["org"] in left_out:
            continue
        if entry["type"] == "server":
            entry = {**entry, "name": LOOPBACK, "fed_learn_port": port}
            entry.pop("admin_port", None)
        participants.append(entry)
    return {**project, "participants": participants}


def with_encryption(project: Mapping[str, Any]) -> dict[str, Any]:
    """The project with a step that makes contexts for jobs that encrypt weights.

    Raises:
        ProvisionError: where the package tenseal is missing, or the project has no step that signs them.
    """
    if importlib.util.find_spec("tenseal") is None:
        raise ProvisionError(
            "kits for encrypted weights need the package tenseal: pip install 'fcl[he]', with Python 3.12 or older"
        )
    steps = [step for step in project["builders"] if step["path"] != _CONTEXTS]
    signing = [index for index, step in enumerate(steps) if step["path"].endswith(".SignatureBuilder")]
    if not signing:
        raise ProvisionError("the project has no SignatureBuilder, which must sign the contexts of encryption")
    return {**project, "builders": [*steps[: signing[0]], {"path": _CONTEXTS}, *steps[signing[0] :]]}


def make_kits(project: Mapping[str, Any], out: Path) -> Kits:
    """Make the kits, with a new root key the first time and certificates signed by it.

    Args:
        project: content of a project file.
        out: folder for all; made again there they get a new folder beside the old one, and the same root.

    Raises:
        ProvisionError: with what FLARE says is wrong, or when ``out`` cannot be written.
    """
    from nvflare.lighter.constants import CtxKey
    from nvflare.lighter.prov_utils import prepare_builders
    from nvflare.lighter.provision import prepare_project
    from nvflare.lighter.provisioner import Provisioner

    content = copy.deepcopy(dict(project))  # FLARE takes it to pieces
    try:
        prepared = prepare_project(content)
        folder = out / prepared.name
        keep_keys_to_owner(folder)
        try:
            context = Provisioner(str(out), prepare_builders(content)).provision(
                prepared, logger=logging.getLogger(__name__)
            )
        finally:
            keep_keys_to_owner(folder)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ProvisionError(f"the project cannot be provisioned: {error}") from error
    except OSError as error:
        raise ProvisionError(f"kits cannot be written: {error}. Give a folder of your own with --out") from error
    if context.get(CtxKey.BUILD_ERROR):
        raise ProvisionError("the project cannot be provisioned: " + "; ".join(context.get_errors()))
    return Kits.read(Path(context.get_result_location()))


def made_before(project: Mapping[str, Any], out: Path) -> str | None:
    """Name of the folder of the newest kits that the project has in ``out``; None before the first."""
    return max((folder.name for folder in (out / str(project.get("name"))).glob("prod_*")), default=None)


def keep_keys_to_owner(folder: Path) -> None:
    """Close what FLARE leaves open to all users of the machine: ``state`` holds the root's key and everybody's.

    Args:
        folder: of the project, with ``state`` beside the kits; before the first run too, so that no key is ever open.
    """
    state = folder / "state"
    state.mkdir(parents=True, exist_ok=True)
    state.chmod(0o700)
    for file in (*state.rglob("*"), *folder.glob("prod_*/*/startup/*.key")):
        file.chmod(0o700 if file.is_dir() else 0o600)


def _role(kit: Path) -> str:
    """Of an admin: it stands in the certificate."""
    from cryptography.x509 import load_pem_x509_certificate
    from cryptography.x509.oid import NameOID

    subject = load_pem_x509_certificate((kit / "startup/client.crt").read_bytes()).subject
    return str(subject.get_attributes_for_oid(NameOID.UNSTRUCTURED_NAME)[0].value)
