"""Every config key that this package adds: its meaning, its default, and what reads it.

Values that other parts accept by name, such as `MODEL.ROI_BOX_HEAD.POOLER_TYPE: "ROIAlignBicubic"`
or `"ROIAlignBilinear"`, are not keys of ours and stand with those parts.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from . import renamed

if TYPE_CHECKING:
    # At run time this module must not import Detectron2 when it is imported itself: Detectron2
    # imports it through mrcnn_plugin.env.
    from detectron2.config import CfgNode


class Key(NamedTuple):
    """A config key.

    Attributes:
        name: the key in full.
        default: its value where nobody sets it.
        reader: what reads it: the name of a condition in `modeling/unused_keys.py`.
    """

    name: str
    default: Any
    reader: str


KEYS = (
    # Data sets in COCO format to register: a list of (name, json file, image root). Paths may hold
    # $VARIABLES and any prefix that iopath handles. This project's tools register them; for other
    # scripts see mrcnn_plugin.env.
    Key("DATASETS.COCO_JSON", [], "tools"),
    #
    # Upsampling in the top-down path of this package's pyramids (the backbones of modeling/backbone):
    # "nearest" as in Detectron2's FPN, "bilinear", "bicubic", or "carafe", which learns it
    # (arXiv 1905.02188).
    Key("MODEL.FPN.UPSAMPLE", "nearest", "pyramid"),
    #
    # BiFPN, section 3 of EfficientDet, arXiv 1911.09070. Channels and norm are MODEL.FPN's.
    # How often its top-down and bottom-up path follow each other, at least 1.
    Key("MODEL.MRCNN_PLUGIN.BIFPN.NUM_REPEATS", 3, "bifpn"),
    # Depthwise separable convolutions as in the paper; False for full 3x3 ones.
    Key("MODEL.MRCNN_PLUGIN.BIFPN.DEPTHWISE", True, "bifpn"),
    #
    # Parameter a of the cubic kernel of the pooler type ROIAlignBicubic. -0.5 keeps features
    # aligned with boxes; -0.75 is the kernel of OpenCV and torch's grid_sample.
    Key("MODEL.MRCNN_PLUGIN.ROI_ALIGN.A", -0.5, "bicubic pooler"),
    #
    # Classification loss of this package's ROI heads: "softmax_focal" (K + 1 classes),
    # "sigmoid_focal" (K one-against-all classifiers, RetinaNet's loss), "sigmoid_focal_star" (the
    # same with FL* of the paper's appendix A) or "cross_entropy" (Detectron2's own). Detectron2's
    # USE_FED_LOSS goes with all but the softmax.
    Key("MODEL.ROI_BOX_HEAD.CLS_LOSS", "softmax_focal", "ROI heads"),
    #
    # Focal loss of the box head, arXiv 1708.02002, in the paper's symbols.
    # α: weight of foreground in [0, 1], 1 - α that of background. -1.0 for no weighting. RetinaNet
    # has 0.25.
    Key("MODEL.ROI_BOX_HEAD.FOCAL.ALPHA", -1.0, "one alpha"),
    # α of each class: NUM_CLASSES numbers in [0, 1] that replace ALPHA. [] for ALPHA.
    Key("MODEL.ROI_BOX_HEAD.FOCAL.ALPHA_PER_CLASS", [], "focal loss"),
    # γ >= 0: how much well-classified examples are weighted down. 0.0 for none. "sigmoid_focal_star"
    # needs γ > 0.
    Key("MODEL.ROI_BOX_HEAD.FOCAL.GAMMA", 2.0, "focal loss"),
    # β of "sigmoid_focal_star": p* = sigmoid(γ x + β).
    Key("MODEL.ROI_BOX_HEAD.FOCAL.BETA", 1.0, "focal loss star"),
    # π in (0, 1): foreground probability that a sigmoid starts from (section 3.3 of the paper).
    Key("MODEL.ROI_BOX_HEAD.FOCAL.PRIOR_PROB", 0.01, "sigmoid loss"),
    # What the summed loss is divided by: the number of all "proposals" of the batch, as
    # Detectron2's cross entropy is, or of the "foreground" ones (at least 1), as RetinaNet's.
    Key("MODEL.ROI_BOX_HEAD.FOCAL.NORMALIZER", "proposals", "focal loss"),
    #
    # Focal loss of the objectness of MRCNNFocalRPN, with the same meanings.
    Key("MODEL.RPN.FOCAL.ALPHA", 0.25, "focal RPN"),
    Key("MODEL.RPN.FOCAL.GAMMA", 2.0, "focal RPN"),
    Key("MODEL.RPN.FOCAL.PRIOR_PROB", 0.01, "focal RPN"),
)


def add_mrcnn_config(cfg: CfgNode) -> None:
    """Adds the keys of this package to a Detectron2 config, in place.

    Keys that are there already keep their value, so that calling it twice is harmless. From then on
    the config refuses the keys of `renamed.KEYS` with their new name.
    """
    for key in KEYS:
        *path, last = key.name.split(".")
        node = cfg
        for part in path:
            node = node.setdefault(part, type(cfg)())
        node.setdefault(last, copy.deepcopy(key.default))
    for old, new in renamed.KEYS.items():
        if not cfg.key_is_renamed(old):
            cfg.register_renamed_key(old, new)


def get_cfg() -> CfgNode:
    """A config with the defaults of Detectron2 and of this package."""
    from detectron2.config import get_cfg

    cfg = get_cfg()
    add_mrcnn_config(cfg)
    return cfg


def load_cfg(config_file: str, opts: Sequence[Any] = ()) -> CfgNode:
    """A config from a file and changes to it, not frozen.

    Args:
        config_file: a YAML file, `_BASE_` included, as Detectron2's `merge_from_file` reads it.
        opts: KEY, VALUE, KEY, VALUE … as from a command line.

    Raises:
        AssertionError: there is no such file, or `opts` has an unknown key or a key without a value.
        KeyError: the file has an unknown key, or one of the two has a key that was renamed.
        ValueError: a component has a name from before the first release of this package, and nobody
            else has registered it.
    """
    cfg = get_cfg()
    cfg.merge_from_file(config_file)
    cfg.merge_from_list(list(opts))
    _refuse_old_names(cfg)
    return cfg


def _refuse_old_names(cfg: CfgNode) -> None:
    """Data sets are not checked here, since they may be registered later."""
    from detectron2.modeling import (
        BACKBONE_REGISTRY,
        PROPOSAL_GENERATOR_REGISTRY,
        ROI_HEADS_REGISTRY,
    )

    for node, registry in (
        ("BACKBONE", BACKBONE_REGISTRY),
        ("PROPOSAL_GENERATOR", PROPOSAL_GENERATOR_REGISTRY),
        ("ROI_HEADS", ROI_HEADS_REGISTRY),
    ):
        key, name = f"MODEL.{node}.NAME", cfg.MODEL[node].NAME
        new = renamed.VALUES[key].get(name)
        if new is not None and name not in registry:
            raise ValueError(f"{key} {name!r} was renamed to {new!r}; please update your config.")
