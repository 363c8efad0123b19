"""Refuses configuration that would otherwise be ignored without a word.

MONAI merges the files of ``--config_file`` and then the command line's options into one dict, where a misspelt key is
just one more entry that nothing refers to. Here everything in the merged configuration must exist in the base file.
Limits: an overlay that replaces the list ``initialize`` removes the check with it (write ``+initialize`` to add to
it), and an ``a::b`` whose ``a`` does not exist fails earlier, in MONAI, with ``KeyError: 'query key: a'``.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from monai.bundle import ConfigParser
from monai.bundle.reference_resolver import ReferenceResolver
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS, ID_SEP_KEY

import fcl

T = TypeVar("T")

OPEN_MAPS = ("labels", "from_card")

# Entries that MONAI itself reads, and those that it adds with --tracking mlflow.
_TRACKING = frozenset(DEFAULT_MLFLOW_SETTINGS["configs"]) - frozenset(DEFAULT_MLFLOW_SETTINGS["handlers_id"])
_RESERVED = frozenset({"_meta_", "_desc_", "imports", "initialize", "run", "finalize"}) | _TRACKING


def refuse_unknown_keys(base: str, open_maps: Collection[str] = OPEN_MAPS) -> None:
    """:func:`check_overlays` for the configuration that is being evaluated; the first expression of ``initialize``.

    At that moment files and options are merged and nothing has been built yet.

    Args:
        base: as in :func:`check_overlays`.
        open_maps: as in :func:`check_overlays`.

    Raises:
        ValueError: naming every unknown key.
        RuntimeError: when called from anywhere but a MONAI config.
    """
    check_overlays(_calling_parser(), base, open_maps)


def refuse_unread(keys: Sequence[str], hint: str) -> None:
    """Check that no setting was given which only some overlay reads, and that overlay is not there.

    In the list ``initialize``, as :func:`refuse_unknown_keys`.

    Args:
        keys: settings that the base file leaves null and does not read itself.
        hint: what to do, e.g. ``"add configs/privacy/dp_sgd.json"``.

    Raises:
        ValueError: naming every such key that is set and that nothing refers to.
    """
    config = _calling_parser().get()
    read = {name.split(ID_SEP_KEY)[0] for text in _texts(config) for name in ReferenceResolver.match_refs_pattern(text)}
    unread = [key for key in keys if config.get(key) is not None and key not in read]
    if unread:
        raise ValueError(f"nothing in this configuration reads {', '.join(unread)}, which would be ignored: {hint}")


def check_overlays(parser: ConfigParser, base: str, open_maps: Collection[str] = OPEN_MAPS) -> None:
    """Check that overlays and options brought no key that the base file lacks.

    Arguments of a component (a dict with ``_target_``) are left to its constructor, lists to whoever reads them.

    Args:
        parser: holds the merged configuration.
        base: name of a file in the bundle's ``configs/`` without ``.json``, or the path of a ``.json`` file.
        open_maps: keys whose content is data with names of the user's choice.

    Raises:
        FileNotFoundError: when there is no such base file.
        ValueError: naming every unknown key, the likely right one, and components that lost their ``_target_``.
    """
    file = Path(base) if base.endswith(".json") else fcl.bundle_root() / "configs" / f"{base}.json"
    if not file.is_file():
        raise FileNotFoundError(f"base config {file} does not exist: give the name of a file in configs/, or a path")
    known = ConfigParser.load_config_files([str(file)])
    problems = list(_problems(parser.get(), known, file.name, frozenset(open_maps)))
    if problems:
        raise ValueError(
            f"the configuration does not fit {file}:\n"
            + "\n".join(f"  {problem}" for problem in problems)
            + "\nOverlays and command line options may only change what the base file defines; a nested key is a::b."
        )


def require(value: T | None, name: str, hint: str) -> T:
    """``value``, unless it was left unset.

    Args:
        value: what the config holds under ``name``.
        name: the key, which is also the command line's option.
        hint: what to give, e.g. ``"the folder that holds patientNNN/"``.

    Raises:
        ValueError: when ``value`` is null or empty.
    """
    if value is None or value == "":
        raise ValueError(f"{name} is not set: give --{name} <{hint}>, or set {name!r} in an overlay")
    return value


def _calling_parser() -> ConfigParser:
    # MONAI gives an expression no handle on the parser that holds it, but that parser's get_parsed_content is among the
    # callers; the innermost one is ours, should a config be read from within another.
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        caller = frame.f_locals.get("self")
        if isinstance(caller, ConfigParser):
            return caller
    raise RuntimeError("this check works only as an expression of a MONAI config, in its list 'initialize'")


def _texts(config: Any) -> Iterator[str]:
    if isinstance(config, str):
        yield config
    elif isinstance(config, Mapping | list):
        for value in config.values() if isinstance(config, Mapping) else config:
            yield from _texts(value)


def _problems(
    merged: Mapping[str, Any], known: Mapping[str, Any], file: str, open_maps: Collection[str]
) -> Iterator[str]:
    paths = list(_paths(known))
    for path in _unknown(merged, known, open_maps):
        likely = _closest(path, paths)
        yield f"{path!r} is not a key of {file}" + (f"; did you mean {likely!r}?" if likely else "")
    for path in _untargeted(merged, known):
        yield f"{path!r} replaces a component but has no '_target_'; to change one argument write '{path}::<argument>'"


def _unknown(
    merged: Mapping[str, Any], known: Mapping[str, Any], open_maps: Collection[str], at: str = ""
) -> Iterator[str]:
    for key, value in merged.items():
        path = f"{at}{key}"
        if key not in known:
            if at or key not in _RESERVED:
                yield path
        elif _is_namespace(value) and _is_namespace(known[key]) and path not in open_maps:
            yield from _unknown(value, known[key], open_maps, f"{path}::")


def _untargeted(merged: Mapping[str, Any], known: Mapping[str, Any], at: str = "") -> Iterator[str]:
    for key, value in merged.items():
        before = known.get(key)
        if not _is_namespace(value) or not isinstance(before, Mapping):
            continue
        if "_target_" in before:
            yield f"{at}{key}"
        else:
            yield from _untargeted(value, before, f"{at}{key}::")


def _is_namespace(value: Any) -> bool:
    return isinstance(value, Mapping) and "_target_" not in value


def _paths(known: Mapping[str, Any], at: str = "") -> Iterator[str]:
    for key, value in known.items():
        yield f"{at}{key}"
        if isinstance(value, Mapping):
            yield from _paths(value, f"{at}{key}::")


def _closest(path: str, paths: list[str]) -> str | None:
    def last(known: str) -> str:
        return known.rsplit("::", 1)[-1]

    # The right name in the wrong place is likelier than another name that is spelt alike.
    if same := [known for known in paths if last(known) == last(path)]:
        return same[0]
    if close := difflib.get_close_matches(path, paths, n=1):
        return close[0]
    names = {last(known): known for known in reversed(paths)}
    close = difflib.get_close_matches(last(path), names, n=1)
    return names[close[0]] if close else None
