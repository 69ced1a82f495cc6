"""The parts that the tools share: a trainer, its checked config, and readers of the files it writes."""

from __future__ import annotations

import json
import logging
import os
import platform
from argparse import Namespace

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, default_setup
from detectron2.evaluation import COCOEvaluator

from .config import load_cfg
from .data import check_categories, register_coco_json
from .modeling import find_unused_keys


class Trainer(DefaultTrainer):
    """Detectron2's DefaultTrainer, with a COCO evaluation of every test set."""

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> COCOEvaluator:
        return COCOEvaluator(
            dataset_name, output_dir=output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
        )


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
            for the evaluation of a model without weights.
        As :func:`register_coco_json` and :func:`check_categories`.
    """
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}, but torch sees no CUDA device. "
            f"To run on the CPU, add: MODEL.DEVICE cpu"
        )
    if args.eval_only and not args.resume and not cfg.MODEL.WEIGHTS:
        raise ValueError(
            "MODEL.WEIGHTS is empty, so that --eval-only would evaluate a random model; name a "
            "trained one, or add --resume for the last checkpoint of OUTPUT_DIR"
        )
    if cfg.TEST.AUG.ENABLED:
        raise ValueError(
            "TEST.AUG.ENABLED is True, but this script does not augment at test time; "
            "Detectron2's own tools/train_net.py does"
        )
    register_coco_json(cfg.DATASETS.COCO_JSON)
    check_categories(cfg)


def setup(args: Namespace) -> CfgNode:
    """As :func:`load_config` and :func:`start`."""
    cfg = load_config(args)
    start(cfg, args)
    return cfg


def start(cfg: CfgNode, args: Namespace) -> None:
    """Sets up logging and seeds, and warns of keys that nothing reads."""
    default_setup(cfg, args)
    for sentence in find_unused_keys(cfg):
        logging.getLogger("detectron2").warning(sentence)


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
