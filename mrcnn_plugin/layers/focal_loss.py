"""Focal losses, element by element: -α_t (1 - p_t)^γ log p_t (Lin et al., arXiv 1708.02002, eq. 5).

The factor (1 - p_t)^γ is computed as exp(γ · log(1 - p_t)) from the logits. Taken as a power of 1 -
p_t, as fvcore's `sigmoid_focal_loss` does, its gradient is 0^(γ-1) · 0 = NaN at saturated logits
for 0 < γ < 1.

Nothing here waits for a GPU: no value of a tensor decides what is computed.
"""

from typing import Union

import torch
import torch.nn.functional as F
from torch import Tensor

Alpha = Union[float, Tensor]


def sigmoid_focal_loss(logits: Tensor, targets: Tensor, alpha: Alpha, gamma: float) -> Tensor:
    """Focal loss of independent binary classifications.

    Args:
        logits: any shape. Float16 and bfloat16 are computed in float32.
        targets: of the same shape, 1 for positive and 0 for negative.
        alpha: weight of the positive term in [0, 1], 1 - alpha that of the negative; below 0 for no
            weighting. Or such weights without the "below 0", one for each column: [K] for logits
            [..., K].
        gamma: focusing parameter, at least 0. 0 without alpha is binary cross entropy, to the bit.

    Returns:
        The loss of each element, float32 (float64 for float64 logits).
    """
    logits = _at_least_float32(logits)
    targets = targets.to(logits.dtype)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    log_miss = F.logsigmoid(logits * (1 - 2 * targets))  # log(1 - p_t)
    return _balance(torch.exp(gamma * log_miss) * cross_entropy, targets, alpha)


def sigmoid_focal_star_loss(
    logits: Tensor, targets: Tensor, alpha: Alpha, gamma: float, beta: float
) -> Tensor:
    """The variant FL* of appendix A of the paper, -α_t log(p*_t) / γ with p*_t = σ(γ x_t + β).

    x_t = ±x for positive and negative targets. The paper's settings are γ = 2, β = 1 and γ = 4,
    β = 0. The probability that a classifier so trained gives is σ(x), as for the focal loss.

    Args:
        logits, targets, alpha: as for :func:`sigmoid_focal_loss`.
        gamma: steepness, above 0.
        beta: shift. Beta 0 with gamma 1 and without alpha is binary cross entropy, to the bit.

    Returns:
        The loss of each element, float32 (float64 for float64 logits).
    """
    logits = _at_least_float32(logits)
    targets = targets.to(logits.dtype)
    # γ x_t + β = ±(γ x ± β): the cross entropy at shifted logits.
    shifted = gamma * logits + beta * (2 * targets - 1)
    cross_entropy = F.binary_cross_entropy_with_logits(shifted, targets, reduction="none")
    return _balance(cross_entropy / gamma, targets, alpha)


def softmax_focal_loss(logits: Tensor, gt_classes: Tensor, alpha: Alpha, gamma: float) -> Tensor:
    """Focal loss of a classification into C classes of which the last one is background.

    Args:
        logits: [R, C], C at least 2. Float16 and bfloat16 are computed in float32.
        gt_classes: [R], int64 in [0, C).
        alpha: weight of foreground rows in [0, 1], 1 - alpha that of background rows; below 0 for
            no weighting. Or [C - 1], the weight of each foreground class in [0, 1]; that of
            background is then 1 - their mean.
        gamma: focusing parameter, at least 0. 0 without alpha is cross entropy.

    Returns:
        The loss of each row, [R], float32 (float64 for float64 logits).
    """
    logits = _at_least_float32(logits)
    log_p = F.log_softmax(logits, dim=1)
    log_miss = log_p.masked_fill(is_class(gt_classes, logits.shape[1]), -torch.inf).logsumexp(1)
    loss = torch.exp(gamma * log_miss) * F.nll_loss(log_p, gt_classes, reduction="none")
    if isinstance(alpha, Tensor):
        loss = torch.cat([alpha, 1 - alpha.mean(0, keepdim=True)])[gt_classes] * loss
    elif alpha >= 0:
        loss = torch.where(gt_classes < logits.shape[1] - 1, alpha, 1 - alpha) * loss
    return loss


def is_class(classes: Tensor, num_classes: int) -> Tensor:
    """[R] int64 to [R, num_classes] bool, true where the column is the class of the row.

    Unlike torch's `one_hot` it reads no value, and a class from num_classes on is a row of False.
    """
    return classes[:, None] == torch.arange(num_classes, device=classes.device)


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _balance(loss: Tensor, targets: Tensor, alpha: Alpha) -> Tensor:
    """α_t loss, where alpha asks for it."""
    if isinstance(alpha, Tensor) or alpha >= 0:
        loss = (alpha * targets + (1 - alpha) * (1 - targets)) * loss
    return loss
