from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

import fcl
from fcl.exporting.archive import FOLDER, write_zip


def test_zip_holds_the_bundle_and_nothing_else(tmp_path: Path) -> None:
    file = write_zip(tmp_path)
    assert file.name == f"fcl-{fcl.__version__}.zip"
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
    inside = {name.removeprefix(f"{FOLDER}/") for name in names}
    assert all(name.startswith(f"{FOLDER}/") for name in names)
    assert {"LICENSE", "configs/metadata.json", "configs/methods/fcl.json", "docs/README.md", "models/model.pt",
            "fcl/__init__.py", "fcl/evaluation/page.html.j2"} <= inside  # fmt: skip
    sources = {f"fcl/{path.relative_to(fcl.bundle_root() / 'fcl').as_posix()}"
               for path in (fcl.bundle_root() / "fcl").rglob("*.py")}  # fmt: skip
    assert sources <= inside
    assert [name for name in inside if "__pycache__" in name or Path(name).name.startswith(".")] == []


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    first, second = write_zip(tmp_path / "a"), write_zip(tmp_path / "b" / "named.zip")
    assert first.read_bytes() == second.read_bytes()
    assert [file.name for file in (tmp_path / "b").iterdir()] == ["named.zip"]


def test_incomplete_bundle_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").mkdir()
    monkeypatch.setattr(fcl, "bundle_root", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match=r"LICENSE, docs, fcl, models, models/model\.pt"):
        write_zip(tmp_path / "out")
