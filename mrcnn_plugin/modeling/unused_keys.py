"""Finds keys of this package that a config changes, but that nothing in the model reads."""

from collections.abc import Callable

from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, ROI_HEADS_REGISTRY
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.roi_heads import Res5ROIHeads
from fvcore.common.registry import Registry

from ..config import KEYS, value_of
from .roi_heads.focal_fast_rcnn import SIGMOID_LOSSES


def find_unused_keys(cfg: CfgNode) -> list[str]:
    """Finds keys that have no effect.

    Args:
        cfg: a config with the keys of this package.

    Returns:
        One sentence for each key that differs from its default although the config does not choose
        the component that reads it.
    """
    sentences = []
    for key in KEYS:
        reason = READERS[key.reader](cfg)
        if reason and value_of(cfg, key.name) != key.default:
            sentences.append(
                f"{key.name} is {value_of(cfg, key.name)!r}, but nothing reads it: {reason}"
            )
    return sentences


# There is one function for each reader that config.py names. It returns the reason why a config does
# not have that reader, or an empty string if it has.


def _tools(cfg: CfgNode) -> str:
    return ""


def _pyramid(cfg: CfgNode) -> str:
    name = cfg.MODEL.BACKBONE.NAME
    return "" if is_ours(BACKBONE_REGISTRY, name) else f"MODEL.BACKBONE.NAME is {name!r}"


def _bifpn(cfg: CfgNode) -> str:
    name = cfg.MODEL.BACKBONE.NAME
    return _pyramid(cfg) or ("" if "bifpn" in name else f"MODEL.BACKBONE.NAME is {name!r}")


def _roi_heads(cfg: CfgNode) -> str:
    if cfg.MODEL.META_ARCHITECTURE in ("ProposalNetwork", "RetinaNet", "SemanticSegmentor"):
        return f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE!r}, without ROI heads"
    name = cfg.MODEL.ROI_HEADS.NAME
    return "" if is_ours(ROI_HEADS_REGISTRY, name) else f"MODEL.ROI_HEADS.NAME is {name!r}"


def _bicubic_pooler(cfg: CfgNode) -> str:
    reason = _roi_heads(cfg)
    if reason:
        return reason
    types = pooler_types(cfg)
    # ROIAlignBilinear has no parameter.
    return "" if "ROIAlignBicubic" in types.values() else f"POOLER_TYPE of the heads is {types!r}"


def _loss(cfg: CfgNode, is_reader: Callable[[str], bool]) -> str:
    loss = cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS
    return _roi_heads(cfg) or (
        "" if is_reader(loss) else f"MODEL.ROI_BOX_HEAD.CLS_LOSS is {loss!r}"
    )


def _focal_loss(cfg: CfgNode) -> str:
    return _loss(cfg, lambda loss: loss != "cross_entropy")


def _one_alpha(cfg: CfgNode) -> str:
    alphas = cfg.MODEL.ROI_BOX_HEAD.FOCAL.ALPHA_PER_CLASS
    return _focal_loss(cfg) or (
        f"MODEL.ROI_BOX_HEAD.FOCAL.ALPHA_PER_CLASS is {list(alphas)}" if alphas else ""
    )


def _focal_loss_star(cfg: CfgNode) -> str:
    return _loss(cfg, lambda loss: loss == "sigmoid_focal_star")


def _sigmoid_loss(cfg: CfgNode) -> str:
    return _loss(cfg, lambda loss: loss in SIGMOID_LOSSES)


def _focal_rpn(cfg: CfgNode) -> str:
    if cfg.MODEL.META_ARCHITECTURE in ("RetinaNet", "SemanticSegmentor"):
        return f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE!r}, without an RPN"
    name = cfg.MODEL.PROPOSAL_GENERATOR.NAME
    ours = is_ours(PROPOSAL_GENERATOR_REGISTRY, name)
    return "" if ours else f"MODEL.PROPOSAL_GENERATOR.NAME is {name!r}"


READERS: dict[str, Callable[[CfgNode], str]] = {
    "tools": _tools,
    "pyramid": _pyramid,
    "bifpn": _bifpn,
    "ROI heads": _roi_heads,
    "bicubic pooler": _bicubic_pooler,
    "focal loss": _focal_loss,
    "one alpha": _one_alpha,
    "focal loss star": _focal_loss_star,
    "sigmoid loss": _sigmoid_loss,
    "focal RPN": _focal_rpn,
}


def is_ours(registry: Registry, name: str) -> bool:
    """Returns whether the component comes from this package, or is derived from one that does."""
    if name not in registry:
        return False
    component = registry.get(name)
    classes = getattr(component, "__mro__", (component,))
    return any(c.__module__.startswith("mrcnn_plugin.") for c in classes)


def pooler_types(cfg: CfgNode) -> dict[str, str]:
    """The `POOLER_TYPE` of each head that has a pooler, by the head's node."""
    nodes = ["ROI_BOX_HEAD"]
    heads = ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME)
    # Res5ROIHeads have one pooler, that of ROI_BOX_HEAD.
    if not (isinstance(heads, type) and issubclass(heads, Res5ROIHeads)):
        nodes += ["ROI_MASK_HEAD"] * cfg.MODEL.MASK_ON
        nodes += ["ROI_KEYPOINT_HEAD"] * cfg.MODEL.KEYPOINT_ON
    return {node: cfg.MODEL[node].POOLER_TYPE for node in nodes}
