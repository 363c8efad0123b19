"""Writes down the configuration that a run was made with."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from fcl.config.guard import _calling_parser

logger = logging.getLogger(__name__)


def configuration_hash(parser: ConfigParser) -> str:
    """12 hex digits that name the merged configuration that ``parser`` holds."""
    return hashlib.sha256(json.dumps(_content(parser), sort_keys=True, default=str).encode()).hexdigest()[:12]


def _content(parser: ConfigParser) -> dict[str, Any]:
    return {key: value for key, value in parser.get().items() if key != "_meta_"}


def record_configuration(output_dir: str | Path) -> str:
    """Log the settings of the configuration that is being evaluated, and keep all of it in ``output_dir/config.json``.

    The file holds the files of ``--config_file`` and the command line's options as MONAI merged them: a config file
    that repeats the run.

    Args:
        output_dir: made when missing.

    Returns:
        12 hex digits that name the configuration.

    Raises:
        RuntimeError: when called from anywhere but a MONAI config.
    """
    parser = _calling_parser()
    content, digest = _content(parser), configuration_hash(parser)
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    ConfigParser.export_config_file(content, str(folder / "config.json"), fmt="json", indent=2)
    settings = {key: value for key, value in content.items() if key != "imports" and not isinstance(value, dict | list)}
    lines = (f"  {key} = {value}" for key, value in settings.items() if not str(value).startswith(("$", "@", "%")))
    logger.info("configuration %s, kept in %s:\n%s", digest, folder / "config.json", "\n".join(lines))
    return digest
