from __future__ import annotations

from pathlib import Path

from flare_app.records import RoundLog, RoundRecord, SiteRecord, read_rounds, summary


def test_lines_of_an_interrupted_round_are_replaced_on_resume(tmp_path: Path) -> None:
    log = RoundLog(tmp_path)
    for number in range(3):
        log.append(RoundRecord(number, seconds=1.0, count=8, sites={"a": SiteRecord(count=number)}))
    with log.file.open("a") as stream:
        stream.write('{"round": 3, "seco')
    assert [line["round"] for line in read_rounds(log.file)] == [0, 1, 2]
    RoundLog(tmp_path, start=2).append(RoundRecord(2, seconds=9.0))
    lines = read_rounds(log.file)
    assert [(line["round"], line["seconds"]) for line in lines] == [(0, 1.0), (1, 1.0), (2, 9.0)]
    assert lines[1]["sites"]["a"]["count"] == 1


def test_final_validations_do_not_outlast_a_resume(tmp_path: Path) -> None:
    log = RoundLog(tmp_path)
    for number in range(4):
        log.append(RoundRecord(number, count=8))
    log.append(RoundRecord(2, validation={"mean_dice": 0.5}))
    log.append(RoundRecord(4, count=8))
    log.append(RoundRecord(5, validation={"mean_dice": 0.6}))
    RoundLog(tmp_path, start=5)
    lines = read_rounds(log.file)
    assert [line["round"] for line in lines] == [0, 1, 2, 3, 4]
    assert all(line["count"] for line in lines)


def test_a_new_run_starts_an_empty_log(tmp_path: Path) -> None:
    RoundLog(tmp_path).append(RoundRecord(0))
    RoundLog(tmp_path)
    assert read_rounds(tmp_path / "rounds.jsonl") == []


def test_summary_is_one_line() -> None:
    record = RoundRecord(1, 12.34, 96, {"loss": 10.123456}, {"knn": 0.66}, ["a", "b", "c"], {"d": "late"})
    assert summary(record, 20, 4, 222.2) == (
        "round 2/20: 3/4 sites, loss 10.12, validation knn 0.66, 12.3 s, about 3 min 42 s left"
    )
