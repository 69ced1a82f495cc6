"""Fast R-CNN's box predictor with a choice of classification losses."""

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
    """FastRCNNOutputLayers that can learn to classify by focal loss (arXiv 1708.02002).

    * "cross_entropy": exactly the parent, which is softmax cross entropy unless its own options say
      otherwise.
    * "sigmoid_focal": eq. 5 of the paper on the K foreground columns. Scores are sigmoids, and the
      layer starts from the foreground probability `prior_prob`. The background column is kept, so
      that checkpoints fit, but not trained.
    * "sigmoid_focal_star": the same with the loss FL* of the paper's appendix A.
    * "softmax_focal": (1 - p_t)^γ times the softmax cross entropy over all K + 1 columns.

    With alpha -1, the normalizer "proposals" and gamma 0 (FL*: gamma 1, beta 0) they are sigmoid
    and softmax cross entropy as Detectron2 computes them.

    The parent's federated loss (`use_fed_loss`, with `use_sigmoid_ce` as the parent demands) works
    with the sigmoid losses: only the columns of its classes count. `use_sigmoid_ce` alone asks
    them for what they do anyway.
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
            input_shape: shape of the input features.
            cls_loss: "cross_entropy", "sigmoid_focal", "sigmoid_focal_star" or "softmax_focal".
            focal_alpha: α, weight of foreground in [0, 1] (1 - α that of background), or -1 for no
                weighting. Or K such weights, one for each class: those of the positive term of its
                column, 1 - α of the negative term. "softmax_focal" has one row for background
                instead, with 1 - their mean.
            focal_gamma: γ >= 0, and > 0 for "sigmoid_focal_star".
            focal_beta: β, used by "sigmoid_focal_star".
            prior_prob: π in (0, 1), used by the sigmoid losses.
            normalizer: the summed loss is divided by the number of "foreground" proposals, at least
                1, or of all "proposals". Used by the focal losses.
            kwargs: as for :class:`FastRCNNOutputLayers`.

        Raises:
            ValueError: one of them is out of its range, or the parent's `use_sigmoid_ce` or
                `use_fed_loss` is on and cls_loss is "softmax_focal".
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
            # Not persistent, so that checkpoints stay those of the parent.
            alpha = torch.tensor(focal_alpha, dtype=torch.float32)
            self.register_buffer("focal_alpha", alpha, persistent=False)
        self.focal_gamma = focal_gamma
        self.focal_beta = focal_beta
        self.normalizer = normalizer
        if cls_loss in SIGMOID_LOSSES:
            nn.init.constant_(self.cls_score.bias[:-1], prior_bias(prior_prob))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        # In full, so that a search for a key finds this place.
        alphas = cfg.MODEL.ROI_BOX_HEAD.FOCAL.ALPHA_PER_CLASS
        return {
            **super().from_config(cfg, input_shape),
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
        """As :meth:`FastRCNNOutputLayers.losses`, with `loss_cls` by `cls_loss`.

        Args:
            predictions: logits [R, K + 1] and box deltas [R, 4 K], or [R, 4] if class-agnostic.
            proposals: R of them in all images, with `proposal_boxes`, `gt_classes` (int64 in [0, K],
                K for background), and `gt_boxes` where an image has objects.

        Returns:
            The scalars `loss_cls` and `loss_box_reg`, each times its weight.
        """
        if self.cls_loss == "cross_entropy":
            return super().losses(predictions, proposals)
        scores, deltas = predictions
        if proposals:
            gt_classes = cat([p.gt_classes for p in proposals])
            boxes = cat([p.proposal_boxes.tensor for p in proposals])
            # In an image without objects every proposal is background, whose box counts for nothing.
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
        """The logits by which accuracy is logged: the largest column is what is detected."""
        if self.cls_loss not in SIGMOID_LOSSES:
            return scores
        # The background column is not trained. The score threshold takes its place, so that the
        # largest column is background where nothing would be detected.
        threshold = min(max(self.test_score_thresh, 1e-6), 1 - 1e-6)
        return F.pad(scores[:, :-1], (0, 1), value=math.log(threshold / (1 - threshold)))

    def focal_loss(self, scores: Tensor, gt_classes: Tensor) -> Tensor:
        """
        Args:
            scores: [R, K + 1], logits of R proposals.
            gt_classes: [R], int64 in [0, K], K for background.

        Returns:
            Scalar, 0 if R is 0.
        """
        if len(gt_classes) == 0:
            # The gradient is 0 and not None: all workers of a distributed training need one.
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
        """[K], 1 for the classes that the parent chooses for its federated loss, otherwise 0."""
        chosen = self.get_fed_loss_classes(
            gt_classes,
            num_fed_loss_classes=self.fed_loss_num_classes,
            num_classes=self.num_classes,
            weight=self.fed_loss_cls_weights,
        )
        # What is chosen may hold the background's number, K.
        columns = self.fed_loss_cls_weights.new_zeros(self.num_classes + 1)
        return columns.index_fill(0, chosen, 1)[:-1]

    def predict_probs(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> list[Tensor]:
        """As the parent's: [Ri, K + 1] for each image; sigmoids for the sigmoid losses."""
        # TorchScript knows no super(), and len() would become a constant of a trace.
        scores = predictions[0]
        probs = scores.sigmoid() if self.scores_are_sigmoids else F.softmax(scores, dim=-1)
        return probs.split([p.__len__() for p in proposals])
