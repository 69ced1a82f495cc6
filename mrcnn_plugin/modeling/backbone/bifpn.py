"""BiFPN: repeated top-down and bottom-up paths that fuse levels with learned weights."""

import copy
import math

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, DepthwiseSeparableConv2d, get_norm
from detectron2.modeling.backbone import FPN, Backbone
from torch import Tensor, nn

from .pyramid import Pyramid, check_pyramid
from .upsample_fpn import build_upsample


class FusionNode(nn.Module):
    """Computes a weighted mean of the inputs I_1 … I_n, and then a 3x3 convolution.

        conv(swish(Σ_i w_i I_i)),    w_i = relu(weight_i) / (ε + Σ_j relu(weight_j)),    ε = 1e-4

    EfficientDet calls this fast normalised fusion (section 3.3). The last input is the resized
    neighbouring level. All weights start with the same value.
    """

    def __init__(
        self, num_inputs: int, resize: nn.Module, channels: int, norm: str, depthwise: bool
    ) -> None:
        """
        Args:
            num_inputs: n, which includes the neighbour.
            resize: resizes the neighbour to the size of the other inputs.
            channels: the number of channels of inputs and output.
            norm: the norm after the convolution, as for Detectron2's `get_norm`.
            depthwise: whether a 3x3 convolution of each channel and a 1x1 convolution replace the full
                3x3 convolution.
        """
        super().__init__()
        self.eps = 1e-4
        self.weight = nn.Parameter(torch.ones(num_inputs))
        self.resize = resize
        if depthwise:
            self.conv = DepthwiseSeparableConv2d(channels, channels, norm2=norm)
            # torch counts the fan-out of a depthwise convolution as that of a full one. Detectron2's
            # initial values are therefore too small by the square root of the number of channels.
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
            # Swish halves small values, so this convolution starts with twice the usual values. Each
            # of the two convolutions above compensates a factor of the square root of 2.
            nn.init.normal_(self.conv.weight, std=2 / math.sqrt(9 * channels))
            if self.conv.bias is not None:
                nn.init.zeros_(self.conv.bias)

    def fusion_weights(self) -> Tensor:
        """Returns the weights w_i, [num_inputs]. None is negative, and their sum is just below 1."""
        weight = F.relu(self.weight)
        return weight / (self.eps + weight.sum())

    def forward(self, inputs: list[Tensor], neighbour: Tensor) -> Tensor:
        weights = self.fusion_weights()
        fused = weights[-1] * self.resize(neighbour)
        for i, x in enumerate(inputs):
            fused = fused + weights[i] * x
        return self.conv(F.silu(fused))


class BiFPNBlock(nn.Module):
    """A top-down and a bottom-up path over all levels (EfficientDet, figure 2 (d))."""

    def __init__(
        self, num_levels: int, channels: int, norm: str, upsample: str, depthwise: bool
    ) -> None:
        """
        Args:
            num_levels: the number of levels of the pyramid, at least 2.
            upsample: as for :func:`build_upsample`.
            others: as for :class:`FusionNode`.
        """
        super().__init__()
        options = (channels, norm, depthwise)
        # These go from the second lowest resolution to the highest. At the lowest, a node would have
        # one input and fuse nothing.
        self.top_down = nn.ModuleList(
            FusionNode(2, build_upsample(upsample, channels), *options)
            for _ in range(num_levels - 1)
        )
        # These go from the second highest resolution to the lowest. At the highest, the output is that
        # of the top-down node. The lowest has no top-down node, and so one input less.
        self.bottom_up = nn.ModuleList(
            FusionNode(3 if i < num_levels - 2 else 2, nn.MaxPool2d(3, 2, 1), *options)
            for i in range(num_levels - 1)
        )

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Computes new levels. Input and output have the high resolution first."""
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
    """The weighted bi-directional feature pyramid (Tan et al., EfficientDet, arXiv 1911.09070, section 3).

    The first block takes the outputs of lateral 1x1 convolutions of the bottom-up features. These
    convolutions have their names in Detectron2's FPN, `fpn_lateral{stage}`. The block also takes the
    levels of the top block, which continues from the laterals. With LastLevelMaxPool, the levels are
    p2 to p6 for Mask R-CNN. With LastLevelP6P7, they are p3 to p7 for RetinaNet. All levels that the
    model reads are therefore fused. The blocks are called `bifpn.{repeat}`, and there are no
    `fpn_output` convolutions.

    Swish comes before each convolution, as in the authors' code, so the output of a level is linear
    as in FPN. The authors' first block has two lateral convolutions for a feature that it uses twice.
    This one has one.

    The authors use batch normalisation after each convolution. Without a `norm`, features and
    gradients shrink from block to block. "GN" suits small batches.

    The model has to read all levels. Otherwise the last nodes of an unread level get no gradient, and
    DistributedDataParallel fails unless `find_unused_parameters` is set.

    Each level must have half the size of the one before. Height and width of the images must
    therefore be divisible by the stride of the last level, which is `size_divisibility`: 64 for p6,
    and 128 for p7. Detectron2's models pad images accordingly.
    """

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: list[str],
        out_channels: int,
        norm: str = "",
        top_block: nn.Module | None = None,
        fuse_type: str = "sum",
        square_pad: int = 0,
        *,
        upsample: str = "nearest",
        num_repeats: int = 3,
        depthwise: bool = True,
    ) -> None:
        """
        Args:
            bottom_up, in_features, out_channels, top_block, square_pad: as for Detectron2's FPN.
            fuse_type: must be "sum".
            norm: the norm of the lateral convolutions and of the convolutions in the blocks.
            upsample: as for :func:`build_upsample`.
            num_repeats: the number of blocks, at least 1.
            depthwise: True for depthwise separable convolutions as in the paper, False for full ones.

        Raises:
            ValueError: `fuse_type` is not "sum", `num_repeats` is below 1, there are fewer than two
                levels, `upsample` is unknown, or one of the errors of :func:`check_pyramid`.
        """
        super().__init__()
        check_pyramid(bottom_up, in_features, top_block, fuse_type)
        if fuse_type != "sum":
            raise ValueError(
                f"MODEL.FPN.FUSE_TYPE is {fuse_type!r}, but BiFPN learns the weights of the levels "
                f"that it fuses: leave it at 'sum'"
            )
        if num_repeats < 1:
            raise ValueError(
                f"MODEL.MRCNN_PLUGIN.BIFPN.NUM_REPEATS must be at least 1, got {num_repeats}"
            )
        # The laterals come from Detectron2's FPN, so that the same seed gives the same initial values.
        fpn = FPN(bottom_up, in_features, out_channels, norm, top_block)
        for name, module in fpn.named_children():
            if not name.startswith("fpn_output"):
                self.add_module(name, module)
        self.top_block = top_block
        self.lateral_convs = fpn.lateral_convs
        self.in_features = fpn.in_features
        self.square_pad = square_pad
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
        self.bifpn = nn.ModuleList(
            BiFPNBlock(num_levels, out_channels, norm, upsample, depthwise)
            for _ in range(num_repeats)
        )

    @property
    def size_divisibility(self) -> int:
        return max(self._out_feature_strides.values())

    @property
    def padding_constraints(self) -> dict[str, int]:
        return {"square_size": self.square_pad}

    def __prepare_scriptable__(self) -> "BiFPN":
        """Returns a copy for TorchScript, which can iterate over modules only if they are in a ModuleList."""
        prepared = copy.deepcopy(self)
        prepared.lateral_convs = nn.ModuleList(prepared.lateral_convs)
        for name, _ in self.named_children():
            if name.startswith("fpn_lateral"):
                delattr(prepared, name)
        return prepared

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Computes the levels from images [N, 3, H, W].

        Returns:
            The levels "p<stage>", high resolution first: [N, out_channels, H / 2^stage, W / 2^stage].
        """
        bottom_up_features = self.bottom_up(x)
        levels = self.lateral_levels(bottom_up_features)
        levels = self.add_top_levels(levels, bottom_up_features)
        for block in self.bifpn:
            levels = block(levels)
        return self.name_levels(levels)
