"""Components that Detectron2 builds from a config. Importing this package registers them."""

from . import analysis  # noqa: F401
from .backbone import PAFPN, build_resnet_pafpn_backbone
from .proposal_generator import FocalRPN
from .roi_heads import (
    FocalCascadeROIHeads,
    FocalFastRCNNOutputLayers,
    FocalRes5ROIHeads,
    FocalROIHeads,
)

__all__ = [
    "FocalCascadeROIHeads",
    "FocalFastRCNNOutputLayers",
    "FocalROIHeads",
    "FocalRPN",
    "FocalRes5ROIHeads",
    "PAFPN",
    "build_resnet_pafpn_backbone",
]
