"""What a whole page shows is tested in ``tests/integration/test_reports_in_browser.py``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from flare_app.command.__main__ import main
from flare_app.command.report import describe_run, one_run
from flare_app.records import RoundRecord, SiteRecord, site_states
from flare_app.roster import NO_ANSWER, Roster
from flare_app.state import RunState
from tests.flare_app.fabricated import EXCLUDED, LATE, MIB, write_workspace


def _facts(folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    assert main(["report", str(folder), "--json", *more]) == 0
    return json.loads(capsys.readouterr().out)


def test_facts_for_scripts_are_those_of_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_workspace(tmp_path)
    facts = _facts(tmp_path, capsys)
    assert not (tmp_path / "report.html").exists()
    assert facts["rounds"] == {"done": 5, "total": 5, "ended": True, "failure": None}
    site = facts["sites"]["site-2"]
    assert site["rounds"] == {"answered": 3, "late": 1, "rejected": 0, "resting": 0, "absent": 1, "excluded": 0}
    assert site["bytes"] == {
        "weights_down": 20 * MIB, "weights_up": 15 * MIB, "features_down": 3 * MIB // 2, "features_up": 3 * MIB // 4
    }  # fmt: skip
    # Rounds 1, 4 and 5: 11.0, 10.4 and 10.2 s. Slowest was site-10 in the first (13 s), then site-3 (a second more).
    assert site["seconds"] == pytest.approx((11.0 + 10.4 + 10.2) / 3)
    assert site["waits"] == pytest.approx((2.0 + 1.0 + 1.0) / 3)
    assert facts["sites"]["site-1"]["epsilon"] == pytest.approx(4.0)
    assert facts["seconds"]["rounds"][0] == {
        "round": 1, "all": 14.0, "slowest_site": 13.0, "of_these": {}, "rest": pytest.approx(1.0)
    }  # fmt: skip
    assert facts["metrics"]["loss"]["sites"]["site-10"] == [[1, 5.15], [2, 4.75]]
    assert [done for done, _ in facts["validation"]["partition_knn"]["mean"]] == [0, 1, 2, 3, 4, 5]
    # Another job's lines of the manifest are not counted.
    assert facts["egress"]["site-1"]["server"]["bytes"] == MIB
    assert facts["egress"]["site-1"]["site-3"]["rows"] == 64
    assert [(e["round"], e["site"], e["state"]) for e in facts["reasons"]] == [
        (2, "site-2", "late"), (3, "site-2", "absent"), (3, "site-10", "rejected"),
        (4, "site-10", "rejected"), (5, "site-10", "excluded"), (6, "site-10", "absent"),
    ][:5]  # fmt: skip


def test_a_site_that_tells_no_times_has_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that trains with DP-SGD: not one that took no time, or waited for the others all along."""

    def silence(number: int, record: RoundRecord) -> None:
        record.sites["site-1"].seconds = 0.0

    write_workspace(tmp_path, change=silence)
    site = _facts(tmp_path, capsys)["sites"]["site-1"]
    assert (site["seconds"], site["waits"], site["slices_per_round"]) == (None, None, 48.0)


def test_run_in_progress_with_a_torn_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write_workspace(tmp_path, done=2, total=6)
    log.write_text(log.read_text() + '{"round": 2, "seco')
    facts = _facts(log, capsys)
    assert facts["rounds"]["done"] == 2
    assert facts["warnings"][0] == "In progress, or cut short: 2 of 6 rounds are done."


def _strip(number: int, record: RoundRecord) -> None:
    """One measurement and one site: few figures to draw."""
    record.validation = {}
    record.metrics = {"loss": 1.0} if record.metrics else {}
    record.sites = {"site-1": SiteRecord(metrics=record.metrics, seconds=1.0)}
    record.accepted, record.rejected, record.left_out = ["site-1"], {}, {}


def test_one_round_and_a_final_validation_alone_make_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write_workspace(tmp_path, done=1, total=1, change=_strip)
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"
    lines = log.read_text().splitlines()
    for name, kept in (("round", lines[0]), ("validation", lines[1])):
        log.write_text(kept + "\n")
        assert main(["report", str(log), "--out", str(tmp_path / f"{name}.html")]) == 0
    assert (tmp_path / "round.html").read_text().count("<svg") == 3  # loss, parts, seconds
    assert "<svg" not in (tmp_path / "validation.html").read_text()


def test_failure_collapse_and_a_loss_that_rises_are_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def worsen(number: int, record: RoundRecord) -> None:
        record.metrics |= {"loss": 5.0 + number, "spread": 0.8 / (1 + 2 * number)}
        record.validation["partition_knn"] = 0.7 - 0.1 * number

    write_workspace(tmp_path, done=3, total=5, change=worsen)
    fatal = "ERROR - Aborting current RUN due to FATAL_SYSTEM_ERROR received: too few sites\n"
    (tmp_path / "server/log.txt").write_text(fatal)
    text = "\n".join(_facts(tmp_path, capsys)["warnings"])
    assert "The job failed after 3 rounds: too few sites" in text
    assert "spread fell from 0.8 to 0.16" in text
    assert "The loss did not fall: 5 in the first round, 7 in the last." in text
    assert "partition kNN accuracy was best after 0 rounds (0.700) and is now 0.500." in text


def test_settings_come_from_the_job_and_the_checkpoint(tmp_path: Path) -> None:
    log = write_workspace(tmp_path)
    RunState({"head.weight": torch.zeros(1)}, 5, "abc123").save(log.parent)
    facts = describe_run(one_run(tmp_path)).facts
    assert facts["Configuration hash"] == "abc123"
    assert facts["Changed settings"] == "temperature 0.2, spatial_size [64, 64]"
    assert facts["Federation"] == "exchange features, route peer"
    assert "torch " in facts["Versions of the run"]
    assert facts["Checkpoint"].startswith("rounds 5")


def test_a_downloaded_result_is_found_with_its_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write_workspace(tmp_path / "made")
    result = tmp_path / "results" / "41aa0884"
    (result / "workspace").mkdir(parents=True)
    log.parent.rename(result / "workspace" / "fcl")
    made = tmp_path / "made/server/simulate_job"
    (result / "job/fcl_pretrain/app").mkdir(parents=True)
    (made / "app_server/config").rename(result / "job/fcl_pretrain/app/config")
    (result / "workspace/meta.json").write_text(json.dumps({"name": "fcl_pretrain", "job_id": "41aa0884"}))
    facts = _facts(tmp_path / "results", capsys)
    assert (facts["rounds"]["total"], facts["configuration"]["job_id"]) == (5, "41aa0884")
    assert facts["egress"] is None


def test_checkpoints_find_the_job_that_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write_workspace(tmp_path)
    kept = tmp_path / "checkpoints" / "server"
    kept.mkdir(parents=True)
    log.rename(kept / "rounds.jsonl")
    (config,) = tmp_path.rglob("config_fed_server.json")
    arguments = {"num_rounds": 7, "checkpoint_dir": str(tmp_path / "checkpoints")}
    config.write_text(json.dumps({"workflows": [{"args": arguments}]}))
    assert _facts(tmp_path, capsys)["rounds"]["total"] == 7
    arguments["checkpoint_dir"] = "checkpoints/elsewhere"
    config.write_text(json.dumps({"workflows": [{"args": arguments}]}))
    assert _facts(tmp_path, capsys)["rounds"]["total"] is None


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, r"no rounds\.jsonl in .*checkpoint_dir"),
        (
            lambda folder: (folder / "rounds.jsonl").write_text(""),
            r"rounds\.jsonl: empty\. The server writes the first",
        ),
        (
            lambda folder: [write_workspace(folder / name, total=total) for name, total in (("a", 5), ("b", 6))],
            r"holds 2 runs; name one of them",
        ),
        (lambda folder: folder.rmdir(), "does not exist"),
    ],
)
def test_what_is_no_run_is_told_with_the_way_out(
    prepare: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    prepare(folder)
    assert main(["report", str(folder)]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error


def test_a_copy_of_a_log_is_no_other_run(tmp_path: Path) -> None:
    log = write_workspace(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/rounds.jsonl").write_bytes(log.read_bytes())
    assert one_run(tmp_path).log == log


def test_states_follow_the_words_that_the_server_uses() -> None:
    roster = Roster(["a", "b"], 2, {"a": 2})
    roster.lose("b", LATE)
    assert roster.left_out == {"a": EXCLUDED, "b": LATE}
    assert LATE.startswith(NO_ANSWER)
    rejected = {"d": LATE, "e": "not finite"}
    line = {"accepted": ["c"], "rejected": rejected, "left_out": roster.left_out, "resting": ["f"]}
    states = {"a": "excluded", "b": "absent", "c": "answered", "d": "late", "e": "rejected", "f": "resting"}
    assert site_states(line) == states
