from __future__ import annotations

from typing import Any

import pytest
import torch
from nvflare.apis.dxo import DXO
from torch import Tensor
from torch.nn import functional

from fcl.federation import FeaturePrivacy, FeatureSet
from flare_app.exchange import (
    FEATURES,
    Exchange,
    ExchangeError,
    Limits,
    decode,
    encode,
    no_features,
    rows_in,
    sampled,
)

LIMITS = Limits(feature_length=6, partitions=4, max_rows=10)


def _features(rows: int = 8) -> FeatureSet:
    generator = torch.Generator().manual_seed(rows)
    return FeatureSet(
        functional.normalize(torch.randn(rows, 6, generator=generator), dim=1), torch.arange(rows) % LIMITS.partitions
    )


@pytest.mark.parametrize("rows", [0, 1, 8, 10])
def test_features_arrive_as_they_were_sent(rows: int) -> None:
    sent = _features(rows)
    received = decode(encode(sent, "features", 3), "features", 3, LIMITS)
    assert received.features.dtype == torch.float32
    assert received.partition.dtype == torch.int64
    torch.testing.assert_close(received.features, sent.features, atol=1e-3, rtol=0)
    torch.testing.assert_close(received.features.norm(dim=1), torch.ones(rows))
    assert torch.equal(received.partition, sent.partition)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_payload_is_contiguous_half_precision_and_shares_no_memory(dtype: torch.dtype) -> None:
    wide = functional.normalize(torch.randn(6, 8), dim=0).to(dtype)
    sent = FeatureSet(wide.T, torch.zeros(8, dtype=torch.int64))
    payload = encode(sent, "features", 0)
    assert payload.data_kind == FEATURES
    assert payload.data["features"].dtype == torch.float16
    assert payload.data["features"].is_contiguous()
    before = wide.clone()
    payload.data["features"].zero_()
    payload.data["partition"].fill_(3)
    assert torch.equal(wide, before)
    assert sent.partition.tolist() == [0] * 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_8_bits_are_a_loop_over_rows_and_arrive_as_unit_rows(dtype: torch.dtype) -> None:
    rows = functional.normalize(torch.randn(50, 128, generator=torch.Generator().manual_seed(0)), dim=1).to(dtype)
    sent = FeatureSet(rows, torch.arange(50) % 4)
    payload = encode(sent, "features", 3, bits=8)
    codes = payload.data["features"]
    assert (codes.dtype, codes.is_contiguous()) == (torch.int8, True)
    for row, code in zip(rows.double(), codes, strict=True):
        largest = max(abs(float(entry)) for entry in row)
        assert code.tolist() == pytest.approx([float(entry) / largest * 127 for entry in row], abs=0.5 + 1e-4)
    received = decode(payload, "features", 3, Limits(128, 4, 50)).features
    torch.testing.assert_close(received.norm(dim=1), torch.ones(50))
    assert float((received * rows.float()).sum(dim=1).min()) > 0.9999


def test_8_bits_take_rows_of_any_direction() -> None:
    rows = torch.full((3, 512), 0.0193)  # one large entry beside many that all round up
    rows[:, 0] = 0.9
    sent = FeatureSet(functional.normalize(rows, dim=1), torch.zeros(3, dtype=torch.int64))
    received = decode(encode(sent, "features", 0, bits=8), "features", 0, Limits(512, 4, 3))
    torch.testing.assert_close(received.features.norm(dim=1), torch.ones(3))
    assert rows_in(encode(no_features(6), "features", 0, bits=8)) == 0


@pytest.mark.parametrize("bits", [16, 8])
def test_sample_is_of_whole_rows_and_the_same_for_the_same_asker(bits: int) -> None:
    payload = encode(_features(10), "features", 3, bits)
    first, again = (sampled(payload, 4, "a", "b") for _ in range(2))
    assert (rows_in(first), first.meta, first.data_kind) == (4, payload.meta, FEATURES)
    whole = [
        (*row, part)
        for row, part in zip(*(payload.data[name].tolist() for name in ("features", "partition")), strict=True)
    ]
    shown = [
        (*row, part)
        for row, part in zip(*(first.data[name].tolist() for name in ("features", "partition")), strict=True)
    ]
    places = [whole.index(row) for row in shown]
    assert places == sorted(set(places))
    assert all(torch.equal(first.data[name], again.data[name]) for name in first.data)
    others = [sampled(payload, 4, "a", asker).data["features"] for asker in "cdefgh"]
    assert len({tuple(rows.flatten().tolist()) for rows in others}) > 1
    drawn = {tuple(row) for rows in others for row in rows.tolist()}
    assert len(drawn) > 8  # no row is kept from all
    for rows in (None, 10, 11):
        assert sampled(payload, rows, "a", "b") is payload


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 4}, "feature_bits must be one of 16, 8, got 4"),
        ({"fan_out": 0}, "fan_out must be a whole number of at least 1, or None for all; got 0"),
        ({"fan_out": True}, "fan_out must be a whole number"),
        ({"pull_rows": 1.5}, "pull_rows must be a whole number of at least 1, or None for all; got 1.5"),
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Exchange("features", **arguments)


@pytest.mark.parametrize("privacy", [None, FeaturePrivacy(2.5, 1e-5, 1.2, 3)])
def test_cohort_and_privacy_arrive_as_they_were_sent(privacy: FeaturePrivacy | None) -> None:
    rows = _features()
    payload = encode(FeatureSet(rows.features, rows.partition, 5, privacy), "features", 3)
    received = decode(payload, "features", 3, LIMITS)
    assert (received.volumes, received.privacy) == (5, privacy)
    assert ("privacy" in payload.meta) == (privacy is not None)


def test_site_that_shows_nothing_sends_a_set_that_peers_take() -> None:
    payload = encode(no_features(6), "features", 3)
    assert rows_in(payload) == len(decode(payload, "features", 3, LIMITS)) == 0


@pytest.mark.parametrize(
    ("payload", "rows"),
    [
        (encode(_features(), "features", 3), 8),
        (DXO("METRICS", data={"features": torch.zeros(3)}), 0),
        (DXO(FEATURES, data={"features": "x"}), 0),
        (DXO(FEATURES, data={"features": torch.tensor(3.0)}), 0),
        (DXO(FEATURES, data={}), 0),
    ],
)
def test_rows_of_an_unchecked_payload(payload: DXO, rows: int) -> None:
    assert rows_in(payload) == rows


def _told(**meta: Any) -> DXO:
    payload = encode(_features(), "features", 3)
    payload.meta.update(meta)
    return payload


def _with(**data: Any) -> DXO:
    payload = encode(_features(), "features", 3)
    payload.data.update(data)
    return payload


def _rows(value: float) -> Tensor:
    rows = _features().features.half()
    rows[2] = value
    return rows


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (DXO("METRICS", data={}), "expected a payload of kind FCL_FEATURES, got METRICS"),
        (encode(_features(), "prototypes", 3), "expected features of round 3, got prototypes of round 3"),
        (encode(_features(), "features", 2), "expected features of round 3, got features of round 2"),
        (
            _with(volume=torch.zeros(8)),
            r"expected the tensors features and partition, got \['features', 'partition', 'vol",
        ),
        (_with(features=[1.0]), "expected tensors, got list and Tensor"),
        (_with(features=torch.zeros(8, 5)), r"expected features of shape \(rows, 6\), got \(8, 5\)"),
        (_with(features=torch.zeros(6)), r"expected features of shape \(rows, 6\), got \(6,\)"),
        (_with(partition=torch.zeros(7, dtype=torch.int16)), "one whole number per row"),
        (_with(partition=torch.zeros(8)), "one whole number per row"),
        (_with(partition=torch.zeros(8, dtype=torch.complex64)), "one whole number per row"),
        (_with(partition=torch.zeros(8, dtype=torch.bool)), "one whole number per row"),
        (encode(_features(11), "features", 3), "11 rows, more than the 10 accepted from one site"),
        (_with(features=_rows(float("nan"))), "NaN or infinite"),
        (_with(features=_rows(float("inf"))), "NaN or infinite"),
        (_with(features=_rows(0.0)), "not of unit norm: from 0 to 1"),
        (_with(features=_rows(0.6)), "not of unit norm"),
        (_with(features=torch.ones(8, 6, dtype=torch.int64)), "features are torch.int64, neither half precision nor"),
        (_with(features=torch.full((8, 6), 126, dtype=torch.int8)), "largest is from 126 to 126, not 127"),
        (_with(features=torch.full((8, 6), -128, dtype=torch.int8)), "largest is from 128 to 128, not 127"),
        (_with(partition=torch.full((8,), 4, dtype=torch.int16)), "partitions from 4 to 4, outside 0 to 3"),
        (_with(partition=torch.full((8,), -1, dtype=torch.int16)), "partitions from -1 to -1, outside 0 to 3"),
        (_told(volumes=None), "expected the number of volumes behind the rows, got None"),
        (_told(volumes=-1), "expected the number of volumes behind the rows, got -1"),
        (_told(privacy={"epsilon": 1.0}), "the statement on the privacy of the features cannot be read"),
        (_told(privacy=3), "the statement on the privacy of the features cannot be read"),
    ],
)
def test_what_breaks_a_limit_is_not_accepted(payload: DXO, message: str) -> None:
    with pytest.raises(ExchangeError, match=message):
        decode(payload, "features", 3, LIMITS)


@pytest.mark.parametrize(
    ("exchange", "secure", "simulated", "allowed"),
    [
        (Exchange("features", "peer"), False, False, False),
        (Exchange("prototypes", "peer"), False, False, False),
        (Exchange("features", "peer"), True, False, True),
        (Exchange("features", "peer"), False, True, True),
        (Exchange("features", "relay"), False, False, True),
        (Exchange("none", "peer"), False, False, True),
    ],
)
def test_peers_exchange_in_production_only_when_secure(
    exchange: Exchange, secure: bool, simulated: bool, allowed: bool
) -> None:
    assert (exchange.refusal(secure, simulated) is None) == allowed
