from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser, ConfigWorkflow, create_workflow

from fcl.config import check_overlays, refuse_unknown_keys, require

BASE: dict[str, Any] = {
    "imports": ["$import fcl", "$import fcl.config"],
    "output_dir": "runs",
    "dataset_dir": None,
    "channels": [4, 8],
    "labels": {"rv": 1, "myo": 2},
    "network_def": {"_target_": "torch.nn.Linear", "in_features": 3, "out_features": "$@channels[-1]"},
    "train": {
        "epochs": 2,
        "optimizer": {"_target_": "torch.optim.SGD", "params": "$@network_def.parameters()", "lr": 0.1},
    },
    "run": ["$@network_def.out_features", "$@train::optimizer.param_groups[0]['lr']"],
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    file = tmp_path / "base.json"
    file.write_text(json.dumps({**BASE, "initialize": [f"$fcl.config.refuse_unknown_keys({str(file)!r})"]}))
    return file


def workflow(base: Path, overlay: dict[str, Any] | None = None, **options: Any) -> ConfigWorkflow:
    files = [str(base)]
    if overlay is not None:
        files.append(str(base.with_name("overlay.json")))
        Path(files[-1]).write_text(json.dumps(overlay))
    return ConfigWorkflow(config_file=files, workflow_type=None, logging_file=False, **options)


def refusal(flow: ConfigWorkflow) -> str:
    with pytest.raises(RuntimeError, match="Failed to evaluate") as caught:
        flow.initialize()
    assert isinstance(caught.value.__cause__, ValueError)
    return str(caught.value.__cause__)


@pytest.mark.parametrize(
    ("overlay", "options", "result"),
    [
        (None, {}, [8, 0.1]),
        ({"channels": [4, 16]}, {}, [16, 0.1]),
        ({"train::optimizer::lr": 0.5}, {}, [8, 0.5]),
        ({"train::optimizer::momentum": 0.9}, {}, [8, 0.1]),
        ({"labels": {"cavity": 1, "rv": 2, "myo": 3}}, {}, [8, 0.1]),
        ({"+labels": {"lv": 3}, "_desc_": "one more structure"}, {}, [8, 0.1]),
        ({"+initialize": ["$None"], "finalize": ["$None"]}, {}, [8, 0.1]),
        (None, {"train#optimizer#lr": 0.5, "output_dir": "elsewhere"}, [8, 0.5]),
        ({"network_def": {"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 5}}, {}, [5, 0.1]),
    ],
)
def test_valid_overlays_and_options_run(base, overlay, options, result):
    flow = workflow(base, overlay, **options)
    flow.initialize()
    assert flow.run() == result


@pytest.mark.parametrize(
    ("overlay", "options", "key", "suggestion"),
    [
        ({"chanels": [4, 16]}, {}, "chanels", "channels"),
        ({"train::epoch": 3}, {}, "train::epoch", "train::epochs"),
        ({"train": {"epochs": 3, "optimiser": None}}, {}, "train::optimiser", "train::optimizer"),
        ({"+train": {"epoch": 3}}, {}, "train::epoch", "train::epochs"),
        (None, {"dataset_dri": "x"}, "dataset_dri", "dataset_dir"),
        (None, {"train#epoch": 3}, "train::epoch", "train::epochs"),
        (None, {"lr": 0.5}, "lr", "train::optimizer::lr"),
        (None, {"optimiser": None}, "optimiser", "train::optimizer"),
        ({"trainer": {"epochs": 3}}, {}, "trainer", "train"),
    ],
)
def test_a_misspelt_key_is_refused_with_the_closest_known_one(base, overlay, options, key, suggestion):
    message = refusal(workflow(base, overlay, **options))
    assert f"{key!r} is not a key of base.json; did you mean {suggestion!r}?" in message
    assert str(base) in message


def test_all_problems_are_listed_at_once(base):
    message = refusal(workflow(base, {"chanels": [1], "zzz": 0}, dataset_dri="x"))
    assert all(f"'{key}' is not a key" in message for key in ("chanels", "zzz", "dataset_dri"))
    assert "'zzz' is not a key of base.json\n" in message  # nothing is close to it


def test_a_component_that_lost_its_target_is_refused(base):
    message = refusal(workflow(base, {"network_def": {"in_features": 7}}))
    assert "'network_def' replaces a component but has no '_target_'" in message
    assert "network_def::<argument>" in message


def test_arguments_of_a_component_are_left_to_its_constructor(base):
    flow = workflow(base, {"network_def::in_featurs": 7})
    flow.initialize()
    with pytest.raises(RuntimeError) as caught:
        flow.run()
    assert "in_featurs" in str(caught.value.__cause__)


def test_the_check_runs_before_anything_is_built(base):
    flow = workflow(base, {"chanels": [1], "network_def::_target_": "no.such.Class"})
    assert "chanels" in refusal(flow)


def test_the_check_holds_for_the_command_line_entry(base):
    with pytest.raises(RuntimeError, match="refuse_unknown_keys") as caught:
        create_workflow(config_file=str(base), workflow_type=None, logging_file=False, chanels=[1])
    assert "did you mean 'channels'?" in str(caught.value.__cause__)


def test_open_maps_are_the_callers_choice(base):
    parser = ConfigParser({**BASE, "labels": {"rv": 1, "lv": 3}, "initialize": []})
    check_overlays(parser, str(base))
    with pytest.raises(ValueError, match="'labels::lv' is not a key"):
        check_overlays(parser, str(base), open_maps=())


def test_a_missing_base_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json does not exist"):
        check_overlays(ConfigParser({}), str(tmp_path / "nowhere.json"))


def test_a_base_name_is_looked_up_in_the_bundle(base, monkeypatch):
    (base.parent / "configs").mkdir()
    base.rename(base.parent / "configs" / "some.json")
    monkeypatch.setattr("fcl.bundle_root", lambda: base.parent)
    with pytest.raises(ValueError, match="'typo' is not a key of some"):
        check_overlays(ConfigParser({"typo": 1}), "some")


def test_refuse_unknown_keys_needs_a_config_around_it(base):
    with pytest.raises(RuntimeError, match="only as an expression of a MONAI config"):
        refuse_unknown_keys(str(base))


def test_the_innermost_parser_is_checked(base):
    outer = ConfigParser({"imports": ["$import fcl", "$import fcl.config"], "alien": 1, "inner": "$@inner_parser('x')"})
    inner = ConfigParser({**BASE, "x": f"$fcl.config.refuse_unknown_keys({str(base)!r})", "inner_alien": 1})
    outer["inner_parser"] = inner.get_parsed_content
    with pytest.raises(RuntimeError) as caught:
        outer.get_parsed_content("inner")
    chain = f"{caught.value.__cause__} {getattr(caught.value.__cause__, '__cause__', '')}"
    assert "'inner_alien' is not a key" in chain
    assert "'alien' is not a key" not in chain


@pytest.mark.parametrize("value", [None, ""])
def test_require_names_the_option(value):
    with pytest.raises(ValueError, match=r"dataset_dir is not set: give --dataset_dir <the folder>"):
        require(value, "dataset_dir", "the folder")


@pytest.mark.parametrize("value", ["/data", 0, False, []])
def test_require_passes_what_is_set(value):
    assert require(value, "dataset_dir", "the folder") is value


def test_a_setting_that_only_an_absent_overlay_reads_is_refused(base: Path) -> None:
    check = {"+initialize": ["$fcl.config.refuse_unread(['noise', 'budget'], 'add private.json')"]}
    base.write_text(json.dumps({**json.loads(base.read_text()), "noise": None, "budget": None}))
    workflow(base, check).initialize()
    with pytest.raises(RuntimeError, match="Failed to evaluate") as caught:
        workflow(base, check, noise=4.0).initialize()
    assert str(caught.value.__cause__) == (
        "nothing in this configuration reads noise, which would be ignored: add private.json"
    )
    reading = {**check, "train::optimizer::lr": "$0.1 * @noise"}
    workflow(base, reading, noise=4.0).initialize()
