from .bifpn import BiFPN
from .build import (
    build_mrcnn_resnet_bifpn_backbone,
    build_mrcnn_resnet_pafpn_backbone,
    build_mrcnn_resnet_upsample_fpn_backbone,
    build_mrcnn_retinanet_resnet_bifpn_backbone,
    build_mrcnn_retinanet_resnet_pafpn_backbone,
    build_mrcnn_retinanet_resnet_upsample_fpn_backbone,
)
from .pafpn import PAFPN
from .upsample_fpn import UpsampleFPN

__all__ = [
    "BiFPN",
    "PAFPN",
    "UpsampleFPN",
    "build_mrcnn_resnet_bifpn_backbone",
    "build_mrcnn_resnet_pafpn_backbone",
    "build_mrcnn_resnet_upsample_fpn_backbone",
    "build_mrcnn_retinanet_resnet_bifpn_backbone",
    "build_mrcnn_retinanet_resnet_pafpn_backbone",
    "build_mrcnn_retinanet_resnet_upsample_fpn_backbone",
]
