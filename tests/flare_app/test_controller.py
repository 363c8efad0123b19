from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fcl.networks.weights import read_card, read_weights, write_weights
from flare_app.controller import FCLController
from flare_app.records import read_rounds
from tests.flare_app.loopback import Federation


def _equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_rounds": 0}, "num_rounds must be at least 1"),
        ({"min_sites": 0}, "min_sites and max_offences must be at least 1, got 0 and 2"),
        ({"max_norm_ratio": 0}, "max_norm_ratio must be positive, or None for no limit; got 0"),
        ({"max_update_norm": -1.0}, "max_update_norm must be positive"),
        ({"exchange": "weights"}, "exchange must be one of none, prototypes, features, got 'weights'"),
        ({"route": "pigeon"}, "route must be one of peer, relay, got 'pigeon'"),
        ({"weight_bits": 7}, "weight_bits must be one of 32, 16, 8, 4, got 7"),
        ({"weight_bits": 8, "encryption": "he"}, "encrypted weights cannot travel in 8 bits"),
        ({"feature_bits": 4}, "feature_bits must be one of 16, 8, got 4"),
        ({"fan_out": 0}, "fan_out must be a whole number of at least 1"),
        ({"pull_rows": -1}, "pull_rows must be a whole number of at least 1"),
        ({"task_timeout_s": 0}, "timeouts must be at least 1 s"),
        ({"resume": True}, "resume needs a checkpoint_dir"),
        ({"best_metric": "mean_dice", "validate_every": 0}, "needs validation"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FCLController(**arguments)


@pytest.mark.parametrize("route", ["peer", "relay"])
@pytest.mark.parametrize("exchange", ["none", "prototypes", "features"])
def test_tasks_of_a_round_follow_the_exchange(tmp_path: Path, exchange: str, route: str) -> None:
    federation = Federation(tmp_path, controller={"num_rounds": 1, "exchange": exchange, "route": route}).run()
    assert federation.panics == []
    names = [name for name, _ in federation.asked]
    train = ["train", "train"] if exchange != "none" and route == "relay" else ["train"]
    share = ["share"] if exchange != "none" else []
    assert names == ["initialize", "initial_weights", *share, *train, "validate"]


def test_global_weights_are_the_mean_of_what_the_sites_trained_weighted_by_slices(tmp_path: Path) -> None:
    federation = Federation(tmp_path, controller={"num_rounds": 1, "validate_every": 0})
    slices = {"site-1": 8, "site-2": 40}
    for site, engine in federation.engines.items():
        local = engine.root / "local"
        local.mkdir(parents=True)
        (local / "data.json").write_text(json.dumps({"slices": slices[site]}))
        (local / "fcl_site.json").write_text(json.dumps({"data": str(local / "data.json")}))
    federation.run()
    assert federation.panics == []
    trained = {site: federation.executors[site]._participant.weights() for site in slices}  # type: ignore[union-attr]
    for name, tensor in read_weights(federation.results / "last.pt").items():
        expected = (8 * trained["site-1"][name].double() + 40 * trained["site-2"][name].double()) / 48
        torch.testing.assert_close(tensor, expected.float(), rtol=0, atol=1e-6)
    record = read_rounds(federation.results / "rounds.jsonl")[0]
    losses = [record["sites"][site]["metrics"]["loss"] for site in slices]
    assert record["count"] == 48
    assert record["metrics"]["loss"] == pytest.approx((8 * losses[0] + 40 * losses[1]) / 48)


def test_repeated_run_gives_the_same_bits(tmp_path: Path) -> None:
    first, second = (Federation(tmp_path / name, controller={"exchange": "features"}).run() for name in "ab")
    assert _equal(read_weights(first.results / "last.pt"), read_weights(second.results / "last.pt"))
    other = Federation(tmp_path / "c", controller={"exchange": "features"}, executor={"seed": 1}).run()
    assert not _equal(read_weights(first.results / "last.pt"), read_weights(other.results / "last.pt"))


def test_below_quorum_the_job_fails_with_every_reason_and_keeps_no_untrained_weights(tmp_path: Path) -> None:
    failures = {"fail": {"site-1/0": "nan", "site-2/0": "raise"}}
    federation = Federation(tmp_path, controller={"min_sites": 1}, executor={"overrides": failures}).run()
    assert federation.panics == [
        "round 1: 0 of 2 sites gave a usable result, 1 are needed. "
        "site-1: NaN or infinite values in encoder.bias; "
        "site-2: FileNotFoundError in task 'train', see the log of site-2"
    ]
    assert not (federation.results / "last.pt").exists()


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        ("nan", "NaN or infinite values in encoder.bias"),
        ("shape", "its tensors do not fit the global weights: encoder.bias is float32 [2, 8], not float32 [8]"),
        ("raise", "FileNotFoundError in task 'train', see the log of site-2"),
    ],
)
def test_bad_result_is_rejected_by_name_and_the_average_is_that_of_the_others(
    tmp_path: Path, failure: str, reason: str
) -> None:
    sites = ["site-1", "site-2", "site-3"]
    broken = Federation(tmp_path / "broken", sites, executor={"overrides": {"fail": {"site-2/0": failure}}}).run()
    assert broken.panics == []
    records = read_rounds(broken.results / "rounds.jsonl")
    assert records[0]["rejected"] == {"site-2": reason}
    assert records[0]["accepted"] == ["site-1", "site-3"]
    assert records[1]["accepted"] == sites
    assert broken.controller._state.sites["site-2"] == {"accepted": 1, "rejected": 1}
    one_round = {"num_rounds": 1, "validate_every": 0}
    federation = Federation(tmp_path / "one", sites, one_round, {"overrides": {"fail": {"site-2/0": failure}}}).run()
    first, third = (federation.executors[site]._participant.weights() for site in ("site-1", "site-3"))  # type: ignore[union-attr]
    for name, tensor in read_weights(federation.results / "last.pt").items():
        torch.testing.assert_close(tensor, (first[name] + third[name]) / 2, rtol=0, atol=1e-6)


def test_update_above_the_norm_limit_is_rejected(tmp_path: Path) -> None:
    federation = Federation(tmp_path, controller={"max_update_norm": 1e-6}).run()
    assert "the norm of its update is" in federation.panics[0]


def test_site_without_answer_is_left_out_of_the_round(tmp_path: Path) -> None:
    sites = ["site-1", "site-2", "site-3"]
    controller = {"num_rounds": 1, "exchange": "features", "task_timeout_s": 7}
    federation = Federation(tmp_path, sites, controller, silent={"site-3": ["share"]}).run()
    assert federation.panics == []
    record = read_rounds(federation.results / "rounds.jsonl")[0]
    assert record["rejected"] == {"site-3": "no answer to 'share' within 7 s"}
    assert record["sites"]["site-1"]["features_from"] == ["site-2"]


def test_round_goes_on_with_the_features_that_arrived(tmp_path: Path) -> None:
    sites = ["site-1", "site-2", "site-3"]
    federation = Federation(tmp_path, sites, {"num_rounds": 1, "exchange": "features"})
    federation.silent_peers = {"site-2"}
    federation.run()
    record = read_rounds(federation.results / "rounds.jsonl")[0]
    assert record["accepted"] == sites
    assert {site: record["sites"][site]["features_from"] for site in sites} == {
        "site-1": ["site-3"],
        "site-2": ["site-1", "site-3"],
        "site-3": ["site-1"],
    }
    sent = {site: record["sites"][site]["bytes_features_up"] for site in sites}
    assert sent == {"site-1": 2 * 288, "site-2": 0, "site-3": 2 * 288}


def test_sites_that_cannot_share_features_end_the_job(tmp_path: Path) -> None:
    overrides = {"participant::shares_features": False}
    federation = Federation(tmp_path, controller={"exchange": "features"}, executor={"overrides": overrides}).run()
    assert "all 2 sites: it runs a method that has no features to share: set exchange to 'none'" in federation.panics[0]
    assert ("share", ["site-1", "site-2"]) not in federation.asked


def test_sites_with_other_configurations_end_the_job(tmp_path: Path) -> None:
    federation = Federation(tmp_path, per_site={"site-2": {"seed": 1}}).run()
    assert federation.panics == [
        "start: 1 of 2 sites gave a usable result, 2 are needed. "
        "site-2: it has another version of the bundle or of its config files than the other sites"
    ]


def test_too_few_threads_end_the_job_before_any_task(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    federation.engine.args.threads = 1
    federation.run()
    assert "Run it with -t 2" in federation.panics[0]
    assert federation.asked == []


def test_pretrained_weights_reach_every_site_and_become_the_global_ones(tmp_path: Path) -> None:
    torch.manual_seed(7)
    weights = {"encoder.weight": torch.randn(8, 8), "encoder.bias": torch.randn(8)}
    write_weights(tmp_path / "encoder.pt", weights, {})
    federation = Federation(tmp_path, controller={"num_rounds": 1, "pretrained": str(tmp_path / "encoder.pt")}).run()
    assert federation.panics == []
    for engine in federation.engines.values():
        assert "pretrained" in (engine.root / "job/fcl/journal.txt").read_text()
    record = read_rounds(federation.results / "rounds.jsonl")[0]
    expected = 1.0 / (1.0 + float(weights["encoder.weight"].square().sum()))
    assert record["validation"]["mean_dice"] == pytest.approx(expected)


@pytest.mark.parametrize("best_round", [0, 1, 2, 3])
def test_best_checkpoint_is_chosen_over_all_rounds_the_last_included(tmp_path: Path, best_round: int) -> None:
    federation = Federation(tmp_path, controller={"num_rounds": 3, "best_metric": "score"})
    seen: dict[int, dict[str, torch.Tensor]] = {}
    for site, executor in federation.executors.items():
        original = executor._open

        def opened(
            fl_ctx: Any, threads: Any, executor: Any = executor, original: Any = original, site: str = site
        ) -> None:
            original(fl_ctx, threads)
            participant = executor._participant

            def validate() -> dict[str, float]:
                seen[participant.round] = participant.weights()
                # Only the mean weighted by volumes finds the best: site-2 alone would choose another.
                good = participant.round == best_round
                return {
                    "score": float(good) if site == "site-1" else 0.5 * (not good),
                    "count": 9.0 if site == "site-1" else 1.0,
                }

            counts = {**participant.describe(), "validation_volumes": 9}
            participant.validate, participant.describe = validate, lambda: counts

        executor._open = opened  # type: ignore[method-assign]
    federation.run()
    assert federation.panics == []
    assert read_card(federation.results / "best.pt")["rounds"] == best_round
    assert federation.controller._state.best == {"round": best_round, "value": pytest.approx(0.9)}
    assert _equal(read_weights(federation.results / "best.pt"), seen[best_round])
    assert _equal(read_weights(federation.results / "last.pt"), seen[3])


def test_unknown_best_metric_ends_the_job(tmp_path: Path) -> None:
    federation = Federation(tmp_path, controller={"best_metric": "auc"}).run()
    assert federation.panics == ["best_metric 'auc' is none of the validation metrics ['mean_dice']"]


def test_validation_happens_as_often_as_asked_and_at_the_end(tmp_path: Path) -> None:
    federation = Federation(tmp_path, controller={"num_rounds": 4, "validate_every": 3}).run()
    records = read_rounds(federation.results / "rounds.jsonl")
    assert [bool(record["validation"]) for record in records] == [True, False, False, True, True]


@pytest.mark.parametrize("stop_after", [1, 2])
def test_resume_equals_an_uninterrupted_run(tmp_path: Path, stop_after: int) -> None:
    whole = Federation(tmp_path / "whole", controller={"num_rounds": 4, "exchange": "features"}).run()
    state = str(tmp_path / "state")
    arguments = {"num_rounds": 4, "exchange": "features", "checkpoint_dir": state}
    first = Federation(
        tmp_path / "first", controller=arguments, executor={"checkpoint_dir": state}, silent={"site-2": ["validate"]}
    )
    first.controller.num_rounds = 4
    rounds = first.controller._round

    def interrupted(number: int) -> Any:
        if number == stop_after:
            raise KeyboardInterrupt
        return rounds(number)

    first.controller._round = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        first.run()
    second = Federation(
        tmp_path / "second", controller={**arguments, "resume": True}, executor={"checkpoint_dir": state}
    ).run()
    assert second.panics == []
    assert _equal(read_weights(second.results / "last.pt"), read_weights(whole.results / "last.pt"))
    records = [read_rounds(federation.results / "rounds.jsonl") for federation in (whole, second)]
    for ours, theirs in zip(*records, strict=True):
        assert ours["metrics"] == theirs["metrics"]


def test_checkpoints_of_an_earlier_run_are_not_overwritten(tmp_path: Path) -> None:
    arguments = {"num_rounds": 1, "checkpoint_dir": str(tmp_path / "state")}
    assert Federation(tmp_path / "a", controller=arguments).run().panics == []
    again = Federation(tmp_path / "b", controller=arguments).run()
    assert "holds checkpoints of an earlier run: resume it, or give another checkpoint_dir" in again.panics[0]


def test_resume_of_another_configuration_is_refused(tmp_path: Path) -> None:
    arguments = {"num_rounds": 1, "checkpoint_dir": str(tmp_path / "state")}
    Federation(tmp_path / "a", controller=arguments).run()
    other = Federation(tmp_path / "b", controller={**arguments, "resume": True}, executor={"seed": 5}).run()
    assert "was made with another configuration" in other.panics[0]


def test_damaged_last_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    arguments = {"num_rounds": 3, "checkpoint_dir": state, "validate_every": 0}
    whole = Federation(tmp_path / "a", controller=arguments, executor={"checkpoint_dir": state}).run()
    expected = read_weights(whole.results / "last.pt")
    last = whole.results / "last.pt"
    last.write_bytes(last.read_bytes()[:100])
    resumed = Federation(
        tmp_path / "b", controller={**arguments, "resume": True}, executor={"checkpoint_dir": state}
    ).run()
    assert resumed.panics == []
    assert _equal(read_weights(resumed.results / "last.pt"), expected)


def test_resume_from_checkpoints_that_cannot_be_read_ends_the_job_with_the_reason(tmp_path: Path) -> None:
    arguments = {"checkpoint_dir": str(tmp_path / "state")}
    assert Federation(tmp_path / "a", controller=arguments, executor=arguments).run().panics == []
    for file in (tmp_path / "state/server").glob("*.pt"):
        file.write_bytes(b"cut short")
    (problem,) = Federation(tmp_path / "b", controller={**arguments, "resume": True}, executor=arguments).run().panics
    assert "last.pt" in problem


def test_resume_without_a_checkpoint_ends_the_job_and_leaves_the_states_of_the_sites(tmp_path: Path) -> None:
    arguments, executor = {"checkpoint_dir": str(tmp_path / "state")}, {"checkpoint_dir": str(tmp_path / "state")}
    assert Federation(tmp_path / "a", controller=arguments, executor=executor).run().panics == []
    for file in (tmp_path / "state/server").glob("*.pt"):
        file.unlink()
    resumed = Federation(tmp_path / "b", controller={**arguments, "resume": True}, executor=executor).run()
    assert resumed.panics == [
        f"{tmp_path}/state/server holds no checkpoints to resume from: give the checkpoint_dir of the job to go on "
        "with, or leave out resume to begin anew"
    ]
    assert resumed.asked == []
    assert sorted(file.name for file in (tmp_path / "state/site-1").glob("round_*.pt"))[-1] == "round_00002.pt"


@pytest.mark.parametrize(("joins_in", "resume"), [(0, False), (1, True)])
def test_second_job_in_the_same_folder_is_refused_and_a_later_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, joins_in: int, resume: bool
) -> None:
    monkeypatch.setattr("flare_app.storage._PATIENCE_S", 0.0)
    arguments = {"num_rounds": 3, "checkpoint_dir": str(tmp_path / "state"), "resume": False}
    first = Federation(tmp_path / "first", controller=arguments)
    second = Federation(tmp_path / "second", controller={**arguments, "resume": resume})
    rounds = first.controller._round

    def joined(number: int) -> Any:
        if number == joins_in:
            second.run()
        return rounds(number)

    first.controller._round = joined  # type: ignore[method-assign]
    assert first.run().panics == []
    assert second.panics == [
        f"another job writes to {tmp_path}/state/server: wait for its end, or give this one a checkpoint_dir of its own"
    ]
    assert second.asked == []
    again = Federation(tmp_path / "third", controller={**arguments, "resume": True}).run()
    assert again.panics == []


def test_failed_job_lets_the_next_one_into_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flare_app.storage._PATIENCE_S", 0.0)
    arguments = {"num_rounds": 1, "checkpoint_dir": str(tmp_path / "state")}
    broken = {"overrides": {"fail": {"site-1/0": "raise"}}}
    assert Federation(tmp_path / "a", controller=arguments, executor=broken).run().panics != []
    assert Federation(tmp_path / "b", controller=arguments).run().panics == []


def test_resume_with_fewer_rounds_than_are_done_is_refused_and_the_log_stays(tmp_path: Path) -> None:
    arguments = {"num_rounds": 3, "checkpoint_dir": str(tmp_path / "state")}
    log = Federation(tmp_path / "a", controller=arguments).run().results / "rounds.jsonl"
    before = log.read_text()
    fewer = Federation(tmp_path / "b", controller={**arguments, "num_rounds": 2, "resume": True}).run()
    assert fewer.panics == [
        "the checkpoint to resume from has 3 rounds done, and num_rounds is 2: it counts all rounds, "
        "set it to 3 or more"
    ]
    assert fewer.asked == []
    assert log.read_text() == before
    assert Federation(tmp_path / "c", controller={**arguments, "num_rounds": 4, "resume": True}).run().panics == []
    assert [line["round"] for line in read_rounds(log)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        ({}, {"name": "Adam", "lr": 0.01}, "server_optimizer was None, now {'name': 'Adam', 'lr': 0.01}"),
        ({"name": "Adam", "lr": 0.01}, {}, "server_optimizer was {'name': 'Adam', 'lr': 0.01}, now None"),
        ({"name": "SGD", "lr": 1.0}, {"name": "Adam", "lr": 0.01}, "'lr': 1.0}, now {'name': 'Adam'"),
        ({"name": "Adam", "lr": 0.01}, {"name": "Adam", "lr": 0.1}, "'lr': 0.01}, now {'name': 'Adam', 'lr': 0.1}"),
    ],
)
def test_resume_with_another_optimizer_at_the_server_is_refused_before_any_task(
    tmp_path: Path, before: dict[str, Any], now: dict[str, Any], told: str
) -> None:
    arguments = {"num_rounds": 1, "checkpoint_dir": str(tmp_path / "state")}
    first = {**arguments, "server_optimizer": before or None}
    assert Federation(tmp_path / "a", controller=first).run().panics == []
    other = {**arguments, "num_rounds": 2, "resume": True, "server_optimizer": now or None}
    refused = Federation(tmp_path / "b", controller=other).run()
    assert "was made with another configuration (" in refused.panics[0]
    assert told in refused.panics[0]
    assert refused.asked == []
    assert Federation(tmp_path / "c", controller={**first, "num_rounds": 2, "resume": True}).run().panics == []
