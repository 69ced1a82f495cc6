"""Every config key that this package adds: its meaning, its default, and what reads it.

The package also adds values for keys of Detectron2, such as "ROIAlignBicubic" for `POOLER_TYPE`.
docs/components.md lists them.
"""

from __future__ import annotations

import copy
import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
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
    # Whether tools/train_net.py --eval-only, tools/demo.py and tools/export_model.py take weights in
    # which parameters of the model are missing or have another shape. These would be random.
    Key("MODEL.MRCNN_PLUGIN.PARTIAL_WEIGHTS", False, "tools"),
    #
    # The upsampling in the top-down path of this package's pyramids: "nearest" as in Detectron2's FPN,
    # "mean" (of 5 x 5 neighbours), "bilinear", "bicubic", "carafe" or "gated_carafe". "carafe" is learned
    # (arXiv 1905.02188) and starts nearly as "mean". "gated_carafe" is learned too. It starts as
    # "nearest", which suits the checkpoints of a stock FPN.
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
    # The weight of this loss, whichever it is. BBOX_REG_LOSS_WEIGHT is Detectron2's key for the boxes.
    Key("MODEL.ROI_BOX_HEAD.CLS_LOSS_WEIGHT", 1.0, "ROI heads"),
    #
    # The focal loss of the box head (arXiv 1708.02002), in the symbols of the paper.
    # α in [0, 1] is the weight of foreground, and 1 - α that of background. -1.0 means no weights.
    # RetinaNet has 0.25.
    Key("MODEL.ROI_BOX_HEAD.FOCAL.ALPHA", -1.0, "one alpha"),
    # One α for each class: NUM_CLASSES numbers in [0, 1], which replace ALPHA. [] means ALPHA.
    Key("MODEL.ROI_BOX_HEAD.FOCAL.ALPHA_PER_CLASS", [], "focal loss"),
    # γ >= 0 says how much less weight well-classified examples get. With 0.0, all have the same. The
    # paper has 2.0, and the configs of this package have 0.5.
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
    the config refuses those old keys of `renamed.KEYS` that it does not have at this call, with an error
    that says the new name. `merge_from_list` also refuses one that is added later.
    """
    for key in KEYS:
        *path, last = key.name.split(".")
        node = cfg
        for part in path:
            node = node.setdefault(part, type(cfg)())
        node.setdefault(last, copy.deepcopy(key.default))
    there = {name for name, _ in _items(cfg)}
    for old, new in renamed.KEYS.items():
        # Another project may have a key of the old name.
        if old not in there and not cfg.key_is_renamed(old):
            cfg.register_renamed_key(old, new)


def get_cfg() -> CfgNode:
    """Returns a config with the defaults of Detectron2 and of this package."""
    from detectron2.config import get_cfg

    cfg = get_cfg()
    add_mrcnn_config(cfg)
    return cfg


def load_cfg(config_file: str, opts: Sequence[Any] = (), *, allow_unsafe: bool = False) -> CfgNode:
    """Returns a config that is read from a file and then changed by options. It is not frozen.

    Args:
        config_file: a YAML file as Detectron2's `merge_from_file` reads it, with `_BASE_`.
        opts: changes as on a command line: KEY, VALUE, KEY, VALUE and so on.
        allow_unsafe: whether tags `!!python/…` in the file may run code, as Detectron2 allows by default.
            The environment variable MRCNN_PLUGIN_ALLOW_UNSAFE_YAML=1 allows it too.

    Raises:
        AssertionError: the file does not exist, or `opts` has an unknown key or a key without a value.
        KeyError: the file has an unknown key, or the file or `opts` has a key that was renamed.
        ValueError: a value has another type than its default, or as :func:`read_yaml`. Or a component
            has a name from before the first release of this package, and nobody else has registered it.
    """
    from detectron2.utils.file_io import PathManager

    if str(config_file).endswith(".py"):
        raise ValueError(
            f"{config_file} is no YAML file; Detectron2's tools/lazyconfig_train_net.py reads configs in Python."
        )
    cfg = get_cfg()
    _refuse_nodes(opts, cfg)
    try:
        if PathManager.isfile(config_file):
            _refuse_mapping(read_yaml(config_file, allow_unsafe))
        # read_yaml has refused what must not run.
        cfg.merge_from_file(config_file, allow_unsafe=True)
        cfg.merge_from_list(list(opts))
    except RecursionError:
        raise ValueError(
            f"{config_file} has no end: an alias *name stands inside of its own anchor &name, or _BASE_ leads back to "
            f"the file."
        ) from None
    except (AssertionError, KeyError, ValueError) as error:
        hint = _hint(str(error), cfg)
        if not hint:
            raise
        raise type(error)(f"{error.args[0]}; {hint}") from None
    _refuse_old_names(cfg)
    return cfg


def find_own_keys(path: str) -> list[str]:
    """The full names of the keys that a config file sets itself, without those of its `_BASE_`.

    Nothing is constructed from YAML tags.
    """
    import yaml
    from detectron2.utils.file_io import PathManager

    with PathManager.open(path, "r") as f:
        loader = yaml.SafeLoader(f)
        root = loader.get_single_node()
    keys: list[str] = []

    def walk(node: Any, prefix: str) -> None:
        loader.flatten_mapping(node)  # merge keys, <<
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            if isinstance(value, yaml.MappingNode):
                walk(value, f"{name}.")
            elif name not in ("_BASE_", "VERSION"):
                keys.append(name)

    if isinstance(root, yaml.MappingNode):
        walk(root, "")
    return keys


def read_yaml(file: str, allow_unsafe: bool = False) -> dict[str, Any]:
    """Reads a config file with those that its `_BASE_` names, as Detectron2 does, but safely.

    Tags in the files of the installed Detectron2 are read, because that package runs anyway. Its
    Base-RetinaNet.yaml has one.

    Args:
        file: the path of a YAML file.
        allow_unsafe: as for :func:`load_cfg`.

    Raises:
        ValueError: a file or a node of keys in it is no mapping, has a key twice or one that is no
            name, or has a tag `!!python/…`.
        FileNotFoundError: a file does not exist.
        yaml.YAMLError: a file is no YAML.
    """
    import detectron2
    import yaml
    from detectron2.config import CfgNode

    allow_unsafe = allow_unsafe or os.environ.get("MRCNN_PLUGIN_ALLOW_UNSAFE_YAML") == "1"
    package = os.path.join(os.path.dirname(os.path.abspath(detectron2.__file__)), "")

    cfg = get_cfg()

    class Checked(CfgNode):
        @classmethod
        def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> Any:
            is_theirs = os.path.abspath(filename).startswith(package)
            content = super().load_yaml_with_base(filename, allow_unsafe or is_theirs)
            _check_nodes(content, cfg, f"{filename}: ")
            return content

        @classmethod
        def _open_cfg(cls, filename: str) -> Any:
            try:
                opened = super()._open_cfg(filename)
            except FileNotFoundError as error:
                raise FileNotFoundError(
                    f"There is no config file {filename}, which {file} or a file below it names as _BASE_; it must be "
                    f"a path relative to the file that names it."
                ) from error
            _check_mapping(yaml.compose(opened, yaml.SafeLoader), filename)
            opened.seek(0)
            return opened

    try:
        content: dict[str, Any] = Checked.load_yaml_with_base(file, allow_unsafe)
    except AssertionError as error:
        if "Cannot inherit" not in str(error):
            raise
        raise ValueError(
            f"{file}: {error} It must be a mapping of config keys in both files, or in neither of them."
        ) from None
    except yaml.constructor.ConstructorError as error:
        mark: Any = error.problem_mark
        raise ValueError(
            f"{mark.name}, line {mark.line + 1}: {error.problem}. Tags such as !!python/object run code when a file is "
            f"read, so they are refused; a config must have plain values. If you trust the file, set the environment "
            f"variable MRCNN_PLUGIN_ALLOW_UNSAFE_YAML=1, or call mrcnn_plugin.load_cfg(..., allow_unsafe=True)."
        ) from None
    return content


def leaves(node: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields the full name and the value of every key of a config, or of the mapping that YAML gives for one."""
    return ((name, value) for name, value in _items(node) if not isinstance(value, dict))


def _items(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the full name and the value of every key and of every node of a config."""
    for key, value in node.items():
        yield f"{prefix}{key}", value
        if isinstance(value, dict):
            yield from _items(value, f"{prefix}{key}.")


def value_of(cfg: CfgNode, key: str) -> Any:
    """The value of a key by its full name."""
    return reduce(getattr, key.split("."), cfg)


def hint_at(name: str, known: Sequence[str]) -> str:
    """What an unknown name may mean, or else what names there are."""
    close = difflib.get_close_matches(name, known)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"registered are {', '.join(sorted(known))}."


def without_federated_loss(cfg: CfgNode) -> CfgNode:
    """Returns a copy of a config, whose model can be built without the data sets.

    With `MODEL.ROI_BOX_HEAD.USE_FED_LOSS`, Detectron2 reads how many images of `DATASETS.TRAIN` each class has. Only
    the loss needs that.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS = False
    return cfg


def _check_mapping(root: Any, file: str) -> None:
    """YAML keeps the last of two equal keys, and Detectron2 expects a mapping without looking."""
    from yaml import MappingNode

    if not isinstance(root, MappingNode):
        what = "holds a list" if getattr(root, "id", "") == "sequence" else "holds a text"
        raise ValueError(
            f"{file} {what if root else 'is empty'}; it must be a mapping of config keys, such as MODEL: ..."
        )
    nodes = [("", root)]
    seen = []  # An alias may lead back to its anchor.
    while nodes:
        prefix, node = nodes.pop()
        seen.append(node)
        lines: dict[str, int] = {}
        for name, value in node.value:
            key = f"{prefix}{name.value}"
            line = name.start_mark.line + 1
            # There may be several merge keys, <<.
            is_merge = name.tag == "tag:yaml.org,2002:merge"
            # Inside of { }, YAML splits TRAIN: ("a",) into two keys, TRAIN and ).
            is_text = name.tag == "tag:yaml.org,2002:str" and not key.endswith(")")
            if not is_merge and not is_text:
                raise ValueError(
                    f"{file} has the key {key} in line {line}, which is no name; a key must be a name, such as MODEL, "
                    f"and inside of {{ }} a tuple must be a list, such as [1, 2]."
                )
            bases = value.value if value.id == "sequence" else [value]
            if key == "_BASE_" and any(
                base.tag != "tag:yaml.org,2002:str" or not base.value for base in bases
            ):
                raise ValueError(
                    f"{file} has in line {line} a _BASE_ that is no path; it must be the path of a config file, or a "
                    f"list of such paths, or be left out."
                )
            if key in lines and not is_merge:
                raise ValueError(
                    f"{file} has the key {key} twice, in the lines {lines[key]} and {line}; YAML would take the last "
                    f"one only, so it must be there once."
                )
            lines[key] = line
            if isinstance(value, MappingNode) and value not in seen:
                nodes.append((f"{key}.", value))


def _check_nodes(content: dict[str, Any], cfg: CfgNode, prefix: str) -> None:
    """yacs takes the number or the None of a node for a mapping, or shows all keys of the node that it replaces."""
    for name, value in content.items():
        node = cfg.get(name)
        if isinstance(node, dict):
            if not isinstance(value, dict):
                raise ValueError(
                    f"{prefix}{name} is {value!r}; it must be a mapping of config keys, or be left out."
                )
            _check_nodes(value, node, f"{prefix}{name}.")


def _refuse_nodes(opts: Sequence[Any], cfg: CfgNode) -> None:
    """yacs refuses values that are no mappings as well, but shows all keys of the node."""
    nodes = {name: node for name, node in _items(cfg) if isinstance(node, dict)}
    for name, value in zip(opts[::2], opts[1::2], strict=False):
        if name in nodes and not isinstance(value, dict):
            raise ValueError(
                f"{name} is set to {value!r}, but it is a mapping of config keys; an option must name a key in it, "
                f"such as {name}.{next(iter(nodes[name]))}."
            )


def _refuse_mapping(content: dict[str, Any]) -> None:
    """yacs refuses it as well, but in a message of many lines, with the key at the end of the last."""
    datasets = content.get("DATASETS")
    entries = datasets.get("COCO_JSON", []) if isinstance(datasets, dict) else []
    if isinstance(entries, dict):
        raise ValueError(
            f"DATASETS.COCO_JSON is a mapping with the keys {', '.join(map(repr, entries))}; it must be a list, with "
            f'an entry ["name", "json file", "image root"] for each data set.'
        )


def _hint(message: str, cfg: CfgNode) -> str:
    """Adds to a message of yacs how a value is written, or which known keys an unknown one may mean."""
    if message.startswith("Type mismatch"):
        return _type_hint(message)
    if re.match(r"(Override list .*'|Non-existent key: )[\w.]+=", message):
        return "a key and its value are two words without =, such as SOLVER.MAX_ITER 10"
    found = re.search(r"Non-existent (?:config )?key: ([\w.]+)", message)
    if not found:
        return ""
    keys = [name for name, _ in _items(cfg)]
    if "config key" in message and found[1] in keys:  # A file has such a name as one key.
        *nodes, last = found[1].split(".")
        return f"write {''.join(f'{node}: {{' for node in nodes)}{last}: ...{'}' * len(nodes)}"
    last = found[1].rpartition(".")[2].lower()
    similar = [key for key in keys if key.rpartition(".")[2].lower() == last]
    similar = similar or difflib.get_close_matches(found[1], keys, n=2, cutoff=0.85)
    return f"did you mean {' or '.join(similar)}?" if 0 < len(similar) < 6 else ""


def _type_hint(message: str) -> str:
    found = re.search(r"'(\w+)'> vs. <class '(\w+)'>\) with values \(.* vs\. (.*)\) for", message)
    if not found:
        return ""
    expected, given, value = found.groups()
    if (expected, given) == ("str", "bool"):
        return "YAML reads on, off, yes and no as True and False unless they stand in quotes"
    if (expected, given) == ("float", "int"):
        return f"write {value}.0"
    if (expected, given) == ("int", "float") and float(value).is_integer():
        return f"write {int(float(value))}"
    return ""


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
