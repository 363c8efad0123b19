from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from nvflare.apis.workspace import Workspace
from nvflare.private.fed.app.fl_conf import create_privacy_manager
from nvflare.private.privacy_manager import PrivacyManager

import flare_app

SAMPLES = Path(flare_app.__file__).parent / "provision"


@pytest.fixture
def privacy_manager(tmp_path: Path) -> Callable[[str], PrivacyManager]:
    """Puts a sample into a site's ``local`` folder and reads it as FLARE's job process does."""

    def load(sample: str) -> PrivacyManager:
        root = tmp_path / f"kit-{sample}"
        for folder in ("local", "startup"):
            (root / folder).mkdir(parents=True)
        shutil.copy(SAMPLES / sample, root / "local" / "privacy.json")
        return create_privacy_manager(Workspace(str(root), "hospital-a"), names_only=False)

    return load
