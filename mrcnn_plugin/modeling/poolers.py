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
) -> Dict[str, Any]:
    """Calls `init`, a `_init_*_head` of Detectron2's StandardROIHeads, so that it knows
    ROIAlignBicubic.

    Args:
        init: the method of the parent class.
        cfg, input_shape: its arguments.
        name: "box", "mask" or "keypoint".

    Returns:
        What `init` returns, with the pooler that `cfg.MODEL.ROI_<NAME>_HEAD.POOLER_TYPE` asks for.
    """
    key = f"ROI_{name.upper()}_HEAD"
    if cfg.MODEL[key].POOLER_TYPE != "ROIAlignBicubic":
        return init(cfg, input_shape)
    a = cfg.MODEL.ROI_ALIGN.A
    # ROIPooler only builds the types it knows: let it build the bilinear one with the same
    # alignment.
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL[key].POOLER_TYPE = "ROIAlignV2"
    head = init(cfg, input_shape)
    if head:  # {} if cfg switches the head off
        use_bicubic(head[f"{name}_pooler"], a)
    return head
