"""Restoring what was hidden or moved in an image: inpainting (Pathak et al., CVPR 2016), context restoration (Chen et
al., MedIA 2019), masked-image modelling (He et al., "MAE", CVPR 2022; Tian et al., "SparK", ICLR 2023).

Letters: B batch, C channels, H, W sides (any number of spatial axes).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn


def standardised_patches(image: Tensor, patch_size: int) -> Tensor:
    """The image with each patch at mean 0 and variance 1, as MAE's targets are.

    Args:
        image: (B, C, ...) whose sides are multiples of ``patch_size``.
        patch_size: side of a patch, in voxels.

    Raises:
        ValueError: when the sides are not.
    """
    if any(side % patch_size for side in image.shape[2:]):
        raise ValueError(f"sides {tuple(image.shape[2:])} are no multiples of the patch size {patch_size}.")
    split = [part for side in image.shape[2:] for part in (side // patch_size, patch_size)]
    patches = image.float().reshape(*image.shape[:2], *split)
    within = tuple(range(3, patches.ndim, 2))
    centred = patches - patches.mean(dim=within, keepdim=True)
    variance = centred.square().mean(dim=within, keepdim=True)
    return (centred / (variance + 1e-6).sqrt()).reshape(image.shape)


class RestorationLoss(nn.Module):
    """Mean squared difference to the image, where it was corrupted or everywhere.

    Args:
        where: ``"corrupted"`` or ``"everywhere"``.
        patch_size: compare with patches of this side at mean 0 and variance 1, which asks for structure rather than
            brightness; None compares with the image as it is.

    Raises:
        ValueError: on another ``where`` or a patch below 2 voxels.
    """

    def __init__(self, where: Literal["corrupted", "everywhere"] = "corrupted", patch_size: int | None = None) -> None:
        super().__init__()
        if where not in ("corrupted", "everywhere"):
            raise ValueError(f"where must be 'corrupted' or 'everywhere', got {where!r}.")
        if patch_size is not None and patch_size < 2:
            raise ValueError(f"patch_size must be at least 2 voxels, or null; got {patch_size!r}.")
        self.where = where
        self.patch_size = patch_size

    def target(self, image: Tensor) -> Tensor:
        """What a perfect restoration of ``image`` is, as float32: the image, or its standardised patches."""
        return image.float() if self.patch_size is None else standardised_patches(image, self.patch_size)

    def forward(self, restored: Tensor, image: Tensor, corrupted: Tensor) -> Tensor:
        """Scalar; 0 where nothing counts.

        Args:
            restored: (B, C, H, W) from the network.
            image: (B, C, H, W) as it was.
            corrupted: (B, 1, H, W) bool, what was hidden or moved.
        """
        difference = (restored.float() - self.target(image)).square()
        if self.where == "everywhere":
            return difference.mean()
        counted = corrupted.expand_as(difference)
        return difference.masked_fill(~counted, 0.0).sum() / counted.sum().clamp(min=1)
