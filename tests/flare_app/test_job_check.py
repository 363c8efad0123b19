"""What is wrong with a job's words is told before any process starts and anything is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fcl
from flare_app.executor import FCLExecutor
from flare_app.job import __main__ as command
from flare_app.job.__main__ import main
from flare_app.protocol import TaskName, reason_of
from flare_app.workflow import unknown_keys
from tests.flare_app.loopback import FAKE_BUNDLE
from tests.flare_app.test_executor import Site, _initialize


def _refused(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    def run(*arguments: object) -> int:
        raise AssertionError("it was started")

    monkeypatch.setattr(command, "run_job", run)
    monkeypatch.setattr(command, "export_job", run)
    monkeypatch.setenv("FCL_SITE_SETTINGS", "")
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["run", "fcl_pretrain", "--workspace", "x"], ["export", "fcl_pretrain", "--out", "x"]]
)
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--data", "phantm"], "no dataset 'phantm', did you mean 'phantom'? Give one of acdc, datalist, phantom, "),
        (
            ["--data", "qqq"],
            "no dataset 'qqq'. Give one of acdc, datalist, phantom, sunnybrook, or the path of a JSON ",
        ),
        (["--data", "my/overlay.json"], "no dataset 'my/overlay.json'. Give one of acdc, "),
        (["--method", "simcrl"], "no method 'simcrl', did you mean 'simclr'? Give one of byol, "),
        (["--method", "fedprox", "--data", "qqq"], "no method 'fedprox'. Give one of "),
        (
            ["--set", "stepsperepoch=2"],
            "'stepsperepoch' is not a key of pretrain.json; did you mean 'steps_per_epoch'?",
        ),
        (["--set", "trainr::lr=1"], "'trainr' is not a key of pretrain.json; did you mean 'train'?"),
        (["--bundle-root", FAKE_BUNDLE], "no configuration 'pretrain'. Give one of fake, marked, "),
    ],
)
def test_a_wrong_word_ends_the_command_with_what_there_is(
    words: list[str],
    options: list[str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert told in " ".join(_refused([*words, *options], monkeypatch, capsys).split())


def test_a_bundle_that_is_not_here_can_be_named_for_sites_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = ["--bundle-root", "/opt/nowhere", "--method", "theirs", "--set", "their_key=1"]
    assert main(["export", "fcl_pretrain", "--out", str(tmp_path), *absent]) == 0
    capsys.readouterr()
    error = _refused(["run", "fcl_pretrain", "--workspace", "x", *absent], monkeypatch, capsys)
    assert "--bundle-root /opt/nowhere has no folder configs" in error


def test_an_overlay_of_a_sites_own_may_be_named_by_its_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    overlay = tmp_path / "overlay.json"
    options = ["--data", str(overlay)]
    assert main(["export", "fcl_pretrain", "--out", str(tmp_path), *options]) == 0  # it may lie at the sites alone
    capsys.readouterr()
    assert "no dataset" in _refused(["run", "fcl_pretrain", "--workspace", "x", *options], monkeypatch, capsys)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--data", "imported/overlay.json"], "the config file 'overlay.json' outside the bundle"),
        (["--set", "dataset_dir=/data/acdc"], "the override of 'dataset_dir', which names a file"),
        (["--checkpoint-dir", "/srv/state"], "a checkpoint_dir outside the workspace"),
    ],
)
def test_a_job_without_code_is_not_exported_with_what_sites_would_refuse(
    options: list[str], reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", "fcl_pretrain", "--out", "x", "--config-only", *options]
    error = " ".join(_refused(words, monkeypatch, capsys).split())
    assert f"a job without code must do without {reason}: " in error
    assert "local/fcl_site.json" in error


def test_a_site_tells_which_override_is_no_key_and_no_path(tmp_path: Path) -> None:
    executor = FCLExecutor(["configs/pretrain.json"], "acdc", {"stepsperepoch": 2, "trainr::lr": 1})
    reason = reason_of(Site(tmp_path, executor).do(TaskName.INITIALIZE, _initialize()))
    assert reason.startswith("the configuration does not fit pretrain.json: 'stepsperepoch' is not a key of")
    assert "did you mean 'steps_per_epoch'?" in reason
    assert "'trainr' is not a key of pretrain.json; did you mean 'train'?" in reason
    assert str(fcl.bundle_root()) not in reason


def test_an_override_in_no_section_is_named_as_well(tmp_path: Path) -> None:
    executor = FCLExecutor(["configs/fake.json"], "toy", {"nosuch::key": 1}, bundle_root=FAKE_BUNDLE)
    reason = reason_of(Site(tmp_path, executor).do(TaskName.INITIALIZE, _initialize()))
    assert reason == "the job's override of 'nosuch::key' lies in no section of the configuration"


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"annotated": 1, "train::trainer::lr": 0.5, "fold": "name"},
        {"norm": ["batch", {"track_running_stats": False}]},
        {"labels": {"liver": 1}},
        {"records::sections::0": "test"},  # of an overlay that a site may name
    ],
)
def test_keys_of_the_bundle_pass(overrides: dict[str, object]) -> None:
    assert unknown_keys(fcl.bundle_root(), ["configs/finetune.json"], overrides) is None


def test_a_bundle_that_asks_for_no_check_takes_any_key() -> None:
    assert unknown_keys(Path(FAKE_BUNDLE), ["configs/fake.json"], json.loads('{"new": 1}')) is None
