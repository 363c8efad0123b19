"""The patients that the leakage probe asks about: how they are read, and what the encoder makes of their slices.

Letters: N rows, D feature length, S partitions, P patients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import Tensor

import fcl
from fcl.config import check_overlays
from fcl.config.dataset import overlay_file
from fcl.config.errors import root_cause
from fcl.data import SliceDataset, SliceLoader
from fcl.networks import load_weights
from fcl.privacy.attacks import Rows


@dataclass(frozen=True)
class Cohort:
    """All slices under one encoder.

    Args:
        rows: un-augmented features; patients and sites are numbered through.
        view_alignment: (P,) mean cosine of two augmented views of a patient's slices.
        member: (P,) whether a patient was trained on.
        site: (P,) its site.
        partitions: S.
    """

    rows: Rows
    view_alignment: Tensor
    member: Tensor
    site: Tensor
    partitions: int

    @property
    def chance(self) -> float:
        """Of naming the right hospital."""
        return 1 / len(self.site.unique())


@dataclass(frozen=True)
class Reading:
    """How volumes became slices, and patients members: all of it must be as it was in the pre-training.

    The grid stands on the checkpoint's card; the fold and the partitions stand on none.

    Args:
        fold: held out.
        partitions: S.
        pixdim: in-plane spacing, mm.
        spatial_size: pixels.
        slice_axis: of the files.
    """

    fold: int
    partitions: int
    pixdim: tuple[float, ...]
    spatial_size: tuple[int, ...]
    slice_axis: int

    @staticmethod
    def of(parser: ConfigParser) -> Reading:
        """What the configuration says."""
        return Reading(
            fold=parsed(parser, "fold"),
            partitions=parsed(parser, "partitions"),
            pixdim=tuple(parsed(parser, "pixdim")),
            spatial_size=tuple(parsed(parser, "spatial_size")),
            slice_axis=parsed(parser, "slice_axis"),
        )

    def __str__(self) -> str:
        size, spacing = (" x ".join(f"{each:g}" for each in sides) for sides in (self.spatial_size, self.pixdim))
        return (
            f"fold {self.fold} held out, {self.partitions} partitions, "
            f"{size} pixels of {spacing} mm, slices along axis {self.slice_axis}"
        )


def configuration(
    dataset_dir: str | None,
    split_file: str | None,
    data: str | None,
    overrides: Mapping[str, Any],
    known: Mapping[str, Any] | None = None,
) -> Callable[[str | None], ConfigParser]:
    """Gives the pre-training configuration of a site.

    Args:
        dataset_dir, split_file: keys of the configuration.
        data: name of an overlay in the bundle's ``configs/data``, or a JSON file.
        overrides: further keys.
        known: what the checkpoint's card tells; :func:`check_card` compares.

    Raises:
        ValueError: when there is no such overlay, or on a key that ``pretrain.json`` lacks.
    """
    files = [fcl.bundle_root() / "configs" / "pretrain.json"] + ([overlay_file(data)] if data is not None else [])
    given = {"dataset_dir": dataset_dir, "split_file": split_file, **overrides}

    def configure(site: str | None) -> ConfigParser:
        # Behind a name, since MONAI would build the component that a card's rule for intensities looks like.
        parser = ConfigParser(globals={"card_of_checkpoint": dict(known or {})})
        parser.read_config([str(file) for file in files])
        parser.update({"from_card": "$card_of_checkpoint"})
        parser.update({key: value for key, value in {**given, "site": site}.items() if value is not None})
        check_overlays(parser, "pretrain")
        parser.parse(reset=True)
        parser.get_parsed_content("imports")
        return parser

    return configure


def check_card(parser: ConfigParser) -> None:
    """Compare the configuration with the card that it was given; a warning for images prepared in another way.

    Raises:
        fcl.networks.weights.OtherArchitecture: when the networks differ.
    """
    parser["initialize"] = ["$fcl.config.check_against_card(@from_card)"]
    parsed(parser, "initialize")


def parsed(parser: ConfigParser, name: str) -> Any:
    """Content of a configuration.

    Raises:
        Exception: what a component raised, in place of MONAI's RuntimeError around it.
    """
    try:
        return parser.get_parsed_content(name)
    except RuntimeError as error:
        raise root_cause(error) from None


@torch.no_grad()
def collect(
    configure: Callable[[str | None], ConfigParser], sites: Sequence[str | None], checkpoint: str | Mapping[str, Tensor]
) -> Cohort:
    """Features of all patients of all sites.

    Args:
        configure: the pre-training configuration of a site (None: of all data).
        sites: names.
        checkpoint: file or tensors, as ``load_weights`` takes them.

    Raises:
        ValueError: when a site has no patient held out; also what its data, and the checkpoint, are refused for.
    """
    shared = configure(sites[0])
    network, augmentation = parsed(shared, "network"), parsed(shared, "augmentation")
    load_weights(network, checkpoint)
    device, seed = parsed(shared, "device"), int(parsed(shared, "seed"))
    network.eval()
    parts, alignments = [], []
    members: list[bool] = []
    patient_sites: list[int] = []
    volumes = 0
    for number, site in enumerate(sites):
        parser = configure(site)
        split, cache = parsed(parser, "site_split"), parsed(parser, "slice_cache")
        if not split.validation_volumes:
            raise ValueError("the probe compares with held-out patients, and there are none: set `fold`")
        dataset = SliceDataset(
            cache,
            [*split.train_volumes, *split.validation_volumes],
            slab_depth=parsed(parser, "slab_depth"),
        )
        names = sorted({info.patient for info in dataset.volume_infos})
        trained = {record.patient for record in split.train}
        of_volume = torch.tensor([names.index(info.patient) for info in dataset.volume_infos])
        patient = of_volume[dataset.volume]
        features, alignment = _embed(network, augmentation, dataset, device, seed)
        site_N = torch.full_like(patient, number)
        parts.append(Rows(features, dataset.partition, patient + len(members), site_N, dataset.volume + volumes))
        alignments.append(torch.bincount(patient, alignment.double()) / torch.bincount(patient))
        members += [name in trained for name in names]
        patient_sites += [number] * len(names)
        volumes += len(dataset.volume_infos)
    partitions = int(parsed(shared, "partitions"))
    return Cohort(
        Rows.together(parts), torch.cat(alignments), torch.tensor(members), torch.tensor(patient_sites), partitions
    )


def _embed(
    network: Any, augmentation: Any, dataset: SliceDataset, device: torch.device, seed: int, views: int = 4
) -> tuple[Tensor, Tensor]:
    """Features (N, D) of the slices, and the mean cosine (N,) between pairs of augmented views."""
    generator = torch.Generator(device=device).manual_seed(seed)
    features, alignments = [], []
    for batch in SliceLoader(dataset, 128, shuffle=False):
        image = batch["image"].to(device)
        features.append(network(image).float().cpu())
        seen = torch.stack([network(augmentation(image, generator=generator)[0]).float() for _ in range(views)])
        # |sum|^2 holds every pair twice, and each view with itself once.
        alignments.append(((seen.sum(dim=0).square().sum(dim=1) - views) / (views * (views - 1))).cpu())
    return torch.cat(features), torch.cat(alignments)
