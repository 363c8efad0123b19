from __future__ import annotations

import pytest

from fcl.config import as_switch, unless


@pytest.mark.parametrize(
    ("value", "expected"), [(True, True), (False, False), ("true", True), ("False", False), ("FALSE", False)]
)
def test_words_of_the_command_line_are_understood(value: bool | str, expected: bool) -> None:
    assert as_switch(value, "resume") is expected


@pytest.mark.parametrize("value", ["yes", "", 1, None])
def test_anything_else_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="resume"):
        as_switch(value, "resume")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "expected"), [("none", None), ("None", None), (None, None), (0, 0), ("all", "all"), ("", "")]
)
def test_a_word_stands_for_null(value: object, expected: object) -> None:
    assert unless("none", value) == expected
