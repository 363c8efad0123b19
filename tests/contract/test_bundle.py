"""What the bundle's files promise one another: a name in one that means a thing in another is found there."""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from pydoc import locate
from typing import Any

import monai.bundle
import pytest
import torch
from monai.bundle import ConfigComponent, ConfigParser
from monai.bundle.properties import InferProperties, MetaProperties, TrainProperties
from monai.bundle.reference_resolver import ReferenceResolver
from monai.bundle.workflows import _reject_executable_logging_config

import fcl
from fcl.federation import Participant

BUNDLE = Path(fcl.__file__).parents[1]
CONFIGS = BUNDLE / "configs"
BASES = ("pretrain", "finetune", "evaluate", "inference")
METADATA = json.loads((CONFIGS / "metadata.json").read_text())
# Every base on its own, and with each dataset it may be merged with (inference reads a plain folder).
MERGES = [(base, None) for base in BASES] + [
    (base, overlay.name) for base in BASES[:3] for overlay in sorted((CONFIGS / "data").glob("*.json"))
]
MERGES += [("pretrain", f"../methods/{overlay.name}") for overlay in sorted((CONFIGS / "methods").glob("*.json"))]
MERGES += [("finetune", f"../finetuning/{overlay.name}") for overlay in sorted((CONFIGS / "finetuning").glob("*.json"))]
MERGES += [("finetune", "../privacy/dp_sgd.json"), ("finetune", "../features.json"), ("inference", "../dicom.json")]
# One overlay for all that hold the 3-D network.
MERGES += [("evaluate", "../finetuning/unet_3d.json"), ("inference", "../finetuning/unet_3d.json")]


def parser_of(base: str, overlay: str | None = None) -> ConfigParser:
    files = [str(CONFIGS / f"{base}.json")] + ([str(CONFIGS / "data" / overlay)] if overlay else [])
    parser = ConfigParser()
    parser.read_config(files)
    parser.read_meta(str(CONFIGS / "metadata.json"))
    return parser


def leaves(node: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Every dict and string below ``node`` with its id."""
    if isinstance(node, dict):
        yield at, node
        for key, value in node.items():
            yield from leaves(value, f"{at}::{key}" if at else key)
    elif isinstance(node, list):
        for position, value in enumerate(node):
            yield from leaves(value, f"{at}::{position}")
    elif isinstance(node, str):
        yield at, node


def configuration(parser: ConfigParser) -> dict[str, Any]:
    return {key: value for key, value in parser.get().items() if key != "_meta_"}


@pytest.mark.parametrize(("base", "overlay"), MERGES)
def test_every_reference_resolves(base: str, overlay: str | None) -> None:
    parser = parser_of(base, overlay)
    references = {
        (where, reference)
        for where, value in leaves(configuration(parser))
        if isinstance(value, str) and value.startswith(("$", "@"))
        for reference in ReferenceResolver.match_refs_pattern(value)
    }
    assert references
    assert [pair for pair in sorted(references) if pair[1] not in parser] == []


@pytest.mark.parametrize(("base", "overlay"), MERGES)
def test_every_target_exists_and_takes_its_arguments(base: str, overlay: str | None) -> None:
    wrong = []
    for where, node in leaves(configuration(parser_of(base, overlay))):
        if isinstance(node, dict) and "_target_" in node:
            name = ConfigComponent(node, id=where).resolve_module_name()
            target = locate(name) if isinstance(name, str) else name
            arguments = {key for key in node if not (key.startswith("_") and key.endswith("_"))}
            if not callable(target):
                wrong.append(f"{where}: {name} does not exist")
                continue
            parameters = inspect.signature(target).parameters.values()
            if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
                continue
            wrong += [f"{where}: {name} takes no {a}" for a in arguments - {p.name for p in parameters}]
            required = {p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
            wrong += [f"{where}: {name} needs {a}" for a in required - arguments]
    assert wrong == []


@pytest.mark.parametrize(("base", "overlay"), MERGES)
def test_every_name_in_an_expression_exists(base: str, overlay: str | None) -> None:
    parser = parser_of(base, overlay)
    imported = {line.removeprefix("$import ").split(" as ")[0] for line in parser.get("imports", [])}
    for module in imported:
        importlib.import_module(module)
    missing = []
    for where, value in leaves(configuration(parser)):
        if not isinstance(value, str) or not value.startswith("$") or value.startswith("$import"):
            continue
        code = re.sub(r"@([\w:]+)", lambda match: f"ref_{match[1].replace('::', '_')}", value[1:])
        tree = ast.parse(code, mode="eval")
        for node in ast.walk(tree):
            dotted = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            root = dotted.split(".", 1)[0]
            if re.fullmatch(r"[\w.]+", dotted) and root in {"fcl", "monai", "torch", "np"}:
                if locate(dotted.replace("np.", "numpy.", 1) if root == "np" else dotted) is None:
                    missing.append(f"{where}: {dotted}")
            elif isinstance(node, ast.Name) and node.id in {name.split(".")[0] for name in ("ignite", "functools")}:
                missing.append(f"{where}: {node.id} is not imported")
    assert missing == []


@pytest.mark.parametrize(
    ("base", "properties"),
    [("finetune", TrainProperties), ("evaluate", InferProperties), ("inference", InferProperties)],
)
def test_monai_finds_its_properties(base: str, properties: dict[str, Any]) -> None:
    parser = parser_of(base)
    wanted = {**properties, **MetaProperties}
    assert [name for name, entry in wanted.items() if entry["required"] and entry["id"] not in parser] == []


@pytest.mark.parametrize("base", ["pretrain", "finetune"])
def test_federation_finds_its_participant(base: str) -> None:
    parser = parser_of(base)
    target = locate(parser.get("participant")["_target_"])
    methods = [name for name, member in vars(Participant).items() if inspect.isfunction(member)]
    assert [m for m in methods if not m.startswith("_") and not callable(getattr(target, m, None))] == []


def test_metrics_are_read_under_the_names_they_are_written() -> None:
    validate = parser_of("finetune").get("validate")
    assert list(validate["key_metric"]) == ["mean_dice"]
    source = inspect.getsource(importlib.import_module("fcl.evaluation.recorder"))
    assert 'metrics["mean_dice"]' in source
    for metric in (validate["key_metric"]["mean_dice"], validate["additional_metrics"]["dice_by_class"]):
        keys = ast.literal_eval(re.search(r"\[.*\]", metric["output_transform"])[0])
        # SupervisedEvaluator's output, whose prediction the postprocessing makes a label map.
        assert keys == ["pred", "label"]
    assert validate["postprocessing"]["keys"] == "pred"


@pytest.mark.parametrize(
    "key",
    ["labels", "pixdim", "spatial_size", "slice_axis", "intensity", "spatial_dims", "slab_depth", "strides", "channels",
     "norm", "volume_inferer", "preprocessing", "partitions", "records", "split_seed", "fold", "folds", "slice_cache"],
)  # fmt: skip
def test_stages_agree_on_what_they_share(key: str) -> None:
    parsers = {base: parser_of(base) for base in BASES}
    differing = {"inference": {"records"}}  # a plain folder
    values = {b: p.get(key) for b, p in parsers.items() if key in p and key not in differing.get(b, set())}
    assert len(values) > 1
    first = next(iter(values.values()))
    assert {base: value for base, value in values.items() if value != first} == {}


def test_the_3d_overlays_agree_on_the_network() -> None:
    pretrained = parser_of("pretrain", "../methods/fcl_3d.json")
    tuned = parser_of("finetune", "../finetuning/unet_3d.json")
    for key in ("spatial_dims", "slab_depth", "strides", "channels", "norm"):
        assert pretrained.get(key) == tuned.get(key), key


def test_metadata_names_the_pinned_versions() -> None:
    lines = (BUNDLE.parent / "requirements.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    claimed = {
        "monai": METADATA["monai_version"],
        "torch": METADATA["pytorch_version"],
        "numpy": METADATA["numpy_version"],
        **METADATA["required_packages_version"],
    }
    assert {name: version for name, version in claimed.items() if pins.get(name) != version} == {}


def test_metadata_fits_the_configuration() -> None:
    parser = parser_of("inference")
    size, labels = (parser.get_parsed_content(key) for key in ("spatial_size", "labels"))
    assert METADATA["network_data_format"]["inputs"]["image"]["spatial_shape"] == size
    assert METADATA["network_data_format"]["outputs"]["pred"]["num_channels"] == 1 + len(labels)


@pytest.mark.parametrize("base", BASES[1:])
def test_network_turns_the_declared_input_into_the_declared_output(base: str) -> None:
    threads = torch.get_num_threads()
    try:
        monai.bundle.verify_net_in_out(
            net_id="network_def",
            meta_file=str(CONFIGS / "metadata.json"),
            config_file=str(CONFIGS / f"{base}.json"),
            device="cpu",
        )
    finally:
        torch.set_num_threads(threads)


def test_logging_configuration_is_accepted_by_monai() -> None:
    assert "logger_root" in _reject_executable_logging_config(str(CONFIGS / "logging.conf"))


def test_licence_is_the_text_that_every_apache_project_ships() -> None:
    assert hashlib.md5((BUNDLE / "LICENSE").read_bytes()).hexdigest() == "3b83ef96387f14655fc854ddc3c6bd57"


def imports_of(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


def test_bundle_never_imports_the_federation() -> None:
    files = sorted((BUNDLE / "fcl").rglob("*.py"))
    assert len(files) > 20
    assert {str(f.relative_to(BUNDLE)): i for f in files if (i := imports_of(f) & {"nvflare", "flare_app"})} == {}


def test_losses_import_torch_only() -> None:
    allowed = {"__future__", "collections", "dataclasses", "math", "typing", "torch", "fcl"}
    assert {f.name: i for f in (BUNDLE / "fcl" / "losses").glob("*.py") if (i := imports_of(f) - allowed)} == {}
