"""What the HTML reports share: templates, one self-contained file written in one step, and facts about the machine."""

from __future__ import annotations

import base64
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined

_PACKAGES = ("fcl", "torch", "monai", "nvflare", "pytorch-ignite", "nibabel", "numpy")


def write_page(path: str | Path, template: str, content: Mapping[str, Any]) -> Path:
    """Fill ``template`` (in this folder) and write it to ``path``, whose folder is made when missing.

    Returns:
        The file.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = _data_uri
    text = environment.get_template(template).render(content)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.part")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, target)
    return target


def show_number(value: float | None, digits: int, sign: str = "") -> str:
    """A number, or a dash."""
    return "–" if value is None else f"{value:{sign}.{digits}f}"


def show_spread(values: Mapping[str, Any], digits: int, sign: str = "") -> str:
    """Mean ± standard deviation of what :func:`fcl.evaluation.table.describe_values` gives."""
    mean = show_number(values["mean"], digits, sign)
    return mean if values["std"] is None else f"{mean} ± {values['std']:.{digits}f}"


def show_mib(count: float) -> str:
    """Bytes as MiB."""
    return f"{count / 2**20:.{2 if count >= 2**20 else 4}f}"


def machine_facts() -> dict[str, str]:
    """This machine and the installed versions of what results depend on, as facts for a report."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = {"Processor": f"{_processor()}, {cores} cores", "System": platform.platform(terse=True)}
    if torch.cuda.is_available():
        found["GPU"] = torch.cuda.get_device_name()
    versions = [f"python {platform.python_version()}"]
    for name in _PACKAGES:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return {**found, "Versions": ", ".join(versions)}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
