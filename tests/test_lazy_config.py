"""Tests of configs/lazy, the headline config for Detectron2's tools/lazyconfig_train_net.py."""

import inspect
import os
import sys

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling import build_model

from mrcnn_plugin import get_cfg
from mrcnn_plugin.config import value_of
from mrcnn_plugin.modeling import (
    BiFPN,
    FocalFastRCNNOutputLayers,
    MRCNNFocalRPN,
    UpsampleFPN,
)
from tests import small
from tests.environments import run
from tests.small import full_config

LAZY = small.CONFIGS / "lazy" / "mask_rcnn_focal.py"

# The modules that Detectron2's model zoo imports give warnings of deprecation.
pytestmark = pytest.mark.filterwarnings("ignore:pkg_resources")


def test_the_lazy_config_is_the_model_of_the_yaml():
    torch.manual_seed(0)
    lazy = instantiate(LazyConfig.load(str(LAZY)).model)
    torch.manual_seed(0)
    model = build_model(full_config("mask_rcnn_focal.yaml"))
    assert str(lazy) == str(model)
    expected, actual = model.state_dict(), lazy.state_dict()
    assert {k: v.shape for k, v in actual.items()} == {k: v.shape for k, v in expected.items()}
    assert {n for n, p in lazy.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }
    predictors = [m.roi_heads.box_predictor for m in (lazy, model)]
    settings = ("cls_loss", "focal_alpha", "focal_gamma", "normalizer", "test_score_thresh")
    for name in settings:
        assert len({getattr(p, name) for p in predictors}) == 1, name
    torch.testing.assert_close(*(p.cls_score.bias for p in predictors), rtol=0, atol=0)


FOCAL = {
    "focal_alpha": "FOCAL.ALPHA",
    "focal_gamma": "FOCAL.GAMMA",
    "prior_prob": "FOCAL.PRIOR_PROB",
}


@pytest.mark.parametrize(
    "component, node, keys",
    [
        (UpsampleFPN, "MODEL", {"upsample": "FPN.UPSAMPLE"}),
        (
            BiFPN,
            "MODEL",
            {
                "upsample": "FPN.UPSAMPLE",
                "num_repeats": "MRCNN_PLUGIN.BIFPN.NUM_REPEATS",
                "depthwise": "MRCNN_PLUGIN.BIFPN.DEPTHWISE",
            },
        ),
        (MRCNNFocalRPN, "MODEL.RPN", FOCAL),
        (
            FocalFastRCNNOutputLayers,
            "MODEL.ROI_BOX_HEAD",
            {
                **FOCAL,
                "focal_beta": "FOCAL.BETA",
                "normalizer": "FOCAL.NORMALIZER",
                "cls_loss": "CLS_LOSS",
            },
        ),
    ],
)
def test_what_a_lazy_config_leaves_out_is_the_default_of_the_yaml(component, node, keys):
    parameters = inspect.signature(component).parameters
    actual = {name: parameters[name].default for name in keys}
    assert actual == {name: value_of(get_cfg(), f"{node}.{key}") for name, key in keys.items()}


def test_the_stock_script_trains_and_evaluates_it(tmp_path):
    """It needs no DETECTRON2_ENV_MODULE, because the config imports the package."""
    overrides = {
        "model.roi_heads.num_classes": 4,
        "train.device": "cpu",
        "train.init_checkpoint": "''",
        "train.max_iter": 2,
        "train.output_dir": tmp_path / "out",
        "dataloader.train.total_batch_size": 2,
        "dataloader.train.mapper.instance_mask_format": "bitmask",
        "dataloader.train.mapper.augmentations.0.short_edge_length": "[32]",
        "dataloader.test.mapper.augmentations.0.short_edge_length": 32,
    }
    for split in ("train", "test"):
        overrides[f"dataloader.{split}.dataset.names"] = "mrcnn_shapes_val"
        overrides[f"dataloader.{split}.num_workers"] = 0
    log = run(
        sys.executable,
        small.STOCK_TOOLS / "lazyconfig_train_net.py",
        "--config-file",
        LAZY,
        *[f"{key}={value}" for key, value in overrides.items()],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(small.ROOT)},
    )
    assert "MRCNNFocalROIHeads" in log and "CARAFE" in log
    assert "copypaste: Task: segm" in log or "No predictions from the model" in log
    assert (tmp_path / "out" / "model_final.pth").exists()
