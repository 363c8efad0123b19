"""What a job can and cannot make of the real bundle at a hospital that has settings of its own."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from nvflare.apis.dxo import DataKind

import fcl
from flare_app.egress import EgressPolicy
from flare_app.egress.declared import Declared
from flare_app.egress.rules import RowsPerRound, examine
from flare_app.executor import FCLExecutor
from flare_app.hosting import SIMULATED_DATA, data_overlay
from flare_app.protocol import SiteError, TaskName, reason_of, report_of, tensors_of
from flare_app.site import SiteSettings
from flare_app.statistics.executor import DataStatisticsExecutor
from tests.flare_app.loopback import FAKE_BUNDLE
from tests.flare_app.statistics.hospitals import hospital, overlay
from tests.flare_app.test_executor import Site, _initialize, _round

POLICY = "participant::feature_policy"
PRIVACY = {"noise_multiplier": 8.0, "epsilon_budget": 3.0, "min_volumes": 5}
SMALL = {"channels": [4, 8], "spatial_size": [16, 16], "pixdim": [2.0, 2.0], "fold": None, "labels": {"lv": 1}}

# What studies and researchers set, near what a release rests on.
HARMLESS = {
    "partitions": 3,
    "batch_size": 4,
    "learning_rate": 0.01,
    "drawn_features": 64,
    "momentum": 0.99,
    "instance_weight": 0.5,
    "bank::max_age": 3,
    "method::drawn_features": 32,
    "train::slices::batch_size": 16,
    "train::handlers::1::neighbours": 5,
    "participant::max_shared_rows": 64,
    "augmentation::transforms::0::flip_prob": 0.0,
}


def _settings(root: Path, **own: Any) -> None:
    (root / "local").mkdir(exist_ok=True)
    (root / "local" / "fcl_site.json").write_text(json.dumps(own))


def _answer(root: Path, exchange: str = "features", **arguments: Any) -> tuple[str, Site]:
    """Of a site that admits no code to INITIALIZE of a pre-training."""
    executor = FCLExecutor(**{"config": ["configs/pretrain.json"], "data": "datalist", **arguments})
    site = Site(root, executor, byoc=False)
    return reason_of(site.do(TaskName.INITIALIZE, _initialize(exchange))), site


@pytest.mark.parametrize(
    "overrides",
    [
        {f"{POLICY}::noise_multiplier": None},
        {f"{POLICY}::epsilon_budget": None},
        {f"{POLICY}::min_volumes": 1},
        {f"{POLICY}#min_volumes": 1},
        {f"{POLICY}::ledger": None},
        {POLICY: None},
        {"participant": None},
        {"delta": 0.5},
        {"cache_dir": "elsewhere"},
        {"bank::volume": "@bank::partition"},
        {"bank": "@train::dataset"},
        {"method::bank": None},
        {"method::slices": "@train::dataloader"},
        {"train::slices::dataset": "@slice_cache"},
        {"train::slices": "@train::dataloader"},
        {"train::dataloader::dataset": "@slice_cache"},
        {"train::dataset::volumes": None},
        {"train::trainer::train_data_loader": "@train::slices"},
        {"slice_cache::records": []},
        {"site_split::records": []},
        {"records::datalist": "other.json"},
    ],
)
@pytest.mark.parametrize("exchange", ["features", "none"])
def test_no_override_switches_the_privacy_of_features_off(
    tmp_path: Path, overrides: dict[str, Any], exchange: str
) -> None:
    _settings(tmp_path, feature_privacy=PRIVACY)
    reason, _ = _answer(tmp_path, exchange, overrides=overrides)
    assert reason == (
        f"this site sets feature_privacy itself, and the job's override of {next(iter(overrides))!r} "
        "would change what comes of it: leave it out"
    )


@pytest.mark.parametrize(
    ("config", "overrides"),
    [
        ("methods/fcl", {"cache_dir": "elsewhere"}),
        ("methods/fcl", {f"{POLICY}::ledger": None}),
        ("methods/fcl", {POLICY: None}),
        ("privacy/dp_sgd", {"cache_dir": "elsewhere"}),
        ("privacy/dp_sgd", {"participant::ledger": None}),
    ],
)
def test_no_override_moves_the_ledger_of_a_site_that_sets_nothing(
    tmp_path: Path, config: str, overrides: dict[str, Any]
) -> None:
    base = {"methods": "pretrain", "privacy": "finetune"}[config.split("/")[0]]
    files = [f"configs/{name}.json" for name in (base, config)]
    reason, _ = _answer(tmp_path, "none", config=files, overrides=overrides)
    assert reason == (
        "this site sets the place of its privacy ledger itself, and the job's override of "
        f"{next(iter(overrides))!r} would change what comes of it: leave it out"
    )


@pytest.mark.parametrize("overrides", [{"records::dataset_dir": "job"}, {"records::datalist": "other.json"}])
def test_no_override_leads_to_other_data_than_the_sites(tmp_path: Path, overrides: dict[str, Any]) -> None:
    _settings(tmp_path, dataset_dir=str(tmp_path))
    assert "this site sets dataset_dir itself" in _answer(tmp_path, overrides=overrides)[0]
    assert "this site sets dataset_dir itself" in _statistics(tmp_path, overrides, byoc=True)


def _statistics(root: Path, overrides: dict[str, Any], byoc: bool = False) -> str:
    executor = DataStatisticsExecutor(["configs/pretrain.json"], "datalist", overrides)
    return reason_of(Site(root, executor, byoc=byoc).do(TaskName.STATISTICS, _initialize()))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "overrides",
    [
        {"data_statistics::bins": 60},
        {"data_statistics#ranges": {"slices": [0, 9]}},
        {"data_statistics::ranges": {"slices": [0, 9]}},
        {"data_statistics": None},
        {"site": "site-2"},
        {"records::sections": ["test"]},
        {"site_split::site": "site-2"},
        {"data_check": None},
        {"partitions": 9},
    ],
)
def test_a_job_without_code_chooses_neither_edges_nor_patients_of_statistics(
    tmp_path: Path, overrides: dict[str, Any]
) -> None:
    _settings(tmp_path, dataset_dir=str(hospital(tmp_path, "hospital-a")), cache_dir=str(tmp_path / "cache"))
    reason = _statistics(tmp_path, {"fold": None, "labels": {"lv": 1}, **overrides})
    assert f"leave out the override of {next(iter(overrides))!r}. What else statistics are of is the site's" in reason
    assert _statistics(tmp_path, {"fold": 2, "labels": {"lv": 1}, "slice_axis": 2}) == "OK"


def test_a_site_s_own_overlay_sets_the_edges(tmp_path: Path) -> None:
    data = overlay(tmp_path / "own.json")
    data.write_text(json.dumps({**json.loads(data.read_text()), "data_statistics::ranges": {"slices": [0, 400]}}))
    _settings(tmp_path, dataset_dir=str(hospital(tmp_path, "hospital-a")), data=str(data), cache_dir=str(tmp_path))
    executor = DataStatisticsExecutor(["configs/pretrain.json"], overrides={"fold": None})
    told = report_of(Site(tmp_path, executor, byoc=False).do(TaskName.STATISTICS, _initialize()))  # type: ignore[arg-type]
    assert told["statistics"]["histogram"]["slices"]["high"] == 400.0


def test_statistics_are_of_all_patients_whatever_fold_is_held_out(tmp_path: Path) -> None:
    _settings(tmp_path, dataset_dir=str(hospital(tmp_path, "hospital-a")), cache_dir=str(tmp_path / "cache"))
    told = []
    for fold in (None, 0, 3):
        executor = DataStatisticsExecutor(["configs/pretrain.json"], "datalist", {"fold": fold, "labels": {"lv": 1}})
        told.append(report_of(Site(tmp_path, executor, byoc=False).do(TaskName.STATISTICS, _initialize())))  # type: ignore[arg-type]
    assert told[0]["totals"]["patients"] == 6
    assert told[0] == told[1] == told[2]


@pytest.mark.parametrize("exchange", ["features", "none"])
def test_privacy_of_features_holds_whatever_is_asked_for_first(tmp_path: Path, exchange: str) -> None:
    folder, cache = hospital(tmp_path, "hospital-a"), tmp_path / "cache"
    _settings(tmp_path, dataset_dir=str(folder), cache_dir=str(cache), feature_privacy=PRIVACY)
    overrides = {**SMALL, "noise_multiplier": 0.1, "rows_per_patient": 2, "cache_dir": "job", **HARMLESS}
    reason, site = _answer(tmp_path, exchange, overrides=overrides)
    assert reason == "OK"
    policy = site.executor._participant.publisher.policy  # type: ignore[union-attr]
    assert (policy.noise_multiplier, policy.epsilon_budget, policy.min_volumes) == (8.0, 3.0, 5)
    assert (policy.rows_per_patient, policy.ledger) == (2, f"{cache}/privacy_ledger.json")


@pytest.mark.parametrize("method", ["fcl", "fcl_3d", "fcl_instance", "fcl_pcl", "fedca", "moco", "simclr"])
def test_shipped_methods_run_at_a_site_with_privacy_of_features(tmp_path: Path, method: str) -> None:
    folder, cache = hospital(tmp_path, "hospital-a"), tmp_path / "cache"
    _settings(tmp_path, dataset_dir=str(folder), cache_dir=str(cache), feature_privacy=PRIVACY)
    files = ["configs/pretrain.json", f"configs/methods/{method}.json"]
    assert _answer(tmp_path, "none", config=files, overrides=SMALL)[0] == "OK"


@pytest.mark.parametrize(
    ("exchange", "further", "taken"),
    [("features", {}, False), ("none", {}, True), ("features", {"withhold": ["features"]}, True)],
)
def test_a_bundle_that_heeds_no_privacy_shows_no_features(
    tmp_path: Path, exchange: str, further: dict[str, Any], taken: bool
) -> None:
    _settings(tmp_path, feature_privacy=PRIVACY, **further)
    site = Site(tmp_path, FCLExecutor(["configs/fake.json"], "toy", bundle_root=FAKE_BUNDLE))
    reason = reason_of(site.do(TaskName.INITIALIZE, _initialize(exchange)))
    expected = "nothing in fake.json heeds noise_multiplier, epsilon_budget, min_volumes of this site's feature_privacy"
    assert reason == "OK" if taken else reason.startswith(expected)


FINETUNE, DP_SGD = "configs/finetune.json", "configs/privacy/dp_sgd.json"
WEIGHT_PRIVACY = {"noise_multiplier": 2.0, "epsilon_budget": 30.0}


def _finetuning(root: Path, config: list[str], overrides: dict[str, Any] | None = None, **own: Any) -> tuple[str, Site]:
    """Of a hospital with data to INITIALIZE of a fine-tuning."""
    folder = root / "Zebulon-hospital-a"
    if not folder.exists():
        hospital(root, "hospital-a")
    _settings(root, dataset_dir=str(folder), cache_dir=str(root / "cache"), **own)
    overrides = {**SMALL, "steps_per_epoch": 2, **(overrides or {})}
    return _answer(root, "none", config=config, overrides=overrides)


@pytest.mark.parametrize("config", ["configs/pretrain.json", FINETUNE])
@pytest.mark.parametrize("asked", [WEIGHT_PRIVACY, {}])
def test_weights_of_training_without_privacy_stay_where_the_site_asks_for_it(
    tmp_path: Path, config: str, asked: dict[str, float]
) -> None:
    steps = {"steps_per_epoch": 2} if config == FINETUNE else {}
    folder = hospital(tmp_path, "hospital-a")
    _settings(tmp_path, dataset_dir=str(folder), cache_dir=str(tmp_path / "cache"), weight_privacy=asked)
    # Whatever reads the key makes no training private.
    for further in ({}, {"encoder_learning_rate": "@weight_noise_multiplier"} if config == FINETUNE else {}):
        reason, site = _answer(tmp_path, "none", config=[config], overrides={**SMALL, **steps, **further})
        assert reason.startswith("this site sets weight_privacy, so that weights leave it from private training alone")
        assert "fine-tune with configs/privacy/dp_sgd.json" in reason
        assert site.executor._participant is None


def test_a_private_training_takes_the_sites_word_before_the_jobs(tmp_path: Path) -> None:
    job = {
        "weight_noise_multiplier": 0.1,
        "weight_epsilon_budget": None,
        "weight_sample_rate": 0.5,
        "learning_rate": 0.1,
    }
    reason, site = _finetuning(tmp_path, [FINETUNE, DP_SGD], job, weight_privacy=WEIGHT_PRIVACY)
    assert reason == "OK"
    participant: Any = site.executor._participant
    assert asdict(participant.weight_privacy) == {
        **WEIGHT_PRIVACY,
        "sample_rate": 0.5,
        "max_grad_norm": 1.0,
        "delta": 1e-5,
    }
    assert participant.trainer.optimizer.noise_multiplier == 2.0
    assert participant.ledger.file == tmp_path / "cache" / "privacy_ledger.json"


@pytest.mark.parametrize(
    "overrides",
    [
        {"train::optimizer::noise_multiplier": 0.1},
        {"train::optimizer::noise": "@train::loss"},
        {"train::dataloader::sample_rate": 0.01},
        {"train::trainer::optimizer": "@train::optimizer::optimizer"},
        {"train::trainer::loss_function": "@validate::inferer"},
        {"train::loss::batch": True},
        {"train::augmentation": None},
        {"validate::dataset::volumes": "@train::dataset::volumes"},
        {"participant": "@validate::evaluator"},
        {"participant::delta": 0.5},
        {"participant::epsilon_budget": None},
        {"participant::ledger": None},
        {"weight_delta": 0.5},
    ],
)
def test_no_override_switches_the_privacy_of_weights_off(tmp_path: Path, overrides: dict[str, Any]) -> None:
    reason, _ = _finetuning(tmp_path, [FINETUNE, DP_SGD], overrides, weight_privacy=WEIGHT_PRIVACY)
    assert f"weight_privacy itself, and the job's override of {next(iter(overrides))!r} would change" in reason


def test_a_private_training_by_numbers_of_its_own_is_refused(tmp_path: Path) -> None:
    """Of a job that may bring configurations: nothing in it refers to the site's keys."""
    shutil.copytree(fcl.bundle_root() / "configs", tmp_path / "bundle" / "configs")
    file = tmp_path / "bundle" / DP_SGD
    text = file.read_text().replace('"@weight_noise_multiplier"', "0.1")
    file.write_text(text.replace('"weight_noise_multiplier": 4.0,', ""))
    folder = hospital(tmp_path, "hospital-a")
    _settings(tmp_path, dataset_dir=str(folder), cache_dir=str(tmp_path / "cache"), weight_privacy=WEIGHT_PRIVACY)
    executor = FCLExecutor([FINETUNE, DP_SGD], "datalist", SMALL, bundle_root=str(tmp_path / "bundle"))
    reason = reason_of(Site(tmp_path, executor).do(TaskName.INITIALIZE, _initialize("none")))
    assert reason.startswith("training of finetune.json would not keep to noise_multiplier of this site's weight_priv")


def test_a_private_round_tells_epsilon_and_neither_time_nor_memory(tmp_path: Path) -> None:
    _, site = _finetuning(tmp_path, [FINETUNE, DP_SGD], weight_privacy=WEIGHT_PRIVACY)
    reply = site.do(TaskName.TRAIN, _round(site.executor._participant.weights()))  # type: ignore[union-attr]
    report = report_of(reply)
    assert set(report) == {"count", "metrics", "validation", "features_received", "privacy"}
    assert 0 < report["metrics"]["dp_epsilon"] < 30
    policy = EgressPolicy.from_dict({"max_weight_epsilon": 30.0})
    sent = tensors_of(reply, DataKind.WEIGHT_DIFF)
    declared = Declared({name: tuple(tensor.shape) for name, tensor in sent.items()})
    assert examine(policy, RowsPerRound(policy.max_rows), declared, TaskName.TRAIN, reply).payload is reply


def test_config_files_of_a_job_that_may_bring_no_code_are_not_run(tmp_path: Path) -> None:
    ran, app = tmp_path / "ran", tmp_path / "job" / "app" / "config"
    (app / "configs").mkdir(parents=True)
    program = {"participant": None, "initialize": [f"$open({str(ran)!r}, 'w').close()"]}
    for name in ("pretrain", "metadata"):
        (app / "configs" / f"{name}.json").write_text(json.dumps(program))
    reason, _ = _answer(tmp_path, bundle_root=str(app), data=None)
    assert reason == (
        "a job without the right to bring code must do without a bundle_root other than the installed bundle"
    )
    for name in ("tracking", "logging_file", "properties_path", "meta_file", "config_file"):
        file = app / "configs" / "pretrain.json"
        assert f"the override of '{name}', which names a file" in _answer(tmp_path, overrides={name: str(file)})[0]
        reason, _ = _answer(tmp_path, overrides={name: file.name})
        assert f"{name!r} is not a key of pretrain.json" in reason
    assert not ran.exists()


@pytest.mark.parametrize(
    ("own", "job", "taken"),
    [
        ({}, None, SIMULATED_DATA),
        ({}, "acdc", "acdc"),
        ({"data": "datalist"}, "acdc", "datalist"),
        ({"data": "datalist", "dataset_dir": "/d"}, None, "datalist"),
        ({"dataset_dir": "/d"}, "acdc", "acdc"),
    ],
)
def test_data_are_read_as_the_site_says_else_the_job_else_the_simulator(
    own: dict[str, str], job: str | None, taken: str
) -> None:
    assert data_overlay(SiteSettings(**own), job, fcl.bundle_root(), simulated=True) == taken
    if own or job:
        assert data_overlay(SiteSettings(**own), job, fcl.bundle_root(), simulated=False) == taken


@pytest.mark.parametrize("simulated", [True, False])
def test_a_folder_that_nobody_says_how_to_read_is_not_taken_for_acdc(simulated: bool) -> None:
    with pytest.raises(SiteError) as error:
        data_overlay(SiteSettings(dataset_dir="/secret/folder"), None, fcl.bundle_root(), simulated)
    assert str(error.value) == (
        'this site sets "dataset_dir" but not how to read it: set "data" beside it, to "datalist" for a folder with '
        "dataset.json, else to one of acdc, datalist, phantom, sunnybrook, or the path of a JSON overlay"
    )


def test_a_real_site_without_data_takes_no_part(tmp_path: Path) -> None:
    missing = (
        'this site has not said where its data are: write "data" and "dataset_dir" into local/fcl_site.json '
        "(local/fcl_site.json.sample in its kit shows how)"
    )
    training = Site(tmp_path, FCLExecutor(["configs/pretrain.json"]), simulated=False)
    assert reason_of(training.do(TaskName.INITIALIZE, _initialize())) == missing
    comparing = Site(tmp_path, DataStatisticsExecutor(["configs/pretrain.json"]), simulated=False)  # type: ignore[arg-type]
    assert reason_of(comparing.do(TaskName.STATISTICS, _initialize())) == missing


def test_statistics_need_a_filter_as_well(tmp_path: Path) -> None:
    executor = DataStatisticsExecutor(["configs/pretrain.json"])
    bare = Site(tmp_path, executor, simulated=False, filtered=TaskName.ALL)  # type: ignore[arg-type]
    reason = reason_of(bare.do(TaskName.STATISTICS, _initialize()))
    assert reason.startswith("no EgressFilter checks what would leave this site in answer to statistics: ")
