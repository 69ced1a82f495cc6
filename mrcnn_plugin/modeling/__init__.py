"""Components that Detectron2 builds from a config. Importing this package registers them."""

from . import analysis  # noqa: F401
from .backbone import PAFPN, build_resnet_pafpn_backbone
from .roi_heads import FocalFastRCNNOutputLayers, FocalROIHeads

__all__ = ["FocalFastRCNNOutputLayers", "FocalROIHeads", "PAFPN", "build_resnet_pafpn_backbone"]
