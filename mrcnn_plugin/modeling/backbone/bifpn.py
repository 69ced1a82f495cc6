"""BiFPN: repeated top-down and bottom-up fusion with learned weights."""

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, DepthwiseSeparableConv2d, get_norm
from detectron2.modeling.backbone import FPN, Backbone
from torch import Tensor, nn

from .pyramid import Pyramid, check_pyramid
from .upsample_fpn import build_upsample


class FusionNode(nn.Module):
    """Fast normalised fusion of I_1 … I_n (EfficientDet, section 3.3), then a 3x3 convolution:

        conv(swish(Σ_i w_i I_i)),    w_i = relu(weight_i) / (ε + Σ_j relu(weight_j)),    ε = 1e-4

    The last input is the neighbouring level, resized. All weights start equal.
    """

    def __init__(
        self, num_inputs: int, resize: nn.Module, channels: int, norm: str, depthwise: bool
    ) -> None:
        """
        Args:
            num_inputs: n, the neighbour included.
            resize: brings the neighbour to the size of the others.
            channels: of inputs and output.
            norm: follows the convolution, as for Detectron2's `get_norm`.
            depthwise: a 3x3 convolution of each channel and a 1x1 convolution instead of a full one.
        """
        super().__init__()
        self.eps = 1e-4
        self.weight = nn.Parameter(torch.ones(num_inputs))
        self.resize = resize
        if depthwise:
            self.conv = DepthwiseSeparableConv2d(channels, channels, norm2=norm)
            # torch counts the fan-out of a depthwise convolution as if it were a full one, so that
            # Detectron2's initialisation of it is too small by the root of the channels.
            nn.init.normal_(self.conv.depthwise.weight, std=math.sqrt(2 / 9))
        else:
            self.conv = Conv2d(
                channels,
                channels,
                kernel_size=3,
                padding=1,
                bias=norm == "",
                norm=get_norm(norm, channels),
            )
            # Swish halves what is small; of the two convolutions above each makes up for a root of 2.
            nn.init.normal_(self.conv.weight, std=2 / math.sqrt(9 * channels))
            if self.conv.bias is not None:
                nn.init.zeros_(self.conv.bias)

    def fusion_weights(self) -> Tensor:
        """[num_inputs], not negative, of a sum just below 1."""
        weight = F.relu(self.weight)
        return weight / (self.eps + weight.sum())

    def forward(self, inputs: list[Tensor], neighbour: Tensor) -> Tensor:
        weights = self.fusion_weights()
        fused = weights[-1] * self.resize(neighbour)
        for i, x in enumerate(inputs):
            fused = fused + weights[i] * x
        return self.conv(F.silu(fused))


class BiFPNBlock(nn.Module):
    """One top-down and one bottom-up path over all levels (EfficientDet, figure 2 (d))."""

    def __init__(
        self, num_levels: int, channels: int, norm: str, upsample: str, depthwise: bool
    ) -> None:
        """
        Args:
            num_levels: of the pyramid, at least 2.
            upsample: as for :func:`build_upsample`.
            others: as for :class:`FusionNode`.
        """
        super().__init__()
        options = (channels, norm, depthwise)
        # From the second lowest resolution upwards. There is no node at the lowest: it would have
        # one input and fuse nothing.
        self.top_down = nn.ModuleList(
            FusionNode(2, build_upsample(upsample, channels), *options)
            for _ in range(num_levels - 1)
        )
        # From the second highest resolution downwards. At the highest the top-down node is the
        # output; the lowest has no top-down node to take in.
        self.bottom_up = nn.ModuleList(
            FusionNode(3 if i < num_levels - 2 else 2, nn.MaxPool2d(3, 2, 1), *options)
            for i in range(num_levels - 1)
        )

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Levels come and go high resolution first."""
        middle = [levels[-1]]
        for i, node in enumerate(self.top_down):
            middle.insert(0, node([levels[-2 - i]], middle[0]))
        outputs = [middle[0]]
        for i, node in enumerate(self.bottom_up):
            inputs = [levels[i + 1]]
            if i + 2 < len(levels):
                inputs.append(middle[i + 1])
            outputs.append(node(inputs, outputs[-1]))
        return outputs


class BiFPN(Pyramid):
    """Weighted bi-directional feature pyramid (Tan et al., EfficientDet, arXiv 1911.09070, section
    3).

    The levels that enter the first block are FPN's lateral 1x1 convolutions of the bottom-up
    features, under the names that they have in Detectron2's FPN (`fpn_lateral{stage}`), and the top
    block's levels on top of them: with LastLevelMaxPool, which continues from the highest lateral,
    p2 to p6 for Mask R-CNN; with LastLevelP6P7 p3 to p7 for RetinaNet. So all levels that the model
    reads are fused. There are no `fpn_output` convolutions; the blocks are `bifpn.{repeat}`.

    As in the authors' code, Swish stands before each convolution and not after it, so that levels
    leave as linear as FPN's. Unlike there, the first block takes one lateral convolution for both
    uses of a feature.

    The authors have batch normalisation after each convolution. Without any `norm` features and
    gradients lose size from block to block: give it one, "GN" for small batches.

    A model has to read all levels, or else the last nodes of those that it leaves out have no
    gradient, which DistributedDataParallel refuses unless told `find_unused_parameters`.

    Each level must be half the size of the one before, so that height and width of images must be
    divisible by the stride of the top block's last level (`size_divisibility`: 64 for p6, 128 for
    p7); Detectron2's models pad them to that.
    """

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: list[str],
        out_channels: int,
        norm: str = "",
        top_block: nn.Module | None = None,
        fuse_type: str = "sum",
        *,
        upsample: str = "nearest",
        num_repeats: int = 3,
        depthwise: bool = True,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            bottom_up, in_features, out_channels, top_block: as for Detectron2's FPN.
            fuse_type: "sum", the only one.
            norm: of the lateral convolutions and of those of the blocks.
            upsample: "nearest", "bilinear", "bicubic" or "carafe".
            num_repeats: number of blocks, at least 1.
            depthwise: depthwise separable convolutions as in the paper, or full ones.

        Raises:
            ValueError: as for :func:`check_pyramid`; `fuse_type` is not "sum", `num_repeats` is below 1,
                there are fewer than two levels, or `upsample` is unknown.
        """
        super().__init__()
        check_pyramid(bottom_up, in_features, top_block, fuse_type)
        if fuse_type != "sum":
            raise ValueError(
                f"MODEL.FPN.FUSE_TYPE is {fuse_type!r}, but BiFPN learns how to weight what "
                f"it fuses: leave it at 'sum'"
            )
        if num_repeats < 1:
            raise ValueError(
                f"MODEL.MRCNN_PLUGIN.BIFPN.NUM_REPEATS must be at least 1, got {num_repeats}"
            )
        # Its laterals are those of Detectron2's FPN, so that a seed gives the same ones to both.
        fpn = FPN(bottom_up, in_features, out_channels, norm, top_block, **kwargs)
        for name, module in fpn.named_children():
            if not name.startswith("fpn_output"):
                self.add_module(name, module)
        self.top_block = top_block
        self.lateral_convs = fpn.lateral_convs
        self.in_features = fpn.in_features
        levels = fpn.output_shape()
        num_levels = len(levels)
        if num_levels < 2:
            raise ValueError(
                f"MODEL.FPN.IN_FEATURES is {list(in_features)} and there is no top block, but "
                f"BiFPN needs at least two levels to fuse"
            )
        self._out_features = list(levels)
        self._out_feature_channels = {name: level.channels for name, level in levels.items()}
        self._out_feature_strides = {name: level.stride for name, level in levels.items()}
        self._padding_constraints = getattr(fpn, "padding_constraints", {})
        self.bifpn = nn.ModuleList(
            BiFPNBlock(num_levels, out_channels, norm, upsample, depthwise)
            for _ in range(num_repeats)
        )

    @property
    def size_divisibility(self) -> int:
        return max(self._out_feature_strides.values())

    @property
    def padding_constraints(self) -> dict[str, int]:
        return self._padding_constraints

    def __prepare_scriptable__(self) -> "BiFPN":
        """A copy for TorchScript, which iterates over the modules of a ModuleList only."""
        prepared = copy.deepcopy(self)
        prepared.lateral_convs = nn.ModuleList(prepared.lateral_convs)
        for name, _ in self.named_children():
            if name.startswith("fpn_lateral"):
                delattr(prepared, name)
        return prepared

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """From images [N, 3, H, W] to levels "p<stage>", high resolution first, of
        [N, out_channels, H / 2^stage, W / 2^stage]."""
        bottom_up_features = self.bottom_up(x)
        levels = self.lateral_levels(bottom_up_features)
        levels = self.add_top_levels(levels, bottom_up_features)
        for block in self.bifpn:
            levels = block(levels)
        return self.name_levels(levels)
