"""Progress bars that keep silent where nobody watches."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def track(items: Iterable[T], what: str, unit: str, enabled: bool = True, total: int | None = None) -> Iterable[T]:
    """``items`` with a bar on stderr that tells the time left.

    The bar shows when stderr is a terminal, or when ``FCL_PROGRESS=1`` asks for it.
    """
    watched = sys.stderr.isatty() or os.environ.get("FCL_PROGRESS") == "1"
    return tqdm(items, desc=what, unit=f" {unit}", total=total, disable=not (enabled and watched))
