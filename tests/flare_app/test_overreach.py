from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import fcl
from flare_app.overreach import overreach
from tests.flare_app.loopback import FAKE_BUNDLE

ROOT = Path(FAKE_BUNDLE)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the fake bundle pass for the one around the package ``fcl``."""
    monkeypatch.setattr(fcl, "bundle_root", lambda: ROOT)


@pytest.mark.parametrize(
    "overrides",
    [
        {"batch_size": "$__import__('os').getcwd()"},
        {"loss_function": {"_target_": "subprocess.call", "args": ["id"]}},
        {"loss_function::_target_": "subprocess.call"},
        {"loss_function#_target_": "subprocess.call"},
        {"channels": [16, {"deep": "$1"}]},
        {"norm": "%other.json::norm"},
        {"channels": [[["$1"]]]},
        {"norm": {"deep::_target_": "subprocess.call"}},
        {" initialize ::0": "none"},
        {"participant::_disabled_": True},
        {"participant::_requires_": ["@seed"]},
        {"pixdim": "@run::0"},
        {"initialize": []},
        {"imports": ["os"]},
        {"card": "@"},
        {"card": "@::run"},
        {"card": ["@ #initialize"]},
        {"participant::own_checkpoint": "keys"},
        {"participant": {"own_checkpoint": "keys"}},
        {"pretrained": "other.pt"},
        {"output_dir": "/tmp"},
        {"cache_dir": "../cache"},
        {"records": {"dataset_dir": ["~"]}},
        {"split_file": "C:\\\\split.json"},
    ],
)
@pytest.mark.usefixtures("installed")
def test_code_and_paths_in_overrides_are_found(overrides: dict[str, object]) -> None:
    (found,) = overreach(["configs/fake.json"], "toy", overrides, ROOT)
    assert repr(next(iter(overrides))) in found


@pytest.mark.usefixtures("installed")
def test_plain_overrides_and_files_of_the_bundle_are_within_reach(tmp_path: Path) -> None:
    plain = {"trainer::max_epochs": 2, "norm": ["instance", {"affine": True}], "pixdim": "@spacing", "pretrained": None}
    assert overreach(["configs/fake.json"], "toy", plain, ROOT) == []
    assert overreach(["configs/fake.json"], "configs/data/toy.json", plain, ROOT) == []
    (tmp_path / "link").symlink_to(ROOT)
    assert overreach(["configs/fake.json"], "toy", plain, tmp_path / "link") == []


def test_a_bundle_of_the_jobs_own_is_found(tmp_path: Path) -> None:
    expected = ["a bundle_root other than the installed bundle"]
    assert overreach(["configs/fake.json"], "toy", {}, ROOT) == expected
    (tmp_path / "configs").symlink_to(fcl.bundle_root() / "configs")
    assert overreach(["configs/pretrain.json"], "phantom", {}, tmp_path) == expected


@pytest.mark.usefixtures("installed")
def test_files_outside_the_bundle_are_found(tmp_path: Path) -> None:
    assert overreach(["../other.json"], str(tmp_path / "own.json"), {}, ROOT) == [
        "the config file 'other.json' outside the bundle",
        "the config file 'own.json' outside the bundle",
    ]
    assert overreach(["configs/fake.json"], "../../../x", {}, ROOT) == ["the config file 'x.json' outside the bundle"]
    assert overreach(["state/job.json"], None, {}, ROOT) == ["the config file 'job.json' outside the bundle"]


def test_a_link_in_the_bundle_leads_out_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = tmp_path / "bundle"
    shutil.copytree(ROOT, copied)
    monkeypatch.setattr(fcl, "bundle_root", lambda: copied)
    (tmp_path / "job.json").write_text("{}")
    (copied / "configs" / "link.json").symlink_to(tmp_path / "job.json")
    assert overreach(["configs/link.json"], None, {}, copied) == ["the config file 'link.json' outside the bundle"]


def test_stages_are_not_mixed() -> None:
    root = fcl.bundle_root()
    stage, method = "configs/pretrain.json", "configs/methods/fcl.json"
    assert overreach([stage, method, "configs/privacy/dp_sgd.json"], "acdc", {}, root) == []
    several = ["config files of more than one stage"]
    assert overreach([stage, "configs/features.json"], None, {}, root) == several
    assert overreach([stage], "configs/features.json", {}, root) == several
    assert overreach([method, stage], None, {}, root) == several
    assert overreach([stage, method, "configs/../configs/methods/fcl.json"], None, {}, root) == ["a config file twice"]


@pytest.mark.parametrize(
    ("folder", "within"), [("state", True), ("a/b", True), ("/state", False), ("a/../../b", False)]
)
def test_a_site_s_state_stays_in_the_workspace(folder: str, within: bool) -> None:
    found = overreach(["configs/pretrain.json"], None, {}, fcl.bundle_root(), folder)
    assert found == ([] if within else ["a checkpoint_dir outside the workspace"])
