from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine
from monai.engines import SupervisedTrainer
from torch import nn

from fcl.data import SliceCache, SliceDataset, SliceLoader
from fcl.engines import AugmentBatch, Checkpoints, RandomState, WarmupCosine, set_aside


def make_trainer(cache: SliceCache, folder: Path, epochs: int, resume: bool, **options: object) -> SupervisedTrainer:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Dropout(0.2), nn.Conv2d(4, 1, 1))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    loader = SliceLoader(SliceDataset(cache), 8, 3, seed=0)
    batches = AugmentBatch(lambda image, label, generator: (image + torch.rand((), generator=generator), label))
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=loader,
        network=network,
        optimizer=optimizer,
        loss_function=lambda prediction, label: (prediction - label.float()).square().mean(),
        prepare_batch=batches,
        train_handlers=[WarmupCosine(optimizer, total_steps=12)],
        decollate=False,
    )
    state = {"optimizer": optimizer, "loader": loader, "batches": batches, "random": RandomState()}
    Checkpoints(folder, network, state, resume=resume, **options).attach(trainer)
    return trainer


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


def test_resumed_training_continues_bit_for_bit(cache: SliceCache, tmp_path: Path) -> None:
    make_trainer(cache, tmp_path / "straight", 4, resume=False).run()
    make_trainer(cache, tmp_path / "stopped", 2, resume=False).run()
    resumed = make_trainer(cache, tmp_path / "stopped", 4, resume=True)
    torch.manual_seed(99)
    resumed.run()
    assert resumed.state.epoch == 4
    straight, again = (weights(tmp_path / name / "model_last.pt") for name in ("straight", "stopped"))
    assert all(torch.equal(straight[key], again[key]) for key in straight)


def test_the_loss_scale_of_float16_outlives_a_restart(tmp_path: Path) -> None:
    def run(epochs: int, first_scale: float, resume: bool) -> float:
        engine = Engine(lambda engine, batch: None)
        engine.scaler = torch.amp.GradScaler("cpu", init_scale=first_scale)
        Checkpoints(tmp_path, nn.Linear(1, 1), {}, resume=resume).attach(engine)
        engine.run([0], max_epochs=epochs)
        return engine.scaler.get_scale()

    assert run(1, 8.0, resume=False) == 8.0
    assert run(2, 2.0, resume=True) == 8.0


def test_resume_without_an_earlier_run_starts_at_the_beginning(cache: SliceCache, tmp_path: Path) -> None:
    trainer = make_trainer(cache, tmp_path, 1, resume=True)
    trainer.run()
    assert trainer.state.iteration == 3


def test_models_are_plain_state_dicts_and_nothing_half_written_stays(cache: SliceCache, tmp_path: Path) -> None:
    trainer = make_trainer(cache, tmp_path, 1, resume=False)
    trainer.run()
    trainer.network.load_state_dict(weights(tmp_path / "model.pt"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt", "model_last.pt", "resume.pt"]


def test_best_model_outlives_a_restart(tmp_path: Path) -> None:
    network = nn.Linear(1, 1, bias=False)
    scores = iter([0.5, 0.9, 0.7, 0.8])

    def run(epochs: int, resume: bool) -> None:
        evaluator = SimpleNamespace(state=SimpleNamespace(best_metric=-1, best_metric_epoch=-1))

        def step(engine: Engine, batch: int) -> None:
            network.weight.data.fill_(engine.state.epoch)
            score = next(scores)
            if score > evaluator.state.best_metric:
                evaluator.state.best_metric, evaluator.state.best_metric_epoch = score, engine.state.epoch

        engine = Engine(step)
        Checkpoints(tmp_path, network, {}, evaluator=evaluator, resume=resume).attach(engine)
        engine.run([0], max_epochs=epochs)

    run(2, resume=False)
    run(4, resume=True)
    assert weights(tmp_path / "model.pt")["weight"].item() == 2
    assert weights(tmp_path / "model_last.pt")["weight"].item() == 4


def test_state_of_another_configuration_is_refused(cache: SliceCache, tmp_path: Path) -> None:
    make_trainer(cache, tmp_path, 1, resume=False).run()
    network = nn.Linear(1, 1)
    engine = Engine(lambda engine, batch: None)
    Checkpoints(tmp_path, network, {"optimizer": torch.optim.SGD(network.parameters())}, resume=True).attach(engine)
    with pytest.raises(ValueError, match="output_dir"):
        engine.run([0], max_epochs=2)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"training data": "x"}, "other training data:"),
        ({"validation data": "x", "preprocessing": "y"}, "other validation data and preprocessing:"),
    ],
)
def test_other_data_are_refused(cache: SliceCache, tmp_path: Path, changed: dict[str, str], named: str) -> None:
    data = {"training data": "a", "validation data": "b", "preprocessing": "c"}
    make_trainer(cache, tmp_path, 1, resume=False, data=data).run()
    before = weights(tmp_path / "model.pt")
    with pytest.raises(ValueError, match=f"{named}.*--output_dir"):
        make_trainer(cache, tmp_path, 2, resume=True, data={**data, **changed}).run()
    assert all(torch.equal(before[key], kept) for key, kept in weights(tmp_path / "model.pt").items())
    resumed = make_trainer(cache, tmp_path, 2, resume=True, data=data)
    resumed.run()
    assert resumed.state.epoch == 2


def test_another_epoch_length_is_refused(cache: SliceCache, tmp_path: Path) -> None:
    make_trainer(cache, tmp_path, 1, resume=False).run()
    trainer = make_trainer(cache, tmp_path, 2, resume=True)
    trainer.state.epoch_length = 5
    with pytest.raises(ValueError, match="3 steps per epoch, this run has 5"):
        trainer.run()


def test_earlier_runs_are_set_aside_not_overwritten(tmp_path: Path) -> None:
    assert set_aside(tmp_path) is None
    for number in (1, 2):
        (tmp_path / "model.pt").write_text(f"run {number}")
        (tmp_path / "tensorboard").mkdir()
        (tmp_path / "notes.txt").write_text("mine")
        assert set_aside(tmp_path) == tmp_path / f"earlier_{number}"
    assert (tmp_path / "earlier_1" / "model.pt").read_text() == "run 1"
    assert (tmp_path / "earlier_2" / "model.pt").read_text() == "run 2"
    assert (tmp_path / "notes.txt").exists()
    # A copy: the new training may read it, and writes its own.
    (tmp_path / "model.pt").write_text("run 3")
    (tmp_path / "split_used.json").write_text("{}")
    set_aside(tmp_path)
    assert (tmp_path / "earlier_3" / "split_used.json").exists()
    assert (tmp_path / "split_used.json").exists()
    assert set_aside(tmp_path) is None
    assert not (tmp_path / "tensorboard").exists()
