from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fcl
from flare_app.job import JOBS, JobSettings, build_job, definition
from flare_app.job import __main__ as command
from flare_app.job.__main__ import main
from flare_app.protocol import TaskName


def _exported(folder: Path, side: str) -> dict[str, Any]:
    config = json.loads((folder / "app/config" / f"config_fed_{side}.json").read_text())
    return (config["workflows"][0] if side == "server" else config["executors"][0]["executor"])["args"]


def test_options_reach_the_exported_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--rounds 7 --exchange prototypes --route relay --method simclr --data acdc --seed 5 --min-sites 3"
    options += " --set steps_per_epoch=1 --set loss_function::temperature=0.5 --set fold=name"
    options += " --validate-every 0 --checkpoint-dir kept --resume"
    assert main(["export", "fcl_pretrain", "--out", str(tmp_path), *options.split()]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert folder == tmp_path / "fcl_pretrain"
    server, client = _exported(folder, "server"), _exported(folder, "client")
    assert {name: server[name] for name in ("num_rounds", "exchange", "route", "min_sites", "validate_every")} == {
        "num_rounds": 7,
        "exchange": "prototypes",
        "route": "relay",
        "min_sites": 3,
        "validate_every": 0,
    }
    assert (server["checkpoint_dir"], server["resume"], client["checkpoint_dir"]) == ("kept", True, "kept")
    assert client["config"] == ["configs/pretrain.json", "configs/methods/simclr.json"]
    assert client["overrides"] == {"steps_per_epoch": 1, "loss_function::temperature": 0.5, "fold": "name"}
    assert (client["data"], client["seed"]) == ("acdc", 5)
    assert json.loads((folder / "meta.json").read_text())["min_clients"] == 3


@pytest.mark.parametrize("name", [name for name in JOBS if JOBS[name].methods != "methods"])
def test_each_job_takes_its_overlays_from_a_folder_of_its_own(name: str, tmp_path: Path) -> None:
    options = ["--method", "fedprox", "--set", "train::variants::0::mu=0.1"]
    assert main(["export", name, "--out", str(tmp_path), *options]) == 0
    client = _exported(tmp_path / name, "client")
    assert client["config"] == [*JOBS[name].config, f"configs/{JOBS[name].methods}/fedprox.json"]
    assert (fcl.bundle_root() / client["config"][-1]).is_file()
    assert client["overrides"] == {"train::variants::0::mu": 0.1}
    assert main(["export", name, "--out", str(tmp_path), "--method", "mixup", "--method", "fedprox"]) == 0
    overlays = [f"configs/{JOBS[name].methods}/{overlay}.json" for overlay in ("mixup", "fedprox")]
    assert _exported(tmp_path / name, "client")["config"] == [*JOBS[name].config, *overlays]


@pytest.mark.parametrize(("every", "best"), [("0", None), ("2", "mean_dice")])
def test_a_job_that_never_validates_has_no_best_round(every: str, best: str | None, tmp_path: Path) -> None:
    assert main(["export", "finetune", "--out", str(tmp_path), "--validate-every", every]) == 0
    assert _exported(tmp_path / "finetune", "server").get("best_metric") == best


def test_server_optimizer_is_named_with_its_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["export", "finetune", "--out", str(tmp_path), "--server-optimizer"]
    assert main([*command, "SGD", "lr=1", "momentum=0.9"]) == 0
    assert _exported(tmp_path / "finetune", "server")["server_optimizer"] == {"name": "SGD", "lr": 1, "momentum": 0.9}
    with pytest.raises(SystemExit):
        main([*command, "SDG", "lr=1"])
    assert "name must be one of SGD" in capsys.readouterr().err


def test_run_asks_for_a_thread_per_site_and_gives_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {}

    class Job:
        def simulator_run(self, workspace: str, **arguments: Any) -> int:
            asked.update(arguments, workspace=workspace)
            return 2

    def build(settings: JobSettings) -> Job:
        asked["settings"] = settings
        return Job()

    monkeypatch.setattr(definition, "build_job", build)
    monkeypatch.setattr(command, "end_like_ctrl_c", lambda: None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FCL_SITE_SETTINGS", "")
    options = ["--sites", "1", "--workspace", "ws", "--pretrained", "encoder.pt", "--checkpoint-dir", "state"]
    assert main(["run", "finetune", *options, "--site-settings", "site.json"]) == 2
    assert (asked["n_clients"], asked["threads"], asked["workspace"]) == (1, 1, str(tmp_path / "ws"))
    assert asked["settings"].min_sites == 1
    # The simulator runs elsewhere: paths that its processes read must not depend on the folder.
    assert asked["settings"].pretrained == str(tmp_path / "encoder.pt")
    assert asked["settings"].checkpoint_dir == str(tmp_path / "state")
    assert command.os.environ["FCL_SITE_SETTINGS"] == str(tmp_path / "site.json")
    assert "the job failed (code 2)" in capsys.readouterr().out


def test_encrypted_job_filters_what_leaves_before_it_encrypts(tmp_path: Path) -> None:
    options = ["export", "finetune", "--out", str(tmp_path), "--encryption", "he"]
    assert main(options) == 0
    config = json.loads((tmp_path / "finetune/app/config/config_fed_client.json").read_text())
    chains = {
        task: [entry["path"].rpartition(".")[2] for entry in chain["filters"]]
        for chain in config["task_result_filters"]
        for task in chain["tasks"]
    }
    encrypted = ["EgressFilter", "WeightEncryptor"]
    assert chains == {
        **{task: ["EgressFilter"] for task in TaskName.ALL},
        TaskName.TRAIN: encrypted,
        TaskName.INITIAL_WEIGHTS: encrypted,
    }
    assert [(chain["tasks"], len(chain["filters"])) for chain in config["task_data_filters"]] == [
        ([TaskName.SHARE, TaskName.TRAIN, TaskName.VALIDATE], 1)
    ]
    limits = next(chain["filters"][1]["args"] for chain in config["task_result_filters"] if len(chain["filters"]) > 1)
    assert limits == {"max_norm_ratio": 3.0, "max_update_norm": None}
    assert _exported(tmp_path / "finetune", "server")["encryption"] == "he"


def test_turns_of_the_sites_reach_the_exported_job(tmp_path: Path) -> None:
    assert main(["export", "fcl_pretrain", "--out", str(tmp_path), "--sites-per-round", "3"]) == 0
    assert _exported(tmp_path / "fcl_pretrain", "server")["sites_per_round"] == 3


def test_overlap_with_turns_is_refused_before_a_job_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["export", "fcl_pretrain", "--out", str(tmp_path), "--overlap", "--sites-per-round", "3"])
    assert "overlap and sites_per_round do not go together" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_options_that_save_bytes_reach_the_exported_job(tmp_path: Path) -> None:
    options = "--weight-bits 8 --feature-bits 8 --fan-out 3 --pull-rows 128 --overlap"
    assert main(["export", "fcl_pretrain", "--out", str(tmp_path), *options.split()]) == 0
    server = _exported(tmp_path / "fcl_pretrain", "server")
    assert {name: server[name] for name in ("weight_bits", "feature_bits", "fan_out", "pull_rows", "overlap")} == {
        "weight_bits": 8,
        "feature_bits": 8,
        "fan_out": 3,
        "pull_rows": 128,
        "overlap": True,
    }


@pytest.mark.parametrize("encryption", ["HE", "aes"])
def test_unknown_encryption_is_explained(encryption: str) -> None:
    with pytest.raises(ValueError, match="encryption must be one of none, he"):
        build_job(replace(JOBS["finetune"], encryption=encryption))


def test_encrypted_weights_beside_features_in_clear_are_refused() -> None:
    with pytest.raises(ValueError, match="set route to 'peer'"):
        build_job(replace(JOBS["fcl_pretrain"], encryption="he", route="relay"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["export", "segment", "--out", "x"], "invalid choice: 'segment'"),
        (["export", "finetune", "--out", "x", "--set", "fold"], "expected KEY=VALUE, got 'fold'"),
        (["export", "finetune", "--out", "x", "--weight-bits", "7"], "invalid choice: 7"),
        (["export", "finetune", "--out", "x", "--fan-out", "0"], "expected a whole number of at least 1, got '0'"),
        (["export", "finetune", "--out", "x", "--pull-rows", "x"], "expected a whole number of at least 1, got 'x'"),
        (["run", "finetune", "--workspace", "x", "--resume"], "--resume needs --checkpoint-dir"),
        (["export", "finetune", "--out", "x", "--rounds", "0"], "num_rounds must be at least 1"),
        (["export", "fcl_pretrain", "--out", "x", "--sites-per-round", "1"], "at least min_sites (2)"),
        (
            ["export", "fcl_pretrain", "--out", "x", "--encryption", "he", "--route", "relay"],
            "set route to 'peer'",
        ),
        (["run", "finetune", "--workspace", "my study"], "has a space, quote"),
        (
            ["run", "finetune", "--workspace", "x", "--checkpoint-dir", "x/state", "--resume"],
            "--checkpoint-dir x/state lies in --workspace x, which is emptied first",
        ),
        (["run", "finetune", "--workspace", "x", "--checkpoint-dir", "x"], "--checkpoint-dir x lies in"),
        (["run", "finetune", "--workspace", "x", "--pretrained", "x/a.pt"], "--pretrained x/a.pt lies in"),
        (["run", "finetune", "--workspace", "x", "--site-settings", "x/s.json"], "--site-settings x/s.json lies in"),
        (
            ["export", "data_statistics", "--out", "x", "--rounds", "3", "--method", "moco"],
            "data_statistics trains nothing: leave out --method, --rounds",
        ),
    ],
)
def test_wrong_options_are_explained(
    options: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "run_job", lambda *arguments: 0)
    monkeypatch.setattr(command, "end_like_ctrl_c", lambda: None)
    monkeypatch.setenv("FCL_SITE_SETTINGS", "")
    with pytest.raises(SystemExit):
        main(options)
    assert message in capsys.readouterr().err


def test_what_the_simulator_keeps_of_a_workspace_may_lie_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "run_job", lambda *arguments: 0)
    monkeypatch.setattr(command, "end_like_ctrl_c", lambda: None)
    monkeypatch.setenv("FCL_SITE_SETTINGS", "")
    settings = ["--site-settings", str(tmp_path / "local/fcl_site.json"), "--checkpoint-dir", f"{tmp_path}-state"]
    assert main(["run", "finetune", "--workspace", str(tmp_path), *settings]) == 0
    (tmp_path / "file").touch()
    assert main(["export", "finetune", "--out", str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err.endswith("free space, or give a folder of your own\n")


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "python -m flare_app.job run fcl_pretrain --sites 4" in capsys.readouterr().out


def test_pretraining_exchanges_features_between_peers_and_fine_tuning_does_not() -> None:
    assert (JOBS["fcl_pretrain"].exchange, JOBS["fcl_pretrain"].route) == ("features", "peer")
    assert (JOBS["finetune"].exchange, JOBS["finetune"].best_metric) == ("none", "mean_dice")
