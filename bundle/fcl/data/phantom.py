"""A made-up data set of several hospitals, in ACDC's folder layout, for demos and tests that must not need a download.

    python -m fcl.data.phantom --out <folder> --sites 4 --patients 8 --seed 0

Short-axis cardiac volumes at ED and ES with labels (1 RV, 2 myocardium, 3 LV), and ``split.json`` that gives every
hospital its patients. Results on it say that the software works, and nothing about patients.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from fcl import default_cache_dir

from .phantom_anatomy import draw_heart
from .phantom_scanner import Scanner, draw_scanner, scan
from .progress import track
from .splits import write_split

VERSION = 1  # raise it when the same arguments give other data
_FRAMES = 30


def generate(
    out_dir: str | Path, sites: int = 4, patients: int = 8, seed: int = 0, cine_frames: int = 0, folds: int = 4
) -> Path:
    """Write the phantom.

    A patient's data depends on the seed, its site and its number there only: more patients never change earlier ones.

    Args:
        out_dir: made when missing; must be empty.
        sites: hospitals, each with a scanner of its own.
        patients: patients of each hospital.
        seed: of everything.
        cine_frames: frames of ``patientNNN_4d.nii.gz``; 0 writes none.
        folds: folds of ``split.json``.

    Returns:
        ``out_dir``.

    Raises:
        ValueError: on counts below 1, or fewer patients than folds.
        FileExistsError: when ``out_dir`` holds something.
    """
    if sites < 1 or patients < 1 or cine_frames < 0:
        raise ValueError(
            f"sites and patients must be at least 1, cine_frames 0; got {sites}, {patients}, {cine_frames}"
        )
    if not 1 <= folds <= patients:
        raise ValueError(f"folds must lie in 1..{patients}, the patients of a site; got {folds}")
    out = Path(out_dir)
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty: give a new folder, or delete it")
    out.mkdir(parents=True, exist_ok=True)
    split: dict[str, Any] = {"description": f"phantom of {sites} hospitals, seed {seed}", "seed": seed, "sites": {}}
    everyone = [(site, number) for site in range(sites) for number in range(patients)]
    names = {key: f"patient{index:03d}" for index, key in enumerate(everyone, 1)}
    for key in track(everyone, "phantom", "patient"):
        scanner = draw_scanner(np.random.default_rng((seed, key[0])))
        _write_patient(out / names[key], scanner, (seed, *key), cine_frames)
    for site in range(sites):
        own = [names[site, number] for number in range(patients)]
        split["sites"][f"site-{site + 1}"] = {"folds": [own[fold::folds] for fold in range(folds)]}
    write_split(split, out / "split.json")
    return out


def ensure_phantom(
    root: str | Path | None = None,
    sites: int = 4,
    patients: int = 8,
    seed: int = 0,
    cine_frames: int = 0,
    folds: int = 4,
) -> str:
    """The phantom of these arguments, generated once; safe against several processes and a killed one.

    Args:
        root: where phantoms are kept; default ``$FCL_CACHE_DIR``, else ``~/.cache/fcl``.
        sites, patients, seed, cine_frames, folds: see :func:`generate`.

    Returns:
        Its folder.
    """
    arguments = {"sites": sites, "patients": patients, "seed": seed, "cine_frames": cine_frames, "folds": folds}
    key = hashlib.sha256(json.dumps([VERSION, arguments], sort_keys=True).encode()).hexdigest()[:12]
    folder = Path(root or default_cache_dir()).expanduser() / "phantom"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / key
    with FileLock(folder / f"{key}.lock"):
        if not target.exists():
            unfinished = folder / f"{key}.part"
            shutil.rmtree(unfinished, ignore_errors=True)
            generate(unfinished, **arguments)
            os.replace(unfinished, target)
    return str(target)


def _write_patient(folder: Path, scanner: Scanner, key: tuple[int, int, int], cine_frames: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(key)
    heart = draw_heart(rng)
    session = int(rng.integers(2**31))
    end_systole = int(rng.integers(9, 14))
    body = f"Height: {rng.normal(171, 10):.1f}\nNbFrame: {_FRAMES}\nWeight: {rng.normal(77, 14):.1f}\n"
    (folder / "Info.cfg").write_text(f"ED: 1\nES: {end_systole}\nGroup: {heart.group}\n{body}", encoding="utf-8")
    for frame, phase in ((1, 0.0), (end_systole, 1.0)):
        image, label = scan(heart.at(phase), scanner, session)
        stem = f"{folder.name}_frame{frame:02d}"
        _save(image, scanner, folder / f"{stem}.nii.gz")
        _save(label, scanner, folder / f"{stem}_gt.nii.gz")
    if cine_frames:
        # The cine's own frames are 1..cine_frames of the beat; ED is frame 1, and ES lies among them when they reach
        # it.
        phases = [0.5 - 0.5 * np.cos(np.pi * _beat(frame, end_systole)) for frame in range(1, cine_frames + 1)]
        cine = np.stack([scan(heart.at(float(phase)), scanner, session)[0] for phase in phases], axis=3)
        _save(cine, scanner, folder / f"{folder.name}_4d.nii.gz")


def _beat(frame: int, end_systole: int) -> float:
    """0 at ED, 1 at ES, 2 at the next ED, for 1-based frames."""
    if frame <= end_systole:
        return (frame - 1) / (end_systole - 1)
    return 1.0 + (frame - end_systole) / (_FRAMES + 1 - end_systole)


def _save(volume: NDArray[Any], scanner: Scanner, path: Path) -> None:
    # First axis to the left, second to the back: LPS, as ACDC's files are.
    image = nib.Nifti1Image(volume, np.diag([-scanner.spacing, -scanner.spacing, scanner.step, 1.0]))
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, path)


def main() -> None:
    """The command ``python -m fcl.data.phantom``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="new or empty folder")
    parser.add_argument("--sites", type=int, default=4, help="hospitals (default 4)")
    parser.add_argument("--patients", type=int, default=8, help="patients of each (default 8)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--cine_frames", type=int, default=0, help="frames of an unlabelled cine a patient (default 0: none)"
    )
    parser.add_argument("--folds", type=int, default=4)
    arguments = parser.parse_args()
    try:
        folder = generate(
            arguments.out, arguments.sites, arguments.patients, arguments.seed, arguments.cine_frames, arguments.folds
        )
    except (ValueError, FileExistsError) as error:
        parser.error(str(error))
    print(f"{arguments.sites * arguments.patients} patients and split.json are in {folder}")


if __name__ == "__main__":
    main()
