"""One command for all tools around a run.

  fcl doctor                      is this machine ready
  fcl data import dicom DIR       DICOM cine series to NIfTI volumes and a datalist
  fcl data import contours DIR    the same, with Sunnybrook contours as label maps
  fcl data import nifti DIR       a folder tree of NIfTI files
  fcl data import msd DIR         a dataset of the Medical Segmentation Decathlon
  fcl data check                  all problems of a dataset in one table
  fcl data split                  patients over sites and folds
  fcl data stats                  counts, spacings, intensities, label volumes
  fcl data compare WORKSPACE      sites beside each other, and what stands out
  fcl job export NAME             write a job folder      (python -m flare_app.job export)
  fcl job run NAME                run it in the simulator (python -m flare_app.job run)
  fcl job submit FOLDER           submit it               (python -m flare_app.provision submit)
  fcl job resume FOLDER           go on from checkpoints  (python -m flare_app.provision resume)
  fcl job follow JOB_ID           watch it to its end     (python -m flare_app.provision follow)
  fcl job abort JOB_ID            end it                  (python -m flare_app.provision abort)
  fcl watch WORKSPACE             rounds and sites of a running job, live
  fcl report WORKSPACE            a page about one federated run
  fcl bundle zip|export|weights   the bundle as a zip, its network as TorchScript or ONNX, the weights it ships
  fcl card FILE                   what a weights file says of itself
  fcl egress MANIFEST             who got what            (python -m flare_app.egress)

Each takes --help. Exit codes: 0 all is well, 1 something is wrong with the data or the machine, 2 wrong arguments.
Training, evaluation and inference are run by `python -m monai.bundle run` and by FLARE.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from flare_app.command import bundle, card, data, doctor, report, watch
from flare_app.command.show import report_problems

# What is passed on as it stands: words, module with a `main`, words that it gets first.
_PASSED_ON: dict[tuple[str, ...], tuple[str, tuple[str, ...]]] = {
    ("job", "export"): ("flare_app.job.__main__", ("export",)),
    ("job", "run"): ("flare_app.job.__main__", ("run",)),
    ("job", "submit"): ("flare_app.provision.__main__", ("submit",)),
    ("job", "resume"): ("flare_app.provision.__main__", ("resume",)),
    ("job", "follow"): ("flare_app.provision.__main__", ("follow",)),
    ("job", "abort"): ("flare_app.provision.__main__", ("abort",)),
    ("egress",): ("flare_app.egress.__main__", ()),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; gives the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    for start, (module, first) in _PASSED_ON.items():
        if tuple(words[: len(start)]) == start:
            return int(import_module(module).main([*first, *words[len(start) :]]))
    arguments = _parser().parse_args(words)
    try:
        return int(arguments.run(arguments))
    except ValueError as error:
        return report_problems(error, arguments.json)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"fcl: {where}{error.strerror or error}; free space, or give a path that you may use", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing half-written is left", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fcl", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage="fcl COMMAND ..."
    )
    commands = parser.add_subparsers(
        prog="fcl", dest="command", required=True, metavar="COMMAND", help=argparse.SUPPRESS
    )
    doctor.add_parser(commands)
    data.add_parser(commands)
    card.add_parser(commands)
    bundle.add_parser(commands)
    watch.add_parser(commands)
    report.add_parser(commands)
    job = commands.add_parser("job", help="jobs of the federation")
    tasks = job.add_subparsers(dest="task", required=True)
    for start, (module, first) in _PASSED_ON.items():
        if start[0] == "job":
            tasks.add_parser(start[1], add_help=False, help=f"python -m {module.removesuffix('.__main__')} {first[0]}")
    commands.add_parser("egress", add_help=False, help="who got what from this site")
    return parser


def script() -> None:
    """The console script."""
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: threads of a session of FLARE that was interrupted would keep this process for ever.
    os._exit(code)


if __name__ == "__main__":
    script()
