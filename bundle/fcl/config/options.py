"""Values as the command line delivers them."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


def as_switch(value: bool | str, name: str) -> bool:
    """``True`` or ``False`` from a config's ``true`` or the command line's ``--name true``, which arrives as a word.

    Raises:
        ValueError: on anything else, which Python would take for true.
    """
    words = {"true": True, "false": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise ValueError(f"{name} must be true or false, got {value!r}")


def unless(word: str, value: T) -> T | None:
    """``value``; None where it is ``word``, in whatever case.

    A word, since the command line cannot say null: MONAI drops ``--name None`` there, and ``--name null`` is a text.
    """
    return None if isinstance(value, str) and value.lower() == word else value
