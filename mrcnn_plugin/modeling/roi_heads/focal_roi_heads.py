"""Detectron2's ROI heads with focal-loss box predictors and the poolers of this package.

Each class is its parent with two more choices in the config:

* `MODEL.ROI_BOX_HEAD.CLS_LOSS` chooses the classification loss, see
  :class:`FocalFastRCNNOutputLayers`;
* `POOLER_TYPE: "ROIAlignBicubic"` and `"ROIAlignBilinear"` are known wherever the parent reads a
  pooler type, beside every stock type, see :class:`MultiscaleROIPooler`;
  `MODEL.MRCNN_PLUGIN.ROI_ALIGN.A` sets the cubic kernel.

Parameters have the names that they have in the parent, so its checkpoints load.
"""

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import (
    ROI_HEADS_REGISTRY,
    CascadeROIHeads,
    FastRCNNOutputLayers,
    Res5ROIHeads,
    StandardROIHeads,
)

from ..poolers import init_head
from .focal_fast_rcnn import FocalFastRCNNOutputLayers


def _focal_predictor(cfg: CfgNode, stock: FastRCNNOutputLayers) -> FocalFastRCNNOutputLayers:
    """What takes the place of a predictor that the parent builds: it hard-codes the class."""
    # With the weights of the parent's, and without a further random number: a seed begins with the
    # same weights as with the parent, so that the choice of loss is all that differs.
    with torch.random.fork_rng(devices=[]):
        focal = FocalFastRCNNOutputLayers(
            cfg,
            ShapeSpec(channels=stock.cls_score.in_features),
            # A stage of a cascade has its own.
            box2box_transform=stock.box2box_transform,
        )
    focal.cls_score.weight = stock.cls_score.weight
    focal.bbox_pred.weight = stock.bbox_pred.weight
    return focal


@ROI_HEADS_REGISTRY.register()
class MRCNNFocalROIHeads(StandardROIHeads):
    """Detectron2's StandardROIHeads with focal loss and our poolers, see above."""

    # Detectron2 annotates StandardROIHeads so when it exports to TorchScript, which does not look
    # at the annotations of a parent.
    mask_on: torch.jit.Final[bool]  # type: ignore[name-defined]
    keypoint_on: torch.jit.Final[bool]  # type: ignore[name-defined]

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        head = init_head(super()._init_box_head, cfg, input_shape, "ROI_BOX_HEAD", "box_pooler")
        if "box_predictors" in head:
            head["box_predictors"] = [_focal_predictor(cfg, p) for p in head["box_predictors"]]
        else:
            head["box_predictor"] = _focal_predictor(cfg, head["box_predictor"])
        return head

    @classmethod
    def _init_mask_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        return init_head(super()._init_mask_head, cfg, input_shape, "ROI_MASK_HEAD", "mask_pooler")

    @classmethod
    def _init_keypoint_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        return init_head(
            super()._init_keypoint_head, cfg, input_shape, "ROI_KEYPOINT_HEAD", "keypoint_pooler"
        )


@ROI_HEADS_REGISTRY.register()
class MRCNNFocalCascadeROIHeads(MRCNNFocalROIHeads, CascadeROIHeads):
    """Detectron2's CascadeROIHeads with focal loss in every stage and our poolers, see above.

    The `super()` of :class:`MRCNNFocalROIHeads` is CascadeROIHeads here, which builds what it changes.
    """


@ROI_HEADS_REGISTRY.register()
class MRCNNFocalRes5ROIHeads(Res5ROIHeads):
    """Detectron2's Res5ROIHeads ("C4") with focal loss and our pooler, see above.

    Boxes and masks share one pooler, whose type is that of ROI_BOX_HEAD.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        heads = init_head(super().from_config, cfg, input_shape, "ROI_BOX_HEAD", "pooler")
        heads["box_predictor"] = _focal_predictor(cfg, heads["box_predictor"])
        return heads
