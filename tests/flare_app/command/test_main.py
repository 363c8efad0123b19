from __future__ import annotations

import json
import subprocess
import sys

import pytest

from fcl.data import Problem
from flare_app.command import __main__ as command
from flare_app.command import data
from flare_app.command.__main__ import main
from flare_app.command.show import print_problems
from tests.flare_app.fabricated import write_workspace

HEAVY = ("torch", "monai", "nvflare", "numpy", "pydicom", "nibabel", "matplotlib")


def test_help_loads_nothing_heavy():
    code = "import sys; from flare_app.command import __main__ as c; c._parser().format_help(); print(set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert [name for name in HEAVY if f"'{name}'" in loaded] == []


@pytest.mark.parametrize(
    "words", [[], ["data"], ["data", "import"], ["data", "import", "dicom"], ["data", "check"], ["doctor"], ["job"]]
)
def test_every_command_has_help(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0
    usage = capsys.readouterr().out
    assert usage.startswith(" ".join(["usage: fcl", *words]))
    assert not words or "COMMAND" not in usage


@pytest.mark.parametrize(
    ("words", "module", "passed"),
    [
        (["job", "export", "finetune", "--out", "x"], "flare_app.job.__main__", ["export", "finetune", "--out", "x"]),
        (["job", "run", "--help"], "flare_app.job.__main__", ["run", "--help"]),
        (["job", "submit", "f", "--kit", "k"], "flare_app.provision.__main__", ["submit", "f", "--kit", "k"]),
        (["job", "resume", "f"], "flare_app.provision.__main__", ["resume", "f"]),
        (["job", "follow", "id", "--kit", "k"], "flare_app.provision.__main__", ["follow", "id", "--kit", "k"]),
        (["job", "abort", "id", "--kit", "k"], "flare_app.provision.__main__", ["abort", "id", "--kit", "k"]),
        (["egress", "a.jsonl", "--json"], "flare_app.egress.__main__", ["a.jsonl", "--json"]),
    ],
)
def test_arguments_are_passed_on_as_they_are(words, module, passed, monkeypatch):
    seen = []

    class Module:
        @staticmethod
        def main(argv):
            seen.append(argv)
            return 7

    monkeypatch.setattr(command, "import_module", lambda name: Module if name == module else None)
    assert main(words) == 7
    assert seen == [passed]


@pytest.mark.parametrize("words", [[], ["data"], ["job"], ["job", "frobnicate"], ["data", "split"], ["nonsense"]])
def test_wrong_arguments_end_with_2(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "usage: fcl" in capsys.readouterr().err


def test_problems_are_a_list_where_no_terminal_is(capsys):
    print_problems([Problem("/data/[a].nii", "is broken", "mend it"), Problem("b", "is gone", "find it")])
    assert capsys.readouterr().out.splitlines() == [
        "2 problems:",
        "  1. /data/[a].nii: is broken. Way out: mend it.",
        "  2. b: is gone. Way out: find it.",
    ]


@pytest.mark.parametrize(
    "words",
    [
        ["report", "{run}", "--out", "{file}/report.html"],
        ["data", "split", "--data", "phantom", "--sites", "2", "--out", "{file}/split.json"],
    ],
)
def test_what_cannot_be_written_is_told_in_a_line(words, tmp_path, capsys, monkeypatch):
    write_workspace(tmp_path / "run")
    (tmp_path / "file").touch()
    description = type("Description", (), {"records": [type("Record", (), {"patient": f"p{n}"}) for n in range(8)]})
    monkeypatch.setattr(data, "_describe", lambda arguments: description)
    assert main([word.format(run=tmp_path / "run", file=tmp_path / "file") for word in words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fcl: {tmp_path}/file")
    assert line.endswith("free space, or give a path that you may use")


def test_problems_as_json(tmp_path, capsys):
    assert main(["data", "import", "dicom", str(tmp_path / "absent"), "--out", str(tmp_path / "o"), "--json"]) == 1
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert problem["what"] == "does not exist"
