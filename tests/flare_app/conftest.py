from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _keep_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collecting garbage after each round takes longer, in a process as full as pytest's, than all the rest."""
    for module in ("executor", "controller"):
        for name in ("cleanup_memory", "keep_for_good"):
            monkeypatch.setattr(f"flare_app.{module}.{name}", lambda: None)
