#!/usr/bin/env python
"""Turns a checkpoint of a stock model into a starting point for a model of this project.

    python tools/upgrade_checkpoint.py --config-file configs/mask_rcnn_focal.yaml \\
        --weights model_final.pkl --output start.pth [KEY VALUE ...]

Loads the checkpoint, in any format that Detectron2 reads, into the config's model, says what fitted
and what did not, and writes all parameters of the model: those of the checkpoint, and those that it
lacks as the model initialises them. The classifier of a box head with a sigmoid loss stays as
initialised too: trained by softmax it would start with every class near 1/2. MODEL.WEIGHTS can then
name a file that lacks nothing, and every training that starts from it starts from the same values.
"""

import argparse
import os
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn

from mrcnn_plugin import load_cfg
from mrcnn_plugin.modeling import FocalFastRCNNOutputLayers


class ReportingCheckpointer(DetectionCheckpointer):
    """DetectionCheckpointer that keeps what the last load came to."""

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        """Keeps them instead: the report says it."""
        self.incompatible = incompatible

    def report(self) -> dict[str, list[str]]:
        """Names of parameters and buffers by what became of them."""
        missing, unused, shapes = self.incompatible
        misfits = [name for name, *_ in shapes]
        state = self.model.state_dict()
        return {
            "from the checkpoint": [n for n in state if n not in missing],
            "new, as initialised": [n for n in missing if n not in misfits],
            "in the checkpoint only, not used": list(unused),
            "of another shape, as initialised": [
                f"{name}: {there} in the checkpoint, {here} in the model"
                for name, there, here in shapes
            ],
        }


def sigmoid_classifiers(model: nn.Module) -> dict[str, Tensor]:
    """Names and present values of the parameters of classification layers that end in sigmoids."""
    return {
        f"{name}.cls_score.{key}": value.clone()
        for name, module in model.named_modules()
        if isinstance(module, FocalFastRCNNOutputLayers) and module.scores_are_sigmoids
        for key, value in module.cls_score.state_dict().items()
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--weights", required=True, metavar="FILE", help="stock checkpoint")
    parser.add_argument(
        "--keep-classifier",
        action="store_true",
        help="use the box head's classifier of the checkpoint, which was trained with sigmoids",
    )
    parser.add_argument("--output", required=True, metavar="FILE.pth", help="to be written")
    parser.add_argument(
        "opts", default=[], nargs=argparse.REMAINDER, help="config changes: KEY VALUE ..."
    )
    args = parser.parse_args(argv)
    if not args.output.endswith(".pth"):
        parser.error(f"--output must end in .pth, by which Detectron2 reads it, got {args.output}")
    if PathManager.exists(args.output):
        parser.error(f"--output {args.output} exists already; remove it or name another")
    if not args.weights:
        parser.error("--weights is empty; name the checkpoint to start from")
    cfg = load_cfg(args.config_file, args.opts)
    cfg.MODEL.DEVICE = "cpu"
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED)
    model = build_model(cfg)
    fresh = {} if args.keep_classifier else sigmoid_classifiers(model)
    checkpointer = ReportingCheckpointer(model)
    checkpointer.load(args.weights, checkpointables=[])
    report = checkpointer.report()
    dropped = [name for name in report["from the checkpoint"] if name in fresh]
    model.load_state_dict(fresh, strict=False)
    report["from the checkpoint"] = [n for n in report["from the checkpoint"] if n not in fresh]
    report["of a classifier by sigmoids, as initialised"] = dropped
    for what, names in report.items():
        print(f"{len(names)} {what}", *names, sep="\n  ")
    if not report["from the checkpoint"]:
        raise ValueError(
            f"--weights {args.weights}: nothing in it fits the model of {args.config_file}, so "
            f"that nothing was written"
        )
    PathManager.mkdirs(os.path.dirname(os.path.abspath(args.output)))
    with PathManager.open(args.output, "wb") as file:
        torch.save({"model": checkpointer.model.state_dict()}, file)
    print(f"Wrote {args.output}")


if __name__ == "__main__":
    main()
