"""``fcl bundle``: the bundle and its network in forms that others take."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

_FORMATS = ("torchscript", "onnx")


def add_parser(commands: Any) -> None:
    """Add ``bundle`` to the commands of ``fcl``."""
    words = "the bundle as a zip, its network as TorchScript or ONNX"
    parser = commands.add_parser("bundle", prog="fcl bundle", help=words)
    tasks = parser.add_subparsers(dest="task", required=True, prog="fcl bundle")
    packed = tasks.add_parser("zip", help="fcl-<version>.zip in the layout of MONAI's Model Zoo")
    packed.add_argument(
        "--out", type=Path, default=Path("dist"), metavar="PATH", help="folder, or name of the zip (dist)"
    )
    packed.set_defaults(run=_zip, json=False)
    exported = tasks.add_parser("export", help="the network of inference.json for other programs")
    exported.add_argument("--format", choices=_FORMATS, required=True)
    exported.add_argument("--out", type=Path, required=True, metavar="FILE", help="ends with .ts or .onnx")
    exported.add_argument(
        "--ckpt", type=Path, metavar="FILE", help="model.pt of a fine-tuning, or a federation's (that shipped)"
    )
    exported.set_defaults(run=_export, json=False)
    shipped = tasks.add_parser("weights", help="make a fine-tuning's weights those that the bundle ships")
    shipped.add_argument("source", type=Path, metavar="FILE", help="model.pt or model_last.pt of a fine-tuning")
    shipped.add_argument("--out", type=Path, metavar="FILE", help="(models/model.pt of the bundle)")
    shipped.set_defaults(run=_weights, json=False)


def _zip(arguments: Namespace) -> int:
    from fcl.exporting.archive import write_zip

    return _tell(lambda: write_zip(arguments.out))


def _export(arguments: Namespace) -> int:
    from fcl.exporting.network import export_network

    return _tell(lambda: export_network(arguments.format, arguments.out, arguments.ckpt))


def _weights(arguments: Namespace) -> int:
    import fcl
    from fcl.exporting.shipped import write_shipped

    root = fcl.bundle_root()
    target = arguments.out or root / "models" / "model.pt"
    code = _tell(lambda: write_shipped(arguments.source, target))
    if arguments.out is None:
        pages = f"{root / 'configs' / 'metadata.json'} and {root / 'docs' / 'README.md'}"
        print(
            f"{pages} still describe the earlier weights: set eval_metrics, network_data_format (spatial_shape, "
            "num_channels, channel_def), task, label_classes, pred_classes and data_source to what holds for these; "
            f"size and structures: fcl card {target}"
        )
    return code


def _tell(make: Callable[[], Path]) -> int:
    try:
        file = make()
    except FileNotFoundError as error:
        raise ValueError(str(error)) from error
    print(f"{file}: {file.stat().st_size / 1e6:.2f} MB")
    return 0
