"""How much do features of your patients give away? Attacks them, in every way of sharing, and prints a table.

    python -m fcl.privacy.probe --dataset_dir <folder> --data acdc --checkpoint <last.pt> --split_file <split.json> \\
        --set fold=<fold of the pre-training> --set partitions=<partitions of the pre-training>

Network and grid are those of the checkpoint's card. Fold and partitions stand on no card: with another fold, patients
that were trained on count as held out.

The attacker has the weights of the last round, which every site and the server have, and what each mode shows. Three
questions: was this patient trained on (the attacker has a scan of the patient: the very one, or another one); are two
rows one patient's; which hospital does a row come from. ``none`` shows no features: there the attacker asks how alike
the encoder finds two augmented views of a slice, the way EncoderMI (Liu et al. 2021) tells members. ``control`` is
features with the rows of the patient in question taken out: what membership it still shows comes from the encoder that
was trained on the patient, and is no effect of showing its rows.

Limits: an attack that fails proves nothing about better ones; epsilon does, and only where noise is. Few held-out
patients give wide intervals; one that holds 0.5 tells neither of leakage nor of its absence. Sites that were cut from
one hospital's data cannot be told apart, real ones may be: measure on your own.

Letters: N rows, D feature length, S partitions.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import normalize

from fcl.commandline import key_value
from fcl.config import card_settings, unless
from fcl.data.splits import read_split
from fcl.privacy.accounting import epsilon_of
from fcl.privacy.attacks import (
    Bootstrap,
    Estimate,
    Rows,
    closeness,
    hospital,
    left_out,
    linkage,
    membership,
)
from fcl.privacy.cohort import Cohort, Reading, check_card, collect, configuration, parsed
from fcl.privacy.mechanisms import (
    features_sensitivity,
    noised,
    patient_prototypes,
    patient_rows,
    prototypes_sensitivity,
)

logger = logging.getLogger(__name__)

QUESTIONS = ("member, same scan", "member, other scan", "same patient", "same patient, other scan", "hospital")


@dataclass(frozen=True)
class Mode:
    """A way of sharing: ``kind`` none, prototypes, features or control; noise multiplier, 0 for none.

    Raises:
        ValueError: on noise that is negative or not finite.
    """

    kind: str
    noise: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.noise < math.inf:
            raise ValueError(f"noise must be a finite multiplier, 0 for none; got {self.noise}")

    @property
    def name(self) -> str:
        return f"{self.kind} + noise {self.noise:g}" if self.noise else self.kind


@dataclass(frozen=True)
class Settings:
    """Of the measurement.

    Args:
        releases: R: rounds in which the attacker saw a release (with fresh noise each).
        rows_per_patient: rows of a patient in a noised release of features.
        delta: of epsilon.
        repeats: independent runs of the noise, averaged.
        bootstrap: samples of the bootstrap over patients.
        seed: of all of it; the noise of a real release has none.

    Raises:
        ValueError: on a count below 1, or a delta outside 0..1.
    """

    releases: int = 14
    rows_per_patient: int = 8
    delta: float = 1e-5
    repeats: int = 20
    bootstrap: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("releases", "rows_per_patient", "repeats", "bootstrap"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0.0 < self.delta < 1.0:
            raise ValueError(f"delta is the chance that the promise fails, above 0 and below 1; got {self.delta}")


def release(mode: Mode, rows: Rows, settings: Settings, partitions: int, generator: torch.Generator) -> Rows:
    """What all sites show once of ``rows``, those of their training patients."""
    return Rows.together(
        [_of_site(mode, rows.where(rows.site == site), settings, partitions, generator) for site in rows.site.unique()]
    )


def _of_site(mode: Mode, own: Rows, settings: Settings, partitions: int, generator: torch.Generator) -> Rows:
    def noise(shape: Sequence[int], std: float) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * std

    names, patient = own.patient.unique(return_inverse=True)
    patients, count = len(names), settings.rows_per_patient
    if mode.kind in ("features", "control"):
        if not mode.noise:
            return own
        chosen, partition = patient_rows(own.features, own.partition, patient, patients, count, partitions, generator)
        shown = noised(chosen, mode.noise * features_sensitivity(count), noise)
        of_patient = names.repeat_interleave(count)
    else:
        partition, of_patient = torch.arange(partitions), torch.full((partitions,), -1)
        if mode.noise:
            means = patient_prototypes(own.features, own.partition, patient, patients, partitions)
            shown = noised(means, mode.noise * prototypes_sensitivity(partitions, patients), noise)
        else:
            means = torch.stack([own.features[own.partition == index].mean(dim=0) for index in range(partitions)])
            shown = normalize(means, dim=1)
    return Rows(shown, partition, of_patient, own.site[:1].expand(len(shown)), torch.full((len(shown),), -1))


def probe(cohort: Cohort, mode: Mode, settings: Settings) -> dict[str, Estimate | None]:
    """Every question of :data:`QUESTIONS` in one mode; None where the mode has no answer."""
    generator = torch.Generator().manual_seed(settings.seed)
    member, site, rows = cohort.member, cohort.site, cohort.rows
    # Without noise every release shows the same; the control chooses whom to leave out.
    runs = settings.repeats if mode.noise or mode.kind == "control" else 1
    releases = settings.releases if mode.noise else 1
    bootstrap = Bootstrap.draw(member.long(), runs, settings.bootstrap, generator)
    answers: dict[str, Estimate | None] = dict.fromkeys(QUESTIONS)
    if mode.kind == "none":
        answers[QUESTIONS[0]] = membership(cohort.view_alignment[None], member, site, bootstrap)
        return answers
    is_member = member[rows.patient]

    def attack(shown: Rows, known: Rows) -> tuple[Estimate, list[Rows]]:
        scores, seen = [], []
        for _ in range(runs):
            sets = [release(mode, shown, settings, cohort.partitions, generator) for _ in range(releases)]
            without = left_out(member, site, generator) if mode.kind == "control" else None
            scores.append(torch.stack([closeness(known, one, len(member), without) for one in sets]).mean(dim=0))
            seen.append(sets[0])
        return membership(torch.stack(scores), member, site, bootstrap), seen

    answers[QUESTIONS[0]], seen = attack(rows.where(is_member), rows)
    first, last = _first_and_last_scan(rows)
    if first is not None:
        answers[QUESTIONS[1]], _ = attack(rows.where(is_member & first), rows.where(last))
    if mode.kind == "features":
        answers[QUESTIONS[2]] = linkage(seen, bootstrap)
        if not mode.noise:
            answers[QUESTIONS[3]] = linkage(seen, bootstrap, other_scan=True)
    if mode.kind != "control" and len(site.unique()) > 1:
        # Prototypes are no patient's, so they are asked where the held-out patients belong.
        whole = mode.kind == "features"
        queries = seen if whole else [rows.where(~is_member)] * len(seen)
        answers[QUESTIONS[4]] = hospital(queries, seen, bootstrap, generator, 10 if whole else 1)
    return answers


def _first_and_last_scan(rows: Rows) -> tuple[Tensor | None, Tensor]:
    """Rows of each patient's first and of its last volume; None when a patient has one only."""
    first, last = torch.zeros(len(rows), dtype=torch.bool), torch.zeros(len(rows), dtype=torch.bool)
    for patient in rows.patient.unique():
        own = rows.patient == patient
        low, high = rows.volume[own].min(), rows.volume[own].max()
        if low == high:
            return None, last
        first |= rows.volume == low
        last |= rows.volume == high
    return first, last


def epsilon(mode: Mode, settings: Settings) -> float | None:
    """Of all releases together; None where nothing is promised."""
    if not mode.noise:
        return None
    return epsilon_of([(mode.noise, 1.0, settings.releases)], settings.delta)


def show(
    results: Sequence[dict[str, Any]], cohort: Cohort, reading: Reading, settings: Settings, console: Console
) -> None:
    """The table."""
    members, held_out = int(cohort.member.sum()), int((~cohort.member).sum())
    title = f"{members} patients trained on, {held_out} held out, {len(cohort.site.unique())} sites\n{reading}"
    table = Table(
        title=title, caption=f"AUC (0.5: nothing learnt) and top-1 (chance {cohort.chance:.2f}), 95 % intervals"
    )
    table.add_column("shared")
    table.add_column(f"epsilon of {settings.releases} releases", justify="right")
    for question in QUESTIONS:
        table.add_column(question, justify="right")
    for result in results:
        spent = result["epsilon"]
        cells = [_cell(result[question]) for question in QUESTIONS]
        table.add_row(result["mode"], "no promise" if spent is None else f"{spent:.3g}", *cells)
    console.print(table)


def _cell(estimate: Estimate | None) -> str:
    return "-" if estimate is None else f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"


def write(
    results: Sequence[dict[str, Any]], cohort: Cohort, reading: Reading, settings: Settings, folder: Path
) -> None:
    """``probe.json`` and ``probe.csv``."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = [
        {key: value._asdict() if isinstance(value, Estimate) else value for key, value in result.items()}
        for result in results
    ]
    content = {
        "settings": asdict(settings),
        "reading": asdict(reading),
        "chance_hospital": cohort.chance,
        "modes": plain,
    }
    (folder / "probe.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    with open(folder / "probe.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["mode", "epsilon", "question", "value", "low", "high"])
        for result in results:
            for question in QUESTIONS:
                if (estimate := result[question]) is not None:
                    writer.writerow([result["mode"], result["epsilon"], question, *(f"{x:.4f}" for x in estimate)])


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    default = Settings()
    parser = argparse.ArgumentParser(prog="python -m fcl.privacy.probe", description="Measure what features give away.")
    parser.add_argument("--checkpoint", required=True, help="weights of the pre-training")
    parser.add_argument("--dataset_dir", help="folder of the data")
    parser.add_argument("--split_file", help="sites and folds; without it all data is one site")
    parser.add_argument("--data", metavar="NAME", help="overlay in the bundle's configs/data, or a JSON file")
    parser.add_argument("--noise", type=float, nargs="*", default=[0.01, 0.1, 1.0, 3.0], help="multipliers to try")
    parser.add_argument("--releases", type=int, default=default.releases, help="rounds that the attacker saw")
    parser.add_argument("--rows_per_patient", type=int, default=default.rows_per_patient, help="with noise")
    parser.add_argument("--delta", type=float, default=default.delta)
    parser.add_argument("--repeats", type=int, default=default.repeats, help="runs of the noise")
    parser.add_argument("--bootstrap", type=int, default=default.bootstrap, help="samples of the intervals")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--out", type=Path, help="folder for probe.json and probe.csv")
    parser.add_argument(
        "--set", type=key_value, action="append", default=[], metavar="KEY=VALUE", help="key of pretrain.json"
    )
    options = parser.parse_args(arguments)
    try:
        settings = Settings(**{name: getattr(options, name) for name in asdict(default)})
        modes = [Mode("none")]
        for kind in ("prototypes", "features"):
            modes += [Mode(kind), *(Mode(kind, noise) for noise in options.noise)]
        modes.append(Mode("control"))
        known = card_settings(options.checkpoint, "architecture", "preprocessing")
        if not known:
            logger.warning("%s has no card: network and grid are as pretrain.json and --set say", options.checkpoint)
        configure = configuration(options.dataset_dir, options.split_file, options.data, dict(options.set), known)
        whole = configure(None)
        check_card(whole)
        reading, split_file = Reading.of(whole), unless("none", parsed(whole, "split_file"))
        sites: list[str | None] = list(read_split(split_file)["sites"]) if split_file else [None]
        cohort = collect(configure, sites, options.checkpoint)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    results = [
        {"mode": mode.name, "epsilon": epsilon(mode, settings), **probe(cohort, mode, settings)} for mode in modes
    ]
    show(results, cohort, reading, settings, Console())
    if options.out is not None:
        write(results, cohort, reading, settings, options.out)


if __name__ == "__main__":
    main()
