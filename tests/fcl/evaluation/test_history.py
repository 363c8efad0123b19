from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine, Events

from fcl.engines import set_aside
from fcl.evaluation import ValidationHistory
from fcl.evaluation.history import HISTORY_FILE, read_history


def _train(folder: Path, first: int, last: int, every: int, metrics: dict[str, object]) -> None:
    """Epochs ``first`` to ``last`` of three steps each, validated every so many."""
    evaluator = SimpleNamespace(state=SimpleNamespace(epoch=0, metrics={}))

    def step(engine: Engine, batch: int) -> None:
        if engine.state.epoch % every == 0:
            evaluator.state.epoch = engine.state.epoch
            evaluator.state.metrics = {"mean_dice": engine.state.epoch / 10, **metrics}

    def restore(engine: Engine) -> None:
        engine.state.epoch, engine.state.iteration = first - 1, 3 * (first - 1)

    trainer = Engine(step)
    trainer.add_event_handler(Events.STARTED, restore)
    ValidationHistory(folder, evaluator).attach(trainer)
    trainer.run([0] * 3, max_epochs=last)


def test_each_validation_is_a_row_that_says_after_how_many_steps(tmp_path: Path) -> None:
    metrics = {"dice_lv": 0.25, "dice_rv": float("nan"), "by_class": torch.rand(2)}
    _train(tmp_path / "new", 1, 5, every=2, metrics=metrics)
    text = (tmp_path / "new" / HISTORY_FILE).read_text()
    assert text.splitlines() == [
        "epoch,steps,mean_dice,dice_lv,dice_rv", "2,6,0.200000,0.250000,", "4,12,0.400000,0.250000,",
    ]  # fmt: skip
    assert read_history(tmp_path / "new" / HISTORY_FILE) == [
        (6, {"mean_dice": 0.2, "dice_lv": 0.25}), (12, {"mean_dice": 0.4, "dice_lv": 0.25}),
    ]  # fmt: skip
    assert [path.name for path in (tmp_path / "new").iterdir()] == [HISTORY_FILE]


@pytest.mark.parametrize("again", [3, 4, 5])
def test_a_continued_run_adds_to_it_and_replaces_what_it_does_again(again: int, tmp_path: Path) -> None:
    _train(tmp_path, 1, 4, every=1, metrics={})
    _train(tmp_path, again, 6, every=1, metrics={"dice_lv": 0.5})
    found = read_history(tmp_path / HISTORY_FILE)
    assert [steps for steps, _ in found] == [3, 6, 9, 12, 15, 18]
    assert ["dice_lv" in metrics for _, metrics in found] == [epoch >= again for epoch in range(1, 7)]


def test_a_training_without_validation_has_none(tmp_path: Path) -> None:
    _train(tmp_path, 1, 2, every=5, metrics={})
    assert not (tmp_path / HISTORY_FILE).exists()


def test_a_new_run_sets_it_aside_with_the_weights(tmp_path: Path) -> None:
    _train(tmp_path, 1, 1, every=1, metrics={})
    assert set_aside(tmp_path) == tmp_path / "earlier_1"
    assert (tmp_path / "earlier_1" / HISTORY_FILE).is_file()
