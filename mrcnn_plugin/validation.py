"""Checks of a whole config before anything is built from it: :func:`check_config`.

The constructors of this package check their arguments, and name the config keys. Detectron2 finds many
wrong values late, or does not say which key has them. `RULES` and the functions below say it for keys
that commonly go wrong. The model is then built on torch's device "meta", where tensors have a shape
but no memory, so that all constructors check their arguments too.
"""

import itertools
import math
import os
from argparse import Namespace
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_KEYPOINT_HEAD_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
    build_backbone,
    build_resnet_backbone,
)
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY
from detectron2.modeling.roi_heads import CascadeROIHeads, Res5ROIHeads, StandardROIHeads
from detectron2.utils import comm
from fvcore.common.registry import Registry

from .checkpoint import is_missing
from .config import get_cfg, hint_at, leaves, value_of, without_federated_loss
from .data.checks import check_values
from .data.coco_json import check_entries
from .evaluation import results_folder
from .modeling.backbone.pyramid import check_pyramid
from .modeling.poolers import POOLER_TYPES
from .modeling.unused_keys import is_ours, pooler_types
from .output_dir import has_checkpoint

# The values of INPUT.FORMAT, which are modes of Pillow and two that Detectron2 adds.
_CHANNELS = {
    "BGR": 3,
    "RGB": 3,
    "L": 1,
    "RGBA": 4,
    "CMYK": 4,
    "YCbCr": 3,
    "HSV": 3,
    "LAB": 3,
    "YUV-BT.601": 3,
}


def check_config(cfg: CfgNode, args: Namespace) -> None:
    """Checks the values of a config, and whether its components go together.

    Args:
        cfg: a config with the keys of this package. Its data sets need not be registered.
        args: the parsed arguments of Detectron2's `default_argument_parser`. With `eval_only`, keys that
            only a training reads are not checked.

    Raises:
        ValueError: a value is wrong. The message names its key, the value, and what would be valid.
        FileNotFoundError: `MODEL.WEIGHTS` is a local file that does not exist.
    """
    _check_none(cfg)
    parts = _parts(cfg, train=not args.eval_only)
    for name, part, registry in NAMES:
        if part in parts:
            _check_name(cfg, name, registry)
    values = dict(leaves(cfg))
    for rule in RULES:
        if rule.part in parts:
            for key in rule.keys.split():
                if key not in values:  # Another version of Detectron2 has other keys.
                    continue
                value = values[key]
                if not rule.check.holds(value):
                    raise ValueError(f"{key} is {value!r}; it must be {rule.check.valid}.")
    check_entries(cfg.DATASETS.COCO_JSON)
    check_values(cfg.DATASETS.CHECK, cfg.DATASETS.ALLOW)
    if _is_known(META_ARCH_REGISTRY, cfg.MODEL.META_ARCHITECTURE):
        _check_images(cfg)
    _check_tests(cfg, args)
    if cfg.MODEL.LOAD_PROPOSALS:
        _check_proposals(cfg, args)
    _check_weights(cfg, args)
    if "train" in parts:
        _check_solver(cfg)
    if {"train", "semantic segmentation"} <= parts and (
        # A head of another project may do without. PanopticFPN itself does not.
        cfg.MODEL.META_ARCHITECTURE == "PanopticFPN"
        or _is_known(SEM_SEG_HEADS_REGISTRY, cfg.MODEL.SEM_SEG_HEAD.NAME)
    ):
        _check_semantic_segmentation(cfg)
    if "ROI heads" in parts:
        _check_roi_heads(cfg, parts)
    if "RetinaNet" in parts:
        _check_retinanet(cfg)
    for part, node in (
        ("RPN", "RPN"),
        ("known ROI heads", "ROI_HEADS"),
        ("RetinaNet", "RETINANET"),
    ):
        if part in parts:
            _check_labels(cfg, node)
    for part, node, channels in (
        ("ResNet", "RESNETS", "STEM_OUT_CHANNELS"),
        ("ResNet", "RESNETS", "RES2_OUT_CHANNELS"),
        ("FPN", "FPN", "OUT_CHANNELS"),
        ("box head", "ROI_BOX_HEAD", "CONV_DIM"),
        ("masks", "ROI_MASK_HEAD", "CONV_DIM"),
    ):
        if part in parts:
            _check_groups(cfg, f"MODEL.{node}.NORM", f"MODEL.{node}.{channels}")
    if "ResNet" in parts:
        _check_bottlenecks(cfg)
    _check_model(cfg, parts)


# What a value must be.


class Check(NamedTuple):
    """What a value must be.

    Attributes:
        holds: whether a value is so.
        valid: the same in words, after "it must be".
    """

    holds: Callable[[Any], bool]
    valid: str


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def one_of(*choices: str) -> Check:
    return Check(lambda value: value in choices, f"one of {', '.join(map(repr, choices))}")


def whole(low: int, note: str = "") -> Check:
    return Check(lambda value: type(value) is int and value >= low, f"at least {low}{note}")


def number(low: float, high: float = math.inf, *, above: bool = False) -> Check:
    """A finite number of [low, high], or of (low, high] if it must be above `low`."""
    bound = "above" if above else "at least"
    valid = f"a number {bound} {low:g}" + (f" and at most {high:g}" if high < math.inf else "")
    return Check(
        lambda value: _is_number(value) and low <= value <= high and not (above and value == low),
        valid,
    )


def several(check: Check, count: int | None = None) -> Check:
    """A list in which a check holds for each value."""
    return Check(
        lambda value: (
            isinstance(value, (list, tuple))
            and (len(value) == count if count else len(value) > 0)
            and all(map(check.holds, value))
        ),
        f"a list of {count or 'one or more'} values, each {check.valid}",
    )


def _is_norm(value: Any) -> bool:
    try:
        with torch.device("meta"):
            get_norm(value, 32)
    except (KeyError, TypeError):
        return False
    return True


def _is_device(value: str) -> bool:
    try:
        device = torch.device(value)
    except RuntimeError:
        return False
    return device.type != "cuda" or (device.index or 0) < torch.cuda.device_count()


_POSITIVE = number(0, above=True)
_FRACTION = number(0, 1)
_STRINGS = Check(
    lambda value: all(isinstance(name, str) for name in value),
    "a tuple of names, such as ('my_train',)",
)
_WEIGHTS = several(_POSITIVE, 4)
_BOX_WEIGHTS = Check(
    lambda value: _WEIGHTS.holds(value) or several(_POSITIVE, 5).holds(value),
    f"{_WEIGHTS.valid}, or 5 for rotated boxes",
)
_POOLER_TYPE = one_of(*POOLER_TYPES, "ROIAlign", "ROIAlignV2", "ROIPool", "ROIAlignRotated")
_SAMPLING_RATIO = whole(-1, "; 0 and -1 take as many samples as a bin has pixels")
_LABELS = several(Check(lambda value: value in (-1, 0, 1), "-1, 0 or 1"))
_THRESHOLDS = Check(
    lambda value: several(_POSITIVE).holds(value) and list(value) == sorted(value),
    "a list of ascending numbers above 0",
)
_BOX_LOSS = one_of("smooth_l1", "giou", "diou", "ciou")
_NORM = Check(
    _is_norm,
    "'' or one of 'BN', 'SyncBN', 'FrozenBN', 'GN', 'LN', 'nnSyncBN', 'naiveSyncBN', 'naiveSyncBN_N'",
)
_FEATURES = Check(
    lambda value: _STRINGS.holds(value) and 0 < len(value) == len(set(value)),
    "a list of different features of the backbone",
)
_STAGES = several(one_of("stem", "res2", "res3", "res4", "res5"))


class Rule(NamedTuple):
    """What the values of some keys must be.

    Attributes:
        part: the part of a run that reads the keys, see :func:`_parts`.
        keys: their full names, separated by spaces.
        check: what their values must be.
    """

    part: str
    keys: str
    check: Check


RULES = (
    Rule(
        "all",
        "MODEL.DEVICE",
        Check(_is_device, "'cpu', 'cuda', or 'cuda:N' with the number of a GPU from 0"),
    ),
    Rule("all", "MODEL.PIXEL_MEAN", several(Check(_is_number, "a finite number"))),
    Rule("all", "MODEL.PIXEL_STD", several(_POSITIVE)),
    Rule("all", "INPUT.FORMAT", one_of(*_CHANNELS)),
    Rule("all", "INPUT.MASK_FORMAT", one_of("polygon", "bitmask")),
    Rule("all", "INPUT.MIN_SIZE_TEST", whole(0, ", in pixels; 0 leaves images as they are")),
    Rule("all", "INPUT.MAX_SIZE_TEST", whole(1, ", in pixels")),
    Rule("all", "DATASETS.TRAIN DATASETS.TEST", _STRINGS),
    Rule("all", "DATALOADER.NUM_WORKERS", whole(0)),
    Rule(
        "all",
        "TEST.DETECTIONS_PER_IMAGE",
        Check(lambda value: value != 0, "at least 1, or negative for no limit"),
    ),
    Rule(
        "all",
        "TEST.EXPECTED_RESULTS",
        Check(
            lambda value: all(isinstance(x, (list, tuple)) and len(x) == 4 for x in value),
            "a list of [task, metric, value, tolerance], such as [['bbox', 'AP', 38.5, 0.2]]",
        ),
    ),
    Rule("all", "OUTPUT_DIR", Check(bool, "the path of a folder")),
    Rule(
        "all",
        "SEED",
        Check(lambda value: value < 2**32, "below 2 ** 32; negative for a random one"),
    ),
    #
    Rule(
        "train",
        "INPUT.MIN_SIZE_TRAIN",
        several(whole(0, ", in pixels; 0 leaves images as they are")),
    ),
    Rule("augmentation", "TEST.AUG.MIN_SIZES", Check(bool, "a list of one or more sizes")),
    Rule("train", "INPUT.MAX_SIZE_TRAIN", whole(1, ", in pixels")),
    Rule("train", "INPUT.MIN_SIZE_TRAIN_SAMPLING", one_of("choice", "range")),
    Rule("train", "INPUT.RANDOM_FLIP", one_of("horizontal", "vertical", "none")),
    Rule(
        "crop",
        "INPUT.CROP.TYPE",
        one_of("relative", "relative_range", "absolute", "absolute_range"),
    ),
    Rule(
        "train",
        "SOLVER.LR_SCHEDULER_NAME",
        one_of("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"),
    ),
    Rule("train", "SOLVER.IMS_PER_BATCH SOLVER.MAX_ITER SOLVER.CHECKPOINT_PERIOD", whole(1)),
    Rule("train", "SOLVER.WARMUP_ITERS SOLVER.REFERENCE_WORLD_SIZE", whole(0)),
    Rule(
        "train",
        "SOLVER.BASE_LR SOLVER.BASE_LR_END SOLVER.WEIGHT_DECAY SOLVER.WEIGHT_DECAY_NORM",
        number(0),
    ),
    Rule(
        "train",
        "SOLVER.WEIGHT_DECAY_BIAS",
        Check(
            lambda value: value is None or number(0).holds(value),
            "a number at least 0, or None for SOLVER.WEIGHT_DECAY",
        ),
    ),
    Rule("train", "SOLVER.GAMMA", _POSITIVE),
    Rule("train", "SOLVER.MOMENTUM SOLVER.WARMUP_FACTOR", _FRACTION),
    Rule("train", "SOLVER.WARMUP_METHOD", one_of("linear", "constant")),
    Rule(
        "train",
        "SOLVER.STEPS",
        Check(
            lambda value: all(map(number(1).holds, value)) and list(value) == sorted(set(value)),
            "a tuple of ascending iterations from 1, such as (60000, 80000), or () for none",
        ),
    ),
    Rule("gradient clipping", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", one_of("value", "norm")),
    Rule("gradient clipping", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", _POSITIVE),
    #
    Rule(
        "ResNet",
        "MODEL.RESNETS.DEPTH",
        Check((18, 34, 50, 101, 152).__contains__, "one of 18, 34, 50, 101, 152"),
    ),
    Rule(
        "ResNet",
        "MODEL.RESNETS.NUM_GROUPS MODEL.RESNETS.WIDTH_PER_GROUP MODEL.RESNETS.STEM_OUT_CHANNELS "
        "MODEL.RESNETS.RES2_OUT_CHANNELS",
        whole(1),
    ),
    Rule("ResNet", "MODEL.RESNETS.RES5_DILATION", Check((1, 2).__contains__, "1 or 2")),
    Rule("ResNet", "MODEL.RESNETS.OUT_FEATURES", _STAGES),
    Rule("ResNet", "MODEL.RESNETS.NORM", _NORM),
    Rule("FPN", "MODEL.FPN.IN_FEATURES", _STAGES),
    Rule("FPN", "MODEL.FPN.OUT_CHANNELS", whole(1)),
    Rule("FPN", "MODEL.FPN.NORM", _NORM),
    Rule("FPN", "MODEL.FPN.FUSE_TYPE", one_of("sum", "avg")),
    #
    Rule(
        "anchors", "MODEL.ANCHOR_GENERATOR.OFFSET", Check(lambda value: 0 <= value < 1, "in [0, 1)")
    ),
    Rule("RPN", "MODEL.RPN.IN_FEATURES", _FEATURES),
    Rule(
        "RPN head",
        "MODEL.RPN.CONV_DIMS",
        Check(
            lambda value: all(dim == -1 or whole(1).holds(dim) for dim in value),
            "a list of numbers of channels, each at least 1, or -1 for those of the features",
        ),
    ),
    Rule("RPN", "MODEL.RPN.BBOX_REG_LOSS_TYPE", _BOX_LOSS),
    Rule("RPN", "MODEL.RPN.BBOX_REG_WEIGHTS", _BOX_WEIGHTS),
    Rule("RPN", "MODEL.RPN.IOU_THRESHOLDS", _THRESHOLDS),
    Rule("RPN", "MODEL.RPN.IOU_LABELS", _LABELS),
    Rule("RPN", "MODEL.RPN.NMS_THRESH MODEL.RPN.POSITIVE_FRACTION", _FRACTION),
    Rule("RPN", "MODEL.RPN.BATCH_SIZE_PER_IMAGE", whole(1)),
    Rule("RPN", "MODEL.RPN.PRE_NMS_TOPK_TRAIN MODEL.RPN.POST_NMS_TOPK_TRAIN", whole(1)),
    Rule("RPN", "MODEL.RPN.PRE_NMS_TOPK_TEST MODEL.RPN.POST_NMS_TOPK_TEST", whole(1)),
    Rule(
        "RPN",
        "MODEL.RPN.LOSS_WEIGHT MODEL.RPN.BBOX_REG_LOSS_WEIGHT MODEL.RPN.SMOOTH_L1_BETA",
        number(0),
    ),
    #
    Rule("ROI heads", "MODEL.ROI_HEADS.NUM_CLASSES MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", whole(1)),
    Rule("known ROI heads", "MODEL.ROI_HEADS.IN_FEATURES", _FEATURES),
    Rule("known ROI heads", "MODEL.ROI_HEADS.IOU_THRESHOLDS", _THRESHOLDS),
    Rule("known ROI heads", "MODEL.ROI_HEADS.IOU_LABELS", _LABELS),
    Rule(
        "known ROI heads",
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST MODEL.ROI_HEADS.NMS_THRESH_TEST",
        _FRACTION,
    ),
    Rule("known ROI heads", "MODEL.ROI_HEADS.POSITIVE_FRACTION", number(0, 1, above=True)),
    Rule("known ROI heads", "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", _BOX_LOSS),
    Rule("known ROI heads", "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", _BOX_WEIGHTS),
    Rule(
        "known ROI heads",
        "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA",
        number(0),
    ),
    Rule("known ROI heads", "MODEL.ROI_BOX_HEAD.POOLER_TYPE", _POOLER_TYPE),
    Rule("known ROI heads", "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", whole(1)),
    Rule("known ROI heads", "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", _SAMPLING_RATIO),
    Rule("box head", "MODEL.ROI_BOX_HEAD.NUM_CONV MODEL.ROI_BOX_HEAD.NUM_FC", whole(0)),
    Rule("box head", "MODEL.ROI_BOX_HEAD.CONV_DIM MODEL.ROI_BOX_HEAD.FC_DIM", whole(1)),
    Rule("box head", "MODEL.ROI_BOX_HEAD.NORM", _NORM),
    Rule("cascade", "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS", several(_WEIGHTS)),
    Rule("cascade", "MODEL.ROI_BOX_CASCADE_HEAD.IOUS", several(_FRACTION)),
    Rule("masks", "MODEL.ROI_MASK_HEAD.POOLER_TYPE", _POOLER_TYPE),
    Rule("masks", "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", whole(1)),
    Rule("masks", "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO", _SAMPLING_RATIO),
    Rule("masks", "MODEL.ROI_MASK_HEAD.NUM_CONV", whole(0)),
    Rule("masks", "MODEL.ROI_MASK_HEAD.CONV_DIM", whole(1)),
    Rule("masks", "MODEL.ROI_MASK_HEAD.NORM", _NORM),
    Rule("keypoints", "MODEL.ROI_KEYPOINT_HEAD.POOLER_TYPE", _POOLER_TYPE),
    Rule("keypoints", "MODEL.ROI_KEYPOINT_HEAD.POOLER_RESOLUTION", whole(1)),
    Rule("keypoints", "MODEL.ROI_KEYPOINT_HEAD.POOLER_SAMPLING_RATIO", _SAMPLING_RATIO),
    Rule("keypoints", "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", whole(1)),
    Rule("keypoints", "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", several(whole(1))),
    #
    Rule("RetinaNet", "MODEL.RETINANET.NUM_CLASSES MODEL.RETINANET.TOPK_CANDIDATES_TEST", whole(1)),
    Rule("RetinaNet", "MODEL.RETINANET.NUM_CONVS", whole(0)),
    Rule("RetinaNet", "MODEL.RETINANET.IN_FEATURES", _FEATURES),
    Rule("RetinaNet", "MODEL.RETINANET.BBOX_REG_LOSS_TYPE", _BOX_LOSS),
    Rule("RetinaNet", "MODEL.RETINANET.BBOX_REG_WEIGHTS", _WEIGHTS),
    Rule("RetinaNet", "MODEL.RETINANET.IOU_THRESHOLDS", _THRESHOLDS),
    Rule("RetinaNet", "MODEL.RETINANET.IOU_LABELS", _LABELS),
    Rule(
        "RetinaNet", "MODEL.RETINANET.NMS_THRESH_TEST MODEL.RETINANET.SCORE_THRESH_TEST", _FRACTION
    ),
    Rule("RetinaNet", "MODEL.RETINANET.FOCAL_LOSS_GAMMA", number(0)),
    Rule(
        "RetinaNet",
        "MODEL.RETINANET.FOCAL_LOSS_ALPHA",
        Check(
            lambda value: value == -1 or _FRACTION.holds(value), "in [0, 1], or -1 for no weights"
        ),
    ),
    Rule(
        "RetinaNet", "MODEL.RETINANET.PRIOR_PROB", Check(lambda value: 0 < value < 1, "in (0, 1)")
    ),
    Rule("RetinaNet", "MODEL.RETINANET.NORM", _NORM),
)

# The keys that name a component, the part that reads them, and the registry that has the name.
NAMES = (
    ("MODEL.META_ARCHITECTURE", "all", META_ARCH_REGISTRY),
    ("MODEL.BACKBONE.NAME", "all", BACKBONE_REGISTRY),
    ("MODEL.SEM_SEG_HEAD.NAME", "semantic segmentation", SEM_SEG_HEADS_REGISTRY),
    ("MODEL.PROPOSAL_GENERATOR.NAME", "proposals", PROPOSAL_GENERATOR_REGISTRY),
    ("MODEL.RPN.HEAD_NAME", "RPN", RPN_HEAD_REGISTRY),
    ("MODEL.ANCHOR_GENERATOR.NAME", "anchors", ANCHOR_GENERATOR_REGISTRY),
    ("MODEL.ROI_HEADS.NAME", "ROI heads", ROI_HEADS_REGISTRY),
    ("MODEL.ROI_BOX_HEAD.NAME", "any box head", ROI_BOX_HEAD_REGISTRY),
    ("MODEL.ROI_MASK_HEAD.NAME", "any mask head", ROI_MASK_HEAD_REGISTRY),
    ("MODEL.ROI_KEYPOINT_HEAD.NAME", "any keypoint head", ROI_KEYPOINT_HEAD_REGISTRY),
)


def _parts(cfg: CfgNode, *, train: bool) -> set[str]:
    """The parts of a run that read keys.

    The keys of a component are only checked if it is Detectron2's or of this package. That of another
    project may give them other values.
    """
    model = cfg.MODEL
    architecture, backbone = model.META_ARCHITECTURE, model.BACKBONE.NAME
    of_backbone = backbone if _is_known(BACKBONE_REGISTRY, backbone) else ""
    has_heads = architecture in ("GeneralizedRCNN", "PanopticFPN")
    has_proposals = has_heads or architecture == "ProposalNetwork"
    rpn = has_proposals and _is_known(PROPOSAL_GENERATOR_REGISTRY, model.PROPOSAL_GENERATOR.NAME)
    known = has_heads and _is_known(ROI_HEADS_REGISTRY, model.ROI_HEADS.NAME)
    heads = ROI_HEADS_REGISTRY.get(model.ROI_HEADS.NAME) if known else None
    box = _derives(heads, StandardROIHeads)
    mask, keypoint = known and model.MASK_ON, known and model.KEYPOINT_ON
    parts = {
        "all": True,
        "train": train,
        "augmentation": cfg.TEST.AUG.ENABLED,
        "crop": train and cfg.INPUT.CROP.ENABLED,
        "gradient clipping": train and cfg.SOLVER.CLIP_GRADIENTS.ENABLED,
        "ResNet": "resnet" in of_backbone,
        "FPN": "fpn" in of_backbone,
        "semantic segmentation": architecture in ("PanopticFPN", "SemanticSegmentor"),
        "RetinaNet": architecture == "RetinaNet",
        "anchors": rpn or architecture == "RetinaNet",
        "proposals": has_proposals and model.PROPOSAL_GENERATOR.NAME != "PrecomputedProposals",
        "RPN": rpn,
        "RPN head": rpn and _is_known(RPN_HEAD_REGISTRY, model.RPN.HEAD_NAME),
        "ROI heads": has_heads,
        "known ROI heads": known,
        "cascade": _derives(heads, CascadeROIHeads),
        "any box head": box,
        "box head": box and _is_known(ROI_BOX_HEAD_REGISTRY, model.ROI_BOX_HEAD.NAME),
        "any mask head": mask,
        "masks": mask and _is_known(ROI_MASK_HEAD_REGISTRY, model.ROI_MASK_HEAD.NAME),
        "any keypoint head": keypoint,
        "keypoints": keypoint
        and _is_known(ROI_KEYPOINT_HEAD_REGISTRY, model.ROI_KEYPOINT_HEAD.NAME),
    }
    return {part for part, is_there in parts.items() if is_there}


def _is_known(registry: Registry, name: str) -> bool:
    """Whether a component is Detectron2's or of this package."""
    if name not in registry:
        return False
    module = registry.get(name).__module__
    return module.startswith(("detectron2.modeling.", "mrcnn_plugin."))


def _derives(component: Any, base: type) -> bool:
    return isinstance(component, type) and issubclass(component, base)


def _check_none(cfg: CfgNode) -> None:
    """YAML reads a key without a value as null, which yacs takes for a value of every type."""
    values = dict(leaves(cfg))
    for key, default in leaves(get_cfg()):
        # Detectron2 itself takes None for no normalisation, and for random weights.
        may_be = default is None or key.endswith("NORM") or key == "MODEL.WEIGHTS"
        if not may_be and values.get(key, default) is None:
            raise ValueError(
                f"{key} is None, as if it stood in YAML without a value; it must be of the type "
                f"{type(default).__name__}, such as the default {default!r}."
            )


def _check_name(cfg: CfgNode, key: str, registry: Registry) -> None:
    name = value_of(cfg, key)
    if name in registry:
        return
    known = [known for known, _ in registry]
    raise ValueError(f"{key} is {name!r}, which is not registered: {hint_at(name, known)}")


# What several values must be together.


def _check_images(cfg: CfgNode) -> None:
    channels = _CHANNELS[cfg.INPUT.FORMAT]
    for key in ("MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"):
        if len(value_of(cfg, key)) != channels:
            raise ValueError(
                f"{key} is {value_of(cfg, key)}; it must have a number for each channel of INPUT.FORMAT "
                f"{cfg.INPUT.FORMAT!r}, {channels}."
            )


def _check_tests(cfg: CfgNode, args: Namespace) -> None:
    if args.eval_only and not cfg.DATASETS.TEST:
        raise ValueError("DATASETS.TEST is (); name a data set for --eval-only to evaluate on.")
    folders: dict[str, str] = {}
    for name in cfg.DATASETS.TEST:
        other = folders.setdefault(results_folder(cfg, name), name)
        if other != name:
            raise ValueError(
                f"DATASETS.TEST has {other!r} and {name!r}, whose results would be in the same folder, "
                f"{results_folder(cfg, name)}; they must have names that differ in letters or digits."
            )
    if cfg.MODEL.KEYPOINT_ON and cfg.DATASETS.TEST:
        sigmas, count = cfg.TEST.KEYPOINT_OKS_SIGMAS, cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
        if len(sigmas) != count and (sigmas or count != 17):
            raise ValueError(
                f"TEST.KEYPOINT_OKS_SIGMAS is {sigmas}; it must have a number for each of the "
                f"MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS, {count}."
            )


def _check_proposals(cfg: CfgNode, args: Namespace) -> None:
    own = _own_data_sets(cfg)
    for key in ("TEST",) if args.eval_only else ("TRAIN", "TEST"):
        files, names = cfg.DATASETS[f"PROPOSAL_FILES_{key}"], cfg.DATASETS[key]
        # Nothing reads those of test sets that are left out.
        if len(files) != len(names) and names:
            raise ValueError(
                f"DATASETS.PROPOSAL_FILES_{key} is {files}, but MODEL.LOAD_PROPOSALS is True; it must name a file for "
                f"each data set of DATASETS.{key}, {names}."
            )
        for name, file in zip(names, files, strict=False):
            # Detectron2's own files have proposals of COCO's images only, and others end in a KeyError.
            if not args.eval_only and name in own and str(file).startswith("detectron2://"):
                raise ValueError(
                    f"DATASETS.PROPOSAL_FILES_{key} has {file!r}, which is of images of COCO; it must name a file with "
                    f"the proposals of {name!r}, which is of DATASETS.COCO_JSON, or MODEL.LOAD_PROPOSALS must be False."
                )


def _check_semantic_segmentation(cfg: CfgNode) -> None:
    architecture = cfg.MODEL.META_ARCHITECTURE
    own = _own_data_sets(cfg)
    for name in cfg.DATASETS.TRAIN:
        if name in own:
            raise ValueError(
                f"MODEL.META_ARCHITECTURE is {architecture!r}, which trains on semantic segmentations, but "
                f"{name!r} of DATASETS.COCO_JSON has none; set it to 'GeneralizedRCNN', or DATASETS.TRAIN to a data "
                f"set of your own code with sem_seg_file_name for each image."
            )


def _own_data_sets(cfg: CfgNode) -> list[str]:
    return [entry[0] for entry in cfg.DATASETS.COCO_JSON]


def _check_weights(cfg: CfgNode, args: Namespace) -> None:
    weights = cfg.MODEL.WEIGHTS
    if not weights or not is_missing(weights) or (args.resume and has_checkpoint(cfg)):
        return
    raise FileNotFoundError(
        f"MODEL.WEIGHTS is {weights!r}, which is no file ({os.path.abspath(weights)}); it must be the path or URL of a "
        f"checkpoint, or '' for random weights."
    )


def _check_solver(cfg: CfgNode) -> None:
    solver = cfg.SOLVER
    reference = solver.REFERENCE_WORLD_SIZE
    workers = reference or comm.get_world_size()
    if solver.IMS_PER_BATCH % workers:
        what = "SOLVER.REFERENCE_WORLD_SIZE" if reference else "the number of workers"
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {solver.IMS_PER_BATCH}; it must be a multiple of {what}, {workers}."
        )
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR" and solver.MAX_ITER in solver.STEPS:
        raise ValueError(
            f"SOLVER.STEPS is {solver.STEPS}; its iterations must be below SOLVER.MAX_ITER, {solver.MAX_ITER}."
        )
    if solver.get("RESCALE_INTERVAL") and solver.WARMUP_ITERS >= solver.MAX_ITER:
        # The last iteration would divide by the length of what follows the warm-up.
        raise ValueError(
            f"SOLVER.WARMUP_ITERS is {solver.WARMUP_ITERS}; with SOLVER.RESCALE_INTERVAL True it must be below "
            f"SOLVER.MAX_ITER, {solver.MAX_ITER}."
        )
    end = solver.get("BASE_LR_END", 0.0)
    if solver.LR_SCHEDULER_NAME == "WarmupCosineLR" and end > solver.BASE_LR:
        raise ValueError(
            f"SOLVER.BASE_LR_END is {end}; it must be at most SOLVER.BASE_LR, {solver.BASE_LR}."
        )
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and len(sizes) != 2:
        raise ValueError(
            f"INPUT.MIN_SIZE_TRAIN is {sizes}; it must be (low, high) for INPUT.MIN_SIZE_TRAIN_SAMPLING 'range'."
        )
    if cfg.INPUT.CROP.ENABLED:
        relative = cfg.INPUT.CROP.TYPE.startswith("relative")
        check = several(number(0, 1, above=True) if relative else whole(1), 2)
        if not check.holds(cfg.INPUT.CROP.SIZE):
            raise ValueError(
                f"INPUT.CROP.SIZE is {cfg.INPUT.CROP.SIZE}; for INPUT.CROP.TYPE {cfg.INPUT.CROP.TYPE!r} it must be "
                f"{check.valid}."
            )
    _check_sampler(cfg)


def _check_sampler(cfg: CfgNode) -> None:
    loader = cfg.DATALOADER
    samplers = ["TrainingSampler", "RepeatFactorTrainingSampler"]
    # These need keys that Detectron2's default config lacks.
    if "RANDOM_SUBSET_RATIO" in loader:
        samplers += ["RandomSubsetTrainingSampler"]
    if "TRAIN_REPEAT_FACTOR" in cfg.DATASETS:
        samplers += ["WeightedTrainingSampler", "WeightedCategoryTrainingSampler"]
    if loader.SAMPLER_TRAIN not in samplers:
        raise ValueError(
            f"DATALOADER.SAMPLER_TRAIN is {loader.SAMPLER_TRAIN!r}; it must be {one_of(*samplers).valid}."
        )
    threshold = loader.REPEAT_THRESHOLD
    if loader.SAMPLER_TRAIN == "RepeatFactorTrainingSampler" and not 0 < threshold <= 1:
        raise ValueError(
            f"DATALOADER.REPEAT_THRESHOLD is {threshold}, with which DATALOADER.SAMPLER_TRAIN "
            f"'RepeatFactorTrainingSampler' repeats nothing; it must be a share of the images in (0, 1], such as 0.001."
        )


def _check_groups(cfg: CfgNode, norm: str, channels: str) -> None:
    """Group normalisation has 32 groups in Detectron2."""
    if value_of(cfg, norm) == "GN" and value_of(cfg, channels) % 32:
        raise ValueError(
            f"{channels} is {value_of(cfg, channels)}; with {norm} 'GN' it must be a multiple of 32."
        )


def _check_bottlenecks(cfg: CfgNode) -> None:
    resnets = cfg.MODEL.RESNETS
    # The blocks of the depths 18 and 34 have no bottleneck.
    if (
        resnets.NORM == "GN"
        and resnets.DEPTH >= 50
        and resnets.WIDTH_PER_GROUP * resnets.NUM_GROUPS % 32
    ):
        raise ValueError(
            f"MODEL.RESNETS.WIDTH_PER_GROUP is {resnets.WIDTH_PER_GROUP}; with MODEL.RESNETS.NORM 'GN', its product "
            f"with MODEL.RESNETS.NUM_GROUPS, {resnets.NUM_GROUPS}, must be a multiple of 32."
        )


def _check_labels(cfg: CfgNode, node: str) -> None:
    """Detectron2's Matcher has a label for each interval between thresholds, and for those at both ends."""
    thresholds, labels = cfg.MODEL[node].IOU_THRESHOLDS, cfg.MODEL[node].IOU_LABELS
    if len(labels) != len(thresholds) + 1:
        raise ValueError(
            f"MODEL.{node}.IOU_LABELS is {labels}; it must have one number more than MODEL.{node}.IOU_THRESHOLDS, "
            f"{thresholds}."
        )


def _check_roi_heads(cfg: CfgNode, parts: set[str]) -> None:
    name = cfg.MODEL.ROI_HEADS.NAME
    box_head = cfg.MODEL.ROI_BOX_HEAD
    if (
        "known ROI heads" in parts
        and cfg.MODEL.PROPOSAL_GENERATOR.NAME == "PrecomputedProposals"
        and not cfg.MODEL.LOAD_PROPOSALS
    ):
        raise ValueError(
            "MODEL.PROPOSAL_GENERATOR.NAME is 'PrecomputedProposals', but MODEL.LOAD_PROPOSALS is False; it must be "
            "True."
        )
    if "cascade" in parts:
        _check_cascade(cfg)
    if "known ROI heads" in parts and box_head.get("USE_FED_LOSS"):
        _check_fed_loss(cfg, train="train" in parts)
    if "box head" in parts and not box_head.NUM_CONV + box_head.NUM_FC:
        raise ValueError(
            "MODEL.ROI_BOX_HEAD.NUM_FC and MODEL.ROI_BOX_HEAD.NUM_CONV are 0; the box head needs a layer, so one of "
            "them must be at least 1."
        )
    for node, pooler in pooler_types(cfg).items():
        if pooler in POOLER_TYPES and not is_ours(ROI_HEADS_REGISTRY, name):
            raise ValueError(
                f"MODEL.{node}.POOLER_TYPE is {pooler!r}, which the MODEL.ROI_HEADS.NAME {name!r} does not know; set "
                f"that to MRCNNFocalROIHeads, MRCNNFocalCascadeROIHeads or MRCNNFocalRes5ROIHeads (with "
                f"MODEL.ROI_BOX_HEAD.CLS_LOSS 'cross_entropy' they are Detectron2's own)"
            )


def _check_cascade(cfg: CfgNode) -> None:
    cascade, name = cfg.MODEL.ROI_BOX_CASCADE_HEAD, cfg.MODEL.ROI_HEADS.NAME
    if not cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG:
        raise ValueError(
            f"MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG is False, but the cascade MODEL.ROI_HEADS.NAME {name!r} needs "
            f"it to be True"
        )
    if len(cascade.IOUS) != len(cascade.BBOX_REG_WEIGHTS):
        raise ValueError(
            f"MODEL.ROI_BOX_CASCADE_HEAD.IOUS is {cascade.IOUS}; it must have a number for each stage, as "
            f"MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS has {len(cascade.BBOX_REG_WEIGHTS)}."
        )
    first = cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS[0]
    if cascade.IOUS[0] != first:
        raise ValueError(
            f"MODEL.ROI_BOX_CASCADE_HEAD.IOUS is {cascade.IOUS}; its first number must be that of "
            f"MODEL.ROI_HEADS.IOU_THRESHOLDS, {first}."
        )


def _check_fed_loss(cfg: CfgNode, train: bool) -> None:
    box_head = cfg.MODEL.ROI_BOX_HEAD
    if not box_head.USE_SIGMOID_CE:
        raise ValueError(
            "MODEL.ROI_BOX_HEAD.USE_FED_LOSS is True, but MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE is False; it must be True "
            "too, and MODEL.ROI_BOX_HEAD.CLS_LOSS must not be 'softmax_focal'."
        )
    if not 1 <= box_head.FED_LOSS_NUM_CLASSES <= cfg.MODEL.ROI_HEADS.NUM_CLASSES:
        raise ValueError(
            f"MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES is {box_head.FED_LOSS_NUM_CLASSES}; it must be at least 1 and at "
            f"most MODEL.ROI_HEADS.NUM_CLASSES, {cfg.MODEL.ROI_HEADS.NUM_CLASSES}, of which it is a sample"
        )
    if not train:
        return
    first = cfg.DATASETS.TRAIN[0] if cfg.DATASETS.TRAIN else None
    if cfg.DATASETS.CHECK == "off" and first in _own_data_sets(cfg):
        raise ValueError(
            "DATASETS.CHECK is 'off', so that nothing counts the images of each class for "
            "MODEL.ROI_BOX_HEAD.USE_FED_LOSS; it must be 'fast' or 'full'."
        )
    if first is None or (
        first in DatasetCatalog and MetadataCatalog.get(first).get("class_image_count") is None
    ):
        raise ValueError(
            f"MODEL.ROI_BOX_HEAD.USE_FED_LOSS is True, but the first data set of DATASETS.TRAIN, {first!r}, has no "
            f"class_image_count; it must be one of DATASETS.COCO_JSON, or one whose metadata has the number of images "
            f"of each class."
        )


def check_federated_loss_data(cfg: CfgNode) -> None:
    """Checks the images of each class that `MODEL.ROI_BOX_HEAD.USE_FED_LOSS` needs, once the data sets are registered.

    Raises:
        ValueError: the data sets have different numbers of images of a class, or too few classes have images.
    """
    box_head = cfg.MODEL.ROI_BOX_HEAD
    # Heads of another project may do something else with the key.
    if not box_head.get("USE_FED_LOSS") or "known ROI heads" not in _parts(cfg, train=True):
        return
    counts = [MetadataCatalog.get(name).get("class_image_count") for name in cfg.DATASETS.TRAIN]
    if any(count != counts[0] for count in counts):
        raise ValueError(
            f"DATASETS.TRAIN is {cfg.DATASETS.TRAIN}, but MODEL.ROI_BOX_HEAD.USE_FED_LOSS needs the same "
            f"class_image_count in the metadata of all of them; it must be one data set, so join their JSON files."
        )
    seen = sum(entry["image_count"] > 0 for entry in counts[0] or [])
    if box_head.FED_LOSS_FREQ_WEIGHT_POWER > 0 and seen < box_head.FED_LOSS_NUM_CLASSES:
        raise ValueError(
            f"MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES is {box_head.FED_LOSS_NUM_CLASSES}, but only {seen} classes of "
            f"{cfg.DATASETS.TRAIN[0]!r} have images, and the others are never sampled; it must be at most {seen}."
        )


def _check_retinanet(cfg: CfgNode) -> None:
    for key in ("MASK_ON", "KEYPOINT_ON"):
        if cfg.MODEL[key]:
            raise ValueError(
                f"MODEL.{key} is True, but MODEL.META_ARCHITECTURE 'RetinaNet' has boxes only; it must be False."
            )


def _check_model(cfg: CfgNode, parts: set[str]) -> None:
    """Builds the model without memory. Raises what a constructor raises, with the keys where Detectron2 names none."""
    # A component of another project may compute with the values of tensors, which are not there.
    if not all(
        _is_known(registry, value_of(cfg, key)) for key, part, registry in NAMES if part in parts
    ):
        return
    _check_rotated(cfg, parts)
    cfg = without_federated_loss(cfg)
    if "FPN" in parts and not is_ours(BACKBONE_REGISTRY, cfg.MODEL.BACKBONE.NAME):
        _build(_check_stock_pyramid, cfg)
    shapes = _build(build_backbone, cfg).output_shape()
    keys = {"RPN": "MODEL.RPN", "ROI heads": "MODEL.ROI_HEADS", "RetinaNet": "MODEL.RETINANET"}
    for part, node in keys.items():
        if part in parts:
            _check_features(cfg, f"{node}.IN_FEATURES", shapes)
    if "anchors" in parts:
        node = "RETINANET" if "RetinaNet" in parts else "RPN"
        _check_anchors(cfg, f"MODEL.{node}.IN_FEATURES")
    if "ROI heads" in parts:
        _check_res5_heads(cfg, shapes)
        _check_pooled_levels(cfg, shapes)
    _build(META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE), cfg)


def _build(build: Callable[[CfgNode], Any], cfg: CfgNode) -> Any:
    try:
        with torch.device("meta"):
            return build(cfg)
    except Exception as error:  # Detectron2 asserts, or fails with whatever type.
        if isinstance(error, (TypeError, ValueError)) and str(error).startswith("MODEL."):
            raise
        raise ValueError(
            f"The model of this config cannot be built: {type(error).__name__}: {error}"
        ) from error


def _check_rotated(cfg: CfgNode, parts: set[str]) -> None:
    """The parts for rotated boxes work with each other only, and their boxes have 5 numbers."""
    given, are_rotated = [], []
    for part, key, registry, rotated in (
        ("RPN", "MODEL.PROPOSAL_GENERATOR.NAME", PROPOSAL_GENERATOR_REGISTRY, "RRPN"),
        (
            "anchors",
            "MODEL.ANCHOR_GENERATOR.NAME",
            ANCHOR_GENERATOR_REGISTRY,
            "RotatedAnchorGenerator",
        ),
        ("ROI heads", "MODEL.ROI_HEADS.NAME", ROI_HEADS_REGISTRY, "RROIHeads"),
    ):
        if part in parts:
            given.append(f"{key} is {value_of(cfg, key)!r}")
            are_rotated.append(_derives(registry.get(value_of(cfg, key)), registry.get(rotated)))
    if "ROI heads" in parts:
        given.append(f"MODEL.ROI_BOX_HEAD.POOLER_TYPE is {cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE!r}")
        are_rotated.append(cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE == "ROIAlignRotated")
    if any(are_rotated) and ("RetinaNet" in parts or not all(are_rotated)):
        raise ValueError(
            f"{', '.join(given)}; for rotated boxes they must be 'RRPN', 'RotatedAnchorGenerator', 'RROIHeads' and "
            f"'ROIAlignRotated', and for others none of these."
        )
    count = 5 if any(are_rotated) else 4
    for part, node in (("RPN", "RPN"), ("ROI heads", "ROI_BOX_HEAD")):
        weights = cfg.MODEL[node].BBOX_REG_WEIGHTS
        if part in parts and len(weights) != count:
            raise ValueError(
                f"MODEL.{node}.BBOX_REG_WEIGHTS is {weights}; it must have {count} numbers, since the boxes are "
                f"{'' if any(are_rotated) else 'not '}rotated."
            )


def _check_stock_pyramid(cfg: CfgNode) -> None:
    """Detectron2's FPN asserts some of this without the key, and fails later where its top block finds no feature."""
    bottom_up = build_resnet_backbone(cfg, ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN)))
    with_p7 = "retinanet" in cfg.MODEL.BACKBONE.NAME
    top_block = LastLevelP6P7(1, 1) if with_p7 else LastLevelMaxPool()
    check_pyramid(bottom_up, cfg.MODEL.FPN.IN_FEATURES, top_block, cfg.MODEL.FPN.FUSE_TYPE)


def _check_features(cfg: CfgNode, key: str, shapes: dict[str, ShapeSpec]) -> None:
    names = value_of(cfg, key)
    if not set(names) <= set(shapes):
        raise ValueError(
            f"{key} is {names}, but MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME!r} has the features "
            f"{', '.join(shapes)}; it must be a list of these."
        )


def _check_anchors(cfg: CfgNode, key: str) -> None:
    count = len(value_of(cfg, key))
    for name in ("SIZES", "ASPECT_RATIOS"):
        values = cfg.MODEL.ANCHOR_GENERATOR[name]
        # Detectron2 also takes a plain list, for all features.
        lists = values if values and isinstance(values[0], (list, tuple)) else [values]
        if len(lists) not in (1, count) or not all(map(several(_POSITIVE).holds, lists)):
            raise ValueError(
                f"MODEL.ANCHOR_GENERATOR.{name} is {values}; it must be a list of lists of numbers above 0: one list "
                f"for each of the {count} features of {key}, or a single one for all of them."
            )
        if len(set(map(len, lists))) > 1:
            raise ValueError(
                f"MODEL.ANCHOR_GENERATOR.{name} is {values}; its lists must be of the same length, since all features "
                f"of {key} share one head."
            )


def _check_res5_heads(cfg: CfgNode, shapes: dict[str, ShapeSpec]) -> None:
    name, features = cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_HEADS.IN_FEATURES
    if not _derives(ROI_HEADS_REGISTRY.get(name), Res5ROIHeads):
        return
    channels = 4 * cfg.MODEL.RESNETS.RES2_OUT_CHANNELS
    if len(features) != 1 or shapes[features[0]].channels != channels:
        raise ValueError(
            f"MODEL.ROI_HEADS.IN_FEATURES is {features}, but MODEL.ROI_HEADS.NAME {name!r} continues a ResNet after "
            f"its stage res4, of {channels} channels: it must be ['res4'], with MODEL.BACKBONE.NAME "
            f"'build_resnet_backbone'. For a feature pyramid, set MODEL.ROI_HEADS.NAME to 'MRCNNFocalROIHeads' or "
            f"'StandardROIHeads'."
        )
    if cfg.MODEL.KEYPOINT_ON:
        raise ValueError(
            f"MODEL.KEYPOINT_ON is True, but MODEL.ROI_HEADS.NAME {name!r} has no keypoints; it must be False."
        )


def _check_pooled_levels(cfg: CfgNode, shapes: dict[str, ShapeSpec]) -> None:
    """Detectron2's ROIPooler computes the level of a box from the first stride and the last."""
    names = cfg.MODEL.ROI_HEADS.IN_FEATURES
    strides = [shapes[name].stride for name in names]
    if any(after != 2 * before for before, after in itertools.pairwise(strides)):
        raise ValueError(
            f"MODEL.ROI_HEADS.IN_FEATURES is {names} of the strides {strides}; it must be levels of a pyramid whose "
            f"strides are each twice the one before, such as ['p2', 'p3', 'p4', 'p5']."
        )
