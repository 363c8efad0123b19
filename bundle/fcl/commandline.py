"""What the command lines of this project share; imports nothing heavy, so that ``--help`` answers at once."""

from __future__ import annotations

import argparse
import json
from typing import Any


def key_value(text: str) -> tuple[str, Any]:
    """A config key and its value from ``KEY=VALUE``, for argparse; what is no JSON is taken as a word.

    Raises:
        argparse.ArgumentTypeError: when there is no ``=``, or nothing before it.
    """
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
