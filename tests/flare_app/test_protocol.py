from __future__ import annotations

import pytest
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import make_reply

from flare_app.protocol import in_one_line, path_like, reason_of, refusal, without_paths


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/data/cardiac", True),
        ("cannot read /data/x", True),
        ("file:///data/x", True),
        ("'~/data'", True),
        ("C:\\data", True),
        ("D:/data", True),
        ("\\\\host\\share", True),
        ("$@output_dir + '/slices'", True),
        ("patient007.nii.gz", True),
        ("list.CSV", True),
        ("configs/methods/simclr.json", False),
        ("site settings (local/fcl_site.json): unknown key 'x'", False),
        ("run it with -t equal to -n", False),
        ("3 / 4", False),
        ("$torch.device('cuda:0')", False),
        ("train::trainer", False),
    ],
)
def test_path_like(text: str, expected: bool) -> None:
    assert path_like(text) == expected


def test_paths_are_taken_out_of_plain_json() -> None:
    value = {"config": ["configs/pretrain.json"], "overrides": {"dataset_dir": "/data", "n": [1, "/x", None]}}
    assert without_paths(value) == {
        "config": ["configs/pretrain.json"],
        "overrides": {"dataset_dir": "(path)", "n": [1, "(path)", None]},
    }


def test_reason_of_a_reply_that_a_filter_held_back_tells_whose_log_to_read() -> None:
    assert reason_of(refusal("no data")) == "no data"
    assert "see the log of that site" in reason_of(make_reply(ReturnCode.TASK_RESULT_FILTER_ERROR))
    assert reason_of(make_reply(ReturnCode.TASK_ABORTED)) == ReturnCode.TASK_ABORTED


def test_a_reason_stays_one_line_of_bounded_length() -> None:
    assert in_one_line("a\n  b\tc") == "a b c"
    assert in_one_line("x" * 10**6) == "x" * 500 + "…"


def test_a_reason_holds_nothing_that_a_terminal_would_obey() -> None:
    assert (
        in_one_line("no\x1b[2J\x07data\x9b31m of \u202eset 7\x00\u200b, größer") == "no [2J data 31m of set 7 , größer"
    )
