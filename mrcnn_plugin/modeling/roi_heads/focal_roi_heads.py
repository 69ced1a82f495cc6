"""Detectron2's ROI heads with the box predictor and the poolers of this package.

Each class adds two choices to its parent:

* `MODEL.ROI_BOX_HEAD.CLS_LOSS` chooses the classification loss, see
  :class:`FocalFastRCNNOutputLayers`.
* `POOLER_TYPE` accepts "ROIAlignBicubic" and "ROIAlignBilinear" in addition to the stock types, see
  :class:`MultiscaleROIPooler`. `MODEL.MRCNN_PLUGIN.ROI_ALIGN.A` is the parameter of the cubic kernel.

Parameters have the same names as in the parent, so its checkpoints load.
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


def _focal_predictor(cfg: CfgNode, stock: FastRCNNOutputLayers) -> FastRCNNOutputLayers:
    """Returns a predictor to replace the one of the parent, which hard-codes its class.

    A predictor of the user's own class stays, because a replacement would lose what it adds.

    Raises:
        ValueError: the config asks for a loss of this package, which such a predictor does not have.
    """
    if isinstance(stock, FocalFastRCNNOutputLayers):
        return stock
    if type(stock) is not FastRCNNOutputLayers:
        for key, needed in (("CLS_LOSS", "cross_entropy"), ("CLS_LOSS_WEIGHT", 1.0)):
            value = cfg.MODEL.ROI_BOX_HEAD[key]
            if value != needed:
                raise ValueError(
                    f"MODEL.ROI_BOX_HEAD.{key} is {value!r}, but {cfg.MODEL.ROI_HEADS.NAME} predicts boxes with "
                    f"{type(stock).__qualname__}, which does not read this key: set it to {needed!r}, or derive "
                    f"that class from FocalFastRCNNOutputLayers"
                )
        return stock
    # It takes over the weights of the stock predictor, and the random generator keeps its state. With
    # the same seed, a model therefore starts with the weights of the stock model, and the two differ
    # in the loss only.
    with torch.random.fork_rng(devices=[]):
        focal = FocalFastRCNNOutputLayers(
            cfg,
            ShapeSpec(channels=stock.cls_score.in_features),
            # Each stage of a cascade has its own transform.
            box2box_transform=stock.box2box_transform,
        )
    focal.cls_score.weight = stock.cls_score.weight
    focal.bbox_pred.weight = stock.bbox_pred.weight
    return focal


@ROI_HEADS_REGISTRY.register()
class MRCNNFocalROIHeads(StandardROIHeads):
    """Detectron2's StandardROIHeads with more values of `CLS_LOSS` and `POOLER_TYPE`.

    See :class:`FocalFastRCNNOutputLayers` and :class:`MultiscaleROIPooler`.
    """

    # Detectron2 adds these annotations to StandardROIHeads when it exports to TorchScript. TorchScript
    # ignores the annotations of a parent, so they are repeated here.
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
    """Detectron2's CascadeROIHeads, as :class:`MRCNNFocalROIHeads`. All stages have the same loss.

    In the method resolution order, CascadeROIHeads follows :class:`MRCNNFocalROIHeads`. Its `super()`
    therefore builds the heads of a cascade.
    """


@ROI_HEADS_REGISTRY.register()
class MRCNNFocalRes5ROIHeads(Res5ROIHeads):
    """Detectron2's Res5ROIHeads ("C4"), as :class:`MRCNNFocalROIHeads`.

    Boxes and masks share one pooler. `MODEL.ROI_BOX_HEAD.POOLER_TYPE` chooses its type.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        heads = init_head(super().from_config, cfg, input_shape, "ROI_BOX_HEAD", "pooler")
        heads["box_predictor"] = _focal_predictor(cfg, heads["box_predictor"])
        return heads
