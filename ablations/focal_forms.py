"""Forms of the softmax focal loss that the study tries. They are no part of the package.

Each has ROI heads of its own, which a config chooses by `MODEL.ROI_HEADS.NAME`. The models start from
the weights of :class:`MRCNNFocalROIHeads` and read its keys.
"""

import abc
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.structures import Instances
from detectron2.structures.boxes import matched_pairwise_iou
from torch import Tensor

from mrcnn_plugin.layers import softmax_focal_loss
from mrcnn_plugin.modeling import FocalFastRCNNOutputLayers, MRCNNFocalROIHeads

# MODEL.ROI_HEADS.IOU_THRESHOLDS of all configs of this study, and what is called near to it.
IOU_THRESHOLD = 0.5
NEAR = 0.1


def matched_ious(proposals: list[Instances]) -> Tensor:
    """Returns the IoU [R] of each sampled proposal with its object, 0 in an image without objects."""
    ious = [
        matched_pairwise_iou(p.proposal_boxes, p.gt_boxes)
        if p.has("gt_boxes")
        else p.proposal_boxes.tensor.new_zeros(len(p))
        for p in proposals
    ]
    return cat(ious)


def is_near(ious: Tensor) -> Tensor:
    """Returns whether the label of a proposal is a matter of NEAR in its IoU."""
    return (ious - IOU_THRESHOLD).abs() <= NEAR


class PartlyFocalOutputLayers(FocalFastRCNNOutputLayers, abc.ABC):
    """A softmax focal loss whose factor (1 - p_t)^γ is 1 for some proposals."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.cls_loss != "softmax_focal" or self.normalizer != "proposals":
            raise ValueError(
                f"MODEL.ROI_BOX_HEAD.CLS_LOSS is {self.cls_loss!r} and FOCAL.NORMALIZER {self.normalizer!r}; "
                f"the ROI heads of this study need 'softmax_focal' and 'proposals'"
            )

    @abc.abstractmethod
    def has_factor(self, proposals: list[Instances]) -> Tensor:
        """Returns [R] booleans, which proposals have the factor."""

    def losses(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor]:
        self.factor_mask = self.has_factor(proposals)
        return super().losses(predictions, proposals)

    def row_losses(self, scores: Tensor, gt_classes: Tensor) -> Tensor:
        """Returns the loss [R] of each of the proposals that :meth:`losses` got."""
        focal, plain = (
            softmax_focal_loss(scores, gt_classes, self.focal_alpha, gamma)
            for gamma in (self.focal_gamma, 0.0)
        )
        return torch.where(self.factor_mask, focal, plain)

    def focal_loss(self, scores: Tensor, gt_classes: Tensor) -> Tensor:
        return self.row_losses(scores, gt_classes).sum() / max(len(gt_classes), 1)


class BackgroundFocalOutputLayers(PartlyFocalOutputLayers):
    """Only background has the factor."""

    def has_factor(self, proposals: list[Instances]) -> Tensor:
        return cat([p.gt_classes for p in proposals]) == self.num_classes


class FarFocalOutputLayers(PartlyFocalOutputLayers):
    """Proposals near the IoU threshold do not have the factor."""

    def has_factor(self, proposals: list[Instances]) -> Tensor:
        return ~is_near(matched_ious(proposals))


class NormalizedFocalOutputLayers(FocalFastRCNNOutputLayers):
    """The softmax focal loss, divided by the sum of its factors in place of their number."""

    def focal_loss(self, scores: Tensor, gt_classes: Tensor) -> Tensor:
        p = scores.detach().softmax(1).gather(1, gt_classes[:, None])
        divisor = ((1 - p) ** self.focal_gamma).sum().clamp(min=1e-6)
        return super().focal_loss(scores, gt_classes) * len(gt_classes) / divisor


class _FormROIHeads(MRCNNFocalROIHeads):
    predictor: type[FocalFastRCNNOutputLayers]

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        head = super()._init_box_head(cfg, input_shape)
        parent = head["box_predictor"]
        # The random numbers of the rest of the model stay those of the parent.
        with torch.random.fork_rng(devices=[]):
            form = cls.predictor(cfg, ShapeSpec(channels=parent.cls_score.in_features))
        form.load_state_dict(parent.state_dict())
        return {**head, "box_predictor": form}


@ROI_HEADS_REGISTRY.register()
class AblationsBackgroundFocalROIHeads(_FormROIHeads):
    predictor = BackgroundFocalOutputLayers


@ROI_HEADS_REGISTRY.register()
class AblationsFarFocalROIHeads(_FormROIHeads):
    predictor = FarFocalOutputLayers


@ROI_HEADS_REGISTRY.register()
class AblationsNormalizedFocalROIHeads(_FormROIHeads):
    predictor = NormalizedFocalOutputLayers
