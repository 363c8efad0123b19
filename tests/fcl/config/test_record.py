from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from fcl.config import record_configuration


def record(folder: Path, **settings: object) -> str:
    parser = ConfigParser(
        {
            "imports": ["$import fcl", "$import fcl.config"],
            "_meta_": {"version": "0"},
            "output_dir": str(folder),
            "network": {"_target_": "torch.nn.Identity"},
            "go": "$fcl.config.record_configuration(@output_dir)",
            **settings,
        }
    )
    return parser.get_parsed_content("go")


def test_merged_configuration_is_kept_and_its_settings_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="fcl.config.record"):
        digest = record(tmp_path / "out", learning_rate=0.1)
    kept = json.loads((tmp_path / "out" / "config.json").read_text())
    assert kept["learning_rate"] == 0.1
    assert kept["network"] == {"_target_": "torch.nn.Identity"}
    assert "_meta_" not in kept
    assert digest in caplog.text
    assert "learning_rate = 0.1" in caplog.text
    assert "$fcl" not in caplog.text


def test_name_follows_the_settings(tmp_path: Path) -> None:
    assert record(tmp_path, rate=0.1) == record(tmp_path, rate=0.1) != record(tmp_path, rate=0.2)


def test_it_needs_a_configuration_around_it(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        record_configuration(tmp_path)
