from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path

import pytest
from monai.bundle import ConfigWorkflow

import fcl
from flare_app.protocol import SiteError
from flare_app.workflow import bundle_folder, config_files, config_hash, open_workflow
from tests.flare_app.loopback import FAKE_BUNDLE

ROOT = Path(FAKE_BUNDLE)
# MONAI's own: what these name it would take for itself rather than for a key of the configuration.
PARAMETERS = [name for name in inspect.signature(ConfigWorkflow).parameters if name != "override"]


def test_bundle_is_the_given_one_or_that_of_the_package(tmp_path: Path) -> None:
    assert bundle_folder(FAKE_BUNDLE) == ROOT
    with pytest.raises(SiteError, match=r"names no folder with configs/") as error:
        bundle_folder(str(tmp_path))
    assert str(tmp_path) not in str(error.value)
    if (Path(fcl.__file__).parents[1] / "configs/metadata.json").is_file():
        assert bundle_folder(None) == fcl.bundle_root()


def test_overlays_come_last_by_name_or_path(tmp_path: Path) -> None:
    own = tmp_path / "own.json"
    own.write_text("{}")
    base = ROOT / "configs/fake.json"
    assert config_files(ROOT, ["configs/fake.json"], "toy") == [base, ROOT / "configs/data/toy.json"]
    assert config_files(ROOT, ["configs/fake.json"], str(own)) == [base, own]
    assert config_files(ROOT, ["configs/fake.json"], "configs/data/toy.json") == [base, ROOT / "configs/data/toy.json"]
    assert config_files(ROOT, ["configs/fake.json"], None) == [base]


def test_missing_files_are_named_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(SiteError) as error:
        config_files(ROOT, ["configs/fak.json"], str(tmp_path / "patients.json"))
    assert str(error.value) == (
        "the bundle at this site has no 'configs/fak.json' "
        "(there are fake.json, marked.json, metadata.json, no_participant.json); "
        "no data overlay 'patients.json' (there are toy.json)"
    )


def test_hash_tells_files_overrides_and_seed_apart(tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(ROOT, copy)
    config = ["configs/fake.json"]
    reference = config_hash(ROOT, config, {"a": 1}, 0)
    assert config_hash(copy, config, {"a": 1}, 0) == reference
    assert config_hash(ROOT, config, {"a": 2}, 0) != reference
    assert config_hash(ROOT, config, {"a": 1}, 1) != reference
    (copy / "configs/fake.json").write_text((ROOT / "configs/fake.json").read_text() + "\n")
    assert config_hash(copy, config, {"a": 1}, 0) != reference


def test_participant_is_built_once_with_the_overrides(tmp_path: Path) -> None:
    files = config_files(ROOT, ["configs/fake.json"], "toy")
    overrides = {"site": "site-9", "seed": 5, "output_dir": str(tmp_path), "batch_size": 3}
    workflow, participant = open_workflow(ROOT, files, overrides)
    assert workflow.participant is participant
    assert (participant.site, participant.batch_size, participant.slices) == ("site-9", 3, 24)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", PARAMETERS)
def test_overrides_are_keys_whatever_monai_calls_its_own_parameters(tmp_path: Path, name: str) -> None:
    ran = tmp_path / "ran"
    program = [f"$open({str(ran)!r}, 'w').close()"]
    (tmp_path / "job.json").write_text(json.dumps({"initialize": program, "run": program, "finalize": program}))
    files, value = config_files(ROOT, ["configs/fake.json"], "toy"), str(tmp_path / "job.json")
    workflow, _ = open_workflow(ROOT, files, {"output_dir": str(tmp_path), name: value})
    workflow.finalize()
    assert workflow.parser[name] == value
    assert not ran.exists()


def test_config_without_a_participant_is_refused() -> None:
    with pytest.raises(SiteError, match=r"no_participant.json declares no 'participant'"):
        open_workflow(ROOT, [ROOT / "configs/no_participant.json"], {})
    with pytest.raises(SiteError, match=r"'participant' of no_participant.json is a int: it lacks parts of"):
        open_workflow(ROOT, [ROOT / "configs/no_participant.json"], {"participant": 3})
