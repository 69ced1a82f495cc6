import importlib.util
from typing import Any, Callable, Iterator, List

import hypothesis
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from mrcnn_plugin.data import register_coco_json
from tests.small import ROOT

# How long an example takes says nothing about what it checks.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


@pytest.fixture
def train_net() -> Any:
    """Our tools/train_net.py; Detectron2 may have installed a package `tools` of its own."""
    return load_tool("train_net")


def load_tool(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def register() -> Iterator[Callable[[str, str], None]]:
    """Registers (name, json file with its images beside it) for the duration of a test."""
    names: List[str] = []

    def add(name: str, json_file: str) -> None:
        register_coco_json([(name, json_file, json_file.replace("instances.json", "images"))])
        names.append(name)

    yield add
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
