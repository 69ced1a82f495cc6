from .focal_fast_rcnn import FocalFastRCNNOutputLayers
from .focal_roi_heads import FocalCascadeROIHeads, FocalRes5ROIHeads, FocalROIHeads

__all__ = [
    "FocalCascadeROIHeads",
    "FocalFastRCNNOutputLayers",
    "FocalROIHeads",
    "FocalRes5ROIHeads",
]
