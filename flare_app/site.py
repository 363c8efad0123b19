"""What a hospital sets at its own site: one small JSON file, never an edit of the job or the bundle."""

from __future__ import annotations

import difflib
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from flare_app.protocol import SiteError

SETTINGS_FILE = "fcl_site.json"
SETTINGS_VARIABLE = "FCL_SITE_SETTINGS"
_SITE_NAME = "{SITE_NAME}"


@dataclass(frozen=True)
class SiteSettings:
    """All optional; what is not set follows the job, then the bundle.

    Args:
        dataset_dir: folder with this site's data.
        data: overlay that says how to read it: a name in the bundle's ``configs/data``, or the path of a JSON file.
        split_file: JSON file that says which patients belong to which site and fold.
        site: this site's name in the split; the name in the federation otherwise.
        cache_dir: folder for the slice cache.
        device: ``"cpu"``, ``"cuda:0"``, ...
        threads: torch threads of this site's process.
        batch_size: slices in a batch.
        output_dir: folder for what the bundle writes at this site.
    """

    dataset_dir: str | None = None
    data: str | None = None
    split_file: str | None = None
    site: str | None = None
    cache_dir: str | None = None
    device: str | None = None
    threads: int | None = None
    batch_size: int | None = None
    output_dir: str | None = None

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any], source: str) -> SiteSettings:
        """Check and take ``settings``.

        Raises:
            SiteError: on unknown keys or values of a wrong type, all of them at once.
        """
        known = [entry.name for entry in fields(cls)]
        whole_numbers = {"threads", "batch_size"}
        problems = []
        for key, value in settings.items():
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
                problems.append(f"unknown key {key!r}, {hint}")
            elif value is not None and key in whole_numbers:
                if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                    problems.append(f"{key} must be a whole number of at least 1, got {value!r}")
            elif value is not None and not isinstance(value, str):
                problems.append(f"{key} must be a text, got {type(value).__name__}")
        if problems:
            raise SiteError(f"site settings ({source}): {'; '.join(problems)}")
        return cls(**settings)

    def overrides(self) -> dict[str, Any]:
        """What the settings change in the bundle's configuration; keys are those of its base configs.

        ``threads`` is none of them: it is a matter of the process.
        """
        plain = {
            name: getattr(self, name)
            for name in ("dataset_dir", "split_file", "site", "cache_dir", "batch_size", "output_dir")
        }
        if self.device is not None:
            plain["device"] = f"$torch.device({self.device!r})"
        return {name: value for name, value in plain.items() if value is not None}


def read_settings(site_name: str, local_dir: str | Path, environ: Mapping[str, str] = os.environ) -> SiteSettings:
    """From the file that ``$FCL_SITE_SETTINGS`` names, else from ``fcl_site.json`` in the site's local folder.

    ``{SITE_NAME}`` in that path and in the values stands for the site's name: one file can serve a simulator run.

    Raises:
        SiteError: when the file cannot be read or is not as it should be.
    """
    chosen = environ.get(SETTINGS_VARIABLE)
    file = Path(chosen.replace(_SITE_NAME, site_name)) if chosen else Path(local_dir) / SETTINGS_FILE
    source = f"${SETTINGS_VARIABLE}" if chosen else f"local/{SETTINGS_FILE}"
    if not file.is_file():
        if chosen:
            raise SiteError(f"site settings: the file that {source} names does not exist")
        return SiteSettings()
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise SiteError(f"site settings ({source}) cannot be read as JSON: {type(error).__name__}") from error
    if not isinstance(content, dict):
        raise SiteError(f"site settings ({source}) must be a JSON object, got {type(content).__name__}")
    filled = {
        key: value.replace(_SITE_NAME, site_name) if isinstance(value, str) else value for key, value in content.items()
    }
    return SiteSettings.from_dict(filled, source)


def site_seed(seed: int, site_name: str) -> int:
    """A seed of this site's own: other sites get others, a repeated run gets the same whoever else takes part."""
    return zlib.crc32(f"{seed}/{site_name}".encode()) % 2**31
