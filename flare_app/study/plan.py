"""The cells of a study: what each depends on, and in which order they are done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fcl
from flare_app.study.settings import Selection, Study

# Of a method, the configuration that each stage merges it with, and the job that federates it.
STAGES = {
    "pretrain": ("pretrain.json", "methods", "fcl_pretrain"),
    "finetune": ("finetune.json", "finetuning", "finetune"),
}


@dataclass(frozen=True)
class Cell:
    """One piece of work, done or not done.

    Args:
        stage: ``pretrain``, ``finetune``, ``evaluate`` or ``features``.
        arm, fold, seed: of the study.
        mode, annotated: of fine-tuning and its evaluation.
        training: how it is trained, evaluated or looked at, as :class:`Study` gives it.
        after: the cell whose models it uses.
        configuration: hash of everything in the study, its split and the bundle's configuration files that the result
            depends on. The code is none of it.
    """

    stage: str
    arm: str
    fold: int
    seed: int
    mode: str = ""
    annotated: int = 0
    training: Mapping[str, Any] = field(default_factory=dict)
    after: Cell | None = None
    configuration: str = ""

    @property
    def name(self) -> str:
        parts = [self.stage, self.arm, *([f"n{self.annotated}", self.mode] if self.mode else [])]
        return "_".join([*parts, f"fold{self.fold}", f"seed{self.seed}"])

    @property
    def kind(self) -> tuple[str, str, str, str]:
        """Cells of a kind take about as long for each step of their training."""
        return (self.stage, self.mode, self.training.get("where", ""), self.training.get("method") or "")

    @property
    def steps(self) -> int:
        """Of training, at each site; one where nothing is trained."""
        return int(self.training.get("rounds", 1) * self.training.get("steps", 1))

    def chain(self) -> list[Cell]:
        """This cell and those that it builds on, first the first."""
        return [*(self.after.chain() if self.after else []), self]


def plan(study: Study, chosen: Selection, split: Mapping[str, Any]) -> list[Cell]:
    """The cells in the order in which they are done: each needs only earlier ones, and arms stay level with each other.

    Pre-training is shared by all fine-tunings of an arm, and by arms that pre-train in the same way. Features are
    pictured for the first fold and seed. What :func:`left_out` names is not among them.

    Args:
        study: settings.
        chosen: what is asked for.
        split: content of the split file.
    """
    bundle = _Digests(study["data"], split)
    cells: dict[str, Cell] = {}

    def add(cell: Cell) -> Cell:
        return cells.setdefault(cell.name, cell)

    owners, evaluation = _encoder_owners(study), study.evaluation()

    def pretrained(arm: str, fold: int, seed: int) -> Cell | None:
        training = study.pretraining(arm)
        if training is None:
            return None
        first = pretrained(training["after"], fold, seed) if training.get("after") else None
        key = bundle.key(training, fold, seed, config_files("pretrain", training), first)
        return add(Cell("pretrain", owners[arm], fold, seed, training=training, after=first, configuration=key))

    for seed in chosen.seeds:
        for fold in chosen.folds:
            encoders: dict[str, Cell] = {}
            for arm in chosen.arms:
                encoder = pretrained(arm, fold, seed)
                if encoder is None:
                    continue
                encoders[arm] = encoder
                if (seed, fold) == (chosen.seeds[0], chosen.folds[0]):
                    files, looked = ["finetune.json", "features.json"], _looked_at(study, encoder)
                    key = bundle.key(looked, fold, seed, files, encoder)
                    add(Cell("features", owners[arm], fold, seed, training=looked, after=encoder, configuration=key))
            for annotated in chosen.annotated:
                for mode in chosen.modes:
                    for arm in chosen.arms:
                        if not _fits(study, arm, annotated, fold, split):
                            continue
                        training = study.finetuning(arm, mode)
                        files = config_files("finetune", training)
                        settings = [bundle.with_encoder(training), annotated]
                        key = bundle.key(settings, fold, seed, files, encoders.get(arm))
                        tuned = add(
                            Cell("finetune", arm, fold, seed, mode, annotated, training, encoders.get(arm), key)
                        )
                        key = bundle.key(evaluation, fold, seed, ["evaluate.json"], tuned)
                        add(Cell("evaluate", arm, fold, seed, mode, annotated, evaluation, tuned, key))
    return list(cells.values())


def plan_all(study: Study, selections: Sequence[Selection], split: Mapping[str, Any]) -> list[Cell]:
    """The cells of several commands, each once."""
    return list({cell.name: cell for chosen in selections for cell in plan(study, chosen, split)}.values())


def left_out(study: Study, chosen: Selection, split: Mapping[str, Any]) -> list[str]:
    """What is asked for and not done, in words: fine-tunings that learn from patients of whom N leaves none."""
    lines = []
    for arm in chosen.arms:
        for annotated in chosen.annotated:
            folds = [fold for fold in chosen.folds if not _fits(study, arm, annotated, fold, split)]
            if folds:
                most = min(_training_patients(fold, split) for fold in folds)
                lines.append(
                    f"not fine-tuned: {study.label(arm)}, N={annotated}, fold {', '.join(map(str, folds))}. It learns "
                    f"from at least {study.unannotated(arm)} more of a site's {most} training patients, without "
                    "annotation"
                )
    return lines


def config_files(stage: str, training: Mapping[str, Any]) -> list[str]:
    """Of the bundle's ``configs`` those that a training merges, the data's apart."""
    base, folder, _ = STAGES[stage]
    return [base, *([f"{folder}/{training['method']}.json"] if training.get("method") else [])]


def _fits(study: Study, arm: str, annotated: int, fold: int, split: Mapping[str, Any]) -> bool:
    needed = study.unannotated(arm)
    return not needed or annotated + needed <= _training_patients(fold, split)


def _training_patients(fold: int, split: Mapping[str, Any]) -> int:
    """Of the site that has the fewest."""
    sites = [site["folds"] for site in split["sites"].values()]
    return min(sum(len(group) for number, group in enumerate(folds) if number != fold) for folds in sites)


def _looked_at(study: Study, encoder: Cell) -> dict[str, Any]:
    """How features are computed: in the partitions that the encoder was taught."""
    taught = encoder.training["set"].get("partitions")
    return {"set": {**study["set"], **({} if taught is None else {"partitions": taught})}}


def _encoder_owners(study: Study) -> dict[str, str]:
    """Arm to the first arm of the study that pre-trains in the same way."""
    first: dict[str, str] = {}
    return {
        arm: first.setdefault(json.dumps(study.pretraining(arm), sort_keys=True), arm)
        for arm in study["arms"]
        if study.pretraining(arm) is not None
    }


class _Digests:
    """Hashes of what results depend on."""

    def __init__(self, data: str, split: Mapping[str, Any]) -> None:
        self._root = fcl.bundle_root() / "configs"
        self._data, self._split = f"data/{data}.json", split["sites"]
        self._known: dict[str, str] = {}

    def with_encoder(self, training: Mapping[str, Any]) -> dict[str, Any]:
        """``training`` with the content of the encoder that it starts from in place of its path."""
        file = training.get("encoder")
        if not file:
            return dict(training)
        if file not in self._known:
            self._known[file] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        return {**training, "encoder": self._known[file]}

    def key(self, settings: Any, fold: int, seed: int, files: Sequence[str], after: Cell | None = None) -> str:
        return _hash(
            {
                "settings": settings,
                "fold": fold,
                "seed": seed,
                "split": self._split,
                "files": [self._digest(name) for name in (*files, self._data)],
                "after": after.configuration if after else None,
            }
        )

    def _digest(self, name: str) -> str:
        if name not in self._known:
            self._known[name] = _hash(json.loads(Path(self._root, name).read_text(encoding="utf-8")))
        return self._known[name]


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
