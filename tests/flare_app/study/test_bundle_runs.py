from __future__ import annotations

import json
from pathlib import Path

import pytest

from flare_app.study.bundle_runs import main, runs_done, shares


@pytest.mark.parametrize(
    ("threads", "runs", "gpu", "expected"),
    [
        (2, 3, False, (2, 1)),
        (8, 3, False, (3, 2)),
        (4, 1, False, (1, 4)),
        (1, 3, False, (1, 1)),
        (8, 3, True, (1, 8)),
        (2, 0, False, (1, 2)),
    ],
)
def test_cores_are_shared_among_runs_unless_a_gpu_does_them(
    threads: int, runs: int, gpu: bool, expected: tuple[int, int]
) -> None:
    assert shares(threads, runs, gpu) == expected


def test_all_runs_are_done_side_by_side_and_one_that_fails_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.json"
    config.write_text(
        json.dumps({"imports": ["$import pathlib"], "run": ["$pathlib.Path(@file).write_text(str(@threads))"]})
    )
    files = [tmp_path / name for name in ("one", "two", "missing/three")]
    runs = tmp_path / "runs.json"

    def listed(files: list[Path]) -> list[str]:
        entries = [{"config_file": [str(config)], "options": {"file": str(file)}} for file in files]
        runs.write_text(json.dumps(entries))
        return ["--threads", "5", str(runs)]

    assert main(listed(files[:2])) == 0
    assert [file.read_text() for file in files[:2]] == ["2", "2"]
    assert runs_done(capsys.readouterr().out) == 2
    with pytest.raises(RuntimeError) as failed:
        main(listed(files[2:]))
    assert isinstance(failed.value.__cause__, Exception)
    assert "missing/three" in str(failed.value.__cause__)
