"""CARAFE: upsampling with kernels that a convolution predicts from the features."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._prims_common import suggest_memory_format

# The copies of windows that are made at a time. They should stay in the cache of a CPU. On an NVIDIA
# H200, forward and backward of 2 x 256 x 100 x 152 features took 14.8 ms with 2^26 bytes, 8.3 ms with
# 2^27, and 7.2 ms with 2^28 and 146 MiB more.
_CPU_BLOCK_BYTES = 2**21
_GPU_BLOCK_BYTES = 2**27


def _reassemble(x: Tensor, weights: Tensor, k: int) -> Tensor:
    """Sums up the k x k window of each pixel with four sets of weights.

    Args:
        x: [N, C, H, W].
        weights: [N, H, W, 4, k²], of the same dtype.

    Returns:
        [N, C, 2H, 2W].
    """
    # A script must not see the last line, so the two conditions are not one.
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return _sum_taps(x, weights, k)
    if torch.jit.is_tracing() or torch.compiler.is_compiling():  # type: ignore[attr-defined]
        return _sum_taps(x, weights, k)
    return _Reassemble.apply(x, weights, k)


# torch.fx.symbolic_trace cannot follow an autograd function, so it keeps the call.
torch.fx.wrap("_reassemble")


def _sum_taps(x: Tensor, weights: Tensor, k: int) -> Tensor:
    """Reassembles by operators that can be scripted, traced, exported and differentiated again."""
    n, channels, height, width = x.shape
    weights = weights.permute(4, 0, 3, 1, 2).contiguous()[:, :, None]
    padded = F.pad(x, [k // 2] * 4)[:, :, None]
    # The loop adds one tap at a time from views of the input, because an unfolded input would need
    # k² times its memory. The four output positions of a pixel are separate until the end, so that
    # rows are contiguous.
    output = torch.zeros_like(x)[:, :, None]
    for tap in range(k * k):
        row, column = tap // k, tap % k
        taps = padded[..., row : row + height, column : column + width]
        output = torch.addcmul(output, taps, weights[tap])
    return F.pixel_shuffle(output.reshape(n, 4 * channels, height, width), 2)


class _Reassemble(torch.autograd.Function):
    """Reassembles by one product of matrices for each pixel, [4, k²] by [k², C].

    The second is a copy of the pixel's window. The windows of some rows are copied at a time, and copied
    again for the gradients, so that they stay in the cache and need little memory.
    """

    @staticmethod
    def forward(x: Tensor, weights: Tensor, k: int) -> Tensor:
        n, channels, height, width = x.shape
        output = torch.empty(
            (n, channels, 2 * height, 2 * width),
            dtype=x.dtype,
            device=x.device,
            memory_format=suggest_memory_format(x),
        )
        padded = _pad(x, k)
        for block in _blocks(padded, k):
            sums = _product(weights[block].reshape(-1, 4, k * k), _windows(padded, block, k))
            pixels = _four_pixels(output, block)
            pixels.copy_(sums.view(pixels.shape))
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        x, weights, k = inputs
        ctx.save_for_backward(x, weights)
        ctx.k = k

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (x, weights), k = ctx.saved_tensors, ctx.k
        if torch.is_grad_enabled():  # the gradients will be differentiated
            vjp = torch.func.vjp(lambda x, weights: _sum_taps(x, weights, k), x, weights)[1]
            grad_x, grad_weights = vjp(grad)
            return grad_x, grad_weights, None
        padded = _pad(x, k)
        grad_padded = torch.zeros_like(padded) if ctx.needs_input_grad[0] else None
        grad_weights = torch.empty_like(weights) if ctx.needs_input_grad[1] else None
        for block in _blocks(padded, k):
            grads = _four_pixels(grad, block).reshape(-1, 4, x.shape[1])
            if grad_weights is not None:
                products = _product(grads, _windows(padded, block, k).transpose(1, 2))
                grad_weights[block] = products.view(grad_weights[block].shape)
            if grad_padded is not None:
                factors = weights[block].reshape(-1, 4, k * k).transpose(1, 2)
                _add_windows(grad_padded, block, k, _product(factors, grads))
        if grad_padded is None:
            return None, grad_weights, None
        inner = slice(k // 2, -(k // 2) or None)
        return grad_padded[:, inner, inner].permute(0, 3, 1, 2), grad_weights, None


_Block = tuple[slice, slice]  # of images, and of rows of x


def _pad(x: Tensor, k: int) -> Tensor:
    """Returns [N, H + k - 1, W + k - 1, C], so that the channels of a pixel are contiguous."""
    return F.pad(x.permute(0, 2, 3, 1), [0, 0] + [k // 2] * 4).contiguous()


def _blocks(padded: Tensor, k: int) -> Iterator[_Block]:
    """Yields whole images, as many as make a block, or else rows of one image, at least one."""
    n, height, width, channels = padded.shape
    height, width = height - k + 1, width - k + 1
    row_bytes = max(1, width * k * k * channels * padded.element_size())
    block_bytes = _CPU_BLOCK_BYTES if padded.device.type == "cpu" else _GPU_BLOCK_BYTES
    rows = max(1, block_bytes // row_bytes)
    images = max(1, rows // height)
    for image in range(0, n, images):
        for row in range(0, height, rows):
            yield slice(image, image + images), slice(row, min(row + rows, height))


def _windows(padded: Tensor, block: _Block, k: int) -> Tensor:
    """Copies the windows of a block to [pixels, k², C]."""
    # F.unfold would put the pixels last, and one matrix for each pixel would need another copy.
    images, rows = block
    pixels = padded[images, rows.start : rows.stop + k - 1].unfold(1, k, 1).unfold(2, k, 1)
    return pixels.permute(0, 1, 2, 4, 5, 3).reshape(-1, k * k, padded.shape[-1])


def _add_windows(padded: Tensor, block: _Block, k: int, windows: Tensor) -> None:
    """Adds [pixels, k², C] to the windows of a block."""
    images, rows = block
    width = padded.shape[2] - k + 1
    windows = windows.view(-1, rows.stop - rows.start, width, k * k, padded.shape[-1])
    for tap in range(k * k):
        row, column = tap // k, tap % k
        target = padded[images, rows.start + row : rows.stop + row, column : column + width]
        target += windows[:, :, :, tap]


def _four_pixels(output: Tensor, block: _Block) -> Tensor:
    """Views what [N, C, 2H, 2W] has for a block as [images, rows, W, 2, 2, C]."""
    images, rows = block
    pixels = output[images, :, 2 * rows.start : 2 * rows.stop]
    pixels = pixels.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
    return pixels.permute(0, 2, 4, 3, 5, 1)


def _product(a: Tensor, b: Tensor) -> Tensor:
    # Autocast, which would round, leaves calls with `out` alone.
    return torch.bmm(a, b, out=a.new_empty(a.shape[0], a.shape[1], b.shape[2]))


class CARAFE(nn.Module):
    """Content-aware reassembly of features: upsamples a map to twice its size.

    Source: Wang et al., arXiv 1905.02188, section 3. The defaults are the paper's kernel sizes.

    The output at (y, x) is a weighted sum over the k_up x k_up neighbourhood of the input at
    (⌊y/2⌋, ⌊x/2⌋). Pixels beyond the border are zero. The weights are a softmax over the
    neighbourhood. Each output position has its own weights, which are predicted from the input
    around it and shared by all channels.

    The parameters have the layout of the authors' code. The weights are nearly equal at first.
    torch.func.vmap and forward-mode derivatives do not work. The sums are float32 sums, but where TF32
    is allowed for products of matrices, a GPU rounds their terms.
    """

    def __init__(
        self, channels: int, k_up: int = 5, k_encoder: int = 3, compressed_channels: int = 64
    ) -> None:
        """
        Args:
            channels: number of channels of the input and the output.
            k_up: side of the reassembly kernel in pixels, an odd number.
            k_encoder: side of the convolution that predicts the kernels, an odd number.
            compressed_channels: number of channels that the kernels are predicted from (C_m).

        Raises:
            ValueError: a side is even.
        """
        super().__init__()
        if k_up % 2 == 0 or k_encoder % 2 == 0:
            raise ValueError(f"k_up is {k_up} and k_encoder {k_encoder}; both must be odd")
        self.k_up = k_up
        self.compressor = nn.Conv2d(channels, compressed_channels, 1)
        self.encoder = nn.Conv2d(
            compressed_channels, 4 * k_up**2, k_encoder, padding=k_encoder // 2
        )
        nn.init.xavier_uniform_(self.compressor.weight)
        nn.init.normal_(self.encoder.weight, std=0.001)
        for conv in (self.compressor, self.encoder):
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Upsamples x [N, channels, H, W] to [N, channels, 2H, 2W] of the same dtype and memory format."""
        n, _, height, width = x.shape
        taps = self.k_up * self.k_up
        weights = self.encoder(self.compressor(x)).view(n, taps, 4, height, width)
        # The k_up² terms are summed in float32, so that a half-precision result is rounded once.
        dtype = torch.promote_types(x.dtype, torch.float32)
        weights = weights.permute(0, 3, 4, 2, 1).to(dtype).softmax(-1)
        return _reassemble(x.to(dtype), weights, self.k_up).to(x.dtype)


class GatedCARAFE(nn.Module):
    """CARAFE that starts as nearest-neighbour upsampling.

    The output is N(x) + g (C(x) - N(x)), where N is nearest-neighbour upsampling, C is CARAFE and g is
    one learned number that starts at 0. A pyramid with it therefore starts from exactly the outputs
    of a stock FPN, whose checkpoints can be used. CARAFE itself learns as soon as g has moved.
    """

    def __init__(self, channels: int, **kwargs: int) -> None:
        """
        Args:
            channels: number of channels of the input and the output.
            kwargs: as for :class:`CARAFE`.
        """
        super().__init__()
        self.carafe = CARAFE(channels, **kwargs)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Upsamples x [N, channels, H, W] to [N, channels, 2H, 2W] of the same dtype."""
        nearest = F.interpolate(x, scale_factor=2.0, mode="nearest")
        # The gradient of the gate is a sum over the map, which float16 may not hold.
        difference = self.carafe(x) - nearest
        return nearest + (self.gate * difference.to(self.gate.dtype)).to(x.dtype)
