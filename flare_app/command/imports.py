"""``fcl data import``. Modules load when their command runs: ``--help`` answers at once."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from fcl.commandline import key_value
from flare_app.command.show import print_json, print_problems, print_table

if TYPE_CHECKING:
    from fcl.importing import ImportReport, Survey


def add_import(parser: ArgumentParser) -> None:
    """Add the kinds of sources to ``fcl data import``."""
    common = ArgumentParser(add_help=False)
    common.add_argument("source", type=Path, nargs="?", metavar="DIR", help="folder, or zip archive of one; only read")
    common.add_argument("--out", type=Path, metavar="DIR", help="new folder for the result")
    common.add_argument("--skip-problems", action="store_true", help="import what is well, list the rest, exit with 1")
    common.add_argument("--json", action="store_true", help="for programs; names no series")
    kinds = parser.add_subparsers(dest="kind", required=True)
    dicom = ArgumentParser(add_help=False)
    dicom.add_argument("--min-slices", type=int, default=4, metavar="N", help="parallel slices of a stack (4)")
    dicom.add_argument("--series-description", metavar="REGEX", help="take the series that match, static ones too")
    dicom.add_argument("--static", action="store_true", help="take series of one phase too")
    dicom.add_argument("--join-series", action="store_true", help="slices that are series of their own make one stack")
    dicom.add_argument("--spacing-tolerance", type=float, default=0.1, metavar="MM", help="a slice out of place (0.1)")
    dicom.add_argument("--no-key", action="store_true", help="without private/sources.csv")
    dicom.add_argument("--list-tags", action="store_true", help="show what is carried over, and end")
    plain = kinds.add_parser("dicom", parents=[common, dicom], help="DICOM folder")
    plain.set_defaults(run=_import_dicom, contours=None, link=None, include_partial=False)
    drawn = kinds.add_parser("contours", parents=[common, dicom], help="DICOM folder with Sunnybrook contours")
    drawn.add_argument("--contours", type=Path, metavar="DIR", help="holds <id>/.../IM-0001-0048-icontour-manual.txt")
    drawn.add_argument(
        "--link", type=Path, metavar="CSV", help="patient_id,original_id; else folders are named by PatientID"
    )
    drawn.add_argument("--first-pixel", type=int, choices=(0, 1), default=0, help="how the contours count it (0)")
    drawn.add_argument("--include-partial", action="store_true", help="train on frames without myocardium too")
    drawn.set_defaults(run=_import_dicom)
    nifti = kinds.add_parser("nifti", parents=[common], help="tree of NIfTI files")
    nifti.add_argument("--label-suffix", metavar="TEXT", help="of label maps beside their images, e.g. _gt")
    nifti.add_argument(
        "--label-dir", type=Path, metavar="DIR", help="label maps lie here, under the path of their image"
    )
    nifti.add_argument("--patient", metavar="REGEX", help="on the path; its first group names the patient (each file)")
    nifti.add_argument("--label", type=key_value, action="append", default=[], metavar="NAME=VALUE", help="a structure")
    nifti.add_argument("--no-key", action="store_true", help="without private/sources.csv")
    nifti.set_defaults(run=_import_nifti)
    msd = kinds.add_parser("msd", parents=[common], help="dataset of the Medical Segmentation Decathlon")
    msd.set_defaults(run=_import_msd)
    for kind in (nifti, msd):
        kind.add_argument("--channel", type=int, metavar="N", help="of images with several, from 0")
        how = kind.add_mutually_exclusive_group()
        how.add_argument("--link", dest="copy", action="store_false", help="link to the source (the default)")
        how.add_argument("--copy", action="store_true", help="copy, with headers that hold geometry only")
        kind.set_defaults(copy=False)


def _paths(arguments: Namespace) -> tuple[Path, Path]:
    if arguments.source is None or arguments.out is None:
        raise ValueError("give the source folder and --out <new folder>")
    return arguments.source, arguments.out


def _import_dicom(arguments: Namespace) -> int:
    from fcl.importing import KEPT, READ_ONLY, Choice, ContourSource, import_dicom

    if arguments.list_tags:
        _list_tags(KEPT, READ_ONLY, arguments.json)
        return 0
    source, out = _paths(arguments)
    contours = None
    if arguments.kind == "contours":
        if arguments.contours is None:
            raise ValueError("give --contours <folder of the contour files>")
        contours = ContourSource(arguments.contours, arguments.link, arguments.first_pixel)
    choice = Choice(
        arguments.min_slices,
        arguments.series_description,
        arguments.static,
        arguments.join_series,
        arguments.spacing_tolerance,
    )
    tell = None if arguments.json else _tell
    report = import_dicom(
        source,
        out,
        choice,
        contours,
        arguments.include_partial,
        not arguments.no_key,
        arguments.skip_problems,
        tell=tell,
    )
    return _show(report, arguments.json)


def _import_nifti(arguments: Namespace) -> int:
    from fcl.importing import import_nifti

    source, out = _paths(arguments)
    labels = dict(arguments.label)
    if wrong := {name: value for name, value in labels.items() if not isinstance(value, int)}:
        raise ValueError(f"--label takes NAME=VALUE with whole numbers, got {wrong}")
    return _show(
        import_nifti(
            source, out, arguments.label_suffix, arguments.label_dir, arguments.patient, labels, arguments.copy,
            not arguments.no_key, arguments.skip_problems, channel=arguments.channel,
        ),
        arguments.json,
    )  # fmt: skip


def _import_msd(arguments: Namespace) -> int:
    from fcl.importing import import_msd

    source, out = _paths(arguments)
    return _show(import_msd(source, out, arguments.channel, arguments.copy, arguments.skip_problems), arguments.json)


def _list_tags(kept: dict[str, str], read: tuple[str, ...], as_json: bool) -> None:
    if as_json:
        print_json({"kept": kept, "read_only": read})
        return
    print_table(("tag", "carried over as"), kept.items())
    print("Read to sort images, written nowhere but in private/sources.csv (PatientID and UIDs):")
    print("  " + ", ".join(read))


def _tell(survey: Survey) -> None:
    print(survey.summary())
    columns = ("series", "description", "images", "slices", "phases", "size", "")
    rows = [
        (r.number, r.description, r.images, r.slices, r.phases, "x".join(map(str, r.size)), r.why or "taken")
        for r in survey.rows
    ]
    print_table(columns, rows)


def _show(report: ImportReport, as_json: bool) -> int:
    if as_json:
        print_json(asdict(report))
    else:
        print_problems(report.left_out, "problem left out")
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(report.volumes.items()))
        print(f"{report.out}: {report.cases} cases, {counts}")
        for note in report.notes:
            print(f"  {note}")
    return int(bool(report.left_out))
