from .focal_fast_rcnn import FocalFastRCNNOutputLayers
from .focal_roi_heads import MRCNNFocalCascadeROIHeads, MRCNNFocalRes5ROIHeads, MRCNNFocalROIHeads

__all__ = [
    "FocalFastRCNNOutputLayers",
    "MRCNNFocalCascadeROIHeads",
    "MRCNNFocalROIHeads",
    "MRCNNFocalRes5ROIHeads",
]
