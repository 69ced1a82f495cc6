"""FPN with PANet's bottom-up path augmentation."""

import math
from typing import Any, Dict, List

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, FPN, build_resnet_backbone
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor, nn


class PAFPN(FPN):
    """FPN followed by a second, bottom-up path (Liu et al., PANet, arXiv 1803.01534, section 3.1).

    From the FPN's levels P_i, at strides 2^i, the levels N_i are

        N_low = P_low,    N_{i+1} = P_{i+1} + output_{i+1}(P_{i+1} + relu(downsample_i(N_i)))

    with 3x3 convolutions, downsample_i of stride 2. In the paper a ReLU follows the second
    convolution and nothing skips it. Here it is a residual that starts at zero, so that N_i = P_i
    exactly before training: a model that starts from the checkpoint of a stock FPN starts from its
    outputs. The top block's levels are computed from the N_i.

    The parameters of the FPN have the names that they have in Detectron2; the path adds
    `pafpn_downsample{i}` and `pafpn_output{i+1}`.
    """

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: List[str],
        out_channels: int,
        norm: str = "",
        **kwargs: Any,
    ) -> None:
        """
        Args:
            As for Detectron2's FPN. `norm` also normalises the convolutions of the second path.
        """
        super().__init__(bottom_up, in_features, out_channels, norm, **kwargs)
        shapes = bottom_up.output_shape()
        stages = [int(math.log2(shapes[f].stride)) for f in in_features]
        self._pafpn_stages = stages
        for stage in stages[:-1]:
            downsample = self._conv(out_channels, norm, stride=2)
            output = self._conv(out_channels, norm, stride=1)
            # A normalisation that follows a convolution of zeros would blow up its gradient, so one
            # that is trained holds the zero itself.
            trained_norm = isinstance(getattr(output.norm, "weight", None), nn.Parameter)
            nn.init.zeros_(output.norm.weight if trained_norm else output.weight)
            self.add_module(f"pafpn_downsample{stage}", downsample)
            self.add_module(f"pafpn_output{stage + 1}", output)

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

    def forward(self, x: Tensor) -> Dict[str, Tensor]:
        """As Detectron2's FPN: from images [N, 3, H, W] to levels "p<stage>", high resolution
        first, of [N, out_channels, H / 2^stage, W / 2^stage]."""
        features = super().forward(x)
        for stage in self._pafpn_stages[:-1]:
            downsample = getattr(self, f"pafpn_downsample{stage}")
            output = getattr(self, f"pafpn_output{stage + 1}")
            lower, upper = features[f"p{stage}"], features[f"p{stage + 1}"]
            features[f"p{stage + 1}"] = upper + output(upper + F.relu(downsample(lower)))
        if self.top_block is not None and self.top_block.in_feature in features:
            # The parent computed these levels from its own; to stop it would take a copy of it.
            top = self.top_block(features[self.top_block.in_feature])
            features.update(zip(self._out_features[-self.top_block.num_levels :], top, strict=True))
        return features


@BACKBONE_REGISTRY.register()
def build_resnet_pafpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> PAFPN:
    """ResNet with PAFPN, from the keys that Detectron2's `build_resnet_fpn_backbone` reads.

    Args:
        cfg: a Detectron2 config.
        input_shape: of the images.
    """
    return PAFPN(
        bottom_up=build_resnet_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
