from __future__ import annotations

import logging

import pytest
from ignite.engine import Engine, Events

from fcl.engines import Progress


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.delenv("FCL_PROGRESS", raising=False)
    engine = Engine(lambda engine, batch: None)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: e.state.metrics.update(loss=1.0 / e.state.epoch))
    return engine


def test_without_a_terminal_each_epoch_is_a_line(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    Progress("training").attach(engine)
    with caplog.at_level(logging.INFO, logger="fcl.engines.progress"):
        engine.run([0, 1, 2], max_epochs=2)
    assert [record.message.split(", 0")[0] for record in caplog.records] == [
        "training: epoch 1/2, loss 1.0000",
        "training: epoch 2/2, loss 0.5000",
    ]
    assert caplog.records[-1].message.endswith("00:00 left")


def test_long_epochs_tell_their_steps(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    Progress("training", interval_s=-1.0).attach(engine)
    with caplog.at_level(logging.INFO, logger="fcl.engines.progress"):
        engine.run([0, 1], max_epochs=1)
    assert [record.message.split(",")[0] for record in caplog.records] == [
        "training: step 1/2",
        "training: step 2/2",
        "training: 2 done",
    ]


def test_metrics_of_a_validation_are_shown_in_its_epoch_only(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    evaluator = Engine(lambda engine, batch: None)
    evaluator.state.metrics = {"mean_dice": 0.5, "by_class": {"rv": 1}}
    evaluator.state.epoch = 2
    Progress("training", evaluator).attach(engine)
    with caplog.at_level(logging.INFO, logger="fcl.engines.progress"):
        engine.run([0], max_epochs=3)
    assert ["mean_dice 0.5000" in record.message for record in caplog.records] == [False, True, False]
    assert "by_class" not in caplog.text


def test_bar_shows_where_it_is_asked_for(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("FCL_PROGRESS", "1")
    Progress("training").attach(engine)
    engine.run([0, 1], max_epochs=2)
    shown = capsys.readouterr().err
    assert "training" in shown
    assert "4/4" in shown
    assert "loss 0.5000" in shown
