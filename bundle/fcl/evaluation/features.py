"""Pooled features of an encoder, kept for a picture of the space that they live in.

Letters: N slices, D feature length.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from fcl.data import SliceCache, SliceDataset, SliceLoader
from fcl.engines.monitors import embed_slices
from fcl.networks import EncoderNetwork, UNetEncoder

FEATURES_FILE = "features.npz"


def write_features(
    encoder: UNetEncoder,
    cache: SliceCache,
    volumes: Collection[str],
    output_dir: str | Path,
    device: torch.device | str = "cpu",
    slab_depth: int | None = None,
) -> Path:
    """Write pooled features (N, D), of unit norm, and partitions (N,) of whole slices as ``features.npz``.

    Args:
        encoder: pre-trained or not.
        cache: the site's slices.
        volumes: names of those to take.
        output_dir: made when missing.
        device: where the encoder lives.
        slab_depth: as it was trained, see :class:`fcl.data.SliceDataset`.

    Returns:
        The file.
    """
    loader = SliceLoader(SliceDataset(cache, volumes, slab_depth=slab_depth), 128, shuffle=False)
    network = EncoderNetwork(encoder).eval()
    features_ND, partition_N = embed_slices(network.embed, loader, device)
    file = Path(output_dir) / FEATURES_FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(file, features=features_ND.numpy(), partition=partition_N.numpy())
    return file


def read_features(files: Mapping[str, Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (N, D), partition (N,) and site (N,), an index into ``files``, of all sites together."""
    parts = [np.load(file) for file in files.values()]
    features_ND = np.concatenate([part["features"] for part in parts])
    partition_N = np.concatenate([part["partition"] for part in parts])
    site_N = np.concatenate([np.full(len(part["partition"]), number) for number, part in enumerate(parts)])
    return features_ND, partition_N, site_N


def principal_plane(features_ND: np.ndarray) -> np.ndarray:
    """Coordinates (N, 2) along the two directions of largest variance; signs are fixed, so that pictures repeat."""
    centred_ND = features_ND - features_ND.mean(axis=0)
    directions_DD = np.linalg.svd(centred_ND, full_matrices=False)[2]
    plane_N2 = centred_ND @ directions_DD[:2].T
    heaviest = np.abs(directions_DD[:2]).argmax(axis=1)
    return plane_N2 * np.sign(directions_DD[[0, 1], heaviest])


def thin_out(count: int, most: int) -> Sequence[int]:
    """At most ``most`` of ``count`` rows, evenly."""
    return [int(row) for row in np.linspace(0, count - 1, min(count, most))]
