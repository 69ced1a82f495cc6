"""Tests of `import mrcnn_plugin`, `add_mrcnn_config` and DETECTRON2_ENV_MODULE=mrcnn_plugin.env."""

import os
import subprocess
import sys

import pytest
import yaml
from detectron2.config import get_cfg

import mrcnn_plugin
from mrcnn_plugin import add_mrcnn_config
from mrcnn_plugin.env import setup_environment
from tests.small import STOCK_TOOLS, TINY


def run(*command, cwd, **environment):
    result = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    return result


def test_adding_the_config_twice_keeps_what_was_set():
    cfg = get_cfg()
    add_mrcnn_config(cfg)
    cfg.MODEL.MRCNN_PLUGIN.ROI_ALIGN.A = -0.75
    cfg.MODEL.ROI_BOX_HEAD.FOCAL.GAMMA = 1.0
    before = cfg.dump()
    add_mrcnn_config(cfg)
    assert cfg.dump() == before


def test_only_keys_of_this_package_are_added():
    cfg = get_cfg()
    add_mrcnn_config(cfg)
    added = yaml.safe_load(cfg.dump())
    stock = yaml.safe_load(get_cfg().dump())
    for key in ("COCO_JSON", "CHECK", "ALLOW"):
        del added["DATASETS"][key]
    del added["INPUT"]["PIXEL_RANGE"], added["INPUT"]["PIXEL_RANGE_UNIT"]
    del added["MODEL"]["MRCNN_PLUGIN"]
    del added["MODEL"]["FPN"]["UPSAMPLE"]
    for key in ("CLS_LOSS", "CLS_LOSS_WEIGHT", "FOCAL"):
        del added["MODEL"]["ROI_BOX_HEAD"][key]
    del added["MODEL"]["RPN"]["FOCAL"]
    assert added == stock


def test_importing_costs_little_beside_what_detectron2_imports(tmp_path):
    program = """
import sys
import detectron2.modeling
before = set(sys.modules)
import mrcnn_plugin
print(*sorted(set(sys.modules) - before))
print(*sys.modules)
"""
    result = run("-W", "ignore", "-c", program, cwd=tmp_path)
    alone, imported = (line.split() for line in result.stdout.splitlines())
    # These modules are light: each takes about a millisecond.
    light = {"torch.utils.flop_counter", "torch.utils.module_tracker", "detectron2.utils.colormap"}
    known = ("mrcnn_plugin", "numpy._typing", "numpy.typing")
    others = {name for name in alone if not name.startswith(known)} - light
    assert "mrcnn_plugin.modeling" in alone and not others
    heavy = ("matplotlib", "scipy", "tensorboard", "detectron2.engine", "detectron2.evaluation")
    assert "mrcnn_plugin.engine" not in imported and not set(heavy) & set(imported)


@pytest.mark.parametrize(
    "first", ["detectron2", "mrcnn_plugin", "mrcnn_plugin.layers", "mrcnn_plugin.env"]
)
def test_the_environment_module_works_whatever_is_imported_first(first, tmp_path):
    program = f"""
import {first}
from detectron2.config import get_cfg
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.utils.env import setup_environment
from mrcnn_plugin.env import setup_environment as ours
ours(); ours()
cfg = get_cfg()
assert cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS == "softmax_focal"
assert "MRCNNFocalROIHeads" in ROI_HEADS_REGISTRY
"""
    result = run("-c", program, cwd=tmp_path, DETECTRON2_ENV_MODULE="mrcnn_plugin.env")
    assert result.returncode == 0, result.stderr


def test_without_detectron2_the_error_says_what_is_missing(tmp_path):
    (tmp_path / "detectron2.py").write_text("raise ModuleNotFoundError('no', name='detectron2')")
    result = run("-c", "import mrcnn_plugin", cwd=tmp_path)
    assert "mrcnn_plugin is an add-on for Detectron2, which is not installed" in result.stderr


def test_another_missing_module_is_not_taken_for_detectron2(tmp_path):
    result = run("-c", "import mrcnn_plugin", cwd=tmp_path, DETECTRON2_ENV_MODULE="not_there")
    assert "No module named 'not_there'" in result.stderr
    assert "which is not installed" not in result.stderr


@pytest.mark.parametrize("script", ["train_net.py", "plain_train_net.py"])
def test_stock_scripts_train_and_evaluate_from_yaml(script, user_config, tmp_path):
    tiny = {**TINY, "MODEL.ROI_HEADS.NUM_CLASSES": 4, "OUTPUT_DIR": tmp_path / "out"}
    result = run(
        STOCK_TOOLS / script,
        "--config-file",
        user_config,
        *[item for pair in tiny.items() for item in pair],
        cwd=tmp_path,
        DETECTRON2_ENV_MODULE="mrcnn_plugin.env",
        MRCNN_PLUGIN_DATASETS=str(user_config),
    )
    log = result.stdout + result.stderr
    assert result.returncode == 0, log
    assert "MRCNNFocalROIHeads" in log and "CARAFE" in log
    assert "Evaluation results for bbox" in log and "Evaluation results for segm" in log
    assert list((tmp_path / "out" / "inference").rglob("coco_instances_results.json"))


def test_a_data_set_file_that_is_missing_is_an_error(tmp_path):
    result = run(
        "-c",
        "import detectron2",
        cwd=tmp_path,
        DETECTRON2_ENV_MODULE="mrcnn_plugin.env",
        MRCNN_PLUGIN_DATASETS="nowhere.yaml",
    )
    assert result.returncode != 0 and "MRCNN_PLUGIN_DATASETS is 'nowhere.yaml'" in result.stderr


def test_a_data_set_file_without_data_sets_is_named_with_its_variable(tmp_path, monkeypatch):
    file = tmp_path / "my.yaml"
    file.write_text("DATASETS: {}")
    monkeypatch.setattr("detectron2.config.defaults._C", get_cfg())
    monkeypatch.setenv("MRCNN_PLUGIN_DATASETS", str(file))
    with pytest.raises(ValueError, match="^MRCNN_PLUGIN_DATASETS is .*my.yaml'. .*COCO_JSON"):
        setup_environment()


def test_the_version_is_that_of_the_distribution():
    from importlib.metadata import version

    assert mrcnn_plugin.__version__ == version("mrcnn_plugin")
