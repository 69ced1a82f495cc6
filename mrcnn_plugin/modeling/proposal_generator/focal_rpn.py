"""An RPN with a focal loss."""

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN
from detectron2.structures import Boxes
from torch import Tensor, nn

from ...layers import sigmoid_focal_loss
from ..focal_options import check_focal_options, prior_bias


@PROPOSAL_GENERATOR_REGISTRY.register()
class MRCNNFocalRPN(RPN):
    """Detectron2's RPN with a focal loss for the objectness (arXiv 1708.02002, equation 5).

    The RPN does not sample anchors: the loss is computed over all anchors that the labelling does not
    ignore. `loss_rpn_cls` is the sum divided by the number of foreground anchors of the batch, at
    least 1, as in the paper. (Detectron2's RetinaNet averages that number over iterations.)

    `loss_rpn_loc` is computed by the parent. It is divided by BATCH_SIZE_PER_IMAGE times the number of
    images, as in the parent. Its value is therefore that of the parent if no image has more
    foreground anchors than the parent samples (POSITIVE_FRACTION · BATCH_SIZE_PER_IMAGE). If an image
    has more, all of them count.

    Parameters have the same names as in RPN, so its checkpoints load.
    """

    @configurable
    def __init__(
        self,
        *,
        head: nn.Module,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        prior_prob: float = 0.01,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            head: as for :class:`RPN`. It must have a layer `objectness_logits` with a bias, as
                Detectron2's StandardRPNHead has.
            focal_alpha: α in [0, 1], the weight of foreground, while that of background is 1 - α. -1
                means no weights.
            focal_gamma: γ >= 0.
            prior_prob: π in (0, 1), the objectness with which the head starts.
            kwargs: as for :class:`RPN`.

        Raises:
            ValueError: an argument is out of range, or the head has no such layer.
        """
        check_focal_options("MODEL.RPN.FOCAL", focal_alpha, focal_gamma, prior_prob)
        super().__init__(head=head, **kwargs)
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        bias = getattr(getattr(head, "objectness_logits", None), "bias", None)
        if bias is None:
            raise ValueError(
                "MODEL.PROPOSAL_GENERATOR.NAME 'MRCNNFocalRPN' needs a MODEL.RPN.HEAD_NAME whose head "
                f"has a layer `objectness_logits` with a bias, as 'StandardRPNHead' has, got "
                f"{type(head).__name__}"
            )
        nn.init.constant_(bias, prior_bias(prior_prob))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        return {
            **super().from_config(cfg, input_shape),
            "focal_alpha": cfg.MODEL.RPN.FOCAL.ALPHA,
            "focal_gamma": cfg.MODEL.RPN.FOCAL.GAMMA,
            "prior_prob": cfg.MODEL.RPN.FOCAL.PRIOR_PROB,
        }

    def _subsample_labels(self, label: Tensor) -> Tensor:
        return label

    @torch.jit.unused
    def losses(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """Computes the losses as :meth:`RPN.losses` does, but `loss_rpn_cls` is the focal loss.

        The parent is called for `loss_rpn_loc` and for what it logs. Its own `loss_rpn_cls` is
        replaced.
        """
        losses = super().losses(
            anchors, pred_objectness_logits, gt_labels, pred_anchor_deltas, gt_boxes
        )
        loss_cls = self.focal_loss(cat(pred_objectness_logits, dim=1), torch.stack(gt_labels))
        losses["loss_rpn_cls"] = loss_cls * self.loss_weight.get("loss_rpn_cls", 1.0)
        return losses

    def focal_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Computes the focal loss.

        Args:
            logits: [N, R], the logits of R anchors in N images.
            labels: [N, R], 1 for foreground, 0 for background and -1 for ignored anchors.

        Returns:
            A scalar.
        """
        foreground = labels == 1
        loss = sigmoid_focal_loss(logits, foreground, self.focal_alpha, self.focal_gamma)
        return loss.masked_fill(labels < 0, 0).sum() / foreground.sum().clamp(min=1)
