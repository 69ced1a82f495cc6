"""RoIAlign in plain PyTorch, as a product of two matrices per RoI.

    out[k, c] = Wy[k] · F[batch(k), c] · Wx[k]ᵀ,    Wy[k]: [P_h, H],  Wx[k]: [P_w, W]

Row p of a matrix is the average, over the samples of bin p, of the interpolation weights at their
positions. This is the definition that the compiled kernels are tested against, and what runs on
devices that have none. It shares no code with them. The dense matrices cost more memory and
arithmetic than the bands of the kernels, and multiply every pixel of the map, if by zero: one that
is infinite or NaN makes all that is pooled from its map NaN, not only what lies near it.
"""

from typing import Any, Iterator, Tuple

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

# Elements of the intermediate [rois, P_h, C, W] that one step of the loop over RoIs may hold.
_CHUNK_ELEMENTS = 1 << 24


def axis_matrix(
    low: Tensor,
    high: Tensor,
    size: int,
    bins: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    interpolation: str,
    a: float,
) -> Tensor:
    """The matrices Wy (or Wx) of some RoIs.

    Args:
        low, high: [K], the boxes' extent along the axis, in units of the image.
        size: pixels of the feature map along the axis.

    Returns:
        [K, bins, size] of the dtype of `low`.
    """
    offset = 0.5 if aligned else 0.0
    start = low * spatial_scale - offset
    extent = high * spatial_scale - offset - start
    if not aligned:
        extent = torch.where(extent.isfinite(), extent.clamp(min=1.0), extent)
    bin_size = extent / bins
    if sampling_ratio > 0:
        grid = torch.full_like(extent, sampling_ratio)
    else:
        grid = torch.ceil(extent / bins)

    # A RoI with a coordinate that is not finite, or without extent, has no samples.
    used = torch.isfinite(start) & torch.isfinite(bin_size) & (grid > 0)
    start = torch.where(used, start, 0)[:, None, None]
    bin_size = torch.where(used, bin_size, 0)[:, None, None]
    grid = torch.where(used, grid, 1)[:, None, None]
    p = torch.arange(bins, dtype=low.dtype, device=low.device)[None, :, None]

    # Only the samples that can lie on the map are listed: a huge box has very many outside of it.
    # Two more on either side allow for rounding; `on_map` decides.
    origin, step = start + p * bin_size, bin_size / grid
    inward = step > 0
    first = torch.where(inward, torch.floor((-1 - origin) / step) - 2, 0).clamp(min=0).minimum(grid)
    end = (
        torch.where(inward, torch.ceil((size - origin) / step) + 2, grid).clamp(min=0).minimum(grid)
    )
    # Of no RoIs, too. Where this is exported the number is a symbol: not int(), and in a trace not even
    # item(), which would make it a constant.
    longest: Any = torch.cat([(end - first).flatten(), low.new_zeros(1)]).max().long()
    if not torch.jit.is_tracing():  # type: ignore[attr-defined]
        longest = longest.item()
        torch._check(longest >= 0)
    i = first + torch.arange(longest, dtype=low.dtype, device=low.device)
    x = start + p * bin_size + (i + 0.5) * bin_size / grid
    on_map = used[:, None, None] & (i < end) & (x >= -1) & (x <= size)

    x = torch.where(on_map, x, 0).clamp(0, size - 1)
    left = x.floor()
    t = x - left
    if interpolation == "bilinear":
        taps = {0: 1 - t, 1: t}
    else:
        # Keys, Cubic Convolution Interpolation for Digital Image Processing, 1981, eq. 4 with
        # general a, at the distances 1 + t, t, 1 - t, 2 - t.
        taps = {
            -1: a * (t**3 - 2 * t**2 + t),
            0: (a + 2) * t**3 - (a + 3) * t**2 + 1,
            1: -(a + 2) * t**3 + (2 * a + 3) * t**2 - a * t,
            2: a * (t**2 - t**3),
        }
    matrix = low.new_zeros(low.shape[0], bins, size)
    for offset_of_tap, weight in taps.items():
        index = (left.long() + offset_of_tap).clamp(0, size - 1)
        matrix.scatter_add_(2, index, torch.where(on_map, weight, 0))
    return matrix / grid


def _rois_with_matrices(
    rois: Tensor,
    shape: Tuple[int, int, int, int],
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
    interpolation: str,
    a: float,
) -> Iterator[Tuple[int, Tensor, Tensor, Tensor]]:
    """Yields (image, RoI indices, Wy, Wx) for groups of RoIs of one image."""
    batch, channels, height, width = shape
    index = rois[:, 0]
    if 0 in (height, width):
        raise ValueError(
            f"roi_align: input must have a height and width of at least 1, got {shape}"
        )
    wrong = ~((index >= 0) & (index < batch) & (index == index.floor()))
    if wrong.any():
        k = int(wrong.nonzero()[0])
        raise IndexError(
            f"roi_align: boxes[{k}, 0] is the batch index {index[k].item()}, but input has batch "
            f"size {batch}, so it must be a whole number in [0, {batch})"
        )
    chunk = max(1, _CHUNK_ELEMENTS // max(1, pooled_height * channels * width))
    options = (spatial_scale, sampling_ratio, aligned, interpolation, a)
    for image in range(batch):
        for indices in (index == image).nonzero()[:, 0].split(chunk):
            if len(indices):
                _, x1, y1, x2, y2 = rois[indices].unbind(1)
                wy = axis_matrix(y1, y2, height, pooled_height, *options)
                wx = axis_matrix(x1, x2, width, pooled_width, *options)
                yield image, indices, wy, wx


def roi_align_reference(
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
    interpolation: str,
    a: float,
) -> Tensor:
    """The operator `mrcnn_plugin::roi_align`, differentiable in `input` by autograd.

    Args:
        input: [N, C, H, W], any floating dtype. Float16 and bfloat16 are pooled in float32.
        rois: [K, 5], rows (batch index, x1, y1, x2, y2), float32, or float64 if input is.

    Returns:
        [K, C, pooled_height, pooled_width] of the dtype of input.

    Raises:
        IndexError: a batch index is not a whole number in [0, N).
    """
    batch, channels, height, width = input.shape
    rois = rois.detach()
    features = input.to(rois.dtype)
    output = features.new_zeros(rois.shape[0], channels, pooled_height, pooled_width)
    options = (
        spatial_scale,
        pooled_height,
        pooled_width,
        sampling_ratio,
        aligned,
        interpolation,
        a,
    )
    for image, indices, wy, wx in _rois_with_matrices(
        rois, (batch, channels, height, width), *options
    ):
        strip = torch.einsum("kph,chw->kcpw", wy, features[image])
        output[indices] = strip @ wx[:, None].transpose(2, 3)
    return output.to(input.dtype, memory_format=suggest_memory_format(input))


def roi_align_dense(
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
    interpolation: str,
    a: float,
) -> Tensor:
    """:func:`roi_align_reference` without control flow that depends on the boxes, for `torch.export`
    to ONNX: two products of dense matrices for all RoIs.

    Holds [K, C, pooled_height, W] numbers at once. A batch index that is no image pools zeros.
    """
    batch, channels, height, width = input.shape
    features = input.to(rois.dtype)
    index, x1, y1, x2, y2 = rois.unbind(1)
    options = (spatial_scale, sampling_ratio, aligned, interpolation, a)
    wy = axis_matrix(y1, y2, height, pooled_height, *options)
    wx = axis_matrix(x1, x2, width, pooled_width, *options)
    # Rows of all images, of which those of other images than the RoI's have no weight.
    images = torch.arange(batch, dtype=index.dtype, device=index.device)
    is_image = (index[:, None] == images).to(wy.dtype)
    wy = (is_image[:, None, :, None] * wy[:, :, None]).reshape(-1, pooled_height, batch * height)
    rows = features.transpose(1, 2).reshape(batch * height, channels * width)
    # Not einsum: that of onnxruntime divides by the number of RoIs, which may be zero.
    strip = (wy @ rows).reshape(-1, pooled_height, channels, width).transpose(1, 2)
    return (strip @ wx[:, None].transpose(2, 3)).to(input.dtype)


def roi_align_backward_reference(
    grad: Tensor,
    rois: Tensor,
    spatial_scale: float,
    batch: int,
    height: int,
    width: int,
    sampling_ratio: int,
    aligned: bool,
    interpolation: str,
    a: float,
) -> Tensor:
    """The operator `mrcnn_plugin::roi_align_backward`: Σ_k Wy[k]ᵀ · G[k] · Wx[k].

    Args:
        grad: [K, C, pooled_height, pooled_width], the gradient of the output.

    Returns:
        [batch, C, height, width] of the dtype of grad, the gradient of the input.
    """
    num_rois, channels, pooled_height, pooled_width = grad.shape
    if num_rois != rois.shape[0]:
        raise ValueError(f"roi_align: grad has {num_rois} RoIs but boxes have {rois.shape[0]}")
    shape = (batch, channels, height, width)
    grad_output = grad.to(rois.dtype)
    grad_input = grad_output.new_zeros(shape)
    options = (
        spatial_scale,
        pooled_height,
        pooled_width,
        sampling_ratio,
        aligned,
        interpolation,
        a,
    )
    for image, indices, wy, wx in _rois_with_matrices(rois, shape, *options):
        strip = grad_output[indices] @ wx[:, None]
        grad_input[image] += torch.einsum("kph,kcpw->chw", wy, strip)
    return grad_input.to(grad.dtype, memory_format=suggest_memory_format(grad))
