"""``fcl data``: check, split, stats, compare. Modules load when their command runs: ``--help`` answers at once."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcl.commandline import key_value
from flare_app.command.compare import add_compare
from flare_app.command.imports import add_import
from flare_app.command.show import print_json, print_problems, print_table

if TYPE_CHECKING:
    from fcl.config.dataset import DatasetDescription


def add_parser(commands: Any) -> None:
    """Add ``data`` to the commands of ``fcl``."""
    parser = commands.add_parser("data", help="import, check, split, describe and compare data")
    tasks = parser.add_subparsers(dest="task", required=True)
    add_import(tasks.add_parser("import", help="to NIfTI volumes and a datalist"))
    overlay = _overlay_options()
    check = tasks.add_parser("check", parents=[overlay], help="all problems of a dataset in one table")
    check.set_defaults(run=_check)
    stats = tasks.add_parser("stats", parents=[overlay], help="counts, spacings, intensities, label volumes")
    stats.set_defaults(run=_stats)
    add_compare(tasks.add_parser("compare", help="sites beside each other, and what stands out"))
    split = tasks.add_parser("split", parents=[overlay], help="patients over sites and folds")
    split.add_argument("--sites", type=int, required=True, metavar="N")
    split.add_argument("--folds", type=int, default=4, metavar="N", help="of each site (4)")
    split.add_argument("--seed", type=int, default=0)
    split.add_argument("--out", type=Path, required=True, metavar="FILE")
    split.add_argument(
        "--together",
        nargs="+",
        action="append",
        default=[],
        metavar="PATIENT",
        help="share site and fold, beside ACDC's twins; may be repeated",
    )
    split.set_defaults(run=_split)


def _overlay_options() -> ArgumentParser:
    options = ArgumentParser(add_help=False)
    options.add_argument(
        "--data", metavar="NAME", help="overlay in the bundle's configs/data, or a JSON file (ACDC's layout)"
    )
    options.add_argument("--dataset-dir", type=Path, metavar="DIR")
    options.add_argument("--split-file", type=Path, metavar="FILE")
    options.add_argument("--site", metavar="NAME", help="of the split file")
    options.add_argument("--fold", type=int, metavar="N", help="held out for validation")
    options.add_argument("--set", type=key_value, action="append", default=[], metavar="KEY=VALUE", help="config key")
    options.add_argument("--json", action="store_true", help="for programs")
    return options


def _describe(arguments: Namespace) -> DatasetDescription:
    from fcl.config.dataset import describe_dataset

    given = {name: getattr(arguments, name) for name in ("dataset_dir", "split_file", "site", "fold")}
    plain = {name: str(v) if isinstance(v, Path) else v for name, v in given.items() if v is not None}
    return describe_dataset(arguments.data, {**plain, **dict(arguments.set)})


def _check(arguments: Namespace) -> int:
    from fcl.data.check import find_problems
    from fcl.data.site_check import judge
    from fcl.data.summary import summarise

    found = _describe(arguments)
    summaries = summarise(found.records, found.labels, found.slice_axis, progress=True)
    broken = find_problems(found.records, found.partitions, found.labels, True, found.slice_axis)
    findings = judge(summaries, broken, found.split, found.labels, found.slice_axis)
    problems, oddities = findings.problems, findings.oddities
    labelled = sum(record.label is not None for record in found.records)
    patients = len({record.patient for record in found.records})
    if arguments.json:
        document = {"patients": patients, "volumes": len(found.records), "labelled": labelled}
        split = {"undivided": found.undivided} if found.undivided else {}
        print_json(
            {**document, **split, "problems": list(map(asdict, problems)), "oddities": list(map(asdict, oddities))}
        )
        return int(bool(problems))
    print_problems(problems)
    print_problems(oddities, "oddity" if len(oddities) == 1 else "oddities, worth a look")
    print(f"{len(found.records)} volumes of {patients} patients, {labelled} labelled: {len(problems)} problems")
    if found.undivided:
        print(f"not divided into training and validation: {found.undivided}")
    return int(bool(problems))


def _stats(arguments: Namespace) -> int:
    from fcl.data.summary import statistics, summarise

    found = _describe(arguments)
    document = statistics(summarise(found.records, found.labels, found.slice_axis, progress=True))
    if arguments.json:
        print_json(document)
        return 0
    for name in ("patients", "volumes", "labelled", "phases", "orientations"):
        value = document[name]
        print(
            f"{name}: " + (", ".join(f"{v} {k}" for k, v in value.items()) if isinstance(value, dict) else str(value))
        )
    rows = [
        (f"{what}, axis {axis}", spread)
        for what in ("spacing_mm", "shape")
        for axis, spread in enumerate(document[what])
    ]
    rows += [(f"intensity, {name}", spread) for name, spread in document["intensity"].items()]
    rows += [(f"{name} (ml)", spread) for name, spread in document["label_ml"].items()]
    shown = [(what, *(f"{spread[key]:.4g}" for key in ("median", "min", "max"))) for what, spread in rows if spread]
    print_table(("", "median", "least", "largest"), shown)
    return 0


def _split(arguments: Namespace) -> int:
    from fcl.data.splits import make_split, write_split

    patients = {record.patient for record in _describe(arguments).records}
    split = make_split(patients, arguments.sites, arguments.folds, arguments.seed, arguments.together)
    write_split(split, arguments.out)
    print_json(split) if arguments.json else print(f"{arguments.out}: {split['description']}")
    return 0
