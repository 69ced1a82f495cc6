#!/usr/bin/env python
"""Turns a checkpoint of a stock model into a starting point for a model of this project.

    python tools/upgrade_checkpoint.py --config-file configs/mask_rcnn_focal.yaml \\
        --weights model_final.pkl --output start.pth [KEY VALUE ...]

The tool loads a checkpoint, in any format that Detectron2 reads, into the model of a config. It
lists the parameters that fit and those that do not. It then writes all parameters of the model, and
those that the checkpoint lacks have their initial values. If MODEL.WEIGHTS names this file, no
parameter is missing, and every training starts from the same values.

If the box head has a sigmoid loss, its classifier keeps its initial values too. A stock classifier
was trained with a softmax. With sigmoids, every class would start near 1/2.
"""

import argparse
import os
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn

from mrcnn_plugin import load_cfg
from mrcnn_plugin.checkpoint import FittingCheckpointer, write_whole
from mrcnn_plugin.config import without_federated_loss
from mrcnn_plugin.engine import escape_output, parse_args
from mrcnn_plugin.modeling import FocalFastRCNNOutputLayers


class ReportingCheckpointer(FittingCheckpointer):
    """A checkpointer that reports which parameters the last load found."""

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        """Keeps the incompatible keys for the report, and does not log them."""
        self.incompatible = incompatible

    def report(self) -> dict[str, list[str]]:
        """Returns the names of parameters and buffers by the result of the last load."""
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
    """Returns the current parameters of all classification layers whose scores are sigmoids, by name."""
    return {
        f"{name}.cls_score.{key}": value.clone()
        for name, module in model.named_modules()
        if isinstance(module, FocalFastRCNNOutputLayers) and module.scores_are_sigmoids
        for key, value in module.cls_score.state_dict().items()
    }


def write(output: str, content: dict[str, Any]) -> None:
    """Writes a checkpoint.

    Raises:
        OSError: it cannot be written. There is no file of its name.
    """
    if "://" in output:  # iopath writes it, and cannot rename everywhere.
        with PathManager.open(output, "wb") as file:
            torch.save(content, file)
        return
    os.makedirs(os.path.dirname(os.path.abspath(output)), exist_ok=True)
    try:
        write_whole({output: lambda f: torch.save(content, f)})
    except OSError as error:
        raise OSError(f"--output {output} cannot be written: {error}") from error


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="the config of the new model"
    )
    parser.add_argument("--weights", required=True, metavar="FILE", help="the stock checkpoint")
    parser.add_argument(
        "--keep-classifier",
        action="store_true",
        help="keep the classifier of the checkpoint, if it was trained with sigmoids",
    )
    parser.add_argument("--output", required=True, metavar="FILE.pth", help="the file to write")
    parser.add_argument(
        "opts", default=[], nargs=argparse.REMAINDER, help="config changes: KEY VALUE ..."
    )
    args = parse_args(parser, argv)
    escape_output()
    if not args.output.endswith(".pth"):
        parser.error(f"--output must end in .pth for Detectron2 to read it, got {args.output}")
    if PathManager.exists(args.output):
        parser.error(f"--output {args.output} exists already; remove it or name another")
    if not args.weights:
        parser.error("--weights is empty; name the checkpoint to start from")
    cfg = load_cfg(args.config_file, args.opts)
    cfg.MODEL.DEVICE = "cpu"
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED)
    model = build_model(without_federated_loss(cfg))
    fresh = {} if args.keep_classifier else sigmoid_classifiers(model)
    checkpointer = ReportingCheckpointer(model)
    checkpointer.load(args.weights, checkpointables=[])
    report = checkpointer.report()
    dropped = [name for name in report["from the checkpoint"] if name in fresh]
    model.load_state_dict(fresh, strict=False)
    report["from the checkpoint"] = [n for n in report["from the checkpoint"] if n not in fresh]
    report["of a classifier with sigmoids, as initialised"] = dropped
    for what, names in report.items():
        print(f"{len(names)} {what}", *names, sep="\n  ")
    if not report["from the checkpoint"]:
        raise ValueError(
            f"--weights {args.weights}: no parameter in it fits the model of {args.config_file}, so "
            f"no file was written"
        )
    write(args.output, {"model": checkpointer.model.state_dict()})
    print(f"Wrote {args.output}")


if __name__ == "__main__":
    main()
