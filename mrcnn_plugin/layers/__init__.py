"""Building blocks that need only torch, and not Detectron2."""

from .carafe import CARAFE, GatedCARAFE
from .focal_loss import sigmoid_focal_loss, sigmoid_focal_star_loss, softmax_focal_loss
from .roi_align import ROIAlign, multiscale_roi_align, roi_align

__all__ = [
    "CARAFE",
    "GatedCARAFE",
    "ROIAlign",
    "multiscale_roi_align",
    "roi_align",
    "sigmoid_focal_loss",
    "sigmoid_focal_star_loss",
    "softmax_focal_loss",
]
