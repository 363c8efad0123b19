from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from flare_app.meter import Meter
from flare_app.records import RoundRecord
from flare_app.rounds_view import look_at_rounds

from .fabricated import write_workspace


def _shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_job_that_has_just_begun_has_nothing_to_show(tmp_path: Path) -> None:
    assert look_at_rounds(tmp_path / "rounds.jsonl", 3) == (0, "", None, None)
    (tmp_path / "rounds.jsonl").write_text('{"round": 0, "cou')
    assert look_at_rounds(tmp_path / "rounds.jsonl", 3).done == 0


def test_latest_values_and_who_is_missing(tmp_path: Path) -> None:
    look = look_at_rounds(write_workspace(tmp_path / "a", done=2, total=6), 6)
    assert look[:3] == (2, "loss 4.600, partition kNN 0.460, 3/4 sites (site-2 late)", 4 * 14.0)
    # The line of the final validation is no round, but its values are the latest.
    whole = look_at_rounds(write_workspace(tmp_path / "b", done=5, total=5), 5)
    assert whole[:3] == (5, "loss 3.400, partition kNN 0.700, 3/4 sites (site-10 excluded)", 0.0)


def test_sites_whose_turn_it_is_not_are_none_that_are_missing(tmp_path: Path) -> None:
    def rest(number: int, record: RoundRecord) -> None:
        record.accepted, record.rejected, record.left_out = ["site-1", "site-3"], {}, {}
        record.resting = ["site-2", "site-10"]

    look = look_at_rounds(write_workspace(tmp_path, done=2, total=6, change=rest), 6)
    assert look[1] == "loss 4.600, partition kNN 0.460"
    console = Console(file=io.StringIO(), width=120)
    console.print(look.below)
    assert [line.split()[:2] for line in _shown(console).splitlines() if "resting" in line] == [
        ["site-2", "resting"],
        ["site-10", "resting"],
    ]


def test_a_site_that_tells_no_time_has_none_in_the_table(tmp_path: Path) -> None:
    def silence(number: int, record: RoundRecord) -> None:
        record.sites["site-3"].seconds = 0.0

    console = Console(file=io.StringIO(), width=120)
    console.print(look_at_rounds(write_workspace(tmp_path, done=2, total=6, change=silence), 6).below)
    (row,) = [line.split() for line in _shown(console).splitlines() if "site-3" in line]
    assert row[1:5] == ["answered", "64", "5.50", "5.25"]


def test_table_has_each_site_s_part_and_numbers(tmp_path: Path) -> None:
    look = look_at_rounds(write_workspace(tmp_path, done=2, total=6), 6)
    console = Console(file=io.StringIO(), width=120)
    assert look.below is not None
    console.print(look.below)
    rows = {line.split()[0]: line.split()[1:] for line in _shown(console).splitlines() if line.strip()}
    # In: 5 MiB of weights and a half of features. Its second round was validated at 0.41.
    assert rows["site-3"] == ["answered", "64", "11.8", "5.50", "5.25", "4.700", "0.360"]
    assert rows["site-2"] == ["late", "0.350"]
    assert list(rows)[2:] == ["site-1", "site-2", "site-3", "site-10"]


def test_terminal_shows_bar_and_table_and_others_a_line_for_each_round(tmp_path: Path) -> None:
    looks = [look_at_rounds(write_workspace(tmp_path, done=done, total=6), 6) for done in (1, 1, 2)]
    terminal = Console(file=io.StringIO(), width=140, force_terminal=True)
    plain = Console(file=io.StringIO(), width=140)
    for console in (terminal, plain):
        with Meter(console, "rounds", 6) as meter:
            for look in looks:
                meter.show(*look)
    assert _shown(plain).splitlines() == [
        "rounds ...",
        "  rounds 1/6, loss 5.000, partition kNN 0.400, about 70 s left",
        "  rounds 2/6, loss 4.600, partition kNN 0.460, 3/4 sites (site-2 late), about 56 s left",
    ]
    for text in ("2/6", "left", "site-10", "late", "MiB out"):
        assert text in _shown(terminal), text


def test_without_a_total_there_is_no_time_left(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=140)
    log = write_workspace(tmp_path, done=1, total=6)
    with Meter(console, "rounds", None) as meter:
        meter.show(*look_at_rounds(log, None))
    assert _shown(console).splitlines()[1] == "  rounds 1, loss 5.000, partition kNN 0.400"
