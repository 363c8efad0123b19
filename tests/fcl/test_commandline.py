from __future__ import annotations

import argparse

import pytest

from fcl.commandline import key_value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed=3", ("seed", 3)),
        ("spatial_size=[64,64]", ("spatial_size", [64, 64])),
        ("train::trainer::max_epochs=2", ("train::trainer::max_epochs", 2)),
        ("site=mgh", ("site", "mgh")),
        ("note=a=b", ("note", "a=b")),
        ("resume=", ("resume", "")),
    ],
)
def test_settings_are_json_or_words(text: str, expected: tuple[str, object]) -> None:
    assert key_value(text) == expected


@pytest.mark.parametrize("text", ["seed", "=3", ""])
def test_settings_without_a_key_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="KEY=VALUE"):
        key_value(text)
