"""CARAFE: upsampling with kernels that a convolution predicts from the features."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._prims_common import suggest_memory_format

# The side t of a tile of pixels that are reassembled together.
_TILE = 4
# The matrices that are made at a time. They should stay in the cache of a CPU. On a GPU, 2 x 256 x 100
# x 152 features make two blocks. What a GPU needs was not measured.
_CPU_BLOCK_BYTES = 2**21
_GPU_BLOCK_BYTES = 2**28


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
    """Reassembles by one product of matrices for each tile of t x t pixels.

    The windows of the pixels of a tile lie in one larger window, so the product is [4t², (t + k - 1)²] by
    [(t + k - 1)², C]. The second matrix is a copy of the larger window. The first has a row for each
    output, which is zero but for the weights of its own window. With t = 4 and k = 5, a pixel is
    copied 4 times, where a product for each pixel would need 25 copies. In return, there are 2.6
    times as many multiplications. The matrices of some rows of tiles are made at a time, and made
    again for the gradients, so that they stay in the cache and need little memory.
    """

    @staticmethod
    def forward(x: Tensor, weights: Tensor, k: int) -> Tensor:
        n, channels, height, width = x.shape
        padded, weights = _pad(x, k), _fill_up(weights, _TILE)
        memory_format = suggest_memory_format(x)
        output = torch.empty(
            (n, channels, 2 * weights.shape[1], 2 * weights.shape[2]),
            dtype=x.dtype,
            device=x.device,
            memory_format=memory_format,
        )
        for block in _blocks(padded, k):
            sums = _output_tiles(output.permute(0, 2, 3, 1), block)
            product = _product(
                _factors(weights[block], k),
                _windows(padded, block, k).flatten(3, 4),
                # The order of the output. The copy of a transposed tensor would be slow.
                transposed=memory_format == torch.contiguous_format,
            )
            sums.copy_(product.view(sums.shape))
            del product  # frees the memory before that of the next block is allocated
        if output.shape[2:] == (2 * height, 2 * width):
            return output
        # PyTorch forbids changes in place of a view that comes from an autograd function.
        return output[:, :, : 2 * height, : 2 * width].clone(memory_format=memory_format)

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
        height, width = x.shape[2:]
        padded, weights = _pad(x, k), _fill_up(weights, _TILE)
        grad = _fill_up(grad.permute(0, 2, 3, 1), 2 * _TILE)
        grad_padded = torch.zeros_like(padded) if ctx.needs_input_grad[0] else None
        grad_weights = torch.empty_like(weights) if ctx.needs_input_grad[1] else None
        for block in _blocks(padded, k):
            grads = _output_tiles(grad, block).flatten(3, 4)
            if grad_weights is not None:
                windows = _windows(padded, block, k).flatten(3, 4)
                product = _product(grads, windows.transpose(3, 4))
                _weight_tiles(grad_weights[block], k).copy_(_weights_of(product, k))
                del windows, product  # frees memory
            if grad_padded is not None:
                product = _product(_factors(weights[block], k).transpose(3, 4), grads)
                _add(product, _windows(grad_padded, block, k))
                del product
        if grad_padded is not None:
            grad_padded = grad_padded[:, k // 2 :, k // 2 :][:, :height, :width].permute(0, 3, 1, 2)
        if grad_weights is not None:
            grad_weights = grad_weights[:, :height, :width]
        return grad_padded, grad_weights, None


_Block = tuple[slice, slice]  # of images, and of rows of x


def _blocks(padded: Tensor, k: int) -> Iterator[_Block]:
    """Yields whole images, as many as make a block, or else rows of tiles of one image, at least one."""
    n, height, width, channels = padded.shape
    height, width = height - k + 1, width - k + 1
    outputs, window = 4 * _TILE**2, (_TILE + k - 1) ** 2
    numbers = width // _TILE * (outputs * window + window * channels + outputs * channels)
    block_bytes = _CPU_BLOCK_BYTES if padded.device.type == "cpu" else _GPU_BLOCK_BYTES
    rows = _TILE * max(1, block_bytes // (numbers * padded.element_size()))
    images = max(1, rows // height)
    for image in range(0, n, images):
        for row in range(0, height, rows):
            yield slice(image, image + images), slice(row, row + rows)


def _fill_up(pixels: Tensor, side: int) -> Tensor:
    """Adds zeros to [N, rows, columns, *] until tiles of side x side pixels fit."""
    rows, columns = -pixels.shape[1] % side, -pixels.shape[2] % side
    if rows == 0 and columns == 0:
        return pixels
    return F.pad(pixels, [0, 0] * (pixels.dim() - 3) + [0, columns, 0, rows])


def _pad(x: Tensor, k: int) -> Tensor:
    """Returns [N, H + k - 1, W + k - 1, C], where H and W are rounded up to whole tiles."""
    # The channels of a pixel are contiguous, so that windows are copied fast.
    low, bottom, right = k // 2, -x.shape[2] % _TILE, -x.shape[3] % _TILE
    padding = [0, 0, low, low + right, low, low + bottom]
    return F.pad(x.permute(0, 2, 3, 1), padding).contiguous()


def _tiles(pixels: Tensor, side: int) -> Tensor:
    """Views [images, rows, columns, *] as [images, tile rows, tile columns, side, side, *]."""
    return pixels.unflatten(2, (-1, side)).unflatten(1, (-1, side)).transpose(2, 3)


def _output_tiles(output: Tensor, block: _Block) -> Tensor:
    """Views what [N, 2H, 2W, C] has for a block as [images, tile rows, tile columns, 2t, 2t, C]."""
    images, rows = block
    return _tiles(output[images, 2 * rows.start : 2 * rows.stop], 2 * _TILE)


def _weight_tiles(weights: Tensor, k: int) -> Tensor:
    """Views [images, rows, W, 4, k²] as [images, tile rows, tile columns, t, t, 2, 2, k, k]."""
    return _tiles(weights.unflatten(4, (k, k)).unflatten(3, (2, 2)), _TILE)


def _windows(padded: Tensor, block: _Block, k: int) -> Tensor:
    """Views the windows of the tiles of a block as [images, tile rows, tile columns, t+k-1, t+k-1, C]."""
    images, rows = block
    side = _TILE + k - 1
    windows = padded[images, rows.start : rows.stop + k - 1]
    return windows.unfold(1, side, _TILE).unfold(2, side, _TILE).permute(0, 1, 2, 4, 5, 3)


def _add(source: Tensor, windows: Tensor) -> None:
    """Adds [images, tile rows, tile columns, (t+k-1)², C] to windows, which overlap."""
    side = windows.shape[3]
    source = source.view(windows.shape)
    # Parts of at most t x t pixels of different windows do not overlap.
    for row in range(0, side, _TILE):
        for column in range(0, side, _TILE):
            part = (..., slice(row, row + _TILE), slice(column, column + _TILE), slice(None))
            windows[part].add_(source[part])


def _factors(weights: Tensor, k: int) -> Tensor:
    """Returns the first matrices of a block, [images, tile rows, tile columns, 4t², (t+k-1)²]."""
    tiles = _weight_tiles(weights, k)
    factors = weights.new_zeros(*tiles.shape[:3], 4 * _TILE**2, (_TILE + k - 1) ** 2)
    _weights_of(factors, k).copy_(tiles)
    return factors


def _weights_of(factors: Tensor, k: int) -> Tensor:
    """Views the elements of `_factors` that hold weights as [..., t, t, 2, 2, k, k]."""
    # The rows of a matrix are the 2t x 2t outputs of the tile, and the columns the pixels of its window.
    # The window of an output starts one row or column later if its pixel does.
    side = _TILE + k - 1
    output, output_row = side**2, 2 * _TILE * side**2
    strides = (2 * output_row + side, 2 * output + 1, output_row, output, side, 1)
    sizes = (_TILE, _TILE, 2, 2, k, k)
    return factors.as_strided(factors.shape[:3] + sizes, factors.stride()[:3] + strides)


def _product(a: Tensor, b: Tensor, transposed: bool = False) -> Tensor:
    """Multiplies matrices, after three dimensions of tiles. The product may be transposed in memory."""
    if transposed:
        return _product(b.transpose(3, 4), a.transpose(3, 4)).transpose(3, 4)
    product = a.new_empty(*a.shape[:4], b.shape[4])
    # Autocast, which would round, leaves calls with `out` alone.
    torch.bmm(a.flatten(0, 2), b.flatten(0, 2), out=product.flatten(0, 2))
    return product


class CARAFE(nn.Module):
    """Content-aware reassembly of features: upsamples a map to twice its size.

    Source: Wang et al., arXiv 1905.02188, section 3. The defaults are the paper's kernel sizes.

    The output at (y, x) is a weighted sum over the k_up x k_up neighbourhood of the input at
    (⌊y/2⌋, ⌊x/2⌋). Pixels beyond the border are zero. The weights are a softmax over the
    neighbourhood. Each output position has its own weights, which are predicted from the input
    around it and shared by all channels.

    The parameters have the layout of the authors' code. The weights are nearly equal at first.
    torch.func.vmap and forward-mode derivatives do not work. The sums are float32 sums, but where TF32
    is allowed for products of matrices, a GPU rounds their terms. A pixel that is infinite or NaN makes
    NaN of more outputs than have it in their neighbourhood, because zeros are multiplied by it. They
    are those of pixels up to k_up // 2 + 3 rows or columns away. An infinite or NaN gradient of an output
    does the same to the gradient of the input.
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
