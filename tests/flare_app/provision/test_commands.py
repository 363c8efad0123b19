from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from nvflare.fuel.flare_api import api_spec, flare_api

from flare_app.job import JOBS, export_job
from flare_app.provision import __main__ as command
from flare_app.provision.__main__ import main


class Session:
    """Of a server that takes jobs, and raises ``error`` whatever else it is asked."""

    error: BaseException = KeyboardInterrupt()

    def submit_job(self, folder: str) -> str:
        return f"id-of-{Path(folder).name}"

    def get_job_meta(self, job_id: str) -> dict[str, str]:
        raise self.error

    abort_job = get_job_meta

    def close(self) -> None:
        pass


@pytest.fixture
def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(flare_api, "new_secure_session", lambda *arguments, **options: Session())
    monkeypatch.setattr(command, "end_like_ctrl_c", lambda: None)
    startup = tmp_path / "the kit/startup"
    startup.mkdir(parents=True)
    for name in ("client.crt", "client.key", "rootCA.pem"):
        (startup / name).touch()
    (startup / "fed_admin.json").write_text(json.dumps({"admin": {"username": "lead@centre"}}))
    return str(startup.parent)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (api_spec.NoConnection("for 20 s"), "the server gives no answer (for 20 s): see that it runs, that "),
        (api_spec.JobNotFound("no such job: a"), "the server knows no such job (no such job: a): give the id that"),
        (api_spec.AuthorizationError("abort_job"), "lead@centre may not do this (abort_job): a lead follows and ends"),
        (api_spec.AuthenticationError("cert"), "the server does not take lead@centre for a user of its own (cert)"),
        (api_spec.InternalError("oops"), "the server cannot do this: oops"),
    ],
)
@pytest.mark.parametrize("name", ["follow", "abort"])
def test_what_the_server_refuses_is_told_in_a_line(
    name: str,
    error: Exception,
    told: str,
    kit: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Session, "error", error)
    assert main([name, "a", "--kit", kit]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(told)


def test_ctrl_c_ends_the_watching_and_says_how_to_go_on(
    kit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = export_job(replace(JOBS["finetune"], checkpoint_dir="state"), tmp_path)
    monkeypatch.chdir(folder)
    for name in ("submit", "resume"):
        assert main([name, ".", "--kit", kit, "--out", "out"]) == 130
        assert capsys.readouterr().out.splitlines() == [
            "submitted finetune as id-of-finetune",
            "no longer watched; job id-of-finetune goes on. To watch it again, or to end it:",
            f"  python -m flare_app.provision follow id-of-finetune --kit '{kit}' --out out",
            f"  python -m flare_app.provision abort id-of-finetune --kit '{kit}'",
        ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("adapt nokit", "nokit is no kit of a server or a site"),
        ("adapt damaged", "damaged/local/resources.json cannot be read as JSON, correct it"),
        ("submit nojob --kit {kit}", "nojob is no job folder: it has no meta.json"),
        ("resume nojob --kit {kit}", "nojob is no job folder: it has no meta.json"),
        (
            "resume bare --kit {kit}",
            "bare is no job folder that python -m flare_app.job export has written: app/config",
        ),
        ("follow a --kit {kit} --out file", "results cannot be written to file: File exists. Give another folder"),
        (
            "follow a --kit gutted",
            "gutted is no startup kit of a user: it has no startup/client.crt, startup/client.key",
        ),
        ("create --out file", "kits cannot be written: "),
    ],
)
def test_what_is_missing_or_in_the_way_is_told_in_a_line(
    words: str,
    told: str,
    kit: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for file, text in (
        ("file", ""),
        ("bare/meta.json", "{}"),
        ("gutted/startup/fed_admin.json", "{}"),
        ("damaged/startup/fed_client.json", "{}"),
        ("damaged/local/resources.json", "{,}"),
    ):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    assert main([word.format(kit=kit) for word in words.split()]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(told)


@pytest.mark.parametrize(
    ("name", "folder", "told"),
    [
        ("submit", "nojob", "is no job folder"),
        ("resume", "nojob", "is no job folder"),
        ("resume", "finetune", "keeps no checkpoints"),
    ],
)
def test_the_folder_is_looked_at_before_the_server_is_asked(
    name: str,
    folder: str,
    told: str,
    kit: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def asked(*arguments: object, **options: object) -> None:
        raise AssertionError("the server was asked")

    monkeypatch.setattr(flare_api, "new_secure_session", asked)
    export_job(JOBS["finetune"], tmp_path)
    assert main([name, str(tmp_path / folder), "--kit", kit]) == 1
    assert told in capsys.readouterr().out


def test_kits_made_again_say_that_they_lie_in_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "end_like_ctrl_c", lambda: None)
    words = ["create", "--out", str(tmp_path), "--local", "--sites", "1", "--port", "12345"]
    assert main(words) == 0
    assert "is there already" not in capsys.readouterr().out
    for before, made in (("prod_00", "prod_01"), ("prod_01", "prod_02")):
        assert main(words) == 0
        told = capsys.readouterr().out.splitlines()
        assert told[-1] == f"{before} is there already: these are new kits in {made}, with the same certificates"
        assert told[0].endswith(f"/{made}")


def test_a_disk_that_is_full_is_told_in_a_line(
    kit: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Session, "error", OSError(28, "No space left on device"))
    assert main(["follow", "a", "--kit", kit]) == 1
    assert capsys.readouterr().out == "[Errno 28] No space left on device: free space, or correct the path\n"
