"""Every config key that this package adds: default and meaning.

Values that other parts accept by name, such as `MODEL.ROI_BOX_HEAD.POOLER_TYPE: "ROIAlignBicubic"`
or `"ROIAlignBilinear"`, are not keys of ours and stand with those parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import renamed

if TYPE_CHECKING:
    # At run time this module must not import Detectron2: Detectron2 imports it through
    # mrcnn_plugin.env.
    from detectron2.config import CfgNode


def add_mrcnn_config(cfg: CfgNode) -> None:
    """Adds the keys of this package to a Detectron2 config, in place.

    Keys that are there already keep their value, so that calling it twice is harmless.
    """
    # Data sets in COCO format to register: a list of (name, json file, image root). Paths may hold
    # $VARIABLES and any prefix that iopath handles. Registered by this project's tools; for other
    # scripts see mrcnn_plugin.env.
    _add(cfg.DATASETS, "COCO_JSON", [])

    # Upsampling in the top-down path of this package's pyramids (build_mrcnn_resnet_upsample_fpn_backbone,
    # …_pafpn_…, …_bifpn_… and their RetinaNet kin): "nearest" as in Detectron2's FPN, "bilinear",
    # "bicubic", or "carafe", which learns it (arXiv 1905.02188).
    _add(cfg.MODEL.FPN, "UPSAMPLE", "nearest")

    # BiFPN, section 3 of EfficientDet, arXiv 1911.09070. Channels and norm are MODEL.FPN's.
    for node in ("BIFPN", "ROI_ALIGN"):
        if "MRCNN_PLUGIN" not in cfg.MODEL:
            cfg.MODEL.MRCNN_PLUGIN = type(cfg)()
        if node not in cfg.MODEL.MRCNN_PLUGIN:
            cfg.MODEL.MRCNN_PLUGIN[node] = type(cfg)()
    # How often its top-down and bottom-up path follow each other, at least 1.
    _add(cfg.MODEL.MRCNN_PLUGIN.BIFPN, "NUM_REPEATS", 3)
    # Depthwise separable convolutions as in the paper; False for full 3x3 ones.
    _add(cfg.MODEL.MRCNN_PLUGIN.BIFPN, "DEPTHWISE", True)

    # Parameter a of the cubic kernel of the pooler type ROIAlignBicubic. -0.5 keeps features
    # aligned with boxes; -0.75 is the kernel of OpenCV and torch's grid_sample.
    _add(cfg.MODEL.MRCNN_PLUGIN.ROI_ALIGN, "A", -0.5)

    # Classification loss of MRCNNFocalROIHeads, MRCNNFocalCascadeROIHeads and MRCNNFocalRes5ROIHeads:
    # "softmax_focal" (K + 1 classes), "sigmoid_focal" (K one-against-all classifiers, RetinaNet's
    # loss), "sigmoid_focal_star" (the same with FL* of the paper's appendix A) or "cross_entropy"
    # (Detectron2's own). Detectron2's USE_FED_LOSS goes with all but the softmax.
    _add(cfg.MODEL.ROI_BOX_HEAD, "CLS_LOSS", "softmax_focal")

    # Focal loss, arXiv 1708.02002, in the paper's symbols: of the box head, and of the objectness
    # of MRCNNFocalRPN.
    for head, alpha in ((cfg.MODEL.ROI_BOX_HEAD, -1.0), (cfg.MODEL.RPN, 0.25)):
        if "FOCAL" not in head:
            head.FOCAL = type(cfg)()
        # α: weight of foreground in [0, 1], 1 - α that of background. -1.0 for no weighting.
        # RetinaNet has 0.25.
        _add(head.FOCAL, "ALPHA", alpha)
        # γ >= 0: how much well-classified examples are weighted down. 0.0 for none.
        # sigmoid_focal_star: γ > 0.
        _add(head.FOCAL, "GAMMA", 2.0)
        # π in (0, 1): foreground probability that a sigmoid starts from (section 3.3 of the paper).
        _add(head.FOCAL, "PRIOR_PROB", 0.01)
    # These are of the box head only.
    focal = cfg.MODEL.ROI_BOX_HEAD.FOCAL
    # α of each class, NUM_CLASSES numbers in [0, 1] that replace ALPHA. [] for ALPHA.
    _add(focal, "ALPHA_PER_CLASS", [])
    # β of sigmoid_focal_star: p* = sigmoid(γ x + β).
    _add(focal, "BETA", 1.0)
    # What the summed loss is divided by: the number of all "proposals" of the batch, as
    # Detectron2's cross entropy is, or of the "foreground" ones (at least 1), as RetinaNet's.
    _add(focal, "NORMALIZER", "proposals")

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


def _add(node: CfgNode, key: str, default: Any) -> None:
    if key not in node:
        node[key] = default
