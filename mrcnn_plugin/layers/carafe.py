"""CARAFE: upsampling with kernels that a convolution predicts from the features."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
        n, channels, height, width = x.shape
        k = self.k_up
        weights = self.encoder(self.compressor(x)).view(n, k * k, 2, 2, height, width)
        # The k_up² terms are summed in float32, so that a half-precision result is rounded once.
        dtype = torch.promote_types(x.dtype, torch.float32)
        weights = weights.to(dtype).softmax(1)
        padded = F.pad(x.to(dtype), [k // 2] * 4)
        # The loop adds one tap at a time from views of the input, because an unfolded input would need
        # k_up² times its memory. The four output positions of a pixel are separate until the end, so
        # that rows are contiguous.
        output = torch.zeros_like(x, dtype=dtype)[:, :, None, None]
        for tap in range(k * k):
            row, column = tap // k, tap % k
            taps = padded[:, :, None, None, row : row + height, column : column + width]
            output = torch.addcmul(output, taps, weights[:, None, tap])
        output = output.reshape(n, 4 * channels, height, width).to(x.dtype)
        return F.pixel_shuffle(output, 2)


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
