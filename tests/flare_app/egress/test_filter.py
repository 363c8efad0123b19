from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from nvflare.apis.dxo import DataKind, from_shareable
from nvflare.apis.filter import FilterChainType, FilterContextKey, FilterSource
from nvflare.apis.fl_constant import FLContextKey, ProcessType
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

from flare_app.egress import EgressError, EgressFilter, EgressPolicy, read_manifest
from flare_app.egress.declared import Declared
from flare_app.exchange import rows_in
from flare_app.peers import UNKNOWN
from flare_app.protocol import Header, refusal, with_report
from tests.flare_app.egress.payloads import egress_filter, features, introduction, train_report, weights, with_headers
from tests.flare_app.loopback import FakeEngine, asking


class Site:
    """A site whose results pass some filters, in the order given; it has started."""

    def __init__(self, root: Path, *filters: EgressFilter, starts: bool = True) -> None:
        self.engine, self.filters, self.root = FakeEngine(root), filters, root
        self._before = 0
        if starts:
            self.send("initialize", introduction())
            self._before = len(self.lines)

    def context(self, task: str, by: str) -> FLContext:
        fl_ctx = self.engine.context("hospital-a")
        fl_ctx.set_prop(FLContextKey.TASK_NAME, task, private=True, sticky=False)
        fl_ctx.set_peer_context(FakeEngine(self.root).context(by))
        return fl_ctx

    def send(self, task: str, payload: Shareable, by: str | None = None) -> Shareable:
        by = by or ("hospital-b" if task == "get_features" else "server")
        fl_ctx = self.context(task, by)
        with asking(fl_ctx, by):
            for entry in self.filters:
                payload = entry.process(payload, fl_ctx)
        return payload

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Of the manifest, since the start."""
        return read_manifest(self.root / "egress" / "hospital-a.jsonl")[0][self._before :]


def test_every_tensor_is_noted_before_it_leaves_with_what_a_governance_lead_asks(tmp_path: Path) -> None:
    site = Site(tmp_path, egress_filter())
    site.send("get_features", with_headers(features(epsilon=2.0), **{Header.ROUND: 5}))
    site.send("train", with_headers(weights(report=train_report()), **{Header.ROUND: 5}))
    first, second, *rest = site.lines
    assert len(first.pop("time")) == len("2026-01-01T00:00:00Z")
    assert first.pop("id") == second["id"] != rest[0]["id"]
    assert first == {
        "job": "job",
        "round": 5,
        "task": "get_features",
        "to": "hospital-b",
        "policy": EgressPolicy().digest,
        "by": "site",
        "event": "sent",
        "name": "features",
        "shape": [8, 6],
        "dtype": "float16",
        "count": 8,
        "bytes": 96,
        "kind": "features",
        "volumes": 3,
        "epsilon": 2.0,
    }
    assert [line["name"] for line in rest] == ["encoder.weight", "head.0.bias", "report"]
    assert {line["to"] for line in rest} == {"server"}


@pytest.mark.parametrize(
    ("sources", "writers"),
    [
        ((FilterSource.JOB,), {"job"}),
        ((FilterSource.SITE,), {"site"}),
        ((FilterSource.SITE, FilterSource.JOB), {"site"}),
    ],
)
def test_site_and_job_filter_write_a_payload_once(tmp_path: Path, sources: tuple[str, ...], writers: set[str]) -> None:
    site = Site(tmp_path, *(egress_filter(source=source) for source in sources))
    site.send("get_features", features())
    assert len(site.lines) == 2
    assert {line["by"] for line in site.lines} == writers


def test_no_mark_in_the_context_keeps_the_sites_filter_from_writing(tmp_path: Path) -> None:
    site = Site(tmp_path, egress_filter())
    fl_ctx = site.context("get_features", "hospital-b")
    fl_ctx.set_prop("fcl_egress_logged", "forged", private=True, sticky=False)
    with asking(fl_ctx, "hospital-b"):
        site.filters[0].process(features(), fl_ctx)
    assert [line["by"] for line in site.lines] == ["site", "site"]
    assert site.lines[0]["id"] != "forged"


def test_what_the_jobs_filter_takes_out_after_the_sites_is_noted_under_the_same_id(tmp_path: Path) -> None:
    site = Site(tmp_path, egress_filter(), egress_filter({"features": []}, FilterSource.JOB))
    site.send("get_features", features())
    assert [(line["by"], line["event"]) for line in site.lines][2:] == [
        ("job", "withheld"),
        ("job", "sent"),
        ("job", "sent"),
    ]
    assert len({line["id"] for line in site.lines}) == 1


@pytest.mark.parametrize("source", [FilterSource.SITE, FilterSource.JOB])
def test_violation_stops_everything_after_it_whichever_filter_met_it(
    tmp_path: Path, source: str, caplog: pytest.LogCaptureFixture
) -> None:
    strict = egress_filter({"metrics": ["mean_dice", "count"]}, source)
    site = (
        Site(tmp_path, egress_filter(), strict)
        if source == FilterSource.JOB
        else Site(tmp_path, strict, egress_filter())
    )
    site.send("validate", with_report({"validation": {"mean_dice": 0.5}}))
    with pytest.raises(EgressError, match=r"rule 'report\.metrics'"):
        site.send("train", weights(report=train_report()))
    assert f"refused by the {source}'s policy: report.metrics: undeclared metrics 'loss'" in caplog.text
    assert "nothing leaves this site any more in this run" in caplog.text
    for task, payload in (
        ("validate", with_report({"validation": {"mean_dice": 0.5}})),
        ("get_features", features()),
        ("train", refusal("an error")),
    ):
        with pytest.raises(EgressError, match="rule 'stopped'"):
            site.send(task, payload)
    refused = [line for line in site.lines if line["event"] == "refused"]
    assert [line["rule"] for line in refused] == ["report.metrics", "stopped", "stopped", "stopped"]
    assert refused[0]["by"] == source


def test_what_one_filter_stopped_stays_stopped_for_one_that_met_nothing(tmp_path: Path) -> None:
    """In a job that encrypts weights, one filter of the job's serves the tasks that the other does not."""
    first, second = (egress_filter(source=FilterSource.JOB) for _ in range(2))
    site = Site(tmp_path, first)
    with pytest.raises(EgressError, match=r"report\.validation"):
        site.send("validate", with_report({"validation": {"dice_patient007": 0.5}}))
    site.filters = (second,)
    with pytest.raises(EgressError, match="rule 'stopped'"):
        site.send("train", weights())


@pytest.mark.parametrize(
    ("task", "by"),
    [
        *((task, by) for task in ("initialize", "train", "validate", "statistics") for by in ("hospital-b", UNKNOWN)),
        ("get_features", "server"),
        ("get_features", UNKNOWN),
    ],
)
def test_peers_get_features_and_the_server_gets_all_else(tmp_path: Path, task: str, by: str) -> None:
    site = Site(tmp_path, egress_filter())
    with pytest.raises(EgressError, match="rule 'asker'"):
        site.send(task, features() if task == "get_features" else weights(), by=by)
    site.send("train", weights())  # it cannot make this site stop, either
    assert [line["to"] for line in site.lines] == [by, "server", "server"]


def test_what_an_asker_says_of_itself_counts_for_nothing(tmp_path: Path) -> None:
    guard = egress_filter()
    fl_ctx = Site(tmp_path, guard).context("train", by="server")  # no FQSN among its properties, as the server's
    with asking(fl_ctx, "hospital-b"), pytest.raises(EgressError, match="rule 'asker'"):
        guard.process(weights(), fl_ctx)


@pytest.mark.parametrize(
    "reply",
    [
        with_headers(features(), **{Header.ROUND: 3.0}),
        with_headers(refusal("no features"), **{Header.ROUND: 2**60}),
        with_headers(features(), volume_names=["patient007"]),
        features(names=torch.zeros(8)),
        features(rows=5000),
        with_headers(features(), __rc__=[]),
        with_report({"rows": 3}),
    ],
)
def test_no_reply_to_a_peer_silences_the_site(tmp_path: Path, reply: Shareable) -> None:
    site = Site(tmp_path, egress_filter(), egress_filter(source=FilterSource.JOB))
    with pytest.raises(EgressError):
        site.send("get_features", reply)
    site.send("get_features", features())
    site.send("train", weights())
    assert site.lines[0]["event"] == "refused"
    assert {line["event"] for line in site.lines[1:]} == {"sent"}


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("__study__", "cardiac", True),
        ("volume_names", "patient007", False),
        ("__names__", ["patient007"], False),
        ("__names__", "x" * 257, False),
        ("__names__", "/data/patient007", False),
    ],
)
def test_public_properties_of_the_context_go_along_with_every_message(
    tmp_path: Path, name: str, value: Any, allowed: bool
) -> None:
    guard = egress_filter()
    fl_ctx = Site(tmp_path, guard).context("train", "server")
    fl_ctx.set_prop(name, value, private=False, sticky=False)
    with asking(fl_ctx, "server"):
        if allowed:
            guard.process(weights(), fl_ctx)
        else:
            with pytest.raises(EgressError, match="rule 'context'"):
                guard.process(weights(), fl_ctx)


@pytest.mark.parametrize(
    "payload",
    [Shareable({"DXO": {"kind": ["patient007"], "data": {}, "meta": {}}}), with_headers(weights(), __rc__=[])],
)
def test_payload_that_cannot_even_be_read_stays_and_stops_the_site(tmp_path: Path, payload: Shareable) -> None:
    site = Site(tmp_path, egress_filter())
    with pytest.raises(EgressError, match="unreadable") as error:
        site.send("train", payload)
    assert "patient007" not in str(error.value)
    assert [line["rule"] for line in site.lines] == ["unreadable"]
    with pytest.raises(EgressError, match="stopped"):
        site.send("train", weights())


def test_diverged_training_is_refused_once(tmp_path: Path) -> None:
    site = Site(tmp_path, egress_filter())
    with pytest.raises(EgressError, match=r"weights\.finite"):
        site.send("train", weights(**{"encoder.bias": torch.tensor([1.0, float("nan")])}))
    site.send("train", weights())


def test_site_below_the_least_cohort_sends_no_weights_whatever_it_is_asked(tmp_path: Path) -> None:
    site = Site(tmp_path, egress_filter({"min_training_volumes": 20}), starts=False)
    for task, payload in (
        ("initialize", introduction()),
        ("initial_weights", weights(DataKind.WEIGHTS)),
        ("train", weights(report=train_report())),
    ):
        with pytest.raises(EgressError):
            site.send(task, payload)
    assert [line["rule"] for line in site.lines] == ["weights.cohort", "weights.undeclared", "weights.undeclared"]


def test_weights_are_held_to_what_the_site_declared_when_it_started(tmp_path: Path) -> None:
    site = Site(tmp_path, egress_filter())
    site.send("initialize", introduction())  # as when it takes part again
    with pytest.raises(EgressError, match=r"weights\.shape"):
        site.send("train", weights(**{"encoder.bias": torch.zeros(3)}))


def test_no_mark_in_the_context_changes_what_a_filter_has_seen_declared(tmp_path: Path) -> None:
    site = Site(tmp_path, egress_filter())
    forged = Declared({"encoder.images": (2,)})
    site.context("train", "server").set_prop("fcl_egress_declared", forged, private=True, sticky=True)
    site.send("train", weights())
    with pytest.raises(EgressError, match=r"weights\.names"):
        site.send("train", weights(**{"encoder.images": torch.zeros(2)}))


def test_filter_of_some_tasks_knows_what_the_one_of_the_start_let_out(tmp_path: Path) -> None:
    """As in a job that encrypts weights."""
    first, second = (egress_filter(source=FilterSource.JOB) for _ in range(2))
    site = Site(tmp_path, first)
    site.filters = (second,)
    site.send("train", weights())
    with pytest.raises(EgressError, match=r"weights\.names"):
        site.send("train", weights(**{"encoder.images": torch.zeros(2)}))


def test_withheld_scores_are_logged_and_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    site = Site(tmp_path, egress_filter({"min_validation_volumes": 3}))
    site.send("train", weights(report=train_report()))
    assert [line["event"] for line in site.lines] == ["withheld", "sent", "sent", "sent"]
    assert site.lines[0]["name"] == "validation scores"
    assert "validation scores withheld in 'train': of 2 volumes" in caplog.text


def test_withheld_features_are_logged_and_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    site = Site(tmp_path, egress_filter({"features": []}))
    left = site.send("get_features", features())
    assert rows_in(from_shareable(left)) == 0
    assert [line["event"] for line in site.lines] == ["withheld", "sent", "sent"]
    assert [line["bytes"] for line in site.lines[1:]] == [0, 0]
    assert "features withheld in 'get_features': the policy shows no features" in caplog.text


def test_nothing_leaves_when_the_manifest_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "egress").write_text("a file where the folder should be")
    site = Site(tmp_path, egress_filter(), starts=False)
    with pytest.raises(OSError, match="egress"):
        site.send("get_features", features())


def test_requests_to_peers_are_checked_by_the_same_filter(tmp_path: Path) -> None:
    guard = egress_filter()
    guard.set_prop(FilterContextKey.CHAIN_TYPE, FilterChainType.TASK_DATA_CHAIN)
    site = Site(tmp_path, guard, starts=False)
    request = with_headers(Shareable(), **{Header.ROUND: 3})
    assert site.send("anything", request) is request
    with pytest.raises(EgressError):
        site.send("anything", weights())
    assert [(line["task"], line["to"]) for line in site.lines] == [("request", "peers")]
    with pytest.raises(EgressError, match="stopped"):
        site.send("anything", request)


def test_public_properties_go_along_with_requests_to_peers_too(tmp_path: Path) -> None:
    guard = egress_filter()
    guard.set_prop(FilterContextKey.CHAIN_TYPE, FilterChainType.TASK_DATA_CHAIN)
    fl_ctx = Site(tmp_path, guard, starts=False).context("anything", "server")
    fl_ctx.set_prop("volume_names", "patient007", private=False, sticky=False)
    with pytest.raises(EgressError, match="rule 'context'"):
        guard.process(with_headers(Shareable(), **{Header.ROUND: 3}), fl_ctx)


def test_server_that_shares_a_privacy_json_with_sites_goes_on(tmp_path: Path) -> None:
    site = Site(tmp_path, egress_filter(), starts=False)
    fl_ctx = site.context("train", "server")
    fl_ctx.set_prop(FLContextKey.PROCESS_TYPE, ProcessType.SERVER_JOB, private=True)
    task = weights(**{"any.name": torch.zeros(2)})
    assert site.filters[0].process(task, fl_ctx) is task
    assert not (tmp_path / "egress").exists()


def test_bad_policy_is_refused_when_the_job_or_the_site_is_set_up() -> None:
    with pytest.raises(ValueError, match=r"did you mean 'features'\?"):
        EgressFilter({"feature": []})
