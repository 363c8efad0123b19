"""What a hospital sets at its own site: one small JSON file, never an edit of the job or the bundle."""

from __future__ import annotations

import difflib
import json
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from flare_app.protocol import SiteError

SETTINGS_FILE = "fcl_site.json"
SETTINGS_VARIABLE = "FCL_SITE_SETTINGS"
_SITE_NAME = "{SITE_NAME}"
_WHOLE_NUMBERS = ("threads", "batch_size")
_WITHHELD = ("features", "card")
_DATA_CHECKS = ("on", "strict", "off")
# Keys of the bundle's configuration that a site may set, and those for its own features.
OVERRIDES = ("dataset_dir", "split_file", "site", "cache_dir", "device", "batch_size", "output_dir")
FEATURE_PRIVACY = ("noise_multiplier", "rows_per_patient", "delta", "epsilon_budget", "min_volumes")
# As :class:`fcl.federation.WeightPrivacy` has them; in the configuration each begins with ``weight_``.
WEIGHT_PRIVACY = ("noise_multiplier", "sample_rate", "max_grad_norm", "epsilon_budget", "delta")
_PRIVACY_COUNTS = ("rows_per_patient", "min_volumes")


@dataclass(frozen=True)
class HostedJob:
    """What a job says of the bundle that each site hosts; see :class:`flare_app.executor.FCLExecutor`.

    ``from_card`` are the settings of the network that the job's pre-trained weights need.
    """

    config: Sequence[str]
    data: str | None
    overrides: Mapping[str, Any]
    seed: int
    bundle_root: str | None
    checkpoint_dir: str | None
    from_card: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SiteSettings:
    """What is not set follows the job, then the bundle; ``dataset_dir`` needs ``data``, here or in the job.

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
        data_check: ``"on"`` checks this site's data at the start of every job and takes no part with problems in them;
            ``"strict"`` takes none with oddities either; ``"off"`` leaves the check to ``fcl data check``.
        withhold: what this site does not show, whatever the job says: ``["features"]`` takes part with weights only,
            ``["card"]`` tells nothing for the card of the weights (network, preprocessing, label names, licence).
        feature_privacy: overrides of the bundle's ``noise_multiplier``, ``rows_per_patient``, ``delta``,
            ``epsilon_budget`` and ``min_volumes`` for the features that this site shows.
        weight_privacy: this site trains with DP-SGD alone, whatever the job says, and by these ``noise_multiplier``,
            ``sample_rate``, ``max_grad_norm``, ``epsilon_budget`` and ``delta``; what is left out follows the job.
            None asks for no privacy of weights.
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
    data_check: str = "on"
    withhold: Sequence[str] = ()
    feature_privacy: Mapping[str, float | None] = field(default_factory=dict)
    weight_privacy: Mapping[str, float | None] | None = None

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any], source: str) -> SiteSettings:
        """Check and take ``settings``.

        Raises:
            SiteError: on unknown keys or values of a wrong type, all of them at once.
        """
        problems = []
        for key, value in settings.items():
            problems += _unknown(key, [entry.name for entry in fields(cls)]) or _problems(key, value)
        if problems:
            raise SiteError(f"site settings ({source}): {'; '.join(problems)}")
        return cls(**{key: value for key, value in settings.items() if value is not None})

    def overrides(self) -> dict[str, Any]:
        """What the settings change in the bundle's configuration; keys are those of its base configs.

        ``threads`` is none of them: it is a matter of the process. Nor are ``feature_privacy`` and ``weight_privacy``,
        whose keys not every configuration has: see :class:`flare_app.precedence.Precedence`.
        """
        plain = {name: getattr(self, name) for name in OVERRIDES if getattr(self, name) is not None}
        return {**plain, **({} if self.device is None else {"device": f"$torch.device({self.device!r})"})}


def _unknown(key: str, known: Sequence[str], where: str = "") -> list[str]:
    if key in known:
        return []
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
    return [f"unknown key {key!r}{where}, {hint}"]


def _problems(key: str, value: Any) -> list[str]:
    """What is wrong with the value of a known key; None leaves it as the job or the bundle has it."""
    if value is None:
        return []
    if key == "withhold":
        fits = isinstance(value, list) and all(entry in _WITHHELD for entry in value)
        return [] if fits else [f"withhold must be a list of {', '.join(_WITHHELD)}, got {value!r}"]
    if key == "data_check":
        return [] if value in _DATA_CHECKS else [f"data_check must be one of {', '.join(_DATA_CHECKS)}, got {value!r}"]
    if key == "feature_privacy":
        return _feature_privacy_problems(value)
    if key == "weight_privacy":
        return _weight_privacy_problems(value)
    if key in _WHOLE_NUMBERS:
        return [] if _is_count(value) else [f"{key} must be a whole number of at least 1, got {value!r}"]
    return [] if isinstance(value, str) else [f"{key} must be a text, got {type(value).__name__}"]


def _feature_privacy_problems(value: Any) -> list[str]:
    if not isinstance(value, dict):
        return [f"feature_privacy must be a JSON object, got {type(value).__name__}"]
    problems = []
    for key, number in value.items():
        problems += _unknown(key, FEATURE_PRIVACY, " in feature_privacy")
        if key in _PRIVACY_COUNTS and number is not None and not _is_count(number):
            problems.append(f"{key} must be a whole number of at least 1, got {number!r}")
        elif key in FEATURE_PRIVACY and key not in _PRIVACY_COUNTS and number is not None:
            plain = isinstance(number, int | float) and not isinstance(number, bool)
            if not plain or not 0 < number < math.inf:
                problems.append(f"{key} must be a positive number, got {number!r}")
    return problems


def _weight_privacy_problems(value: Any) -> list[str]:
    if not isinstance(value, dict):
        return [f"weight_privacy must be a JSON object, got {type(value).__name__}"]
    problems = []
    for key, number in value.items():
        unknown = _unknown(key, WEIGHT_PRIVACY, " in weight_privacy")
        problems += unknown
        if unknown or (key == "epsilon_budget" and number is None):
            continue
        plain = isinstance(number, int | float) and not isinstance(number, bool)
        if key == "sample_rate" and not (plain and 0 < number <= 1):
            problems.append(f"sample_rate of weight_privacy must be above 0 and at most 1, got {number!r}")
        elif key == "delta" and not (plain and 0 < number < 1):
            problems.append(f"delta of weight_privacy must lie between 0 and 1, got {number!r}")
        elif not (plain and 0 < number < math.inf):
            problems.append(f"{key} of weight_privacy must be a positive number, got {number!r}")
    return problems


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


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
