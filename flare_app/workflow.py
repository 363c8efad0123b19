"""Opening the bundle at a site: which files, and the participant that they declare."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.reference_resolver import ReferenceResolver

import fcl
from fcl.config import check_overlays
from fcl.federation import DataCheck, Participant
from flare_app.precedence import Precedence
from flare_app.protocol import SiteError

Declared = TypeVar("Declared")


def bundle_folder(bundle_root: str | None) -> Path:
    """The bundle to run: the one given, else the one around the package ``fcl`` (installed, or shipped with the job).

    Raises:
        SiteError: when the one given has no ``configs`` folder.
    """
    root = fcl.bundle_root() if bundle_root is None else Path(bundle_root)
    if not (root / "configs").is_dir():
        raise SiteError("bundle_root of the job's client configuration names no folder with configs/ at this site")
    return root


def config_files(root: Path, config: Sequence[str], data: str | None) -> list[Path]:
    """The config files to merge, in order; paths in ``config`` are relative to the bundle.

    Args:
        root: the bundle's folder.
        config: e.g. ``["configs/pretrain.json", "configs/methods/simclr.json"]``.
        data: name of an overlay in ``configs/data``, or the path of a JSON file; None adds none.

    Raises:
        SiteError: naming the files that do not exist, and what there is instead.
    """
    files = [root / name for name in config]
    absent = [name for name in config if not (root / name).is_file()]
    missing = [f"{name!r} (there are {_choices(root / Path(name).parent)})" for name in absent]
    if data is not None:
        overlay = Path(data) if data.endswith(".json") else root / "configs" / "data" / f"{data}.json"
        if not overlay.is_absolute():
            overlay = root / overlay
        if not overlay.is_file():
            name = data if "/" not in data else Path(data).name
            missing.append(f"data overlay {name!r} (there are {_choices(root / 'configs' / 'data')})")
        files.append(overlay)
    if missing:
        raise SiteError(f"the bundle at this site has no {'; no '.join(missing)}")
    return files


def unknown_keys(root: Path, config: Sequence[str], overrides: Mapping[str, Any]) -> str | None:
    """What the bundle's own check of keys has to say of a job's overrides; None when all is well.

    The text holds words of job and bundle alone: no path, and nothing of a site's own overlay, which is not looked at.

    Args:
        root: the bundle's folder.
        config: the job's config files.
        overrides: config keys of the job.
    """
    base = root / config[0]
    parser = ConfigParser(ConfigParser.load_config_files([str(root / name) for name in config]))
    if "refuse_unknown_keys" not in str(parser.get("initialize", "")):
        return None  # a bundle that takes any key
    for key, value in overrides.items():
        section = ReferenceResolver.split_id(key)[0]
        try:
            parser[key] = value
        except (LookupError, TypeError, ValueError):
            if section not in parser:  # else it may lie in what a data overlay brings
                parser[section] = value
    try:
        check_overlays(parser, str(base))
    except ValueError as error:
        lines = str(error).replace(str(base), base.name).splitlines()
        return f"{lines[0]} {'; '.join(line.strip() for line in lines[1:])}"
    return None


def config_hash(root: Path, config: Sequence[str], overrides: Mapping[str, Any], seed: int) -> str:
    """Hash of what all sites must have in common: the job's config files as this site has them, overrides and seed."""
    digest = hashlib.sha256()
    for name in config:
        digest.update((root / name).read_bytes())
    digest.update(json.dumps([list(config), dict(overrides), seed, fcl.__version__], sort_keys=True).encode())
    return digest.hexdigest()[:16]


def open_workflow(
    root: Path,
    files: Sequence[Path],
    overrides: Mapping[str, Any],
    data_check: str = "off",
    precedence: Precedence | None = None,
) -> tuple[ConfigWorkflow, Participant]:
    """Parse the bundle, check the data and build its participant.

    Args:
        root: the bundle's folder.
        files: config files to merge.
        overrides: config keys of the job.
        data_check: see :class:`flare_app.site.SiteSettings`.
        precedence: what else is set, and what of it the overrides may not change.

    Raises:
        SiteError: when an override would undo a setting of the site, or the config declares no ``participant``, or one
            that is none.
        DataProblems: when the data are not fit.
    """
    workflow = parse_workflow(root, files, overrides, "participant", precedence)
    check_data(workflow, data_check)
    return workflow, declared(workflow, "participant", Participant, files)  # type: ignore[type-abstract]


def parse_workflow(
    root: Path,
    files: Sequence[Path],
    overrides: Mapping[str, Any],
    name: str,
    precedence: Precedence | None = None,
) -> ConfigWorkflow:
    """Parse the bundle and run its ``initialize``; nothing else is built yet.

    Raises:
        SiteError: when an override would undo a setting of the site, or the config does not declare ``name``.
    """
    precedence = precedence or Precedence()
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))  # MONAI does so in run(), which the federation never calls
    # It warns about overlays in folders of their own, and that it leaves logging alone: both are meant.
    logging.getLogger("monai.bundle.workflows").setLevel(logging.ERROR)
    workflow = ConfigWorkflow(
        config_file=[str(file) for file in files],
        meta_file=str(root / "configs" / "metadata.json"),
        logging_file=False,  # FLARE's logging stays as it is
        workflow_type="train",
    )
    # Not as arguments, some of which MONAI takes for itself: `tracking` would merge any file that it names.
    precedence.put(workflow.parser, overrides)
    if name not in workflow.parser:
        raise SiteError(f"{files[0].name} declares no {name!r}: it cannot take part in a federation")
    workflow.initialize()
    precedence.verify(workflow.parser)
    return workflow


def declared(workflow: ConfigWorkflow, name: str, protocol: type[Declared], files: Sequence[Path]) -> Declared:
    """Build what the config declares as ``name``.

    Raises:
        SiteError: when it is something else than ``protocol`` asks for.
    """
    workflow.add_property(name, required=True, config_id=name)
    found = getattr(workflow, name)
    if not isinstance(found, protocol):
        raise SiteError(
            f"{name!r} of {files[0].name} is a {type(found).__name__}: it lacks parts of "
            f"fcl.federation.{protocol.__name__}"
        )
    return found


def check_data(workflow: ConfigWorkflow, data_check: str) -> None:
    """Have the bundle check the site's data, if it declares a ``data_check``.

    Raises:
        DataProblems: when they are not fit.
    """
    if data_check == "off" or "data_check" not in workflow.parser:
        return
    workflow.add_property("data_check", required=True, config_id="data_check")
    check: DataCheck = workflow.data_check
    check.verify(strict=data_check == "strict")


def _choices(folder: Path) -> str:
    return ", ".join(sorted(file.name for file in folder.glob("*.json"))) or "none"
