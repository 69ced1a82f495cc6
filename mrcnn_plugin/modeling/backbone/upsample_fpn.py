"""UpsampleFPN: Detectron2's FPN with a choice of upsampling."""

from typing import Any

import torch
from detectron2.modeling import FPN
from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn

from ...layers import CARAFE, GatedCARAFE
from .pyramid import Pyramid, check_pyramid

UPSAMPLE = ("nearest", "mean", "bilinear", "bicubic", "carafe", "gated_carafe")


def build_upsample(upsample: str, channels: int) -> nn.Module:
    """Returns a module that doubles the size, from [N, channels, H, W] to [N, channels, 2H, 2W].

    Args:
        upsample: "nearest", "mean", "bilinear", "bicubic", "carafe" (:class:`CARAFE`) or
            "gated_carafe" (:class:`GatedCARAFE`). Only the last two have parameters. "mean" is "nearest"
            of the mean over 5 x 5 neighbours, with zeros beyond the border. CARAFE is nearly that at first.
            "bilinear" and "bicubic" have half-pixel centres, and a = -0.75.
        channels: the number of channels of the input.

    Raises:
        ValueError: `upsample` is unknown.
    """
    if upsample not in UPSAMPLE:
        raise ValueError(f"MODEL.FPN.UPSAMPLE must be one of {UPSAMPLE}, got {upsample!r}")
    if upsample == "carafe":
        return CARAFE(channels)
    if upsample == "gated_carafe":
        return GatedCARAFE(channels)
    if upsample == "mean":
        return nn.Sequential(nn.AvgPool2d(5, stride=1, padding=2), nn.Upsample(scale_factor=2))
    align_corners = None if upsample == "nearest" else False
    return nn.Upsample(scale_factor=2, mode=upsample, align_corners=align_corners)


class UpsampleFPN(Pyramid, FPN):
    """Detectron2's FPN (arXiv 1612.03144) with a choice of upsampling in its top-down path.

    With "nearest", it gives exactly the numbers of Detectron2's FPN. "carafe" and "gated_carafe" add
    the parameters `upsample.{stage}`, which belong to the step that computes the level p{stage}. The
    other values add no parameters.

    Detectron2 makes its FPN scriptable with an attribute of the class, which subclasses inherit. A
    subclass stays scriptable if its own modules are in module containers whose names do not begin
    with "fpn_".
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
        **kwargs: Any,
    ) -> None:
        """
        Args:
            upsample: as for :func:`build_upsample`.
            others: as for Detectron2's FPN.

        Raises:
            ValueError: `upsample` is unknown, or one of the errors of :func:`check_pyramid`.
        """
        check_pyramid(bottom_up, in_features, top_block, fuse_type)
        super().__init__(bottom_up, in_features, out_channels, norm, top_block, fuse_type, **kwargs)
        # The path starts at the last level, so no step computes it.
        arrivals = reversed(list(self._out_features)[: len(in_features) - 1])
        # The modules take no random number from the stream of the others. A seed therefore gives the
        # rest of a model the same weights for every choice of upsampling.
        with torch.random.fork_rng(devices=[]):
            self.upsample = nn.ModuleDict(
                {name[1:]: build_upsample(upsample, out_channels) for name in arrivals}
            )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Computes the levels from images [N, 3, H, W], as Detectron2's FPN does.

        Returns:
            The levels "p<stage>", high resolution first: [N, out_channels, H / 2^stage, W / 2^stage].
        """
        bottom_up_features = self.bottom_up(x)
        levels = self.top_down_path(self.lateral_levels(bottom_up_features))
        levels = self.bottom_up_path(levels)
        return self.name_levels(self.add_top_levels(levels, bottom_up_features))

    def top_down_path(self, laterals: list[Tensor]) -> list[Tensor]:
        """Computes section 3 of the FPN paper. Input and output have the high resolution first."""
        level = laterals[-1]
        merged = [level]
        for i, upsample in enumerate(self.upsample.values()):
            level = laterals[-2 - i] + upsample(level)
            if self._fuse_type == "avg":
                level = level / 2
            merged.append(level)
        levels: list[Tensor] = []
        for i, output_conv in enumerate(self.output_convs):
            levels.insert(0, output_conv(merged[i]))
        return levels

    def bottom_up_path(self, levels: list[Tensor]) -> list[Tensor]:
        """Returns the levels from which the top block continues. Subclasses may change them."""
        return levels
