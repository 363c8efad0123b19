"""The trained network in formats that need neither this package nor MONAI: TorchScript and ONNX.

Both go through MONAI's own converters, with the architecture that the weights' card tells. Preprocessing is not part of
the network: what it expects stands in the exported file itself, as ``card.json``, and as the transforms of
``inference.json``; sizes and channels stand in ``metadata.json`` under ``network_data_format``. All three describe the
weights that were exported. TorchScript holds them as extra files, ONNX as ``metadata_props``.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from monai.networks.utils import convert_to_onnx, convert_to_torchscript
from torch import nn

import fcl
from fcl.networks import load_weights, read_card

from .description import configuration_of, image_shape, metadata_of

FORMATS = {"torchscript": ".ts", "onnx": ".onnx"}


def export_network(kind: str, out: Path, weights: Path | None = None) -> Path:
    """Write the segmentation network of ``inference.json``.

    Args:
        kind: ``"torchscript"`` or ``"onnx"``.
        out: file; its ending is that of the format. ONNX takes images of the size that the card tells, batches of any
            number; TorchScript takes all.
        weights: ``model.pt`` of a fine-tuning, ``last.pt`` or ``best.pt`` of a federation that fine-tuned; by default
            the one that the bundle ships.

    Returns:
        ``out``.

    Raises:
        ValueError: when format and ending do not agree, or a package that the format needs is not installed.
        FileNotFoundError, fcl.networks.CheckpointError: when the weights cannot be used.
    """
    if FORMATS.get(kind) != out.suffix:
        known = ", ".join(f"{name} with {suffix}" for name, suffix in FORMATS.items())
        raise ValueError(f"{kind} in a file that ends with {out.suffix!r}: the formats are {known}")
    onnx = _onnx() if kind == "onnx" else None
    weights = weights or fcl.bundle_root() / "models" / "model.pt"
    card, configuration = read_card(weights), configuration_of(weights)
    network = configuration.get_parsed_content("network_def")
    load_weights(network, weights)
    told = {"metadata": metadata_of(configuration, card), "inference": configuration.get(), "card": card}
    texts = {f"{name}.json": json.dumps(content) for name, content in told.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    if onnx is None:
        convert_to_torchscript(network, str(out), {name: text.encode() for name, text in texts.items()})
        return out
    converted = _to_onnx(network, image_shape(configuration))
    onnx.helper.set_model_props(converted, texts)
    onnx.save(converted, str(out))
    return out


def _onnx() -> Any:
    try:
        import_module("onnxscript")  # torch.onnx asks for it half-way
        return import_module("onnx")
    except ImportError as error:
        raise ValueError(
            "ONNX needs the packages onnx and onnxscript, which are not installed here: pip install 'fcl[onnx]'"
        ) from error


def _to_onnx(network: nn.Module, shape: list[int]) -> Any:
    names = ("image", "pred")
    with TemporaryDirectory() as folder:  # the converter writes the weights beside its file, and leaves them there
        return convert_to_onnx(
            network,
            [torch.rand(2, 1, *shape)],  # two, since the exporter takes a batch of one for a constant
            input_names=names[:1],
            output_names=names[1:],
            dynamic_axes={name: {0: "batch"} for name in names},
            filename=f"{folder}/network.onnx",
            use_trace=False,
        )
