from __future__ import annotations

from pathlib import Path

import pytest
from ignite.engine import Engine, Events

from fcl.data import VolumeRecord, read_split, site_records
from fcl.engines import UsedSplit


def test_the_division_is_kept_beside_the_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = [VolumeRecord(f"{n}.nii", None, f"p{n}", f"v{n}") for n in range(8)]
    split = site_records(records, fold=1)
    engine = Engine(lambda engine, batch: None)
    with caplog.at_level("INFO"):
        UsedSplit(tmp_path / "new", split).attach(engine)
        assert not (tmp_path / "new").exists()
        engine.run([0])
    written = tmp_path / "new" / "split_used.json"
    assert read_split(written) == split.division
    assert f"--split_file {written} --fold 1" in caplog.text


def test_a_resumption_that_is_refused_leaves_the_file(tmp_path: Path) -> None:
    def refuse(engine: Engine) -> None:
        raise ValueError("another configuration")

    engine = Engine(lambda engine, batch: None)
    engine.add_event_handler(Events.STARTED, refuse)
    UsedSplit(tmp_path, site_records([VolumeRecord("a.nii", None, "p", "v")], fold=None)).attach(engine)
    with pytest.raises(ValueError, match="another configuration"):
        engine.run([0])
    assert list(tmp_path.iterdir()) == []
