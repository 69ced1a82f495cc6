import pytest
import torch
import yaml

from ablations import run as run_module
from mrcnn_plugin.data import generate_shapes
from tests.environments import FORKS
from tests.small import ROOT, TINY

from .helpers import ForkedCell, tree, write_other


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with the configs base.yaml and other.yaml, which changes one key of it."""
    json_file = generate_shapes(str(tmp_path / "data"), 4, seed=5)
    name = f"shapes_of_{tmp_path.name}"
    base = tree({**TINY, "MODEL.ROI_HEADS.NUM_CLASSES": 4})
    base["_BASE_"] = str(ROOT / "configs" / "quickstart.yaml")
    base["DATASETS"] = {
        "COCO_JSON": [[name, json_file, str(tmp_path / "data" / "images")]],
        "TRAIN": [name],
        "TEST": [name],
    }
    base["SOLVER"] = {"MAX_ITER": 4, "IMS_PER_BATCH": 2, "CHECKPOINT_PERIOD": 2}
    base["TEST"]["EVAL_PERIOD"] = 2
    base["DATALOADER"] = {"NUM_WORKERS": 0}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    write_other(tmp_path)
    monkeypatch.chdir(tmp_path)
    # Programs that tests start find this package from any folder.
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=":")
    return tmp_path


@pytest.fixture
def forked_cells(monkeypatch):
    """Lets cells start as forks of this process, where that is possible."""
    threads = torch.get_num_threads()
    # A forked process has no other threads than the one that called fork.
    torch.set_num_threads(1)
    if FORKS:
        monkeypatch.setattr(run_module, "start_process", ForkedCell)
    yield
    torch.set_num_threads(threads)
