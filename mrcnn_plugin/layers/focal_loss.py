"""Focal losses of single elements: -α_t (1 - p_t)^γ log p_t (Lin et al., arXiv 1708.02002, eq. 5).

The factor (1 - p_t)^γ is computed from the logits as exp(γ · log(1 - p_t)). fvcore's
`sigmoid_focal_loss` computes it as a power of 1 - p_t. For 0 < γ < 1 and saturated logits, the
gradient of that power is 0^(γ-1) · 0 = NaN.

The values of tensors never decide what is computed, so the host never waits for a GPU.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

Alpha = float | Tensor


def sigmoid_focal_loss(logits: Tensor, targets: Tensor, alpha: Alpha, gamma: float) -> Tensor:
    """Focal loss of independent binary classifications (eq. 5 of the paper).

    Args:
        logits: a tensor of any shape. Float16 and bfloat16 are computed in float32.
        targets: a tensor of the same shape, 1 for positive and 0 for negative.
        alpha: a number in [0, 1], the weight of positive elements; negative elements have the
            weight 1 - alpha. A number below 0 turns the weighting off. A tensor [K] of weights in
            [0, 1] gives one for each column of logits [..., K].
        gamma: focusing parameter γ, at least 0. With gamma 0 and no weighting, the result is
            exactly the binary cross entropy.

    Returns:
        The loss of each element, in the shape of logits, float32 (float64 for float64 logits).
    """
    logits = _at_least_float32(logits)
    targets = targets.to(logits.dtype)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    log_miss = F.logsigmoid(logits * (1 - 2 * targets))  # log(1 - p_t)
    return _balance(torch.exp(gamma * log_miss) * cross_entropy, targets, alpha)


def sigmoid_focal_star_loss(
    logits: Tensor, targets: Tensor, alpha: Alpha, gamma: float, beta: float
) -> Tensor:
    """The variant FL* of the focal loss (appendix A of the paper): -α_t log(σ(γ x_t + β)) / γ.

    Here x_t is x for a positive target and -x for a negative one. The paper uses γ = 2 with β = 1,
    and γ = 4 with β = 0. At inference the probability is σ(x), as for the focal loss.

    Args:
        logits, targets, alpha: see :func:`sigmoid_focal_loss`.
        gamma: steepness γ, above 0.
        beta: shift β. With beta 0, gamma 1 and no weighting, the result is exactly the binary
            cross entropy.

    Returns:
        The loss of each element, in the shape of logits, float32 (float64 for float64 logits).
    """
    logits = _at_least_float32(logits)
    targets = targets.to(logits.dtype)
    # Since γ x_t + β = ±(γ x ± β), this is the cross entropy at shifted logits.
    shifted = gamma * logits + beta * (2 * targets - 1)
    cross_entropy = F.binary_cross_entropy_with_logits(shifted, targets, reduction="none")
    return _balance(cross_entropy / gamma, targets, alpha)


def softmax_focal_loss(logits: Tensor, gt_classes: Tensor, alpha: Alpha, gamma: float) -> Tensor:
    """Focal loss of a classification into C classes, the last of which is the background.

    Args:
        logits: [R, C] with C at least 2. Float16 and bfloat16 are computed in float32.
        gt_classes: [R], int64 in [0, C), the class of each row.
        alpha: a number in [0, 1], the weight of foreground rows; background rows have the weight
            1 - alpha. A number below 0 turns the weighting off. A tensor [C - 1] gives the weight
            of each foreground class; the weight of the background is then 1 minus their mean.
        gamma: focusing parameter γ, at least 0. With gamma 0 and no weighting, the result is
            exactly the cross entropy.

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
    """Turns classes [R] int64 into a mask [R, num_classes] bool with the column of each class set.

    Unlike torch's `one_hot`, it does not read values on the host. If a class is num_classes or
    more, its row is False everywhere.
    """
    return classes[:, None] == torch.arange(num_classes, device=classes.device)


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _balance(loss: Tensor, targets: Tensor, alpha: Alpha) -> Tensor:
    """Multiplies the loss by α_t, unless alpha is below 0."""
    if isinstance(alpha, Tensor) or alpha >= 0:
        loss = (alpha * targets + (1 - alpha) * (1 - targets)) * loss
    return loss
