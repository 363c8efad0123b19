from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fcl.card import card_of
from fcl.networks import write_weights
from flare_app.command.__main__ import main

CARD = card_of(
    {"method": "FCL", "channels": [4, 8], "labels": {"lv": 3}}, metrics={"mean_dice": 0.71234}, epsilon="none"
)


def test_the_card_of_a_file_is_printed_for_people_and_for_programs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "last.pt"
    write_weights(file, {"w": torch.zeros(1)}, CARD)
    assert main(["card", str(file)]) == 0
    shown = capsys.readouterr().out
    lines = [line.split() for line in shown.splitlines()]
    assert ["architecture:", "channels", "[4,", "8]"] in lines
    assert ["preprocessing:", "labels", "lv", "3"] in lines
    assert ["metrics:", "mean", "dice", "0.7123"] in lines
    assert "not for clinical use" in " ".join(shown.split())
    assert main(["card", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == CARD


def test_a_file_without_a_card_and_no_file_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"w": torch.zeros(1)}, tmp_path / "plain.pt")
    for name, reason in (("plain.pt", "has no card"), ("absent.pt", "does not exist")):
        assert main(["card", str(tmp_path / name)]) == 2
        assert reason in capsys.readouterr().err
