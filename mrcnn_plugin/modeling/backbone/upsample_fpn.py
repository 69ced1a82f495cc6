"""Detectron2's FPN with a choice of upsampling, and what the pyramids of this package share."""

import math
from typing import Any, Dict, List, Optional

from detectron2.modeling import FPN
from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn

from ...layers import CARAFE

UPSAMPLE = ("nearest", "bilinear", "bicubic", "carafe")


def build_upsample(upsample: str, channels: int) -> nn.Module:
    """Upsampling to twice the size: [N, channels, H, W] to [N, channels, 2H, 2W].

    Args:
        upsample: "nearest", "bilinear" and "bicubic" (half-pixel centres, a = -0.75), which have
            no parameters, or "carafe" (:class:`CARAFE`).
        channels: of the input.

    Raises:
        ValueError: `upsample` is none of them.
    """
    if upsample not in UPSAMPLE:
        raise ValueError(f"MODEL.FPN.UPSAMPLE must be one of {UPSAMPLE}, got {upsample!r}")
    if upsample == "carafe":
        return CARAFE(channels)
    align_corners = None if upsample == "nearest" else False
    return nn.Upsample(scale_factor=2, mode=upsample, align_corners=align_corners)


class Pyramid(FPN):
    """Detectron2's FPN in parts, for classes with a forward of their own.

    Detectron2 makes its FPN scriptable by an attribute of the class, which subclasses inherit. They
    stay scriptable as long as their own modules are in module containers whose names do not begin
    with "fpn_"; TorchScript knows no `super()`, hence the parts.
    """

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: List[str],
        out_channels: int,
        norm: str = "",
        top_block: Optional[nn.Module] = None,
        fuse_type: str = "sum",
        **kwargs: Any,
    ) -> None:
        """
        Args:
            As for Detectron2's FPN.

        Raises:
            ValueError: `bottom_up` does not have the `in_features`, their strides are not
                successive powers of two, `top_block` does not start from the last of them or of the
                pyramid's levels, or `fuse_type` is unknown.
        """
        shapes = bottom_up.output_shape()
        given = f"MODEL.FPN.IN_FEATURES is {list(in_features)}"
        if not in_features or not set(in_features) <= set(shapes):
            raise ValueError(f"{given}, but must name features of the bottom-up: {list(shapes)}")
        strides = [shapes[f].stride for f in in_features]
        if any(s != 2 ** (strides[0].bit_length() - 1 + i) for i, s in enumerate(strides)):
            raise ValueError(
                f"{given} of strides {strides}, but a pyramid needs successive powers of two"
            )
        if fuse_type not in ("sum", "avg"):
            raise ValueError(f"MODEL.FPN.FUSE_TYPE must be 'sum' or 'avg', got {fuse_type!r}")
        last = f"p{int(math.log2(strides[-1]))}"
        if top_block is not None:
            source = top_block.in_feature
            if source != last and (source not in shapes or shapes[source].stride != strides[-1]):
                raise ValueError(
                    f"{given}, whose last level is {last!r} of stride {strides[-1]}, but the top "
                    f"block continues from {source!r}: the two must be of the same stride"
                )
        super().__init__(bottom_up, in_features, out_channels, norm, top_block, fuse_type, **kwargs)

    def lateral_levels(self, bottom_up_features: Dict[str, Tensor]) -> List[Tensor]:
        """The lateral convolutions' outputs, high resolution first."""
        levels: List[Tensor] = []
        for i, lateral_conv in enumerate(self.lateral_convs):  # low resolution first
            levels.insert(0, lateral_conv(bottom_up_features[self.in_features[-1 - i]]))
        return levels

    def add_top_levels(
        self, levels: List[Tensor], bottom_up_features: Dict[str, Tensor]
    ) -> List[Tensor]:
        """`levels`, high resolution first, and those of the top block, if there is one."""
        if self.top_block is not None:
            source = levels[-1]
            if self.top_block.in_feature in bottom_up_features:
                source = bottom_up_features[self.top_block.in_feature]
            levels = levels + self.top_block(source)
        return levels

    def name_levels(self, levels: List[Tensor]) -> Dict[str, Tensor]:
        return {name: levels[i] for i, name in enumerate(self._out_features)}


class UpsampleFPN(Pyramid):
    """Detectron2's FPN (arXiv 1612.03144) with a choice of upsampling in its top-down path.

    With "nearest" it is Detectron2's FPN, to the bit. "carafe" adds the parameters
    `upsample.{stage}`, which belong to the step that arrives at the level p{stage}; others add
    none.
    """

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: List[str],
        out_channels: int,
        norm: str = "",
        top_block: Optional[nn.Module] = None,
        fuse_type: str = "sum",
        *,
        upsample: str = "nearest",
        **kwargs: Any,
    ) -> None:
        """
        Args:
            upsample: "nearest", "bilinear", "bicubic" or "carafe".
            others: as for Detectron2's FPN.

        Raises:
            ValueError: as for :class:`Pyramid`, or `upsample` is unknown.
        """
        super().__init__(bottom_up, in_features, out_channels, norm, top_block, fuse_type, **kwargs)
        # Without the name of the last level, from which the path starts.
        arrivals = reversed(list(self._out_features)[: len(in_features) - 1])
        self.upsample = nn.ModuleDict(
            {name[1:]: build_upsample(upsample, out_channels) for name in arrivals}
        )

    def forward(self, x: Tensor) -> Dict[str, Tensor]:
        """As Detectron2's FPN: from images [N, 3, H, W] to levels "p<stage>", high resolution
        first, of [N, out_channels, H / 2^stage, W / 2^stage]."""
        bottom_up_features = self.bottom_up(x)
        levels = self.top_down_path(self.lateral_levels(bottom_up_features))
        levels = self.bottom_up_path(levels)
        return self.name_levels(self.add_top_levels(levels, bottom_up_features))

    def top_down_path(self, laterals: List[Tensor]) -> List[Tensor]:
        """Section 3 of the FPN paper; levels come and go high resolution first."""
        level = laterals[-1]
        merged = [level]
        for i, upsample in enumerate(self.upsample.values()):
            level = laterals[-2 - i] + upsample(level)
            if self._fuse_type == "avg":
                level = level / 2
            merged.append(level)
        levels: List[Tensor] = []
        for i, output_conv in enumerate(self.output_convs):
            levels.insert(0, output_conv(merged[i]))
        return levels

    def bottom_up_path(self, levels: List[Tensor]) -> List[Tensor]:
        """For subclasses: what becomes of the levels before the top block. Here nothing."""
        return levels
