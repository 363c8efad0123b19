"""Between sites the server relays what it cannot read: a spy in its process looks for bytes planted by the sites."""

from __future__ import annotations

import json
import random
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.jobs import FAKE
from tests.integration.provisioned import Federation, Result, provisioned

pytestmark = pytest.mark.slow
A, B = "hospital-a", "hospital-b"
MARKED = replace(FAKE, name="marked", config=("configs/fake.json", "configs/marked.json"), rounds=2, validate_every=0)
MARKED = replace(MARKED, best_metric=None)
HERE = Path(__file__).parent
LARGE = 2**20  # bytes of the payloads of round 1, at least; FLARE streams these in chunks


def _marker(round_number: int) -> bytes:
    """The row that all features of a round are, in the half precision in which they travel."""
    signs = random.Random(f"marker of round {round_number}").choices((-1.0, 1.0), k=256)
    return (torch.tensor(signs) / 16).half().numpy().tobytes()


@dataclass(frozen=True)
class Spied:
    """A finished job and what crossed the server between sites meanwhile."""

    result: Result
    messages: list[dict[str, Any]]

    @property
    def found(self) -> set[str]:
        return {name for message in self.messages for name in message["found"]}

    @property
    def bytes(self) -> int:
        return sum(message["bytes"] for message in self.messages)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Spied]]:
    folder = tmp_path_factory.mktemp("secrecy")
    log, clear = folder / "spy.jsonl", folder / "clear"
    texts = {"0": secrets.token_hex(16), "1": secrets.token_hex(256)}
    marks = {
        "request, small": texts["0"].encode(),
        "request, large": texts["1"].encode(),
        "reply, small": _marker(0),
        "reply, large": _marker(1),
    }
    spy = {"PYTHONPATH": str(HERE / "relay_spy")}
    at_server = {**spy, "SPY_FILE": str(log), "SPY_MARKS": json.dumps({n: m.hex() for n, m in marks.items()})}
    at_sites = {**spy, "SPY_REQUESTS": json.dumps(texts), "SPY_CLEAR": str(clear)}

    def run(federation: Federation) -> Spied:
        log.write_text("")
        result = federation.run(MARKED)
        federation.wait_idle()
        messages = [json.loads(line) for line in log.read_text().splitlines()]
        between = [
            line for line in messages if line["from"].startswith("hospital") and line["to"].startswith("hospital")
        ]
        return Spied(result, between)

    env_of = {"localhost": at_server, A: at_sites, B: at_sites}
    with provisioned(folder / "ws", sites=2, env_of=env_of) as federation:
        secure = run(federation)
        clear.touch()
        yield {"secure": secure, "clear": run(federation)}


@pytest.mark.parametrize("mode", ["secure", "clear"])
def test_both_runs_exchange_small_and_large_payloads(runs: dict[str, Spied], mode: str) -> None:
    spied = runs[mode]
    assert spied.result.completed, spied.result.explain()
    for line, rows in zip(spied.result.rounds, (16, 4096), strict=True):
        for site, peer in ((A, B), (B, A)):
            assert line["sites"][site]["features_from"] == [peer]
            assert line["sites"][site]["bytes_features_down"] == rows * (256 * 2 + 2)
    assert spied.bytes > 4 * LARGE


def test_the_spy_reads_everything_when_encryption_is_switched_off(runs: dict[str, Spied]) -> None:
    assert runs["clear"].found == {"request, small", "request, large", "reply, small", "reply, large"}


def test_the_server_can_read_neither_requests_nor_features(runs: dict[str, Spied]) -> None:
    assert runs["secure"].found == set()


def test_both_runs_end_with_the_same_weights(runs: dict[str, Spied]) -> None:
    secure, clear = runs["secure"].result.weights(), runs["clear"].result.weights()
    assert all(torch.equal(secure[name], clear[name]) for name in secure)
