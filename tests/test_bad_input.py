"""What a wrong value of a config leads to: one message, before anything is built.

A row of a table has what a user wrote, and three parts of the message: the key, the value, and what would
be valid.
"""

import os
import pickle
import re
from argparse import Namespace

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
    build_model,
)
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads

from mrcnn_plugin import engine, load_cfg
from mrcnn_plugin.checkpoint import FittingCheckpointer, check_weights
from mrcnn_plugin.config import KEYS, get_cfg, leaves
from mrcnn_plugin.data import generate_shapes
from mrcnn_plugin.modeling import find_unused_keys
from mrcnn_plugin.preferred import PreferringConfig
from mrcnn_plugin.validation import RULES, check_config
from tests.small import CONFIG_NAMES, CONFIGS, full_config

TRAIN = Namespace(eval_only=False, resume=False)
EVALUATE = Namespace(eval_only=True, resume=False)


def mismatch(wanted, got):
    """The words of yacs for a value of another type than that of the default."""
    return f"Type mismatch (<class '{wanted}'> vs. <class '{got}'>)"


HEADS = "MODEL.ROI_HEADS.NAME"
FOCAL = "MODEL.ROI_BOX_HEAD.FOCAL."
LOSS = "MODEL.ROI_BOX_HEAD.CLS_LOSS"
STAR = (LOSS, "sigmoid_focal_star")
CASCADE = (HEADS, "MRCNNFocalCascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True")
C4 = (
    "MODEL.BACKBONE.NAME build_resnet_backbone MODEL.RESNETS.OUT_FEATURES ['res4'] "
    "MODEL.RPN.IN_FEATURES ['res4'] MODEL.ROI_HEADS.IN_FEATURES ['res4'] "
    f"{HEADS} MRCNNFocalRes5ROIHeads MODEL.ANCHOR_GENERATOR.SIZES [[32,64]]"
).split()
STOCK_FPN = ("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone")
GN_RESNET = "MODEL.RESNETS.DEPTH 50 MODEL.RESNETS.NORM GN".split()
BIFPN = ("MODEL.BACKBONE.NAME", "build_mrcnn_resnet_bifpn_backbone")
FOCAL_RPN = ("MODEL.PROPOSAL_GENERATOR.NAME", "MRCNNFocalRPN")
RETINANET = (
    "MODEL.META_ARCHITECTURE RetinaNet MODEL.MASK_ON False MODEL.RETINANET.NUM_CLASSES 4 "
    "MODEL.BACKBONE.NAME build_mrcnn_retinanet_resnet_pafpn_backbone "
    "MODEL.RESNETS.OUT_FEATURES ['res3','res4','res5'] MODEL.FPN.IN_FEATURES ['res3','res4','res5']"
).split()
ROTATED = (
    "MODEL.PROPOSAL_GENERATOR.NAME RRPN MODEL.RPN.BBOX_REG_WEIGHTS (1,1,1,1,1) MODEL.MASK_ON False "
    "MODEL.ANCHOR_GENERATOR.NAME RotatedAnchorGenerator MODEL.ROI_HEADS.NAME RROIHeads "
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE ROIAlignRotated MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS (10,10,5,5,1)"
).split()
FED = "MODEL.ROI_BOX_HEAD.USE_FED_LOSS"
NEWER = ("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", FED, "SOLVER.BASE_LR_END", "SOLVER.RESCALE_INTERVAL")
SIGMOID = (LOSS, "sigmoid_focal", "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", "True", FED, "True")
KEYPOINTS = "MODEL.KEYPOINT_ON True MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS".split()
PROPOSALS = "MODEL.LOAD_PROPOSALS True MODEL.PROPOSAL_GENERATOR.NAME PrecomputedProposals".split()
# As in fast_rcnn_R_50_FPN_1x.yaml of Detectron2.
COCO_PROPOSALS = "detectron2://COCO-Detection/rpn_R_50_FPN_1x/proposals.pkl"
CROP = ("INPUT.CROP.ENABLED", "True")
CLIP = "SOLVER.CLIP_GRADIENTS."

# The options, the wrong value being the last of them; its key; the value as the message has it; what is valid.
# The constructors of this package check these keys, so that every script has these messages.
BUILT = [
    (("MODEL.FPN.UPSAMPLE", "carafee"), "MODEL.FPN.UPSAMPLE", "'carafee'", "'gated_carafe'"),
    (
        (*BIFPN, "MODEL.MRCNN_PLUGIN.BIFPN.NUM_REPEATS", "0"),
        "MODEL.MRCNN_PLUGIN.BIFPN.NUM_REPEATS",
        "got 0",
        "at least 1",
    ),
    (
        (*BIFPN, "MODEL.FPN.FUSE_TYPE", "avg"),
        "MODEL.FPN.FUSE_TYPE",
        "'avg'",
        "leave it at 'sum'",
    ),
    (
        (
            "MODEL.ROI_BOX_HEAD.POOLER_TYPE",
            "ROIAlignBicubic",
            "MODEL.MRCNN_PLUGIN.ROI_ALIGN.A",
            "1e400",
        ),
        "MODEL.MRCNN_PLUGIN.ROI_ALIGN.A",
        "inf",
        "must be finite",
    ),
    (
        ("MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO", "5000"),
        "MODEL.ROI_MASK_HEAD",
        "POOLER_SAMPLING_RATIO 5000",
        "must be at most",
    ),
    ((LOSS, "focal"), LOSS, "'focal'", "'softmax_focal'"),
    ((FOCAL + "ALPHA", "1.5"), FOCAL + "ALPHA", "1.5", "in [0, 1], or be -1.0"),
    (
        (FOCAL + "ALPHA_PER_CLASS", "[0.5]"),
        FOCAL + "ALPHA_PER_CLASS",
        "1: [0.5]",
        "NUM_CLASSES = 4",
    ),
    (
        (FOCAL + "ALPHA_PER_CLASS", "[0.1, 0.2, 0.3, 4]"),
        FOCAL + "ALPHA_PER_CLASS",
        "[0.1, 0.2, 0.3, 4]",
        "numbers in [0, 1]",
    ),
    ((FOCAL + "GAMMA", "-1.0"), FOCAL + "GAMMA", "-1.0", "at least 0"),
    ((*STAR, FOCAL + "GAMMA", "0.0"), FOCAL + "GAMMA", "got 0", "above 0"),
    ((*STAR, FOCAL + "BETA", "1e400"), FOCAL + "BETA", "inf", "finite"),
    ((FOCAL + "PRIOR_PROB", "1.0"), FOCAL + "PRIOR_PROB", "1.0", "between 0 and 1"),
    ((LOSS + "_WEIGHT", "-1.0"), LOSS + "_WEIGHT", "-1.0", "at least 0"),
    ((FOCAL + "NORMALIZER", "mean"), FOCAL + "NORMALIZER", "'mean'", "('foreground', 'proposals')"),
    ((*FOCAL_RPN, "MODEL.RPN.FOCAL.ALPHA", "-0.5"), "MODEL.RPN.FOCAL.ALPHA", "-0.5", "in [0, 1]"),
    ((*FOCAL_RPN, "MODEL.RPN.FOCAL.GAMMA", "-2.0"), "MODEL.RPN.FOCAL.GAMMA", "-2.0", "at least 0"),
    (
        (*FOCAL_RPN, "MODEL.RPN.FOCAL.PRIOR_PROB", "0.0"),
        "MODEL.RPN.FOCAL.PRIOR_PROB",
        "0.0",
        "between 0 and 1",
    ),
    (
        ("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", "True"),
        "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE",
        "'softmax_focal' is a softmax",
        "'sigmoid_focal'",
    ),
    (
        ("MODEL.FPN.IN_FEATURES", "['res2','res4','res5']"),
        "MODEL.FPN.IN_FEATURES",
        "['res2', 'res4', 'res5']",
        "successive powers of two",
    ),
    (
        ("MODEL.RESNETS.OUT_FEATURES", "['res3','res4','res5']"),
        "MODEL.FPN.IN_FEATURES",
        "['res2', 'res3', 'res4', 'res5']",
        "features of the bottom-up: ['res3', 'res4', 'res5']",
    ),
    (
        (*RETINANET, "MODEL.BACKBONE.NAME", "build_mrcnn_resnet_pafpn_backbone"),
        "MODEL.BACKBONE.NAME",
        "'build_mrcnn_resnet_pafpn_backbone'",
        "build_mrcnn_retinanet_",
    ),
    (
        (
            *RETINANET,
            *"MODEL.RESNETS.OUT_FEATURES ['res3','res4'] MODEL.FPN.IN_FEATURES ['res3','res4']".split(),
        ),
        "MODEL.RESNETS.OUT_FEATURES",
        "['res3', 'res4']",
        "'res5': add it",
    ),
]

# Other keys of this package, and combinations of its components with others.
OURS = [
    (("DATASETS.COCO_JSON", "my.json"), "DATASETS.COCO_JSON", "my.json", mismatch("list", "str")),
    (
        ("DATASETS.COCO_JSON", "[['a', 'b']]"),
        "DATASETS.COCO_JSON[0]",
        "['a', 'b']",
        "three strings: name, json file, image root",
    ),
    (
        ("DATASETS.COCO_JSON", "[['a', 1, 'images']]"),
        "DATASETS.COCO_JSON[0]",
        "['a', 1, 'images']",
        "three strings",
    ),
    (("DATASETS.COCO_JSON", "['a.json']"), "DATASETS.COCO_JSON[0]", "'a.json'", "three strings"),
    (
        ("DATASETS.COCO_JSON", "[['a', 'nowhere.json', '.']]", "DATASETS.TRAIN", "('a',)"),
        "DATASETS.COCO_JSON[0] ('a')",
        "/nowhere.json",
        "No such file",
    ),
    (
        ("DATASETS.COCO_JSON", "[['a', '$NOT_SET_HERE/a.json', '.']]", "DATASETS.TRAIN", "('a',)"),
        "DATASETS.COCO_JSON[0] ('a')",
        "'$NOT_SET_HERE/a.json'",
        "the environment variable NOT_SET_HERE is not set",
    ),
    (("DATASETS.CHECK", "fastt"), "DATASETS.CHECK", "'fastt'", "'fast', 'full', 'off'"),
    (("DATASETS.CHECK", "False"), "DATASETS.CHECK", "False", "unless they stand in quotes"),
    (("DATASETS.ALLOW", "['boxes']"), "DATASETS.ALLOW", "'boxes'", "'file_name_twice'"),
    (("DATASETS.ALLOW", "no_objects"), "DATASETS.ALLOW", "no_objects", mismatch("list", "str")),
    (("INPUT.PIXEL_RANGE", "[100]"), "INPUT.PIXEL_RANGE", "[100]", "[low, high]"),
    (("INPUT.PIXEL_RANGE", "[200, 100]"), "INPUT.PIXEL_RANGE", "[200, 100]", "low < high"),
    (("INPUT.PIXEL_RANGE", "['0', '255']"), "INPUT.PIXEL_RANGE", "['0', '255']", "two numbers"),
    (("INPUT.PIXEL_RANGE", "4095"), "INPUT.PIXEL_RANGE", "4095", mismatch("list", "int")),
    (
        ("INPUT.PIXEL_RANGE_UNIT", "percentile", "INPUT.PIXEL_RANGE", "[0, 101]"),
        "INPUT.PIXEL_RANGE",
        "[0, 101]",
        "within [0, 100]",
    ),
    (
        ("INPUT.PIXEL_RANGE_UNIT", "percent"),
        "INPUT.PIXEL_RANGE_UNIT",
        "'percent'",
        "'value' or 'percentile'",
    ),
    (
        ("MODEL.MRCNN_PLUGIN.PARTIAL_WEIGHTS", "some"),
        "MODEL.MRCNN_PLUGIN.PARTIAL_WEIGHTS",
        "some",
        mismatch("bool", "str"),
    ),
    (("MODEL.FPN.UPSAMPLE", "2"), "MODEL.FPN.UPSAMPLE", "2", mismatch("str", "int")),
    (
        ("MODEL.MRCNN_PLUGIN.BIFPN.NUM_REPEATS", "2.5"),
        "MODEL.MRCNN_PLUGIN.BIFPN.NUM_REPEATS",
        "2.5",
        mismatch("int", "float"),
    ),
    (
        ("MODEL.MRCNN_PLUGIN.BIFPN.DEPTHWISE", "true"),
        "MODEL.MRCNN_PLUGIN.BIFPN.DEPTHWISE",
        "true",
        mismatch("bool", "str"),
    ),
    ((FOCAL + "GAMMA", "2"), FOCAL + "GAMMA", "2", mismatch("float", "int")),
    (
        (FOCAL + "ALPHA", "None"),
        FOCAL + "ALPHA",
        "None",
        "of the type float, such as the default -1.0",
    ),
    (
        (HEADS, "MRCNNFocalCascadeROIHeads"),
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",
        "is False",
        "to be True",
    ),
    (
        (HEADS, "CascadeROIHeads"),
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",
        "'CascadeROIHeads'",
        "to be True",
    ),
    (
        (HEADS, "StandardROIHeads"),
        "MODEL.ROI_BOX_HEAD.POOLER_TYPE",
        "'ROIAlignBicubic'",
        "MRCNNFocalROIHeads",
    ),
    (
        (HEADS, "StandardROIHeads", "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignV2"),
        "MODEL.ROI_MASK_HEAD.POOLER_TYPE",
        "'ROIAlignBicubic'",
        "MRCNNFocalROIHeads",
    ),
    (
        (
            *(HEADS, "StandardROIHeads", "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignV2"),
            *("MODEL.MASK_ON", "False", *KEYPOINTS, "17"),
            *("MODEL.ROI_KEYPOINT_HEAD.POOLER_TYPE", "ROIAlignBicubic"),
        ),
        "MODEL.ROI_KEYPOINT_HEAD.POOLER_TYPE",
        "'ROIAlignBicubic'",
        "MRCNNFocalROIHeads",
    ),
    (
        ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignCubic"),
        "MODEL.ROI_BOX_HEAD.POOLER_TYPE",
        "'ROIAlignCubic'",
        "'ROIAlignBicubic', 'ROIAlignBilinear'",
    ),
    (
        (HEADS, "MRCNNFocalRes5ROIHeads"),
        "MODEL.ROI_HEADS.IN_FEATURES",
        "['p2', 'p3', 'p4', 'p5']",
        "must be ['res4']",
    ),
    (
        (HEADS, "MRCNNFocalRes5ROIHeads", "MODEL.ROI_HEADS.IN_FEATURES", "['p4']"),
        "MODEL.ROI_HEADS.IN_FEATURES",
        "['p4']",
        "must be ['res4']",
    ),
    (
        (
            *(*C4, "MODEL.RESNETS.OUT_FEATURES", "['res4', 'res5']"),
            *("MODEL.ROI_HEADS.IN_FEATURES", "['res4', 'res5']"),
        ),
        "MODEL.ROI_HEADS.IN_FEATURES",
        "['res4', 'res5']",
        "must be ['res4']",
    ),
    ((*C4, *KEYPOINTS, "17"), "MODEL.KEYPOINT_ON", "is True", "must be False"),
    (
        (*C4, HEADS, "MRCNNFocalROIHeads", "MODEL.ROI_HEADS.IN_FEATURES", "['p4']"),
        "MODEL.ROI_HEADS.IN_FEATURES",
        "['p4']",
        "has the features res4",
    ),
    ((FED, "True"), FED, "is True", "USE_SIGMOID_CE is False; it must be True"),
    (
        (*SIGMOID, "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES", "5"),
        "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES",
        "is 5",
        "at most MODEL.ROI_HEADS.NUM_CLASSES, 4",
    ),
    (
        (*SIGMOID, "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES", "0"),
        "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES",
        "is 0",
        "at least 1",
    ),
    (
        (
            *SIGMOID,
            *"MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES 2 DATASETS.TRAIN".split(),
            "('mrcnn_shapes_train',)",
        ),
        FED,
        "'mrcnn_shapes_train'",
        "one of DATASETS.COCO_JSON",
    ),
    (
        (*SIGMOID, *"MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES 2 DATASETS.CHECK off".split()),
        "DATASETS.CHECK",
        "'off'",
        "must be 'fast' or 'full'",
    ),
    (
        (*RETINANET, "MODEL.MASK_ON", "True"),
        "MODEL.MASK_ON",
        "is True",
        "must be False",
    ),
    (
        (*RETINANET, *KEYPOINTS, "17"),
        "MODEL.KEYPOINT_ON",
        "is True",
        "must be False",
    ),
    (
        (*RETINANET, "MODEL.RETINANET.NUM_CLASSES", "80"),
        "MODEL.RETINANET.NUM_CLASSES",
        "80",
        "set it to 4",
    ),
    (
        (*RETINANET, "MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"),
        "MODEL.RETINANET.IN_FEATURES",
        "['p3', 'p4', 'p5', 'p6', 'p7']",
        "has the features p3, p4, p5, p6; it must be",
    ),
]

# Detectron2's own keys.
STOCK = [
    (("MODEL.DEVICE", "gpu"), "MODEL.DEVICE", "'gpu'", "'cpu', 'cuda'"),
    (
        ("MODEL.META_ARCHITECTURE", "MaskRCNN"),
        "MODEL.META_ARCHITECTURE",
        "'MaskRCNN'",
        "GeneralizedRCNN",
    ),
    (
        ("MODEL.BACKBONE.NAME", "build_mrcnn_resnet_bifpn_backbon"),
        "MODEL.BACKBONE.NAME",
        "'build_mrcnn_resnet_bifpn_backbon'",
        "did you mean 'build_mrcnn_resnet_bifpn_backbone'",
    ),
    (("MODEL.BACKBONE.NAME", "Swin"), "MODEL.BACKBONE.NAME", "'Swin'", "registered are "),
    (
        ("MODEL.PROPOSAL_GENERATOR.NAME", "MRCNNFocalRpn"),
        "MODEL.PROPOSAL_GENERATOR.NAME",
        "'MRCNNFocalRpn'",
        "'MRCNNFocalRPN'",
    ),
    (("MODEL.RPN.HEAD_NAME", "RPNHead"), "MODEL.RPN.HEAD_NAME", "'RPNHead'", "'StandardRPNHead'"),
    (
        ("MODEL.ANCHOR_GENERATOR.NAME", "AnchorGenerator"),
        "MODEL.ANCHOR_GENERATOR.NAME",
        "'AnchorGenerator'",
        "'DefaultAnchorGenerator'",
    ),
    ((HEADS, "MRCNNFocalROIHead"), HEADS, "'MRCNNFocalROIHead'", "'MRCNNFocalROIHeads'"),
    (("MODEL.ROI_BOX_HEAD.NAME", "''"), "MODEL.ROI_BOX_HEAD.NAME", "''", "FastRCNNConvFCHead"),
    (
        ("MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNHead"),
        "MODEL.ROI_MASK_HEAD.NAME",
        "'MaskRCNNHead'",
        "MaskRCNNConvUpsampleHead",
    ),
    (
        ("MODEL.META_ARCHITECTURE", "PanopticFPN", "MODEL.SEM_SEG_HEAD.NAME", "FPNHead"),
        "MODEL.SEM_SEG_HEAD.NAME",
        "'FPNHead'",
        "SemSegFPNHead",
    ),
    (
        ("MODEL.WEIGHTS", "nowhere.pth"),
        "MODEL.WEIGHTS",
        "'nowhere.pth'",
        "path or URL of a checkpoint",
    ),
    (
        ("MODEL.PIXEL_MEAN", "[100.0]"),
        "MODEL.PIXEL_MEAN",
        "[100.0]",
        "channel of INPUT.FORMAT 'BGR', 3",
    ),
    (("MODEL.PIXEL_STD", "[0.0, 1.0, 1.0]"), "MODEL.PIXEL_STD", "[0.0, 1.0, 1.0]", "above 0"),
    (("MODEL.PIXEL_STD", "[1.0]"), "MODEL.PIXEL_STD", "[1.0]", "channel of INPUT.FORMAT 'BGR', 3"),
    (("INPUT.FORMAT", "L"), "MODEL.PIXEL_MEAN", "[103.53, 116.28, 123.675]", "INPUT.FORMAT 'L', 1"),
    (("INPUT.FORMAT", "GRAY"), "INPUT.FORMAT", "'GRAY'", "'L'"),
    (("INPUT.MASK_FORMAT", "polygons"), "INPUT.MASK_FORMAT", "'polygons'", "'polygon', 'bitmask'"),
    (("INPUT.MIN_SIZE_TRAIN", "800"), "INPUT.MIN_SIZE_TRAIN", "800", mismatch("tuple", "int")),
    (("INPUT.MIN_SIZE_TRAIN", "()"), "INPUT.MIN_SIZE_TRAIN", "()", "one or more"),
    (
        ("INPUT.MIN_SIZE_TRAIN", "('640',)"),
        "INPUT.MIN_SIZE_TRAIN",
        "('640',)",
        "at least 0, in pixels",
    ),
    (("INPUT.MAX_SIZE_TRAIN", "0"), "INPUT.MAX_SIZE_TRAIN", "0", "at least 1"),
    (("INPUT.MIN_SIZE_TEST", "-1"), "INPUT.MIN_SIZE_TEST", "-1", "at least 0"),
    (("INPUT.MAX_SIZE_TEST", "0"), "INPUT.MAX_SIZE_TEST", "0", "at least 1"),
    (
        ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "random"),
        "INPUT.MIN_SIZE_TRAIN_SAMPLING",
        "'random'",
        "'choice', 'range'",
    ),
    (
        ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "range", "INPUT.MIN_SIZE_TRAIN", "(100, 200, 300)"),
        "INPUT.MIN_SIZE_TRAIN",
        "(100, 200, 300)",
        "(low, high)",
    ),
    (
        ("INPUT.RANDOM_FLIP", "both"),
        "INPUT.RANDOM_FLIP",
        "'both'",
        "'horizontal', 'vertical', 'none'",
    ),
    ((*CROP, "INPUT.CROP.TYPE", "random"), "INPUT.CROP.TYPE", "'random'", "'relative_range'"),
    ((*CROP, "INPUT.CROP.SIZE", "[300, 300]"), "INPUT.CROP.SIZE", "[300, 300]", "at most 1"),
    (
        (*CROP, "INPUT.CROP.TYPE", "relative_range", "INPUT.CROP.SIZE", "[300, 300]"),
        "INPUT.CROP.SIZE",
        "[300, 300]",
        "at most 1",
    ),
    (
        (*CROP, "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", "[0.5, 0.5]"),
        "INPUT.CROP.SIZE",
        "[0.5, 0.5]",
        "at least 1",
    ),
    (("DATASETS.TRAIN", "my_train"), "DATASETS.TRAIN", "my_train", mismatch("tuple", "str")),
    (("DATASETS.TRAIN", "()"), "DATASETS.TRAIN", "is empty", "name a data set"),
    (("DATASETS.TRAIN", "(1,)"), "DATASETS.TRAIN", "(1,)", "a tuple of names"),
    (
        ("DATASETS.TEST", "('bad_input_trian',)"),
        "DATASETS.TEST",
        "'bad_input_trian'",
        "did you mean 'bad_input_train'",
    ),
    (
        ("DATASETS.TEST", "('val 1', 'other', 'val_1')"),
        "DATASETS.TEST",
        "'val 1' and 'val_1'",
        "names that differ in letters or digits",
    ),
    (
        ("MODEL.LOAD_PROPOSALS", "True"),
        "DATASETS.PROPOSAL_FILES_TRAIN",
        "()",
        "a file for each data set",
    ),
    (
        ("MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"),
        "MODEL.PROPOSAL_GENERATOR.NAME",
        "'PrecomputedProposals'",
        "MODEL.LOAD_PROPOSALS is False; it must be True",
    ),
    (
        ("MODEL.META_ARCHITECTURE", "PanopticFPN"),
        "MODEL.META_ARCHITECTURE",
        "'PanopticFPN'",
        "'bad_input_train' of DATASETS.COCO_JSON has none; set it to 'GeneralizedRCNN'",
    ),
    (
        ("MODEL.META_ARCHITECTURE", "SemanticSegmentor"),
        "MODEL.META_ARCHITECTURE",
        "'SemanticSegmentor'",
        "'bad_input_train' of DATASETS.COCO_JSON has none; set it to 'GeneralizedRCNN'",
    ),
    (
        (*PROPOSALS, "DATASETS.PROPOSAL_FILES_TRAIN", f"('{COCO_PROPOSALS}',)"),
        "DATASETS.PROPOSAL_FILES_TRAIN",
        COCO_PROPOSALS,
        "a file with the proposals of 'bad_input_train'",
    ),
    (
        (
            *(*PROPOSALS, "DATASETS.PROPOSAL_FILES_TRAIN", "('mine.pkl',)"),
            *("DATASETS.PROPOSAL_FILES_TEST", f"('{COCO_PROPOSALS}',)"),
        ),
        "DATASETS.PROPOSAL_FILES_TEST",
        COCO_PROPOSALS,
        "a file with the proposals of 'bad_input_val'",
    ),
    (("DATALOADER.NUM_WORKERS", "-1"), "DATALOADER.NUM_WORKERS", "-1", "at least 0"),
    (
        ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorSampler"),
        "DATALOADER.SAMPLER_TRAIN",
        "'RepeatFactorSampler'",
        "'RepeatFactorTrainingSampler'",
    ),
    (
        ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"),
        "DATALOADER.REPEAT_THRESHOLD",
        "0.0",
        "(0, 1]",
    ),
    (("MODEL.RESNETS.DEPTH", "51"), "MODEL.RESNETS.DEPTH", "51", "18, 34, 50, 101, 152"),
    (("MODEL.RESNETS.RES5_DILATION", "4"), "MODEL.RESNETS.RES5_DILATION", "4", "1 or 2"),
    (("MODEL.RESNETS.NORM", "BatchNorm"), "MODEL.RESNETS.NORM", "'BatchNorm'", "'FrozenBN'"),
    (
        (*GN_RESNET, "MODEL.RESNETS.STEM_OUT_CHANNELS", "30"),
        "MODEL.RESNETS.STEM_OUT_CHANNELS",
        "is 30",
        "multiple of 32",
    ),
    (
        (*GN_RESNET, "MODEL.RESNETS.RES2_OUT_CHANNELS", "48"),
        "MODEL.RESNETS.RES2_OUT_CHANNELS",
        "is 48",
        "multiple of 32",
    ),
    (
        (*GN_RESNET, "MODEL.RESNETS.WIDTH_PER_GROUP", "8"),
        "MODEL.RESNETS.WIDTH_PER_GROUP",
        "is 8",
        "NUM_GROUPS, 1, must be a multiple of 32",
    ),
    (("MODEL.RESNETS.NUM_GROUPS", "0"), "MODEL.RESNETS.NUM_GROUPS", "0", "at least 1"),
    (
        ("MODEL.RESNETS.RES2_OUT_CHANNELS", "256"),
        "MODEL.RESNETS.RES2_OUT_CHANNELS",
        "R18/R34",
        "= 64",
    ),
    (
        ("MODEL.RESNETS.OUT_FEATURES", "['c2','c3']"),
        "MODEL.RESNETS.OUT_FEATURES",
        "['c2', 'c3']",
        "'res2', 'res3'",
    ),
    (("MODEL.FPN.IN_FEATURES", "[]"), "MODEL.FPN.IN_FEATURES", "[]", "'res2', 'res3'"),
    (
        (*STOCK_FPN, "MODEL.FPN.IN_FEATURES", "['res2','res3','res4']"),
        "MODEL.FPN.IN_FEATURES",
        "['res2', 'res3', 'res4']",
        "continues from 'p5'",
    ),
    (
        (*STOCK_FPN, "MODEL.FPN.IN_FEATURES", "['res2','res4','res5']"),
        "MODEL.FPN.IN_FEATURES",
        "['res2', 'res4', 'res5']",
        "successive powers of two",
    ),
    (
        (
            *(*RETINANET, "MODEL.BACKBONE.NAME", "build_retinanet_resnet_fpn_backbone"),
            *"MODEL.RESNETS.OUT_FEATURES ['res3','res4'] MODEL.FPN.IN_FEATURES ['res3','res4']".split(),
        ),
        "MODEL.FPN.IN_FEATURES",
        "['res3', 'res4']",
        "continues from 'res5'",
    ),
    (("MODEL.FPN.OUT_CHANNELS", "0"), "MODEL.FPN.OUT_CHANNELS", "0", "at least 1"),
    (("MODEL.FPN.OUT_CHANNELS", "100"), "MODEL.FPN.OUT_CHANNELS", "100", "multiple of 32"),
    (("MODEL.FPN.NORM", "gn"), "MODEL.FPN.NORM", "'gn'", "'GN'"),
    (("MODEL.FPN.FUSE_TYPE", "mean"), "MODEL.FPN.FUSE_TYPE", "'mean'", "'sum', 'avg'"),
    (
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[[32],[64],[128]]"),
        "MODEL.ANCHOR_GENERATOR.SIZES",
        "[[32], [64], [128]]",
        "each of the 5 features of MODEL.RPN.IN_FEATURES",
    ),
    (
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[[8],[16],[32],[64],[128,256]]"),
        "MODEL.ANCHOR_GENERATOR.SIZES",
        "[128, 256]]",
        "of the same length",
    ),
    (
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[]"),
        "MODEL.ANCHOR_GENERATOR.SIZES",
        "[]",
        "a list of lists of numbers above 0",
    ),
    (
        ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[0.0, 1.0]]"),
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS",
        "[[0.0, 1.0]]",
        "numbers above 0",
    ),
    (("MODEL.ANCHOR_GENERATOR.OFFSET", "1.0"), "MODEL.ANCHOR_GENERATOR.OFFSET", "1.0", "[0, 1)"),
    (
        ("MODEL.RPN.IN_FEATURES", "['p2','p3','p4','p5','p7']"),
        "MODEL.RPN.IN_FEATURES",
        "'p7'",
        "p2, p3, p4, p5, p6",
    ),
    (
        ("MODEL.RPN.BBOX_REG_LOSS_TYPE", "l1"),
        "MODEL.RPN.BBOX_REG_LOSS_TYPE",
        "'l1'",
        "'smooth_l1', 'giou', 'diou', 'ciou'",
    ),
    (
        ("MODEL.RPN.IOU_THRESHOLDS", "[0.7, 0.3]"),
        "MODEL.RPN.IOU_THRESHOLDS",
        "[0.7, 0.3]",
        "ascending",
    ),
    (("MODEL.RPN.CONV_DIMS", "[0]"), "MODEL.RPN.CONV_DIMS", "[0]", "at least 1, or -1"),
    (("MODEL.RPN.CONV_DIMS", "[-1, -2]"), "MODEL.RPN.CONV_DIMS", "[-1, -2]", "at least 1, or -1"),
    (
        ("MODEL.RPN.BBOX_REG_WEIGHTS", "(1.0,1.0,1.0,1.0,1.0)"),
        "MODEL.RPN.BBOX_REG_WEIGHTS",
        "(1.0, 1.0, 1.0, 1.0, 1.0)",
        "4 numbers",
    ),
    (
        ("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", "(1.0,1.0,1.0,1.0,1.0)"),
        "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS",
        "(1.0, 1.0, 1.0, 1.0, 1.0)",
        "4 numbers",
    ),
    (
        (*ROTATED, "MODEL.RPN.BBOX_REG_WEIGHTS", "(1.0,1.0,1.0,1.0)"),
        "MODEL.RPN.BBOX_REG_WEIGHTS",
        "(1.0, 1.0, 1.0, 1.0)",
        "5 numbers",
    ),
    *(
        ((key, name), key, repr(name), "'RRPN'")
        for key, name in (
            ("MODEL.PROPOSAL_GENERATOR.NAME", "RRPN"),
            ("MODEL.ANCHOR_GENERATOR.NAME", "RotatedAnchorGenerator"),
            ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignRotated"),
        )
    ),
    *(
        ((*ROTATED, key, name), key, repr(name), "'RRPN'")
        for key, name in (
            ("MODEL.PROPOSAL_GENERATOR.NAME", "RPN"),
            ("MODEL.ANCHOR_GENERATOR.NAME", "DefaultAnchorGenerator"),
            (HEADS, "MRCNNFocalROIHeads"),
            ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignV2"),
        )
    ),
    (
        (*RETINANET, "MODEL.ANCHOR_GENERATOR.NAME", "RotatedAnchorGenerator"),
        "MODEL.ANCHOR_GENERATOR.NAME",
        "'RotatedAnchorGenerator'",
        "'RRPN'",
    ),
    *(
        (
            (*options, f"MODEL.{node}.IOU_LABELS", labels),
            f"MODEL.{node}.IOU_LABELS",
            labels,
            "one number more",
        )
        for options, node, labels in (
            ((), "RPN", "[0, 1]"),
            ((), "ROI_HEADS", "[0, -1, 1]"),
            (RETINANET, "RETINANET", "[0, 1]"),
        )
    ),
    (("MODEL.RPN.NMS_THRESH", "70.0"), "MODEL.RPN.NMS_THRESH", "70.0", "at most 1"),
    (("MODEL.RPN.POSITIVE_FRACTION", "1.5"), "MODEL.RPN.POSITIVE_FRACTION", "1.5", "at most 1"),
    (("MODEL.RPN.BATCH_SIZE_PER_IMAGE", "0"), "MODEL.RPN.BATCH_SIZE_PER_IMAGE", "0", "at least 1"),
    (("MODEL.RPN.PRE_NMS_TOPK_TRAIN", "0"), "MODEL.RPN.PRE_NMS_TOPK_TRAIN", "0", "at least 1"),
    (("MODEL.RPN.POST_NMS_TOPK_TEST", "0"), "MODEL.RPN.POST_NMS_TOPK_TEST", "0", "at least 1"),
    (("MODEL.ROI_HEADS.NUM_CLASSES", "0"), "MODEL.ROI_HEADS.NUM_CLASSES", "0", "at least 1"),
    (("MODEL.ROI_HEADS.NUM_CLASSES", "5"), "MODEL.ROI_HEADS.NUM_CLASSES", "5", "set it to 4"),
    (
        ("MODEL.ROI_HEADS.IN_FEATURES", "['res4']"),
        "MODEL.ROI_HEADS.IN_FEATURES",
        "['res4']",
        "p2, p3, p4, p5, p6",
    ),
    *(
        (
            ("MODEL.ROI_HEADS.IN_FEATURES", str(names)),
            "MODEL.ROI_HEADS.IN_FEATURES",
            f"{names} of the strides",
            "each twice the one before",
        )
        for names in (["p2", "p4"], ["p3", "p2"], ["p2", "p4", "p3", "p5"])
    ),
    (
        ("MODEL.ROI_HEADS.IN_FEATURES", "[]"),
        "MODEL.ROI_HEADS.IN_FEATURES",
        "[]",
        "features of the backbone",
    ),
    (
        ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "50.0"),
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
        "50.0",
        "at most 1",
    ),
    (
        ("MODEL.ROI_HEADS.POSITIVE_FRACTION", "0.0"),
        "MODEL.ROI_HEADS.POSITIVE_FRACTION",
        "0.0",
        "above 0",
    ),
    (
        ("MODEL.ROI_HEADS.IOU_LABELS", "[0, 2]"),
        "MODEL.ROI_HEADS.IOU_LABELS",
        "[0, 2]",
        "-1, 0 or 1",
    ),
    (
        ("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "0"),
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE",
        "0",
        "at least 1",
    ),
    (
        ("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "0"),
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION",
        "0",
        "at least 1",
    ),
    (
        ("MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO", "-2"),
        "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO",
        "-2",
        "0 and -1 take",
    ),
    *(
        (
            (f"MODEL.ROI_{head}_HEAD.NORM", "GN", f"MODEL.ROI_{head}_HEAD.CONV_DIM", "100"),
            f"MODEL.ROI_{head}_HEAD.CONV_DIM",
            "is 100",
            "multiple of 32",
        )
        for head in ("BOX", "MASK")
    ),
    (
        ("MODEL.ROI_BOX_HEAD.NUM_FC", "0"),
        "MODEL.ROI_BOX_HEAD.NUM_FC",
        "are 0",
        "at least 1",
    ),
    (
        ("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", "(10.0, 10.0)"),
        "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS",
        "(10.0, 10.0)",
        "4 values",
    ),
    (
        ("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "iou"),
        "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE",
        "'iou'",
        "'giou'",
    ),
    (
        ("MODEL.ROI_MASK_HEAD.NORM", "LayerNorm"),
        "MODEL.ROI_MASK_HEAD.NORM",
        "'LayerNorm'",
        "'GN', 'LN', 'nnSyncBN', 'naiveSyncBN', 'naiveSyncBN_N'",
    ),
    (
        (*CASCADE, "MODEL.ROI_BOX_CASCADE_HEAD.IOUS", "(0.5, 0.6)"),
        "MODEL.ROI_BOX_CASCADE_HEAD.IOUS",
        "(0.5, 0.6)",
        "BBOX_REG_WEIGHTS has 3",
    ),
    (
        (*CASCADE, "MODEL.ROI_BOX_CASCADE_HEAD.IOUS", "(0.4, 0.5, 0.6)"),
        "MODEL.ROI_BOX_CASCADE_HEAD.IOUS",
        "(0.4, 0.5, 0.6)",
        "IOU_THRESHOLDS, 0.5",
    ),
    ((*KEYPOINTS, "5"), "TEST.KEYPOINT_OKS_SIGMAS", "[]", "NUM_KEYPOINTS, 5"),
    (
        (*KEYPOINTS, "17", "TEST.KEYPOINT_OKS_SIGMAS", "[0.1]"),
        "TEST.KEYPOINT_OKS_SIGMAS",
        "[0.1]",
        "NUM_KEYPOINTS, 17",
    ),
    (
        (*RETINANET, "MODEL.RETINANET.PRIOR_PROB", "0.0"),
        "MODEL.RETINANET.PRIOR_PROB",
        "0.0",
        "(0, 1)",
    ),
    (
        (*RETINANET, "MODEL.RETINANET.FOCAL_LOSS_ALPHA", "25.0"),
        "MODEL.RETINANET.FOCAL_LOSS_ALPHA",
        "25.0",
        "[0, 1]",
    ),
    (("SOLVER.IMS_PER_BATCH", "0"), "SOLVER.IMS_PER_BATCH", "0", "at least 1"),
    (("SOLVER.REFERENCE_WORLD_SIZE", "8"), "SOLVER.IMS_PER_BATCH", "4", "REFERENCE_WORLD_SIZE, 8"),
    (("SOLVER.REFERENCE_WORLD_SIZE", "-1"), "SOLVER.REFERENCE_WORLD_SIZE", "-1", "at least 0"),
    (("SOLVER.MAX_ITER", "0"), "SOLVER.MAX_ITER", "0", "at least 1"),
    (("SOLVER.MAX_ITER", "1e3"), "SOLVER.MAX_ITER", "1000.0", mismatch("int", "float")),
    (("SOLVER.BASE_LR", "-0.02"), "SOLVER.BASE_LR", "-0.02", "at least 0"),
    (("SOLVER.BASE_LR", "1e400"), "SOLVER.BASE_LR", "inf", "at least 0"),
    (("SOLVER.WEIGHT_DECAY", "-0.1"), "SOLVER.WEIGHT_DECAY", "-0.1", "at least 0"),
    (("SOLVER.WEIGHT_DECAY_BIAS", "x"), "SOLVER.WEIGHT_DECAY_BIAS", "'x'", "at least 0, or None"),
    (("SOLVER.BASE_LR", "1"), "SOLVER.BASE_LR", "1", mismatch("float", "int")),
    (("SOLVER.STEPS", "(960, 900)"), "SOLVER.STEPS", "(960, 900)", "ascending"),
    (("SOLVER.STEPS", "(960, 960)"), "SOLVER.STEPS", "(960, 960)", "ascending"),
    (("SOLVER.STEPS", "(960, 1200)"), "SOLVER.STEPS", "(960, 1200)", "below SOLVER.MAX_ITER, 1200"),
    (("SOLVER.STEPS", "(0.8, 0.9)"), "SOLVER.STEPS", "(0.8, 0.9)", "iterations from 1"),
    (("SOLVER.GAMMA", "0.0"), "SOLVER.GAMMA", "0.0", "above 0"),
    (("SOLVER.MOMENTUM", "9.0"), "SOLVER.MOMENTUM", "9.0", "at most 1"),
    (
        ("SOLVER.WARMUP_METHOD", "cosine"),
        "SOLVER.WARMUP_METHOD",
        "'cosine'",
        "'linear', 'constant'",
    ),
    (("SOLVER.WARMUP_ITERS", "-5"), "SOLVER.WARMUP_ITERS", "-5", "at least 0"),
    (
        ("SOLVER.RESCALE_INTERVAL", "True", "SOLVER.WARMUP_ITERS", "1200"),
        "SOLVER.WARMUP_ITERS",
        "1200",
        "below SOLVER.MAX_ITER, 1200",
    ),
    (
        ("SOLVER.LR_SCHEDULER_NAME", "CosineLR"),
        "SOLVER.LR_SCHEDULER_NAME",
        "'CosineLR'",
        "'WarmupCosineLR'",
    ),
    (
        ("DATALOADER.REPEAT_THRESHOLD", "many"),
        "DATALOADER.REPEAT_THRESHOLD",
        "many",
        mismatch("float", "str"),
    ),
    (
        ("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.BASE_LR_END", "0.5"),
        "SOLVER.BASE_LR_END",
        "0.5",
        "at most SOLVER.BASE_LR, 0.02",
    ),
    (("SOLVER.CHECKPOINT_PERIOD", "0"), "SOLVER.CHECKPOINT_PERIOD", "0", "at least 1"),
    ((CLIP + "CLIP_TYPE", "full_model"), CLIP + "CLIP_TYPE", "'full_model'", "'value', 'norm'"),
    ((CLIP + "CLIP_VALUE", "0.0"), CLIP + "CLIP_VALUE", "0.0", "above 0"),
    (("TEST.DETECTIONS_PER_IMAGE", "0"), "TEST.DETECTIONS_PER_IMAGE", "0", "negative for no limit"),
    (
        ("TEST.EXPECTED_RESULTS", "['bbox', 'AP', 38.5, 0.2]"),
        "TEST.EXPECTED_RESULTS",
        "['bbox', 'AP', 38.5, 0.2]",
        "[task, metric, value, tolerance]",
    ),
    (("OUTPUT_DIR", "''"), "OUTPUT_DIR", "''", "path of a folder"),
    (("SEED", "4294967296"), "SEED", "4294967296", "below 2 ** 32"),
    (
        ("MODEL.ROI_HEADS.NUM_CLASS", "2"),
        "MODEL.ROI_HEADS.NUM_CLASS",
        "Non-existent",
        "ROI_HEADS.NUM_CLASSES?",
    ),
    (("NUM_CLASSES", "2"), "NUM_CLASSES", "Non-existent", "MODEL.ROI_HEADS.NUM_CLASSES"),
    (("SOLVER.MAX_ITER=10",), "SOLVER.MAX_ITER", "=10", "must be a list of pairs"),
    (("SOLVER.MAX_ITER=10", "SEED=3"), "SOLVER.MAX_ITER", "=10", "two words without ="),
    (("solver.max_iter", "3"), "solver.max_iter", "Non-existent", "did you mean SOLVER.MAX_ITER?"),
    (("SOLVER.BASE_LR", "1"), "SOLVER.BASE_LR", "vs. 1", "; write 1.0"),
    (("SOLVER.MAX_ITER", "1e4"), "SOLVER.MAX_ITER", "vs. 10000.0", "; write 10000"),
    (
        ("TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "()"),
        "TEST.AUG.MIN_SIZES",
        "()",
        "a list of one or more sizes",
    ),
    (("SOLVER", "3"), "SOLVER is set to '3'", "a mapping", "such as SOLVER."),
]

# The text of a config file instead of options.
FILES = [
    (
        "SOLVER: {MAX_ITERS: 10}",
        "SOLVER.MAX_ITERS",
        "Non-existent",
        "did you mean SOLVER.MAX_ITER?",
    ),
    ("ROI_HEADS: {NUM_CLASSES: 2}", "ROI_HEADS", "Non-existent", "did you mean MODEL.ROI_HEADS?"),
    ("SOLVER: {MAX_ITER: many}", "SOLVER.MAX_ITER", "many", mismatch("int", "str")),
    (
        "SOLVER: {MAX_ITER: }",
        "SOLVER.MAX_ITER",
        "is None",
        "of the type int, such as the default 40000",
    ),
    ("SOLVER:", "bad.yaml: SOLVER", "is None", "a mapping of config keys, or be left out"),
    ("MODEL:\n  # MASK_ON: True", "bad.yaml: MODEL", "is None", "a mapping of config keys"),
    ("MODEL: 3", "bad.yaml: MODEL", "is 3", "a mapping of config keys"),
    (
        "MODEL: {ROI_BOX_HEAD: {FOCAL: null}}",
        "bad.yaml: MODEL.ROI_BOX_HEAD.FOCAL",
        "is None",
        "a mapping of config keys",
    ),
    ("1: 2", "bad.yaml", "the key 1 in line 1", "must be a name"),
    ("MODEL: {on: True}", "bad.yaml", "the key MODEL.on in line 1", "must be a name"),
    ('DATASETS: {TRAIN: ("a",)}', "bad.yaml", "the key DATASETS.) in line 1", "must be a list"),
    ("INPUT: {MIN_SIZE_TRAIN: (1, 2)}", "bad.yaml", "the key INPUT.2) in line 1", "be a list"),
    ("MODEL: {MASK_ON: 1}", "MODEL.MASK_ON", "1", mismatch("bool", "int")),
    ("DATASETS: {CHECK: off}", "DATASETS.CHECK", "False", "unless they stand in quotes"),
    ("DATASETS: {TRAIN: my_train}", "DATASETS.TRAIN", "my_train", mismatch("tuple", "str")),
    (
        "DATASETS: {COCO_JSON: {my_train: [a.json, images]}}",
        "DATASETS.COCO_JSON",
        "'my_train'",
        '["name", "json file", "image root"]',
    ),
    (
        "MODEL: {MASK_ON: True}\nMODEL: {DEVICE: cpu}",
        "the key MODEL twice",
        "lines 1 and 2",
        "once",
    ),
    ("SOLVER:\n  MAX_ITER: 5\n  MAX_ITER: 6", "SOLVER.MAX_ITER twice", "lines 2 and 3", "once"),
    ("SOLVER: {MAX_ITER: 5, MAX_ITER: 6}", "SOLVER.MAX_ITER twice", "lines 1 and 1", "once"),
    ("", "bad.yaml", "is empty", "a mapping of config keys"),
    ("- MODEL\n- SOLVER", "bad.yaml", "holds a list", "a mapping of config keys"),
    ("MODEL.MASK_ON True", "bad.yaml", "holds a text", "a mapping of config keys"),
    ("MODEL: {MASK_ON: True", "bad.yaml", "line 1", "expected ',' or '}'"),
    ("SOLVER.MAX_ITER: 3", "SOLVER.MAX_ITER", "Non-existent", "write SOLVER: {MAX_ITER: ...}"),
    (
        "MODEL.ROI_HEADS.NUM_CLASSES: 3",
        "MODEL.ROI_HEADS.NUM_CLASSES",
        "Non-existent",
        "write MODEL: {ROI_HEADS: {NUM_CLASSES: ...}}",
    ),
    *[
        (f"_BASE_: {base}", "bad.yaml", "line 1 a _BASE_", "the path of a config file")
        for base in ("3", "", "yes", "[3]", "{a: b}", "''")
    ],
    (
        f"_BASE_: {CONFIGS / 'nuclei.yaml'}\nDATASETS: {{COCO_JSON: {{a: b}}}}",
        "bad.yaml",
        "'COCO_JSON'",
        "in both files",
    ),
    ("_BASE_: nowhere.yaml", "_BASE_", "/nowhere.yaml", "relative to the file that names it"),
    (
        "MODEL: {WEIGHTS: !!python/object/apply:os.getcwd []}",
        "bad.yaml, line 1",
        "python/object/apply:os.getcwd",
        "MRCNN_PLUGIN_ALLOW_UNSAFE_YAML=1",
    ),
]

# Keys that nothing reads are warned of before the training, because a run of several configs may set them for all.
UNUSED = [
    (
        ("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "MODEL.FPN.UPSAMPLE", "bicubic"),
        "MODEL.FPN.UPSAMPLE",
        "'bicubic'",
        "MODEL.BACKBONE.NAME is 'build_resnet_fpn_backbone'",
    ),
    (
        ("MODEL.MRCNN_PLUGIN.BIFPN.NUM_REPEATS", "2"),
        "MODEL.MRCNN_PLUGIN.BIFPN.NUM_REPEATS",
        "2",
        "MODEL.BACKBONE.NAME is 'build_mrcnn_resnet_upsample_fpn_backbone'",
    ),
    (
        ("MODEL.RPN.FOCAL.GAMMA", "1.0"),
        "MODEL.RPN.FOCAL.GAMMA",
        "1.0",
        "MODEL.PROPOSAL_GENERATOR.NAME is 'RPN'",
    ),
    ((FOCAL + "PRIOR_PROB", "0.5"), FOCAL + "PRIOR_PROB", "0.5", f"{LOSS} is 'softmax_focal'"),
]


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    """The quickstart with two data sets of its own, without Detectron2's default of weights and device."""
    root = tmp_path_factory.mktemp("bad_input")
    json_file = generate_shapes(str(root / "data"), 2, seed=0)
    entries = [
        [f"bad_input_{use}", json_file, str(root / "data" / "images")] for use in ("train", "val")
    ]
    path = root / "good.yaml"
    path.write_text(
        f"_BASE_: {CONFIGS / 'quickstart.yaml'}\n"
        f"DATASETS: {{COCO_JSON: {entries}, TRAIN: [bad_input_train], TEST: [bad_input_val]}}\n"
        f"OUTPUT_DIR: {root / 'out'}\n"
    )
    yield path
    for name in DatasetCatalog.list():
        if name.startswith("bad_input_"):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def skip_what_is_missing(options):
    """Skips a test that sets a key of a newer Detectron2."""
    known = {name for name, _ in leaves(get_cfg())}
    missing = [option for option in options if option in NEWER and option not in known]
    if missing:
        pytest.skip(f"this Detectron2 has no {missing[0]}")


def run(config_file, options=(), args=TRAIN):
    skip_what_is_missing(options)
    cfg = load_cfg(str(config_file), options)
    cfg.freeze()
    engine.check(cfg, args)


def message(call, *arguments):
    with pytest.raises(Exception) as caught:
        call(*arguments)
    return str(caught.value)


def shown(rows):
    return pytest.mark.parametrize(
        "written, key, value, valid",
        rows,
        ids=[re.sub(r"[^\w.= -]+", "", f"{key} {value}")[:60] for _, key, value, _ in rows],
    )


@shown(BUILT + OURS + STOCK)
def test_a_bad_value_is_named_before_anything_is_built(written, key, value, valid, config_file):
    said = message(run, config_file, written)
    assert key in said and value in said and valid in said, said


@shown(FILES)
def test_a_bad_file_is_named(written, key, value, valid, tmp_path):
    (tmp_path / "bad.yaml").write_text(written)
    said = message(
        run, tmp_path / "bad.yaml", ["MODEL.DEVICE", "cpu", "DATASETS.TRAIN", "('some',)"]
    )
    assert key in said and value in said and valid in said, said


@pytest.mark.parametrize("child", ["", "MODEL: {MASK_ON: True}"])
def test_an_empty_node_is_named_in_the_base_that_has_it(child, tmp_path):
    (tmp_path / "base.yaml").write_text("MODEL:")
    (tmp_path / "config.yaml").write_text(f"_BASE_: base.yaml\n{child}")
    said = message(load_cfg, str(tmp_path / "config.yaml"))
    assert f"{tmp_path}/base.yaml: MODEL is None; it must be a mapping" in said


@shown(BUILT)
def test_a_script_that_only_builds_the_model_says_the_same(written, key, value, valid, config_file):
    skip_what_is_missing(written)
    cfg = load_cfg(str(config_file), written)
    with torch.device("meta"):  # It has no memory, and is fast.
        said = message(build_model, cfg)
    assert key in said and value in said and valid in said, said


@shown(UNUSED)
def test_a_key_that_nothing_reads_is_named(written, key, value, valid, config_file):
    (said,) = find_unused_keys(load_cfg(str(config_file), written))
    assert key in said and value in said and valid in said, said


class TestWhatRunsWhenAFileIsRead:
    @pytest.fixture(params=["itself", "its base"])
    def tagged(self, request, tmp_path):
        """A config file that makes a folder when it is read unsafely."""
        path = tmp_path / "tagged.yaml"
        arguments = f"[{tmp_path / 'made'}]"
        path.write_text(f"MODEL: {{WEIGHTS: !!python/object/apply:os.mkdir {arguments}}}")
        if request.param == "its base":
            (tmp_path / "config.yaml").write_text("_BASE_: tagged.yaml")
            path = tmp_path / "config.yaml"
        return path

    def test_a_config_runs_no_code(self, tagged, tmp_path):
        said = message(load_cfg, str(tagged))
        assert f"{tmp_path}/tagged.yaml, line 1" in said and "python/object/apply:os.mkdir" in said
        assert not (tmp_path / "made").exists()

    @pytest.mark.parametrize("how", ["argument", "environment"])
    def test_a_config_runs_code_if_that_is_allowed(self, how, tagged, tmp_path, monkeypatch):
        if how == "environment":
            monkeypatch.setenv("MRCNN_PLUGIN_ALLOW_UNSAFE_YAML", "1")
        # The file is read twice, so that the second folder is there already.
        with pytest.raises(FileExistsError):
            load_cfg(str(tagged), allow_unsafe=how == "argument")
        assert (tmp_path / "made").exists()

    def test_the_files_of_detectron2_are_read_as_they_are(self, tagged, tmp_path):
        name = model_zoo.get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.yaml")
        (tmp_path / "mine.yaml").write_text(f"_BASE_: {name}\nMODEL: {{DEVICE: cpu}}")
        sizes = load_cfg(str(tmp_path / "mine.yaml")).MODEL.ANCHOR_GENERATOR.SIZES
        assert [size[0] for size in sizes] == [32, 64, 128, 256, 512]
        preferring = PreferringConfig.of(get_cfg(), str(tmp_path / "mine.yaml"))
        assert preferring.MODEL.ANCHOR_GENERATOR.SIZES == sizes
        (tmp_path / "both.yaml").write_text(f"_BASE_: [{name}, {tagged}]")
        assert "os.mkdir" in message(load_cfg, str(tmp_path / "both.yaml"))
        assert "os.mkdir" in message(PreferringConfig.of, get_cfg(), str(tmp_path / "both.yaml"))
        assert not (tmp_path / "made").exists()

    @pytest.mark.parametrize("suffix, runs", [("pth", False), ("pyth", False), ("pkl", True)])
    def test_a_checkpoint_runs_code_only_if_it_is_a_plain_pickle(self, suffix, runs, tmp_path):
        class Attack:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "made"),)

        file = tmp_path / f"weights.{suffix}"
        content = {"model": {"weight": Attack()}, "model_state": {}, "__author__": "a test"}
        if suffix == "pkl":
            file.write_bytes(pickle.dumps(content))
        else:
            torch.save(content, file)
        said = message(FittingCheckpointer(torch.nn.Linear(1, 1)).load, str(file))
        assert (tmp_path / "made").exists() == runs
        assert runs or (str(file) in said and "weights_only" in said)


def test_every_key_of_this_package_has_a_row():
    assert {key.name for key in KEYS} <= {key.partition("[")[0] for _, key, _, _ in BUILT + OURS}


def test_evaluation_needs_a_test_set_and_no_training_keys(config_file, tmp_path):
    (tmp_path / "weights.pth").touch()
    weights = ["MODEL.WEIGHTS", str(tmp_path / "weights.pth")]
    run(config_file, [*weights, "DATASETS.TRAIN", "()", "SOLVER.MAX_ITER", "0"], EVALUATE)
    said = message(run, config_file, [*weights, "DATASETS.TEST", "()"], EVALUATE)
    assert "DATASETS.TEST is ()" in said and "--eval-only" in said


def test_a_batch_must_be_divisible_among_the_workers(config_file, monkeypatch):
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 3)
    said = message(run, config_file, ["SOLVER.IMS_PER_BATCH", "4"])
    assert "SOLVER.IMS_PER_BATCH is 4" in said and "multiple of the number of workers, 3" in said
    run(config_file, ["SOLVER.IMS_PER_BATCH", "6"])
    run(config_file, ["SOLVER.REFERENCE_WORLD_SIZE", "2"])


def test_the_values_of_other_peoples_components_are_their_own(config_file, monkeypatch):
    class TheirROIHeads(StandardROIHeads):
        @classmethod
        def from_config(cls, cfg, input_shape):
            raise AssertionError("It was built.")

    theirs = {"TheirROIHeads": TheirROIHeads, "build_their_resnet_fpn": lambda cfg, shape: 1 / 0}
    for registry in (ROI_HEADS_REGISTRY, BACKBONE_REGISTRY):
        monkeypatch.setattr(registry, "_obj_map", {**registry._obj_map, **theirs})
    run(
        config_file,
        ["MODEL.BACKBONE.NAME", "build_their_resnet_fpn", "MODEL.FPN.IN_FEATURES", "['c3']"],
    )
    heads = [HEADS, "TheirROIHeads", "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "TheirPooler"]
    run(config_file, [*heads, "MODEL.ROI_MASK_HEAD.POOLER_TYPE", "TheirPooler"])


def test_the_rules_are_of_keys_that_exist(config_file):
    known = {name for name, _ in leaves(load_cfg(str(config_file)))}
    if FED not in known:  # an older Detectron2
        known.update(NEWER)
    assert {key for rule in RULES for key in rule.keys.split()} <= known


def test_mixed_precision_needs_a_gpu_in_a_training_only(config_file, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    amp = ["SOLVER.AMP.ENABLED", "True"]
    said = message(run, config_file, amp)
    assert "SOLVER.AMP.ENABLED is True; it must be False" in said
    check_config(load_cfg(str(config_file), amp), EVALUATE)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    run(config_file, amp)


def test_good_forms_of_options_and_files(config_file, tmp_path):
    crop = {"ENABLED": True, "TYPE": "relative", "SIZE": [0.5, 0.5]}
    assert load_cfg(str(config_file), ["INPUT.CROP", CfgNode(crop)]).INPUT.CROP.TYPE == "relative"
    run(config_file, ["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(0, 400)"])
    file = tmp_path / "several.yaml"
    file.write_text(f"_BASE_: [{config_file}, {config_file}]\nSEED: 3")
    assert load_cfg(str(file)).SEED == 3
    said = message(load_cfg, str(config_file), ["MODEL.WEIGHTS", "http://x?a=b", "SEED"])
    assert "two words" not in said


def test_a_detectron2_with_fewer_keys_passes(config_file):
    cfg = load_cfg(str(config_file))
    cfg.SOLVER.pop("BASE_LR_END", None)
    cfg.MODEL.ROI_BOX_HEAD.pop("USE_FED_LOSS", None)
    check_config(cfg, TRAIN)


@pytest.mark.parametrize("module", ["theirs", "detectron2.projects.point_rend.mask_head"])
def test_the_heads_of_other_projects_pass(config_file, monkeypatch, module):
    def head(cfg, shape):
        raise AssertionError("It was built.")

    head.__module__ = module
    for registry in (
        ROI_BOX_HEAD_REGISTRY,
        ROI_HEADS_REGISTRY,
        ROI_MASK_HEAD_REGISTRY,
        SEM_SEG_HEADS_REGISTRY,
    ):
        monkeypatch.setattr(registry, "_obj_map", {**registry._obj_map, "TheirHead": head})
    # A function may be registered in the place of a class.
    poolers = [f"MODEL.ROI_{name}_HEAD.POOLER_TYPE" for name in ("BOX", "MASK")]
    run(config_file, [HEADS, "TheirHead", *(x for key in poolers for x in (key, "ROIAlignV2"))])
    box = "MODEL.ROI_BOX_HEAD.NAME TheirHead MODEL.ROI_BOX_HEAD.NUM_FC 0".split()
    run(config_file, box)
    # As in Detectron2's project PointRend.
    mask = ["MODEL.ROI_MASK_HEAD.NAME", "TheirHead", "MODEL.ROI_MASK_HEAD.POOLER_TYPE", ""]
    run(config_file, mask)
    semantic = "MODEL.META_ARCHITECTURE SemanticSegmentor MODEL.SEM_SEG_HEAD.NAME TheirHead"
    run(config_file, semantic.split())


def test_cascades_and_losses_of_other_projects_pass(config_file, monkeypatch):
    theirs = type("TheirCascade", (CascadeROIHeads,), {"__module__": "theirs"})
    names = {**ROI_HEADS_REGISTRY._obj_map, "TheirCascade": theirs}
    monkeypatch.setattr(ROI_HEADS_REGISTRY, "_obj_map", names)
    poolers = [f"MODEL.ROI_{head}_HEAD.POOLER_TYPE" for head in ("BOX", "MASK")]
    stock = [item for key in poolers for item in (key, "ROIAlignV2")]
    run(config_file, [HEADS, "TheirCascade", *stock, FED, "True"])


def test_architectures_of_other_projects_may_have_other_channels(config_file, monkeypatch):
    names = {**META_ARCH_REGISTRY._obj_map, "TheirModel": lambda cfg: 1 / 0}
    monkeypatch.setattr(META_ARCH_REGISTRY, "_obj_map", names)
    mean = ["MODEL.PIXEL_MEAN", "[1.0, 2.0, 3.0, 4.0]"]
    run(config_file, ["MODEL.META_ARCHITECTURE", "TheirModel", *mean])


def test_proposals_are_needed_only_for_data_sets_that_are_read(config_file, tmp_path):
    (tmp_path / "weights.pth").touch()
    common = [*PROPOSALS, "MODEL.WEIGHTS", str(tmp_path / "weights.pth")]
    files = "DATASETS.PROPOSAL_FILES_"
    run(config_file, [*common, f"{files}TEST", "('some.pkl',)"], EVALUATE)
    both = [f"{files}TRAIN", "('some.pkl',)", f"{files}TEST", "('some.pkl',)"]
    run(config_file, [*common, *both, "DATASETS.TEST", "()"])
    said = message(run, config_file, [*common, *both[:2]])
    assert "PROPOSAL_FILES_TEST is ()" in said


@pytest.mark.parametrize("architecture", ["PanopticFPN", "SemanticSegmentor"])
def test_semantic_segmentation_needs_ground_truth_for_a_training_only(
    config_file, tmp_path, architecture
):
    (tmp_path / "weights.pth").touch()
    options = ["MODEL.META_ARCHITECTURE", architecture, "MODEL.WEIGHTS"]
    options.append(str(tmp_path / "weights.pth"))
    run(config_file, options, EVALUATE)
    # Other code has registered this one, and may have the ground truth.
    run(config_file, [*options, "DATASETS.TRAIN", "('mrcnn_shapes_train',)"])


def test_proposals_of_coco_pass_for_data_sets_of_other_code_and_in_an_evaluation(
    config_file, tmp_path
):
    (tmp_path / "weights.pth").touch()
    files = [f"DATASETS.PROPOSAL_FILES_{key}" for key in ("TRAIN", "TEST")]
    options = [*PROPOSALS, "MODEL.WEIGHTS", str(tmp_path / "weights.pth")]
    for file in files:
        options += [file, f"('{COCO_PROPOSALS}',)"]
    run(config_file, options, EVALUATE)
    options += ["DATASETS.TRAIN", "('mrcnn_shapes_train',)"]
    run(config_file, [*options, "DATASETS.TEST", "('mrcnn_shapes_val',)"])


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_weights_need_not_exist_where_a_checkpoint_is_resumed(
    config_file, tmp_path, resume, has_checkpoint
):
    if has_checkpoint:
        (tmp_path / "last_checkpoint").touch()
    options = ["MODEL.WEIGHTS", "nowhere.pth", "OUTPUT_DIR", str(tmp_path)]
    args = Namespace(eval_only=False, resume=resume)
    if resume and has_checkpoint:
        run(config_file, options, args)
    else:
        assert "MODEL.WEIGHTS is 'nowhere.pth'" in message(run, config_file, options, args)


def test_a_gpu_must_be_there(config_file, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for device in ("cuda", "cuda:1", "cpu"):
        run(config_file, ["MODEL.DEVICE", device])
    said = message(run, config_file, ["MODEL.DEVICE", "cuda:2"])
    assert "MODEL.DEVICE is 'cuda:2'; it must be 'cpu', 'cuda', or 'cuda:N'" in said


def test_weights_may_be_matched_by_heuristics(config_file, tmp_path):
    (tmp_path / "weights.pkl").touch()
    weights = ["MODEL.WEIGHTS", f"{tmp_path}/weights.pkl?matching_heuristics=True"]
    run(config_file, weights, EVALUATE)
    check_weights(load_cfg(str(config_file), weights))


def test_a_file_may_merge_several_mappings(tmp_path):
    (tmp_path / "config.yaml").write_text("SOLVER: {<<: {MAX_ITER: 5}, <<: {GAMMA: 0.5}}")
    solver = load_cfg(str(tmp_path / "config.yaml")).SOLVER
    assert (solver.MAX_ITER, solver.GAMMA) == (5, 0.5)


def test_no_weights_and_no_norm_may_be_none(tmp_path, config_file):
    model = "{WEIGHTS: , FPN: {NORM: }}"
    (tmp_path / "config.yaml").write_text(f"_BASE_: {config_file}\nMODEL: {model}")
    run(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    "changes",
    [
        (),
        C4,
        # The mask head has the pooler of the box head.
        (*C4, HEADS, "Res5ROIHeads", "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignV2"),
        RETINANET,
        CASCADE,
        BIFPN,
        FOCAL_RPN,
        STAR,
        ROTATED,
        STOCK_FPN,
        (*GN_RESNET, "MODEL.RESNETS.RES2_OUT_CHANNELS", "256"),
        (*GN_RESNET, "MODEL.RESNETS.NUM_GROUPS", "32", "MODEL.RESNETS.WIDTH_PER_GROUP", "4"),
        ("MODEL.RESNETS.NORM", "GN", "MODEL.RESNETS.WIDTH_PER_GROUP", "8"),
        ("MODEL.ROI_HEADS.IN_FEATURES", "['p3', 'p4']"),
        ("MODEL.RPN.CONV_DIMS", "[-1, 32]"),
        ("MODEL.RPN.CONV_DIMS", "[]"),
        ("VIS_PERIOD", "-1"),
        ("SOLVER.STEPS", "(960.0, 1000.5)"),
        ("SOLVER.STEPS", "(1200,)", "SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"),
        ("SOLVER.RESCALE_INTERVAL", "True", "SOLVER.WARMUP_ITERS", "1199"),
        ("SOLVER.WARMUP_ITERS", "1200"),
        ("SOLVER.WEIGHT_DECAY_BIAS", "0.0"),
        ("SOLVER.BASE_LR_END", "0.5"),
        ("SOLVER.BASE_LR_END", "0.02", "SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"),
        ("MODEL.ROI_HEADS.POSITIVE_FRACTION", "1.0"),
        ("TEST.DETECTIONS_PER_IMAGE", "-1"),
        (
            *("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"),
            *("DATALOADER.REPEAT_THRESHOLD", "1.0"),
        ),
        # What nothing reads may be of another project.
        ("INPUT.CROP.TYPE", "theirs"),
        (CLIP + "ENABLED", "False", CLIP + "CLIP_TYPE", "full_model"),
        ("TEST.AUG.MIN_SIZES", "()"),
        ("MODEL.META_ARCHITECTURE", "ProposalNetwork", HEADS, "theirs"),
        (*C4, "MODEL.ROI_BOX_HEAD.NAME", "''"),
        (
            *("MODEL.MASK_ON", "False", "MODEL.ROI_MASK_HEAD.NAME", "theirs"),
            *("MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", "0"),
        ),
        ("MODEL.MASK_ON", "False", "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", "0"),
        (
            *(HEADS, "StandardROIHeads", "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignV2"),
            *("MODEL.MASK_ON", "False", "MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlignBicubic"),
        ),
        (*KEYPOINTS, "5", "DATASETS.TEST", "()"),
    ],
)
def test_good_values_pass(changes, config_file):
    run(config_file, changes)


@pytest.mark.parametrize("name", [name for name in CONFIG_NAMES if "3x" not in name])
def test_the_configs_pass(name):
    check_config(full_config(name), TRAIN)
