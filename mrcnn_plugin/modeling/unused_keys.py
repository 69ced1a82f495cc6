"""Keys of this package that a config changes without choosing what reads them."""

from functools import reduce
from typing import Any, List

from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import BACKBONE_REGISTRY, ROI_HEADS_REGISTRY
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.roi_heads import Res5ROIHeads
from fvcore.common.registry import Registry

from ..config import add_mrcnn_config


def find_unused_keys(cfg: CfgNode) -> List[str]:
    """
    Args:
        cfg: a config with the keys of this package.

    Returns:
        A sentence for each key, or node of keys, that differs from its default though the component
        that reads it is not chosen: what the user wanted by it does not happen.
    """
    default = get_cfg()
    add_mrcnn_config(default)
    model = cfg.MODEL
    has_roi_heads = model.META_ARCHITECTURE != "RetinaNet"
    backbone = _is_ours(BACKBONE_REGISTRY, model.BACKBONE.NAME)
    heads = has_roi_heads and _is_ours(ROI_HEADS_REGISTRY, model.ROI_HEADS.NAME)
    rpn = _is_ours(PROPOSAL_GENERATOR_REGISTRY, model.PROPOSAL_GENERATOR.NAME)
    of_heads = "MODEL.ROI_HEADS.NAME", model.ROI_HEADS.NAME, heads
    # ROIAlignBilinear has no parameter. Res5ROIHeads have one pooler, that of ROI_BOX_HEAD.
    nodes = ["ROI_BOX_HEAD"]
    if not (heads and issubclass(ROI_HEADS_REGISTRY.get(model.ROI_HEADS.NAME), Res5ROIHeads)):
        nodes += ["ROI_MASK_HEAD"] * model.MASK_ON + ["ROI_KEYPOINT_HEAD"] * model.KEYPOINT_ON
    pooler_types = {node: model[node].POOLER_TYPE for node in nodes}
    bicubic = heads and "ROIAlignBicubic" in pooler_types.values()
    of_backbone = "MODEL.BACKBONE.NAME", model.BACKBONE.NAME
    readers = {
        "MODEL.ROI_BOX_HEAD.CLS_LOSS": of_heads,
        "MODEL.ROI_BOX_HEAD.FOCAL": of_heads,
        "MODEL.MRCNN_PLUGIN.ROI_ALIGN": ("POOLER_TYPE of the heads", pooler_types, bicubic),
        "MODEL.RPN.FOCAL": (
            "MODEL.PROPOSAL_GENERATOR.NAME",
            model.PROPOSAL_GENERATOR.NAME,
            has_roi_heads and rpn,
        ),
        "MODEL.FPN.UPSAMPLE": (*of_backbone, backbone),
        "MODEL.MRCNN_PLUGIN.BIFPN": (*of_backbone, backbone and "bifpn" in model.BACKBONE.NAME),
    }
    return [
        f"{key} is not its default, but nothing reads it: {reader} is {name!r} and "
        f"MODEL.META_ARCHITECTURE {model.META_ARCHITECTURE!r}"
        for key, (reader, name, is_read) in readers.items()
        if not is_read and _get(cfg, key) != _get(default, key)
    ]


def _is_ours(registry: Registry, name: str) -> bool:
    """Whether it is of this package, or derived from what is."""
    if name not in registry:
        return False
    component = registry.get(name)
    classes = getattr(component, "__mro__", (component,))
    return any(c.__module__.startswith("mrcnn_plugin.") for c in classes)


def _get(cfg: CfgNode, key: str) -> Any:
    return reduce(getattr, key.split("."), cfg)
