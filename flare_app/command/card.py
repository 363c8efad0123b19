"""``fcl card``: what a weights file says of itself."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flare_app.command.show import print_json, print_table


def add_parser(commands: Any) -> None:
    """Add ``card`` to the commands of ``fcl``."""
    parser = commands.add_parser("card", help="what a weights file says of itself")
    parser.add_argument("weights", type=Path, metavar="FILE", help="last.pt, model.pt, ...")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=_card)


def _card(arguments: Namespace) -> int:
    from fcl.networks.weights import read_card

    try:
        card = read_card(arguments.weights)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from error
    if not card:
        raise ValueError(f"{arguments.weights} has no card: it is a plain state dict, or of another program")
    if arguments.json:
        print_json(card)
    else:
        print_table(("", ""), _rows(card))
    return 0


def _rows(card: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for name, value in card.items():
        if isinstance(value, Mapping) and value:
            rows += [(f"{name}: {part}", _shown(entry)) for part, entry in value.items()]
        else:
            rows.append((name, _shown(value)))
    return [(name.replace("_", " "), text) for name, text in rows]


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(entry)}" for key, entry in value.items()) or "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "none" if value is None or value == [] else str(value)
