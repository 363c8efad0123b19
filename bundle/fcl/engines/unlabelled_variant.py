"""What the variants have in common that learn from scans without annotation."""

from __future__ import annotations

from fcl.data import SliceLoader
from fcl.engines.variant import Variant


class UnlabelledVariant(Variant):
    """Base of the variants that learn from a site's slices without annotation.

    Args:
        slices: batches of unlabelled slices (:class:`fcl.data.UnlabelledSlices`); None where the site has none.
    """

    needs = (
        "this site has no training volume without annotation, which {name} learns from: set `annotated` below the "
        "number of its annotated training patients, add volumes without label (cine frames, frames without _gt), or "
        "leave the overlay out"
    )

    def __init__(self, slices: SliceLoader | None) -> None:
        self._slices = slices

    @property
    def idle(self) -> bool:
        return self._slices is None

    @property
    def slices(self) -> SliceLoader:
        """Those that it was given."""
        assert self._slices is not None  # an idle variant is not asked
        return self._slices
