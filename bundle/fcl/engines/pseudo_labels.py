"""Labels for scans without annotation, from a network that looks at whole volumes.

Letters: N unlabelled slices (or slabs), H, W, D axes of a slice or slab.
"""

from __future__ import annotations

import numpy as np
import torch
from monai.engines import SupervisedTrainer
from monai.transforms import KeepLargestConnectedComponent
from torch import Tensor, nn

from fcl.data import SliceDataset
from fcl.engines.inferers import slices_at_once


@torch.no_grad()
def pseudo_labels(
    network: nn.Module, slices: SliceDataset, engine: SupervisedTrainer, largest_component: bool = False
) -> Tensor:
    """(N, H, W[, D]) uint8, for each row of ``slices`` the class with the highest score.

    A batch holds slices of one volume, as many as when that volume is segmented: with batch normalisation by the
    statistics of the batch, the network then sees what it will see there.

    Args:
        network: put in evaluation mode.
        slices: what to label.
        engine: whose device and inferer are used.
        largest_component: of each class keep only the largest connected part of a volume (of slabs: of each slab).
    """
    network.eval()
    keep = KeepLargestConnectedComponent(is_onehot=False) if largest_component else None
    volume = slices.volume.numpy()
    labelled = []
    for number in np.unique(volume):  # a volume's slices are one run of rows, in ascending order
        rows = np.flatnonzero(volume == number)
        size = slices_at_once(len(rows))
        parts = (rows[start : start + size] for start in range(0, len(rows), size))
        images = (slices[part]["image"].to(engine.state.device) for part in parts)
        label = torch.cat([engine.inferer(image, network).argmax(dim=1).to("cpu", torch.uint8) for image in images])
        if keep is not None:
            label = torch.stack([keep(slab[None])[0] for slab in label]) if label.ndim == 4 else keep(label[None])[0]
        labelled.append(torch.as_tensor(label, dtype=torch.uint8))
    return torch.cat(labelled)
