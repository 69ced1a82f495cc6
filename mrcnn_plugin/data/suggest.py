"""Writes a config for a data set: which values follow from which numbers of the data.

Values that the user has set stay. Every other value gets a comment that says what it follows from.
"""

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from detectron2.config import CfgNode
from numpy.typing import NDArray

from ..config import value_of
from ..evaluation import COCO_DETECTIONS
from .pixels import read_deep
from .statistics import Statistics

# Three quarters of the objects are to be as large as 7 bins of RoIAlign on the finest level, of stride 4.
_POOLED = 28
_LARGEST_SCALE = 2.0
# Detectron2's default for the shorter side. Larger images are reduced to it, unless objects become too small.
_SHORTER_SIDE = 800
_LONGEST_SIDE = 2048
# Sizes are multiples of the largest stride of a backbone, to which Detectron2 pads images.
_STRIDE = 32
# The smallest anchor in px, from 2 to 8 strides of an FPN's finest level. It is 32 in Detectron2's models for COCO.
_ANCHORS = range(8, 33)
# Detectron2's models for COCO are trained with 2 images of this size on each GPU.
_PIXELS_PER_BATCH = 2 * 800 * 1333
_LARGEST_BATCH = 16
# The epochs of Detectron2's 1x schedule, and of few images.
_EPOCHS, _MOST_EPOCHS = 12, 50
_MANY_IMAGES = 10_000
# A start from weights of ImageNet or from scratch needs so many, however few images there are.
_LEAST_ITERATIONS = 500
_LONGEST_PERIOD = 5000  # Detectron2's default for checkpoints
_EVALUATIONS = 10
# Images of classes that are in a smaller share of the images of the most frequent class are repeated.
_LONG_TAIL = 0.1
# For INPUT.PIXEL_RANGE: what is cut off, how many images are read, and how much their ranges may differ.
_PERCENTILES = (0.1, 99.9)
_IMAGES_FOR_PIXELS = 50
_SAME_RANGE = 4
# The length of comments in the file.
_WIDTH = 98


class Line(NamedTuple):
    """A value that follows from the data.

    Attributes:
        key: the full name of the config key.
        value: what follows from the data.
        reason: sentences that say from which number.
        kept: who set the value that stays instead, "--opts" or a file; "" if nobody did.
    """

    key: str
    value: Any
    reason: str
    kept: str


class Suggestion:
    """A config that is changed to what the data suggest, except where the user has set a value.

    Attributes:
        cfg: the config with all values.
        lines: one for each value that follows from the data, in the order of the file.
    """

    def __init__(self, cfg: CfgNode, kept: Mapping[str, str]) -> None:
        self.cfg = cfg.clone()
        self.lines: list[Line] = []
        self._kept = kept

    def set(self, key: str, value: Any, reason: str) -> None:
        self.lines.append(Line(key, value, reason, self._kept.get(key, "")))
        if key not in self._kept:
            self.cfg.merge_from_list([key, value])

    def keeps(self, key: str) -> bool:
        """Whether the user has set the value of a key."""
        return key in self._kept

    def get(self, key: str) -> Any:
        return value_of(self.cfg, key)


def suggest_config(
    cfg: CfgNode,
    kept: Mapping[str, str],
    train: Statistics,
    val: Statistics | None,
    entries: Sequence[Sequence[str]],
    deep_images: Sequence[str],
    output_dir: str,
) -> Suggestion:
    """What the data suggest.

    Args:
        cfg: the config to start from, with the values of the user.
        kept: key -> who has set it, "--opts" or a file. These values stay.
        train: the training set.
        val: the test set; None if there is none.
        entries: (json file, image root) of the training set, and of the test set if there is one.
        deep_images: paths of the images of more than 8 bits per pixel.
        output_dir: `OUTPUT_DIR`.

    Raises:
        ValueError: the training set has no object, or the user has set data sets of other files.
    """
    if not len(train.sizes):
        raise ValueError("The training set has no object, so that no config follows from it.")
    suggestion = Suggestion(cfg, kept)
    _suggest_model(suggestion, train)
    _suggest_input(suggestion, train)
    if deep_images:
        _suggest_pixel_range(suggestion, deep_images)
    _suggest_anchors(suggestion, train)
    _suggest_data_sets(suggestion, entries, train, val)
    _suggest_sampler(suggestion, train)
    _suggest_schedule(suggestion, train, val)
    _suggest_test(suggestion, train, val)
    suggestion.set("OUTPUT_DIR", output_dir, "The name of this file.")
    for key, who in kept.items():
        if who == "--opts" and all(line.key != key for line in suggestion.lines):
            suggestion.set(key, suggestion.get(key), "")
    return suggestion


def _suggest_model(s: Suggestion, train: Statistics) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if s.cfg.MODEL.DEVICE != device:
        s.set("MODEL.DEVICE", device, f"torch sees {'a' if device == 'cuda' else 'no'} GPU here.")
    node = "RETINANET" if _is_retinanet(s.cfg) else "ROI_HEADS"
    used = np.count_nonzero(train.objects_per_class)
    s.set(
        f"MODEL.{node}.NUM_CLASSES",
        len(train.class_names),
        f"The number of categories in the JSON file. The objects have {used} of them.",
    )
    if s.cfg.MODEL.MASK_ON and not train.polygons + train.bitmasks:
        s.set("MODEL.MASK_ON", False, f"None of the {len(train.sizes)} objects has a mask.")
    if s.cfg.MODEL.MASK_ON:
        reason = f"{train.polygons} masks are polygons, and {train.bitmasks} are RLE"
        if train.bitmasks:
            s.set("INPUT.MASK_FORMAT", "bitmask", f'{reason}, which needs "bitmask".')
        else:
            s.set("INPUT.MASK_FORMAT", "polygon", f"{reason}.")


def _suggest_input(s: Suggestion, train: Statistics) -> None:
    shorter = np.minimum(train.image_widths, train.image_heights)
    aspects = np.maximum(train.image_widths, train.image_heights) / shorter
    low, aspect = (float(value) for value in np.percentile(aspects, (5, 95)))
    # Nearly all images would be reduced to the longest side anyway. A few long ones do not limit the others.
    size = _round(min(_shorter_side(train, shorter), _LONGEST_SIDE / low))
    longer = s.cfg.INPUT.MAX_SIZE_TEST
    if not s.keeps("INPUT.MAX_SIZE_TEST"):
        longer = _longer_side(size, aspect)
    small = np.percentile(train.sizes, 25)
    in_input = np.percentile(train.sizes_in_input(size, longer), 25)
    reason = (
        f"The shorter side of an image has {np.median(shorter):.0f} px (median). A quarter of the objects is smaller "
        f"than {small:.0f} px; in a test input, a quarter is smaller than {in_input:.0f} px. The aim is {_POOLED} px, "
        f"but images are enlarged for it at most {_LARGEST_SCALE:.0f} times, and not beyond {_LONGEST_SIDE} px."
    )
    if s.keeps("INPUT.MIN_SIZE_TRAIN"):
        largest = max(s.cfg.INPUT.MIN_SIZE_TRAIN)
        s.set("INPUT.MIN_SIZE_TEST", largest, "The largest of INPUT.MIN_SIZE_TRAIN.")
    else:
        s.set("INPUT.MIN_SIZE_TEST", size, reason)
        # 0 means that images are not resized.
        size = s.cfg.INPUT.MIN_SIZE_TEST or size
        reason = f"From 0.8 times {size} to {size}, as in Detectron2's configs for COCO."
    sizes = (*range(_round(0.8 * size), size, _STRIDE), size)
    if s.cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range":
        # Detectron2 then takes the smallest and the largest.
        sizes = (sizes[0], size)
    s.set("INPUT.MIN_SIZE_TRAIN", sizes, reason)
    longer = _longer_side(s.cfg.INPUT.MIN_SIZE_TEST or size, aspect)
    reason = f"In 95 % of the images, the longer side is at most {aspect:.2f} times the shorter."
    s.set("INPUT.MAX_SIZE_TEST", longer, reason)
    longer = _longer_side(max(s.cfg.INPUT.MIN_SIZE_TRAIN) or size, aspect)
    s.set("INPUT.MAX_SIZE_TRAIN", longer, "As MAX_SIZE_TEST.")


def _shorter_side(train: Statistics, shorter: NDArray[np.int64]) -> float:
    """The shorter side of inputs, in px, with which three quarters of the objects are large enough.

    Every object counts with the size of its own image, because the images of a data set may differ.

    Args:
        train: the training set.
        shorter: int64 [I], the shorter side of each image, in px.
    """
    side = shorter[train.images]
    needed = np.maximum(_POOLED / train.sizes, np.minimum(1.0, _SHORTER_SIDE / side))
    return float(np.percentile(np.minimum(_LARGEST_SCALE, needed) * side, 75))


def _round(length: float) -> int:
    return max(_STRIDE, round(length / _STRIDE) * _STRIDE)


def _longer_side(shorter: int, aspect: float) -> int:
    longer = math.ceil(round(shorter * aspect, 6) / _STRIDE) * _STRIDE
    return max(shorter, min(longer, _LONGEST_SIDE))


def _suggest_pixel_range(s: Suggestion, paths: Sequence[str]) -> None:
    lows, highs = [], []
    for path in paths[:: math.ceil(len(paths) / _IMAGES_FOR_PIXELS)]:
        pixels = read_deep(path)
        if pixels is not None and np.isfinite(pixels).any():
            low, high = np.percentile(pixels[np.isfinite(pixels)], _PERCENTILES)
            lows.append(float(low))
            highs.append(float(high))
    limits, unit = list(_PERCENTILES), "percentile"
    reason = f"{len(paths)} images have more than 8 bits per pixel."
    kept = s.cfg.INPUT.PIXEL_RANGE_UNIT if s.keeps("INPUT.PIXEL_RANGE_UNIT") else ""
    if highs and kept != "percentile":
        low, high = min(lows), max(highs)
        if kept == "value" or high - low < _SAME_RANGE * (min(highs) - low):
            limits, unit = [float(f"{low:.6g}"), float(f"{high:.6g}")], "value"
            reason += (
                f" In {len(highs)} of them, 99.8 % of the pixels are from {low:.6g} to {high:.6g}."
            )
        else:
            reason += (
                f" The brightest pixels of {len(highs)} of them differ, from {min(highs):.6g} to {high:.6g}, so that "
                f"each image gets a range of its own."
            )
    s.set("INPUT.PIXEL_RANGE", limits, reason)
    if not s.keeps("INPUT.PIXEL_RANGE"):
        # The unit of a range that stays is that of its config.
        s.set("INPUT.PIXEL_RANGE_UNIT", unit, "See PIXEL_RANGE.")


def _suggest_anchors(s: Suggestion, train: Statistics) -> None:
    sizes = train.sizes_in_input(s.cfg.INPUT.MIN_SIZE_TEST, s.cfg.INPUT.MAX_SIZE_TEST)
    base = s.cfg.MODEL.ANCHOR_GENERATOR.SIZES
    if not isinstance(base[0], (list, tuple)):
        # One list is for all levels.
        base = [base]
    smallest = min(min(level) for level in base)
    scaled = [
        [[round(size * first / smallest) for size in level] for level in base] for first in _ANCHORS
    ]
    shares = [_covered(sizes, anchors) for anchors in scaled]
    # Of those that are about as good, the largest are closest to the anchors that Detectron2 has for COCO.
    best = max(i for i, share in enumerate(shares) if share >= max(shares) - 0.01)
    low, high = np.percentile(sizes, (5, 95))
    of_base = _covered(sizes, base)
    s.set(
        "MODEL.ANCHOR_GENERATOR.SIZES",
        scaled[best],
        f"90 % of the objects have {low:.0f} to {high:.0f} px in a test input. {100 * shares[best]:.0f} % of all are "
        f"within a factor of 1.41 of an anchor; with the anchors of the base it is {100 * of_base:.0f} %.",
    )


def _covered(sizes: NDArray[np.float64], anchors: Sequence[Sequence[float]]) -> float:
    """The share of objects with an anchor within a factor of sqrt(2), which is an IoU of 0.5 of squares."""
    octaves = np.log2([size for level in anchors for size in level])
    distances = [np.abs(np.log2(sizes) - octave) for octave in octaves]
    return float(np.mean(np.min(distances, axis=0) <= 0.5))


def _suggest_data_sets(
    s: Suggestion, entries: Sequence[Sequence[str]], train: Statistics, val: Statistics | None
) -> None:
    names: dict[tuple[str, ...], str] = {}
    if s.keeps("DATASETS.COCO_JSON"):
        names = {tuple(paths): name for name, *paths in s.cfg.DATASETS.COCO_JSON}
    else:
        for name, paths in zip(("my_train", "my_val"), entries, strict=False):
            names.setdefault(tuple(paths), name)
    used = [names.get(tuple(paths)) for paths in entries]
    reason = f"{len(train.image_widths)} images with {len(train.sizes)} objects are for training"
    if val is not None:
        reason += f", {len(val.image_widths)} with {len(val.sizes)} are for evaluation"
    s.set(
        "DATASETS.COCO_JSON",
        [[name, *paths] for paths, name in names.items()],
        f"{reason}. Relative paths start from the folder in which a training is started.",
    )
    s.set("DATASETS.TRAIN", (used[0],), "The data set that was checked.")
    if val is None:
        reason = "There is no --val, so nothing is evaluated, and no AP says how good the model is."
        s.set("DATASETS.TEST", (), reason)
    else:
        reason = "The data set of --val."
        if used[0] == used[1]:
            reason = "--val names the training set itself, so AP is higher than on new images."
        s.set("DATASETS.TEST", (used[1],), reason)
    known = {name for name, *_ in s.cfg.DATASETS.COCO_JSON}
    for key, wanted in (("TRAIN", used[:1]), ("TEST", used[1:])):
        given = s.cfg.DATASETS[key]
        if not set(wanted) <= set(given) <= known:
            raise ValueError(
                f"DATASETS.{key} is {given!r}, as it is set. It must name data sets of DATASETS.COCO_JSON, which must "
                f"have {' and '.join(', '.join(paths) for paths in entries)}. Take these keys out of the config, or "
                f"name it with --base."
            )


def _suggest_sampler(s: Suggestion, train: Statistics) -> None:
    images = train.images_per_class
    most = int(images.max())
    rare = np.count_nonzero((images > 0) & (images < _LONG_TAIL * most))
    if not rare:
        return
    s.set(
        "DATALOADER.SAMPLER_TRAIN",
        "RepeatFactorTrainingSampler",
        f"The most frequent class is in {most} images, and {rare} classes are in fewer than a tenth of these.",
    )
    total = _count_images(s.cfg, train)
    s.set(
        "DATALOADER.REPEAT_THRESHOLD",
        float(f"{_LONG_TAIL * most / total:.4g}"),
        f"A tenth of {most}, as a share of {total} images. Images with a rarer class are repeated.",
    )


def _count_images(cfg: CfgNode, train: Statistics) -> int:
    """The number of images that are trained on."""
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        return int(np.count_nonzero(train.objects_per_image))
    return len(train.image_widths)


def _suggest_schedule(s: Suggestion, train: Statistics, val: Statistics | None) -> None:
    images = _count_images(s.cfg, train)
    shorter, longer = s.cfg.INPUT.MIN_SIZE_TEST, s.cfg.INPUT.MAX_SIZE_TEST
    if not shorter:
        shorter, longer = int(train.image_heights.max()), int(train.image_widths.max())
    batch = max(2, min(_PIXELS_PER_BATCH / (shorter * longer), images, _LARGEST_BATCH))
    kept = s.keeps("SOLVER.REFERENCE_WORLD_SIZE")
    gpus = max(1, s.cfg.SOLVER.REFERENCE_WORLD_SIZE) if kept else 1
    s.set(
        "SOLVER.IMS_PER_BATCH",
        2 ** int(math.log2(batch)) * gpus,
        f"Inputs have up to {shorter} x {longer} px. On each GPU, a batch has at most as many pixels as the 2 images "
        f"of 800 x 1333 px that Detectron2 trains on, but at least 2 images, and at most {_LARGEST_BATCH}. If the "
        f"memory is too small, name a smaller number after --opts: BASE_LR and MAX_ITER follow from it.",
    )
    batch = s.cfg.SOLVER.IMS_PER_BATCH
    if not s.keeps("SOLVER.IMS_PER_BATCH"):
        # A batch that the user has set is for the GPUs that the user has.
        s.set(
            "SOLVER.REFERENCE_WORLD_SIZE",
            gpus,
            "Batch, learning rate and schedule are for so many GPUs. Detectron2 scales them to --num-gpus.",
        )
    per_16 = 0.01 if _is_retinanet(s.cfg) else 0.02
    s.set(
        "SOLVER.BASE_LR",
        float(f"{per_16 * batch / 16:.6g}"),
        f"Detectron2's {per_16} for 16 images, scaled linearly to {batch}.",
    )
    epochs = min(_MOST_EPOCHS, round(_EPOCHS * math.sqrt(max(1, _MANY_IMAGES / images))))
    s.set(
        "SOLVER.MAX_ITER",
        max(_LEAST_ITERATIONS, math.ceil(epochs * images / batch / 10) * 10),
        f"{epochs} epochs of {images} images, {batch} in each iteration, but at least {_LEAST_ITERATIONS}. From "
        f"{_MANY_IMAGES} images on, there are {_EPOCHS} epochs, as in Detectron2's 1x schedule. Fewer images get "
        f"more, up to {_MOST_EPOCHS}.",
    )
    iterations = s.cfg.SOLVER.MAX_ITER
    s.set(
        "SOLVER.STEPS",
        # Detectron2 needs numbers that rise, below MAX_ITER.
        tuple(sorted({iterations * 2 // 3, iterations * 8 // 9} - {0})),
        "2/3 and 8/9 of MAX_ITER, as in Detectron2's 1x schedule.",
    )
    s.set(
        "SOLVER.WARMUP_ITERS",
        min(1000, iterations // 10),
        "A tenth of MAX_ITER, at most Detectron2's 1000.",
    )
    period, reason = math.ceil(iterations / _EVALUATIONS), "A tenth of MAX_ITER."
    if val is not None and len(val.image_widths) > period * batch:
        # An evaluation then takes less time than the training since the last one.
        period = min(iterations, math.ceil(len(val.image_widths) / batch))
        reason = f"The test set has {len(val.image_widths)} images. The training sees as many in this period."
    s.set(
        "SOLVER.CHECKPOINT_PERIOD",
        min(_LONGEST_PERIOD, math.ceil(iterations / _EVALUATIONS)),
        f"A tenth of MAX_ITER, at most Detectron2's {_LONGEST_PERIOD}.",
    )
    if val is None:
        s.set("TEST.EVAL_PERIOD", 0, "There is no test set.")
    else:
        s.set("TEST.EVAL_PERIOD", period, reason)


def _suggest_test(s: Suggestion, train: Statistics, val: Statistics | None) -> None:
    most = max(int(data.objects_per_image.max()) for data in (train, val) if data is not None)
    needed = max(COCO_DETECTIONS, math.ceil(1.5 * most / 50) * 50)
    reason = f"An image has at most {most} objects. "
    if needed > COCO_DETECTIONS:
        reason += (
            f"Half as many again are kept, in steps of 50. Since COCO counts {COCO_DETECTIONS} detections, AP cannot "
            f"be compared with COCO's."
        )
    else:
        reason += "This is the number that COCO counts."
    s.set("TEST.DETECTIONS_PER_IMAGE", needed, reason)
    if _is_retinanet(s.cfg):
        return
    proposals = 2 * s.cfg.TEST.DETECTIONS_PER_IMAGE
    for key in ("PRE_NMS_TOPK_TEST", "POST_NMS_TOPK_TEST"):
        given = s.cfg.MODEL.RPN[key]
        if given < proposals:
            reason = f"Two proposals for each of TEST.DETECTIONS_PER_IMAGE, instead of {given}."
            s.set(f"MODEL.RPN.{key}", proposals, reason)


def _is_retinanet(cfg: CfgNode) -> bool:
    return bool(cfg.MODEL.META_ARCHITECTURE == "RetinaNet")


def to_yaml(suggestion: Suggestion, base: str, header: str) -> str:
    """The text of a config file.

    Args:
        suggestion: the values and what they follow from.
        base: `_BASE_`, as Detectron2 reads it.
        header: the comment that comes first.
    """
    tree: dict[str, Any] = {}
    for line in suggestion.lines:
        *path, last = line.key.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = line
    rows = [f"# {row}" for row in textwrap.wrap(header, _WIDTH)]
    rows.append(f"_BASE_: {_format(base)}")
    _write_node(rows, suggestion, tree, 0)
    return "\n".join(rows) + "\n"


def _write_node(rows: list[str], suggestion: Suggestion, node: dict[str, Any], depth: int) -> None:
    indent = "  " * depth
    for name, line in node.items():
        if not isinstance(line, Line):
            inner: list[str] = []
            _write_node(inner, suggestion, line, depth + 1)
            # A node without a value would be None.
            empty = all(row.lstrip().startswith("#") for row in inner)
            rows += [f"{indent}# {name}:" if empty else f"{indent}{name}:", *inner]
            continue
        value = suggestion.get(line.key)
        reason = line.reason
        if line.kept:
            reason = f"{line.key} is {_format(value)}, as {line.kept} sets it."
            if line.value != value:
                reason += f" The data suggest {_format(line.value)}. {line.reason}"
        rows += [f"{indent}# {part}" for part in textwrap.wrap(reason, _WIDTH - len(indent))]
        if line.kept not in ("", "--opts"):
            continue
        if line.key == "DATASETS.COCO_JSON":
            rows.append(f"{indent}{name}:")
            rows += [f"{indent}  - {_format(entry)}" for entry in value]
        else:
            rows.append(f"{indent}{name}: {_format(value)}")


def _format(value: Any) -> str:
    """A value in YAML. Tuples are in Python's syntax, as yacs reads them."""
    if isinstance(value, tuple):
        items = ", ".join(map(_format, value))
        return f"({items},)" if len(value) == 1 else f"({items})"
    if isinstance(value, list):
        return f"[{', '.join(map(_format, value))}]"
    if isinstance(value, float):
        # Python's 1e-05 would be a text in YAML.
        return yaml.safe_dump(value).split()[0]
    return repr(value) if isinstance(value, bool) else json.dumps(value, ensure_ascii=False)
