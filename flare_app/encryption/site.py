"""What a site's executor does where weights are encrypted: show that it has the key, and keep the finished model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from torch import Tensor

from fcl.card import write_card
from fcl.networks.weights import write_weights
from flare_app.checks import KEY
from flare_app.encryption.context import EncryptionError, key_fingerprint, site_context
from flare_app.protocol import Header, SiteError
from flare_app.storage import StorageError, storing

_FILES = {"last": "global.pt", "best": "global_best.pt"}  # by what the server asks to keep


def site_key(task: Shareable, fl_ctx: FLContext) -> dict[str, str]:
    """Fingerprint of this site's key, for its settings; nothing when the job does not encrypt weights.

    Raises:
        SiteError: when the site cannot encrypt.
    """
    if task.get_header(Header.ENCRYPTION, "none") == "none":
        return {}
    try:
        return {KEY: key_fingerprint(site_context(fl_ctx))}
    except EncryptionError as error:
        raise SiteError(f"it cannot encrypt weights: {error}") from error


def keep_model(folder: Path, task: Shareable, weights: Mapping[str, Tensor]) -> Path | None:
    """Write readable global weights as a checkpoint with the server's card, when it asks for it; gives the file.

    Raises:
        SiteError: when it cannot be written.
    """
    kept, card = task.get_header(Header.KEEP), task.get_header(Header.CARD) or {}
    if kept is None:
        return None
    file = folder / _FILES[kept]
    try:
        with storing(folder, "the global model"):
            write_weights(file, weights, card)
            write_card(card, file)
    except StorageError as error:
        raise SiteError("the global model cannot be written, see the log of this site") from error
    return file
