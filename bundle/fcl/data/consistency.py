"""Whether the volumes of a site fit together: what no single file can tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from .problems import Problem
from .summary import VolumeSummary

# A volume stands out when its spacing differs from the median by more than this factor.
_SPACING_FACTOR = 1.75
# Below this cosine the slice axis of a volume runs against, or across, that of the others.
_ALONG = 0.3


def find_leaks(
    summaries: Sequence[VolumeSummary], train: Collection[str], validation: Collection[str]
) -> list[Problem]:
    """Images that are trained on and validated on, under whatever name.

    Args:
        summaries: all volumes.
        train, validation: names of the volumes of either set.
    """
    in_training = {s.digest: s.record for s in summaries if s.record.volume in set(train)}
    fix = "keep their patients in one fold and site of the split file"
    return [
        Problem(
            s.record.image,
            f"{_which(s)} has the voxels of {in_training[s.digest].volume}, which is trained on",
            fix,
            "leak",
        )
        for s in summaries
        if s.record.volume in set(validation) and s.digest in in_training
    ]


def find_oddities(
    summaries: Sequence[VolumeSummary], labels: Mapping[str, int] | None = None, slice_axis: int = 2
) -> list[Problem]:
    """What is worth a look and may be right: copies, spacings, order of slices, intensities, structures."""
    if not summaries:
        return []
    return [
        *_copies(summaries),
        *_spacings(summaries, slice_axis),
        *_directions(summaries, slice_axis),
        *_intensities(summaries),
        *_structures(summaries, labels or {}),
    ]


def _which(summary: VolumeSummary) -> str:
    return "the volume" if summary.record.frame is None else f"frame {summary.record.frame}"


def _copies(summaries: Sequence[VolumeSummary]) -> list[Problem]:
    first: dict[str, VolumeSummary] = {}
    found = []
    for summary in summaries:
        other = first.setdefault(summary.digest, summary)
        if other is not summary:
            what = f"{_which(summary)} has the same voxels as {other.record.volume}"
            fix = "leave one out, or keep both patients in one fold and site"
            found.append(Problem(summary.record.image, what, fix, "duplicate"))
    return found


def _spacings(summaries: Sequence[VolumeSummary], slice_axis: int) -> list[Problem]:
    spacing = np.array([summary.spacing for summary in summaries])
    usual = np.median(spacing, axis=0)
    found = []
    for summary, row in _by_file(summaries, spacing):
        factor = np.maximum(row / usual, usual / row)
        if factor.max() > _SPACING_FACTOR:
            what = f"has spacing {_mm(row)}, the median is {_mm(usual)}"
            found.append(Problem(summary.record.image, what, "make sure that its header is right", "spacing"))
    if usual[slice_axis] * 1.5 < usual.max():
        thick = int(usual.argmax())
        what = (
            f"slices are counted along axis {slice_axis}, where voxels are {usual[slice_axis]:.3g} mm apart; "
            f"along axis {thick} they are {usual[thick]:.3g} mm apart"
        )
        fix = f"set slice_axis to {thick} in the overlay if that is the stack's axis"
        found.append(Problem("(all)", what, fix, "orientation"))
    return found


def _directions(summaries: Sequence[VolumeSummary], slice_axis: int) -> list[Problem]:
    across = np.array([summary.across for summary in summaries])
    # The direction that most volumes share: their mean after each was turned towards the first principal one.
    principal = np.linalg.svd(across)[2][0]
    signs = np.sign(across @ principal)
    main = principal * (1 if signs.sum() >= 0 else -1)
    found = []
    for summary, row in _by_file(summaries, across):
        cosine = float(row @ main)
        if cosine < _ALONG:
            how = "against" if cosine < -_ALONG else "across"
            what = f"has slices that run {how} those of most volumes ({summary.orientation}, axis {slice_axis})"
            fix = "reorder its slices: partitions count them from one end"
            found.append(Problem(summary.record.image, what, fix, "orientation"))
    return found


def _intensities(summaries: Sequence[VolumeSummary]) -> list[Problem]:
    found = []
    for summary in summaries:
        low, _, high = summary.quantiles
        if low == high:
            what = f"{_which(summary)} has {low:g} in 98 % of its voxels"
            found.append(
                Problem(summary.record.image, what, "make sure that it is an image; leave it out if not", "intensity")
            )
    return found


def _structures(summaries: Sequence[VolumeSummary], labels: Mapping[str, int]) -> list[Problem]:
    labelled = [summary for summary in summaries if summary.record.label is not None]
    found = [
        Problem(str(s.record.label), "has no labelled voxel", "leave the label out if nobody annotated it", "labels")
        for s in labelled
        if s.label_ml and not any(s.label_ml.values())
    ]
    for name, value in labels.items():
        missing = [s for s in labelled if not s.label_ml.get(name)]
        if labelled and len(missing) == len(labelled):
            what = f"no label map holds {name} ({value})"
            found.append(Problem("(all)", what, "take it out of `labels`", "labels"))
        else:
            what = f"lacks {name} ({value}), which others have"
            fix = "if it is not annotated there, leave the label out: it would count as background"
            found += [Problem(str(s.record.label), what, fix, "labels") for s in missing if any(s.label_ml.values())]
    return found


def _by_file(summaries: Sequence[VolumeSummary], rows: np.ndarray) -> list[tuple[VolumeSummary, np.ndarray]]:
    """One of each file's volumes, with its row."""
    counts: Counter[str] = Counter()
    found = []
    for summary, row in zip(summaries, rows, strict=True):
        counts[summary.record.image] += 1
        if counts[summary.record.image] == 1:
            found.append((summary, row))
    return found


def _mm(spacing: np.ndarray) -> str:
    return " x ".join(f"{value:.3g}" for value in spacing) + " mm"
