"""Checkpoints that describe themselves, and loading that never lets random weights pass for trained ones."""

from __future__ import annotations

import logging
import os
import pickle
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

_PLAIN = (str, int, float, bool, type(None))
# Batch normalisation counts its batches; nothing depends on that number, and federated checkpoints lack it.
_COUNTER = "num_batches_tracked"
_SHOWN = 5  # keys that a message lists before it says how many more there are


class CheckpointError(ValueError):
    """A file that is no usable checkpoint, or one of another architecture."""


class OtherArchitecture(CheckpointError):
    """The configuration asks for another network than the one that a checkpoint's card describes.

    Args:
        checkpoint: for the message.
        differing: names of the settings, with both values; in it is no path.
        names: of the settings.
    """

    def __init__(self, checkpoint: str, differing: str, names: Sequence[str]) -> None:
        super().__init__(
            f"{checkpoint} is of another architecture: {differing}. Leave {', '.join(names)} out, then its card is "
            "followed, or give another file"
        )
        self.differing = differing


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor.

    Args:
        matched: keys of the module that were loaded.
        missing: keys of the module that the checkpoint lacks; batch counters aside.
        unexpected: keys of the checkpoint (in full, with prefix) that the module does not have.
        mismatched: keys of the module that the checkpoint has in another shape.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{len(self.matched)} matched, {len(self.missing)} missing, {len(self.mismatched)} of another shape, "
            f"{len(self.unexpected)} not used"
        )


def _read(path: str | os.PathLike[str]) -> Any:
    file = Path(path)
    if not file.is_file():
        what = "is a folder, not a checkpoint" if file.is_dir() else "does not exist"
        raise FileNotFoundError(f"checkpoint {file} {what}: give the path of a .pt file that training wrote")
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"checkpoint {file} is refused: it is no PyTorch file, or holds more than tensors and plain values, and "
            "unpickling those could run code. Save a state_dict, e.g. torch.save(model.state_dict(), path)."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"checkpoint {file} ({file.stat().st_size} bytes) cannot be read: it is truncated or damaged. "
            "Copy or download it again."
        ) from error


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a checkpoint, on the CPU.

    Args:
        path: a file with a ``state_dict``, or with ``{"weights": state_dict, "card": {...}}``.

    Raises:
        FileNotFoundError: when there is no such file.
        CheckpointError: when it is damaged, holds more than tensors and plain values, or no tensors.
    """
    content = _read(path)
    if isinstance(content, Mapping) and isinstance(content.get("weights"), Mapping):
        content = content["weights"]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"checkpoint {path} holds {_describe(content)}, expected a dict from name to tensor")
    strangers = [f"{key!r} ({type(value).__name__})" for key, value in content.items() if not isinstance(value, Tensor)]
    if strangers:
        raise CheckpointError(
            f"checkpoint {path} is not a dict from name to tensor: {_some(strangers)}. "
            "Save the state_dict of the network alone, not that of a trainer."
        )
    return {str(key): value for key, value in content.items()}


def read_card(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a checkpoint says of itself (architecture, data, configuration); empty for a bare ``state_dict``.

    Raises:
        FileNotFoundError, CheckpointError: as :func:`read_weights`.
    """
    content = _read(path)
    card = getattr(content, "card", None)
    if card is None and isinstance(content, Mapping):
        card = content.get("card")
    return dict(card) if isinstance(card, Mapping) else {}


def with_card(weights: Mapping[str, Tensor], card: Mapping[str, Any]) -> OrderedDict[str, Tensor]:
    """A state dict that tells its card as an attribute, which ``torch.save`` keeps.

    Whoever loads the file finds the plain state dict that other tools expect; :func:`read_card` finds the card.

    Raises:
        TypeError: when the card holds something that loading would refuse.
    """
    _check_plain(card, "card")
    carrying = OrderedDict(weights)
    if hasattr(weights, "_metadata"):
        carrying._metadata = weights._metadata  # type: ignore[attr-defined]
    carrying.card = dict(card)  # type: ignore[attr-defined]
    return carrying


def write_weights(path: str | os.PathLike[str], weights: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
    """Write a checkpoint that is either whole or not there, whatever interrupts; equal content gives equal bytes.

    Args:
        path: the file; its folder is made.
        weights: tensors by name, on any device.
        card: plain values (str, numbers, lists, dicts) that describe them.

    Raises:
        TypeError: when the card holds something that loading would refuse.
    """
    _check_plain(card, "card")
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    # A copy of each: torch.save writes the whole storage behind a view, in whatever memory format.
    copies = {
        key: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for key, tensor in weights.items()
    }
    unfinished = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        # Through a file object: given a path, torch.save puts the file's name into the archive.
        with unfinished.open("wb") as stream:
            torch.save({"weights": copies, "card": dict(card)}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)


def load_weights(
    module: nn.Module,
    weights_or_path: Mapping[str, Tensor] | str | os.PathLike[str],
    prefix: str = "",
    min_matched: float = 1.0,
) -> LoadReport:
    """Load the tensors whose names begin with ``prefix``; all or, when too few fit, none.

    Args:
        module: receives the weights; the encoder of a U-Net takes a pre-training checkpoint by ``prefix="encoder."``.
        weights_or_path: tensors by name, or a checkpoint file.
        prefix: taken off the names before they are compared.
        min_matched: least share (0 to 1) of tensors that agree in name and shape, of all that the module has or that
            begin with ``prefix``, batch counters aside. 1 asks for the same architecture, no deeper one either.

    Raises:
        FileNotFoundError, CheckpointError: as :func:`read_weights`.
        CheckpointError: when fewer match, a tensor is not finite, or nothing begins with ``prefix``. The module is
            then as it was.
    """
    if not 0.0 < min_matched <= 1.0:
        raise ValueError(f"min_matched must lie in (0, 1], got {min_matched}")
    if isinstance(weights_or_path, Mapping):
        source, weights = "the given weights", weights_or_path
    else:
        source, weights = f"checkpoint {os.fspath(weights_or_path)}", read_weights(weights_or_path)
    offered = {key[len(prefix) :]: tensor for key, tensor in weights.items() if key.startswith(prefix)}
    own = module.state_dict()
    compared = {key for key in (*own, *offered) if not key.endswith(_COUNTER)}
    fitting = {key: offered[key] for key in own if key in offered and offered[key].shape == own[key].shape}
    report = LoadReport(
        matched=tuple(fitting),
        missing=tuple(key for key in own if key in compared and key not in offered),
        unexpected=tuple(key for key in weights if not key.startswith(prefix) or key[len(prefix) :] not in own),
        mismatched=tuple(key for key in own if key in offered and key not in fitting),
    )
    if len(compared.intersection(fitting)) < min_matched * len(compared):
        raise CheckpointError(_poor_match(source, prefix, report, own, offered, weights))
    broken = [key for key, tensor in fitting.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(f"{source} holds NaN or infinite values in {_some(broken)}: take an earlier checkpoint")
    module.load_state_dict(fitting, strict=False)
    logger.info("loaded %s into %s: %s", source, type(module).__name__, report)
    return report


def _poor_match(
    source: str,
    prefix: str,
    report: LoadReport,
    own: Mapping[str, Tensor],
    offered: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
) -> str:
    if not offered:
        heads = sorted({key.split(".", 1)[0] + "." for key in weights})
        return f"{source} has no tensor that begins with {prefix!r}, they begin with {_some(heads)}: give that prefix"
    decoder = {key for key in (*own, *offered) if key.startswith("decoder.")}
    odd = {*report.missing, *report.mismatched, *(key for key in report.unexpected if key.startswith("encoder."))}
    if odd and odd <= decoder and decoder.isdisjoint(offered):
        return (
            f"{source} has no decoder, as pre-training leaves it: fine-tune from it (finetune.json, "
            "--pretrained <this file>), and give that run's model.pt"
        )
    lines = [f"{source} is of another architecture: {report}."]
    if report.mismatched:
        shapes = [f"{key} {tuple(offered[key].shape)} for {tuple(own[key].shape)}" for key in report.mismatched]
        lines.append(f"Shapes, file's for the network's: {_some(shapes)}.")
    if report.missing:
        lines.append(f"Missing: {_some(prefix + key for key in report.missing)}.")
    if report.unexpected:
        lines.append(f"Not used: {_some(report.unexpected)}.")
    lines.append(
        "Set channels, norm, spatial_dims and strides to those that the checkpoint was trained with (a file with a "
        "card tells them itself), or give another file."
    )
    return " ".join(lines)


def _some(items: Iterable[str]) -> str:
    listed = list(items)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more


def _describe(content: Any) -> str:
    return "an empty dict" if isinstance(content, Mapping) else f"an object of type {type(content).__name__}"


def _check_plain(value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_plain(key, where)
            _check_plain(inner, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            _check_plain(inner, f"{where}[{index}]")
    elif type(value) not in _PLAIN:
        raise TypeError(f"{where} is a {type(value).__name__}; a card takes str, numbers, None, lists and dicts only")
