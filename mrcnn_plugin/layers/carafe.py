"""CARAFE: upsampling with kernels that a convolution predicts from the features."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Windows are copied for a few rows at a time. The copies should stay in the cache of a CPU, and be
# large enough to fill a GPU.
CPU_BLOCK_BYTES = 2**21
BLOCK_BYTES = 2**27


def reassemble_by_taps(x: Tensor, weights: Tensor, k: int) -> Tensor:
    """Computes the same as :class:`Reassemble`, with operators that are scripted, traced and compiled."""
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


class Reassemble(torch.autograd.Function):
    """Weighted sums over the k x k window around each pixel, four for each pixel.

    For each pixel it is a product of matrices, [4, k²] by [k², C], of which the second is a copy of the
    window. Backward copies the windows again, so that they need no memory in between.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, k: int) -> Tensor:
        """Reassembles x [N, C, H, W] with weights [N, H, W, 4, k²] to [N, C, 2H, 2W]."""
        n, channels, height, width = x.shape
        padded = F.pad(x.permute(0, 2, 3, 1), [0, 0] + [k // 2] * 4).contiguous()
        ctx.save_for_backward(padded, weights)
        ctx.k = k
        output = x.new_empty(n, 2 * height, 2 * width, channels)
        # Autocast would round the products.
        with torch.autocast(x.device.type, enabled=False):
            for rows, windows in _blocks(padded, k):
                sums = weights[:, rows].reshape(-1, 4, k * k) @ windows
                target = _four(output, rows)
                target.copy_(sums.view_as(target))
        return output.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        padded, weights = ctx.saved_tensors
        n, _, width, _, taps = weights.shape
        k, channels = ctx.k, padded.shape[-1]
        grad = grad.permute(0, 2, 3, 1)
        grad_padded, grad_weights = torch.zeros_like(padded), torch.empty_like(weights)
        with torch.autocast(grad.device.type, enabled=False):
            for rows, windows in _blocks(padded, k):
                size = rows.stop - rows.start
                grad_sums = _four(grad, rows).reshape(-1, 4, channels)
                products = grad_sums @ windows.transpose(1, 2)
                grad_weights[:, rows] = products.view(n, size, width, 4, taps)
                grad_windows = weights[:, rows].reshape(-1, 4, taps).transpose(1, 2) @ grad_sums
                grad_windows = grad_windows.view(n, size, width, taps, channels)
                for tap in range(taps):
                    row, column = rows.start + tap // k, tap % k
                    target = grad_padded[:, row : row + size, column : column + width]
                    target += grad_windows[:, :, :, tap]
        inner = slice(k // 2, -(k // 2) or None)
        return grad_padded[:, inner, inner].permute(0, 3, 1, 2), grad_weights, None


def _blocks(padded: Tensor, k: int) -> Iterator[tuple[slice, Tensor]]:
    """Yields some rows, and the windows of their pixels: a copy [N * rows * W, k², C]."""
    n, height, width, channels = padded.shape
    height, width = height - k + 1, width - k + 1
    bytes_of_row = n * width * k * k * channels * padded.element_size()
    block_bytes = CPU_BLOCK_BYTES if padded.device.type == "cpu" else BLOCK_BYTES
    size = max(1, block_bytes // max(1, bytes_of_row))
    for start in range(0, height, size):
        rows = slice(start, min(start + size, height))
        block = padded[:, rows.start : rows.stop + k - 1].unfold(1, k, 1).unfold(2, k, 1)
        yield rows, block.permute(0, 1, 2, 4, 5, 3).reshape(-1, k * k, channels)


def _four(output: Tensor, rows: slice) -> Tensor:
    """The pixels [N, 2H, 2W, C] that belong to some rows of the input, as a view [N, rows, W, 2, 2, C]."""
    block = output[:, 2 * rows.start : 2 * rows.stop]
    n, height, width, channels = block.shape
    return block.unflatten(2, (width // 2, 2)).unflatten(1, (height // 2, 2)).transpose(2, 3)


class CARAFE(nn.Module):
    """Content-aware reassembly of features: upsamples a map to twice its size.

    Source: Wang et al., arXiv 1905.02188, section 3. The defaults are the paper's kernel sizes.

    The output at (y, x) is a weighted sum over the k_up x k_up neighbourhood of the input at
    (⌊y/2⌋, ⌊x/2⌋). Pixels beyond the border are zero. The weights are a softmax over the
    neighbourhood. Each output position has its own weights, which are predicted from the input
    around it and shared by all channels.

    The parameters have the layout of the authors' code. The weights are nearly equal at first.
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
        """
        super().__init__()
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
        """Upsamples x [N, channels, H, W] to [N, channels, 2H, 2W] of the same dtype."""
        n, _, height, width = x.shape
        taps = self.k_up * self.k_up
        weights = self.encoder(self.compressor(x)).view(n, taps, 4, height, width)
        # The k_up² terms are summed in float32, so that a half-precision result is rounded once.
        dtype = torch.promote_types(x.dtype, torch.float32)
        weights = weights.permute(0, 3, 4, 2, 1).to(dtype).softmax(-1)
        # A script must not see the other branch, so the two conditions are not one.
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            output = reassemble_by_taps(x.to(dtype), weights, self.k_up)
        elif torch.jit.is_tracing() or torch.compiler.is_compiling():  # type: ignore[attr-defined]
            output = reassemble_by_taps(x.to(dtype), weights, self.k_up)
        else:
            output = Reassemble.apply(x.to(dtype), weights, self.k_up)
        return output.to(x.dtype)


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
        return nearest + self.gate.to(x.dtype) * (self.carafe(x) - nearest)
