"""Structures of a label map as segments of DICOM, with their codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from highdicom.content import AlgorithmIdentificationSequence
from highdicom.seg import SegmentAlgorithmTypeValues, SegmentDescription
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

import fcl

ANY = "*"
Codes = Mapping[str, Mapping[str, Sequence[str]]]


@dataclass(frozen=True)
class Segment:
    """One structure.

    Args:
        name: as in ``labels``.
        value: in the label map.
        category, kind: what DICOM calls "segmented property category" and "type".
    """

    name: str
    value: int
    category: Code
    kind: Code

    def describe(self, number: int) -> SegmentDescription:
        """For the segmentation's header; ``number`` counts from 1."""
        return SegmentDescription(
            segment_number=number,
            segment_label=self.name,
            segmented_property_category=self.category,
            segmented_property_type=self.kind,
            algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=AlgorithmIdentificationSequence(
                name="fcl", family=codes.DCM.ArtificialIntelligence, version=fcl.__version__
            ),
        )


def segments_of(labels: Mapping[str, int], coded: Codes) -> list[Segment]:
    """The structures by value.

    Args:
        labels: structure to value.
        coded: structure to ``{"category": [value, scheme, meaning], "type": [...]}``; ``"*"`` stands for all others.

    Raises:
        ValueError: naming every structure without usable codes.
    """
    made, wrong = [], []
    for name, value in sorted(labels.items(), key=lambda item: item[1]):
        entry = coded.get(name, coded.get(ANY, {}))
        parts = [entry.get(part, ()) for part in ("category", "type")]
        if any(isinstance(part, str) or len(part) != 3 or not all(part) for part in parts):
            wrong.append(name)
        else:
            made.append(Segment(name, value, *(Code(*part) for part in parts)))
    if wrong:
        raise ValueError(
            f"no usable codes for {', '.join(wrong)}: segments gives a structure, or {ANY!r} for all others, as "
            '{"category": [value, scheme, meaning], "type": [value, scheme, meaning]}'
        )
    return made
