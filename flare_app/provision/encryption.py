"""Contexts of homomorphic encryption: in startup kits, or for one run of the simulator. Needs the package tenseal."""

from __future__ import annotations

from pathlib import Path

from nvflare.lighter.ctx import ProvisionContext
from nvflare.lighter.entity import Project
from nvflare.lighter.impl.he import HEBuilder

from flare_app.encryption.context import PARAMETERS, SERVER_CONTEXT, SITE_CONTEXT


class ContextBuilder(HEBuilder):
    """FLARE's ``HEBuilder`` with the parameters that the server's averaging counts on; a step before the signatures.

    All sites get the same new secret key with every run of provisioning, the server a context without it. The files
    of sites can be read by their owner alone, as the keys of certificates.
    """

    def __init__(self) -> None:
        super().__init__(**PARAMETERS)

    def build(self, project: Project, ctx: ProvisionContext) -> None:
        super().build(project, ctx)
        for client in project.get_clients():
            (Path(ctx.get_kit_dir(client)) / SITE_CONTEXT).chmod(0o600)


def write_contexts(folder: Path) -> None:
    """Contexts of a new key for server and sites of a simulation; those that are there stay, for a run that resumes."""
    if (folder / SITE_CONTEXT).exists():
        return
    builder = ContextBuilder()
    builder.initialize(None, None)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SERVER_CONTEXT).write_bytes(builder.get_serialized_context())
    site = folder / SITE_CONTEXT
    site.touch(mode=0o600)
    site.write_bytes(builder.get_serialized_context(is_client=True))
