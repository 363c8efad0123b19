"""The last lines of a failed `monai.bundle run`."""

from __future__ import annotations

import json
import subprocess
import sys

from fcl.config.errors import root_cause


def test_root_cause_is_the_bottom_of_the_chain():
    inner, outer = ValueError("the file"), RuntimeError("wrapped")
    outer.__cause__ = inner
    assert root_cause(outer) is inner
    assert root_cause(inner) is inner


def test_a_failed_run_ends_with_the_cause(tmp_path):
    config = {
        "imports": ["$import fcl", "$import fcl.config"],
        "value": "$int('no number')",
        "initialize": ["$fcl.config.explain_errors()", "$fcl.config.explain_errors()"],
        "run": ["$@value"],
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    done = subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(path)], capture_output=True, text=True
    )
    assert done.returncode != 0
    lines = done.stderr.strip().splitlines()
    assert lines[-1] == "ValueError: invalid literal for int() with base 10: 'no number'"
    assert done.stderr.count(lines[-1]) == 2  # once in the traceback, once at its end
