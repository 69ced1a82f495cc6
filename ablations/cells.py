"""What is compared: base configs, the variants of each, and the cells that are trained.

A config is named `base/variant`, such as `nuclei/bicubic`, or by the path of a YAML file. A cell is
a config with changes and a seed.
"""

import hashlib
import os
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from detectron2.config import CfgNode

import mrcnn_plugin

from . import focal_forms  # noqa: F401 (registers its ROI heads)

CONFIGS = Path(__file__).resolve().parent / "configs"

# Keys that say where and how often a cell is run or saved. They do not change what is trained.
NOT_SETTINGS = ("OUTPUT_DIR", "SEED", "DATASETS.COCO_JSON", "SOLVER.CHECKPOINT_PERIOD")


class Variant(NamedTuple):
    """
    Attributes:
        what: a description for tables.
        keys: what the variant changes in the base config.
        against: name of the variant of the same base that it is compared with.
    """

    what: str
    keys: dict[str, Any]
    against: str = "stock"


# Heads that know the poolers and losses of this package, with Detectron2's loss.
_HEADS = {
    "MODEL.ROI_HEADS.NAME": "MRCNNFocalROIHeads",
    "MODEL.ROI_BOX_HEAD.CLS_LOSS": "cross_entropy",
}


def _pooler(name: str, heads: Sequence[str] = ("BOX", "MASK")) -> dict[str, Any]:
    return {**_HEADS, **{f"MODEL.ROI_{head}_HEAD.POOLER_TYPE": name for head in heads}}


def _ratio(samples: int) -> dict[str, Any]:
    heads = ("MODEL.ROI_BOX_HEAD", "MODEL.ROI_MASK_HEAD")
    return {f"{head}.POOLER_SAMPLING_RATIO": samples for head in heads}


def _loss(name: str, **focal: Any) -> dict[str, Any]:
    keys = {f"MODEL.ROI_BOX_HEAD.FOCAL.{key}": value for key, value in focal.items()}
    return {**_HEADS, "MODEL.ROI_BOX_HEAD.CLS_LOSS": name, **keys}


def _softmax_focal(gamma: float = 2.0, weight: float = 1.0) -> dict[str, Any]:
    keys = _loss("softmax_focal", GAMMA=gamma)
    return {**keys, "MODEL.ROI_BOX_HEAD.CLS_LOSS_WEIGHT": weight}


def _form(name: str) -> dict[str, Any]:
    return {**_softmax_focal(), "MODEL.ROI_HEADS.NAME": f"Ablations{name}FocalROIHeads"}


def _sigmoid_loss(name: str, **focal: Any) -> dict[str, Any]:
    """With RetinaNet's α and divisor."""
    return _loss(name, **{"ALPHA": 0.25, "NORMALIZER": "foreground", **focal})


def _backbone(name: str, **fpn: Any) -> dict[str, Any]:
    keys = {f"MODEL.FPN.{key}": value for key, value in fpn.items()}
    return {"MODEL.BACKBONE.NAME": f"build_mrcnn_resnet_{name}_backbone", **keys}


_BICUBIC = _pooler("ROIAlignBicubic")
_MEAN = _backbone("upsample_fpn", UPSAMPLE="mean")
_CARAFE = _backbone("upsample_fpn", UPSAMPLE="carafe")
_GATED_CARAFE = _backbone("upsample_fpn", UPSAMPLE="gated_carafe")
_PAFPN = _backbone("pafpn")
_SIGMOID_FOCAL = _sigmoid_loss("sigmoid_focal")

MASK_RCNN = {
    "stock": Variant("Detectron2's Mask R-CNN", {}),
    # RoIAlign. Sampling ratio 0, Detectron2's default, takes as many samples as a bin covers cells.
    "bilinear": Variant("bilinear poolers of this package", _pooler("ROIAlignBilinear")),
    "bicubic": Variant("bicubic poolers", _BICUBIC),
    "bicubic_a0.75": Variant(
        "bicubic poolers, a = -0.75",
        {**_BICUBIC, "MODEL.MRCNN_PLUGIN.ROI_ALIGN.A": -0.75},
        "bicubic",
    ),
    "stock_ratio1": Variant("stock poolers, sampling ratio 1", _ratio(1)),
    "bicubic_ratio1": Variant(
        "bicubic poolers, sampling ratio 1", {**_BICUBIC, **_ratio(1)}, "stock_ratio1"
    ),
    "stock_ratio2": Variant("stock poolers, sampling ratio 2", _ratio(2)),
    "bicubic_ratio2": Variant(
        "bicubic poolers, sampling ratio 2", {**_BICUBIC, **_ratio(2)}, "stock_ratio2"
    ),
    "bicubic_boxes": Variant("bicubic pooler for boxes", _pooler("ROIAlignBicubic", ["BOX"])),
    "bicubic_masks": Variant("bicubic pooler for masks", _pooler("ROIAlignBicubic", ["MASK"])),
    # Loss of the box head.
    "softmax_focal": Variant("softmax focal loss", _softmax_focal()),
    "softmax_focal_gamma0.5": Variant("softmax focal loss, γ = 0.5", _softmax_focal(0.5)),
    "softmax_focal_gamma1": Variant("softmax focal loss, γ = 1", _softmax_focal(1.0)),
    # Weight 1.5 gives it about the gradients of cross entropy, see report.md.
    **{
        f"softmax_focal_weight{weight:g}": Variant(
            f"softmax focal loss, weight {weight:g}", _softmax_focal(weight=weight)
        )
        for weight in (1.5, 2.0, 4.0)
    },
    # Forms that the package does not have, see focal_forms.py.
    "softmax_focal_background": Variant(
        "softmax focal loss, the factor on background only", _form("Background")
    ),
    "softmax_focal_far": Variant(
        "softmax focal loss, no factor within 0.1 of the IoU threshold", _form("Far")
    ),
    "softmax_focal_normalized": Variant(
        "softmax focal loss, divided by the sum of its factors", _form("Normalized")
    ),
    # These two differ in the probability that they start with, 0.01 and 0.5.
    "sigmoid_cross_entropy": Variant(
        "sigmoid cross entropy",
        _sigmoid_loss("sigmoid_focal", GAMMA=0.0, ALPHA=-1.0, NORMALIZER="proposals"),
    ),
    "stock_sigmoid_cross_entropy": Variant(
        "Detectron2's sigmoid cross entropy", {"MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": True}
    ),
    "sigmoid_focal": Variant("sigmoid focal loss", _SIGMOID_FOCAL),
    "sigmoid_focal_gamma1": Variant(
        "sigmoid focal loss, γ = 1", _sigmoid_loss("sigmoid_focal", GAMMA=1.0)
    ),
    "sigmoid_focal_star": Variant("sigmoid focal loss FL*", _sigmoid_loss("sigmoid_focal_star")),
    # Without α and divided by all proposals, as cross entropy is.
    "sigmoid_focal_proposals": Variant(
        "sigmoid focal loss with the weights of cross entropy",
        _sigmoid_loss("sigmoid_focal", ALPHA=-1.0, NORMALIZER="proposals"),
        "sigmoid_focal",
    ),
    # RPN.
    "focal_rpn": Variant(
        "focal loss in the RPN", {"MODEL.PROPOSAL_GENERATOR.NAME": "MRCNNFocalRPN"}
    ),
    # Pyramid.
    "upsample_bicubic": Variant(
        "FPN with bicubic upsampling", _backbone("upsample_fpn", UPSAMPLE="bicubic")
    ),
    "upsample_mean": Variant("FPN with a mean of 5 x 5 neighbours", _MEAN),
    "carafe": Variant("FPN with CARAFE", _CARAFE),
    "gated_carafe": Variant("FPN with CARAFE that starts as nearest", _GATED_CARAFE),
    "pafpn": Variant("PAFPN", _PAFPN),
    "bifpn": Variant("BiFPN", _backbone("bifpn")),
    # Several together.
    "carafe_bicubic": Variant("CARAFE and bicubic poolers", {**_BICUBIC, **_CARAFE}),
    "gated_carafe_bicubic": Variant(
        "CARAFE that starts as nearest, and bicubic poolers", {**_BICUBIC, **_GATED_CARAFE}
    ),
    "pafpn_gated_carafe_bicubic": Variant(
        "PAFPN with CARAFE that starts as nearest, and bicubic poolers",
        {**_BICUBIC, **_backbone("pafpn", UPSAMPLE="gated_carafe")},
    ),
    "pafpn_bicubic_focal": Variant(
        "PAFPN, bicubic poolers, softmax focal loss", {**_BICUBIC, **_PAFPN, **_softmax_focal()}
    ),
    "pafpn_bicubic_sigmoid_focal": Variant(
        "PAFPN, bicubic poolers, sigmoid focal loss", {**_BICUBIC, **_PAFPN, **_SIGMOID_FOCAL}
    ),
    "headline": Variant(
        "CARAFE, bicubic poolers, softmax focal loss, γ = 0.5 (mask_rcnn_focal.yaml)",
        {**_BICUBIC, **_CARAFE, **_softmax_focal(0.5)},
    ),
    "headline_mean": Variant(
        "headline with a mean of 5 x 5 neighbours in place of CARAFE",
        {**_BICUBIC, **_MEAN, **_softmax_focal(0.5)},
        "headline",
    ),
    "headline_gated_carafe": Variant(
        "headline with CARAFE that starts as nearest",
        {**_BICUBIC, **_GATED_CARAFE, **_softmax_focal(0.5)},
        "headline",
    ),
}

# γ = 0 is cross entropy. Each has the α that goes best with it (arXiv 1708.02002, table 1b).
RETINANET = {
    "gamma0": Variant(
        "cross entropy",
        {"MODEL.RETINANET.FOCAL_LOSS_GAMMA": 0.0, "MODEL.RETINANET.FOCAL_LOSS_ALPHA": 0.75},
        "gamma0",
    ),
    "gamma2": Variant("focal loss, Detectron2's default", {}, "gamma0"),
}

# Name of a base config, a file in configs/, -> its variants.
BASES = {
    "nuclei": MASK_RCNN,
    "shapes_small": MASK_RCNN,
    "shapes_scales": MASK_RCNN,
    "shapes_long_tail": MASK_RCNN,
    "retinanet_nuclei": RETINANET,
    "retinanet_shapes_long_tail": RETINANET,
}
NAMES = [f"{base}/{variant}" for base, variants in BASES.items() for variant in variants]


class Cell(NamedTuple):
    config: str
    opts: tuple[str, ...]
    seed: int

    @property
    def name(self) -> str:
        """Of its config and changes. It has no seed."""
        return label(self.config, self.opts)

    def folder(self, output_dir: str) -> str:
        name = stem(self.config)
        if name != self.name:
            # The first part is for readers, and the second is different for each name.
            readable = re.sub(r"[^\w.+-]+", "_", self.name)[:100]
            name = f"{readable}_{hashlib.sha256(self.name.encode()).hexdigest()[:8]}"
        return os.path.join(output_dir, name, f"seed{self.seed}")

    def baseline(self) -> "Cell":
        """The cell with the same changes and seed that it is compared with."""
        return self._replace(config=baseline_of(self.config))


def stem(config: str) -> str:
    """The name of a config without changes: a file's name is that of the file alone."""
    return os.path.splitext(os.path.basename(config))[0] if is_file(config) else config


def is_file(config: str) -> bool:
    return config.endswith((".yaml", ".yml"))


def label(config: str, opts: Sequence[str]) -> str:
    changes = zip(opts[::2], opts[1::2], strict=True)
    return " ".join([stem(config), *(f"{k} {v}" for k, v in changes if k not in NOT_SETTINGS)])


def variant_of(name: str) -> Variant:
    base, variant = name.split("/")
    return BASES[base][variant]


def choose(words: Sequence[str]) -> list[str]:
    """Configs by name, by a pattern of names, or by file.

    Raises:
        ValueError: a word names no config, or two files have the same name, which tells cells apart.
    """
    configs: dict[str, str] = {}
    for word in words:
        for config in _matching(word):
            other = configs.setdefault(stem(config), config)
            if is_file(config) and os.path.realpath(other) != os.path.realpath(config):
                raise ValueError(f"{other} and {config} have the same name; rename one.")
    return list(configs.values())


def _matching(word: str) -> list[str]:
    if not is_file(word):
        names = [name for name in NAMES if fnmatchcase(name, word)]
        if not names:
            raise ValueError(
                f"--config names {word!r}, which is neither a YAML file nor one of: {', '.join(NAMES)}."
            )
        return names
    if not os.path.isfile(word):
        raise ValueError(f"--config names {word}, which is no file.")
    if re.search(r"\s", stem(word)):
        raise ValueError(f"--config names {word!r}; names of cells have no space, rename it.")
    return [os.path.normpath(word)]


def baseline_of(config: str) -> str:
    """The config that it is compared with, which may be the config itself.

    For a file it is its _BASE_, if that lies in the same folder and is not called Base-*.yaml, as
    Detectron2 calls what is not a model yet.

    Raises:
        ValueError: _BASE_ is no file, or the config is not a mapping of keys.
    """
    if not is_file(config):
        return f"{config.split('/')[0]}/{variant_of(config).against}"
    with open(config, encoding="utf-8") as f:
        content = yaml.safe_load(f)
    if not isinstance(content, dict):
        raise ValueError(f"{config} is not a config; it must have keys and values.")
    base = content.get("_BASE_")
    # Where there are several bases, none is the one to compare with.
    if not isinstance(base, str) or os.path.basename(base).startswith("Base-"):
        return config
    folder = os.path.dirname(config)
    path = os.path.normpath(os.path.join(folder, base))
    same_folder = os.path.realpath(os.path.dirname(path)) == os.path.realpath(folder)
    if not same_folder:
        return config
    if not os.path.isfile(path):
        raise ValueError(f"{config} has _BASE_ {base!r}, which is no file.")
    return path


def with_baselines(words: Sequence[str]) -> list[str]:
    """The chosen configs, each after the one that it is compared with. Names are in the order of `NAMES`.

    Raises:
        ValueError: as :func:`choose` and :func:`baseline_of`.
    """
    chains: list[str] = []
    for config in choose(words):
        chain = [config]
        while (baseline := baseline_of(chain[0])) not in chain:
            chain.insert(0, baseline)
        chains += chain
    # Within NAMES, too, a variant follows the one that it is compared with.
    return sorted(choose(chains), key=lambda c: NAMES.index(c) if c in NAMES else len(NAMES))


def all_cells(words: Sequence[str], opts: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """Seed by seed, so that there is something to compare early."""
    configs = with_baselines(words)
    return [Cell(config, tuple(opts), seed) for seed in dict.fromkeys(seeds) for config in configs]


def load(config: str, opts: Sequence[str] = ()) -> CfgNode:
    """The full config.

    Raises:
        ValueError: the file or the changes do not fit the keys. The message names the config.
    """
    try:
        if is_file(config):
            return mrcnn_plugin.load_cfg(config, opts)
        base = config.split("/")[0]
        cfg = mrcnn_plugin.load_cfg(str(CONFIGS / f"{base}.yaml"))
        cfg.merge_from_list([item for pair in variant_of(config).keys.items() for item in pair])
        cfg.merge_from_list(list(opts))
        return cfg
    except Exception as error:
        raise ValueError(f"{config}: {error}") from error
