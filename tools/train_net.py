#!/usr/bin/env python
"""Trains and evaluates a model of this project from a config file.

Detectron2's own tools/train_net.py does the same with DETECTRON2_ENV_MODULE=mrcnn_plugin.env. This
script needs no environment variables. It also registers the data sets of DATASETS.COCO_JSON, and
checks that they fit together before it starts. It evaluates data sets in COCO format only.
"""

from argparse import Namespace
from typing import Any

from detectron2.engine import default_argument_parser
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from mrcnn_plugin.checkpoint import FittingCheckpointer
from mrcnn_plugin.config import without_federated_loss

# load_config: for scripts that take it from here, as they take the trainer.
from mrcnn_plugin.engine import Trainer, launch, load_config, parse_args, setup  # noqa: F401


def main(args: Namespace) -> dict[str, Any]:
    cfg = setup(args)
    if args.eval_only:
        model = Trainer.build_model(without_federated_loss(cfg))
        must_fit = not cfg.MODEL.MRCNN_PLUGIN.PARTIAL_WEIGHTS
        FittingCheckpointer(model, cfg.OUTPUT_DIR, must_fit=must_fit).resume_or_load(
            cfg.MODEL.WEIGHTS, resume=args.resume
        )
        results = Trainer.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            results.update(Trainer.test_with_TTA(cfg, model))
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    parser = default_argument_parser()
    parser.description = __doc__
    launch(main, parse_args(parser))
