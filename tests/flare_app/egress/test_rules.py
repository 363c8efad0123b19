from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import Shareable, make_reply

from flare_app.compression import encode
from flare_app.egress import EgressError
from flare_app.protocol import Header, refusal, report_of, with_report, with_tensors
from tests.flare_app.egress.payloads import (
    DECLARED,
    coded_weights,
    examined,
    features,
    introduction,
    train_report,
    unit_rows,
    weights,
    with_headers,
    with_meta,
)

# Rows of codes in 8 bits: the largest of each is 127.
CODES = torch.tensor([[127, -3, 0, 9, 1, 0]] * 7 + [[4, -127, 2, 0, 127, 5]], dtype=torch.int8)
PRIVACY = {"epsilon": 2.0, "delta": 1e-5, "noise_multiplier": 1.2, "releases": 3}


@pytest.mark.parametrize(
    ("task", "payload"),
    [
        ("initialize", introduction()),
        ("initial_weights", weights(DataKind.WEIGHTS)),
        ("share", with_report({"rows": 8, "volumes": 3, "privacy": None})),
        ("share", features()),
        ("get_features", features(epsilon=2.0)),
        ("get_features", features(rows=0, volumes=0)),
        ("train", weights(report=train_report())),
        ("train", weights(report=train_report(privacy=PRIVACY))),
        ("train", coded_weights(16)),
        ("train", coded_weights(8)),
        ("train", coded_weights(4)),
        ("share", features(features=CODES)),
        ("get_features", features(rows=0, volumes=0, features=torch.zeros(0, 6, dtype=torch.int8))),
        ("validate", with_headers(with_report({"validation": {"mean_dice": 0.5, "count": 2.0}}), **{Header.ROUND: 3})),
        ("train", refusal("FileNotFoundError in task 'train', see the log of site-1")),
        ("train", make_reply(ReturnCode.TASK_ABORTED)),
        ("train", with_meta(weights(), filter_history=["ExcludeVars"])),
    ],
)  # fmt: skip
def test_what_a_site_of_this_app_sends_may_leave_as_it_is(task: str, payload: Shareable) -> None:
    before = dict(payload)
    release = examined(task, payload)
    assert release.payload is payload
    assert dict(payload) == before
    assert release.withheld is None


def _changed(tensor: torch.Tensor, value: float) -> torch.Tensor:
    tensor = tensor.clone()
    tensor[1] = value
    return tensor


HALF = unit_rows().half()


@pytest.mark.parametrize(
    ("rule", "task", "payload"),
    [
        ("task", "dance", Shareable()),
        ("task", "None", Shareable()),
        # what is around the data
        ("payload", "train", Shareable({"images": torch.zeros(3)})),
        ("payload", "train", Shareable({"DXO": [1]})),
        ("payload", "train", Shareable({"DXO": {"kind": "METRICS", "data": {}, "meta": {}, "extra": 1}})),
        ("payload", "train", DXO(DataKind.APP_DEFINED, data={"x": 1}).to_shareable()),
        ("payload", "train", DXO(DataKind.COLLECTION, data={}).to_shareable()),
        ("payload", "train", with_headers(weights(), __rc__=ReturnCode.EXECUTION_EXCEPTION)),
        ("headers", "train", with_headers(weights(), volume_names=["patient007"])),
        ("headers", "train", with_headers(weights(), __rc__="patient007")),
        ("headers", "train", with_headers(weights(), **{Header.ROUND: "patient007"})),
        ("headers", "train", with_headers(weights(), **{Header.REASON: ["x"]})),
        ("headers.reason", "train", refusal("cannot read /data/patient007/image")),
        ("headers.reason", "train", refusal("no such file: 'C:\\patients'")),
        ("headers.reason", "train", refusal("cannot read patient007.nii.gz")),
        ("headers.reason", "train", refusal("x" * 1001)),
        # features
        ("features.task", "train", features()),
        ("features.task", "initialize", features()),
        ("features.meta", "share", with_meta(features(), kind="images")),
        ("features.meta", "share", with_meta(features(), round=None)),
        ("features.meta", "share", with_meta(features(), volumes="3")),
        ("features.meta", "share", with_meta(features(), volumes=True)),
        ("features.meta", "share", with_meta(features(), privacy={"epsilon": 1.0})),
        ("features.meta", "share", with_meta(features(epsilon=math.nan))),
        ("meta", "share", with_meta(features(), volume_names=["patient007"])),
        ("meta", "share", with_meta(features(), filter_history=["/data/patient007"])),
        ("features.names", "share", features(volume=torch.zeros(8))),
        ("features.tensors", "share", features(features=HALF.numpy())),
        ("features.tensors", "share", features(features=MetaTensor(HALF, meta={"filename": "patient007"}))),
        ("features.tensors", "share", features(partition=torch.zeros(8, dtype=torch.int16).to_sparse())),
        ("features.dtype", "share", features(features=HALF.float())),
        ("features.dtype", "share", features(partition=torch.zeros(8, dtype=torch.int64))),
        ("features.shape", "share", features(features=HALF[None])),
        ("features.shape", "share", features(features=torch.full((8, 513), 513**-0.5).half())),
        ("features.shape", "share", features(partition=torch.zeros(7, dtype=torch.int16))),
        ("features.rows", "share", features(rows=4097)),
        ("features.finite", "share", features(features=_changed(HALF, math.nan))),
        ("features.finite", "share", features(features=_changed(HALF, math.inf))),
        ("features.norm", "share", features(features=_changed(HALF, 0.0))),
        ("features.norm", "share", features(features=HALF * 1.02)),
        ("features.dtype", "share", features(features=CODES.to(torch.uint8))),
        ("features.norm", "share", features(features=_changed(CODES, 0))),
        ("features.norm", "share", features(features=_changed(CODES, 126))),
        ("features.norm", "share", features(features=_changed(CODES, -128))),
        ("features.partition", "share", features(partition=torch.full((8,), 32, dtype=torch.int16))),
        ("features.partition", "share", features(partition=torch.full((8,), -1, dtype=torch.int16))),
        # weights
        ("weights.task", "train", weights(DataKind.WEIGHTS)),
        ("weights.task", "initial_weights", weights()),
        ("weights.task", "get_features", weights()),
        ("weights.names", "train", weights(**{"bank.rows": torch.zeros(2)})),
        ("weights.names", "train", weights(**{"encoder./data": torch.zeros(2)})),
        ("weights.tensors", "train", weights(**{"encoder.bias": np.zeros(2)})),
        ("weights.tensors", "train", weights(**{"encoder.bias": torch.nn.Parameter(torch.zeros(2))})),
        ("weights.dtype", "train", weights(**{"encoder.bias": torch.zeros(2, dtype=torch.uint8)})),
        # others than the site declared
        ("weights.names", "train", weights(**{"encoder.images": torch.zeros(2)})),
        ("weights.names", "initial_weights", weights(DataKind.WEIGHTS, **{"encoder.images": torch.zeros(2)})),
        ("weights.shape", "train", weights(**{"encoder.bias": torch.zeros(3)})),
        ("weights.shape", "train", weights(**{"encoder.bias": torch.zeros(1, 2)})),
        ("weights.shape", "initial_weights", weights(DataKind.WEIGHTS, **{"encoder.bias": torch.zeros(3)})),
        ("weights.shape", "train", coded_weights(16, **{"encoder.weight": torch.zeros(2, 4).half()})),
        ("weights.shape", "train", coded_weights(8, **{"encoder.weight": torch.zeros(2, 4).char()})),
        ("weights.shape", "train", coded_weights(4, **{"encoder.weight": torch.full((2, 3), 136).byte()})),
        (
            "weights.shape",
            "train",
            coded_weights(8, **{"encoder.bias": torch.zeros(2).char(), "encoder.bias:scale": torch.zeros(2)}),
        ),
        ("report.spec", "initialize", introduction(spec={"encoder.weight": "float32 [2, 4]"})),
        ("weights.cohort", "initialize", introduction(description={"slices": 24, "volumes": 1})),
        ("weights.cohort", "initialize", introduction(description={"slices": 24})),
        ("weights.finite", "train", weights(**{"encoder.bias": torch.tensor([1.0, math.nan])})),
        ("weights.finite", "train", weights(**{"encoder.bias": torch.tensor([1.0, -math.inf])})),
        ("weights.task", "initial_weights", coded_weights(8)),
        ("weights.names", "initial_weights", coded_weights(8, DataKind.WEIGHTS)),
        ("weights.names", "train", coded_weights(8, **{"bank.rows:scale": torch.zeros(2)})),
        ("weights.names", "train", coded_weights(8, **{"encoder.bias:scale": torch.zeros(2)})),
        ("weights.names", "train", coded_weights(8, **{"encoder.weight:volume": torch.zeros(2)})),
        ("weights.dtype", "train", coded_weights(8, **{"encoder.weight:scale": None})),
        ("weights.dtype", "train", coded_weights(8, **{"encoder.weight:scale": torch.zeros(2).double()})),
        ("weights.dtype", "train", coded_weights(8, **{"encoder.weight": torch.zeros(2, 3)})),
        ("weights.dtype", "train", coded_weights(8, **{"encoder.weight": torch.zeros(2, 3, dtype=torch.int16)})),
        ("weights.tensors", "train", coded_weights(8, **{"encoder.weight:scale": [0.0, 0.0]})),
        ("weights.tensors", "train", coded_weights(8, **{"encoder.weight": np.zeros((2, 3), np.int8)})),
        ("weights.shape", "train", coded_weights(8, **{"encoder.weight:scale": torch.zeros(3)})),
        ("weights.shape", "train", coded_weights(8, **{"encoder.weight": torch.zeros(2, dtype=torch.int8)})),
        ("weights.shape", "train", coded_weights(4, **{"encoder.weight": torch.full((2, 3, 1), 136).byte()})),
        ("weights.finite", "train", coded_weights(8, **{"encoder.weight:scale": torch.tensor([1.0, math.nan])})),
        ("weights.finite", "train", coded_weights(4, **{"encoder.weight:scale": torch.tensor([1.0, math.inf])})),
        ("weights.scale", "train", coded_weights(8, **{"encoder.weight:scale": torch.tensor([1.0, -1.0])})),
        ("weights.scale", "train", coded_weights(8, **{"encoder.weight:scale": torch.tensor([1.0, 0.0])})),
        ("weights.codes", "train", coded_weights(8, **{"encoder.weight": torch.full((2, 3), -128).char()})),
        (
            "weights.codes",
            "train",
            coded_weights(4, **{"encoder.weight": torch.tensor([[136, 128], [136, 136]]).byte()}),
        ),
        ("weights.codes", "train", coded_weights(4, **{"encoder.weight": torch.tensor([[136, 8], [136, 136]]).byte()})),
        (
            "weights.codes",
            "train",
            coded_weights(4, **{"encoder.weight": torch.tensor([[255, 159], [255, 143]]).byte()}),
        ),
        ("weights.codes", "train", coded_weights(8, **{"encoder.weight": torch.full((2, 3), 126).char()})),
        ("weights.codes", "train", coded_weights(4, **{"encoder.weight": torch.full((2, 2), 0x8E).byte()})),
        ("weights.scale", "train", coded_weights(8, **{"encoder.weight:scale": torch.tensor([1.0, 1e-38])})),
        ("meta", "train", with_meta(weights(), note="patient007")),
        # reports
        ("report.keys", "initialize", introduction(dataset_dir="/data")),
        ("report.keys", "train", weights(report=train_report(patients=["patient007"]))),
        ("report.keys", "validate", with_report({"rows": 3})),
        ("report.keys", "initial_weights", weights(DataKind.WEIGHTS, {"count": 3})),
        ("report.keys", "get_features", with_report({"rows": 3})),
        ("report.config_hash", "initialize", introduction(config_hash="patient007")),
        ("report.settings", "initialize", introduction(settings={"overrides": {"dataset_dir": "/data/cardiac"}})),
        ("report.settings", "initialize", introduction(settings={"x": torch.zeros(2)})),
        ("report.settings", "initialize", introduction(settings={"x": "y" * 16384})),
        ("report.spec", "initialize", introduction(spec={"bank.rows": "float32 [3]"})),
        ("report.spec", "initialize", introduction(spec={"encoder.weight": "patient007"})),
        ("report.shares_features", "initialize", introduction(shares_features="yes")),
        ("report.resumed_round", "initialize", introduction(resumed_round=-1)),
        ("report.description", "initialize", introduction(description={"slices": 3, "patient007": 1})),
        ("report.description", "initialize", introduction(description={"slices": "patient007"})),
        ("report.card", "initialize", introduction(card={"hospital": "general"})),
        ("report.card", "initialize", introduction(card=["patient007"])),
        ("report.card", "initialize", introduction(card={"labels": {"patient007": 1}})),
        ("report.card", "initialize", introduction(card={"labels": {"lv": "patient007"}})),
        ("report.card", "initialize", introduction(card={"data_license": "by General Hospital"})),
        ("report.card", "initialize", introduction(card={"method": "/data/cardiac"})),
        ("report.card", "initialize", introduction(card={"norm": ["instance", {"affine": "patient007"}]})),
        ("report.card", "initialize", introduction(card={"intensity": {"_target_": "os.system", "keys": "image"}})),
        ("report.card", "initialize", introduction(card={"channels": list(range(1, 100))})),
        ("report.rows", "share", with_report({"rows": 1.5})),
        ("report.count", "train", weights(report=train_report(count=True))),
        ("report.metrics", "train", weights(report=train_report(metrics={"loss_patient007": 1.0}))),
        ("report.metrics", "train", weights(report=train_report(metrics={"loss": [1.0, 2.0]}))),
        ("report.metrics", "train", weights(report=train_report(metrics={"loss": math.nan}))),
        ("report.metrics", "train", weights(report=train_report(metrics={"loss": "patient007"}))),
        ("report.validation", "validate", with_report({"validation": {"dice_of_patient007": 1.0}})),
        ("report.features_received", "train", weights(report=train_report(features_received={"a/b": 1}))),
        ("report.features_received", "train", weights(report=train_report(features_received={"a": "x"}))),
        ("report.seconds", "train", weights(report=train_report(seconds="x"))),
        ("report.parts", "train", weights(report=train_report(parts={"patient007": 1.0}))),
        ("report.parts", "train", weights(report=train_report(parts={"training": "x"}))),
        ("report.privacy", "train", weights(report=train_report(privacy={"patient007": 1}))),
    ],
)
def test_anything_else_is_refused_by_the_rule_it_breaks(rule: str, task: str, payload: Shareable) -> None:
    with pytest.raises(EgressError) as error:
        examined(task, payload)
    assert error.value.rule == rule
    assert "patient007" not in str(error.value)


@pytest.mark.parametrize(
    ("payload", "stops"),
    [
        (weights(**{"encoder.bias": torch.tensor([1.0, math.nan])}), False),
        (weights(**{"encoder.bias": torch.tensor([1.0, 100.0])}), False),
        (coded_weights(8, **{"encoder.weight:scale": torch.tensor([1.0, math.nan])}), False),
        (coded_weights(8, **{"encoder.weight:scale": torch.tensor([1.0, 1.0])}), False),
        (coded_weights(8, **{"encoder.weight:scale": torch.tensor([1.0, -1.0])}), True),
        (weights(**{"bank.rows": torch.zeros(2)}), True),
        (refusal("/data/patient007"), False),
    ],
)
def test_a_failed_training_does_not_end_the_sites_part(payload: Shareable, stops: bool) -> None:
    with pytest.raises(EgressError) as error:
        examined("train", payload, max_norm=10.0)
    assert error.value.stops == stops


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_training_that_diverged_is_known_by_its_codes(bits: int, value: float) -> None:
    matrix = torch.tensor([[1.0, 2.0, 3.0], [1.0, value, 3.0]])
    diverged = with_tensors(DataKind.WEIGHT_DIFF, encode({"encoder.weight": matrix}, bits))
    with pytest.raises(EgressError, match=r"weights\.finite") as error:
        examined("train", diverged)
    assert not error.value.stops


@pytest.mark.parametrize(("task", "kind"), [("train", DataKind.WEIGHT_DIFF), ("initial_weights", DataKind.WEIGHTS)])
def test_no_weights_leave_a_site_that_has_not_said_what_it_trains_and_on_how_much(task: str, kind: str) -> None:
    with pytest.raises(EgressError, match=r"weights\.undeclared") as error:
        examined(task, weights(kind), declared=None)
    assert not error.value.stops
    assert examined("initialize", introduction(), declared=None).declared == DECLARED


def test_the_least_cohort_of_weights_is_the_policys() -> None:
    eight = introduction(description={"slices": 24, "volumes": 8})
    assert examined("initialize", eight, min_training_volumes=8).declared == DECLARED
    with pytest.raises(EgressError, match=r"weights\.cohort") as error:
        examined("initialize", eight, min_training_volumes=9)
    assert error.value.detail == "it would train on 8 volumes, the least is min_training_volumes = 9"
    assert not error.value.stops


@pytest.mark.parametrize(
    ("policy", "scores", "why"),
    [
        ({}, {"mean_dice": 0.5, "count": 2.0}, None),
        ({}, {"mean_dice": 0.5, "count": 1.0}, "of 1 volumes, the least is min_validation_volumes = 2"),
        ({}, {"mean_dice": 0.5}, "of 0 volumes, the least is min_validation_volumes = 2"),
        ({"min_validation_volumes": 5}, {"mean_dice": 0.5, "count": 4.0}, "of 4 volumes, the least is"),
        ({"min_validation_volumes": 5}, {}, None),
    ],
)
def test_scores_of_too_few_validation_volumes_are_taken_out(
    policy: dict[str, Any], scores: dict[str, float], why: str | None
) -> None:
    for task, payload in (
        ("train", with_meta(weights(report=train_report(validation=scores)), filter_history=["ExcludeVars"])),
        ("validate", with_headers(with_report({"validation": scores}), **{Header.ROUND: 3})),
    ):
        before = report_of(payload)
        release = examined(task, payload, **policy)
        assert (release.withheld or "None").startswith(str(why))
        assert release.subject == "validation scores"
        assert report_of(release.payload) == {**before, "validation": {} if why else scores}
        assert any("validation" in name for name in release.entries[-1].get("metrics", ())) == (
            bool(scores) and not why
        )


def test_a_policy_names_the_fields_of_the_card_that_a_site_may_declare() -> None:
    (entry,) = examined("initialize", introduction()).entries
    assert entry["card"] == ["channels", "data_license", "labels"]
    assert examined("initialize", introduction(card={}), card=[]).entries
    for allowed in ([], ["channels", "labels"]):
        with pytest.raises(EgressError, match=r"report\.card"):
            examined("initialize", introduction(), card=allowed)


def test_norm_limit_is_of_all_tensors_together_and_not_for_initial_weights() -> None:
    norm = math.sqrt(6)
    assert examined("train", weights(), max_norm=norm + 1e-6).entries
    with pytest.raises(EgressError, match=r"weights\.norm"):
        examined("train", weights(), max_norm=norm - 1e-6)
    assert examined("initial_weights", weights(DataKind.WEIGHTS), max_norm=0.1).entries


@pytest.mark.parametrize(
    ("metrics", "why"),
    [
        ({"dp_epsilon": 3.5, "dp_delta": 1e-5}, None),
        ({"dp_epsilon": 4.0, "dp_delta": 1e-6}, None),
        ({"dp_epsilon": 4.1, "dp_delta": 1e-5}, "epsilon 4.1 at delta 1e-05"),
        ({"dp_epsilon": 3.5, "dp_delta": 1e-4}, "epsilon 3.5 at delta 0.0001"),
        ({"dp_epsilon": 3.5}, "trained without privacy"),
        ({"loss": 1.0}, "trained without privacy"),
        (None, "trained without privacy"),
    ],
)
def test_weights_beyond_their_epsilon_stay_and_do_not_end_the_sites_part(
    metrics: dict[str, float] | None, why: str | None
) -> None:
    payload = weights(report=None if metrics is None else train_report(metrics=metrics))
    assert examined("train", payload).payload is payload
    if why is None:
        assert examined("train", payload, max_weight_epsilon=4.0).payload is payload
    else:
        with pytest.raises(EgressError) as error:
            examined("train", payload, max_weight_epsilon=4.0)
        assert (error.value.rule, error.value.stops) == ("weights.privacy", False)
        assert error.value.detail.startswith(why)
    assert examined("initial_weights", weights(DataKind.WEIGHTS), max_weight_epsilon=4.0).entries


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_norm_limit_is_of_decoded_values(bits: int) -> None:
    norm = math.sqrt(6)
    assert examined("train", coded_weights(bits), max_norm=norm * (1 + 1e-6)).entries
    with pytest.raises(EgressError, match=r"weights\.norm"):
        examined("train", coded_weights(bits), max_norm=norm * (1 - 1e-6))


def test_a_norm_and_a_reason_at_their_limits_leave() -> None:
    update = weights(**{"encoder.weight": torch.zeros(2, 3), "head.0.bias": torch.ones(4)})
    assert examined("train", update, max_norm=2.0).payload is update
    assert examined("train", refusal("x" * 1000)).withheld is None


def test_manifest_tells_codes_and_their_scales() -> None:
    entries = examined("train", coded_weights(4)).entries[:3]
    assert [(entry["name"], entry["dtype"], entry["shape"], entry["bytes"]) for entry in entries] == [
        ("encoder.weight", "uint8", [2, 2], 4),
        ("encoder.weight:scale", "float32", [2], 8),
        ("head.0.bias", "float32", [4], 16),
    ]


def test_manifest_entries_tell_size_cohort_and_epsilon() -> None:
    entries = examined("get_features", features(epsilon=2.5)).entries
    common = {"kind": "features", "volumes": 3, "epsilon": 2.5}
    assert entries == [
        {"name": "features", "shape": [8, 6], "dtype": "float16", "count": 8, "bytes": 96, **common},
        {"name": "partition", "shape": [8], "dtype": "int16", "count": 8, "bytes": 16, **common},
    ]
    entries = examined("train", weights(report=train_report())).entries
    assert entries[0] == {"name": "encoder.weight", "shape": [2, 3], "dtype": "float32", "count": 6, "bytes": 24}
    assert entries[-1]["metrics"] == ["loss", "validation/count", "validation/dice_lv", "validation/mean_dice"]
