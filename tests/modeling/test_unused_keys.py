"""Tests of `find_unused_keys`, which finds keys that nothing reads."""

import re

import detectron2.config
import pytest
from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, ROI_HEADS_REGISTRY, StandardROIHeads

from mrcnn_plugin import get_cfg
from mrcnn_plugin.config import KEYS
from mrcnn_plugin.modeling import MRCNNFocalROIHeads, find_unused_keys
from mrcnn_plugin.modeling.unused_keys import READERS
from tests import small
from tests.small import CONFIG_NAMES, ROOT, full_config


@pytest.mark.parametrize("name", CONFIG_NAMES)
def test_the_configs_have_no_unused_key(name):
    assert not find_unused_keys(full_config(name))


@pytest.mark.parametrize(
    "key, value, reader, others",
    [
        ("MODEL.ROI_BOX_HEAD.CLS_LOSS", "sigmoid_focal", "ROI_HEADS", "StandardROIHeads"),
        ("MODEL.ROI_BOX_HEAD.FOCAL.GAMMA", 1.0, "ROI_HEADS", "CascadeROIHeads"),
        ("MODEL.RPN.FOCAL.ALPHA", 0.5, "PROPOSAL_GENERATOR", "RPN"),
        ("MODEL.FPN.UPSAMPLE", "carafe", "BACKBONE", "build_resnet_fpn_backbone"),
        (
            "MODEL.MRCNN_PLUGIN.BIFPN.NUM_REPEATS",
            2,
            "BACKBONE",
            "build_mrcnn_resnet_pafpn_backbone",
        ),
    ],
)
def test_a_key_without_its_component_is_named(key, value, reader, others):
    name = f"MODEL.{reader}.NAME"
    (sentence,) = find_unused_keys(small.config(**{key: value, name: others}))
    assert sentence.startswith(f"{key} is {value!r}, but nothing reads it")
    assert f"{name} is {others!r}" in sentence
    ours = {"PROPOSAL_GENERATOR": "MRCNNFocalRPN", "BACKBONE": "build_mrcnn_resnet_bifpn_backbone"}
    chosen = ours.get(reader, "MRCNNFocalCascadeROIHeads")
    assert not find_unused_keys(small.config(**{key: value, name: chosen}))


def test_proposals_from_a_file_have_a_name_that_is_in_no_registry():
    name = {"MODEL__PROPOSAL_GENERATOR__NAME": "PrecomputedProposals"}
    assert not find_unused_keys(small.config(**name))
    (sentence,) = find_unused_keys(small.config(**name, MODEL__RPN__FOCAL__GAMMA=1.0))
    assert sentence.startswith("MODEL.RPN.FOCAL.GAMMA ") and "'PrecomputedProposals'" in sentence


ALL_LOSSES = {"cross_entropy", "softmax_focal", "sigmoid_focal", "sigmoid_focal_star"}


@pytest.mark.parametrize(
    "key, value, readers",
    [
        ("ALPHA", 0.5, ALL_LOSSES - {"cross_entropy"}),
        ("ALPHA_PER_CLASS", [0.1, 0.2, 0.3], ALL_LOSSES - {"cross_entropy"}),
        ("GAMMA", 1.0, ALL_LOSSES - {"cross_entropy"}),
        ("NORMALIZER", "foreground", ALL_LOSSES - {"cross_entropy"}),
        ("PRIOR_PROB", 0.5, {"sigmoid_focal", "sigmoid_focal_star"}),
        ("BETA", 0.5, {"sigmoid_focal_star"}),
    ],
)
def test_a_key_that_the_loss_does_not_read_is_named(key, value, readers):
    key = f"MODEL.ROI_BOX_HEAD.FOCAL.{key}"
    for loss in ALL_LOSSES:
        cfg = small.config(**{key: value, "MODEL.ROI_BOX_HEAD.CLS_LOSS": loss})
        reason = f"{key} is .*, but nothing reads it: MODEL.ROI_BOX_HEAD.CLS_LOSS is '{loss}'"
        sentences = find_unused_keys(cfg)
        assert len(sentences) == (loss not in readers)
        assert all(re.match(reason, sentence) for sentence in sentences)


def test_one_alpha_is_not_read_beside_one_for_each_class():
    changes = {"MODEL__ROI_BOX_HEAD__FOCAL__ALPHA": 0.5}
    alphas = {"MODEL__ROI_BOX_HEAD__FOCAL__ALPHA_PER_CLASS": [0.1, 0.2, 0.3]}
    (sentence,) = find_unused_keys(small.config(**changes, **alphas))
    expected = (
        ".*FOCAL.ALPHA is .*, but nothing reads it: .*FOCAL.ALPHA_PER_CLASS is .0.1, 0.2, 0.3."
    )
    assert re.match(expected, sentence)


# Another value for each key whose value is not a number.
OTHER_VALUES = {
    "MODEL.FPN.UPSAMPLE": "carafe",
    "MODEL.MRCNN_PLUGIN.BIFPN.DEPTHWISE": False,
    "MODEL.ROI_BOX_HEAD.CLS_LOSS": "cross_entropy",
    "MODEL.ROI_BOX_HEAD.FOCAL.ALPHA_PER_CLASS": [0.1, 0.2, 0.3],
    "MODEL.ROI_BOX_HEAD.FOCAL.NORMALIZER": "foreground",
}


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_stock_components_read_no_key_of_this_package(key):
    sources = [*ROOT.glob("mrcnn_plugin/**/*.py"), *ROOT.glob("tools/*.py")]
    assert any(f"cfg.{key.name}" in path.read_text() for path in sources), "nothing reads it"
    cfg = get_cfg()
    cfg.MODEL.MASK_ON = cfg.MODEL.KEYPOINT_ON = True
    assert not find_unused_keys(cfg)
    if key.reader == "tools":
        return
    other = OTHER_VALUES[key.name] if key.name in OTHER_VALUES else key.default + 1
    cfg.merge_from_list([key.name, other])
    (sentence,) = find_unused_keys(cfg)
    assert sentence.startswith(f"{key.name} is ")


def test_the_table_holds_every_key_that_is_added():
    def names(node, prefix=""):
        for key, value in node.items():
            if isinstance(value, CfgNode):
                yield from names(value, f"{prefix}{key}.")
            else:
                yield prefix + key

    added = set(names(get_cfg())) - set(names(detectron2.config.get_cfg()))
    assert sorted(key.name for key in KEYS) == sorted(added)
    assert {key.reader for key in KEYS} == READERS.keys()


@pytest.mark.parametrize("head", ["BOX", "MASK", "KEYPOINT"])
def test_the_cubic_kernel_needs_a_bicubic_pooler(head):
    types = {f"MODEL__ROI_{h}_HEAD__POOLER_TYPE": "ROIAlignBilinear" for h in ("BOX", "MASK")}
    changes = {**types, "MODEL__MRCNN_PLUGIN__ROI_ALIGN__A": -0.75}
    (sentence,) = find_unused_keys(small.config(**changes))
    assert sentence.startswith("MODEL.MRCNN_PLUGIN.ROI_ALIGN.A is ")
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


def test_a_mask_head_that_is_off_has_no_pooler():
    changes = {
        "MODEL__ROI_BOX_HEAD__POOLER_TYPE": "ROIAlignBilinear",
        "MODEL__ROI_MASK_HEAD__POOLER_TYPE": "ROIAlignBicubic",
        "MODEL__MRCNN_PLUGIN__ROI_ALIGN__A": -0.75,
    }
    (sentence,) = find_unused_keys(small.config(**changes, MODEL__MASK_ON=False))
    assert sentence.endswith("POOLER_TYPE of the heads is {'ROI_BOX_HEAD': 'ROIAlignBilinear'}")


@pytest.mark.parametrize(
    ("architecture", "has_rpn"),
    [("RetinaNet", False), ("SemanticSegmentor", False), ("ProposalNetwork", True)],
)
def test_an_architecture_without_roi_heads_reads_none_of_their_keys(architecture, has_rpn):
    cfg = full_config("mask_rcnn_focal.yaml")
    cfg.MODEL.META_ARCHITECTURE = architecture
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "MRCNNFocalRPN"
    cfg.MODEL.RPN.FOCAL.GAMMA = cfg.MODEL.ROI_BOX_HEAD.FOCAL.GAMMA = 1.0
    cfg.MODEL.MRCNN_PLUGIN.ROI_ALIGN.A = -0.75
    unused = ["MODEL.MRCNN_PLUGIN.ROI_ALIGN.A", "MODEL.ROI_BOX_HEAD.FOCAL.GAMMA"]
    if not has_rpn:
        unused.append("MODEL.RPN.FOCAL.GAMMA")
    sentences = find_unused_keys(cfg)
    assert sorted(sentence.split()[0] for sentence in sentences) == unused
    assert all(f"MODEL.META_ARCHITECTURE is {architecture!r}" in s for s in sentences)


@pytest.mark.parametrize(
    ("base", "module", "is_ours"),
    [
        (MRCNNFocalROIHeads, "theirs", True),
        (StandardROIHeads, "theirs", False),
        (StandardROIHeads, "mrcnn_plugin_of_theirs.heads", False),
    ],
)
def test_heads_that_are_derived_from_ours_read_our_keys(monkeypatch, base, module, is_ours):
    theirs = type("TheirHeads", (base,), {"__module__": module})
    names = {**ROI_HEADS_REGISTRY._obj_map, "TheirHeads": theirs}
    monkeypatch.setattr(ROI_HEADS_REGISTRY, "_obj_map", names)
    cfg = small.config(MODEL__ROI_HEADS__NAME="TheirHeads", MODEL__ROI_BOX_HEAD__FOCAL__GAMMA=1.0)
    assert bool(find_unused_keys(cfg)) != is_ours


def test_a_bifpn_of_another_project_has_its_own_number_of_repeats(monkeypatch):
    def build_resnet_bifpn_backbone(cfg, input_shape):  # that of CenterNet2
        raise AssertionError("It was built.")

    name = build_resnet_bifpn_backbone.__name__
    names = {**BACKBONE_REGISTRY._obj_map, name: build_resnet_bifpn_backbone}
    monkeypatch.setattr(BACKBONE_REGISTRY, "_obj_map", names)
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.MRCNN_PLUGIN.BIFPN.NUM_REPEATS = name, 2
    (sentence,) = find_unused_keys(cfg)
    assert sentence.startswith("MODEL.MRCNN_PLUGIN.BIFPN.NUM_REPEATS ") and name in sentence
