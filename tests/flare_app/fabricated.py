"""The workspace of a federated run that never was: what the server and two sites would have left."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flare_app.records import RoundRecord, SiteRecord

MIB = 2**20
SITES = ("site-1", "site-2", "site-3", "site-10")
LATE = "no answer to 'train' within 60 s"
EXCLUDED = "excluded after 2 rejected updates"


def site_record(number: int, place: int) -> SiteRecord:
    """Of a site that answered; ``place`` among ``SITES``."""
    shift = 0.05 * place
    return SiteRecord(
        count=48 + 8 * place,
        seconds=10.0 + place - 0.2 * number,
        metrics={
            "loss": 5.0 - 0.4 * number + shift,
            "positive_similarity": 0.7 + 0.04 * number,
            "negative_similarity": 0.6 - 0.06 * number,
            "similarity_gap": 0.1 + 0.1 * number,
            "spread": 0.5 - 0.02 * number + shift,
            "alignment": 0.2 - 0.01 * number,
        },
        validation={"partition_knn": 0.4 + 0.06 * number - shift, "uniformity": -0.5 - 0.1 * number, "count": 4.0},
        bytes_weights_down=5 * MIB,
        bytes_weights_up=5 * MIB,
        bytes_features_up=MIB // 4,
        bytes_features_down=MIB // 2,
        update_norm=2.0 - 0.2 * number,
        peak_mib=700.0 + 5 * number + 10 * place,
        privacy={"epsilon": 0.8 * (number + 1), "delta": 1e-5} if place == 0 else None,
    )


def round_record(number: int) -> RoundRecord:
    """Round 1 loses site-2, round 2 rejects site-10, round 3 does so again, and from round 4 on it is excluded."""
    parts: dict[str, dict[str, str]] = {
        "rejected": {1: {"site-2": LATE}, 2: {"site-10": "not finite: head.weight"}, 3: {"site-10": "not finite"}},
        "left_out": {2: {"site-2": LATE}, 4: {"site-10": EXCLUDED}},
    }  # type: ignore[assignment]
    rejected, left_out = (parts[kind].get(number, {}) for kind in ("rejected", "left_out"))  # type: ignore[call-overload]
    asked = [site for site in SITES if site not in left_out]
    accepted = sorted(site for site in asked if site not in rejected)
    sites = {site: site_record(number, place) for place, site in enumerate(SITES) if site in accepted}
    mean = sites[accepted[0]]
    return RoundRecord(
        round=number,
        seconds=14.0,
        count=sum(entry.count for entry in sites.values()),
        metrics=mean.metrics,
        validation={name: value for name, value in mean.validation.items() if name != "count"},
        accepted=accepted,
        rejected=rejected,
        left_out=left_out,
        sites={site: sites.get(site, SiteRecord(bytes_weights_down=5 * MIB)) for site in asked},
    )


def final_record(rounds: int) -> RoundRecord:
    """The validation after the last round."""
    record = round_record(rounds)
    record.count, record.metrics, record.seconds = 0, {}, 2.0
    record.sites = {site: SiteRecord(validation=entry.validation) for site, entry in record.sites.items()}
    return record


def write_workspace(
    folder: Path, done: int = 5, total: int = 5, change: Callable[[int, RoundRecord], None] | None = None
) -> Path:
    """A workspace of FLARE's simulator after ``done`` rounds; gives the log of rounds."""
    run = folder / "server" / "simulate_job"
    arguments = {"num_rounds": total, "exchange": "features", "route": "peer", "validate_every": 1}
    config = {"workflows": [{"id": "controller", "args": arguments}]}
    _write(run / "app_server/config/config_fed_server.json", json.dumps(config))
    overrides = {"temperature": 0.2, "spatial_size": [64, 64]}
    executor = {"args": {"config": ["configs/pretrain.json"], "overrides": overrides, "seed": 3}}
    _write(run / "app_server/config/config_fed_client.json", json.dumps({"executors": [{"executor": executor}]}))
    _write(run / "meta.json", json.dumps({"name": "fcl_pretrain"}))
    records = [round_record(number) for number in range(done)] + [final_record(total)] * (done == total)
    for number, record in enumerate(records):
        if change is not None:
            change(number, record)
    log = _write(run / "fcl/rounds.jsonl", "".join(json.dumps(asdict(record)) + "\n" for record in records))
    for site in SITES[:2]:
        lines = [
            _sent(site, "report", to="server", keys=["loss"]),
            _sent(site, "encoder.weight", to="server", count=9, bytes=MIB),
            _sent(site, "features", to="site-3", count=64, bytes=MIB // 2, epsilon=0.8),
            _sent(site, "encoder.weight", to="server", count=9, bytes=7 * MIB, job="another"),
        ]
        _write(folder / site / "egress" / f"{site}.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return log


def _sent(site: str, name: str, job: str = "simulate_job", **more: Any) -> dict[str, Any]:
    return {"time": "2030-01-01T00:00:00Z", "id": name, "job": job, "round": 0, "event": "sent", "name": name, **more}


def _write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file
