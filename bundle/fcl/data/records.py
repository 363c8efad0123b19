"""One volume to read: which file, which label, whose."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class VolumeRecord:
    """A 3-D volume, or one frame of a 4-D file.

    Args:
        image: file of the image.
        label: file of the label map, ``None`` when the volume is not annotated.
        patient: whose volume it is; splits never divide a patient.
        volume: unique name, e.g. ``patient001_frame01`` or, out of a cine file, ``patient001_4d_t03``.
        phase: ``"ED"``, ``"ES"``, ``"cine"`` or ``""`` when not known.
        frame: 0-based index into the last axis of a 4-D file, ``None`` for a 3-D file.
    """

    image: str
    label: str | None
    patient: str
    volume: str
    phase: str = ""
    frame: int | None = None

    def as_item(self) -> dict[str, Any]:
        """The dictionary that the ``preprocessing`` transforms take; absent things have no key."""
        item: dict[str, Any] = {
            "image": self.image,
            "patient": self.patient,
            "volume": self.volume,
            "phase": self.phase,
        }
        if self.label is not None:
            item["label"] = self.label
        if self.frame is not None:
            item["frame"] = self.frame
        return item


def as_items(records: Iterable[VolumeRecord]) -> list[dict[str, Any]]:
    """:meth:`VolumeRecord.as_item` of each, e.g. for a ``monai.data.Dataset``."""
    return [record.as_item() for record in records]
