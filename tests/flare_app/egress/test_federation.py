"""Whole jobs in one process, results passing the sites' and the job's filters as in FLARE."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nvflare.apis.dxo import from_shareable
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import Shareable
from nvflare.private.privacy_manager import PrivacyManager

from flare_app.egress import read_manifest
from flare_app.egress.summary import summarise
from flare_app.exchange import rows_in
from flare_app.records import read_rounds
from tests.flare_app.loopback import Federation

SITES = ["site-1", "site-2", "site-3"]
WEIGHTS = {"encoder.weight": (8, 8), "encoder.bias": (8,)}


def _lines(federation: Federation, site: str) -> list[dict[str, Any]]:
    return read_manifest(federation.engines[site].root / "egress" / f"{site}.jsonl")[0]


def _rows(federation: Federation, site: str) -> int:
    replies = [reply for name, _, reply in federation.replies if name == site and "DXO" in reply]
    return sum(rows_in(from_shareable(reply)) for reply in replies)


@pytest.mark.parametrize("route", ["peer", "relay"])
def test_job_policy_lets_a_whole_job_through_and_the_manifest_has_all_of_it(tmp_path: Path, route: str) -> None:
    federation = Federation(
        tmp_path, SITES, {"exchange": "features", "route": route}, job_policy={"features": ["features"]}
    ).run()
    assert federation.panics == []
    for site in SITES:
        lines = _lines(federation, site)
        assert {line["event"] for line in lines} == {"sent"}
        totals = summarise(lines, "name")
        assert {name: total.bytes for name, total in totals.items() if name in WEIGHTS} == {
            "encoder.weight": 256 * (2 + (site == "site-1")),  # the first site gives the initial weights as well
            "encoder.bias": 32 * (2 + (site == "site-1")),
        }
        assert totals["features"].rows == _rows(federation, site) == 16 * 2 * (1 if route == "relay" else 2)
        receivers = {line["to"] for line in lines if line["name"] == "features"}
        assert receivers == ({"server"} if route == "relay" else set(SITES) - {site})


@pytest.mark.parametrize("route", ["peer", "relay"])
@pytest.mark.parametrize("job_policy", [None, {}])
def test_site_whose_scope_forbids_features_takes_part_with_weights_and_nothing_else_leaves_it(
    tmp_path: Path, privacy_manager: Callable[[str], PrivacyManager], route: str, job_policy: dict[str, Any] | None
) -> None:
    federation = Federation(
        tmp_path,
        SITES,
        {"exchange": "features", "route": route},
        job_policy=job_policy,
        scopes={"site-2": privacy_manager("privacy_weights_only.json").default_scope},
    ).run()
    assert federation.panics == []
    for record in read_rounds(federation.results / "rounds.jsonl")[:2]:
        assert record["accepted"] == SITES
        assert {site: record["sites"][site]["features_from"] for site in SITES} == {
            "site-1": ["site-3"],
            "site-2": ["site-1", "site-3"],
            "site-3": ["site-1"],
        }
    assert (_rows(federation, "site-2"), _rows(federation, "site-1") > 0) == (0, True)
    tensors = {
        name: tuple(tensor.shape)
        for site, task, reply in federation.replies
        if site == "site-2" and task not in ("initialize", "validate")
        for name, tensor in from_shareable(reply).data.items()
        if hasattr(tensor, "shape") and tensor.numel()
    }
    assert tensors == WEIGHTS
    assert {line["event"] for line in _lines(federation, "site-2")} == {"sent", "withheld"}


@pytest.mark.parametrize("route", ["peer", "relay"])
def test_site_that_withholds_features_by_its_settings_shows_none(tmp_path: Path, route: str) -> None:
    federation = Federation(tmp_path, SITES, {"exchange": "features", "route": route})
    local = federation.engines["site-2"].root / "local"
    local.mkdir(parents=True)
    (local / "fcl_site.json").write_text('{"withhold": ["features"]}')
    federation.run()
    assert federation.panics == []
    record = read_rounds(federation.results / "rounds.jsonl")[0]
    assert record["accepted"] == SITES
    assert record["sites"]["site-1"]["features_from"] == ["site-3"]
    assert (_rows(federation, "site-2"), _rows(federation, "site-1") > 0) == (0, True)


def test_violation_ends_the_part_of_the_site_and_the_others_go_on(
    tmp_path: Path, privacy_manager: Callable[[str], PrivacyManager]
) -> None:
    """A method that would report a number for one patient."""
    federation = Federation(
        tmp_path,
        SITES,
        {"num_rounds": 3, "max_offences": 9},
        job_policy={},
        scopes={"site-2": privacy_manager("privacy.json").default_scope},
    )
    executor = federation.executors["site-2"]
    opened = executor._open

    def open_other(*arguments: Any, **keywords: Any) -> None:
        opened(*arguments, **keywords)
        assert executor._participant is not None
        executor._participant.validate = lambda: {"dice_patient007": 0.9, "count": 1.0}  # type: ignore[method-assign]

    executor._open = open_other  # type: ignore[method-assign]
    federation.run()
    assert federation.panics == []
    records = read_rounds(federation.results / "rounds.jsonl")
    assert records[0]["rejected"] == {
        "site-2": "a filter at the site let nothing out (TASK_RESULT_FILTER_ERROR), see the log of that site"
    }
    assert all("site-2" not in record["accepted"] for record in records)
    assert records[2]["accepted"] == ["site-1", "site-3"]
    after = [reply for site, task, reply in federation.replies if site == "site-2" and task != "initialize"]
    assert after
    for reply in after:
        assert _bare(reply) == {"__rc__": ReturnCode.TASK_RESULT_FILTER_ERROR}
    refused = [line for line in _lines(federation, "site-2") if line["event"] == "refused"]
    assert [line["rule"] for line in refused] == ["report.validation", *["stopped"] * (len(after) - 1)]


def _bare(reply: Shareable) -> dict[str, Any]:
    assert set(reply) == {"__headers__"}
    return reply["__headers__"]


def test_paths_that_a_job_sets_are_not_echoed_by_the_sites(tmp_path: Path) -> None:
    overrides = {"batch_size": 4, "dataset_dir": "/data/cardiac"}
    federation = Federation(tmp_path, SITES[:2], executor={"overrides": overrides}, job_policy={}).run()
    assert federation.panics == []
    assert "/data/cardiac" not in str(federation.replies)
