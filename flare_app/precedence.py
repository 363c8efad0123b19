"""Whose word goes first: what of the bundle's configuration is the site's, and what a job may not change of it.

A setting takes effect where the configuration refers to it: ``"dataset_dir": "@dataset_dir"``. A job that overrides
that place, or something around it, would undo the site's setting without naming it, and is refused. What counts is
what an override has done, not how it is spelt: MONAI takes ``a::b``, ``a#b``, ``a::-1``, or a whole ``a`` for the same.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.config_item import ConfigComponent
from monai.bundle.reference_resolver import ReferenceResolver
from monai.bundle.utils import EXPR_KEY, ID_SEP_KEY, MACRO_KEY, MERGE_KEY

from flare_app.protocol import SiteError
from flare_app.site import FEATURE_PRIVACY, OVERRIDES, WEIGHT_PRIVACY, SiteSettings

# What reads these is the site's in all its arguments: another datalist leads out of dataset_dir, another ledger
# forgets what was spent.
_WHOLE = ("dataset_dir", *FEATURE_PRIVACY)
# What a job may set where the site leaves it open. Not delta: a large one makes a budget of epsilon last.
_LEFT_OPEN = ("dataset_dir", *(key for key in FEATURE_PRIVACY if key != "delta"))
# Whatever the site sets: what a patient has spent outlives the job, and so must not lie where the job says.
_LEDGER = "ledger"
_LEDGER_OF_SITE = "the place of its privacy ledger"
_WEIGHT_KEYS = {f"weight_{key}": key for key in WEIGHT_PRIVACY}
# A setting that a job may not change of a private training.
_KEPT_OF_TRAINING = ("weight_delta",)
_GONE = ...  # nothing of a JSON file, and equal to its copy

_Place = tuple[str, ...]


@dataclass(frozen=True)
class Precedence:
    """What a site's configuration is made of beside the bundle's files and the job's overrides.

    Args:
        first: keys that this app sets; the job's overrides go before them.
        own: keys that the site sets; they go before all.
        privacy: the site's ``feature_privacy``; the same, wherever the configuration has the key. With any of it, so is
            the way from the site's data to the features that it shows.
        weights: the site's ``weight_privacy``, by the keys of the configuration; None asks for none.
        components: ids of components that the site's own choice of data overlay declares.
    """

    first: Mapping[str, Any] = field(default_factory=dict)
    own: Mapping[str, Any] = field(default_factory=dict)
    privacy: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, Any] | None = None
    components: Sequence[str] = ()

    @classmethod
    def of(cls, settings: SiteSettings, overlay: Path | None, first: Mapping[str, Any]) -> Precedence:
        """That of a site.

        Args:
            settings: of the site.
            overlay: the data overlay that they name; None where they leave it to the job.
            first: see the class.
        """
        content = {} if overlay is None else ConfigParser.load_config_file(overlay)
        components = [
            key.lstrip(MERGE_KEY)
            for key, value in content.items()
            if key.startswith(MERGE_KEY) or len(_place(key)) > 1 or ConfigComponent.is_instantiable(value)
        ]
        # A file of the site's own is as good as its settings; one of the bundle's holds defaults.
        brought = (settings.data or "").endswith(".json")
        kept = {key: value for key, value in content.items() if brought and key in OVERRIDES}
        asked = settings.weight_privacy
        weights = None if asked is None else {key: asked[name] for key, name in _WEIGHT_KEYS.items() if name in asked}
        return cls(first, {**kept, **settings.overrides()}, settings.feature_privacy, weights, components)

    def put(self, parser: ConfigParser, overrides: Mapping[str, Any]) -> None:
        """Set all keys in the merged files of ``parser``, the site's last.

        Raises:
            SiteError: naming each of the job's ``overrides`` that would change what is the site's, or one that lies in
                a section that does not exist.
        """
        parser.update(self.first)
        held = self._held(parser.get())
        before = {place: copy.deepcopy(_at(parser.get(), place)) for place in held}
        refused, undone = [], set()
        for key, value in overrides.items():
            try:
                parser[key] = value
            except (LookupError, TypeError, ValueError) as error:
                raise SiteError(f"the job's override of {key!r} lies in no section of the configuration") from error
            changed = [place for place in before if _at(parser.get(), place) != before[place]]
            if changed:
                refused.append(repr(key))
            for place in changed:
                undone.add(held[place])
                del before[place]
        if refused:
            raise SiteError(
                f"this site sets {', '.join(sorted(undone))} itself, and the job's override of {', '.join(refused)} "
                "would change what comes of it: leave it out"
            )
        parser.update(self._set(parser))

    def verify(self, parser: ConfigParser) -> None:
        """Check what the components get, now that ``parser`` has parsed its content.

        Raises:
            SiteError: when it is something else than the site has set.
        """
        for key, value in self._set(parser).items():
            computed = isinstance(value, str) and value.startswith(EXPR_KEY)
            expected = parser.get_parsed_content(key) if computed else value
            plain = [place for place in _readers(parser.get(), key) if _at(parser.get(), place) == f"@{key}"]
            for place in [(key,), *plain]:
                name = ID_SEP_KEY.join(place)
                if parser[key] != value or parser.get_parsed_content(name) != expected:
                    raise SiteError(f"{name!r} would get something else than this site's {self._name(key)}")

    def unread(self, parser: ConfigParser) -> list[str]:
        """Keys of the site's ``feature_privacy`` that nothing in the configuration refers to."""
        return [key for key in self.privacy if not _readers(parser.get(), key)]

    def _set(self, parser: ConfigParser) -> dict[str, Any]:
        of_features = {key: value for key, value in self.privacy.items() if key in parser}
        # A training that reads none of them is refused as a whole, once it is there to be asked.
        of_weights = {key: value for key, value in (self.weights or {}).items() if _readers(parser.get(), key)}
        return {**self.own, **of_features, **of_weights}

    def _name(self, key: str) -> str:
        if key in _WEIGHT_KEYS:
            return "weight_privacy"
        return "feature_privacy" if key in self.privacy else key

    def _held(self, config: Mapping[str, Any]) -> dict[_Place, str]:
        """Places whose content a job may not change, each with the site's setting that it belongs to."""
        ledgers = [place for place, _ in _leaves(config) if place[-1] == _LEDGER]
        held = dict.fromkeys(_with_behind(config, ledgers), "feature_privacy" if self.privacy else _LEDGER_OF_SITE)
        own_reader = [_place(name) for name in self.components]
        if self.privacy:
            policies = [place for key in self.privacy for place in _readers(config, key)]
            readers = [_component(config, place) for place in _readers(config, "dataset_dir") if len(place) > 1]
            rows = [*_with_behind(config, readers), *_ways(config, policies, [*own_reader, *readers])]
            held.update(dict.fromkeys(rows, "feature_privacy"))
        held.update(dict.fromkeys(own_reader, "data"))
        if self.weights is not None and any(_readers(config, key) for key in _WEIGHT_KEYS):
            held.update(dict.fromkeys(_training(config), "weight_privacy"))
        for key in (*self.own, *self.privacy):
            for place in _readers(config, key):
                if len(place) == 1 and place[0] in OVERRIDES:
                    continue  # another setting, which has this one for its default
                whole = key in _WHOLE
                section = _component(config, place) if whole else place
                places = _with_behind(config, [section]) if whole else [section]
                held.update(dict.fromkeys(places, self._name(key)))
        for key in (*self.own, *self.privacy, *(self.weights or ()), *_LEFT_OPEN):
            held.pop((key,), None)
        return held


def _place(name: str) -> _Place:
    return tuple(ReferenceResolver.split_id(name))


def _leaves(config: Any, at: _Place = ()) -> Iterator[tuple[_Place, str]]:
    if isinstance(config, Mapping):
        for key, value in config.items():
            yield from _leaves(value, (*at, str(key)))
    elif isinstance(config, list):
        for index, value in enumerate(config):
            yield from _leaves(value, (*at, str(index)))
    elif isinstance(config, str):
        yield at, config


def _at(config: Any, place: _Place) -> Any:
    for part in place:
        if isinstance(config, Mapping) and part in config:
            config = config[part]
        elif isinstance(config, list) and part.isdecimal() and int(part) < len(config):
            config = config[int(part)]
        else:
            return _GONE
    return config


def _references(place: _Place, text: str) -> list[_Place]:
    """Places that a text of the configuration refers to."""
    text = ConfigParser.resolve_relative_ids(ID_SEP_KEY.join(place), text)
    if text.startswith(MACRO_KEY):
        file, name = ConfigParser.split_path_id(text[len(MACRO_KEY) :])
        return [] if file else [_place(name)]
    return [_place(name) for name in ReferenceResolver.match_refs_pattern(text)]


def _readers(config: Any, key: str) -> list[_Place]:
    return [place for place, text in _leaves(config) if any(name[0] == key for name in _references(place, text))]


def _component(config: Any, place: _Place) -> _Place:
    """The innermost component around a place, or the place."""
    around = [place[:end] for end in range(len(place) - 1, 0, -1)]
    return next((outer for outer in around if ConfigComponent.is_instantiable(_at(config, outer))), place)


def _with_behind(config: Any, places: Sequence[_Place]) -> list[_Place]:
    return [each for place in places for each in (place, *_behind(config, place))]


def _behind(config: Any, place: _Place, found: tuple[_Place, ...] = ()) -> tuple[_Place, ...]:
    """All that a place refers to, and what that refers to in turn."""
    for leaf, text in _leaves(_at(config, place), place):
        for name in _references(leaf, text):
            if name not in found:
                found = _behind(config, name, (*found, name))
    return found


def _ways(config: Any, policies: Sequence[_Place], sources: Sequence[_Place]) -> list[_Place]:
    """All references by which a site's data come from their sources to what shares features by a policy.

    By these it is settled whose each shared row is, which noise and least cohort rest on. What else those components
    take is left out: the job may choose how to train.
    """

    def leads(name: _Place) -> bool:
        return any(
            place[: len(source)] == source or source[: len(place)] == place
            for place in _with_behind(config, [name])
            for source in sources
        )

    # The outermost component around a policy is what shares.
    around = [place[:end] for place in policies for end in range(len(place) - 1, 0, -1)]
    sharing = [place for place in around if ConfigComponent.is_instantiable(_at(config, place))]
    found = []
    for section in _with_behind(config, sharing):
        for leaf, text in _leaves(_at(config, section), section):
            if any(map(leads, _references(leaf, text))):
                found.append(leaf)
    return found


def _training(config: Any) -> list[_Place]:
    """All that a participant is made of, but for plain settings, such as a learning rate.

    What is private of its weights rests on loss, sampler, augmentation, optimizer and trainer together, and a
    reference put in the place of another can part them.
    """
    found = [("participant",), *_behind(config, ("participant",))]
    settings = [place for place in found if len(place) == 1 and not _holds_component(_at(config, place))]
    return [place for place in found if place not in settings or place[0] in _KEPT_OF_TRAINING]


def _holds_component(config: Any) -> bool:
    if ConfigComponent.is_instantiable(config):
        return True
    entries = config.values() if isinstance(config, Mapping) else config if isinstance(config, list) else ()
    return any(map(_holds_component, entries))
