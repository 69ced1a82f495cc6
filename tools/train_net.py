#!/usr/bin/env python
"""Trains and evaluates a model of this project from a config file.

Detectron2's own tools/train_net.py does the same with DETECTRON2_ENV_MODULE=mrcnn_plugin.env. This
script needs no environment variables, registers the data sets of DATASETS.COCO_JSON, and checks
that they fit together before it starts.
"""

import logging
import os
from argparse import Namespace
from typing import Any, Dict, Optional

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup, launch
from detectron2.evaluation import COCOEvaluator, verify_results
from detectron2.utils import comm

from mrcnn_plugin import add_mrcnn_config
from mrcnn_plugin.data import check_categories, register_coco_json
from mrcnn_plugin.modeling import find_unused_keys


class Trainer(DefaultTrainer):
    """DefaultTrainer with COCO evaluation of every test set."""

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: Optional[str] = None
    ) -> COCOEvaluator:
        return COCOEvaluator(
            dataset_name, output_dir=output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
        )


def load_config(args: Namespace) -> CfgNode:
    """The config, checked, its data sets registered."""
    cfg = get_cfg()
    add_mrcnn_config(cfg)
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.freeze()
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
    return cfg


def setup(args: Namespace) -> CfgNode:
    cfg = load_config(args)
    default_setup(cfg, args)
    for sentence in find_unused_keys(cfg):
        logging.getLogger("detectron2").warning(sentence)
    return cfg


def main(args: Namespace) -> Dict[str, Any]:
    cfg = setup(args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(
            cfg.MODEL.WEIGHTS, resume=args.resume
        )
        results = Trainer.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
