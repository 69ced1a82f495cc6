"""The box predictor of Fast R-CNN, with a choice of classification losses."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling.roi_heads.fast_rcnn import (
    FastRCNNOutputLayers,
    _log_classification_stats,
)
from detectron2.structures import Instances
from torch import Tensor, nn

from ...layers import sigmoid_focal_loss, sigmoid_focal_star_loss, softmax_focal_loss
from ...layers.focal_loss import is_class
from ..focal_options import Alpha, check_focal_options, prior_bias

SIGMOID_LOSSES = ("sigmoid_focal", "sigmoid_focal_star")
CLS_LOSSES = ("cross_entropy", *SIGMOID_LOSSES, "softmax_focal")
NORMALIZERS = ("foreground", "proposals")


class FocalFastRCNNOutputLayers(FastRCNNOutputLayers):
    """FastRCNNOutputLayers with a choice of focal losses for the classification (arXiv 1708.02002).

    `cls_loss` has these values:

    * "cross_entropy" is the loss of the parent, a softmax cross entropy unless the options of the
      parent say otherwise.
    * "sigmoid_focal" is equation 5 of the paper for the K foreground columns. Scores are sigmoids,
      and the layer starts with the foreground probability `prior_prob`. The background column is not
      trained. It is kept so that checkpoints fit.
    * "sigmoid_focal_star" is the same with the loss FL* of the paper's appendix A.
    * "softmax_focal" is (1 - p_t)^γ times the softmax cross entropy over all K + 1 columns.

    With alpha -1, the normalizer "proposals" and gamma 0 (for FL*: gamma 1 and beta 0), they equal the
    sigmoid and the softmax cross entropy of Detectron2.

    The federated loss of the parent (`use_fed_loss`, which needs `use_sigmoid_ce`) works with the
    sigmoid losses. Only the columns of its classes then count. `use_sigmoid_ce` alone does not change
    the sigmoid losses.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        cls_loss: str = "softmax_focal",
        focal_alpha: Alpha = -1.0,
        focal_gamma: float = 2.0,
        focal_beta: float = 1.0,
        prior_prob: float = 0.01,
        normalizer: str = "proposals",
        **kwargs: Any,
    ) -> None:
        """
        Args:
            input_shape: the shape of the input features.
            cls_loss: "cross_entropy", "sigmoid_focal", "sigmoid_focal_star" or "softmax_focal".
            focal_alpha: α in [0, 1], the weight of foreground, while that of background is 1 - α. -1
                means no weights. A sequence has one α for each of the K classes. With the sigmoid
                losses, α is then the weight of the positive term in the column of the class. The
                negative term has the weight 1 - α. With "softmax_focal", the weight of background is 1
                minus the mean of all α.
            focal_gamma: γ >= 0. For "sigmoid_focal_star", γ > 0.
            focal_beta: β of "sigmoid_focal_star".
            prior_prob: π in (0, 1), which the sigmoid losses use.
            normalizer: the number by which the focal losses divide the summed loss: "proposals" for
                all proposals, or "foreground" for those of foreground, at least 1.
            kwargs: as for :class:`FastRCNNOutputLayers`.

        Raises:
            ValueError: an argument is out of range, or `cls_loss` is "softmax_focal" and the parent's
                `use_sigmoid_ce` or `use_fed_loss` is on.
        """
        if cls_loss not in CLS_LOSSES:
            raise ValueError(
                f"MODEL.ROI_BOX_HEAD.CLS_LOSS must be one of {CLS_LOSSES}, got {cls_loss!r}"
            )
        for option in ("use_sigmoid_ce", "use_fed_loss"):
            if cls_loss == "softmax_focal" and kwargs.get(option, False):
                raise ValueError(
                    f"MODEL.ROI_BOX_HEAD.{option.upper()} is for independent sigmoids, but "
                    f"CLS_LOSS {cls_loss!r} is a softmax: switch it off, or choose a CLS_LOSS of "
                    f"{('cross_entropy', *SIGMOID_LOSSES)}"
                )
        super().__init__(input_shape, **kwargs)
        focal = "MODEL.ROI_BOX_HEAD.FOCAL"
        check_focal_options(focal, focal_alpha, focal_gamma, prior_prob, self.num_classes)
        if cls_loss == "sigmoid_focal_star" and focal_gamma == 0:
            raise ValueError(f"{focal}.GAMMA must be above 0 for CLS_LOSS {cls_loss!r}, got 0")
        if not math.isfinite(focal_beta):
            raise ValueError(f"{focal}.BETA must be finite, got {focal_beta}")
        if normalizer not in NORMALIZERS:
            raise ValueError(f"{focal}.NORMALIZER must be one of {NORMALIZERS}, got {normalizer!r}")
        self.cls_loss = cls_loss
        self.scores_are_sigmoids = cls_loss in SIGMOID_LOSSES or kwargs.get("use_sigmoid_ce", False)
        if isinstance(focal_alpha, (int, float)):
            self.focal_alpha = focal_alpha
        else:
            # The buffer is not persistent, so that checkpoints have the same names as the parent's.
            alpha = torch.tensor(focal_alpha, dtype=torch.float32)
            self.register_buffer("focal_alpha", alpha, persistent=False)
        self.focal_gamma = focal_gamma
        self.focal_beta = focal_beta
        self.normalizer = normalizer
        if cls_loss in SIGMOID_LOSSES:
            nn.init.constant_(self.cls_score.bias[:-1], prior_bias(prior_prob))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        # Each key is written in full, so that a search for a key finds this place.
        alphas = cfg.MODEL.ROI_BOX_HEAD.FOCAL.ALPHA_PER_CLASS
        weight = cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS_WEIGHT
        if not (weight >= 0 and math.isfinite(weight)):
            raise ValueError(
                f"MODEL.ROI_BOX_HEAD.CLS_LOSS_WEIGHT must be finite and at least 0, got {weight}"
            )
        arguments = super().from_config(cfg, input_shape)
        return {
            **arguments,
            "loss_weight": {**arguments["loss_weight"], "loss_cls": weight},
            "cls_loss": cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS,
            "focal_alpha": alphas or cfg.MODEL.ROI_BOX_HEAD.FOCAL.ALPHA,
            "focal_gamma": cfg.MODEL.ROI_BOX_HEAD.FOCAL.GAMMA,
            "focal_beta": cfg.MODEL.ROI_BOX_HEAD.FOCAL.BETA,
            "prior_prob": cfg.MODEL.ROI_BOX_HEAD.FOCAL.PRIOR_PROB,
            "normalizer": cfg.MODEL.ROI_BOX_HEAD.FOCAL.NORMALIZER,
        }

    def losses(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor]:
        """Computes the losses as :meth:`FastRCNNOutputLayers.losses` does, but with the loss `cls_loss`.

        Args:
            predictions: the logits [R, K + 1] and the box deltas [R, 4 K], or [R, 4] if they are
                class-agnostic.
            proposals: the R proposals of all images. They have `proposal_boxes`, `gt_classes` (int64 in
                [0, K], where K is background), and `gt_boxes` if the image has objects.

        Returns:
            The scalars `loss_cls` and `loss_box_reg`, multiplied by their weights.
        """
        if self.cls_loss == "cross_entropy":
            return super().losses(predictions, proposals)
        scores, deltas = predictions
        if proposals:
            gt_classes = cat([p.gt_classes for p in proposals])
            boxes = cat([p.proposal_boxes.tensor for p in proposals])
            # In an image without objects, every proposal is background, and its box is not used.
            gt_boxes = cat(
                [
                    p.get("gt_boxes" if p.has("gt_boxes") else "proposal_boxes").tensor
                    for p in proposals
                ]
            )
        else:
            gt_classes = scores.new_zeros(0, dtype=torch.int64)
            boxes = gt_boxes = deltas.new_zeros(0, 4)
        _log_classification_stats(self._with_trained_background(scores), gt_classes)
        losses = {
            "loss_cls": self.focal_loss(scores, gt_classes),
            "loss_box_reg": self.box_reg_loss(boxes, gt_boxes, deltas, gt_classes),
        }
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    def _with_trained_background(self, scores: Tensor) -> Tensor:
        """Returns logits for logging the accuracy, in which the largest column is the detected class."""
        if self.cls_loss not in SIGMOID_LOSSES:
            return scores
        # The background column is not trained. The score threshold replaces it, so that background is
        # the largest column if nothing would be detected.
        threshold = min(max(self.test_score_thresh, 1e-6), 1 - 1e-6)
        return F.pad(scores[:, :-1], (0, 1), value=math.log(threshold / (1 - threshold)))

    def focal_loss(self, scores: Tensor, gt_classes: Tensor) -> Tensor:
        """Computes the focal loss.

        Args:
            scores: [R, K + 1], the logits of R proposals.
            gt_classes: [R], int64 in [0, K], where K is background.

        Returns:
            A scalar, which is 0 if R is 0.
        """
        if len(gt_classes) == 0:
            # This makes the gradient 0 and not None, because all workers of a distributed training
            # need a gradient.
            return scores.sum() * 0
        alpha, gamma = self.focal_alpha, self.focal_gamma
        if self.cls_loss == "softmax_focal":
            loss = softmax_focal_loss(scores, gt_classes, alpha, gamma)
        else:
            logits, targets = scores[:, :-1], is_class(gt_classes, self.num_classes)
            if self.cls_loss == "sigmoid_focal":
                loss = sigmoid_focal_loss(logits, targets, alpha, gamma)
            else:
                loss = sigmoid_focal_star_loss(logits, targets, alpha, gamma, self.focal_beta)
            if getattr(self, "use_fed_loss", False):
                loss = loss * self._federated_columns(gt_classes)
        if self.normalizer == "foreground":
            return loss.sum() / (gt_classes < self.num_classes).sum().clamp(min=1)
        return loss.sum() / len(gt_classes)

    def _federated_columns(self, gt_classes: Tensor) -> Tensor:
        """Returns [K] numbers, 1 for the classes that the parent's federated loss chooses and otherwise 0."""
        chosen = self.get_fed_loss_classes(
            gt_classes,
            num_fed_loss_classes=self.fed_loss_num_classes,
            num_classes=self.num_classes,
            weight=self.fed_loss_cls_weights,
        )
        # The chosen classes may include background, K.
        columns = self.fed_loss_cls_weights.new_zeros(self.num_classes + 1)
        return columns.index_fill(0, chosen, 1)[:-1]

    def predict_probs(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> list[Tensor]:
        """Returns the scores [Ri, K + 1] of each image, as the parent does. The sigmoid losses use sigmoids."""
        # TorchScript does not support super(), and len() would become a constant in a trace.
        scores = predictions[0]
        probs = scores.sigmoid() if self.scores_are_sigmoids else F.softmax(scores, dim=-1)
        return probs.split([p.__len__() for p in proposals])
