from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fcl
from fcl.networks import SegmentationUNet, write_weights
from flare_app.command.__main__ import main


@pytest.mark.parametrize("words", [["zip"], ["export"], ["weights"]])
def test_every_task_has_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bundle", *words, "--help"])
    assert ended.value.code == 0
    assert "usage: fcl bundle" in capsys.readouterr().out


def test_format_and_ending_must_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundle", "export", "--format", "onnx", "--out", str(tmp_path / "a.ts")]) == 2
    assert "torchscript with .ts, onnx with .onnx" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_missing_weights_are_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundle", "weights", str(tmp_path / "none.pt"), "--out", str(tmp_path / "model.pt")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_network_of_a_federation_is_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = {
        "architecture": {"spatial_dims": 2, "channels": [4, 8], "norm": "instance"},
        "preprocessing": {"spatial_size": [16, 16], "labels": {"spleen": 1}},
    }
    write_weights(tmp_path / "last.pt", SegmentationUNet(2, 1, 2, [4, 8], norm="instance").state_dict(), card)
    words = ["bundle", "export", "--format", "torchscript", "--ckpt", str(tmp_path / "last.pt")]
    assert main([*words, "--out", str(tmp_path / "m.ts")]) == 0
    assert f"{tmp_path / 'm.ts'}: " in capsys.readouterr().out


def test_weights_of_another_network_are_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_weights(tmp_path / "last.pt", {"encoder.w": torch.zeros(2)}, {"stage": "pre-training"})
    words = ["bundle", "export", "--format", "torchscript", "--ckpt", str(tmp_path / "last.pt")]
    assert main([*words, "--out", str(tmp_path / "m.ts")]) == 2
    told = capsys.readouterr().err
    assert "is of another architecture" in told
    assert told.count("\n") == 1


def test_new_weights_tell_what_still_describes_the_old_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcl, "bundle_root", lambda: tmp_path / "bundle")
    write_weights(tmp_path / "last.pt", {"w": torch.zeros(2)}, {"stage": "fine-tuning"})
    assert main(["bundle", "weights", str(tmp_path / "last.pt")]) == 0
    told = capsys.readouterr().out
    assert f"{tmp_path / 'bundle' / 'configs' / 'metadata.json'} " in told
    assert "eval_metrics, network_data_format" in told
    assert main(["bundle", "weights", str(tmp_path / "last.pt"), "--out", str(tmp_path / "other.pt")]) == 0
    assert "metadata.json" not in capsys.readouterr().out
