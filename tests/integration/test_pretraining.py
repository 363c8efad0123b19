"""Pre-training of the real bundle in FLARE's simulator, on a small phantom: golden metrics, what exchange changes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fcl.data.phantom import generate
from tests.integration.jobs import PRETRAIN
from tests.integration.simulator import Workspace, run_job

# Made by this test's own run; other CPUs and thread counts move the last digits of a sum, hence the tolerance.
GOLDEN = json.loads((Path(__file__).parent / "golden_pretraining.json").read_text())
SITES = ["site-1", "site-2"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("phantom")
    data = generate(folder / "data", sites=2, patients=3, folds=3, seed=0)
    settings = folder / "site.json"
    settings.write_text(json.dumps({"dataset_dir": str(data), "split_file": str(data / "split.json"), "threads": 1}))
    return {"FCL_SITE_SETTINGS": str(settings), "FCL_CACHE_DIR": str(folder / "cache")}


@pytest.fixture(scope="module")
def runs(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Workspace]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        exchange: run_job(replace(PRETRAIN, exchange=exchange), folder / exchange, env=environment)
        for exchange in ("features", "none")
    }


def test_metrics_are_the_golden_ones(runs: dict[str, Workspace]) -> None:
    assert runs["features"].code == 0, runs["features"].output
    rounds = runs["features"].rounds
    assert [line["accepted"] for line in rounds[:2]] == [SITES, SITES]
    for line, golden in zip(rounds, GOLDEN, strict=True):
        for name, value in golden["metrics"].items():
            assert line["metrics"][name] == pytest.approx(value, rel=0.02, abs=0.02), (line["round"], name)
        assert line["validation"]["partition_knn"] == pytest.approx(golden["partition_knn"], abs=0.1)


def test_with_and_without_exchange_differ_by_the_exchange_only(runs: dict[str, Workspace]) -> None:
    assert runs["none"].code == 0, runs["none"].output
    for shared, alone in zip(runs["features"].rounds[:2], runs["none"].rounds[:2], strict=True):
        assert shared["count"] == alone["count"]
        for site in SITES:
            mine, other = shared["sites"][site], alone["sites"][site]
            assert mine["bytes_features_down"] > 0
            assert mine["bytes_features_up"] > 0
            assert (other["bytes_features_down"], other["bytes_features_up"]) == (0, 0)
            assert mine["bytes_weights_up"] == other["bytes_weights_up"]
            assert mine["metrics"]["bank_remote_rows"] > 0
            assert other["metrics"]["bank_remote_rows"] == 0
    # The weights before the first round are the same, so their validation is; what follows is not.
    assert runs["features"].rounds[0]["validation"] == runs["none"].rounds[0]["validation"]
    with_features, without = runs["features"].weights(), runs["none"].weights()
    assert with_features.keys() == without.keys()
    assert any(not torch.equal(with_features[name], without[name]) for name in with_features)
