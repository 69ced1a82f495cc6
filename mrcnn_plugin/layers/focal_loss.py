"""Focal losses, element by element: -α_t (1 - p_t)^γ log p_t (Lin et al., arXiv 1708.02002, eq. 5).

The factor (1 - p_t)^γ is computed as exp(γ · log(1 - p_t)) from the logits. Taken as a power of 1 -
p_t, as fvcore's `sigmoid_focal_loss` does, its gradient is 0^(γ-1) · 0 = NaN at saturated logits
for 0 < γ < 1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def sigmoid_focal_loss(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal loss of independent binary classifications.

    Args:
        logits: any shape. Float16 and bfloat16 are computed in float32.
        targets: of the same shape, 1 for positive and 0 for negative.
        alpha: weight of the positive term in [0, 1], 1 - alpha that of the negative; below 0 for no
            weighting.
        gamma: focusing parameter, at least 0. 0 without alpha is binary cross entropy, to the bit.

    Returns:
        The loss of each element, float32 (float64 for float64 logits).
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    targets = targets.to(logits.dtype)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    log_miss = F.logsigmoid(logits * (1 - 2 * targets))  # log(1 - p_t)
    loss = torch.exp(gamma * log_miss) * cross_entropy
    if alpha >= 0:
        loss = (alpha * targets + (1 - alpha) * (1 - targets)) * loss
    return loss


def softmax_focal_loss(logits: Tensor, gt_classes: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal loss of a classification into C classes of which the last one is background.

    Args:
        logits: [R, C], C at least 2. Float16 and bfloat16 are computed in float32.
        gt_classes: [R], int64 in [0, C).
        alpha: weight of foreground rows in [0, 1], 1 - alpha that of background rows; below 0 for
            no weighting.
        gamma: focusing parameter, at least 0. 0 without alpha is cross entropy.

    Returns:
        The loss of each row, [R], float32 (float64 for float64 logits).
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_p = F.log_softmax(logits, dim=1)
    is_target = F.one_hot(gt_classes, logits.shape[1]).bool()
    log_miss = log_p.masked_fill(is_target, -torch.inf).logsumexp(1)  # log(1 - p_t)
    loss = torch.exp(gamma * log_miss) * F.nll_loss(log_p, gt_classes, reduction="none")
    if alpha >= 0:
        loss = torch.where(gt_classes < logits.shape[1] - 1, alpha, 1 - alpha) * loss
    return loss
