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
from .poolers import MultiscaleROIPooler
from .proposal_generator import FocalRPN
from .roi_heads import (
    FocalCascadeROIHeads,
    FocalFastRCNNOutputLayers,
    FocalRes5ROIHeads,
    FocalROIHeads,
)
from .unused_keys import find_unused_keys

__all__ = [
    "BiFPN",
    "FocalCascadeROIHeads",
    "FocalFastRCNNOutputLayers",
    "FocalROIHeads",
    "FocalRPN",
    "FocalRes5ROIHeads",
    "MultiscaleROIPooler",
    "PAFPN",
    "UpsampleFPN",
    "build_resnet_bifpn_backbone",
    "build_resnet_pafpn_backbone",
    "build_resnet_upsample_fpn_backbone",
    "build_retinanet_resnet_bifpn_backbone",
    "build_retinanet_resnet_pafpn_backbone",
    "build_retinanet_resnet_upsample_fpn_backbone",
    "find_unused_keys",
]
