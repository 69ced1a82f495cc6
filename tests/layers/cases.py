"""Inputs, options and tolerances that several tests of RoIAlign share."""

import itertools

import torch

from tests import oracles

INTERPOLATIONS = [("bilinear", -0.5), ("bicubic", -0.5), ("bicubic", -0.75)]
ALIGNED_AND_RATIO = list(itertools.product([True, False], [0, 2]))
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
CONTIGUOUS, CHANNELS_LAST = torch.contiguous_format, torch.channels_last
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# A half-precision result is rounded once.
KERNEL_TOLERANCE = {
    torch.float32: 2e-6,
    torch.float64: 1e-14,
    torch.float16: 1e-3,
    torch.bfloat16: 8e-3,
}


def random_rois(count, batch, height, width, dtype, seed=0):
    """Returns boxes inside, across and outside of a map of this size. Some are inverted or empty."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor([width, height], dtype=dtype)
    low = (torch.rand(count, 2, generator=generator, dtype=dtype) * 1.4 - 0.2) * size
    high = low + (torch.rand(count, 2, generator=generator, dtype=dtype) * 1.2 - 0.1) * size
    high[: count // 8] = low[: count // 8]
    index = torch.randint(batch, (count, 1), generator=generator).to(dtype)
    return torch.cat([index, low, high], dim=1)


def random_features(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def assert_same(actual, expected, tolerance):
    """The tolerance is relative to the largest value, since positive and negative taps cancel."""
    scale = max(1.0, float(expected.detach().abs().max())) if expected.numel() else 1.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale)


def kernel_of(interpolation, a):
    return oracles.linear_kernel if interpolation == "bilinear" else oracles.keys_kernel(a)


def layouts(tensor):
    """Yields the same values in every memory layout that the kernels distinguish."""
    n, c, h, w = tensor.shape
    yield "contiguous", tensor.contiguous()
    yield "channels_last", tensor.contiguous(memory_format=CHANNELS_LAST)
    yield "part of wider rows", tensor.new_zeros(n, c, h, w + 3)[..., 1 : w + 1].copy_(tensor)
    yield (
        "part of more channels",
        tensor.new_zeros(n, h, w, c + 3)[..., 1 : c + 1]
        .copy_(tensor.permute(0, 2, 3, 1))
        .permute(0, 3, 1, 2),
    )
    # Vectors of channels would fit it, but for the address of the first.
    steps = (c // 8 + 1) * 8
    yield (
        "not aligned to vectors",
        tensor.new_zeros(n, h, w, steps)[..., 1 : c + 1]
        .copy_(tensor.permute(0, 2, 3, 1))
        .permute(0, 3, 1, 2),
    )
    # torch.contiguous would not change the stride of an axis of size 1.
    yield (
        "transposed",
        torch.empty_like(tensor.transpose(2, 3), memory_format=CONTIGUOUS)
        .copy_(tensor.transpose(2, 3))
        .transpose(2, 3),
    )
    yield "every other pixel", tensor.new_zeros(n, c, 2 * h, 2 * w)[..., ::2, ::2].copy_(tensor)
    yield "expanded", tensor[:, :1].expand(n, c, h, w)


def boxes_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32
