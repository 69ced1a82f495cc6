"""Independent truths that follow the definitions in plain float64 loops."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Alpha = float | Sequence[float]


def linear_kernel(x: float) -> float:
    return max(0.0, 1.0 - abs(x))


def keys_kernel(a: float) -> Callable[[float], float]:
    """Returns the piecewise cubic kernel of Keys (1981, eq. 4) with the parameter a."""

    def kernel(x: float) -> float:
        x = abs(x)
        if x < 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        if x < 2:
            return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
        return 0.0

    return kernel


def interpolate(plane: Array, y: float, x: float, kernel: Callable[[float], float]) -> float:
    """Sums over the 4 x 4 pixels around (y, x). Taps beyond the border read the border pixel."""
    height, width = plane.shape
    total = 0.0
    for row in range(math.floor(y) - 1, math.floor(y) + 3):
        for column in range(math.floor(x) - 1, math.floor(x) + 3):
            value = plane[min(max(row, 0), height - 1), min(max(column, 0), width - 1)]
            total += kernel(y - row) * kernel(x - column) * value
    return total


def roi_align(
    features: Array,
    rois: Array,
    output_size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    kernel: Callable[[float], float],
) -> Array:
    """Computes RoIAlign from its definition, sample by sample and tap by tap.

    Pools features [N, C, H, W] over rois [K, 5] into [K, C, *output_size].
    """
    _, channels, height, width = features.shape
    rows, columns = output_size
    output = np.zeros((len(rois), channels, rows, columns))
    for k, (batch, *box) in enumerate(rois):
        x1, y1, x2, y2 = (v * spatial_scale - (0.5 if aligned else 0.0) for v in box)
        roi_height, roi_width = y2 - y1, x2 - x1
        if not aligned:
            roi_height, roi_width = max(roi_height, 1.0), max(roi_width, 1.0)
        bin_height, bin_width = roi_height / rows, roi_width / columns
        samples_y = sampling_ratio or math.ceil(bin_height)
        samples_x = sampling_ratio or math.ceil(bin_width)
        for p in range(rows):
            for q in range(columns):
                for i in range(samples_y):
                    y = y1 + p * bin_height + (i + 0.5) * bin_height / samples_y
                    for j in range(samples_x):
                        x = x1 + q * bin_width + (j + 0.5) * bin_width / samples_x
                        if -1 <= y <= height and -1 <= x <= width:
                            y_in = min(max(y, 0.0), height - 1.0)
                            x_in = min(max(x, 0.0), width - 1.0)
                            for c in range(channels):
                                value = interpolate(features[int(batch), c], y_in, x_in, kernel)
                                output[k, c, p, q] += value / (samples_y * samples_x)
    return output


def sigmoid_focal_loss(logits: Array, targets: Array, alpha: Alpha, gamma: float) -> Array:
    """Computes eq. 5 of arXiv 1708.02002 for each element, in the shape of logits."""
    loss = np.empty(logits.shape)
    for index, x in np.ndenumerate(logits):
        positive = targets[index] == 1
        signed = float(x) if positive else -float(x)  # p_t = sigmoid(signed)
        log_pt = -np.logaddexp(0.0, -signed)
        one_minus_pt = math.exp(-np.logaddexp(0.0, signed))
        loss[index] = -balance(alpha, positive, index[-1]) * one_minus_pt**gamma * log_pt
    return loss


def sigmoid_focal_star_loss(
    logits: Array, targets: Array, alpha: Alpha, gamma: float, beta: float
) -> Array:
    """Computes -α_t log(sigmoid(γ y x + β)) / γ with y = ±1 (arXiv 1708.02002, appendix A)."""
    loss = np.empty(logits.shape)
    for index, x in np.ndenumerate(logits):
        positive = targets[index] == 1
        xt = float(x) if positive else -float(x)
        log_pt = -np.logaddexp(0.0, -(gamma * xt + beta))
        loss[index] = -balance(alpha, positive, index[-1]) * log_pt / gamma
    return loss


def softmax_focal_loss(
    logits: Array, classes: NDArray[np.int64], alpha: Alpha, gamma: float
) -> Array:
    """Computes -α_t (1 - p_t)^γ log p_t, where p is the softmax. The last column is background."""
    loss = np.empty(len(logits))
    for row, (x, target) in enumerate(zip(logits.astype(np.float64), classes, strict=True)):
        log_p = x - np.logaddexp.reduce(x)
        one_minus_pt = sum(math.exp(v) for j, v in enumerate(log_p) if j != target)
        alpha_t = balance(alpha, target < len(x) - 1, target)
        loss[row] = -alpha_t * one_minus_pt**gamma * log_p[target]
    return loss


def balance(alpha: Alpha, positive: bool, column: int) -> float:
    """Returns α_t: α for positive elements and 1 - α for negative ones, or 1 if α is below 0.

    A sequence has one α for each column. The background of a softmax has no α, and gets 1 - the mean.
    """
    if not isinstance(alpha, float):
        mean = sum(alpha) / len(alpha)
        alpha = alpha[column] if column < len(alpha) else mean
    return 1.0 if alpha < 0 else (alpha if positive else 1 - alpha)


def convolve(x: Array, weight: Array, bias: Array) -> Array:
    """Convolves x [C, H, W] with weight [C', C, k, k] into [C', H, W]. The padding is zero."""
    _, height, width = x.shape
    radius = weight.shape[-1] // 2
    output = np.zeros((len(weight), height, width))
    for o, y, column in np.ndindex(*output.shape):
        output[o, y, column] = bias[o]
        for c, i, j in np.ndindex(*weight.shape[1:]):
            row, col = y + i - radius, column + j - radius
            if 0 <= row < height and 0 <= col < width:
                output[o, y, column] += weight[o, c, i, j] * x[c, row, col]
    return output


def carafe(x: Array, compressor: tuple[Array, Array], encoder: tuple[Array, Array]) -> Array:
    """Upsamples x [C, H, W] to [C, 2H, 2W] as section 3 of arXiv 1905.02188 says.

    compressor and encoder are pairs of weight and bias. The channels of the encoder are, from the
    slowest axis to the fastest, the tap, and the row and column of the output in its input pixel.
    """
    channels, height, width = x.shape
    encoded = convolve(convolve(x, *compressor), *encoder)
    k = math.isqrt(len(encoded) // 4)
    output = np.zeros((channels, 2 * height, 2 * width))
    for y, column in np.ndindex(2 * height, 2 * width):
        centre_y, centre_x = y // 2, column // 2
        logits = encoded[(y % 2) * 2 + column % 2 :: 4, centre_y, centre_x]
        weights = np.exp(logits) / np.exp(logits).sum()
        for tap, weight in enumerate(weights):
            row, col = centre_y + tap // k - k // 2, centre_x + tap % k - k // 2
            if 0 <= row < height and 0 <= col < width:
                output[:, y, column] += weight * x[:, row, col]
    return output
