"""What README and pages name is there: files, headings, commands, configuration keys, quoted messages."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest

from flare_app.study.loading import load_study

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "bundle" / "docs"
CONFIGS = ROOT / "bundle" / "configs"
PAGES = [ROOT / "README.md", ROOT / "flare_app/provision/README.md", *sorted(DOCS.glob("*.md")), DOCS / "tutorial.py"]
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {text.strip().replace(" ", "-") for text in plain}


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_to_files_and_headings(name: str) -> None:
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[name]):
        if re.match(r"https?:|mailto:", target):
            continue
        file, _, anchor = unquote(target).partition("#")
        page = (ROOT / name).parent / file if file else ROOT / name
        if not page.exists() or (anchor and anchor not in anchors(page)):
            wrong.append(target)
    assert wrong == []


@pytest.mark.parametrize("name", TEXTS)
def test_paths_exist(name: str) -> None:
    named = set(re.findall(r"\b(?:bundle|flare_app|jobs|tests)/[\w./*-]*\w", TEXTS[name]))
    # `configs/...` and `docs/...` are counted from the bundle, `deploy/...` from the engineer's page.
    named |= {f"bundle/{path}" for path in re.findall(r"(?<![\w/])(?:configs|docs)/[\w./-]+\.json", TEXTS[name])}
    assert [path for path in sorted(named) if not list(ROOT.glob(path))] == []


@pytest.mark.parametrize("name", TEXTS)
def test_modules_and_targets_exist(name: str) -> None:
    modules = set(re.findall(r"python -m ([\w.]+)", TEXTS[name]))
    missing = [module for module in sorted(modules) if importlib.util.find_spec(module) is None]
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    spelled = set(re.findall(r"(?:^    |`)make ([a-z]+)", TEXTS[name], re.MULTILINE))
    assert missing + sorted(spelled - targets) == []


@cache
def known_keys() -> frozenset[str]:
    """Keys of the base configurations, at any depth, as ``a::b``."""

    def paths(node: object, at: str = "") -> Iterator[str]:
        if isinstance(node, dict):
            for key, value in node.items():
                yield f"{at}{key}"
                yield from paths(value, f"{at}{key}::")

    names = ("pretrain", "finetune", "evaluate", "inference")
    bases = [json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8")) for name in names]
    return frozenset(path for base in bases for path in paths(base))


def test_keys_that_jobs_set_exist() -> None:
    # A study's own keys are set in the same way: from its file, or from its defaults.
    study = load_study([CONFIGS / "studies" / "acdc.json"]).content
    wrong = []
    for name, text in TEXTS.items():
        for key in re.findall(r"--set[ =]([a-z][\w:]*)=", text):
            arguments = (
                "::" in key and key.rsplit("::", 1)[0] in known_keys()
            )  # of a component, left to its constructor
            if key not in known_keys() and not arguments and key.split("::")[0] not in study:
                wrong.append(f"{name}: {key}")
    assert wrong == []


@pytest.mark.parametrize("name", TEXTS)
def test_overlays_that_commands_name_exist(name: str) -> None:
    own = {"hippocampus.json", "<overlay>"}
    lists = re.findall(r"""--config_file "?\[?([^\]"\n]+)""", TEXTS[name])
    named = {file for text in lists for file in re.findall(r"[\w./<>-]+\.json", text)} - own
    assert [file for file in sorted(named) if not (ROOT / file).is_file()] == []
    methods = set(re.findall(r"--method ([\w./]+)", TEXTS[name]))
    folders = (CONFIGS / "methods", CONFIGS / "finetuning")
    assert [
        m for m in sorted(methods) if not any((folder / f"{m}.json").resolve().is_file() for folder in folders)
    ] == []


@cache
def sources() -> tuple[str, ...]:
    """Each source file with its strings that go over several lines joined."""
    files = [*(ROOT / "bundle/fcl").rglob("*.py"), *(ROOT / "flare_app").rglob("*.py"), ROOT / "Makefile"]
    return tuple(re.sub(r'"\s*\n\s*f?"', "", file.read_text(encoding="utf-8")) for file in files)


def test_quoted_messages_are_those_of_the_code() -> None:
    text = TEXTS["bundle/docs/troubleshooting.md"]
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    quoted = [message for cell in cells for message in re.findall(r"`([^`]+)`", cell) if "fcl doctor" not in message]
    assert len(quoted) > 80
    missing = []
    for message in quoted:
        # Between the fixed parts the code has an expression.
        parts = [re.escape(part.strip()) for part in message.split("…") if part.strip()]
        pattern = re.compile(".{0,160}?".join(parts))
        if not any(pattern.search(source) for source in sources()):
            missing.append(message)
    assert missing == []


def test_the_table_of_settings_has_the_defaults_of_the_job() -> None:
    job = json.loads((ROOT / "jobs/fcl_pretrain/app/config/config_fed_server.json").read_text(encoding="utf-8"))
    defaults = job["workflows"][0]["args"]
    table = TEXTS["bundle/docs/researcher.md"].split("### Settings of a job")[1].split("At sites:")[0]
    words = {"none": None, "all": None, "true": True, "false": False}
    wrong, seen = {}, 0
    for names, values in re.findall(r"^\| (`.+?) \| (.+?) \|", table, re.MULTILINE):
        told = [value.strip() for value in values.split(",")]
        for number, name in enumerate(re.findall(r"`(\w+)`", names)):
            seen += 1
            value = told[min(number, len(told) - 1)]
            if str(defaults.get(name)) != str(words.get(value, value)):
                wrong[name] = value
    assert seen > 15
    assert wrong == {}
