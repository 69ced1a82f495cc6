"""The components that Detectron2 builds from a config. Importing this package registers them."""

from . import analysis  # noqa: F401
from .backbone import (
    PAFPN,
    BiFPN,
    UpsampleFPN,
    build_mrcnn_resnet_bifpn_backbone,
    build_mrcnn_resnet_pafpn_backbone,
    build_mrcnn_resnet_upsample_fpn_backbone,
    build_mrcnn_retinanet_resnet_bifpn_backbone,
    build_mrcnn_retinanet_resnet_pafpn_backbone,
    build_mrcnn_retinanet_resnet_upsample_fpn_backbone,
)
from .poolers import MultiscaleROIPooler
from .proposal_generator import MRCNNFocalRPN
from .roi_heads import (
    FocalFastRCNNOutputLayers,
    MRCNNFocalCascadeROIHeads,
    MRCNNFocalRes5ROIHeads,
    MRCNNFocalROIHeads,
)
from .unused_keys import find_unused_keys

__all__ = [
    "BiFPN",
    "FocalFastRCNNOutputLayers",
    "MRCNNFocalCascadeROIHeads",
    "MRCNNFocalROIHeads",
    "MRCNNFocalRPN",
    "MRCNNFocalRes5ROIHeads",
    "MultiscaleROIPooler",
    "PAFPN",
    "UpsampleFPN",
    "build_mrcnn_resnet_bifpn_backbone",
    "build_mrcnn_resnet_pafpn_backbone",
    "build_mrcnn_resnet_upsample_fpn_backbone",
    "build_mrcnn_retinanet_resnet_bifpn_backbone",
    "build_mrcnn_retinanet_resnet_pafpn_backbone",
    "build_mrcnn_retinanet_resnet_upsample_fpn_backbone",
    "find_unused_keys",
]
