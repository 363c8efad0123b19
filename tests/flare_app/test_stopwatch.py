from __future__ import annotations

from itertools import count

import pytest

from flare_app.stopwatch import Stopwatch


def test_a_part_counts_all_its_times_and_one_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = count(10.0, 2.0)
    monkeypatch.setattr("flare_app.stopwatch.time.monotonic", lambda: next(clock))
    spent = Stopwatch()
    with spent.part("training"):
        pass
    with spent.part("saving"):
        pass
    with pytest.raises(KeyError), spent.part("training"):
        raise KeyError
    assert spent.parts == {"training": 4.0, "saving": 2.0}
