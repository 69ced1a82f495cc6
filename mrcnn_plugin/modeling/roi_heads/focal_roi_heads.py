"""StandardROIHeads with a focal-loss box predictor and bicubic poolers."""

from typing import Any, Dict

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, StandardROIHeads

from ..poolers import init_head
from .focal_fast_rcnn import FocalFastRCNNOutputLayers


@ROI_HEADS_REGISTRY.register()
class FocalROIHeads(StandardROIHeads):
    """Detectron2's StandardROIHeads with two more choices in the config.

    * `MODEL.ROI_BOX_HEAD.CLS_LOSS` chooses the classification loss, see
      :class:`FocalFastRCNNOutputLayers`.
    * `POOLER_TYPE: "ROIAlignBicubic"` is known in ROI_BOX_HEAD, ROI_MASK_HEAD and
      ROI_KEYPOINT_HEAD, beside every stock type; `MODEL.ROI_ALIGN.A` sets the kernel.

    Parameters have the names that they have in StandardROIHeads, so its checkpoints load.
    """

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]) -> Dict[str, Any]:
        head = init_head(super()._init_box_head, cfg, input_shape, "box")
        # The parent hard-codes FastRCNNOutputLayers.
        head["box_predictor"] = FocalFastRCNNOutputLayers(cfg, head["box_head"].output_shape)
        return head

    @classmethod
    def _init_mask_head(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]) -> Dict[str, Any]:
        return init_head(super()._init_mask_head, cfg, input_shape, "mask")

    @classmethod
    def _init_keypoint_head(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]) -> Dict[str, Any]:
        return init_head(super()._init_keypoint_head, cfg, input_shape, "keypoint")
