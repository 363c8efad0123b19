from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser

from flare_app.precedence import Precedence
from flare_app.protocol import SiteError
from flare_app.site import SiteSettings

CONFIG: dict[str, Any] = {
    "dataset_dir": None,
    "split_file": "$@dataset_dir + '/split.json'",
    "cache_dir": "/cache",
    "batch_size": 4,
    "seed": 0,
    "noise_multiplier": None,
    "delta": 1e-5,
    "min_volumes": 2,
    "records": {"_target_": "dict", "dataset_dir": "@dataset_dir", "datalist": "dataset.json", "parts": "@parts"},
    "parts": ["training"],
    "cache": {"_target_": "dict", "records": "$@records.copy()", "size": 64},
    "bank": {"_target_": "dict", "patient": "$@cache.patient", "age": "@seed"},
    "loaders": [
        {"_target_": "dict", "size": "@batch_size", "shuffle": True},
        {"_target_": "dict", "size": "$2 * @batch_size"},
    ],
    "participant": {
        "_target_": "dict",
        "rows": 512,
        "bank": "@bank",
        "policy": {
            "_target_": "dict",
            "noise": "@noise_multiplier",
            "delta": "@delta",
            "least": "@min_volumes",
            "ledger": "$@cache_dir + '/ledger.json'",
        },
    },
}
PRIVACY = {"noise_multiplier": 8.0}


def _put(settings: dict[str, Any], overrides: dict[str, Any], overlay: Path | None = None) -> ConfigParser:
    parser = ConfigParser(copy.deepcopy(CONFIG))
    precedence = Precedence.of(SiteSettings.from_dict(settings, "test"), overlay, {"seed": 7})
    precedence.put(parser, overrides)
    precedence.verify(parser)
    return parser


def _refused(settings: dict[str, Any], overrides: dict[str, Any], overlay: Path | None = None) -> str:
    with pytest.raises(SiteError) as error:
        _put(settings, overrides, overlay)
    return str(error.value)


def test_the_site_goes_before_the_job_and_the_job_before_what_the_app_sets() -> None:
    overrides = {"seed": 1, "batch_size": 5, "dataset_dir": "/job", "noise_multiplier": 0.5, "delta": 1e-4}
    parser = _put({}, overrides)
    assert [parser[key] for key in overrides] == list(overrides.values())
    own = {"batch_size": 6, "dataset_dir": "/site", "feature_privacy": {"noise_multiplier": 8.0, "delta": 1e-6}}
    parser = _put(own, overrides)
    assert [parser[key] for key in overrides] == [1, 6, "/site", 8.0, 1e-6]
    assert _put({}, {})["seed"] == 7


@pytest.mark.parametrize(
    ("settings", "overrides"),
    [
        ({"dataset_dir": "/site"}, {"records::dataset_dir": "/job"}),
        ({"dataset_dir": "/site"}, {"records#dataset_dir": "/job"}),
        ({"dataset_dir": "/site"}, {"records": {"dataset_dir": "/job"}}),
        ({"dataset_dir": "/site"}, {"": {**CONFIG, "records": {"dataset_dir": "/job"}}}),
        ({"dataset_dir": "/site"}, {"records::datalist": "/job/dataset.json"}),
        ({"dataset_dir": "/site"}, {"records::_disabled_": True}),
        ({"dataset_dir": "/site"}, {"parts": ["test"]}),
        ({"dataset_dir": "/site"}, {"parts::0": "test"}),
        ({"batch_size": 8}, {"loaders::0::size": 1}),
        ({"batch_size": 8}, {"loaders::-1::size": 1}),
        ({"batch_size": 8}, {"loaders": []}),
        ({"feature_privacy": PRIVACY}, {"participant::policy::noise": None}),
        ({"feature_privacy": PRIVACY}, {" participant ::policy::noise": None}),
        ({"feature_privacy": PRIVACY}, {"participant::policy::least": 1}),
        ({"feature_privacy": PRIVACY}, {"participant::policy::_disabled_": "true"}),
        ({"feature_privacy": PRIVACY}, {"participant::policy::further": 1}),
        ({"feature_privacy": PRIVACY}, {"delta": 0.5}),
        ({"feature_privacy": PRIVACY}, {"bank": {"age": 1}}),
        ({"feature_privacy": PRIVACY}, {"bank::patient": "@records"}),
        ({"feature_privacy": PRIVACY}, {"participant::bank": None}),
        ({"feature_privacy": PRIVACY}, {"cache::records": []}),
        ({"feature_privacy": PRIVACY}, {"records::datalist": "other.json"}),
        ({"feature_privacy": PRIVACY}, {"parts": ["test"]}),
    ],
)
def test_what_would_undo_a_setting_of_the_site_is_refused_by_name(
    settings: dict[str, Any], overrides: dict[str, Any]
) -> None:
    (setting,), (key,) = settings, overrides
    message = _refused(settings, {"seed": 1, **overrides})
    assert message == (
        f"this site sets {setting} itself, and the job's override of {key!r} "
        "would change what comes of it: leave it out"
    )
    _put({}, {key: value for key, value in overrides.items() if key})  # where the site sets nothing, the job may


@pytest.mark.parametrize(
    ("settings", "setting"),
    [
        ({}, "the place of its privacy ledger"),
        ({"dataset_dir": "/site"}, "the place of its privacy ledger"),
        ({"feature_privacy": PRIVACY}, "feature_privacy"),
    ],
)
@pytest.mark.parametrize(
    "overrides",
    [
        {"participant::policy::ledger": None},
        {"participant::policy::ledger": "other.json"},
        {"participant::policy": None},
        {"participant": {"rows": 512}},
        {"cache_dir": "/tmp/new"},
    ],
)
def test_no_job_moves_or_removes_the_ledger(settings: dict[str, Any], setting: str, overrides: dict[str, Any]) -> None:
    assert f"this site sets {setting} itself" in _refused(settings, overrides)


def test_where_the_configuration_keeps_no_ledger_the_cache_is_the_jobs() -> None:
    parser = ConfigParser({"cache_dir": "/cache", "slices": "$@cache_dir + '/slices'"})
    Precedence().put(parser, {"cache_dir": "/job"})
    assert parser["cache_dir"] == "/job"


def test_all_refused_overrides_are_named_at_once() -> None:
    settings = {"dataset_dir": "/site", "feature_privacy": PRIVACY}
    message = _refused(settings, {"records::dataset_dir": "/job", "seed": 1, "participant::policy": None})
    assert "sets dataset_dir, feature_privacy itself" in message
    assert "override of 'records::dataset_dir', 'participant::policy' would" in message


@pytest.mark.parametrize(
    ("settings", "overrides"),
    [
        ({"dataset_dir": "/site"}, {"split_file": "/job/split.json"}),  # has dataset_dir for its default only
        ({"batch_size": 8}, {"loaders::0::shuffle": False}),
        ({"cache_dir": "/site/cache", "feature_privacy": PRIVACY}, {"cache_dir": "/tmp/new"}),  # the site's wins
        ({"feature_privacy": PRIVACY}, {"min_volumes": 20, "participant::rows": 16}),
        ({"feature_privacy": PRIVACY}, {"dataset_dir": "/job", "seed": 1, "bank::age": 3, "cache::size": 32}),
        ({"feature_privacy": {"min_volumes": 5}}, {"noise_multiplier": 2.0}),
    ],
)
def test_what_undoes_nothing_is_taken(settings: dict[str, Any], overrides: dict[str, Any]) -> None:
    parser = _put(settings, overrides)
    own = SiteSettings.from_dict(settings, "test").overrides()
    assert {key: parser[key] for key in overrides} == {
        **overrides,
        **{key: own[key] for key in overrides if key in own},
    }


def test_how_the_site_reads_its_data_is_its_own(tmp_path: Path) -> None:
    overlay = tmp_path / "own.json"
    reads = {"data": str(overlay)}
    overlay.write_text(json.dumps({"records": {"_target_": "list", "folder": "/site"}, "parts": ["all"]}))
    assert "this site sets data itself" in _refused(reads, {"records::datalist": "other.json"}, overlay)
    shown = {**reads, "feature_privacy": PRIVACY}  # rows come from there, though it reads no dataset_dir
    assert "this site sets feature_privacy itself" in _refused(shown, {"bank::patient": "@parts"}, overlay)
    overlay.write_text(json.dumps({"bank": {"_target_": "dict"}, "absent": {"_target_": "dict"}}))
    assert _put(shown, {"seed": 5}, overlay)["seed"] == 5  # which the bank takes, and the site says nothing of
    overlay.write_text(json.dumps({"records::dataset_dir": "/site"}))
    assert "this site sets data itself" in _refused(reads, {"records::dataset_dir": "/job"}, overlay)
    overlay.write_text(json.dumps({"dataset_dir": "/site", "batch_size": 9, "seed": 3}))
    parser = _put(reads, {"dataset_dir": "/job", "seed": 1}, overlay)
    assert (parser["dataset_dir"], parser["batch_size"], parser["seed"]) == ("/site", 9, 1)
    # A name means the bundle's own file, whose settings are defaults.
    parser = _put({"data": "own"}, {"dataset_dir": "/job"}, overlay)
    assert (parser["dataset_dir"], parser["batch_size"]) == ("/job", 4)


@pytest.mark.parametrize(
    ("config", "folder", "place"),
    [
        (CONFIG, "/data#1", "dataset_dir"),  # MONAI reads "#" as "::"
        ({"records::dataset_dir": "/other", **CONFIG}, "/data", "records::dataset_dir"),
    ],
)
def test_what_components_get_in_the_end_is_checked(config: dict[str, Any], folder: str, place: str) -> None:
    parser, precedence = ConfigParser(copy.deepcopy(config)), Precedence(own={"dataset_dir": folder})
    precedence.put(parser, {})
    parser.parse()
    with pytest.raises(SiteError) as error:
        precedence.verify(parser)
    assert str(error.value) == f"{place!r} would get something else than this site's dataset_dir"


TRAINING: dict[str, Any] = {
    "cache_dir": "/cache",
    "noise_multiplier": 3.0,
    "weight_noise_multiplier": 4.0,
    "weight_sample_rate": 0.5,
    "weight_delta": 1e-5,
    "learning_rate": 0.1,
    "loss": {"_target_": "dict", "batch": False},
    "heads": [{"_target_": "dict"}],
    "reports": {"_target_": "dict"},
    "sampler": {"_target_": "dict", "rate": "@weight_sample_rate"},
    "trainer": {"_target_": "dict", "sampler": "@sampler", "lr": "@learning_rate", "loss": "@loss", "heads": "@heads"},
    "participant": {
        "_target_": "dict",
        "trainer": "@trainer",
        "noise": "@weight_noise_multiplier",
        "delta": "@weight_delta",
        "ledger": "$@cache_dir + '/ledger.json'",
    },
}


def _trained(overrides: dict[str, Any], config: dict[str, Any] | None = None, **asked: float) -> ConfigParser:
    parser = ConfigParser(copy.deepcopy(config or TRAINING))
    precedence = Precedence.of(SiteSettings.from_dict({"weight_privacy": asked}, "test"), None, {})
    precedence.put(parser, overrides)
    precedence.verify(parser)
    return parser


@pytest.mark.parametrize(
    "overrides",
    [
        {"participant::noise": 0.1},
        {"participant": {"noise": "@weight_noise_multiplier"}},
        {"sampler::rate": 0.1},
        {"trainer::sampler": "@reports"},
        {"trainer::lr": 0.5},
        {"loss::batch": True},
        {"loss": "@reports"},
        {"heads": []},
        {"weight_delta": 0.5},
    ],
)
def test_of_a_private_training_a_job_sets_plain_settings_alone(overrides: dict[str, Any]) -> None:
    (key,) = overrides
    with pytest.raises(SiteError) as error:
        _trained({"learning_rate": 0.2, **overrides}, noise_multiplier=8.0)
    assert f"weight_privacy itself, and the job's override of {key!r} would" in str(error.value)


def test_a_private_training_is_the_sites_where_it_says_so_and_the_jobs_elsewhere() -> None:
    job = {"weight_noise_multiplier": 0.1, "weight_sample_rate": 0.9, "learning_rate": 0.2, "reports": None}
    parser = _trained({**job, "weight_delta": 0.5}, noise_multiplier=8.0, delta=1e-6)
    assert [parser[key] for key in (*job, "weight_delta", "noise_multiplier")] == [8.0, 0.9, 0.2, None, 1e-6, 3.0]
    # What trains without reading any of the keys is refused as a whole, elsewhere: statistics of the data are not.
    plain = {**TRAINING, "sampler": {"_target_": "dict"}, "participant": {"_target_": "dict", "trainer": "@trainer"}}
    assert _trained({"loss::batch": True}, plain, noise_multiplier=8.0)["loss::batch"] is True


def test_feature_privacy_is_set_where_the_configuration_has_the_key() -> None:
    parser, precedence = ConfigParser({"noise_multiplier": None, "delta": 1e-5}), Precedence(privacy={"min_volumes": 5})
    precedence.put(parser, {})
    assert "min_volumes" not in parser
    assert precedence.unread(parser) == ["min_volumes"]
    assert Precedence(privacy=PRIVACY).unread(ConfigParser(copy.deepcopy(CONFIG))) == []
