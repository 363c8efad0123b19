"""A provisioned federation: startup kits, a whole consortium on this machine, jobs on one that runs elsewhere.

Examples:
    python -m flare_app.provision consortium
    python -m flare_app.provision consortium --workspace runs/longer --rounds 20
    python -m flare_app.provision consortium --workspace runs/longer --rounds 40 --resume
    python -m flare_app.provision create --out kits
    python -m flare_app.provision create --out kits --local --sites 2
    python -m flare_app.provision create --out kits --he
    python -m flare_app.provision adapt hospital-a
    python -m flare_app.provision submit jobs/fcl_pretrain --kit lead@coordinator.example --out results
    python -m flare_app.provision follow 1f6c7a2e-... --kit lead@coordinator.example --out results
    python -m flare_app.provision resume runs/jobs/fcl_pretrain --kit lead@coordinator.example --out results
    python -m flare_app.provision abort 1f6c7a2e-... --kit lead@coordinator.example
    python -m flare_app.provision stop --workspace runs/consortium

What a site reads, and how keys stay at the sites: flare_app/provision/README.md.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from flare_app.job import JOBS
from flare_app.processes import end_like_ctrl_c
from flare_app.provision.consortium import Consortium, run_consortium, watch
from flare_app.provision.kits import (
    PROJECT_FILE,
    ProvisionError,
    made_before,
    make_kits,
    on_this_machine,
    read_project,
    with_encryption,
)
from flare_app.provision.submission import admin_session, download, require_job_folder, resuming, submit
from flare_app.provision.system import end_leftovers, free_port


def _consortium(arguments: argparse.Namespace, console: Console) -> int:
    settings = replace(
        JOBS["fcl_pretrain"],
        rounds=arguments.rounds,
        seed=arguments.seed,
        overrides={"steps_per_epoch": arguments.steps},
    )
    what = Consortium(
        arguments.workspace.resolve(), settings, arguments.sites, not arguments.skip_preflight, arguments.resume
    )
    run_consortium(what, console)
    return 0


def _create(arguments: argparse.Namespace, console: Console) -> int:
    project = read_project(arguments.project)
    if arguments.local:
        project = on_this_machine(project, arguments.port or free_port(), arguments.sites)
    elif arguments.sites or arguments.port:
        raise ProvisionError("--sites and --port belong to --local; otherwise the project file says it")
    if arguments.he:
        project = with_encryption(project)
    before = made_before(project, arguments.out)
    kits = make_kits(project, arguments.out)
    console.print(f"kits of {kits.server}, {', '.join(kits.sites)} and their users: {kits.folder}", soft_wrap=True)
    if before:
        console.print(
            f"{before} is there already: these are new kits in {kits.folder.name}, with the same certificates",
            highlight=False,
            soft_wrap=True,
        )
    return 0


def _adapt(arguments: argparse.Namespace, console: Console) -> int:
    from flare_app.provision.builder import adapt_kit

    try:
        missing = adapt_kit(arguments.kit_folder)
    except (OSError, ValueError) as error:
        raise ProvisionError(str(error)) from error
    console.print(f"{arguments.kit_folder} is ready for fcl", highlight=False)
    if missing:
        console.print(
            "its own local/resources.json keeps its class_allow_list, which does not allow these classes; jobs without "
            f"code that name them will end there: {', '.join(missing)}",
            highlight=False,
            soft_wrap=True,
        )
    return 0


def _submit(arguments: argparse.Namespace, console: Console) -> int:
    _need_writable(arguments.out)
    require_job_folder(arguments.job)  # before a server that may not answer is asked
    prepared = resuming(arguments.job) if arguments.command == "resume" else nullcontext(arguments.job)
    with prepared as folder, admin_session(arguments.kit) as session:
        job_id = submit(session, folder)
    console.print(f"submitted {arguments.job.resolve().name} as {job_id}", highlight=False)
    return _watch(arguments, console, job_id) if arguments.out else 0


def _need_writable(out: Path | None) -> None:
    """Before a job that takes hours, not when its result is there."""
    if out is None:
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ProvisionError(
            f"results cannot be written to {out}: {error.strerror}. Give another folder with --out"
        ) from error


def _follow(arguments: argparse.Namespace, console: Console) -> int:
    _need_writable(arguments.out)
    return _watch(arguments, console, arguments.job_id)


def _abort(arguments: argparse.Namespace, console: Console) -> int:
    with admin_session(arguments.kit) as session:
        session.abort_job(arguments.job_id)
    console.print(f"job {arguments.job_id} is asked to end", highlight=False)
    return 0


def _stop(arguments: argparse.Namespace, console: Console) -> int:
    console.print(f"ended {end_leftovers(arguments.workspace.resolve())} processes")
    return 0


def _watch(arguments: argparse.Namespace, console: Console, job_id: str) -> int:
    try:
        with admin_session(arguments.kit) as session:
            ended = watch(session, job_id, console)
            if not ended.completed:
                raise ProvisionError(ended.explain())
            console.print(ended.status)
            if arguments.out:
                results = download(session, job_id, arguments.out)
                console.print(f"results: {results}", soft_wrap=True, highlight=False)
    except KeyboardInterrupt:
        options = f"{job_id} --kit {shlex.quote(str(arguments.kit))}"
        fetching = f" --out {shlex.quote(str(arguments.out))}" if arguments.out else ""
        console.print(
            f"no longer watched; job {job_id} goes on. To watch it again, or to end it:\n"
            f"  python -m flare_app.provision follow {options}{fetching}\n"
            f"  python -m flare_app.provision abort {options}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m flare_app.provision", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    workspace = {"type": Path, "default": Path("runs/consortium"), "metavar": "DIR"}

    whole = commands.add_parser("consortium", help="the whole thing on this machine, loopback only")
    whole.add_argument("--workspace", **workspace, help="folder for everything (runs/consortium)")  # type: ignore[arg-type]
    whole.add_argument("--sites", type=int, default=4, metavar="N", help="hospitals of the project file (4)")
    whole.add_argument("--rounds", type=int, default=3, metavar="N", help="of pre-training on made-up data (3)")
    whole.add_argument("--steps", type=int, default=5, metavar="N", help="of training in a round at each site (5)")
    whole.add_argument("--seed", type=int, default=0, metavar="N")
    whole.add_argument("--resume", action="store_true", help="go on from the checkpoints in the workspace")
    whole.add_argument("--skip-preflight", action="store_true", help="do not check the kits first")
    whole.set_defaults(run=_consortium)

    create = commands.add_parser("create", help="startup kits from the project file")
    create.add_argument("--out", type=Path, required=True, metavar="DIR")
    create.add_argument(
        "--project", type=Path, default=PROJECT_FILE, metavar="FILE", help="another than the shipped one"
    )
    create.add_argument("--local", action="store_true", help="for this machine: the server binds loopback only")
    create.add_argument("--sites", type=int, metavar="N", help="with --local: the first N hospitals")
    create.add_argument("--port", type=int, metavar="P", help="with --local: of the server (a free one)")
    create.add_argument("--he", action="store_true", help="with contexts for jobs that encrypt weights (tenseal)")
    create.set_defaults(run=_create)

    adapt = commands.add_parser("adapt", help="a kit that was made by `nvflare package` or `nvflare provision` alone")
    adapt.add_argument("kit_folder", type=Path, metavar="KIT", help="folder with startup/ and local/")
    adapt.set_defaults(run=_adapt)

    kit = argparse.ArgumentParser(add_help=False)
    kit.add_argument("--kit", type=Path, required=True, metavar="DIR", help="startup kit of the user")
    out = {"type": Path, "metavar": "DIR"}
    for name, text in (("submit", "a job folder"), ("resume", "a job folder again, from its checkpoints")):
        command = commands.add_parser(name, parents=[kit], help=text)
        command.add_argument("job", type=Path, metavar="FOLDER", help="as written by python -m flare_app.job export")
        command.add_argument("--out", **out, help="follow it to its end and fetch the result")  # type: ignore[arg-type]
        command.set_defaults(run=_submit)
    watch = commands.add_parser("follow", parents=[kit], help="watch a submitted job to its end")
    watch.add_argument("job_id", metavar="JOB_ID")
    watch.add_argument("--out", **out, help="fetch the result")  # type: ignore[arg-type]
    watch.set_defaults(run=_follow)
    abort = commands.add_parser("abort", parents=[kit], help="end a job")
    abort.add_argument("job_id", metavar="JOB_ID")
    abort.set_defaults(run=_abort)

    stop = commands.add_parser("stop", help="end what a consortium left whose command was killed")
    stop.add_argument("--workspace", **workspace, help="its folder (runs/consortium)")  # type: ignore[arg-type]
    stop.set_defaults(run=_stop)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; gives the exit code."""
    arguments, console = _parser().parse_args(argv), Console()
    end_like_ctrl_c()
    logging.getLogger("nvflare").addHandler(logging.NullHandler())  # of what fails, one message of ours is enough
    try:
        return int(arguments.run(arguments, console))
    except ProvisionError as error:
        console.print(str(error), markup=False, highlight=False, soft_wrap=True)
        return 1
    except OSError as error:
        console.print(f"{error}: free space, or correct the path", markup=False, highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("interrupted; no process that was started here is left")
        return 130


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # Not sys.exit: threads of a session of FLARE that was interrupted would keep this process for ever.
    os._exit(code)
