"""What a U-Net takes over from pre-training: the encoder, and the decoder where the method trained one."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fcl.networks.weights import LoadReport, load_weights, read_weights

logger = logging.getLogger(__name__)

_DECODER = "decoder.ups."


def parameter_groups(network: nn.Module, encoder_learning_rate: float) -> list[dict[str, Any]]:
    """Of an optimizer: the encoder at a rate of its own, all else at the optimizer's.

    Args:
        network: a :class:`fcl.networks.SegmentationUNet`, or any other with an ``encoder``.
        encoder_learning_rate: of the encoder.

    Raises:
        ValueError: when it has no ``encoder``.
    """
    encoder = _encoder(network)
    rest = [parameter for name, parameter in network.named_parameters() if not name.startswith("encoder.")]
    return [{"params": list(encoder.parameters()), "lr": encoder_learning_rate}, {"params": rest}]


def load_pretrained(network: nn.Module, weights_or_path: Mapping[str, Tensor] | str | os.PathLike[str]) -> LoadReport:
    """Load the encoder, and as many decoder blocks as there are, coarsest first; the logits start anew.

    Args:
        network: whose ``encoder``, and ``decoder.ups`` where there are weights for it, receive weights.
        weights_or_path: tensors by name, or a checkpoint file, of any pre-training method.

    Returns:
        What became of the encoder.

    Raises:
        FileNotFoundError, CheckpointError: as :func:`fcl.networks.load_weights`; a decoder block that is there must
            fit as the encoder must.
        ValueError: when the network has no ``encoder``.
    """
    weights = weights_or_path if isinstance(weights_or_path, Mapping) else read_weights(weights_or_path)
    report = load_weights(_encoder(network), weights, prefix="encoder.")
    blocks = sorted(
        {int(name.removeprefix(_DECODER).split(".", 1)[0]) for name in weights if name.startswith(_DECODER)}
    )
    for number in blocks:
        load_weights(network.get_submodule(f"{_DECODER}{number}"), weights, prefix=f"{_DECODER}{number}.")
    logger.info("pre-trained: the encoder and %d decoder blocks", len(blocks))
    return report


def _encoder(network: nn.Module) -> nn.Module:
    encoder = getattr(network, "encoder", None)
    if not isinstance(encoder, nn.Module):
        raise ValueError(
            f"{type(network).__name__} has no module named 'encoder', which is what pre-training trains: give a "
            "network that has one, such as MONAI's FlexibleUNet (bundle/docs/README.md, 'Another network')"
        )
    return encoder
