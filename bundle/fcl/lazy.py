"""Packages whose names load when first used, so that a process imports only what it works with.

A server that averages weights needs no MONAI, and a command that prints its help needs no torch: each is seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def names_of(package: str, homes: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package (PEP 562), to be assigned to that name in its ``__init__``.

    Args:
        package: its ``__name__``.
        homes: module of the package to the names that it defines and the package offers.
    """
    home_of = {name: module for module, names in homes.items() for name in names}

    def load(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{home_of[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return load
