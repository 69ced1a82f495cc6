"""The pyramids on a ResNet, by the names that MODEL.BACKBONE.NAME takes."""

from typing import Any, TypeVar

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7

from .bifpn import BiFPN
from .pafpn import PAFPN
from .pyramid import Pyramid
from .upsample_fpn import UpsampleFPN

P = TypeVar("P", bound=Pyramid)


def _build(pyramid: type[P], cfg: CfgNode, input_shape: ShapeSpec, p6p7: bool, **options: Any) -> P:
    """`pyramid` on a ResNet, with the levels p6 and p7 of RetinaNet, or p6 alone."""
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
    # Detectron2's RetinaNet would fail with a bare KeyError: 'p7'.
    levels = list(backbone.output_shape())
    wanted = cfg.MODEL.RETINANET.IN_FEATURES
    if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" and not set(wanted) <= set(levels):
        raise ValueError(
            f"MODEL.RETINANET.IN_FEATURES is {wanted}, but MODEL.BACKBONE.NAME "
            f"{cfg.MODEL.BACKBONE.NAME!r} has the levels {levels}: a build_mrcnn_retinanet_… one has "
            f"p6 and p7 as RetinaNet has them, and MODEL.FPN.IN_FEATURES says where it begins"
        )
    return backbone


def _build_bifpn(cfg: CfgNode, input_shape: ShapeSpec, p6p7: bool) -> BiFPN:
    return _build(
        BiFPN,
        cfg,
        input_shape,
        p6p7,
        num_repeats=cfg.MODEL.MRCNN_PLUGIN.BIFPN.NUM_REPEATS,
        depthwise=cfg.MODEL.MRCNN_PLUGIN.BIFPN.DEPTHWISE,
    )


@BACKBONE_REGISTRY.register()
def build_mrcnn_resnet_upsample_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> UpsampleFPN:
    """ResNet with :class:`UpsampleFPN`, from the keys that Detectron2's `build_resnet_fpn_backbone`
    reads and `MODEL.FPN.UPSAMPLE`.

    Args:
        cfg: a Detectron2 config with the keys of this package.
        input_shape: of the images.
    """
    return _build(UpsampleFPN, cfg, input_shape, p6p7=False)


@BACKBONE_REGISTRY.register()
def build_mrcnn_retinanet_resnet_upsample_fpn_backbone(
    cfg: CfgNode, input_shape: ShapeSpec
) -> UpsampleFPN:
    """As :func:`build_mrcnn_resnet_upsample_fpn_backbone`, with RetinaNet's p6 and p7."""
    return _build(UpsampleFPN, cfg, input_shape, p6p7=True)


@BACKBONE_REGISTRY.register()
def build_mrcnn_resnet_pafpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> PAFPN:
    """ResNet with :class:`PAFPN`, from the keys that Detectron2's `build_resnet_fpn_backbone` reads
    and `MODEL.FPN.UPSAMPLE`.

    Args:
        cfg: a Detectron2 config with the keys of this package.
        input_shape: of the images.
    """
    return _build(PAFPN, cfg, input_shape, p6p7=False)


@BACKBONE_REGISTRY.register()
def build_mrcnn_retinanet_resnet_pafpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> PAFPN:
    """As :func:`build_mrcnn_resnet_pafpn_backbone`, with RetinaNet's p6 and p7."""
    return _build(PAFPN, cfg, input_shape, p6p7=True)


@BACKBONE_REGISTRY.register()
def build_mrcnn_resnet_bifpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> BiFPN:
    """ResNet with :class:`BiFPN`, from the keys `MODEL.FPN` (but FUSE_TYPE, whose place learned
    weights take) and `MODEL.MRCNN_PLUGIN.BIFPN`.

    Args:
        cfg: a Detectron2 config with the keys of this package.
        input_shape: of the images.
    """
    return _build_bifpn(cfg, input_shape, p6p7=False)


@BACKBONE_REGISTRY.register()
def build_mrcnn_retinanet_resnet_bifpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> BiFPN:
    """As :func:`build_mrcnn_resnet_bifpn_backbone`, with RetinaNet's p6 and p7."""
    return _build_bifpn(cfg, input_shape, p6p7=True)
