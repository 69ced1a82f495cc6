"""CARAFE: upsampling by kernels that are predicted from the content."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CARAFE(nn.Module):
    """Content-aware reassembly of features to twice the size (Wang et al., arXiv 1905.02188,
    section 3), by default with the kernel sizes that the paper settles on.

    The value at (y, x) is the sum over the k_up x k_up neighbourhood of the input at (⌊y/2⌋, ⌊x/2⌋),
    zero beyond the border, with weights that are a softmax over the neighbourhood: one set for each
    output position, predicted from the input around it, and shared by all channels.

    Parameters have the layout of the authors' code. At the start the weights are nearly equal.
    """

    def __init__(
        self, channels: int, k_up: int = 5, k_encoder: int = 3, compressed_channels: int = 64
    ) -> None:
        """
        Args:
            channels: of the input and output.
            k_up: side of the reassembly kernel, odd.
            k_encoder: side of the convolution that predicts the kernels, odd.
            compressed_channels: C_m, channels that the kernels are predicted from.
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
        """From [N, channels, H, W] to [N, channels, 2H, 2W], of the same dtype."""
        n, channels, height, width = x.shape
        k = self.k_up
        weights = self.encoder(self.compressor(x)).view(n, k * k, 2, 2, height, width)
        # 25 terms are summed in float32 and rounded once.
        dtype = torch.promote_types(x.dtype, torch.float32)
        weights = weights.to(dtype).softmax(1)
        padded = F.pad(x.to(dtype), [k // 2] * 4)
        # Tap by tap, on views: the k_up² times larger unfolded input is never in memory, and the
        # four output positions of a pixel stay apart until the end, so that rows are contiguous.
        output = torch.zeros_like(x, dtype=dtype)[:, :, None, None]
        for tap in range(k * k):
            row, column = tap // k, tap % k
            taps = padded[:, :, None, None, row : row + height, column : column + width]
            output = torch.addcmul(output, taps, weights[:, None, tap])
        output = output.reshape(n, 4 * channels, height, width).to(x.dtype)
        return F.pixel_shuffle(output, 2)
