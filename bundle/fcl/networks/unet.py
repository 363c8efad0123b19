"""One U-Net in two parts: an encoder that pre-training trains, and a decoder that fine-tuning adds.

After Ronneberger et al., "U-Net" (MICCAI 2015), in the form of MONAI's ``BasicUNet``; built from its blocks so that
depth, widths, normalisation and activation come from JSON. Initial weights are PyTorch's defaults.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monai.networks.layers.factories import Conv
from monai.networks.nets.basic_unet import Down, TwoConv, UpCat
from torch import Tensor, nn

# MONAI's way to name a layer: "batch", or ("group", {"num_groups": 8}); JSON gives a list for the tuple.
LayerSpec = str | Sequence[Any]


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


class UNetEncoder(nn.Module):
    """The contracting path: ``len(channels) - 1`` halvings by max-pooling, two 3-wide convolutions at each resolution.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        channels: feature maps at each resolution, finest first.
        norm: MONAI normalisation, e.g. ``"batch"`` or ``["group", {"num_groups": 8}]``.
        act: MONAI activation, e.g. ``"LEAKYRELU"``.
        dropout: probability, after every normalisation.
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        channels: Sequence[int] = (16, 32, 64, 128, 256),
        norm: LayerSpec = "batch",
        act: LayerSpec = "LEAKYRELU",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.channels = _check(spatial_dims, channels)
        # A bias right before a normalisation is subtracted again, so convolutions here have none.
        common: dict[str, Any] = {"act": layer_spec(act), "norm": layer_spec(norm), "bias": False, "dropout": dropout}
        self.stem = TwoConv(spatial_dims, in_channels, self.channels[0], **common)
        self.downs = nn.ModuleList(
            Down(spatial_dims, wide, wider, **common)
            for wide, wider in zip(self.channels[:-1], self.channels[1:], strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Feature maps of every resolution, finest first.

        Args:
            x: image.

        Shape:
            x: (B, in_channels, H, W[, D]); result[i]: (B, channels[i], H // 2**i, W // 2**i[, D // 2**i]).

        Raises:
            ValueError: when ``x`` has other axes than declared, or is too small to be halved that often.
        """
        expected = self.spatial_dims + 2
        if x.ndim != expected or x.shape[1] != self.in_channels:
            raise ValueError(
                f"expected {expected} axes (batch, {self.in_channels} channel(s), {self.spatial_dims} spatial), "
                f"got shape {tuple(x.shape)}"
            )
        smallest = 2 ** len(self.downs)
        if min(x.shape[2:]) < smallest:
            raise ValueError(
                f"an image of {tuple(x.shape[2:])} is too small for {len(self.downs)} halvings: every side needs at "
                f"least {smallest} pixels. Give fewer channels or a larger spatial_size."
            )
        maps = [self.stem(x)]
        for down in self.downs:
            maps.append(down(maps[-1]))
        return maps


class UNetDecoder(nn.Module):
    """The expanding path: transposed convolutions, skip connections, and a 1-wide convolution to logits.

    Args:
        spatial_dims: 2 or 3.
        out_channels: classes, background included.
        channels, norm, act, dropout: as in the encoder.
    """

    def __init__(
        self,
        spatial_dims: int,
        out_channels: int,
        channels: Sequence[int] = (16, 32, 64, 128, 256),
        norm: LayerSpec = "batch",
        act: LayerSpec = "LEAKYRELU",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        widths = _check(spatial_dims, channels)
        common: dict[str, Any] = {"act": layer_spec(act), "norm": layer_spec(norm), "bias": False, "dropout": dropout}
        self.ups = nn.ModuleList(
            UpCat(spatial_dims, wider, wide, wide, **common)
            for wider, wide in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.logits = Conv["conv", spatial_dims](widths[0], out_channels, kernel_size=1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits at the finest resolution from the encoder's maps (finest first)."""
        x = maps[-1]
        for up, skip in zip(self.ups, reversed(maps[:-1]), strict=True):
            x = up(x, skip)
        return self.logits(x)


class SegmentationUNet(nn.Module):
    """U-Net whose ``encoder`` is the module that pre-training trains.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: classes, background included.
        channels: feature maps at each resolution, finest first.
        norm, act, dropout: as in :class:`UNetEncoder`.
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
    ) -> None:
        super().__init__()
        self.encoder = UNetEncoder(spatial_dims, in_channels, channels, norm, act, dropout)
        self.decoder = UNetDecoder(spatial_dims, out_channels, channels, norm, act, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Logits.

        Shape:
            x: (B, in_channels, H, W[, D]), any sides of at least 2**depth; result: (B, out_channels, H, W[, D]).
        """
        return self.decoder(self.encoder(x))
