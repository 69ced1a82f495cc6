"""Checks of COCO data sets before they are used: :func:`check_datasets`.

docs/your_data.md says what is checked, what is repaired, and what is refused. `annotations` checks the content of a
JSON file, `images` looks at image files, `inspection` remembers what they found, and `kinds` has every message.
"""

import dataclasses
import logging
from collections.abc import Iterable, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.utils import comm

from ..keypoints import find_not_exchanged
from .annotations import Finding
from .inspection import inspect_images, inspect_json
from .kinds import KINDS, Level

CHECKS = ("fast", "full", "off")
# Objects that cannot be used are left out up to this share of all; more are refused.
_FEW_LEFT_OUT = 0.01
# Objects that are probably wrong are used up to this share of those compared; more are refused.
_FEW_ODD = 0.1
_ALLOWABLE = (Level.JUDGEMENT, Level.LEFT_OUT, Level.NOTE_IF_FEW)
_ONLY_FOR_TRAINING = ("rle", "keypoints_flip")
_ONLY_FOR_TEST = (
    "mask_missing_crowd",
    "area_missing",
    "area_form",
    "area_zero",
    "area_odd",
    "keypoints_missing_crowd",
    "num_keypoints_missing",
    "num_keypoints_wrong",
    "many_objects",
)
_OF_MASKS = ("segmentation", "rle", "mask", "box_mask", "polygon")
_OF_KEYPOINTS = ("keypoints", "num_keypoints")

logger = logging.getLogger("detectron2.mrcnn_plugin.data")


@dataclasses.dataclass
class Usage:
    """How data sets are used. What is None is not known.

    Attributes:
        train: names of the data sets that are trained on.
        test: names of those that are evaluated on.
        check: `DATASETS.CHECK`.
        allow: `DATASETS.ALLOW`.
        mask_on: whether the model has masks.
        mask_format: `INPUT.MASK_FORMAT`.
        scaled: whether pixels of more than 8 bits are scaled.
        detections: `TEST.DETECTIONS_PER_IMAGE`; negative for no limit.
        keypoints: the number of keypoints of the model, 0 if it has none.
        flip: `INPUT.RANDOM_FLIP`.
        resized: (shortest side, longest side) of inputs, each in px, of training and of test.
    """

    train: Sequence[str]
    test: Sequence[str]
    check: str = "fast"
    allow: Sequence[str] = ()
    mask_on: bool | None = None
    mask_format: str | None = None
    scaled: bool = False
    detections: int | None = None
    keypoints: int = 0
    flip: str | None = None
    resized: Sequence[tuple[int, int]] = ()

    @classmethod
    def of(cls, cfg: CfgNode) -> "Usage":
        """That of a config."""
        return cls(
            train=cfg.DATASETS.TRAIN,
            test=cfg.DATASETS.TEST,
            check=cfg.DATASETS.CHECK,
            allow=cfg.DATASETS.ALLOW,
            mask_on=cfg.MODEL.MASK_ON,
            mask_format=cfg.INPUT.MASK_FORMAT,
            scaled=bool(cfg.INPUT.PIXEL_RANGE),
            detections=cfg.TEST.DETECTIONS_PER_IMAGE,
            keypoints=cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS if cfg.MODEL.KEYPOINT_ON else 0,
            flip=cfg.INPUT.RANDOM_FLIP,
            resized=[
                (min(cfg.INPUT.MIN_SIZE_TRAIN), cfg.INPUT.MAX_SIZE_TRAIN),
                (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST),
            ],
        )


def check_datasets(cfg: CfgNode, *, train: bool = True) -> None:
    """Checks the data sets of `DATASETS.TRAIN` and `DATASETS.TEST` that :func:`register_coco_json` registered.

    To be called before training and before evaluation. Everything that is repaired, left out or odd is logged as one
    warning for each kind.

    Args:
        cfg: a config whose data sets are registered.
        train: False where nothing is trained, so that `DATASETS.TRAIN` is not needed.

    Raises:
        ValueError: something cannot be used, or is not allowed by `DATASETS.ALLOW`; or a data set is not registered;
            or `DATASETS.CHECK` or `DATASETS.ALLOW` is none of the values that it can have.
    """
    usage = Usage.of(cfg)
    if not train:
        usage = dataclasses.replace(usage, train=())
    for name in (*usage.train, *usage.test):
        if name not in DatasetCatalog:
            raise ValueError(
                f"DATASETS.TRAIN or TEST has {name!r}, which is not registered; call register_coco_json with the "
                f"entries of DATASETS.COCO_JSON first."
            )
    check_usage(usage)


def check_usage(usage: Usage) -> None:
    """Does the work of :func:`check_datasets`."""
    check_values(usage.check, usage.allow)
    if usage.check == "off":
        return
    errors: list[str] = []
    for name in dict.fromkeys((*usage.train, *usage.test)):
        if MetadataCatalog.get(name).get("coco_json_source") is None:
            # Not one of ours.
            continue
        errors += _check_dataset(name, usage)
    if errors:
        errors.append(
            "tools/check_dataset.py JSON IMAGES lists every one. DATASETS.CHECK: 'off' checks nothing."
        )
        raise ValueError("\n".join(errors))


def check_values(check: str, allow: Sequence[str]) -> None:
    """Checks the values of `DATASETS.CHECK` and `DATASETS.ALLOW`.

    Raises:
        ValueError: a value is not allowed.
    """
    if check not in CHECKS:
        raise ValueError(
            f"DATASETS.CHECK is {check!r}; it must be one of {', '.join(map(repr, CHECKS))}."
        )
    allowable = [kind for kind, (level, *_) in KINDS.items() if level in _ALLOWABLE]
    for kind in allow:
        if kind not in allowable:
            raise ValueError(
                f"DATASETS.ALLOW has {kind!r}; it must be a list of {', '.join(map(repr, allowable))}."
            )


def find_problems(name: str, usage: Usage, *, limit: int | None = 5) -> list[Finding]:
    """What is wrong with a registered data set, in the order of `KINDS`."""
    metadata = MetadataCatalog.get(name)
    source, root = metadata.coco_json_source, metadata.coco_json_root
    inspection = inspect_json(
        metadata.coco_json_local,
        source,
        f"The data set {name!r}",
        masks=usage.mask_on is not False,
        limit=limit,
    )
    findings = list(inspection.findings)
    if usage.detections is not None and usage.detections >= 0:
        count = sum(images for n, images in inspection.objects.items() if n > usage.detections)
        if count:
            examples = [
                f"image {id!r} has {n}" for n, id in inspection.crowded if n > usage.detections
            ]
            findings.append(Finding("many_objects", count, len(inspection.images), examples))
    findings += _find_not_exchanged(name, usage, limit)
    # A remote folder is not looked at: every image would have to be fetched.
    if "://" not in root:
        findings += inspect_images(
            inspection.images,
            root,
            name,
            full=usage.check == "full",
            progress=comm.is_main_process(),
            resized=_smallest(usage.resized),
            limit=limit,
        )
    order = list(KINDS)
    return sorted(findings, key=lambda finding: order.index(finding.kind))


def judge(finding: Finding, usage: Usage, *, train: bool, test: bool) -> Level | None:
    """What a finding leads to: ERROR, JUDGEMENT (refused), or something to be said; None for nothing.

    Args:
        finding: of :func:`find_problems`.
        usage: how data sets are used.
        train: whether this one is trained on.
        test: whether it is evaluated on.
    """
    kind = finding.kind
    level = KINDS[kind].level
    # Without annotations there is nothing to train on, but a test set may have none.
    if kind == "annotations_missing" and train:
        return Level.ERROR
    if (kind in _ONLY_FOR_TRAINING and not train) or (kind in _ONLY_FOR_TEST and not test):
        return None
    if kind.startswith(_OF_MASKS):
        if usage.mask_on is False:
            return None
        if kind == "rle" and usage.mask_format != "polygon":
            return None
        if kind.startswith("mask_missing") and usage.mask_on is None:
            # Where the model is not known it may be one of boxes.
            return Level.NOTE
    if kind.startswith(_OF_KEYPOINTS) and not usage.keypoints:
        return None
    if kind == "file_16_bit" and usage.scaled:
        return None
    share = finding.count / max(finding.total, 1)
    if level is Level.LEFT_OUT and share > _FEW_LEFT_OUT:
        level = Level.JUDGEMENT
    if level is Level.NOTE_IF_FEW:
        level = Level.JUDGEMENT if share > _FEW_ODD else Level.NOTE
    if level is Level.JUDGEMENT and kind in usage.allow:
        level = Level.NOTE
    return level


def sentence(finding: Finding, *, refused: bool, examples: bool = True) -> str:
    """A finding in words.

    Args:
        finding: of :func:`find_problems`.
        refused: whether to say how it can be allowed.
        examples: whether to give the examples.
    """
    level, unit, what, then = KINDS[finding.kind]
    shown = "; ".join(example for example in finding.examples if example) if examples else ""
    more = finding.count - len(finding.examples)
    if shown and more > 0:
        shown += f"; and {more} more"
    if unit == "file":
        text = f"the file {what}"
    else:
        text = f"{finding.count} of {finding.total} {unit} {what}"
    parts = [f"{text} ({shown})." if shown else f"{text}.", finding.hint, then]
    if level is Level.LEFT_OUT and not refused:
        parts.append("They are left out of training and of evaluation.")
    if refused:
        aim = "go on all the same"
        if level is Level.LEFT_OUT:
            aim = "leave them out of training and of evaluation"
        parts.append(f"To {aim}, add {finding.kind!r} to DATASETS.ALLOW.")
    return " ".join(part for part in parts if part)


def _check_dataset(name: str, usage: Usage) -> list[str]:
    """Logs what is to be said of a data set; returns what is refused."""
    metadata = MetadataCatalog.get(name)
    source = metadata.coco_json_source
    # The registration decides how images are read, not the config.
    usage = dataclasses.replace(usage, scaled=metadata.image_root != metadata.coco_json_root)
    errors: list[str] = check_keypoints(name, usage)
    for finding in find_problems(name, usage):
        level = judge(finding, usage, train=name in usage.train, test=name in usage.test)
        if level is None:
            continue
        refused = level in (Level.ERROR, Level.JUDGEMENT)
        text = (
            f"Data set {name!r} ({source}): {sentence(finding, refused=level is Level.JUDGEMENT)}"
        )
        if refused:
            errors.append(text)
        else:
            logger.warning(text)
    return errors


def check_keypoints(name: str, usage: Usage) -> list[str]:
    """What is wrong with the names of the keypoints, which stand with the categories."""
    if not usage.keypoints:
        return []
    metadata = MetadataCatalog.get(name)
    names = metadata.get("keypoint_names")
    if names and len(names) == usage.keypoints:
        return []
    if names:
        fault = (
            f"its categories have {len(names)} keypoints ({', '.join(names)}), but "
            f"MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS is {usage.keypoints}. Set it to {len(names)}."
        )
    else:
        fault = (
            "MODEL.KEYPOINT_ON is True, but the data set has no keypoint_names: in a JSON file of DATASETS.COCO_JSON, "
            "the categories must have the same list keypoints of names."
        )
    return [f"Data set {name!r} ({metadata.coco_json_source}): {fault}"]


def _find_not_exchanged(name: str, usage: Usage, limit: int | None) -> list[Finding]:
    """The keypoints whose left and right a flip in training would confuse."""
    if usage.flip not in ("horizontal", "vertical"):
        return []
    metadata = MetadataCatalog.get(name)
    names = metadata.get("keypoint_names", [])
    pairs, hint = metadata.get("keypoint_flip_map", []), ""
    if usage.flip == "vertical":
        pairs, hint = [], "Detectron2 exchanges keypoints in horizontal flips only."
    found = find_not_exchanged(names, pairs)
    return [Finding("keypoints_flip", len(found), len(names), found[:limit], hint)] if found else []


def _smallest(sizes: Iterable[tuple[int, int]]) -> Any:
    """(height, width) of an image -> that of the smallest input that it becomes."""
    sizes = [(short, long) for short, long in sizes if short > 0]

    def resized(height: int, width: int) -> tuple[int, int]:
        shapes = [
            T.ResizeShortestEdge.get_output_shape(height, width, short, long)
            for short, long in sizes
        ]
        return min(shapes, key=min, default=(height, width))

    return resized
