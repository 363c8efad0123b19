"""``fcl doctor``: is this machine ready, and what to do if not."""

from __future__ import annotations

import os
import re
import shutil
import sys
import uuid
from argparse import Namespace
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import fcl
from flare_app.command.show import print_json, print_table

_DISK_GIB = 2.0
_KIT_FILES = ("fed_client.json", "fed_server.json", "fed_admin.json")


@dataclass(frozen=True)
class Finding:
    """One line: ``ok`` is ``None`` where nothing was asked for; ``fix`` is the way out where it is false."""

    what: str
    ok: bool | None
    found: str
    fix: str = ""


def add_parser(commands: Any) -> None:
    """Add ``doctor`` to the commands of ``fcl``."""
    parser = commands.add_parser("doctor", help="is this machine ready")
    parser.add_argument(
        "--dataset-dir", type=Path, metavar="DIR", help="data to be read (else that of the site's settings)"
    )
    parser.add_argument(
        "--cache-dir", type=Path, metavar="DIR", help="of the slice cache (FCL_CACHE_DIR, else ~/.cache/fcl)"
    )
    parser.add_argument(
        "--site", default="site-1", metavar="NAME", help="stands for {SITE_NAME} in the settings (site-1)"
    )
    parser.add_argument("--kit", type=Path, metavar="DIR", help="a startup kit of FLARE")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=_run)


def _run(arguments: Namespace) -> int:
    findings = diagnose(arguments.dataset_dir, arguments.cache_dir, arguments.kit, arguments.site)
    if arguments.json:
        print_json([asdict(finding) for finding in findings])
    else:
        signs = {True: "ok", False: "WRONG", None: "-"}
        print_table(("", "", "found", "way out"), [(signs[f.ok], f.what, f.found, f.fix) for f in findings])
    return int(any(finding.ok is False for finding in findings))


def diagnose(dataset_dir: Path | None, cache_dir: Path | None, kit: Path | None, site: str) -> list[Finding]:
    """All findings, good and bad."""
    cache = Path(cache_dir or fcl.default_cache_dir()).expanduser()
    return [
        _python(),
        *_packages(pinned(), metadata.version),
        _torch(),
        _disk(cache),
        _cache(cache),
        _kit(kit),
        _data(dataset_dir, site),
    ]


def pinned() -> dict[str, str]:
    """Package to version: requirements.txt of a clone, else what the installed package asks for."""
    file = Path(fcl.__file__).resolve().parents[2] / "requirements.txt"
    if file.is_file():
        lines: Iterable[str] = file.read_text(encoding="utf-8").splitlines()
    else:
        lines = [line for line in metadata.requires("fcl") or () if "extra ==" not in line]
    found = (re.match(r"([\w.\-]+)\s*==\s*([^\s;#]+)", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    new_enough = sys.version_info[:2] >= (3, 11)
    return Finding("Python", new_enough, version, "" if new_enough else "use 3.11 or newer")


def _packages(pins: dict[str, str], installed: Callable[[str], str]) -> list[Finding]:
    wrong = []
    for name, wanted in pins.items():
        try:
            version = installed(name).split("+")[0]
        except metadata.PackageNotFoundError:
            version = "not installed"
        if version != wanted:
            fix = f"pip install {name}=={wanted}"
            wrong.append(Finding(f"package {name}", False, f"{version}, wanted {wanted}", fix))
    return wrong or [Finding("packages", True, f"{len(pins)} as pinned")]


def _torch() -> Finding:
    try:
        import torch
    except Exception as error:  # a broken installation raises what it likes
        return Finding("torch", False, f"{type(error).__name__}: {error}", "install the pinned requirements again")
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU"
    return Finding("torch", True, f"{device}, {torch.get_num_threads()} threads of {os.cpu_count()} cores")


def _disk(folder: Path) -> Finding:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free / 2**30
    fix = f"free space there, or set FCL_CACHE_DIR to a disk with {_DISK_GIB:g} GiB"
    return Finding("disk", free >= _DISK_GIB, f"{free:.1f} GiB free at {existing}", "" if free >= _DISK_GIB else fix)


def _cache(folder: Path) -> Finding:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{uuid.uuid4().hex}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        return Finding(
            "cache folder", False, f"{folder}: {error.strerror}", "set FCL_CACHE_DIR to a folder you may write"
        )
    return Finding("cache folder", True, str(folder))


def _kit(kit: Path | None) -> Finding:
    if kit is None:
        return Finding("FLARE kit", None, "not asked for (--kit DIR)")
    names = [name for name in _KIT_FILES if (kit / "startup" / name).is_file()]
    if names and (kit / "local").is_dir():
        return Finding("FLARE kit", True, f"{kit}: {names[0]}")
    fix = "give the folder with startup/ and local/, as unpacked; see flare_app/provision/README.md"
    return Finding("FLARE kit", False, f"{kit} has no startup/ with one of {', '.join(_KIT_FILES)}, or no local/", fix)


def _data(dataset_dir: Path | None, site: str) -> Finding:
    folder = dataset_dir
    if folder is None:
        from flare_app.protocol import SiteError
        from flare_app.site import SETTINGS_VARIABLE, read_settings

        if SETTINGS_VARIABLE not in os.environ:
            return Finding("data", None, f"not asked for (--dataset-dir DIR, or {SETTINGS_VARIABLE})")
        try:
            settings = read_settings(site, Path())
        except SiteError as error:
            return Finding("site settings", False, str(error), f"correct the file that {SETTINGS_VARIABLE} names")
        if settings.dataset_dir is None:
            return Finding("data", None, "the site's settings name none; the dataset's overlay does")
        folder = Path(settings.dataset_dir)
    fix = "correct the path, or have its owner give you the right to read it"
    try:
        file = next((Path(top) / names[0] for top, _, names in os.walk(folder, onerror=_raise) if names), None)
        if file is None:
            return Finding("data", False, f"{folder} holds no file", "copy the data there, or give another folder")
        with open(file, "rb") as stream:
            stream.read(1)
    except OSError as error:
        return Finding("data", False, f"{error.filename}: {error.strerror}", fix)
    return Finding("data", True, f"{folder} can be read")


def _raise(error: OSError) -> None:
    raise error
