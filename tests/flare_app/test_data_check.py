"""The check of a site's data at the start of a job that trains: refused before any network or cache is built."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from flare_app.executor import FCLExecutor
from flare_app.protocol import TaskName, reason_of
from flare_app.workflow import check_data
from tests.flare_app.statistics.hospitals import MARKER, hospital, overlay, settings
from tests.flare_app.test_executor import Site, _initialize


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """A hospital with a file that is none, a label beyond the declared ones, and one image in both sets."""
    folder = hospital(tmp_path, "site-1")
    images = sorted(folder.glob("*-?.nii.gz"))
    images[0].write_bytes(b"no gzip")
    label = Path(str(images[1]).replace(".nii.gz", "_gt.nii.gz"))
    nib.save(nib.Nifti1Image(np.full((20, 20, 6), 7, np.uint8), np.diag([1.5, 1.5, 8.0, 1.0])), label)
    images[3].write_bytes(images[2].read_bytes())
    patients = [f"{MARKER}-site-1-{number}" for number in range(6)]
    split = {"sites": {"all": {"folds": [[patients[3]], [*patients[:3], *patients[4:]]]}}}
    (tmp_path / "split.json").write_text(json.dumps(split))
    return folder


def _site(root: Path, folder: Path, **further: str) -> Site:
    own = {"split_file": str(root / "split.json"), "site": "all", **further}
    settings(folder, overlay(root / "overlay.json"), root / "cache", root / "local" / "fcl_site.json", **own)
    return Site(root, FCLExecutor(["configs/pretrain.json"]))


def test_all_problems_in_the_sites_log_and_their_number_at_the_server(
    tmp_path: Path, bad: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reply = _site(tmp_path, bad).do(TaskName.INITIALIZE, _initialize())
    assert reason_of(reply) == ("its data have 3 problems (files 1, labels 1, leak 1), see the log of site-1")
    assert MARKER not in str({**reply})
    for text in ("truncated or corrupt", "label values 7", "which is trained on", "Way out"):
        assert text in caplog.text
    assert not (tmp_path / "cache" / "slices").exists()


def test_what_breaks_before_the_check_is_counted_as_well(tmp_path: Path, bad: Path) -> None:
    (tmp_path / "split.json").write_text('{"sites": {"all": {"folds": [["nobody"], ["none"]]}}}')
    reply = _site(tmp_path, bad).do(TaskName.INITIALIZE, _initialize())
    assert reason_of(reply) == "its data have 1 problem (split 1), see the log of site-1"


class _Workflow:
    """Declares a check that notes how it is asked."""

    parser = ("data_check",)

    def __init__(self) -> None:
        self.asked: list[bool] = []
        self.data_check = self

    def add_property(self, name: str, required: bool, config_id: str) -> None: ...

    def verify(self, strict: bool = False) -> None:
        self.asked.append(strict)


@pytest.mark.parametrize(("setting", "asked"), [("on", [False]), ("strict", [True]), ("off", [])])
def test_a_site_may_be_stricter_or_leave_the_check_out(setting: str, asked: list[bool]) -> None:
    workflow = _Workflow()
    check_data(workflow, setting)  # type: ignore[arg-type]
    assert workflow.asked == asked


def test_unknown_setting_is_refused(tmp_path: Path, bad: Path) -> None:
    reply = _site(tmp_path, bad, data_check="no").do(TaskName.INITIALIZE, _initialize())
    assert "data_check must be one of on, strict, off, got 'no'" in reason_of(reply)
