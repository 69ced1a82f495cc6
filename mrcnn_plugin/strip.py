"""Configs that a Detectron2 without this package can read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import renamed
from .config import KEYS, value_of

if TYPE_CHECKING:
    from detectron2.config import CfgNode


def strip_config(cfg: CfgNode) -> CfgNode:
    """A copy of a config without the keys of this package.

    Detectron2 saves every key of a config, so a config that was saved with the keys of this package
    cannot be read without them, even if it is that of a stock model.

    Args:
        cfg: a config whose model has no component of this package. Names of components that its
            model does not have stay, such as that of ROI heads beside a RetinaNet.

    Raises:
        ValueError: a component of this package reads one of its keys, or `DATASETS.COCO_JSON` or
            another key that concerns the data differs from its default. What such a key says would
            be lost. Or `DATASETS.TRAIN` or `DATASETS.TEST` names a generated data set of this package.
    """
    from .modeling.unused_keys import READERS

    stripped = cfg.clone()
    stripped.defrost()
    read = []
    for key in KEYS:
        *path, last = key.name.split(".")
        try:
            value = value_of(cfg, key.name)
        except AttributeError:
            continue  # not a key of this config
        if not READERS[key.reader](cfg) and (key.reader != "tools" or value != key.default):
            read.append(key.name)
        nodes = [stripped]
        for part in path:
            nodes.append(nodes[-1][part])
        del nodes.pop()[last]
        # Nodes that only this package has are empty then.
        for node, part in zip(reversed(nodes), reversed(path), strict=True):
            if not node[part]:
                del node[part]
    ours = renamed.VALUES["DATASETS.TRAIN"].values()
    names = [n for n in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST) if n in ours]
    if names:
        read.append(f"DATASETS.TRAIN and DATASETS.TEST ({', '.join(names)})")
    if read:
        raise ValueError(
            f"strip_config: this config needs mrcnn_plugin, which reads {', '.join(read)}; only a "
            f"config can be stripped whose model has no component of this package, and which has the "
            f"defaults of all its keys for data"
        )
    return stripped
