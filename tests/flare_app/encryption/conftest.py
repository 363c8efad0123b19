from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nvflare.fuel.sec.security_content_service import SecurityContentManager, SecurityContentService


@pytest.fixture(scope="session")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with contexts of one key for server and sites."""
    from flare_app.provision.encryption import write_contexts

    folder = tmp_path_factory.mktemp("startup")
    write_contexts(folder)
    return folder


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Makes a folder the one that FLARE reads contexts from."""

    def use_folder(folder: Path) -> None:
        manager: Any = SecurityContentManager(str(folder))
        monkeypatch.setattr(SecurityContentService, "security_content_manager", manager)

    return use_folder


@pytest.fixture
def startup(contexts: Path, use: Callable[[Path], None]) -> Path:
    """Contexts that fit each other, in use."""
    use(contexts)
    return contexts
