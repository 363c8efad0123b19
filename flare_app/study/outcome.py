"""What the finished cells of a study say: ``results.csv``, ``validation.csv``, ``results.json`` and the report."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import fcl
from flare_app.records import read_rounds
from flare_app.study.cells import SCORES, Cells
from flare_app.study.costs import cost_table
from flare_app.study.plan import Cell
from flare_app.study.settings import Study
from flare_app.study.words import protocol

_PLACE = ("arm", "mode", "annotated", "fold", "seed")
_RUN = (*_PLACE, "model", "configuration")
_STEPS = (*_PLACE, "site", "configuration", "steps")
_SCORE = ("case", "patient", "phase", "class", "dice", "hd95_mm", "assd_mm")


@dataclass(frozen=True)
class Outcome:
    """Reads what finished cells have written.

    Args:
        study: settings.
        known: cells that may have been done, by this command or an earlier one.
        seconds: that a finished cell took; None for one that is to be done.
        cells: knows where things lie.
    """

    study: Study
    known: Sequence[Cell]
    seconds: Callable[[Cell], float | None]
    cells: Cells

    def finished(self, stage: str) -> list[Cell]:
        """Arms in the study's order."""
        found = [cell for cell in self.known if cell.stage == stage and self.seconds(cell) is not None]
        return sorted(found, key=lambda cell: list(self.study["arms"]).index(cell.arm))

    def evaluations(self) -> list[Any]:
        """As :class:`fcl.evaluation.study_runs.Evaluation`."""
        from fcl.evaluation.study_runs import Evaluation

        return [
            Evaluation(
                cell.arm, cell.mode, cell.annotated, cell.fold, cell.seed,
                {who: folder / SCORES for who, folder in self.cells.evaluations(cell).items()},
            )
            for cell in self.finished("evaluate")
        ]  # fmt: skip

    def validations(self) -> list[Any]:
        """As :class:`fcl.evaluation.convergence.Validations`, of all fine-tunings that made any."""
        return [each for cell in self.finished("finetune") for each in self._validations(cell)]

    def _validations(self, cell: Cell) -> list[Any]:
        from fcl.evaluation.convergence import Validations, federated_scores
        from fcl.evaluation.history import read_history

        scores: Mapping[str, Any] = {who: read_history(file) for who, file in self.cells.histories(cell).items()}
        if cell.training["where"] == "federation":
            scores = federated_scores(read_rounds(self.cells.rounds(cell)), cell.training["steps"])
        return [
            Validations(cell.arm, cell.mode, cell.annotated, cell.fold, cell.seed, site, own)
            for site, own in scores.items()
        ]

    def write_tables(self) -> None:
        """All three files.

        ``results.csv`` has a row for each volume and class, ``validation.csv`` one for each validation of a fine-tuning
        at a site, ``results.json`` what the report's tables and curves hold; an evaluation's Dice is null where no
        volume has one.
        """
        from fcl.evaluation.convergence import curves_by_steps
        from fcl.evaluation.study_pairs import paired
        from fcl.evaluation.study_results import curves, label_efficiency

        evaluated, evaluations = self.finished("evaluate"), self.evaluations()
        with _replaced(self.cells.out / "results.csv") as stream:
            writer = csv.DictWriter(stream, [*_RUN, *_SCORE])
            writer.writeheader()
            for cell in evaluated:
                writer.writerows(self._rows(cell))
        self._write_validations()
        found = curves(evaluations)
        self._write_summary(
            {
                "title": self.study["title"],
                "preset": self.study.preset,
                "configuration": self.configuration,
                "evaluations": [self._summary(cell) for cell in evaluated],
                "dice": [
                    {"mode": mode, "arm": arm, "annotated": count, **asdict(point)}
                    for mode, own in found.items()
                    for arm, curve in own.items()
                    for count, point in curve.items()
                ],
                "validation": [
                    {"mode": mode, "arm": arm, "annotated": count, "steps": steps, **asdict(point)}
                    for (mode, count), own in curves_by_steps(self.validations()).items()
                    for arm, curve in own.items()
                    for steps, point in curve.items()
                ],
                "comparisons": [asdict(line) for line in paired(evaluations, self.study["references"])],
                "label_efficiency": [asdict(line) for line in label_efficiency(evaluations, self.study["references"])],
            }
        )

    def add(self, cell: Cell) -> None:
        """Append a new evaluation to ``results.csv`` and ``.json``; all else is of the last :meth:`write_tables`."""
        with (self.cells.out / "results.csv").open("a", newline="", encoding="utf-8") as stream:
            csv.DictWriter(stream, [*_RUN, *_SCORE]).writerows(self._rows(cell))
        content = json.loads((self.cells.out / "results.json").read_text(encoding="utf-8"))
        content["evaluations"].append(self._summary(cell))
        self._write_summary(content)

    def _write_validations(self) -> None:
        rows = [
            {**self._place(cell), "site": each.site, "configuration": cell.configuration, "steps": steps, **metrics}
            for cell in self.finished("finetune")
            for each in self._validations(cell)
            for steps, metrics in each.scores
        ]
        with _replaced(self.cells.out / "validation.csv") as stream:
            writer = csv.DictWriter(stream, list(dict.fromkeys([*_STEPS, *(name for row in rows for name in row)])))
            writer.writeheader()
            writer.writerows(rows)

    def _rows(self, cell: Cell) -> Iterator[dict[str, Any]]:
        from fcl.evaluation.study_runs import read_rows

        for who, folder in self.cells.evaluations(cell).items():
            head = {**self._place(cell), "model": who, "configuration": cell.configuration}
            yield from ({**head, **row} for row in read_rows(folder / SCORES))

    def _summary(self, cell: Cell) -> dict[str, Any]:
        from fcl.evaluation.study_runs import mean_dice

        dice = {who: mean_dice(folder / SCORES) for who, folder in self.cells.evaluations(cell).items()}
        minutes: dict[str, float] = {}
        for done in cell.chain():  # of stages of pre-training there may be several
            minutes[done.stage] = minutes.get(done.stage, 0.0) + (self.seconds(done) or 0.0) / 60
        return {**self._place(cell), "configuration": cell.configuration, "dice": dice, "minutes": minutes}

    def _write_summary(self, content: Mapping[str, Any]) -> None:
        with _replaced(self.cells.out / "results.json") as stream:
            json.dump(content, stream, indent=2, allow_nan=False)

    def write_report(self, facts: Mapping[str, str]) -> Path | None:
        """``report.html``; None as long as nothing is evaluated."""
        from fcl.evaluation.study_report import Arm, StudyReport, write_study_report

        evaluations = self.evaluations()
        if not evaluations:
            return None
        pretraining, finetuning, shown = self._curves()
        report = StudyReport(
            title=self.study["title"],
            description=self.study["description"],
            arms={arm: Arm(self.study.label(arm), self.study.published(arm)) for arm in self.study["arms"]},
            references=self.study["references"],
            evaluations=evaluations,
            unfinished=sum(cell.stage == "evaluate" and self.seconds(cell) is None for cell in self.known),
            published=_published(self.study),
            protocol=protocol(self.study, self.cells.cohort),
            validations=self.validations(),
            pretraining=pretraining,
            partitions=self._partitions(),
            finetuning=finetuning,
            shown=shown,
            features=self._features(),
            costs=cost_table(self.study, self.known, self.seconds, self.cells),
            facts=facts,
        )
        return write_study_report(self.cells.out / "report.html", report)

    def _partitions(self) -> dict[str, int]:
        """That each arm's pre-training divides volumes into."""
        default = json.loads((fcl.bundle_root() / "configs" / "pretrain.json").read_text(encoding="utf-8"))
        own = {cell.arm: cell.training["set"] for cell in self.finished("pretrain")}
        return {arm: changed.get("partitions", default["partitions"]) for arm, changed in own.items()}

    def _features(self) -> dict[str, tuple[str, dict[str, dict[str, Path]]]]:
        """Of each arm those of its first seed and fold, which are named: of other arms they may be others."""
        first = sorted(self.finished("features"), key=lambda cell: (cell.seed, cell.fold), reverse=True)
        chosen = {cell.arm: cell for cell in first}
        return {
            arm: (f"fold {chosen[arm].fold}, seed {chosen[arm].seed}", self.cells.features(chosen[arm]))
            for arm in self.study["arms"]
            if arm in chosen
        }

    @property
    def configuration(self) -> str:
        """Names the study's settings and its split."""
        content = json.dumps([self.study.content, self.cells.cohort.split["sites"]], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    def _curves(self) -> tuple[dict[str, Path], dict[str, dict[str, Path]], str]:
        """Logs of rounds of the first fold and seed that have any, with the fewest annotated patients."""
        trained = [cell for stage in ("pretrain", "finetune") for cell in self.finished(stage)]
        logged = [cell for cell in trained if self.cells.rounds(cell).is_file()]
        if not logged:
            return {}, {}, ""
        seed, fold = min((cell.seed, cell.fold) for cell in logged)
        first = [cell for cell in logged if (cell.seed, cell.fold) == (seed, fold)]
        fewest = min((cell.annotated for cell in first if cell.mode), default=0)
        pretraining = {cell.arm: self.cells.rounds(cell) for cell in first if not cell.mode}
        finetuning: dict[str, dict[str, Path]] = {}
        for cell in first:
            if cell.mode and cell.annotated == fewest:
                finetuning.setdefault(cell.mode, {})[cell.arm] = self.cells.rounds(cell)
        tuned = f", fine-tuning with N = {fewest}" if finetuning else ""
        return pretraining, finetuning, f"Shown: fold {fold}, seed {seed}{tuned}."

    def _place(self, cell: Cell) -> dict[str, Any]:
        return {key: getattr(cell, key) for key in _PLACE}


def _published(study: Study) -> dict[str, Any] | None:
    if study["published"] is None:
        return None
    return json.loads((fcl.bundle_root() / "configs" / "studies" / study["published"]).read_text(encoding="utf-8"))


@contextmanager
def _replaced(file: Path) -> Iterator[IO[str]]:
    """Write ``file`` in one step: readers see the old one or the new one, whole."""
    unfinished = file.with_name(f".{file.name}.{os.getpid()}.part")
    with unfinished.open("w", newline="", encoding="utf-8") as stream:
        yield stream
    os.replace(unfinished, file)
