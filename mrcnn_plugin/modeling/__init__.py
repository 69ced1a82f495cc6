"""Components that Detectron2 builds from a config. Importing this package registers them."""

from . import analysis  # noqa: F401
from .backbone import (
    PAFPN,
    BiFPN,
    UpsampleFPN,
    build_resnet_bifpn_backbone,
    build_resnet_pafpn_backbone,
    build_resnet_upsample_fpn_backbone,
    build_retinanet_resnet_bifpn_backbone,
    build_retinanet_resnet_pafpn_backbone,
    build_retinanet_resnet_upsample_fpn_backbone,
)
from .roi_heads import FocalFastRCNNOutputLayers, FocalROIHeads

__all__ = [
    "BiFPN",
    "FocalFastRCNNOutputLayers",
    "FocalROIHeads",
    "PAFPN",
    "UpsampleFPN",
    "build_resnet_bifpn_backbone",
    "build_resnet_pafpn_backbone",
    "build_resnet_upsample_fpn_backbone",
    "build_retinanet_resnet_bifpn_backbone",
    "build_retinanet_resnet_pafpn_backbone",
    "build_retinanet_resnet_upsample_fpn_backbone",
]
