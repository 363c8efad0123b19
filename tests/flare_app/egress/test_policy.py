from __future__ import annotations

from typing import Any

import pytest

from flare_app.egress import EgressPolicy


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"feature": []}, "unknown key 'feature', did you mean 'features'?"),
        ({"qqq": 1}, "unknown key 'qqq', known are features, max_rows"),
        ({"features": True}, "features must be a list of texts, got True"),
        ({"features": ["features", "images"]}, "features may hold prototypes and features, got"),
        ({"routes": ["pigeon"]}, "routes may hold peer and relay, got ['pigeon']"),
        ({"max_rows": 0}, "max_rows must be a whole number of at least 1, got 0"),
        ({"max_rows": True}, "max_rows must be a whole number of at least 1, got True"),
        ({"min_volumes": 2.5}, "min_volumes must be a whole number of at least 1, got 2.5"),
        ({"max_epsilon": 0}, "max_epsilon must be a positive number or null, got 0"),
        ({"max_weight_epsilon": 0}, "max_weight_epsilon must be a positive number or null, got 0"),
        ({"max_delta": 1}, "max_delta must be a number between 0 and 1, got 1"),
        ({"max_delta": None}, "max_delta must be a number between 0 and 1, got None"),
        ({"max_norm": "1"}, "max_norm must be a positive number or null, got '1'"),
        ({"metrics": ["loss", 3]}, "metrics must be a list of texts"),
        ({"max_row": 3, "weights": "encoder.*"}, "did you mean 'max_rows'?; weights must be a list of texts"),
    ],
)
def test_bad_settings_are_all_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"^egress policy: ") as error:
        EgressPolicy.from_dict(settings)
    assert message in str(error.value)


def test_settings_change_the_hash_and_the_same_ones_do_not() -> None:
    settings = {"max_rows": 4096, "features": ["features", "prototypes"]}
    assert EgressPolicy.from_dict(settings).digest == EgressPolicy().digest
    assert EgressPolicy.from_dict({"max_rows": 4095}).digest != EgressPolicy().digest


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("loss", True),
        ("dice_lv", True),
        ("dice_patient007", False),
        ("dice_a/b", False),
        ("lossy", False),
        ("my_loss", False),
        ("Loss", False),
        ("dice_" + "x" * 33, False),
    ],
)
def test_metric_names(name: str, allowed: bool) -> None:
    assert EgressPolicy().allows_metric(name) == allowed


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("encoder.downs.0.conv.weight", True),
        ("decoder.logits.bias", True),
        ("encoder", False),
        ("encoder./data/x", False),
        ("xencoder.weight", False),
        ("momentum.encoder.weight", False),
    ],
)
def test_weight_names(name: str, allowed: bool) -> None:
    assert EgressPolicy().allows_weight(name) == allowed
