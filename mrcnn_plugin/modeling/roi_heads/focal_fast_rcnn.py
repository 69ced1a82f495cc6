"""Fast R-CNN's box predictor with a choice of classification losses."""

import math
from typing import Any, Dict, List, Tuple

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Instances
from torch import Tensor, nn

from ...layers import sigmoid_focal_loss, softmax_focal_loss

CLS_LOSSES = ("cross_entropy", "sigmoid_focal", "softmax_focal")
NORMALIZERS = ("foreground", "proposals")


class FocalFastRCNNOutputLayers(FastRCNNOutputLayers):
    """FastRCNNOutputLayers that can learn to classify by focal loss (arXiv 1708.02002).

    * "cross_entropy": exactly the parent, which is softmax cross entropy unless its own options say
      otherwise.
    * "sigmoid_focal": eq. 5 of the paper on the K foreground columns. Scores are sigmoids, and the
      layer starts from the foreground probability `prior_prob`. The background column is kept, so
      that checkpoints fit, but not trained.
    * "softmax_focal": (1 - p_t)^γ times the softmax cross entropy over all K + 1 columns.

    With gamma 0, alpha -1 and the normalizer "proposals" the latter two are sigmoid and softmax
    cross entropy as Detectron2 computes them.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        cls_loss: str = "sigmoid_focal",
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        prior_prob: float = 0.01,
        normalizer: str = "foreground",
        **kwargs: Any,
    ) -> None:
        """
        Args:
            input_shape: shape of the input features.
            cls_loss: "cross_entropy", "sigmoid_focal" or "softmax_focal".
            focal_alpha: α, weight of foreground in [0, 1] (1 - α that of background), or -1 for no
                weighting.
            focal_gamma: γ >= 0.
            prior_prob: π in (0, 1), used by "sigmoid_focal".
            normalizer: the summed loss is divided by the number of "foreground" proposals, at least
                1, or of all "proposals". Used by the focal losses.
            kwargs: as for :class:`FastRCNNOutputLayers`.

        Raises:
            ValueError: one of them is out of its range, or the parent's `use_sigmoid_ce` or
                `use_fed_loss` is on and cls_loss is not "cross_entropy".
        """
        super().__init__(input_shape, **kwargs)
        if cls_loss not in CLS_LOSSES:
            raise ValueError(
                f"MODEL.ROI_BOX_HEAD.CLS_LOSS must be one of {CLS_LOSSES}, got {cls_loss!r}"
            )
        focal = "MODEL.ROI_BOX_HEAD.FOCAL"
        if not (0 <= focal_alpha <= 1 or focal_alpha == -1):
            raise ValueError(
                f"{focal}.ALPHA must lie in [0, 1], or be -1 for no weighting, got {focal_alpha}"
            )
        if not (focal_gamma >= 0 and math.isfinite(focal_gamma)):
            raise ValueError(f"{focal}.GAMMA must be finite and at least 0, got {focal_gamma}")
        if not 0 < prior_prob < 1:
            raise ValueError(f"{focal}.PRIOR_PROB must lie between 0 and 1, got {prior_prob}")
        if normalizer not in NORMALIZERS:
            raise ValueError(f"{focal}.NORMALIZER must be one of {NORMALIZERS}, got {normalizer!r}")
        for option in ("use_sigmoid_ce", "use_fed_loss"):
            if cls_loss != "cross_entropy" and getattr(self, option, False):
                raise ValueError(
                    f"MODEL.ROI_BOX_HEAD.{option.upper()} replaces the loss of CLS_LOSS "
                    f"'cross_entropy' and cannot be combined with CLS_LOSS {cls_loss!r}: "
                    f"set one of the two"
                )
        self.cls_loss = cls_loss
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.normalizer = normalizer
        if cls_loss == "sigmoid_focal":
            nn.init.constant_(self.cls_score.bias[:-1], -math.log((1 - prior_prob) / prior_prob))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> Dict[str, Any]:
        focal = cfg.MODEL.ROI_BOX_HEAD.FOCAL
        return {
            **super().from_config(cfg, input_shape),
            "cls_loss": cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS,
            "focal_alpha": focal.ALPHA,
            "focal_gamma": focal.GAMMA,
            "prior_prob": focal.PRIOR_PROB,
            "normalizer": focal.NORMALIZER,
        }

    def losses(
        self, predictions: Tuple[Tensor, Tensor], proposals: List[Instances]
    ) -> Dict[str, Tensor]:
        """As :meth:`FastRCNNOutputLayers.losses`, with `loss_cls` by `cls_loss`."""
        scores, deltas = predictions
        if self.cls_loss == "sigmoid_focal":
            # The parent logs accuracies by the largest column. With the score threshold in place of
            # the background column, which is not trained, they tell what would be detected.
            threshold = torch.tensor(self.test_score_thresh).logit(eps=1e-6).item()
            predictions = F.pad(scores[:, :-1], (0, 1), value=threshold), deltas
        losses = super().losses(predictions, proposals)
        if self.cls_loss != "cross_entropy":
            loss_cls = self.focal_loss(scores, cat([p.gt_classes for p in proposals]))
            losses["loss_cls"] = loss_cls * self.loss_weight.get("loss_cls", 1.0)
        return losses

    def focal_loss(self, scores: Tensor, gt_classes: Tensor) -> Tensor:
        """
        Args:
            scores: [R, K + 1], logits of R proposals.
            gt_classes: [R], int64 in [0, K], K for background.

        Returns:
            Scalar, 0 if R is 0.
        """
        is_foreground = gt_classes < self.num_classes
        if self.cls_loss == "sigmoid_focal":
            targets = F.one_hot(gt_classes, self.num_classes + 1)[:, :-1]
            loss = sigmoid_focal_loss(scores[:, :-1], targets, self.focal_alpha, self.focal_gamma)
        else:
            loss = softmax_focal_loss(scores, gt_classes, self.focal_alpha, self.focal_gamma)
        if self.normalizer == "foreground":
            return loss.sum() / is_foreground.sum().clamp(min=1)
        return loss.sum() / max(len(gt_classes), 1)

    def predict_probs(
        self, predictions: Tuple[Tensor, Tensor], proposals: List[Instances]
    ) -> List[Tensor]:
        """As the parent's: [Ri, K + 1] for each image; sigmoids for "sigmoid_focal"."""
        if self.cls_loss != "sigmoid_focal":
            return super().predict_probs(predictions, proposals)
        return predictions[0].sigmoid().split([len(p) for p in proposals])
