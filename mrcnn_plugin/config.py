"""Every config key that this package adds: its meaning, its default, and what reads it.

The package also adds values for keys of Detectron2, such as "ROIAlignBicubic" for `POOLER_TYPE`.
docs/components.md lists them.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from . import renamed

if TYPE_CHECKING:
    # While Detectron2 is imported, it imports this module through mrcnn_plugin.env. At run time, the
    # module must therefore import Detectron2 only inside of functions.
    from detectron2.config import CfgNode


class Key(NamedTuple):
    """A config key.

    Attributes:
        name: the full name of the key.
        default: the value of the key if nobody sets it.
        reader: the part that reads the key, by the name of its condition in
            `modeling/unused_keys.py`.
    """

    name: str
    default: Any
    reader: str


KEYS = (
    # The data sets in COCO format to register: a list of (name, json file, image root). A path may
    # contain $VARIABLES and any prefix that iopath knows. The tools of this project register them,
    # and mrcnn_plugin.env does so for other scripts.
    Key("DATASETS.COCO_JSON", [], "tools"),
    # How these data sets are checked before training: "fast" (the JSON file, and of the images what
    # their headers and ends tell), "full" (every image is decoded too) or "off". docs/your_data.md
    # says what is checked.
    Key("DATASETS.CHECK", "fast", "tools"),
    # Kinds of faults that are refused by default, and accepted if they are named here. The message
    # about such a fault names its kind.
    Key("DATASETS.ALLOW", [], "tools"),
    #
    # Images of more than 8 bits per pixel (16-bit microscopy, remote sensing, floats) are refused,
    # since Detectron2 would cut them off at 255, unless this is [low, high]: low becomes 0, high 255,
    # and what is beyond is cut off. Training, evaluation and demo read images so. Images of 8 bits
    # stay as they are.
    Key("INPUT.PIXEL_RANGE", [], "tools"),
    # "value" if PIXEL_RANGE has values of pixels, "percentile" for percentiles of each image.
    Key("INPUT.PIXEL_RANGE_UNIT", "value", "tools"),
    #
    # Whether tools/train_net.py --eval-only and tools/demo.py take weights in which parameters of the
    # model are missing or have another shape. These parameters would be random.
    Key("MODEL.MRCNN_PLUGIN.PARTIAL_WEIGHTS", False, "tools"),
    #
    # The upsampling in the top-down path of this package's pyramids: "nearest" as in Detectron2's FPN,
    # "bilinear", "bicubic", "carafe", which is learned (arXiv 1905.02188), or "gated_carafe", which
    # is learned too and starts as "nearest", so that it suits the checkpoints of a stock FPN.
    Key("MODEL.FPN.UPSAMPLE", "nearest", "pyramid"),
    #
    # BiFPN (EfficientDet, arXiv 1911.09070, section 3). MODEL.FPN has its channels and its norm.
    # How often the top-down and the bottom-up path are repeated, at least 1.
    Key("MODEL.MRCNN_PLUGIN.BIFPN.NUM_REPEATS", 3, "bifpn"),
    # True for depthwise separable convolutions as in the paper, False for full 3x3 convolutions.
    Key("MODEL.MRCNN_PLUGIN.BIFPN.DEPTHWISE", True, "bifpn"),
    #
    # The parameter a of the cubic kernel of the pooler type ROIAlignBicubic. -0.5 keeps features
    # aligned with boxes. -0.75 gives the kernel of OpenCV and of torch's grid_sample.
    Key("MODEL.MRCNN_PLUGIN.ROI_ALIGN.A", -0.5, "bicubic pooler"),
    #
    # The classification loss of this package's ROI heads: "softmax_focal" (K + 1 classes),
    # "sigmoid_focal" (K one-against-all classifiers, as in RetinaNet), "sigmoid_focal_star" (the same
    # with FL* of the paper's appendix A) or "cross_entropy" (Detectron2's own loss). Detectron2's
    # USE_FED_LOSS works with all of them except "softmax_focal".
    Key("MODEL.ROI_BOX_HEAD.CLS_LOSS", "softmax_focal", "ROI heads"),
    #
    # The focal loss of the box head (arXiv 1708.02002), in the symbols of the paper.
    # α in [0, 1] is the weight of foreground, and 1 - α that of background. -1.0 means no weights.
    # RetinaNet has 0.25.
    Key("MODEL.ROI_BOX_HEAD.FOCAL.ALPHA", -1.0, "one alpha"),
    # One α for each class: NUM_CLASSES numbers in [0, 1], which replace ALPHA. [] means ALPHA.
    Key("MODEL.ROI_BOX_HEAD.FOCAL.ALPHA_PER_CLASS", [], "focal loss"),
    # γ >= 0 says how much less weight well-classified examples get. With 0.0, all have the same.
    # "sigmoid_focal_star" needs γ > 0.
    Key("MODEL.ROI_BOX_HEAD.FOCAL.GAMMA", 2.0, "focal loss"),
    # β of "sigmoid_focal_star", where p* = sigmoid(γ x + β).
    Key("MODEL.ROI_BOX_HEAD.FOCAL.BETA", 1.0, "focal loss star"),
    # π in (0, 1) is the foreground probability that a sigmoid starts from (section 3.3 of the paper).
    Key("MODEL.ROI_BOX_HEAD.FOCAL.PRIOR_PROB", 0.01, "sigmoid loss"),
    # What the summed loss is divided by: the number of all "proposals" of the batch, as in
    # Detectron2's cross entropy, or of the "foreground" ones (at least 1), as in RetinaNet.
    Key("MODEL.ROI_BOX_HEAD.FOCAL.NORMALIZER", "proposals", "focal loss"),
    #
    # The focal loss of MRCNNFocalRPN for its objectness. The keys have the same meanings.
    Key("MODEL.RPN.FOCAL.ALPHA", 0.25, "focal RPN"),
    Key("MODEL.RPN.FOCAL.GAMMA", 2.0, "focal RPN"),
    Key("MODEL.RPN.FOCAL.PRIOR_PROB", 0.01, "focal RPN"),
)


def add_mrcnn_config(cfg: CfgNode) -> None:
    """Adds the keys of this package to a Detectron2 config, in place.

    A key that the config already has keeps its value, so a second call changes nothing. From then on
    the config refuses the old keys of `renamed.KEYS`, with an error that says the new name.
    """
    for key in KEYS:
        *path, last = key.name.split(".")
        node = cfg
        for part in path:
            node = node.setdefault(part, type(cfg)())
        node.setdefault(last, copy.deepcopy(key.default))
    for old, new in renamed.KEYS.items():
        if not cfg.key_is_renamed(old):
            cfg.register_renamed_key(old, new)


def get_cfg() -> CfgNode:
    """Returns a config with the defaults of Detectron2 and of this package."""
    from detectron2.config import get_cfg

    cfg = get_cfg()
    add_mrcnn_config(cfg)
    return cfg


def load_cfg(config_file: str, opts: Sequence[Any] = ()) -> CfgNode:
    """Returns a config that is read from a file and then changed by options. It is not frozen.

    Args:
        config_file: a YAML file as Detectron2's `merge_from_file` reads it, with `_BASE_`.
        opts: changes as on a command line: KEY, VALUE, KEY, VALUE and so on.

    Raises:
        AssertionError: the file does not exist, or `opts` has an unknown key or a key without a value.
        KeyError: the file has an unknown key, or the file or `opts` has a key that was renamed.
        ValueError: a value has another type than its default. Or a component has a name from before
            the first release of this package, and nobody else has registered it.
    """
    cfg = get_cfg()
    try:
        cfg.merge_from_file(config_file)
    except ValueError:
        _refuse_mapping(cfg, config_file)
        raise
    cfg.merge_from_list(list(opts))
    _refuse_old_names(cfg)
    return cfg


def _refuse_mapping(cfg: CfgNode, config_file: str) -> None:
    """yacs refuses it as well, but in a message of many lines, with the key at the end of the last."""
    content = type(cfg).load_yaml_with_base(config_file, allow_unsafe=True)
    datasets = content.get("DATASETS")
    entries = datasets.get("COCO_JSON", []) if isinstance(datasets, dict) else []
    if isinstance(entries, dict):
        raise ValueError(
            f"DATASETS.COCO_JSON is a mapping with the keys {', '.join(map(repr, entries))}; it must be a list, with "
            f'an entry ["name", "json file", "image root"] for each data set.'
        ) from None


def _refuse_old_names(cfg: CfgNode) -> None:
    """Refuses old names of components. Data sets may be registered later, so they are not checked."""
    from detectron2.modeling import (
        BACKBONE_REGISTRY,
        PROPOSAL_GENERATOR_REGISTRY,
        ROI_HEADS_REGISTRY,
    )

    for node, registry in (
        ("BACKBONE", BACKBONE_REGISTRY),
        ("PROPOSAL_GENERATOR", PROPOSAL_GENERATOR_REGISTRY),
        ("ROI_HEADS", ROI_HEADS_REGISTRY),
    ):
        key, name = f"MODEL.{node}.NAME", cfg.MODEL[node].NAME
        new = renamed.VALUES[key].get(name)
        if new is not None and name not in registry:
            raise ValueError(f"{key} {name!r} was renamed to {new!r}; please update your config.")


def get_config_file(name: str) -> str:
    """The path of a config file that this package brings along, as `detectron2.model_zoo` has one.

    Args:
        name: its path below the folder `configs`, such as "mask_rcnn_focal.yaml".

    Raises:
        FileNotFoundError: there is no such file.
    """
    package = os.path.dirname(os.path.abspath(__file__))
    # The folder is inside an installed package. In a checkout it stands beside the package.
    folders = [os.path.join(folder, "configs") for folder in (package, os.path.dirname(package))]
    folder = next(filter(os.path.isdir, folders), folders[0])
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        there = sorted(
            os.path.relpath(os.path.join(where, file), folder)
            for where, _, files in os.walk(folder)
            for file in files
            if file.endswith((".yaml", ".py"))
        )
        raise FileNotFoundError(
            f"mrcnn_plugin has no config file {name!r}; it has {', '.join(there)}."
        )
    return path
