"""The check of a whole site before it takes part in a run, remembered as long as its files stay as they are."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .check import find_problems
from .consistency import find_leaks, find_oddities
from .fingerprint import cache_key
from .problems import DataProblems, Problem
from .records import VolumeRecord
from .splits import SiteSplit
from .summary import VolumeSummary, summarise

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Findings:
    """What a check found.

    Attributes:
        problems: what must be mended before a run.
        oddities: what is worth a look and may be right.
    """

    problems: list[Problem]
    oddities: list[Problem]


def judge(
    summaries: Sequence[VolumeSummary],
    broken: Sequence[Problem],
    split: SiteSplit | None,
    labels: Mapping[str, int] | None,
    slice_axis: int,
) -> Findings:
    """All findings, from what reading the files gave.

    Args:
        summaries: of the volumes that can be read.
        broken: what :func:`~fcl.data.check.find_problems` found.
        split: division into training and validation; ``None`` when there is none.
        labels: declared structures and values.
        slice_axis: which axis of the files counts slices.
    """
    leaks = [] if split is None else find_leaks(summaries, split.train_volumes, split.validation_volumes)
    aside = [] if split is None else split.oddities
    return Findings([*broken, *leaks], [*aside, *find_oddities(summaries, labels, slice_axis)])


class SiteCheck:
    """Checks a site's data as ``fcl data check`` does.

    Files are read once: a check that found every file sound leaves a small JSON file of measurements (no names, no
    paths), called by a hash of the files' paths, sizes and times of change, of labels, partitions and slice axis. A
    later check of the same files reads that instead, and judges training against validation anew.

    Args:
        split: volumes of the site.
        partitions: S.
        labels: declared structures and values.
        cache_dir: folder for the measurements.
        slice_axis: which axis of the files counts slices.
        progress: show bars.
    """

    def __init__(
        self,
        split: SiteSplit,
        partitions: int,
        labels: Mapping[str, int],
        cache_dir: str | Path,
        slice_axis: int = 2,
        progress: bool = True,
    ) -> None:
        self.split = split
        self.partitions = partitions
        self.labels = dict(labels)
        self.slice_axis = slice_axis
        self.progress = progress
        reading = {"slice_axis": slice_axis, "labels": self.labels}
        key = cache_key(split.records, reading, partitions, labels, FORMAT_VERSION)
        self._memory = Path(cache_dir).expanduser() / f"{key}.json"
        self._summaries: list[VolumeSummary] | None = None

    def verify(self, strict: bool = False) -> None:
        """Find everything at once; oddities are logged.

        Args:
            strict: count oddities as problems.

        Raises:
            DataProblems: with all problems.
        """
        summaries = self._remembered()
        broken: list[Problem] = []
        if summaries is None:
            broken, summaries = self._read()
        found = judge(summaries, broken, self.split, self.labels, self.slice_axis)
        for oddity in () if strict else found.oddities:
            logger.warning("Worth a look: %s", oddity)
        problems = [*found.problems, *(found.oddities if strict else [])]
        if problems:
            raise DataProblems(problems)
        logger.info("%d volumes checked: %d oddities", len(summaries), len(found.oddities))

    def require_sound_files(self) -> None:
        """What a cache needs: as :func:`~fcl.data.check.check_records`, unless these files have been found sound.

        Raises:
            DataProblems: with all problems of single files.
        """
        if self._remembered() is None:
            broken = self._problems()
            if broken:
                raise DataProblems(broken)

    def summaries(self) -> list[VolumeSummary]:
        """Measurements of all volumes that can be read, in the order of the records."""
        found = self._remembered()
        return self._read()[1] if found is None else found

    def _problems(self) -> list[Problem]:
        return find_problems(self.split.records, self.partitions, self.labels, self.progress, self.slice_axis)

    def _read(self) -> tuple[list[Problem], list[VolumeSummary]]:
        broken = self._problems()
        summaries = summarise(self.split.records, self.labels, self.slice_axis, self.progress)
        if not broken:
            self._remember(summaries)
        return broken, summaries

    def _remembered(self) -> list[VolumeSummary] | None:
        if self._summaries is None:
            try:
                entries = json.loads(self._memory.read_text(encoding="utf-8"))
                self._summaries = [
                    _summary(record, entry) for record, entry in zip(self.split.records, entries, strict=True)
                ]
            except FileNotFoundError:
                pass
            except (OSError, TypeError, ValueError) as error:
                logger.warning("%s cannot be used (%s): the files are read again", self._memory, error)
        return self._summaries

    def _remember(self, summaries: list[VolumeSummary]) -> None:
        self._summaries = summaries
        entries = [{k: v for k, v in asdict(summary).items() if k != "record"} for summary in summaries]
        try:
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            # Renamed when complete: another process of this site may look at any moment.
            with tempfile.NamedTemporaryFile(
                "w", dir=self._memory.parent, suffix=".tmp", delete=False, encoding="utf-8"
            ) as stream:
                json.dump(entries, stream)
            os.replace(stream.name, self._memory)
        except OSError as error:
            logger.warning("%s cannot be written (%s): the next check reads all files again", self._memory, error)


def _summary(record: VolumeRecord, entry: Mapping[str, Any]) -> VolumeSummary:
    plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in entry.items()}
    return VolumeSummary(record=record, **plain)
