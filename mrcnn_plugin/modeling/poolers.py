"""The pooler type ROIAlignBicubic for Detectron2's ROIPooler."""

from typing import Any, Callable, Dict

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.poolers import ROIPooler
from torch import nn

from ..layers import ROIAlign


def use_bicubic(pooler: ROIPooler, a: float) -> ROIPooler:
    """Replaces the level poolers of an ROIPooler of type ROIAlignV2 by bicubic ones, in place.

    How boxes are assigned to levels stays with Detectron2.

    Args:
        a: parameter of the cubic kernel, see :func:`mrcnn_plugin.layers.roi_align`.
    """
    pooler.level_poolers = nn.ModuleList(
        ROIAlign(
            p.output_size,
            p.spatial_scale,
            p.sampling_ratio,
            p.aligned,
            interpolation="bicubic",
            a=a,
        )
        for p in pooler.level_poolers
    )
    return pooler


def init_head(
    init: Callable[[CfgNode, Dict[str, ShapeSpec]], Dict[str, Any]],
    cfg: CfgNode,
    input_shape: Dict[str, ShapeSpec],
    name: str,
    pooler: str,
) -> Dict[str, Any]:
    """Calls `init`, a method of a Detectron2 class of ROI heads that builds a pooler from a config,
    so that it knows ROIAlignBicubic.

    Args:
        init: the method of the parent class, such as `_init_box_head`.
        cfg, input_shape: its arguments.
        name: the config node, "ROI_BOX_HEAD", "ROI_MASK_HEAD" or "ROI_KEYPOINT_HEAD".
        pooler: the key of the pooler in what `init` returns.

    Returns:
        What `init` returns, with the pooler that `cfg.MODEL.<name>.POOLER_TYPE` asks for.
    """
    if cfg.MODEL[name].POOLER_TYPE != "ROIAlignBicubic":
        return init(cfg, input_shape)
    a = cfg.MODEL.ROI_ALIGN.A
    # ROIPooler only builds the types it knows: let it build the bilinear one with the same
    # alignment.
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL[name].POOLER_TYPE = "ROIAlignV2"
    head = init(cfg, input_shape)
    if head:  # {} if cfg switches the head off
        use_bicubic(head[pooler], a)
    return head
