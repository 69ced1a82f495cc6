"""The components that Detectron2 builds from a config. Importing this package registers them."""

from . import flops  # noqa: F401
from .backbone import PAFPN, BiFPN, UpsampleFPN
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
    "find_unused_keys",
]
