"""``fcl doctor``: is this machine ready, and what to do if not."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import uuid
from argparse import Namespace
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fcl
from flare_app.command.show import print_json, print_table

if TYPE_CHECKING:
    from flare_app.site import SiteSettings

_DISK_GIB = 2.0
_SOON_DAYS = 30  # signing and handing out anew take a few people and some days
_SITE_KIT = "fed_client.json"
# The file in startup/ that says whose kit it is: the names of its key and certificate, and what starts it.
_KITS = {
    _SITE_KIT: ("client", ("startup/start*.sh", "helm_chart")),
    "fed_server.json": ("server", ("startup/start*.sh", "helm_chart")),
    "fed_admin.json": ("client", ("startup/fl_admin.sh",)),
}
_RENEWING = "see flare_app/provision/README.md, section 10"
_HE_KEY = "startup/client_context.tenseal"  # in kits for encrypted weights


@dataclass(frozen=True)
class Finding:
    """One line: ``ok`` is ``None`` where nothing was asked for, or where ``fix`` says what to do soon; where ``ok`` is
    false, ``fix`` is the way out."""

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
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="of the slice cache (that of the site's settings, FCL_CACHE_DIR, ~/.cache/fcl)",
    )
    parser.add_argument(
        "--site", metavar="NAME", help="stands for {SITE_NAME} in the settings (name in the kit, else site-1)"
    )
    parser.add_argument("--kit", type=Path, metavar="DIR", help="a startup kit of FLARE, with the site's settings")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=_run)


def _run(arguments: Namespace) -> int:
    findings = diagnose(arguments.dataset_dir, arguments.cache_dir, arguments.kit, arguments.site)
    if arguments.json:
        print_json([asdict(finding) for finding in findings])
    else:
        print_table(("", "", "found", "way out"), [(_sign(f), f.what, f.found, f.fix) for f in findings])
    return int(any(finding.ok is False for finding in findings))


def _sign(finding: Finding) -> str:
    if finding.ok is None:
        return "soon" if finding.fix else "-"
    return "ok" if finding.ok else "WRONG"


def diagnose(dataset_dir: Path | None, cache_dir: Path | None, kit: Path | None, site: str | None) -> list[Finding]:
    """All findings, good and bad."""
    settings, wrong = _site_settings(kit, site)
    chosen = cache_dir or (settings and settings.cache_dir) or fcl.default_cache_dir()
    cache = Path(chosen).expanduser()
    return [
        _python(),
        *_packages(pinned(), metadata.version),
        _torch(),
        _disk(cache),
        _cache(cache),
        *_kit(kit),
        *wrong,
        _data(dataset_dir, settings),
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


def _kit(kit: Path | None) -> list[Finding]:
    if kit is None:
        return [Finding("FLARE kit", None, "not asked for (--kit DIR)")]
    kind = next((name for name in _KITS if (kit / "startup" / name).is_file()), None)
    if kind is None or not (kit / "local").is_dir():
        found = f"{kit} has no startup/ with one of {', '.join(_KITS)}, or no local/"
        fix = "give the folder with startup/ and local/, as unpacked; see flare_app/provision/README.md"
        return [Finding("FLARE kit", False, found, fix)]
    name, starts = _KITS[kind]
    key, certificate, root = (f"startup/{file}" for file in (f"{name}.key", f"{name}.crt", "rootCA.pem"))
    missing = [file for file in (key, certificate, root) if not (kit / file).is_file()]
    for patterns in (starts, ("local/resources.json", "local/resources.json.default")):
        if not any(any(kit.glob(pattern)) for pattern in patterns):
            missing.append(" or ".join(patterns))
    whole = Finding("FLARE kit", True, f"{kit}: {kind}")
    if missing:
        fix = "unpack the kit again, or have the centre send it again; see flare_app/provision/README.md"
        whole = Finding("FLARE kit", False, f"{kit} lacks {', '.join(missing)}", fix)
    return [whole, *_keys(kit, (key, _HE_KEY)), *_certificates(kit, (certificate, root))]


def _keys(kit: Path, names: Iterable[str]) -> list[Finding]:
    files = [kit / name for name in names if (kit / name).is_file()]
    exposed = [file for file in files if file.stat().st_mode & 0o077]
    return [Finding("key", False, f"{file} is open to other users", f"chmod 600 {file}") for file in exposed]


def _certificates(kit: Path, names: Iterable[str]) -> list[Finding]:
    """Those of the kit's owner and of the root, as far as they are there."""
    findings = []
    for file in (kit / name for name in names if (kit / name).is_file()):
        try:
            from cryptography.x509 import load_pem_x509_certificate

            read = load_pem_x509_certificate(file.read_bytes())
        except (ImportError, OSError, ValueError) as error:
            findings.append(Finding("certificate", False, f"{file} cannot be read: {error}", "unpack the kit again"))
            continue
        begin, end, now = read.not_valid_before_utc, read.not_valid_after_utc, datetime.now(UTC)
        found = f"{file} is valid from {begin:%Y-%m-%d} to {end:%Y-%m-%d}"
        days_left = (end - now).days
        if not begin <= now <= end:
            fix = f"set the clock of this machine right, or have the certificate renewed; {_RENEWING}"
            findings.append(Finding("certificate", False, found, fix))
        elif days_left < _SOON_DAYS:
            found, fix = f"{found}, ends in {days_left} days", f"have it renewed before; {_RENEWING}"
            findings.append(Finding("certificate", None, found, fix))
        else:
            findings.append(Finding("certificate", True, found))
    return findings


def _site_settings(kit: Path | None, site: str | None) -> tuple[SiteSettings | None, list[Finding]]:
    """As the site's process reads them; None where there are none, with a finding when they are wrong."""
    try:
        from flare_app.protocol import SiteError
        from flare_app.site import SETTINGS_FILE, SETTINGS_VARIABLE, read_settings
    except ImportError as error:
        return None, [Finding("site settings", False, str(error), "install the pinned requirements again")]
    local = (kit or Path()) / "local"
    of_site = kit is not None and (kit / "startup" / _SITE_KIT).is_file()
    if SETTINGS_VARIABLE not in os.environ and (kit is None or not (local / SETTINGS_FILE).is_file()):
        return None, [_no_data(f"{local / SETTINGS_FILE} does not exist")] if of_site else []
    try:
        settings = read_settings(site or _name_in(kit) or "site-1", local)
        silent = of_site and settings.data is None
        return settings, [_no_data(f'{local / SETTINGS_FILE} does not name "data"')] if silent else []
    except SiteError as error:
        fix = f"correct {local / SETTINGS_FILE}, or the file that {SETTINGS_VARIABLE} names"
        return None, [Finding("site settings", False, str(error), fix)]


def _no_data(found: str) -> Finding:
    fix = 'copy local/fcl_site.json.sample to local/fcl_site.json and set "data" and "dataset_dir" there'
    return Finding("site settings", False, found, fix)


def _name_in(kit: Path | None) -> str | None:
    """The site's name in the federation, from its kit."""
    try:
        return json.loads(((kit or Path()) / "startup" / _SITE_KIT).read_text(encoding="utf-8"))["client"]["fqsn"]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _data(dataset_dir: Path | None, settings: SiteSettings | None) -> Finding:
    if dataset_dir is None and settings is None:
        return Finding("data", None, "not asked for (--dataset-dir DIR, or settings of the site)")
    folder = dataset_dir or (settings and settings.dataset_dir)
    if not folder:
        return Finding("data", None, "the site's settings name none; the dataset's overlay does")
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
