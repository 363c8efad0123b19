from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch.nn.functional import normalize

from fcl.card import card_of
from fcl.data.phantom import generate
from fcl.networks import ContrastiveNetwork, ProjectionHead, UNetEncoder, write_weights
from fcl.privacy import epsilon_of
from fcl.privacy.attacks import Rows
from fcl.privacy.cohort import Cohort, Reading
from fcl.privacy.probe import QUESTIONS, Mode, Settings, epsilon, main, probe, show, write

SETTINGS = Settings(releases=2, rows_per_patient=8, repeats=3, bootstrap=40)
READING = Reading(fold=1, partitions=4, pixdim=(1.5, 1.5), spatial_size=(64, 48), slice_axis=2)
CARD: dict[str, Any] = {
    "spatial_dims": 2,
    "channels": [4, 8],
    "strides": [[2, 2]],
    "norm": "batch",
    "slab_depth": None,
    "feature_length": 8,
    "pixdim": [4.0, 4.0],
    "spatial_size": [32, 48],
    "slice_axis": 2,
    "intensity": {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": 0.0, "a_max": 500.0},
    "labels": {"rv": 1, "myo": 2, "lv": 3},
}


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    """Two sites of six patients, two held out at each, with two volumes of eight slices; patients differ somewhat."""
    generator = torch.Generator().manual_seed(0)
    patient = torch.arange(12).repeat_interleave(16)
    own = torch.randn(12, 16, generator=generator)[patient]
    features = normalize(torch.randn(len(patient), 16, generator=generator) + own, dim=1)
    row, site = torch.arange(len(patient)), torch.arange(12) // 6
    rows = Rows(features, row % 4, patient, site[patient], row // 8)
    return Cohort(rows, torch.rand(12, generator=generator), torch.arange(12) % 6 < 4, site, 4)


def test_plain_features_give_everything_away_and_strong_noise_hides_it(cohort: Cohort) -> None:
    plain, noised = probe(cohort, Mode("features"), SETTINGS), probe(cohort, Mode("features", 100.0), SETTINGS)
    assert plain["member, same scan"].value == 1.0
    assert plain["same patient"].low > 0.6
    assert plain["same patient, other scan"].low > 0.6
    for question in ("member, same scan", "same patient", "hospital"):
        low, high = noised[question].low, noised[question].high
        assert low <= 0.5 <= high, question


def test_modes_answer_what_they_can(cohort: Cohort) -> None:
    answered = {
        mode.name: [question for question, answer in probe(cohort, mode, SETTINGS).items() if answer is not None]
        for mode in (Mode("none"), Mode("prototypes"), Mode("prototypes", 1.0), Mode("control"), Mode("features", 1.0))
    }
    both = ["member, same scan", "member, other scan"]
    assert answered == {
        "none": both[:1],
        "prototypes": [*both, "hospital"],
        "prototypes + noise 1": [*both, "hospital"],
        "control": both,
        "features + noise 1": [*both, "same patient", "hospital"],
    }


def test_epsilon_is_promised_with_noise_alone() -> None:
    assert [epsilon(Mode(kind), SETTINGS) for kind in ("none", "prototypes", "features", "control")] == [None] * 4
    assert epsilon(Mode("features", 1.0), SETTINGS) == pytest.approx(epsilon_of([(1.0, 1.0, 2)], 1e-5))


def test_results_are_the_same_for_a_seed_and_are_written_in_full(cohort: Cohort, tmp_path) -> None:
    mode = Mode("prototypes", 0.5)
    results = [{"mode": mode.name, "epsilon": epsilon(mode, SETTINGS), **probe(cohort, mode, SETTINGS)} for _ in "ab"]
    assert results[0] == results[1]
    write(results[:1], cohort, READING, SETTINGS, tmp_path)
    content = json.loads((tmp_path / "probe.json").read_text())
    assert content["chance_hospital"] == 0.5
    expected = {"fold": 1, "partitions": 4, "pixdim": [1.5, 1.5], "spatial_size": [64, 48], "slice_axis": 2}
    assert content["reading"] == expected
    assert content["modes"][0]["hospital"]["value"] == results[0]["hospital"].value
    with open(tmp_path / "probe.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["question"] for line in lines] == [name for name in QUESTIONS if results[0][name]]
    console = Console(record=True, width=200)
    show(results[:1], cohort, READING, SETTINGS, console)
    text = console.export_text()
    assert "8 patients trained on, 4 held out, 2 sites" in text
    assert "fold 1 held out, 4 partitions, 64 x 48 pixels of 1.5 x 1.5 mm, slices along axis 2" in text
    assert "prototypes + noise 0.5" in text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repeats": 0}, "repeats must be at least 1, got 0"),
        ({"releases": 0}, "releases must be at least 1, got 0"),
        ({"bootstrap": 0}, "bootstrap must be at least 1, got 0"),
        ({"rows_per_patient": -1}, "rows_per_patient must be at least 1, got -1"),
        ({"delta": 0.0}, "above 0 and below 1; got 0.0"),
    ],
)
def test_settings_that_measure_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**settings)


@pytest.mark.parametrize("noise", [-1.0, float("nan"), float("inf")])
def test_noise_that_is_none_is_refused(noise: float) -> None:
    with pytest.raises(ValueError, match=f"finite multiplier, 0 for none; got {noise}"):
        Mode("features", noise)


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    network = ContrastiveNetwork(UNetEncoder(2, 1, (4, 8), "batch"), ProjectionHead(8, out_features=8, batch_norm=True))
    write_weights(tmp_path / "model.pt", network.state_dict(), card_of(CARD))
    return str(tmp_path / "model.pt")


@pytest.fixture
def command(checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("FCL_CACHE_DIR", str(tmp_path / "cache"))
    folder = generate(tmp_path / "data", sites=1, patients=4, folds=4)
    quick = ["--noise", "--repeats", "1", "--bootstrap", "5", "--out", str(tmp_path / "out")]
    return ["--checkpoint", checkpoint, "--dataset_dir", str(folder), "--set", 'device="cpu"', *quick]


def test_images_are_read_as_the_card_says(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    seen = []
    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, given: seen.append(given[0].shape) if isinstance(module, ContrastiveNetwork) else None
    )
    try:
        main([*command, "--set", "fold=2", "--set", "partitions=3"])
    finally:
        hook.remove()
    assert {tuple(shape[1:]) for shape in seen} == {(1, 32, 48)}
    reading = json.loads((tmp_path / "out" / "probe.json").read_text())["reading"]
    expected = {"fold": 2, "partitions": 3, "pixdim": [4.0, 4.0], "spatial_size": [32, 48], "slice_axis": 2}
    assert reading == expected
    assert "fold 2 held out, 3 partitions" in " ".join(capsys.readouterr().out.split())
    assert caplog.text == ""


def test_an_overlay_that_prepares_images_otherwise_is_told(
    command: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        main([*command, "--set", "spatial_size=[32, 32]"])
    assert "was made with spatial_size [32, 48]; [32, 32] is used" in caplog.text
    assert json.loads((tmp_path / "out" / "probe.json").read_text())["reading"]["spatial_size"] == [32, 32]


def test_a_checkpoint_without_a_card_is_told(
    command: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture
) -> None:
    torch.save({}, tmp_path / "bare.pt")
    with pytest.raises(SystemExit):
        main([*command, "--checkpoint", str(tmp_path / "bare.pt")])
    assert "bare.pt has no card: network and grid are as pretrain.json and --set say" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset_dir", "nowhere"], "nowhere: the dataset folder does not exist"),
        (["--dataset_dir", ""], "dataset_dir is not set"),
        (["--data", "nosuch"], "no dataset 'nosuch': give one of acdc, datalist, phantom, sunnybrook"),
        (["--repeats", "0"], "repeats must be at least 1"),
        (["--noise", "-1"], "finite multiplier"),
        (["--set", "channels=[8, 16]"], "channels: its card says [4, 8], the configuration [8, 16]"),
    ],
)
def test_what_cannot_be_probed_is_said_in_a_line(
    command: list[str], options: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as exit:
        main([*command, *options])
    assert exit.value.code == 2
    assert message in capsys.readouterr().err
