"""What the finished cells of a study say: ``results.csv``, ``validation.csv``, ``results.json`` and the report."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import fcl
from flare_app.records import read_rounds
from flare_app.study.cells import SCORES, Cells
from flare_app.study.data import Cohort
from flare_app.study.plan import Cell
from flare_app.study.settings import Selection, Study, steps_together

_PLACE = ("arm", "mode", "annotated", "fold", "seed")
_RUN = (*_PLACE, "model", "configuration")
_STEPS = (*_PLACE, "site", "configuration", "steps")
_SENT = ("weights", "features")
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
        """As :class:`fcl.evaluation.study_results.Evaluation`."""
        from fcl.evaluation.study_results import Evaluation

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
        at a site, ``results.json`` what the report's tables and curves hold.
        """
        from fcl.evaluation.convergence import curves_by_steps
        from fcl.evaluation.study_results import curves, label_efficiency, paired

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
                "label_efficiency": [asdict(line) for line in label_efficiency(found, self.study["references"])],
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
        from fcl.evaluation.study_results import read_rows

        for who, folder in self.cells.evaluations(cell).items():
            head = {**self._place(cell), "model": who, "configuration": cell.configuration}
            yield from ({**head, **row} for row in read_rows(folder / SCORES))

    def _summary(self, cell: Cell) -> dict[str, Any]:
        from fcl.evaluation.study_results import mean_dice

        dice = {who: mean_dice(folder / SCORES) for who, folder in self.cells.evaluations(cell).items()}
        minutes: dict[str, float] = {}
        for done in cell.chain():  # of stages of pre-training there may be several
            minutes[done.stage] = minutes.get(done.stage, 0.0) + (self.seconds(done) or 0.0) / 60
        return {**self._place(cell), "configuration": cell.configuration, "dice": dice, "minutes": minutes}

    def _write_summary(self, content: Mapping[str, Any]) -> None:
        with _replaced(self.cells.out / "results.json") as stream:
            json.dump(content, stream, indent=2)

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
            protocol=self.protocol(),
            validations=self.validations(),
            pretraining=pretraining,
            finetuning=finetuning,
            shown=shown,
            features={cell.arm: self.cells.features(cell) for cell in self.finished("features")},
            costs=self._costs(),
            facts=facts,
        )
        return write_study_report(self.cells.out / "report.html", report)

    @property
    def configuration(self) -> str:
        """Names the study's settings and its split."""
        content = json.dumps([self.study.content, self.cells.cohort.split["sites"]], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    def protocol(self) -> dict[str, str]:
        """This study in the words in which ``published.json`` describes the published one."""
        cohort, shared = self.cells.cohort, self.study["set"]
        sizes = [sum(map(len, site["folds"])) for site in cohort.split["sites"].values()]
        counts = sorted({min(sizes), max(sizes)})
        unlabelled = cohort.volumes - cohort.labelled
        arm = next(iter(self.study["arms"]))
        tuning = {mode: self.study.finetuning(arm, mode) for mode in self.study.modes}
        return {
            "Patients": f"{cohort.patients} patients, {len(sizes)} sites of {' to '.join(map(str, counts))}",
            "Folds": f"{self.study['folds']}; {cohort.held_out(0)} patients of all sites held out in the first",
            "Unlabelled images": f"{cohort.labelled} annotated volumes (their labels unused) and {unlabelled} others",
            "Network": f"2-D U-Net, channels {shared.get('channels', _default('channels'))}",
            "Image size": "{} pixels of {} mm".format(
                *("×".join(str(v) for v in shared.get(key, _default(key))) for key in ("spatial_size", "pixdim"))
            ),
            "Pre-training": f"{_schedule(self.study['pretrain'])}; bundle/configs/pretrain.json has the rest"
            if self.study["pretrain"]
            else "none in this study",
            "Fine-tuning": "; ".join(f"{mode}: {_schedule(entry)}" for mode, entry in tuning.items())
            + "; last weights, none chosen by validation; the same for all arms but where an arm says otherwise",
            "Dice": "for each volume on its native grid, mean over structures, then over volumes"
            + "".join(f"; {change}" for change in _changes(self.study["evaluate"])),
            "Spread": "over folds and seeds; local: over sites as well, in a table of its own",
        }

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

    def _costs(self) -> tuple[list[str], list[list[str]]]:
        """Minutes, and MiB that a site receives and sends, by arm; columns without a value are left out.

        Pre-training is that of all stages that the arm's encoder went through, also where other arms share them.
        """
        trainings = [("pretrain", ""), *(("finetune", mode) for mode in self.study.modes)]
        timed = [*trainings, *(("evaluate", mode) for mode in self.study.modes)]
        head = ["arm", *(f"{_in_words(*what)}, minutes" for what in timed)]
        head += [f"{_in_words(*what)}, {kind} in / out, MiB" for what in trainings for kind in _SENT]
        rows = []
        for arm in self.study["arms"]:
            own = [cell for cell in self.known if cell.arm == arm and self.seconds(cell) is not None]
            works = {what: [[cell] for cell in own if (cell.stage, cell.mode) == what] for what in timed}
            works["pretrain", ""] = _pretrainings(own)
            row = [self._minutes(works[what]) for what in timed]
            row += [self._traffic(works[what], kind) for what in trainings for kind in _SENT]
            rows += [[self.study.label(arm), *row]] if own else []
        kept = [n for n in range(len(head)) if n == 0 or any(row[n] != "–" for row in rows)]
        return [head[n] for n in kept], [[row[n] for n in kept] for row in rows]

    def _minutes(self, works: Sequence[Sequence[Cell]]) -> str:
        sums = [sum(self.seconds(cell) or 0.0 for cell in cells) / 60 for cells in works]
        return f"{statistics.fmean(sums):.1f}" if sums else "–"

    def _traffic(self, works: Sequence[Sequence[Cell]], kind: str) -> str:
        from fcl.evaluation.page import show_mib

        sent = [both for cells in works if (both := self._sent(cells, kind))]
        means = [statistics.fmean(way) for way in zip(*sent, strict=True)]
        return " / ".join(show_mib(count) for count in means) if any(means) else "–"

    def _sent(self, cells: Sequence[Cell], kind: str) -> tuple[float, float] | None:
        """Bytes that a site receives and sends in all of ``cells``; None where none of them is a federation."""
        from fcl.evaluation.federation_log import bytes_per_site

        logs = [log for cell in cells if (log := self.cells.rounds(cell)).is_file()]
        counts = [bytes_per_site(read_rounds(log)) for log in logs]
        down, up = (sum(count[f"{kind}_{way}"] for count in counts) for way in ("down", "up"))
        return (down, up) if logs else None

    def _place(self, cell: Cell) -> dict[str, Any]:
        return {key: getattr(cell, key) for key in _PLACE}


def _pretrainings(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The stages of each pre-training that ``cells`` build on, each pre-training once."""
    chains = [[part for part in cell.chain() if part.stage == "pretrain"] for cell in cells]
    return list({chain[-1].name: chain for chain in chains if chain}.values())


def study_facts(study: Study, chosen: Selection, cohort: Cohort, command: str, seconds: float) -> dict[str, str]:
    """How it was run."""
    return {
        "Data": f"{cohort.patients} patients, {cohort.volumes} volumes, {len(cohort.sites)} sites",
        "Preset": study.preset or "none",
        "Arms": ". ".join(_arm_in_words(study, arm) for arm in chosen.arms),
        "Folds and seeds": f"folds {_listed(chosen.folds)} of {study['folds']}, seeds {_listed(chosen.seeds)}",
        "Minutes": f"{seconds / 60:.1f} for all finished cells together",
        "Command": command,
    }


def _arm_in_words(study: Study, arm: str) -> str:
    return f"{study.label(arm)}: " + "; ".join([_pretraining_in_words(study, arm), *_finetuning_in_words(study, arm)])


def _pretraining_in_words(study: Study, arm: str) -> str:
    training = study.pretraining(arm)
    encoder = study["arms"][arm].get("encoder")
    if encoder:
        return f"starts from {Path(encoder).name}"
    if training is None:
        return "no pre-training"
    pooled = {"steps": steps_together(training, study["sites"])} if training["where"] == "pool" else {}
    first = [f"after {study.label(training['after'])}"] if training.get("after") else []
    parts = [f"method {training.get('method') or 'fcl'}", training["where"]]
    parts += [f"exchange {training.get('exchange') or 'none'}", _schedule({**training, **pooled})]
    return ", ".join([*first, *parts, *_changes(study["arms"][arm]["pretrain"])])


def _finetuning_in_words(study: Study, arm: str) -> list[str]:
    """What the arm itself says of each mode."""
    own = study["arms"][arm].get("finetune", {})
    methods = {mode: [training["method"]] if training.get("method") else [] for mode, training in own.items()}
    return [", ".join([f"{mode} fine-tuning", *methods[mode], *_changes(training)]) for mode, training in own.items()]


def _changes(training: Mapping[str, Any]) -> list[str]:
    """Keys that it sets, the batch size apart: that is part of the schedule."""
    return [f"{key} {value}" for key, value in training.get("set", {}).items() if key != "batch_size"]


def _in_words(stage: str, mode: str) -> str:
    words = {"pretrain": "pre-training", "finetune": "fine-tuning", "evaluate": "evaluation"}
    return " ".join(part for part in (mode, words[stage]) if part)


def _schedule(training: Mapping[str, Any]) -> str:
    size = training.get("set", {}).get("batch_size")
    batch = f" of {size} slices" if size else ""
    alone = f", at the first {training['alone']} sites" if training.get("alone") else ""
    turns = training.get("sites_per_round") if training["where"] == "federation" else None
    some = f", {turns} sites in each by turns" if turns else ""
    return f"{training['rounds']} rounds of {training['steps']} steps{batch}{some}{alone}"


def _default(key: str) -> Any:
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(str(fcl.bundle_root() / "configs" / "pretrain.json"))
    return parser.get_parsed_content(key)


def _published(study: Study) -> dict[str, Any] | None:
    if study["published"] is None:
        return None
    return json.loads((fcl.bundle_root() / "configs" / "studies" / study["published"]).read_text(encoding="utf-8"))


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(str(value) for value in values)


@contextmanager
def _replaced(file: Path) -> Iterator[IO[str]]:
    """Write ``file`` in one step: readers see the old one or the new one, whole."""
    unfinished = file.with_name(f".{file.name}.{os.getpid()}.part")
    with unfinished.open("w", newline="", encoding="utf-8") as stream:
        yield stream
    os.replace(unfinished, file)
