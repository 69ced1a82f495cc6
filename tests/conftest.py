import importlib.util
import logging
import signal
from pathlib import Path
from typing import Any, Callable, Iterator, List

import hypothesis
import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog

from mrcnn_plugin.data import generate_shapes, register_coco_json
from tests.small import CONFIGS, ROOT

# A slow example does not make a test fail.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


@pytest.fixture
def train_net() -> Any:
    """Returns our tools/train_net.py as a module. A package `tools` may belong to Detectron2."""
    return load_tool("train_net")


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps what is remembered of data sets out of the user's cache folder."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("FVCORE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def interrupts() -> None:
    """Shells make what they start in the background ignore SIGINT, which tests send to themselves."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Captures the messages of Detectron2 and fvcore, which do not reach the root logger."""
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore")]
    for logger in loggers:
        logger.addHandler(caplog.handler)
    yield caplog
    for logger in loggers:
        logger.removeHandler(caplog.handler)


def load_tool(name: str, folder: Path = ROOT / "tools") -> Any:
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def register() -> Iterator[Callable[[str, str], None]]:
    """Registers a name and a JSON file, whose images are beside it, for the duration of a test."""
    names: List[str] = []

    def add(name: str, json_file: str) -> None:
        entry = (name, json_file, json_file.replace("instances.json", "images"))
        register_coco_json([entry], check_on_load=False)
        names.append(name)

    yield add
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture(scope="session")
def user_config(tmp_path_factory):
    """Returns the config of a user: that of the quickstart with data sets in DATASETS.COCO_JSON."""
    root = tmp_path_factory.mktemp("user")
    entries = []
    for seed, name in enumerate(["my_train", "my_val"]):
        json_file = generate_shapes(str(root / name), 4, seed=seed)
        entries.append([name, json_file, str(root / name / "images")])
    content = {
        "_BASE_": str(CONFIGS / "quickstart.yaml"),
        "DATASETS": {"COCO_JSON": entries, "TRAIN": ["my_train"], "TEST": ["my_val"]},
        "SOLVER": {"MAX_ITER": 2, "IMS_PER_BATCH": 2},
        "DATALOADER": {"NUM_WORKERS": 0},
    }
    path = root / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path
