"""The weights that the bundle ships: a training's, in half precision, with their card."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from fcl.card import write_card
from fcl.networks import CheckpointError, read_card, read_weights, with_card


def write_shipped(source: Path, target: Path) -> Path:
    """Write ``source`` in half the bytes; whoever loads it gets single precision again.

    Args:
        source: ``model.pt`` or ``model_last.pt`` of a fine-tuning.
        target: file to write; a readable copy of the card comes beside it.

    Returns:
        ``target``.

    Raises:
        FileNotFoundError, CheckpointError: as :func:`fcl.networks.read_weights`.
        CheckpointError: when there is no card, or a weight is too large for half precision.
    """
    weights, card = read_weights(source), read_card(source)
    if not card:
        raise CheckpointError(f"checkpoint {source} has no card, so nobody could use it: train it with this version")
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    if lost := [name for name, tensor in half.items() if not torch.isfinite(tensor).all()]:
        raise CheckpointError(f"checkpoint {source} does not fit half precision: {', '.join(lost)}")
    card = {**card, "stored": "float16"}
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with unfinished.open("wb") as stream:
            torch.save(with_card(half, card), stream)
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)
    write_card(card, target)
    return target
