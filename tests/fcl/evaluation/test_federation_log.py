from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fcl.evaluation.federation_log import bytes_per_site, pretraining_curves, read_rounds, trained, validated


def _line(number: int, sites: dict[str, int], **changes: Any) -> dict[str, Any]:
    sent = {
        site: {
            "bytes_weights_down": size,
            "bytes_weights_up": 2 * size,
            "bytes_features_down": 0,
            "bytes_features_up": 1,
        }
        for site, size in sites.items()
    }
    line = {"round": number, "count": 4, "metrics": {"loss": 3.0 - number}, "validation": {"partition_knn": 0.25}}
    return {**line, "sites": sent, **changes}


LINES = [
    _line(0, {"a": 10, "b": 30}),
    _line(1, {"a": 10}, validation={}),
    _line(2, {"a": 99}, count=0, metrics={}, validation={"partition_knn": 0.5}),
]


def test_bytes_of_a_site_are_those_of_all_its_rounds() -> None:
    # Two sites share 50 bytes down; the final validation counts for nothing.
    assert bytes_per_site(LINES) == {"weights_down": 25, "weights_up": 50, "features_down": 0, "features_up": 1.5}
    assert bytes_per_site([]) == dict.fromkeys(("weights_down", "weights_up", "features_down", "features_up"), 0)


def test_training_counts_rounds_done_validation_those_behind_it() -> None:
    assert trained(LINES, "loss", "x").points == [(1, 3.0), (2, 2.0)]
    assert validated(LINES, "partition_knn", "x").points == [(0, 0.25), (2, 0.5)]


def test_only_what_was_measured_is_drawn() -> None:
    drawn = pretraining_curves(LINES, "loss (nats)")
    assert [(title, unit) for title, unit, _ in drawn] == [
        ("Loss", "loss (nats)"), ("Partition kNN", "accuracy (share of slices)"),
    ]  # fmt: skip


def test_line_cut_short_is_left_out_and_faults_are_named(tmp_path: Path) -> None:
    file, problems = tmp_path / "rounds.jsonl", []
    file.write_text("".join(json.dumps(line) + "\n" for line in LINES) + '{"round": 3')
    assert len(read_rounds(file, problems)) == 3
    assert problems == []
    (tmp_path / "bad.jsonl").write_text("{\n")
    (tmp_path / "cut.jsonl").write_text("{")
    (tmp_path / "empty.jsonl").write_text("")
    for name in ("none", "bad", "cut", "empty"):
        assert read_rounds(tmp_path / f"{name}.jsonl", problems) == []
    found = [problem.removeprefix(str(tmp_path)) for problem in problems]
    assert found[0] == "/none.jsonl: missing"
    assert found[1].startswith("/bad.jsonl: not JSON")
    assert found[2:] == ["/cut.jsonl: holds no whole line", "/empty.jsonl: empty"]
