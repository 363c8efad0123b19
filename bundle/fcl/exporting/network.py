"""The trained network in formats that need neither this package nor MONAI: TorchScript and ONNX.

Both go through MONAI's own exports, with the architecture that the weights' card tells. Preprocessing is not part of
the network: what it expects stands in ``configs/metadata.json`` under ``network_data_format``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ckpt_export, onnx_export

import fcl
from fcl.networks import read_weights

FORMATS = {"torchscript": ".ts", "onnx": ".onnx"}


def export_network(kind: str, out: Path, weights: Path | None = None) -> Path:
    """Write the segmentation network of ``inference.json``.

    Args:
        kind: ``"torchscript"`` or ``"onnx"``.
        out: file; its ending is that of the format. ONNX takes images of the size that the card tells, batches of any
            number; TorchScript takes all.
        weights: ``model.pt`` of a fine-tuning; by default the one that the bundle ships.

    Returns:
        ``out``.

    Raises:
        ValueError: when format and ending do not agree.
        FileNotFoundError, fcl.networks.CheckpointError: when the weights cannot be used.
    """
    if FORMATS.get(kind) != out.suffix:
        known = ", ".join(f"{name} with {suffix}" for name, suffix in FORMATS.items())
        raise ValueError(f"{kind} in a file that ends with {out.suffix!r}: the formats are {known}")
    root = fcl.bundle_root()
    weights = weights or root / "models" / "model.pt"
    read_weights(weights)  # MONAI would wrap what is wrong with the file in messages about the config
    out.parent.mkdir(parents=True, exist_ok=True)
    common: dict[str, Any] = {
        "net_id": "network_def",
        "filepath": str(out),
        "ckpt_file": str(weights),
        "meta_file": str(root / "configs" / "metadata.json"),
        "config_file": str(root / "configs" / "inference.json"),
        "ckpt": str(weights),
    }
    if kind == "torchscript":
        ckpt_export(**common)
        return out
    names = {"input_names": ["image"], "output_names": ["pred"]}
    any_batch = {"dynamic_axes": {name: {0: "batch"} for name in ("image", "pred")}}
    onnx_export(**common, input_shape=_shape(weights), converter_kwargs={**names, **any_batch})
    return out


def _shape(weights: Path) -> list[int]:
    """Of a batch of two, since an exporter takes one for a constant."""
    parser = ConfigParser()
    parser.read_config(str(fcl.bundle_root() / "configs" / "inference.json"))
    parser["ckpt"] = str(weights)
    size, depth, dims = map(parser.get_parsed_content, ("spatial_size", "slab_depth", "spatial_dims"))
    return [2, 1, *size, *([depth] if dims == 3 else [])]
