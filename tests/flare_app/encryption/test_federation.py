"""Whole loopback federations whose weights are encrypted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fcl.networks.weights import read_card, read_weights
from flare_app.encryption.context import is_encrypted
from flare_app.protocol import TaskName
from flare_app.records import read_rounds
from flare_app.state import BEST, LAST
from tests.flare_app.loopback import Federation

pytest.importorskip("tenseal", reason="tenseal is not installed: pip install 'fcl[he]'")

POLICY: dict[str, Any] = {"features": ["features"]}


def _run(root: Path, encrypted: bool = True, **arguments: Any) -> Federation:
    controller = {"num_rounds": 3, "encryption": "he" if encrypted else "none", **arguments.pop("controller", {})}
    federation = Federation(root, controller=controller, job_policy=POLICY, encrypted=encrypted, **arguments)
    return federation.run()


def _kept(federation: Federation, site: str, name: str = "global.pt") -> dict[str, Tensor]:
    return read_weights(federation.root / site / "job/fcl" / name)


@pytest.mark.parametrize("exchange", ["none", "features"])
def test_ends_with_the_weights_of_a_plain_run_but_for_rounding(startup: Path, tmp_path: Path, exchange: str) -> None:
    controller = {"exchange": exchange, "best_metric": "mean_dice"}
    plain = _run(tmp_path / "plain", encrypted=False, controller=controller)
    secret = _run(tmp_path / "secret", controller=controller)
    assert (plain.panics, secret.panics) == ([], [])
    expected = read_weights(plain.results / LAST)
    for site in secret.sites:
        for name, tensor in _kept(secret, site).items():
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-5)
    best = read_weights(plain.results / BEST)
    for name, tensor in _kept(secret, "site-1", "global_best.pt").items():
        torch.testing.assert_close(tensor, best[name], rtol=0, atol=1e-5)
    rounds = [read_rounds(federation.results / "rounds.jsonl") for federation in (plain, secret)]
    assert [line["accepted"] for line in rounds[0]] == [line["accepted"] for line in rounds[1]]
    assert rounds[1][0]["sites"]["site-1"]["update_norm"] is None
    assert rounds[1][0]["sites"]["site-1"]["bytes_weights_up"] > 2 * 200_000  # two tensors, a ciphertext each


def test_server_gets_and_keeps_ciphertexts_alone(startup: Path, tmp_path: Path) -> None:
    federation = _run(tmp_path, controller={"best_metric": "mean_dice"})
    for name in (LAST, BEST):
        assert all(is_encrypted(tensor) for tensor in read_weights(federation.results / name).values())
    sent = [reply for _, task, reply in federation.replies if task in (TaskName.INITIAL_WEIGHTS, TaskName.TRAIN)]
    assert len(sent) == 1 + 2 * 3
    assert all(is_encrypted(tensor) for reply in sent for tensor in reply["DXO"]["data"].values())
    content = (federation.results / LAST).read_bytes()
    for tensor in _kept(federation, "site-1").values():
        assert tensor.numpy().tobytes()[:16] not in content


def test_finished_model_says_what_it_is(startup: Path, tmp_path: Path) -> None:
    federation = _run(tmp_path, controller={"validate_every": 0})
    card = read_card(tmp_path / "site-2/job/fcl/global.pt")
    server = read_card(federation.results / LAST)
    assert card == server
    assert (card["rounds"], card["sites"]) == (3, 2)
    assert [line["validation"] for line in read_rounds(federation.results / "rounds.jsonl")] == [{}] * 3


def test_resumes_from_ciphertexts(startup: Path, tmp_path: Path) -> None:
    whole = _run(tmp_path / "whole")
    state = {"checkpoint_dir": str(tmp_path / "state")}
    _run(tmp_path / "first", controller={**state, "num_rounds": 2}, executor=state)
    resumed = _run(tmp_path / "second", controller={**state, "resume": True}, executor=state)
    assert resumed.panics == []
    assert len(read_rounds(resumed.results / "rounds.jsonl")) == 4
    model = read_weights(tmp_path / "state/site-1/global.pt")
    for name, tensor in _kept(whole, "site-1").items():
        torch.testing.assert_close(model[name], tensor, rtol=0, atol=1e-5)


def test_plain_job_does_not_resume_from_ciphertexts(startup: Path, tmp_path: Path) -> None:
    state = {"checkpoint_dir": str(tmp_path / "state")}
    _run(tmp_path / "first", controller=state, executor=state)
    plain = _run(tmp_path / "second", encrypted=False, controller={**state, "resume": True}, executor=state)
    assert "was made with encryption of weights" in plain.panics[0]


def test_site_that_claims_more_slices_than_it_has_is_no_part_of_the_average(startup: Path, tmp_path: Path) -> None:
    controller = {"num_rounds": 2, "encryption": "he", "min_sites": 1}
    federation = Federation(tmp_path, controller=controller, job_policy=POLICY, encrypted=True)
    answered = federation._answered

    def answer(site: str, name: str, *rest: Any) -> Any:
        reply = answered(site, name, *rest)
        if (site, name) == ("site-2", TaskName.TRAIN):
            reply["DXO"]["meta"]["report"]["count"] = 2**63
        return reply

    federation._answered = answer  # type: ignore[method-assign]
    federation.run()
    assert federation.panics == []
    first = read_rounds(federation.results / "rounds.jsonl")[0]
    assert (first["accepted"], first["count"]) == (["site-1"], 24)
    assert "more than the 24 that it can have" in first["rejected"]["site-2"]


@pytest.mark.parametrize("failure", ["nan", "huge"])
def test_update_that_would_spoil_the_average_does_not_leave_the_site(
    startup: Path, tmp_path: Path, failure: str
) -> None:
    controller = {"min_sites": 1}
    federation = _run(tmp_path, controller=controller, executor={"overrides": {"fail": {"site-2/1": failure}}})
    assert federation.panics == []
    _, second, third = read_rounds(federation.results / "rounds.jsonl")[:3]
    assert second["accepted"] == ["site-1"]
    assert "a filter at the site let nothing out" in second["rejected"]["site-2"]
    # The egress filter finds NaN before the encryptor does. What that refuses, a site refuses once.
    assert third["accepted"] == (["site-1", "site-2"] if failure == "nan" else ["site-1"])
    assert all(torch.isfinite(tensor).all() for tensor in _kept(federation, "site-1").values())


def test_server_without_context_starts_nothing(tmp_path: Path, use: Callable[[Path], None]) -> None:
    use(tmp_path)
    federation = _run(tmp_path)
    assert "the server cannot average encrypted weights: the startup kit has no server_context" in federation.panics[0]
    assert federation.asked == []


def test_sites_without_context_say_so(contexts: Path, tmp_path: Path, use: Callable[[Path], None]) -> None:
    (tmp_path / "server_context.tenseal").write_bytes((contexts / "server_context.tenseal").read_bytes())
    use(tmp_path)
    federation = _run(tmp_path)
    assert "start: 0 of 2 sites gave a usable result" in federation.panics[0]
    assert "all 2 sites: it cannot encrypt weights: the startup kit has no client_context" in federation.panics[0]
    assert {task for task, _ in federation.asked} == {TaskName.INITIALIZE}


def test_weights_in_clear_are_no_start_for_the_others(
    startup: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    controller = {"num_rounds": 1, "encryption": "he", "min_sites": 1}
    federation = Federation(tmp_path, controller=controller, encrypted=True)
    del federation.ciphers["site-1"]
    federation.run()
    assert federation.panics == []
    assert [site for task, (site, *_) in federation.asked if task == TaskName.INITIAL_WEIGHTS] == ["site-1", "site-2"]
    assert read_rounds(federation.results / "rounds.jsonl")[0]["accepted"] == ["site-2"]
    assert all(is_encrypted(tensor) for tensor in read_weights(federation.results / LAST).values())


@pytest.mark.parametrize("silent", [["site-2"], ["site-1", "site-2"]])
def test_job_fails_when_no_site_keeps_the_model(startup: Path, tmp_path: Path, silent: list[str]) -> None:
    controller = {"validate_every": 0}
    federation = _run(tmp_path, controller=controller, silent={site: ["validate/3"] for site in silent})
    kept = [site for site in federation.sites if (tmp_path / site / "job/fcl/global.pt").exists()]
    assert kept == [site for site in federation.sites if site not in silent]
    assert [panic[:30] for panic in federation.panics] == ([] if kept else ["no site kept the last model, w"])
