"""What a U-Net takes over from pre-training: the encoder, and the decoder where the method trained one."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

from torch import Tensor

from fcl.networks.unet import SegmentationUNet
from fcl.networks.weights import LoadReport, load_weights, read_weights

logger = logging.getLogger(__name__)

_DECODER = "decoder.ups."


def load_pretrained(
    network: SegmentationUNet, weights_or_path: Mapping[str, Tensor] | str | os.PathLike[str]
) -> LoadReport:
    """Load the encoder, and as many decoder blocks as there are, coarsest first; the logits start anew.

    Args:
        network: of which ``encoder`` and ``decoder.ups`` receive weights.
        weights_or_path: tensors by name, or a checkpoint file, of any pre-training method.

    Returns:
        What became of the encoder.

    Raises:
        FileNotFoundError, CheckpointError: as :func:`fcl.networks.load_weights`; a decoder block that is there must
            fit as the encoder must.
    """
    weights = weights_or_path if isinstance(weights_or_path, Mapping) else read_weights(weights_or_path)
    report = load_weights(network.encoder, weights, prefix="encoder.")
    blocks = sorted(
        {int(name.removeprefix(_DECODER).split(".", 1)[0]) for name in weights if name.startswith(_DECODER)}
    )
    for number in blocks:
        load_weights(network.decoder.ups[number], weights, prefix=f"{_DECODER}{number}.")
    logger.info("pre-trained: the encoder and %d of %d decoder blocks", len(blocks), len(network.decoder.ups))
    return report
