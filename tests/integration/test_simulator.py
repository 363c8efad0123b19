"""The federation as it really runs: FLARE's simulator, a process for each site, a bundle that takes no time."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flare_app.job import RESULTS
from tests.integration.jobs import FAKE
from tests.integration.simulator import Workspace, run_job

SITES = ["site-1", "site-2"]
WEIGHT_BYTES = 4 * (8 * 8 + 8)
FEATURE_BYTES = 16 * (8 * 2 + 2)  # half precision rows, int16 partitions


def _same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("peer")
    return run_job(replace(FAKE, rounds=3, checkpoint_dir=str(folder / "state")), folder / "ws")


def test_peer_run_completes_and_logs_every_round(peer: Workspace) -> None:
    assert peer.code == 0, peer.output
    assert [line["round"] for line in peer.rounds] == [0, 1, 2, 3]
    for line in peer.rounds[:3]:
        assert line["accepted"] == SITES
        assert line["rejected"] == {}
        assert line["count"] == 48
        assert line["seconds"] > 0
        losses = [line["sites"][site]["metrics"]["loss"] for site in SITES]
        assert line["metrics"]["loss"] == pytest.approx(sum(losses) / 2)
    assert "round 3/3: 2/2 sites" in peer.output


def test_bytes_of_weights_and_features_are_logged_per_site(peer: Workspace) -> None:
    for line in peer.rounds[:3]:
        for site, other in zip(SITES, reversed(SITES), strict=True):
            entry = line["sites"][site]
            assert entry["features_from"] == [other]
            assert (entry["bytes_weights_down"], entry["bytes_weights_up"]) == (WEIGHT_BYTES, WEIGHT_BYTES)
            assert (entry["bytes_features_down"], entry["bytes_features_up"]) == (FEATURE_BYTES, FEATURE_BYTES)


def test_one_process_and_one_participant_per_site_for_the_whole_job(peer: Workspace) -> None:
    for site, other in zip(SITES, reversed(SITES), strict=True):
        journal = (peer.site(site) / "journal.txt").read_text().splitlines()
        assert journal[0].startswith("built in ")
        rounds = [text for r in range(3) for text in (f"round {r} of 3", f"16 rows of {other}, round {r}")]
        assert journal[1:] == [*rounds, "round 3 of 3"]


def test_metrics_stream_to_tensorboard_at_the_server(peer: Workspace) -> None:
    for site in SITES:
        events = peer.events(site)
        assert [step for step, _ in events["loss"]] == [0, 1, 2]
        logged = [line["sites"][site]["metrics"]["loss"] for line in peer.rounds[:3]]
        assert [value for _, value in events["loss"]] == pytest.approx(logged)
        assert [step for step, _ in events["validation/mean_dice"]] == [0, 1, 2, 3]


def test_best_checkpoint_is_that_of_the_best_validation_last_round_included(peer: Workspace) -> None:
    dice = [line["validation"]["mean_dice"] for line in peer.rounds]
    assert peer.card("best.pt")["metrics"]["mean_dice"] == max(dice)
    assert peer.card("best.pt")["rounds"] == dice.index(max(dice))
    assert (peer.card()["rounds"], peer.card()["sites"]) == (3, len(SITES))


def test_relayed_failed_and_resumed_run_ends_with_the_bits_of_an_uninterrupted_peer_run(
    peer: Workspace, tmp_path: Path
) -> None:
    job = replace(FAKE, rounds=3, route="relay", checkpoint_dir=str(tmp_path / "state"))
    failed = run_job(job, tmp_path / "failed", env={"FAKE_FAILURES": '{"site-2/2": "raise"}'})
    assert failed.code != 0
    assert "round 3: 1 of 2 sites gave a usable result, 2 are needed" in failed.output
    assert [line["round"] for line in failed.rounds] == [0, 1]
    # The other site had finished the round and saved its state: it must go back by one.
    assert (tmp_path / "state/site-1/round_00003.pt").exists()
    resumed = run_job(replace(job, resume=True), tmp_path / "resumed")
    assert resumed.code == 0, resumed.output
    assert "resuming after 2 rounds" in resumed.output
    assert [line["round"] for line in resumed.rounds] == [0, 1, 2, 3]
    for line in resumed.rounds[:3]:
        for site, other in zip(SITES, reversed(SITES), strict=True):
            entry = line["sites"][site]
            assert entry["features_from"] == [other]
            assert (entry["bytes_features_down"], entry["bytes_features_up"]) == (FEATURE_BYTES, FEATURE_BYTES)
    assert _same(resumed.weights(), peer.weights())
    assert resumed.rounds[3]["validation"] == peer.rounds[3]["validation"]


def test_flares_simulation_environment_gives_the_run_of_the_command(peer: Workspace, tmp_path: Path) -> None:
    """SimEnv of FLARE's recipes and ``nvflare simulator`` run one definition: the same bits come out."""
    program = tmp_path / "run.py"
    program.write_text(
        "from nvflare.recipe import SimEnv\n"
        "from flare_app.job import JobSettings, build_job\n"
        f"job = build_job({replace(FAKE, rounds=3)!r})\n"
        f"SimEnv(num_clients=2, workspace_root={str(tmp_path)!r}).deploy(job)\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(program)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    results = tmp_path / FAKE.name / RESULTS
    assert _same(Workspace(tmp_path, 0, done.stdout, results).weights(), peer.weights())


def test_without_exchange_one_site_may_fail_within_the_quorum_and_its_data_stay_at_home(
    peer: Workspace, tmp_path: Path
) -> None:
    job = replace(FAKE, exchange="none", min_sites=1)
    run = run_job(job, tmp_path / "ws", env={"FAKE_FAILURES": '{"site-2/0": "raise", "site-1/1": "nan"}'})
    assert run.code == 0, run.output
    first, second, _ = run.rounds
    assert (first["accepted"], second["accepted"]) == (["site-1"], ["site-2"])
    assert first["rejected"] == {"site-2": "FileNotFoundError in task 'train', see the log of site-2"}
    # The egress filter of the job has met the NaN before the server could.
    assert second["rejected"] == {
        "site-1": "a filter at the site let nothing out (TASK_RESULT_FILTER_ERROR), see the log of that site"
    }
    assert all(torch.isfinite(tensor).all() for tensor in run.weights().values())
    entry = first["sites"]["site-1"]
    assert (entry["bytes_features_down"], entry["bytes_features_up"], entry["features_from"]) == (0, 0, [])
    # Both jobs begin with the same weights: they differ by the exchange alone.
    assert entry["validation"] == peer.rounds[0]["sites"]["site-1"]["validation"]
    at_server = "".join(file.read_text() for file in (run.root / "server").rglob("*.txt"))
    assert "see the log of site-2" in at_server
    assert "patient007" not in at_server
    assert "patient007" in (run.root / "site-2" / "log.txt").read_text()


def test_fewer_threads_than_clients_are_refused_with_the_fix(tmp_path: Path) -> None:
    run = run_job(FAKE, tmp_path / "ws", threads=1)
    assert run.code != 0
    assert "Run it with -t 2" in run.output
    assert not run.results.exists()
