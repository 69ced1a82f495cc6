"""Functions that build the pyramids on a ResNet. MODEL.BACKBONE.NAME takes their names."""

from typing import TypeVar

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7

from .bifpn import BiFPN
from .pafpn import PAFPN
from .pyramid import Pyramid
from .upsample_fpn import UpsampleFPN

P = TypeVar("P", bound=Pyramid)


def _build(pyramid: type[P], cfg: CfgNode, input_shape: ShapeSpec, p6p7: bool) -> P:
    """Builds a pyramid on a ResNet. The top block adds p6 and p7 for RetinaNet, or else p6 alone."""
    bottom_up = build_resnet_backbone(cfg, input_shape)
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    if not p6p7:
        top_block = LastLevelMaxPool()
    elif "res5" in bottom_up.output_shape():
        top_block = LastLevelP6P7(bottom_up.output_shape()["res5"].channels, channels)
    else:
        raise ValueError(
            f"MODEL.RESNETS.OUT_FEATURES is {cfg.MODEL.RESNETS.OUT_FEATURES}, but p6 and p7 are "
            f"computed from 'res5': add it"
        )
    options = {}
    if pyramid is BiFPN:
        options = {
            "num_repeats": cfg.MODEL.MRCNN_PLUGIN.BIFPN.NUM_REPEATS,
            "depthwise": cfg.MODEL.MRCNN_PLUGIN.BIFPN.DEPTHWISE,
        }
    backbone = pyramid(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
        upsample=cfg.MODEL.FPN.UPSAMPLE,
        **options,
    )
    # Without this check, Detectron2's RetinaNet would only say KeyError: 'p7'.
    levels = list(backbone.output_shape())
    wanted = cfg.MODEL.RETINANET.IN_FEATURES
    if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" and not set(wanted) <= set(levels):
        raise ValueError(
            f"MODEL.RETINANET.IN_FEATURES is {wanted}, but MODEL.BACKBONE.NAME "
            f"{cfg.MODEL.BACKBONE.NAME!r} has the levels {levels}. The backbones build_mrcnn_retinanet_… "
            f"have p6 and p7, and MODEL.FPN.IN_FEATURES chooses the first level"
        )
    return backbone


@BACKBONE_REGISTRY.register()
def build_mrcnn_resnet_upsample_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> UpsampleFPN:
    """Builds a ResNet with :class:`UpsampleFPN`, with p2 to p6.

    It reads the keys of Detectron2's `build_resnet_fpn_backbone`, and `MODEL.FPN.UPSAMPLE`.

    Raises:
        ValueError: the keys make no pyramid, or one for RetinaNet lacks "res5".
    """
    return _build(UpsampleFPN, cfg, input_shape, p6p7=False)


@BACKBONE_REGISTRY.register()
def build_mrcnn_retinanet_resnet_upsample_fpn_backbone(
    cfg: CfgNode, input_shape: ShapeSpec
) -> UpsampleFPN:
    """As :func:`build_mrcnn_resnet_upsample_fpn_backbone`, but with p3 to p7 for RetinaNet."""
    return _build(UpsampleFPN, cfg, input_shape, p6p7=True)


@BACKBONE_REGISTRY.register()
def build_mrcnn_resnet_pafpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> PAFPN:
    """Builds a ResNet with :class:`PAFPN`, with p2 to p6.

    It reads the keys of Detectron2's `build_resnet_fpn_backbone`, and `MODEL.FPN.UPSAMPLE`.
    """
    return _build(PAFPN, cfg, input_shape, p6p7=False)


@BACKBONE_REGISTRY.register()
def build_mrcnn_retinanet_resnet_pafpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> PAFPN:
    """As :func:`build_mrcnn_resnet_pafpn_backbone`, but with p3 to p7 for RetinaNet."""
    return _build(PAFPN, cfg, input_shape, p6p7=True)


@BACKBONE_REGISTRY.register()
def build_mrcnn_resnet_bifpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> BiFPN:
    """Builds a ResNet with :class:`BiFPN`, with p2 to p6.

    It reads the keys of `MODEL.FPN` and `MODEL.MRCNN_PLUGIN.BIFPN`. `MODEL.FPN.FUSE_TYPE` must be "sum".
    """
    return _build(BiFPN, cfg, input_shape, p6p7=False)


@BACKBONE_REGISTRY.register()
def build_mrcnn_retinanet_resnet_bifpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> BiFPN:
    """As :func:`build_mrcnn_resnet_bifpn_backbone`, but with p3 to p7 for RetinaNet."""
    return _build(BiFPN, cfg, input_shape, p6p7=True)
