"""RoIAlign in plain PyTorch, as a product of two matrices per RoI.

    out[k, c] = Wy[k] · F[batch(k), c] · Wx[k]ᵀ,    Wy[k]: [P_h, H],  Wx[k]: [P_w, W]

Row p of a matrix holds the weights of bin p: the average of the interpolation weights over its
samples. docs/roi_align.md explains the words and the mathematics.

The compiled kernels are tested against this definition, which shares no code with them. It also
runs on devices without kernels of their own. Its dense matrices need more memory and arithmetic than
the bands of the kernels. They multiply every pixel of the map, often by zero, so one infinite or
NaN pixel can make every bin of its image NaN.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

# The loop takes groups of RoIs for which [RoIs, P_h, C, W] has at most this many elements.
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
    """Computes the matrices Wy or Wx of some RoIs.

    Args:
        low, high: [K], where the boxes begin and end along the axis, in pixels of the image.
        size: pixels of the map along the axis.
        bins: bins of a RoI along the axis.
        spatial_scale, sampling_ratio, aligned, interpolation, a: see
            :func:`mrcnn_plugin.layers.roi_align`.

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

    # A RoI has no samples if a coordinate is not finite, or if adaptive sampling finds no extent.
    used = torch.isfinite(start) & torch.isfinite(bin_size) & (grid > 0)
    start = torch.where(used, start, 0)[:, None, None]
    bin_size = torch.where(used, bin_size, 0)[:, None, None]
    grid = torch.where(used, grid, 1)[:, None, None]
    p = torch.arange(bins, dtype=low.dtype, device=low.device)[None, :, None]

    # A huge box has very many samples outside of the map, so only those that can lie on it are
    # listed. A margin on either side allows for rounding, and `on_map` decides. Samples close together
    # are all listed, since rounding can move many of them. `most` is the limit of the kernels.
    origin, step = start + p * bin_size, bin_size / grid
    precision = torch.finfo(low.dtype)
    margin = 2 + (4 * precision.eps * origin.abs()).clamp(max=64)
    most = grid.clamp(max=16 / precision.eps)
    inward = step >= 0.5
    first = torch.where(inward, torch.floor((-1 - origin) / step - margin), 0)
    end = torch.where(inward, torch.ceil((size - origin) / step + margin), grid)
    first, end = first.clamp(min=0).minimum(most), end.clamp(min=0).minimum(most)
    # The appended zero gives the maximum a value if there are no RoIs. An export needs `longest` as a
    # symbol, so int() must not convert it. A trace would record even the result of item() as a constant.
    longest: Any = torch.cat([(end - first).flatten(), low.new_zeros(1)]).max().long()
    if not torch.jit.is_tracing():  # type: ignore[attr-defined]
        longest = longest.item()
        torch._check(longest >= 0)
    k = torch.arange(longest, dtype=low.dtype, device=low.device)
    i = first + k
    x = start + p * bin_size + (i + 0.5) * bin_size / grid
    on_map = used[:, None, None] & (k < end - first) & (x >= -1) & (x <= size)

    x = torch.where(on_map, x, 0).clamp(0, size - 1)
    left = x.floor()
    t = x - left
    if interpolation == "bilinear":
        taps = {0: 1 - t, 1: t}
    else:
        # Keys, Cubic Convolution Interpolation for Digital Image Processing, 1981: eq. 4 for any a,
        # at the distances 1 + t, t, 1 - t and 2 - t.
        taps = {
            -1: a * (t**3 - 2 * t**2 + t),
            0: (a + 2) * t**3 - (a + 3) * t**2 + 1,
            1: -(a + 2) * t**3 + (2 * a + 3) * t**2 - a * t,
            2: a * (t**2 - t**3),
        }
    matrix = low.new_zeros(low.shape[0], bins, size)
    pixels = torch.arange(size, dtype=low.dtype, device=low.device)
    for offset_of_tap, weight in taps.items():
        # The index keeps its floating dtype, since ONNX can clamp whole numbers only from opset 12 on.
        index = (left + offset_of_tap).clamp(0, size - 1)
        weight = torch.where(on_map, weight, 0)
        if torch.onnx.is_in_onnx_export():
            # Before opset 16, ONNX has no scatter that adds several values to the same element.
            matrix = matrix + (weight[..., None] * (index[..., None] == pixels)).sum(dim=2)
        else:
            matrix.scatter_add_(2, index.long(), weight)
    return matrix / grid


def _check_rois(
    rois: Tensor, levels: Tensor | None, batch: int, sizes: Sequence[tuple[int, int]]
) -> None:
    for height, width in sizes:
        if 0 in (height, width):
            raise ValueError(
                f"roi_align: input must have a height and width of at least 1, "
                f"got {(height, width)}"
            )
    index = rois[:, 0]
    wrong = ~((index >= 0) & (index < batch) & (index == index.floor()))
    if wrong.any():
        k = int(wrong.nonzero()[0])
        caller = "multiscale_roi_align" if len(sizes) > 1 else "roi_align"
        raise IndexError(
            f"{caller}: boxes[{k}, 0] is the batch index {index[k].item()}, but input has batch "
            f"size {batch}, so it must be a whole number in [0, {batch})"
        )
    if levels is not None:
        wrong = (levels < 0) | (levels >= len(sizes))
        if wrong.any():
            k = int(wrong.nonzero()[0])
            raise IndexError(
                f"multiscale_roi_align: levels[{k}] is {int(levels[k])}, but there are "
                f"{len(sizes)} maps, so it must be in [0, {len(sizes)})"
            )


def _rois_with_matrices(
    rois: Tensor,
    levels: Tensor | None,
    level: int,
    shape: tuple[int, int, int, int],
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    *options: Any,
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Yields (image, RoI indices, Wy, Wx) for groups of RoIs that share an image and the level."""
    batch, channels, height, width = shape
    chunk = max(1, _CHUNK_ELEMENTS // max(1, pooled_height * channels * width))
    for image in range(batch):
        chosen = rois[:, 0] == image
        if levels is not None:
            chosen = chosen & (levels == level)
        elif level > 0:
            return
        for indices in chosen.nonzero()[:, 0].split(chunk):
            if len(indices):
                _, x1, y1, x2, y2 = rois[indices].unbind(1)
                wy = axis_matrix(y1, y2, height, pooled_height, spatial_scale, *options)
                wx = axis_matrix(x1, x2, width, pooled_width, spatial_scale, *options)
                yield image, indices, wy, wx


def roi_align_reference(
    input: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    spatial_scales: Sequence[float],
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
    interpolation: str,
    a: float,
) -> Tensor:
    """Computes the operator `mrcnn_plugin::roi_align`. Autograd can differentiate it in `input`.

    Args:
        input: a list with the map [N, C, H, W] of each level, of any floating dtype. Float16 and
            bfloat16 are pooled in float32.
        rois: [K, 5] with rows (batch index, x1, y1, x2, y2), in pixels of the image. float64 if
            input is float64, and float32 otherwise.
        levels: int64 [K], the index of the map of each RoI. None pools all RoIs from the first.
        spatial_scales: pixels of each map per pixel of the image.
        pooled_height, pooled_width: number of bins of a RoI along each axis.
        sampling_ratio: samples per bin and axis, or 0 for adaptive sampling.
        aligned, interpolation, a: see :func:`mrcnn_plugin.layers.roi_align`.

    Returns:
        [K, C, pooled_height, pooled_width] of the dtype of input.

    Raises:
        IndexError: a batch index is not a whole number in [0, N), or a level is not the index of
            a map.
        ValueError: a map has a height or width of 0.
    """
    first = input[0]
    batch, channels = first.shape[:2]
    rois = rois.detach()
    _check_rois(rois, levels, batch, [(map.shape[2], map.shape[3]) for map in input])
    output = rois.new_zeros(rois.shape[0], channels, pooled_height, pooled_width)
    options = (pooled_height, pooled_width, sampling_ratio, aligned, interpolation, a)
    for level, (map, scale) in enumerate(zip(input, spatial_scales, strict=True)):
        features = map.to(rois.dtype)
        shape = (batch, channels, map.shape[2], map.shape[3])
        for image, indices, wy, wx in _rois_with_matrices(
            rois, levels, level, shape, scale, *options
        ):
            strip = torch.einsum("kph,chw->kcpw", wy, features[image])
            output[indices] = strip @ wx[:, None].transpose(2, 3)
    return output.to(first.dtype, memory_format=suggest_memory_format(first))


def roi_align_dense(
    input: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    spatial_scales: Sequence[float],
    pooled_height: int,
    pooled_width: int,
    *options: Any,
) -> Tensor:
    """Computes :func:`roi_align_reference` in the form that an export to ONNX needs.

    It uses standard operators only, and its control flow does not depend on the boxes. For each
    level it multiplies two dense matrices, and holds [K, C, pooled_height, W] numbers at once. A RoI
    with an invalid batch index or level pools zeros.
    """
    size = (pooled_height, pooled_width)
    if levels is None:
        return _dense(input[0], rois, spatial_scales[0], *size, *options)
    output = input[0].new_zeros(rois.shape[0], input[0].shape[1], *size)
    for level, (map, scale) in enumerate(zip(input, spatial_scales, strict=True)):
        rows = (levels == level).nonzero()[:, 0]
        output = output.index_put((rows,), _dense(map, rois[rows], scale, *size, *options))
    return output


def _dense(
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    *options: Any,
) -> Tensor:
    """Pools all RoIs from one level for :func:`roi_align_dense`."""
    batch, channels, height, width = input.shape
    features = input.to(rois.dtype)
    index, x1, y1, x2, y2 = rois.unbind(1)
    wy = axis_matrix(y1, y2, height, pooled_height, spatial_scale, *options)
    wx = axis_matrix(x1, x2, width, pooled_width, spatial_scale, *options)
    # The matrices span the rows of all images. The rows of an image have no weight in a RoI of another.
    images = torch.arange(batch, dtype=index.dtype, device=index.device)
    is_image = (index[:, None] == images).to(wy.dtype)
    wy = (is_image[:, None, :, None] * wy[:, :, None]).reshape(-1, pooled_height, batch * height)
    rows = features.transpose(1, 2).reshape(batch * height, channels * width)
    # onnxruntime's einsum divides by the number of RoIs, which may be zero, so this is a product.
    strip = (wy @ rows).reshape(-1, pooled_height, channels, width).transpose(1, 2)
    return (strip @ wx[:, None].transpose(2, 3)).to(input.dtype)


def roi_align_backward_reference(
    grad: Tensor,
    rois: Tensor,
    levels: Tensor | None,
    spatial_scales: Sequence[float],
    batch: int,
    heights: Sequence[int],
    widths: Sequence[int],
    needed: Sequence[bool],
    sampling_ratio: int,
    aligned: bool,
    interpolation: str,
    a: float,
) -> list[Tensor]:
    """Computes the operator `mrcnn_plugin::roi_align_backward`.

    The gradient of a map is Σ_k Wy[k]ᵀ · G[k] · Wx[k] over its RoIs k.

    Args:
        grad: G [K, C, pooled_height, pooled_width], the gradient of the output.
        rois, levels, spatial_scales: see :func:`roi_align_reference`.
        batch: number of images of each map.
        heights, widths: size of each map.
        needed: whether the gradient of each map is computed.
        sampling_ratio, aligned, interpolation, a: see :func:`roi_align_reference`.

    Returns:
        A list with the gradient [batch, C, height, width] of each needed map, of the dtype of grad.

    Raises:
        IndexError: a batch index is not a whole number in [0, batch), or a level is not the index
            of a map.
        ValueError: grad and rois have different lengths, or a map has a height or width of 0.
    """
    num_rois, channels, pooled_height, pooled_width = grad.shape
    if num_rois != rois.shape[0]:
        raise ValueError(f"roi_align: grad has {num_rois} RoIs but boxes have {rois.shape[0]}")
    sizes = list(zip(heights, widths, strict=True))
    _check_rois(rois, levels, batch, sizes)
    grad_output = grad.to(rois.dtype)
    options = (pooled_height, pooled_width, sampling_ratio, aligned, interpolation, a)
    gradients = []
    for level, ((height, width), scale) in enumerate(zip(sizes, spatial_scales, strict=True)):
        if not needed[level]:
            continue
        shape = (batch, channels, height, width)
        grad_input = grad_output.new_zeros(shape)
        for image, indices, wy, wx in _rois_with_matrices(
            rois, levels, level, shape, scale, *options
        ):
            strip = grad_output[indices] @ wx[:, None]
            grad_input[image] += torch.einsum("kph,kcpw->chw", wy, strip)
        gradients.append(grad_input.to(grad.dtype, memory_format=suggest_memory_format(grad)))
    return gradients
