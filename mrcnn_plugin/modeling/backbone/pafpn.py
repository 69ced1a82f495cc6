"""PAFPN: an FPN with the bottom-up path of PANet."""

from typing import Any

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, get_norm
from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn

from .upsample_fpn import UpsampleFPN


class PAFPNStep(nn.Module):
    """Computes N_{i+1} from N_i and P_{i+1}, see :class:`PAFPN`."""

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        self.downsample = self._conv(channels, norm, stride=2)
        self.output = self._conv(channels, norm, stride=1)
        # A norm after a convolution of zeros would make the gradient of the convolution huge. A norm
        # with trained weights therefore holds the zeros itself.
        trained_norm = isinstance(getattr(self.output.norm, "weight", None), nn.Parameter)
        nn.init.zeros_(self.output.norm.weight if trained_norm else self.output.weight)

    @staticmethod
    def _conv(channels: int, norm: str, stride: int) -> Conv2d:
        conv = Conv2d(
            channels,
            channels,
            kernel_size=3,
            stride=stride,
            padding=1,
            bias=norm == "",
            norm=get_norm(norm, channels),
        )
        weight_init.c2_xavier_fill(conv)
        return conv

    def forward(self, lower: Tensor, upper: Tensor) -> Tensor:
        """`lower` has twice the height and width of `upper`. The output has the shape of `upper`."""
        return upper + self.output(upper + F.relu(self.downsample(lower)))


class PAFPN(UpsampleFPN):
    """FPN followed by a second, bottom-up path (Liu et al., PANet, arXiv 1803.01534, section 3.1).

    From the FPN's levels P_i, at strides 2^i, the levels N_i are

        N_low = P_low,    N_{i+1} = P_{i+1} + output_{i+1}(P_{i+1} + relu(downsample_{i+1}(N_i)))

    Both convolutions are 3x3, and `downsample` has stride 2. In the paper, a ReLU follows the second
    convolution, and there is no skip connection. Here the path is a residual that starts at zero.
    Before training, N_i therefore equals P_i exactly. A model that starts from the checkpoint of a
    stock FPN starts with the outputs of that FPN. The top block continues from the N_i.

    The parameters of the FPN have their names in Detectron2. The path adds the parameters
    `pafpn.{i+1}.downsample` and `pafpn.{i+1}.output`.
    """

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: list[str],
        out_channels: int,
        norm: str = "",
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            As for :class:`UpsampleFPN`. The second path has the same `norm`.
        """
        super().__init__(bottom_up, in_features, out_channels, norm, *args, **kwargs)
        arrivals = list(self._out_features)[1 : len(in_features)]
        # The steps take no random number from the stream of the others, as in the parent.
        with torch.random.fork_rng(devices=[]):
            steps = {name[1:]: PAFPNStep(out_channels, norm) for name in arrivals}
        self.pafpn = nn.ModuleDict(steps)

    def bottom_up_path(self, levels: list[Tensor]) -> list[Tensor]:
        outputs = [levels[0]]
        for i, step in enumerate(self.pafpn.values()):
            outputs.append(step(outputs[-1], levels[i + 1]))
        return outputs
