"""One U-Net in two parts: an encoder that pre-training trains, and a decoder that fine-tuning adds.

After Ronneberger et al., "U-Net" (MICCAI 2015), in the form of MONAI's ``BasicUNet``; built from its blocks so that
depth, widths, strides, normalisation and activation come from JSON. Initial weights are He's (He et al., ICCV 2015), as
in MONAI's ``DynUNet``: from PyTorch's defaults narrow networks may never tell two touching structures apart.

Axes are (B, C, H, W) in 2-D and (B, C, H, W, D) in 3-D: the slice axis comes last.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.blocks import UpSample
from monai.networks.layers.factories import Conv, Pool
from monai.networks.nets.basic_unet import Down, TwoConv, UpCat
from monai.networks.nets.dynunet import DynUNet
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

# MONAI's way to name a layer: "batch", or ("group", {"num_groups": 8}); JSON gives a list for the tuple.
LayerSpec = str | Sequence[Any]
# One for each step to a coarser resolution: 1 or 2 for all axes, or one of them for each axis. None: 2 everywhere.
Strides = Sequence[int | Sequence[int]] | None


def layer_spec(spec: LayerSpec) -> str | tuple[str, dict[str, Any]]:
    """A MONAI layer specification from its JSON form.

    Args:
        spec: a name, or a pair of a name and a dict of arguments.

    Raises:
        ValueError: when ``spec`` is neither.
    """
    if isinstance(spec, str):
        return spec
    if len(spec) == 2 and isinstance(spec[0], str) and isinstance(spec[1], dict):
        return spec[0], dict(spec[1])
    raise ValueError(f'a layer is a name or [name, {{arguments}}], e.g. ["group", {{"num_groups": 8}}]; got {spec!r}')


def _check(spatial_dims: int, channels: Sequence[int]) -> tuple[int, ...]:
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}")
    if len(channels) < 2 or any(int(width) < 1 for width in channels):
        raise ValueError(f"channels must be two or more positive widths, one per resolution; got {list(channels)}")
    return tuple(int(width) for width in channels)


def full_strides(strides: Strides, spatial_dims: int, steps: int) -> tuple[tuple[int, ...], ...]:
    """Strides as one tuple of ``spatial_dims`` numbers for each of ``steps``.

    Other strides than 1 and 2 are refused: MONAI's ``UpCat`` makes up for one voxel that a pooling left over, no more.
    """
    if strides is None:
        return ((2,) * spatial_dims,) * steps
    listed = [(each,) * spatial_dims if isinstance(each, int) else tuple(each) for each in strides]
    if len(listed) != steps or any(
        len(each) != spatial_dims or not set(each) <= {1, 2} or 2 not in each for each in listed
    ):
        raise ValueError(
            f"strides must be {steps} entries, one for each step between the {steps + 1} channels, each of them 2 or "
            f"{spatial_dims} numbers (spatial_dims) that are 1 or 2 and not all 1; got {strides!r}"
        )
    return tuple(listed)


class UNetEncoder(nn.Module):
    """The contracting path: ``len(channels) - 1`` max-poolings, two 3-wide convolutions at each resolution.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        channels: feature maps at each resolution, finest first.
        norm: MONAI normalisation, e.g. ``"batch"`` or ``["group", {"num_groups": 8}]``.
        act: MONAI activation, e.g. ``"LEAKYRELU"``.
        dropout: probability, after every normalisation.
        strides: of the poolings, finest first. None halves every axis; ``[[2, 2, 1]] * 4`` leaves the slices of thick
            stacks apart, as nnU-Net (Isensee et al. 2021) does with axes that are coarse, or short, already.

    Attributes:
        reductions: for each resolution, finest first, voxels of the image that one of its voxels covers, by axis.
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        channels: Sequence[int] = (16, 32, 64, 128, 256),
        norm: LayerSpec = "batch",
        act: LayerSpec = "LEAKYRELU",
        dropout: float = 0.0,
        strides: Strides = None,
    ) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.channels = _check(spatial_dims, channels)
        steps = full_strides(strides, spatial_dims, len(self.channels) - 1)
        along_axes = [list(itertools.accumulate(axis, operator.mul, initial=1)) for axis in zip(*steps, strict=True)]
        self.reductions: tuple[tuple[int, ...], ...] = tuple(zip(*along_axes, strict=True))
        # A bias right before a normalisation is subtracted again, so convolutions here have none.
        common: dict[str, Any] = {"act": layer_spec(act), "norm": layer_spec(norm), "bias": False, "dropout": dropout}
        self.stem = TwoConv(spatial_dims, in_channels, self.channels[0], **common)
        self.downs = nn.ModuleList(
            _down(spatial_dims, wide, wider, stride, **common)
            for wide, wider, stride in zip(self.channels[:-1], self.channels[1:], steps, strict=True)
        )
        self.apply(DynUNet.initialize_weights)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Feature maps of every resolution, finest first.

        Args:
            x: image.

        Shape:
            x: (B, in_channels, H, W[, D]); result[i]: (B, channels[i], H', W'[, D']), each side that of ``x`` divided
            by its ``reductions[i]``, rounded down.

        Raises:
            ValueError: when ``x`` has other axes than declared, or is too small to be pooled that often.
        """
        if not torch.jit.is_scripting():  # TorchScript knows neither these messages nor the generators
            self._check_input(x)
        maps = [self.stem(x)]
        for down in self.downs:
            maps.append(down(maps[-1]))
        return maps

    def _check_input(self, x: Tensor) -> None:
        expected = self.spatial_dims + 2
        if x.ndim != expected or x.shape[1] != self.in_channels:
            raise ValueError(
                f"expected {expected} axes (batch, {self.in_channels} channel(s), {self.spatial_dims} spatial), "
                f"got shape {tuple(x.shape)}"
            )
        size, smallest = tuple(x.shape[2:]), self.reductions[-1]
        coarsest = [side // least for side, least in zip(size, smallest, strict=True)]
        apart = any(_normalises_apart(module) for module in self.downs[-1].modules())
        if any(side < 1 for side in coarsest) or (apart and math.prod(coarsest) == 1):
            more = ", and one side twice that, as its norm needs several voxels of each image" if apart else ""
            way_out = "fewer channels, smaller strides, or a larger spatial_size (of slabs: slab_depth)"
            raise ValueError(
                f"an image of {size} voxels is too small for {len(self.downs)} poolings: it needs at least "
                f"{smallest}{more}. Give {way_out}{', or the norm batch' if apart else ''}."
            )


class UNetDecoder(nn.Module):
    """The expanding path: transposed convolutions, skip connections, and a 1-wide convolution to logits.

    Args:
        spatial_dims: 2 or 3.
        out_channels: classes, background included.
        channels, norm, act, dropout, strides: as in the encoder.
    """

    def __init__(
        self,
        spatial_dims: int,
        out_channels: int,
        channels: Sequence[int] = (16, 32, 64, 128, 256),
        norm: LayerSpec = "batch",
        act: LayerSpec = "LEAKYRELU",
        dropout: float = 0.0,
        strides: Strides = None,
    ) -> None:
        super().__init__()
        widths = _check(spatial_dims, channels)
        steps = full_strides(strides, spatial_dims, len(widths) - 1)
        common: dict[str, Any] = {"act": layer_spec(act), "norm": layer_spec(norm), "bias": False, "dropout": dropout}
        self.ups = nn.ModuleList(
            _up(spatial_dims, wider, wide, stride, **common)
            for wider, wide, stride in zip(widths[:0:-1], widths[-2::-1], reversed(steps), strict=True)
        )
        self.logits = Conv["conv", spatial_dims](widths[0], out_channels, kernel_size=1)
        self.apply(DynUNet.initialize_weights)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Logits at the finest resolution from the encoder's maps (finest first).

        Raises:
            ValueError: when there are more or fewer maps than resolutions.
        """
        if len(maps) != len(self.ups) + 1:
            raise ValueError(f"expected {len(self.ups) + 1} maps, one of each resolution, got {len(maps)}")
        x = maps[-1]
        for step, up in enumerate(self.ups):
            x = up(x, maps[-2 - step])
        return self.logits(x)

    def keep_blocks(self, blocks: int) -> None:
        """Keep the first ``blocks`` resolutions only and give their map, without logits; then it takes as many maps
        and one more.

        Raises:
            ValueError: when it has not as many.
        """
        if not 1 <= blocks <= len(self.ups):
            raise ValueError(f"blocks must lie in 1..{len(self.ups)}, the decoder's own; got {blocks!r}.")
        self.ups = self.ups[:blocks]
        self.logits = nn.Identity()


class SegmentationUNet(nn.Module):
    """U-Net whose ``encoder`` is the module that pre-training trains.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: classes, background included.
        channels: feature maps at each resolution, finest first.
        norm, act, dropout, strides: as in :class:`UNetEncoder`.
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        out_channels: int = 4,
        channels: Sequence[int] = (16, 32, 64, 128, 256),
        norm: LayerSpec = "batch",
        act: LayerSpec = "LEAKYRELU",
        dropout: float = 0.0,
        strides: Strides = None,
    ) -> None:
        super().__init__()
        self.encoder = UNetEncoder(spatial_dims, in_channels, channels, norm, act, dropout, strides)
        self.decoder = UNetDecoder(spatial_dims, out_channels, channels, norm, act, dropout, strides)

    def forward(self, x: Tensor) -> Tensor:
        """Logits.

        Shape:
            x: (B, in_channels, H, W[, D]), sides of at least ``encoder.reductions[-1]``, one of them twice that with
            instance normalisation; result: (B, out_channels, H, W[, D]).
        """
        return self.decoder(self.encoder(x))


def _normalises_apart(module: nn.Module) -> bool:
    """Whether each channel of each image is normalised by its own voxels alone, which must then be several."""
    return isinstance(module, _InstanceNorm) and (module.training or not module.track_running_stats)


def _down(spatial_dims: int, wide: int, wider: int, stride: tuple[int, ...], **common: Any) -> Down:
    """MONAI's block, pooling by ``stride``."""
    block = Down(spatial_dims, wide, wider, **common)
    block.max_pooling = Pool["MAX", spatial_dims](kernel_size=stride)
    return block


def _up(spatial_dims: int, wider: int, wide: int, stride: tuple[int, ...], **common: Any) -> UpCat:
    """MONAI's block, enlarging by ``stride``."""
    block = UpCat(spatial_dims, wider, wide, wide, **common)
    if set(stride) != {2}:  # else the block has drawn these weights already; anew they would be others
        block.upsample = UpSample(spatial_dims, wider, wider // 2, stride)
    return block
