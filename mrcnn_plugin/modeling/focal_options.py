"""The options of a focal loss (arXiv 1708.02002) that the box head and the RPN share."""

import math
from collections.abc import Sequence

Alpha = float | Sequence[float]


def check_focal_options(
    key: str, alpha: Alpha, gamma: float, prior_prob: float, num_classes: int = 1
) -> None:
    """Checks the range of each option.

    Args:
        key: the config node of the options, which messages name.
        alpha: the value of ALPHA, or the sequence ALPHA_PER_CLASS.
        gamma: the value of GAMMA.
        prior_prob: the value of PRIOR_PROB.
        num_classes: the length that ALPHA_PER_CLASS must have.

    Raises:
        ValueError: an option is out of range.
    """
    if isinstance(alpha, (int, float)):
        if not (_is_fraction(alpha) or alpha == -1):
            raise ValueError(
                f"{key}.ALPHA must lie in [0, 1], or be -1.0 for no weighting, got {alpha}"
            )
    elif len(alpha) != num_classes or not all(_is_fraction(a) for a in alpha):
        raise ValueError(
            f"{key}.ALPHA_PER_CLASS must hold NUM_CLASSES = {num_classes} numbers in [0, 1], "
            f"or none, got {len(alpha)}: {list(alpha)}"
        )
    if not (gamma >= 0 and math.isfinite(gamma)):
        raise ValueError(f"{key}.GAMMA must be finite and at least 0, got {gamma}")
    if not 0 < prior_prob < 1:
        raise ValueError(f"{key}.PRIOR_PROB must lie between 0 and 1, got {prior_prob}")


def _is_fraction(value: object) -> bool:
    return isinstance(value, (int, float)) and 0 <= value <= 1


def prior_bias(prior_prob: float) -> float:
    """Returns the bias b for which sigmoid(b) = prior_prob (section 4.1, "Initialization")."""
    return -math.log((1 - prior_prob) / prior_prob)
