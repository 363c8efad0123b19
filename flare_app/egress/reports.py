"""What a site may report: for each task the declared keys, and what each may hold."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from fcl.card import fits
from flare_app.egress.plain import EgressError, is_count, is_number, shown
from flare_app.egress.policy import EgressPolicy
from flare_app.protocol import TaskName, path_like

_SETTINGS_LENGTH = 16384
SITE_PARTS = {"sharing", "exchange", "validation", "training", "saving"}
_NAMES = 64  # metrics in one report


def check_report(policy: EgressPolicy, task: str, report: Any) -> None:
    """Check a report.

    Raises:
        EgressError: when it tells anything undeclared.
    """
    declared = _REPORTS.get(task, {})
    if not isinstance(report, dict):
        raise EgressError("report.keys", f"the report of {task!r} is no table")
    strangers = set(report) - set(declared)
    if strangers:
        raise EgressError("report.keys", f"undeclared in the report of {task!r}: {shown(strangers)}")
    for key, value in report.items():
        problem = declared[key](policy, value)
        if problem:
            raise EgressError(f"report.{key}", problem)


def without_few_scores(policy: EgressPolicy, report: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """A report that was checked, without its validation scores where they are of too few volumes; and why."""
    volumes = report.get("validation", {}).get("count", 0)
    if not report.get("validation") or volumes >= policy.min_validation_volumes:
        return dict(report), None
    why = f"of {volumes:g} volumes, the least is min_validation_volumes = {policy.min_validation_volumes}"
    return {**report, "validation": {}}, why


def entry_of(report: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifest says of a report that was checked."""
    names = sorted({*report.get("metrics", {}), *(f"validation/{name}" for name in report.get("validation", {}))})
    told = {"metrics": names, "card": sorted(report.get("card", {}))}
    return {"name": "report", "keys": sorted(report), **{key: listed for key, listed in told.items() if listed}}


def _count(policy: EgressPolicy, value: Any) -> str | None:
    return None if is_count(value) else "must be a whole number"


def _number(policy: EgressPolicy, value: Any) -> str | None:
    return None if is_number(value) else "must be a finite number"


def _flag(policy: EgressPolicy, value: Any) -> str | None:
    return None if isinstance(value, bool) else "must be true or false"


def _hash(policy: EgressPolicy, value: Any) -> str | None:
    return None if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{1,64}", value) else "must be a hash"


def _metrics(policy: EgressPolicy, value: Any) -> str | None:
    if not isinstance(value, dict) or len(value) > _NAMES:
        return f"must be a table of at most {_NAMES} numbers"
    strangers = [name for name in value if not isinstance(name, str) or not policy.allows_metric(name)]
    if strangers:
        return f"undeclared metrics {shown(strangers)}: name them under 'metrics' of the egress policy to allow them"
    broken = [name for name, number in value.items() if not is_number(number)]
    return f"no finite number as {shown(broken)}" if broken else None


def _description(policy: EgressPolicy, value: Any) -> str | None:
    if not isinstance(value, dict) or not all(is_number(number) for number in value.values()):
        return "must be a table of finite numbers"
    strangers = set(value) - set(policy.description)
    return f"undeclared {shown(strangers)}, declared are {', '.join(policy.description)}" if strangers else None


def _card(policy: EgressPolicy, value: Any) -> str | None:
    """Settings for the card of the weights: none that the policy does not name, none that is not as it should be."""
    if not isinstance(value, dict):
        return "must be a table"
    strangers = set(value) - set(policy.card)
    if strangers:
        return f"undeclared {shown(strangers)}, declared are {', '.join(policy.card) or 'none'}"
    broken = [name for name, entry in value.items() if not fits(name, entry)]
    return f"not what it may hold: {shown(broken)}" if broken else None


def _spec(policy: EgressPolicy, value: Any) -> str | None:
    if not isinstance(value, dict):
        return "must be a table of tensors"
    for name, text in value.items():
        if not isinstance(name, str) or not policy.allows_weight(name):
            return f"undeclared tensor {shown([name])}"
        if not isinstance(text, str) or not re.fullmatch(r"[a-z]{1,8}\d{1,3} \[[\d, ]{0,64}\]", text):
            return f"no dtype and shape of {name}"
    return None


def _settings(policy: EgressPolicy, value: Any) -> str | None:
    """The job's own settings, echoed by the site: plain JSON in which no text looks like a path of this site."""
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return "must be plain JSON"
    if len(text) > _SETTINGS_LENGTH:
        return f"has {len(text)} characters, more than {_SETTINGS_LENGTH}"
    return "names a path" if any(path_like(part) for part in _texts(value)) else None


def _sizes(policy: EgressPolicy, value: Any) -> str | None:
    """Site to bytes."""
    fits = isinstance(value, dict) and all(
        isinstance(name, str) and re.fullmatch(r"[\w.@-]{1,64}", name) and is_count(size)
        for name, size in value.items()
    )
    return None if fits else "must be a table of site names and byte counts"


def _parts(policy: EgressPolicy, value: Any) -> str | None:
    """Seconds by what they were spent on."""
    fits = isinstance(value, dict) and set(value) <= SITE_PARTS and all(map(is_number, value.values()))
    return None if fits else f"must be seconds of {', '.join(sorted(SITE_PARTS))}"


def check_privacy(policy: EgressPolicy, value: Any) -> str | None:
    keys = {"epsilon", "delta", "noise_multiplier", "releases"}
    fits = value is None or (isinstance(value, dict) and set(value) == keys and all(map(is_number, value.values())))
    return None if fits else f"privacy must be null or the numbers {', '.join(sorted(keys))}"


_REPORTS: dict[str, dict[str, Callable[[EgressPolicy, Any], str | None]]] = {
    TaskName.INITIALIZE: {
        "config_hash": _hash,
        "settings": _settings,
        "spec": _spec,
        "shares_features": _flag,
        "resumed_round": _count,
        "description": _description,
        "card": _card,
    },
    TaskName.SHARE: {"rows": _count, "volumes": _count, "privacy": check_privacy},
    TaskName.TRAIN: {
        "count": _count,
        "metrics": _metrics,
        "validation": _metrics,
        "features_received": _sizes,
        "seconds": _number,
        "parts": _parts,
        "peak_mib": _number,
        "privacy": check_privacy,
    },
    TaskName.VALIDATE: {"validation": _metrics},
}


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for key, entry in value.items() for text in (*_texts(key), *_texts(entry))]
    if isinstance(value, list | tuple):
        return [text for entry in value for text in _texts(entry)]
    return [value] if isinstance(value, str) else []
