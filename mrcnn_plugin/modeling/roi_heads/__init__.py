from .focal_fast_rcnn import FocalFastRCNNOutputLayers
from .focal_roi_heads import FocalROIHeads

__all__ = ["FocalFastRCNNOutputLayers", "FocalROIHeads"]
