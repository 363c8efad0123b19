from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from fcl.federation import WeightPrivacy
from flare_app.protocol import SiteError
from flare_app.site import WEIGHT_PRIVACY, SiteSettings, read_settings, site_seed


def test_defaults_change_nothing(tmp_path: Path) -> None:
    assert read_settings("site-1", tmp_path, environ={}) == SiteSettings()
    assert SiteSettings().overrides() == {}


def test_file_in_the_local_folder_is_read_and_the_variable_goes_before_it(tmp_path: Path) -> None:
    (tmp_path / "fcl_site.json").write_text(json.dumps({"dataset_dir": "/data/{SITE_NAME}", "threads": 2}))
    assert read_settings("site-3", tmp_path, environ={}) == SiteSettings(dataset_dir="/data/site-3", threads=2)
    (tmp_path / "of-site-3.json").write_text(json.dumps({"data": "acdc"}))
    chosen = {"FCL_SITE_SETTINGS": str(tmp_path / "of-{SITE_NAME}.json")}
    assert read_settings("site-3", tmp_path, environ=chosen) == SiteSettings(data="acdc")
    with pytest.raises(SiteError, match=r"the file that \$FCL_SITE_SETTINGS names does not exist"):
        read_settings("site-4", tmp_path, environ=chosen)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset": "/d"}, "unknown key 'dataset', did you mean 'dataset_dir'?"),
        ({"qqq": 1}, "unknown key 'qqq', known are dataset_dir, data, split_file"),
        ({"threads": 0}, "threads must be a whole number of at least 1, got 0"),
        ({"threads": True}, "threads must be a whole number of at least 1, got True"),
        ({"batch_size": "32"}, "batch_size must be a whole number of at least 1, got '32'"),
        ({"dataset_dir": 5}, "dataset_dir must be a text, got int"),
        ({"batchsize": 3, "threads": -1}, "did you mean 'batch_size'?; threads must be"),
        ({"withhold": "features"}, "withhold must be a list of features, card, got 'features'"),
        ({"withhold": ["weights"]}, "withhold must be a list of features, card, got ['weights']"),
        ({"feature_privacy": 3}, "feature_privacy must be a JSON object, got int"),
        (
            {"feature_privacy": {"noise_multipler": 1}},
            "unknown key 'noise_multipler' in feature_privacy, did you mean 'noise_multiplier'?",
        ),
        ({"feature_privacy": {"noise_multiplier": 0}}, "noise_multiplier must be a positive number, got 0"),
        ({"feature_privacy": {"epsilon_budget": "8"}}, "epsilon_budget must be a positive number, got '8'"),
        ({"feature_privacy": {"delta": float("inf")}}, "delta must be a positive number, got inf"),
        ({"feature_privacy": {"min_volumes": 2.5}}, "min_volumes must be a whole number of at least 1, got 2.5"),
        ({"weight_privacy": []}, "weight_privacy must be a JSON object, got list"),
        ({"weight_privacy": {"noise": 1}}, "unknown key 'noise' in weight_privacy, known are noise_multiplier, s"),
        (
            {"weight_privacy": {"noise_multiplier": None}},
            "noise_multiplier of weight_privacy must be a positive number",
        ),
        ({"weight_privacy": {"max_grad_norm": True}}, "max_grad_norm of weight_privacy must be a positive number"),
        (
            {"weight_privacy": {"sample_rate": 1.5}},
            "weight_privacy must be above 0 and at most 1, got 1.5",
        ),
        ({"weight_privacy": {"delta": 1}}, "delta of weight_privacy must lie between 0 and 1, got 1"),
        (
            {"weight_privacy": {"epsilon_budget": 0}},
            "of weight_privacy must be a positive number, got 0",
        ),
        ({"feature_privacy": {"rows_per_patient": 0}}, "rows_per_patient must be a whole number of at least 1, got 0"),
    ],
)
def test_bad_settings_are_all_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SiteError) as error:
        SiteSettings.from_dict(settings, "local/fcl_site.json")
    assert message in str(error.value)
    assert str(error.value).startswith("site settings (local/fcl_site.json): ")


@pytest.mark.parametrize(
    ("text", "message"), [("{", "cannot be read as JSON"), ("[]", "must be a JSON object, got list")]
)
def test_file_that_is_no_json_object(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "fcl_site.json").write_text(text)
    with pytest.raises(SiteError, match=message):
        read_settings("site-1", tmp_path, environ={})


def test_overrides_are_config_keys() -> None:
    settings = SiteSettings(dataset_dir="/d", device="cuda:1", batch_size=8, data="acdc")
    assert settings.overrides() == {"dataset_dir": "/d", "batch_size": 8, "device": "$torch.device('cuda:1')"}


def test_privacy_of_features_is_none_of_the_plain_overrides() -> None:
    content = {
        "batch_size": 8,
        "feature_privacy": {"noise_multiplier": 1.2, "rows_per_patient": None},
        "withhold": None,
    }
    settings = SiteSettings.from_dict(content, "local/fcl_site.json")
    assert settings.withhold == ()
    assert settings.overrides() == {"batch_size": 8}
    assert settings.feature_privacy == {"noise_multiplier": 1.2, "rows_per_patient": None}


def test_weights_are_private_where_a_site_says_anything_of_it() -> None:
    assert tuple(entry.name for entry in fields(WeightPrivacy)) == WEIGHT_PRIVACY
    assert SiteSettings.from_dict({"weight_privacy": None}, "x").weight_privacy is None
    for asked in ({}, {"epsilon_budget": None, "sample_rate": 1, "delta": 1e-6}):
        settings = SiteSettings.from_dict({"weight_privacy": asked}, "x")
        assert settings.weight_privacy == asked
        assert settings.overrides() == {}


def test_seeds_differ_by_site_and_job_and_stay_the_same() -> None:
    seeds = {site_seed(seed, f"site-{i}") for seed in range(5) for i in range(20)}
    assert len(seeds) == 100
    assert site_seed(0, "site-1") == 456903655
