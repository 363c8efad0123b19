"""One volume as several trainings segment it, in a row: image, truth, and each prediction.

    python -m fcl.evaluation.side_by_side --image <image> --truth <label map> random=<label map> fcl=<label map> \\
        --label rv=1 --label myo=2 --label lv=3 --out picture.png

Predictions are those that evaluate.json writes to ``<output_dir>/predictions``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fcl.commandline import key_value
from fcl.data.check import load_nifti
from fcl.evaluation.overlays import draw_case


def draw_side_by_side(image: Path, maps: dict[str, Path], labels: dict[str, int], path: Path, slices: int = 1) -> None:
    """Write the picture as PNG.

    Args:
        image: NIfTI volume.
        maps: heading to label map of the volume; the first, the truth, says which slices are shown.
        labels: class name to value.
        path: of the PNG.
        slices: rows at most.

    Raises:
        ValueError: when a label map is not on the grid of the image.
    """
    volume = load_nifti(image)
    read = {name: load_nifti(file) for name, file in maps.items()}
    wrong = [f"{maps[name]} has shape {found.shape}" for name, found in read.items() if found.shape != volume.shape]
    if wrong:
        raise ValueError(f"{image} has shape {volume.shape}, but {'; '.join(wrong)}")
    draw_case(
        np.asarray(volume.dataobj, dtype=np.float32),
        {name: np.asarray(found.dataobj).astype(np.uint8) for name, found in read.items()},
        spacing=volume.header.get_zooms()[:3],
        labels=labels,
        title="",
        path=path,
        slices=slices,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m fcl.evaluation.side_by_side",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "predictions", nargs="+", type=key_value, metavar="NAME=FILE", help="label maps to compare, with their headings"
    )
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument(
        "--label", action="append", type=key_value, required=True, metavar="NAME=VALUE", help="a structure"
    )
    parser.add_argument("--slices", type=int, default=1, metavar="N", help="rows of the picture (1)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="PNG to write")
    options = parser.parse_args(argv)
    maps = {"truth": options.truth, **{name: Path(str(file)) for name, file in options.predictions}}
    try:
        draw_side_by_side(options.image, maps, dict(options.label), options.out, options.slices)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
