"""Keys that nothing reads."""

import pytest

from mrcnn_plugin.modeling import find_unused_keys
from tests import small
from tests.test_configs import NAMES, config


@pytest.mark.parametrize("name", NAMES)
def test_the_configs_have_none(name):
    assert not find_unused_keys(config(name))


@pytest.mark.parametrize(
    "node, key, value, reader, others",
    [
        ("MODEL.ROI_BOX_HEAD.CLS_LOSS", "", "sigmoid_focal", "ROI_HEADS", "StandardROIHeads"),
        ("MODEL.ROI_BOX_HEAD.FOCAL", ".GAMMA", 1.0, "ROI_HEADS", "CascadeROIHeads"),
        ("MODEL.RPN.FOCAL", ".ALPHA", 0.5, "PROPOSAL_GENERATOR", "RPN"),
        ("MODEL.FPN.UPSAMPLE", "", "carafe", "BACKBONE", "build_resnet_fpn_backbone"),
        (
            "MODEL.MRCNN_PLUGIN.BIFPN",
            ".NUM_REPEATS",
            2,
            "BACKBONE",
            "build_mrcnn_resnet_pafpn_backbone",
        ),
    ],
)
def test_a_key_without_its_component_is_named(node, key, value, reader, others):
    name = f"MODEL.{reader}.NAME"
    (sentence,) = find_unused_keys(small.config(**{node + key: value, name: others}))
    assert sentence.startswith(f"{node} is not its default")
    assert f"{name} is {others!r}" in sentence
    ours = {"PROPOSAL_GENERATOR": "MRCNNFocalRPN", "BACKBONE": "build_mrcnn_resnet_bifpn_backbone"}
    chosen = ours.get(reader, "MRCNNFocalCascadeROIHeads")
    assert not find_unused_keys(small.config(**{node + key: value, name: chosen}))


@pytest.mark.parametrize("head", ["BOX", "MASK", "KEYPOINT"])
def test_the_cubic_kernel_needs_a_bicubic_pooler(head):
    types = {f"MODEL__ROI_{h}_HEAD__POOLER_TYPE": "ROIAlignBilinear" for h in ("BOX", "MASK")}
    changes = {**types, "MODEL__MRCNN_PLUGIN__ROI_ALIGN__A": -0.75}
    (sentence,) = find_unused_keys(small.config(**changes))
    assert sentence.startswith("MODEL.MRCNN_PLUGIN.ROI_ALIGN is not its default")
    assert "'ROI_MASK_HEAD': 'ROIAlignBilinear'" in sentence
    changes[f"MODEL__ROI_{head}_HEAD__POOLER_TYPE"] = "ROIAlignBicubic"
    assert bool(find_unused_keys(small.config(**changes))) == (head == "KEYPOINT")
    assert not find_unused_keys(small.config(**changes, MODEL__KEYPOINT_ON=True))


def test_heads_without_a_pyramid_have_one_pooler():
    changes = {
        "MODEL__ROI_HEADS__NAME": "MRCNNFocalRes5ROIHeads",
        "MODEL__ROI_MASK_HEAD__POOLER_TYPE": "ROIAlignBicubic",
        "MODEL__MRCNN_PLUGIN__ROI_ALIGN__A": -0.75,
    }
    assert find_unused_keys(small.config(**changes, MODEL__ROI_BOX_HEAD__POOLER_TYPE="ROIAlignV2"))
    changes["MODEL__ROI_BOX_HEAD__POOLER_TYPE"] = "ROIAlignBicubic"
    assert not find_unused_keys(small.config(**changes))


def test_retinanet_has_no_roi_heads():
    cfg = config("retinanet_R_50_PAFPN_1x.yaml")
    cfg.MODEL.ROI_HEADS.NAME = "MRCNNFocalROIHeads"
    cfg.MODEL.ROI_BOX_HEAD.FOCAL.GAMMA = 1.0
    (sentence,) = find_unused_keys(cfg)
    assert sentence.startswith("MODEL.ROI_BOX_HEAD.FOCAL ") and "'RetinaNet'" in sentence
