from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from flare_app.egress import Manifest, read_manifest
from flare_app.egress.__main__ import main
from flare_app.egress.summary import Total, summarise


def _line(event: str = "sent", **changes: Any) -> dict[str, Any]:
    common = {
        "time": "2026-11-21T14:00:00Z",
        "id": "a",
        "job": "0123456789",
        "round": 0,
        "task": "train",
        "to": "server",
    }
    return {**common, "policy": "p", "by": "site", "event": event, **changes}


def _tensor(name: str = "features", count: int = 10, size: int = 100, **changes: Any) -> dict[str, Any]:
    return _line(name=name, shape=[count], dtype="float16", count=count, bytes=size, **changes)


def test_lines_of_many_threads_stay_whole(tmp_path: Path) -> None:
    file = tmp_path / "egress/hospital.jsonl"
    manifests = [Manifest(file), Manifest(file)]  # two jobs at one site

    def work(worker: int) -> None:
        for number in range(10):
            manifests[worker % 2].append([_line(worker=worker, number=number), _line(worker=worker, number=number)])

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines, damaged = read_manifest(file)
    assert damaged == 0
    assert len(lines) == 80
    assert all(first["worker"] == second["worker"] for first, second in zip(lines[::2], lines[1::2], strict=True))


def test_line_cut_short_by_a_crash_costs_only_itself(tmp_path: Path) -> None:
    file = tmp_path / "m.jsonl"
    file.write_text(json.dumps(_line()) + '\n{"event": "se')
    Manifest(file).append([_line(number=2)])
    lines, damaged = read_manifest(file)
    assert (len(lines), lines[1]["number"], damaged) == (2, 2, 1)


def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "write", lambda descriptor, text: len(text) - 1)
    with pytest.raises(OSError, match="is the disk full"):
        Manifest(tmp_path / "m.jsonl").append([_line()])


LINES = [
    _tensor(to="b", epsilon=1.0, id="1"),
    _tensor("partition", 10, 20, to="b", epsilon=1.0, id="1"),
    _tensor(to="c", round=1, epsilon=2.0, id="2"),
    _tensor("encoder.weight", 7, 28, id="3"),
    _line(name="report", keys=["count"], id="3"),
    _tensor("encoder.weight", 7, 28, round=1, id="4"),
    _line("refused", by="job", rule="report.keys", why="undeclared", round=1, id="4"),
    _line("withheld", name="features", why="the policy shows no features", to="b", round=1, id="5"),
    _line("refused", rule="stopped", why="...", round=1, id="6"),
]


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        (
            "peer",
            {
                "b": Total(tensors=2, rows=10, bytes=120, epsilon=1.0, withheld=1),
                "c": Total(tensors=1, rows=10, bytes=100, epsilon=2.0),
                "server": Total(tensors=1, bytes=28, reports=1, refused=2),
            },
        ),
        (
            "round",
            {
                "01234567 0": Total(tensors=3, rows=10, bytes=148, reports=1, epsilon=1.0),
                "01234567 1": Total(tensors=1, rows=10, bytes=100, epsilon=2.0, withheld=1, refused=2),
            },
        ),
    ],
)
def test_summary_counts_what_left_and_not_what_the_job_took_back(by: str, expected: dict[str, Total]) -> None:
    assert summarise(LINES, by) == expected


def test_command_shows_the_table_and_why_something_was_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    file = tmp_path / "m.jsonl"
    Manifest(file).append(LINES)
    assert main([str(file)]) == 1
    shown = capsys.readouterr().out
    assert "server" in shown
    assert "rule report.keys: undeclared" in shown
    assert main([str(file), "--json", "--by", "name"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["totals"]["features"]["rows"] == 20
    assert [line["rule"] for line in document["refused"]] == ["report.keys"]
    Manifest(tmp_path / "good.jsonl").append(LINES[:5])
    assert main([str(tmp_path / "good.jsonl")]) == 0


def test_missing_manifest_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(tmp_path / "none.jsonl")])
    assert "none.jsonl is no file" in capsys.readouterr().err
