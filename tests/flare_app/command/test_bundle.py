from __future__ import annotations

from pathlib import Path

import pytest

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
