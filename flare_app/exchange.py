"""How features travel between sites: which, by which route, in what form, and what is accepted on arrival.

All rows travel in every round: sites make them afresh with each round's weights, so none of them stays what it was.

Letters: M shared rows, D feature length, S partitions.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import torch
from nvflare.apis.dxo import DXO
from torch import Tensor

from fcl.federation import FeaturePrivacy, FeatureSet

FEATURES = "FCL_FEATURES"  # data kind of a payload of features: filters recognise it by this name

KINDS = ("none", "prototypes", "features")
ROUTES = ("peer", "relay")
FEATURE_BITS = (16, 8)
LARGEST_CODE = 127  # of each row in 8 bits

_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
# Half precision rounds each entry to 11 bits, so a unit row of any length keeps its norm to well within this.
_NORM_TOLERANCE = 1e-2


class ExchangeError(ValueError):
    """Features that are not accepted."""


@dataclass(frozen=True)
class Published:
    """What peers may pull in a round; replaced as a whole, never changed."""

    round: int
    kind: str
    features: FeatureSet

    @property
    def privacy(self) -> dict[str, Any] | None:
        """What the noise guarantees, as it travels."""
        return asdict(self.features.privacy) if self.features.privacy else None


@dataclass(frozen=True)
class Exchange:
    """What sites show each other in a round.

    Args:
        kind: ``"none"``, ``"prototypes"`` (the mean feature of each partition) or ``"features"`` (rows of the bank).
        route: ``"peer"``: sites pull from each other, end-to-end encrypted in a provisioned system; ``"relay"``: the
            server collects and forwards, and can read them.
        bits: of each entry of a row on its way.
        fan_out: peers whose features a site gets in a round; None for all.
        pull_rows: rows that a site gets of each of them; None for all that they publish.
        overlap: sites pull while they train, and use what came from the next round on.

    Raises:
        ValueError: on other values.
    """

    kind: str = "none"
    route: str = "peer"
    bits: int = 16
    fan_out: int | None = None
    pull_rows: int | None = None
    overlap: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"exchange must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.route not in ROUTES:
            raise ValueError(f"route must be one of {', '.join(ROUTES)}, got {self.route!r}")
        if self.bits not in FEATURE_BITS:
            raise ValueError(f"feature_bits must be one of {', '.join(map(str, FEATURE_BITS))}, got {self.bits!r}")
        for name, value in (("fan_out", self.fan_out), ("pull_rows", self.pull_rows)):
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"{name} must be a whole number of at least 1, or None for all; got {value!r}")
        if self.overlap and (self.kind == "none" or self.route != "peer"):
            raise ValueError(
                "overlap needs an exchange between peers: what the server relays comes with the weights; "
                f"got exchange {self.kind!r}, route {self.route!r}"
            )

    @property
    def active(self) -> bool:
        """Whether anything but weights is exchanged."""
        return self.kind != "none"

    @property
    def relayed(self) -> bool:
        """Whether the features pass through the server in a form that it can read."""
        return self.active and self.route == "relay"

    def rows_for(self, asked: int | None) -> int | None:
        """Rows of a site for a peer that asks for so many (None: all): never more than the job's terms name."""
        return min((rows for rows in (asked, self.pull_rows) if rows is not None), default=None)

    def refusal(self, secure: bool, simulated: bool) -> str | None:
        """Why this exchange must not run here; None when it may.

        Args:
            secure: whether the system is provisioned with certificates.
            simulated: whether this is FLARE's simulator, where nothing leaves the machine.
        """
        if self.active and self.route == "peer" and not secure and not simulated:
            return (
                "features between peers need a provisioned system, since without certificates they would cross the "
                "server in clear: provision with mutual TLS, or run with exchange 'none'"
            )
        return None


@dataclass(frozen=True)
class Limits:
    """What a received set must keep to.

    Args:
        feature_length: D of this site's own features.
        partitions: S.
        max_rows: most rows taken from one peer in a round.
    """

    feature_length: int
    partitions: int
    max_rows: int


def encode(features: FeatureSet, kind: str, round_number: int, bits: int = 16) -> DXO:
    """A payload of its own (no memory shared with ``features``, so that filters may edit it in place).

    Rows travel in half precision, or as int8 codes: each row is stretched until its largest entry is 127, and rounded.
    It needs no scale to go along, since its norm is known to be 1. Partitions travel as int16. The cohort and what is
    known of its privacy go along.
    """
    rows_MD = features.features.detach()
    if bits == 8:
        stretched_MD = rows_MD.float() / rows_MD.float().abs().amax(dim=1, keepdim=True) * LARGEST_CODE
        rows_MD = stretched_MD.nan_to_num(0.0).round()  # a broken row is one of zeros, which no one takes
    return DXO(
        FEATURES,
        data={
            "features": rows_MD.to("cpu", torch.float16 if bits == 16 else torch.int8, copy=True).contiguous(),
            "partition": features.partition.detach().to("cpu", torch.int16, copy=True).contiguous(),
        },
        meta={
            "kind": kind,
            "round": round_number,
            "volumes": int(features.volumes),
            **({"privacy": asdict(features.privacy)} if features.privacy else {}),
        },
    )


def sampled(payload: DXO, rows: int | None, publisher: str, asker: str) -> DXO:
    """``rows`` random rows of a payload, the same for the same asker in a round however often it asks; None: all.

    The cohort that the payload tells stays that of all its rows: a sample shows less of the same volumes.
    """
    total = rows_in(payload)
    if rows is None or rows >= total:
        return payload
    seed = hashlib.sha256(f"{payload.get_meta_prop('round')} {publisher} {asker}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(seed[:7], "big"))
    # Sorted: the published order is known to tell nothing of volumes.
    chosen_K = torch.randperm(total, generator=generator)[:rows].sort().values
    data = {name: tensor[chosen_K] for name, tensor in payload.data.items()}
    return DXO(payload.data_kind, data=data, meta=dict(payload.meta))


def no_features(feature_length: int) -> FeatureSet:
    """What a site publishes that shows nothing."""
    return FeatureSet(torch.zeros(0, feature_length), torch.zeros(0, dtype=torch.int64))


def rows_in(dxo: DXO) -> int:
    """Feature rows in a payload that nobody has checked yet; 0 when it is none."""
    rows = dxo.data.get("features") if dxo.data_kind == FEATURES else None
    return len(rows) if isinstance(rows, Tensor) and rows.ndim else 0


def decode(dxo: DXO, kind: str, round_number: int, limits: Limits) -> FeatureSet:
    """Features of a payload, as float32 rows of norm 1.

    Raises:
        ExchangeError: when the payload is not what was asked for, or breaks a limit.
    """
    if dxo.data_kind != FEATURES:
        raise ExchangeError(f"expected a payload of kind {FEATURES}, got {dxo.data_kind}")
    got = (dxo.get_meta_prop("kind"), dxo.get_meta_prop("round"))
    if got != (kind, round_number):
        raise ExchangeError(f"expected {kind} of round {round_number}, got {got[0]} of round {got[1]}")
    if set(dxo.data) != {"features", "partition"}:
        raise ExchangeError(f"expected the tensors features and partition, got {sorted(map(str, dxo.data))}")
    rows_MD, partition_M = dxo.data["features"], dxo.data["partition"]
    if not isinstance(rows_MD, Tensor) or not isinstance(partition_M, Tensor):
        raise ExchangeError(f"expected tensors, got {type(rows_MD).__name__} and {type(partition_M).__name__}")
    if rows_MD.ndim != 2 or rows_MD.shape[1] != limits.feature_length:
        raise ExchangeError(f"expected features of shape (rows, {limits.feature_length}), got {tuple(rows_MD.shape)}")
    if partition_M.shape != rows_MD.shape[:1] or partition_M.dtype not in _WHOLE:
        raise ExchangeError(
            f"expected one whole number per row as partition, got shape {tuple(partition_M.shape)} of "
            f"{partition_M.dtype} for {len(rows_MD)} rows"
        )
    if len(rows_MD) > limits.max_rows:
        raise ExchangeError(f"{len(rows_MD)} rows, more than the {limits.max_rows} accepted from one site")
    problem = rows_problem(rows_MD)
    if problem:
        raise ExchangeError(problem)
    rows_MD, partition_M = rows_MD.float(), partition_M.long()
    if ((partition_M < 0) | (partition_M >= limits.partitions)).any():
        raise ExchangeError(
            f"partitions from {partition_M.min()} to {partition_M.max()}, outside 0 to {limits.partitions - 1}"
        )
    return FeatureSet(rows_MD / rows_MD.norm(dim=1, keepdim=True), partition_M, *_told(dxo))


def rows_problem(rows_MD: Tensor) -> str | None:
    """Why rows are none that :func:`encode` gives of unit vectors; None when they may be.

    Codes have no norm to check; that the largest of each row is 127 leaves nothing but the direction to be told.
    """
    if rows_MD.dtype == torch.int8:
        largest_M = rows_MD.short().abs().amax(dim=1)
        if (largest_M != LARGEST_CODE).any():
            return f"rows of codes whose largest is from {largest_M.min()} to {largest_M.max()}, not {LARGEST_CODE}"
        return None
    if not rows_MD.is_floating_point():
        return f"features are {rows_MD.dtype}, neither half precision nor codes of 8 bits"
    norm_M = rows_MD.float().norm(dim=1)
    if not torch.isfinite(norm_M).all():
        return "features hold NaN or infinite values"
    if ((norm_M - 1).abs() > _NORM_TOLERANCE).any():
        return f"features are not of unit norm: from {norm_M.min():.4g} to {norm_M.max():.4g}"
    return None


def _told(dxo: DXO) -> tuple[int, FeaturePrivacy | None]:
    """The cohort and the privacy that a payload states."""
    volumes, privacy = dxo.get_meta_prop("volumes"), dxo.get_meta_prop("privacy")
    if not isinstance(volumes, int) or volumes < 0:
        raise ExchangeError(f"expected the number of volumes behind the rows, got {volumes!r}")
    try:
        return volumes, None if privacy is None else FeaturePrivacy(**privacy)
    except TypeError as error:
        raise ExchangeError("the statement on the privacy of the features cannot be read") from error
