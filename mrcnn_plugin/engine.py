"""The parts that the tools share: a trainer, its checked config, and readers of the files it writes."""

from __future__ import annotations

import json
import logging
import os
import platform
import weakref
from argparse import Namespace
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader
from detectron2.engine import DefaultTrainer, default_setup
from detectron2.evaluation import COCOEvaluator
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.utils import comm

from .checkpoint import FittingCheckpointer
from .config import load_cfg
from .data import (
    TrainMapper,
    check_categories,
    check_datasets,
    check_pixel_range,
    register_coco_json,
)
from .evaluation import build_coco_evaluator
from .modeling import find_unused_keys
from .modeling.unused_keys import is_ours


class Trainer(DefaultTrainer):
    """Detectron2's DefaultTrainer, with a COCO evaluation of every test set."""

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        return build_detection_train_loader(cfg, mapper=TrainMapper(cfg, True))

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> COCOEvaluator:
        return build_coco_evaluator(cfg, dataset_name, output_folder)

    def build_hooks(self) -> list[Any]:
        # Before the hooks that save with it.
        self.checkpointer: Any = FittingCheckpointer(
            self._trainer.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        hooks: list[Any] = super().build_hooks()
        return hooks


def load_config(args: Namespace) -> CfgNode:
    """Returns the config of a training or an evaluation, checked and frozen, and registers its data sets.

    Args:
        args: the parsed arguments of Detectron2's `default_argument_parser`.

    Raises:
        As :func:`load_cfg` and :func:`check`.
    """
    cfg = load_cfg(args.config_file, args.opts)
    cfg.freeze()
    check(cfg, args)
    return cfg


def check(cfg: CfgNode, args: Namespace) -> None:
    """Registers the data sets of a config and checks that it can be run with these arguments.

    Raises:
        ValueError: the config asks for a device that is not there, for test-time augmentation, or
            for the evaluation of a model without weights, for training without data, or for
            components that do not go together.
        As :func:`register_datasets` and :func:`check_categories`.
    """
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}, but torch sees no CUDA device. "
            f"To run on the CPU, add: MODEL.DEVICE cpu"
        )
    has_checkpoint = os.path.isfile(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint"))
    if args.eval_only and not cfg.MODEL.WEIGHTS and not (args.resume and has_checkpoint):
        raise ValueError(
            f"MODEL.WEIGHTS is empty, so that --eval-only would evaluate a random model; name a "
            f"trained one, or add --resume if there is a checkpoint in OUTPUT_DIR ({cfg.OUTPUT_DIR})"
        )
    if not args.eval_only and not cfg.DATASETS.TRAIN:
        raise ValueError(
            "DATASETS.TRAIN is empty; name a data set to train on, or add --eval-only to evaluate on those of "
            "DATASETS.TEST"
        )
    if cfg.TEST.AUG.ENABLED:
        raise ValueError(
            "TEST.AUG.ENABLED is True, but this script does not augment at test time; "
            "Detectron2's own tools/train_net.py does"
        )
    _check_roi_heads(cfg)
    register_datasets(cfg)
    check_categories(cfg)


def register_datasets(cfg: CfgNode) -> None:
    """Registers the data sets of a config, without checking what is in them.

    Raises:
        As :func:`check_pixel_range` and :func:`register_coco_json`.
    """
    check_pixel_range(cfg)
    # A check on load would come too early for a tool that only draws. start() checks for a training.
    register_coco_json(
        cfg.DATASETS.COCO_JSON,
        check=cfg.DATASETS.CHECK,
        masks=cfg.MODEL.MASK_ON,
        pixel_range=cfg.INPUT.PIXEL_RANGE,
        pixel_range_unit=cfg.INPUT.PIXEL_RANGE_UNIT,
        check_on_load=False,
    )


def _check_roi_heads(cfg: CfgNode) -> None:
    """Names the keys where Detectron2 names none.

    Raises:
        ValueError: the ROI heads do not know the pooler, or need a key that is not set.
    """
    name = cfg.MODEL.ROI_HEADS.NAME
    if cfg.MODEL.META_ARCHITECTURE not in ("GeneralizedRCNN", "PanopticFPN"):
        return
    if name not in ROI_HEADS_REGISTRY:
        # Detectron2 names it when it builds the model.
        return
    heads = ROI_HEADS_REGISTRY.get(name)
    if issubclass(heads, CascadeROIHeads) and not cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG:
        raise ValueError(
            f"MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG is False, but the cascade MODEL.ROI_HEADS.NAME {name!r} needs "
            f"it to be True"
        )
    box_head = cfg.MODEL.ROI_BOX_HEAD
    if (
        box_head.get("USE_FED_LOSS")
        and box_head.FED_LOSS_NUM_CLASSES > cfg.MODEL.ROI_HEADS.NUM_CLASSES
    ):
        raise ValueError(
            f"MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES is {box_head.FED_LOSS_NUM_CLASSES}; it must be at most "
            f"MODEL.ROI_HEADS.NUM_CLASSES, {cfg.MODEL.ROI_HEADS.NUM_CLASSES}, of which it is a sample"
        )
    nodes = ["ROI_BOX_HEAD"]
    nodes += ["ROI_MASK_HEAD"] * cfg.MODEL.MASK_ON + ["ROI_KEYPOINT_HEAD"] * cfg.MODEL.KEYPOINT_ON
    for node in nodes:
        pooler = cfg.MODEL[node].POOLER_TYPE
        if pooler in ("ROIAlignBicubic", "ROIAlignBilinear") and not is_ours(
            ROI_HEADS_REGISTRY, name
        ):
            raise ValueError(
                f"MODEL.{node}.POOLER_TYPE is {pooler!r}, which the MODEL.ROI_HEADS.NAME {name!r} does not know; set "
                f"that to MRCNNFocalROIHeads, MRCNNFocalCascadeROIHeads or MRCNNFocalRes5ROIHeads (with "
                f"MODEL.ROI_BOX_HEAD.CLS_LOSS 'cross_entropy' they are Detectron2's own)"
            )


def setup(args: Namespace) -> CfgNode:
    """As :func:`load_config` and :func:`start`."""
    cfg = load_config(args)
    start(cfg, args)
    return cfg


def start(cfg: CfgNode, args: Namespace) -> None:
    """Sets up logging and seeds, warns of keys that nothing reads, and checks the data sets.

    Raises:
        As :func:`check_datasets`.
    """
    trains = not getattr(args, "eval_only", False)
    holds_another = os.path.isfile(os.path.join(cfg.OUTPUT_DIR, "metrics.json"))
    default_setup(cfg, args)
    logger = logging.getLogger("detectron2")
    if trains and holds_another and not args.resume:
        logger.warning(
            f"OUTPUT_DIR {cfg.OUTPUT_DIR!r} holds another training, and this one starts anew: it adds "
            f"to its metrics.json and replaces its checkpoints. Add --resume to go on with the other "
            f"one, or choose another OUTPUT_DIR to keep both."
        )
    for sentence in find_unused_keys(cfg):
        logger.warning(sentence)
    _check_datasets_once(cfg, trains)


def _check_datasets_once(cfg: CfgNode, train: bool) -> None:
    """Checks in the first process only, so that all processes go on, or all raise the error."""
    error = None
    if comm.is_main_process():
        try:
            check_datasets(cfg, train=train)
        except Exception as caught:
            error = caught
    message = comm.all_gather(error and f"{error}")[0]
    if error is not None:
        raise error
    if message is not None:
        raise ValueError(message)


def read_metrics(file: str) -> dict[int, dict[str, float]]:
    """Reads Detectron2's metrics.json, and returns the value of each name in each iteration.

    Detectron2 appends to the file. If the iteration number of a training line is lower than before,
    the training was resumed from a checkpoint or started again. Values of later iterations are then
    dropped. Lines of an evaluation are no such sign, because Detectron2 writes them together with
    those of a later iteration.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a line is damaged.
    """
    if not os.path.isfile(file):
        raise FileNotFoundError(
            f"There is no {file}; train first, or set OUTPUT_DIR to the folder of a training."
        )
    metrics: dict[int, dict[str, float]] = {}
    with open(file, encoding="utf-8") as f:
        for number, line in enumerate(f, start=1):
            try:
                values = json.loads(line)
                iteration = values.pop("iteration")
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{file}, line {number} is not a JSON object with an iteration; delete the line "
                    f"if it comes from a training that was killed."
                ) from error
            if "total_loss" in values:
                for later in [i for i in metrics if i > iteration]:
                    del metrics[later]
            metrics.setdefault(iteration, {}).update(values)
    return metrics


def processor(device: str) -> str:
    """Returns the name of the GPU if `device` is "cuda", and otherwise that of the CPU."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        with open("/proc/cpuinfo") as file:
            return next(
                line.split(":")[1].strip() for line in file if line.startswith("model name")
            )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
