"""The notebook is what its script generates, and the script runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest

SCRIPT = Path(__file__).parents[2] / "bundle" / "docs" / "tutorial.py"


def test_the_notebook_is_that_of_the_script() -> None:
    notebook = json.loads(SCRIPT.with_suffix(".ipynb").read_text(encoding="utf-8"))
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]
    generated = jupytext.read(SCRIPT).cells
    assert cells == [(cell.cell_type, cell.source) for cell in generated], "run `make docs`"
    outputs = [cell.get("outputs", []) for cell in notebook["cells"]]
    assert not any(outputs), "the notebook is kept without outputs"


@pytest.mark.slow
def test_the_script_runs_at_its_smallest_size(tmp_path: Path) -> None:
    script = SCRIPT.read_text(encoding="utf-8")
    for name, value in {"PATIENTS": 3, "PRETRAIN_EPOCHS": 1, "FINETUNE_EPOCHS": 1}.items():
        script, changed = re.subn(rf"^{name} = \d+", f"{name} = {value}", script, flags=re.MULTILINE)
        assert changed == 1
    file = tmp_path / "tutorial.py"
    file.write_text(script, encoding="utf-8")
    environment = {**os.environ, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, file], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "partition kNN accuracy of held-out patients" in done.stdout
    assert "mean Dice" in done.stdout
    assert (tmp_path / "runs/tutorial/evaluate/scores.csv").is_file()
