from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fcl.card import card_of
from fcl.networks import read_card, write_weights
from flare_app.card import Facts, declaration
from flare_app.protocol import TaskName, report_of
from flare_app.records import RoundRecord, SiteRecord
from tests.flare_app.loopback import Federation

SETTINGS: dict[str, Any] = {"channels": [4, 8], "pixdim": [2.0, 2.0], "data_license": "CC0 1.0", "labels": {"lv": 1}}


def _record(**sites: SiteRecord) -> RoundRecord:
    return RoundRecord(0, accepted=list(sites), sites=sites)


def test_fields_are_those_of_most_sites_and_licences_those_of_all() -> None:
    facts = Facts(exchange="features", route="relay")
    for site, changes in {"c": {}, "a": {"pixdim": [9.0, 9.0]}, "b": {"data_license": "synthetic"}}.items():
        facts.hear(site, {"card": {**SETTINGS, **changes}})
    facts.hear("d", {})
    card = facts.card(rounds=5, sites=3, config_hash="ab")
    assert card["preprocessing"] == {"pixdim": [2.0, 2.0], "labels": {"lv": 1}}
    assert card["data_license"] == "CC0 1.0; synthetic"
    assert card["sites_differ_in"] == ["data_license", "pixdim"]
    assert (card["sites"], card["rounds"], card["exchange"], card["route"]) == (3, 5, "features", "relay")
    assert card["epsilon"] == "none"
    assert {"fcl", "monai", "torch", "nvflare"} == card["versions"].keys()


def test_epsilon_is_the_largest_that_an_accepted_site_reported_last() -> None:
    facts = Facts()
    noised = {"epsilon": 4.0, "delta": 1e-5, "noise_multiplier": 1.0, "releases": 2.0}
    facts.note(_record(a=SiteRecord(privacy=noised), b=SiteRecord()), 0)
    facts.note(_record(a=SiteRecord(privacy={**noised, "epsilon": 5.0}), c=SiteRecord(privacy=noised)), 1)
    refused = RoundRecord(2, sites={"d": SiteRecord(privacy={**noised, "epsilon": 99.0})})
    facts.note(refused, 2)
    facts.note(_record(a=SiteRecord(metrics={"dp_epsilon": 1.5, "dp_delta": 1e-4})), 3)
    assert facts.card(4, 3, "ab")["epsilon"] == {
        "features": {"epsilon": 5.0, "delta": 1e-5, "sites": 2},
        "training": {"epsilon": 1.5, "delta": 1e-4, "sites": 1},
    }


def test_metrics_are_those_of_the_last_validation_and_name_nobody() -> None:
    facts = Facts()
    facts.note(RoundRecord(0, validation={"mean_dice": 0.5, "dice_of_case7": 0.1}), 0)
    facts.note(RoundRecord(1), 1)
    card = facts.card(2, 1, "ab")
    assert (card["metrics"], card["metrics_rounds"]) == ({"mean_dice": 0.5}, 0)


@pytest.mark.parametrize("told", [{"labels": {"patient007": 1}}, {"hospital": "general"}, "general", None])
def test_what_a_site_should_not_tell_is_not_heard(told: Any) -> None:
    facts = Facts()
    facts.hear("a", {"card": told})
    assert facts.declared == {"a": {}}


@pytest.mark.parametrize("asked", [{"channels": ["$__import__('os')"]}, {"run": "$1"}, [1]])
def test_a_site_takes_plain_settings_from_the_server_only(asked: Any) -> None:
    with pytest.raises(ValueError, match="no card holds"):
        declaration(asked)
    assert declaration({"channels": [4, 8]}) == {"channels": [4, 8]}


def _declaring(federation: Federation, card: dict[str, Any]) -> Federation:
    """The fake bundle declares no card: have its sites do it."""
    for executor in federation.executors.values():
        original = executor._open

        def opened(fl_ctx: Any, threads: Any, executor: Any = executor, original: Any = original) -> None:
            original(fl_ctx, threads)
            executor._card = dict(card)

        executor._open = opened  # type: ignore[method-assign]
    return federation


def test_checkpoints_say_what_they_are_and_name_no_site_patient_or_path(tmp_path: Path) -> None:
    sites = ["st-elsewhere", "princeton"]
    controller = {"num_rounds": 2, "exchange": "features", "best_metric": "mean_dice"}
    executor = {"overrides": {"fail": {"princeton/0": "raise"}}}
    federation = Federation(tmp_path, sites, {**controller, "min_sites": 1}, executor, job_policy={})
    _declaring(federation, SETTINGS).run()
    assert federation.panics == []
    reports = [report_of(reply)["card"] for _, task, reply in federation.replies if task == TaskName.INITIALIZE]
    assert reports == [SETTINGS, SETTINGS]
    card = read_card(federation.results / "last.pt")
    assert card["architecture"] == {"channels": [4, 8]}
    assert (card["sites"], card["rounds"], card["metrics_rounds"]) == (2, 2, 2)
    assert card["metrics"].keys() == {"mean_dice"}
    for name in ("last", "best"):
        assert json.loads((federation.results / f"{name}.card.json").read_text()) == read_card(
            federation.results / f"{name}.pt"
        )
        for file in (federation.results / f"{name}.pt", federation.results / f"{name}.card.json"):
            content = file.read_bytes()
            for secret in (*sites, "patient007", str(tmp_path)):
                assert secret.encode() not in content, (file.name, secret)


def test_a_resumed_run_ends_with_the_card_of_an_uninterrupted_one(tmp_path: Path) -> None:
    def run(name: str, rounds: int, **more: Any) -> Federation:
        folder = str(tmp_path / ("state" if more else name))
        controller = {"num_rounds": rounds, "checkpoint_dir": folder, **more}
        made = _declaring(
            Federation(tmp_path / name, controller=controller, executor={"checkpoint_dir": folder}), SETTINGS
        )
        return made.run()

    whole, first = run("whole", 3), run("first", 2, resume=False)
    assert first.panics == []
    resumed = run("second", 3, resume=True)
    assert resumed.panics == []
    ours, theirs = ((made.results / "last.pt").read_bytes() for made in (resumed, whole))
    assert ours == theirs


def test_the_network_of_pretrained_weights_is_told_to_the_sites(tmp_path: Path) -> None:
    weights = {"encoder.weight": torch.eye(8), "encoder.bias": torch.zeros(8)}
    write_weights(tmp_path / "encoder.pt", weights, card_of({**SETTINGS, "norm": "batch"}, rounds=4))
    federation = Federation(tmp_path, controller={"num_rounds": 1, "pretrained": str(tmp_path / "encoder.pt")}).run()
    # The fake bundle has no key for it, and MONAI lets it pass.
    for executor in federation.executors.values():
        assert executor._workflow.parser["from_card"] == {"channels": [4, 8], "norm": "batch"}
    origin = read_card(federation.results / "last.pt")["pretrained"]
    assert origin == {"method": "unknown", "data_license": "CC0 1.0", "rounds": 4}


def test_a_site_may_declare_nothing(tmp_path: Path) -> None:
    federation = Federation(tmp_path, controller={"num_rounds": 1}, job_policy={"card": []})
    local = tmp_path / "site-2/local"
    local.mkdir(parents=True)
    (local / "fcl_site.json").write_text('{"withhold": ["card"]}')
    federation.run()
    assert federation.panics == []
    assert read_card(federation.results / "last.pt")["architecture"] == {}
