"""What each loss of a training weighs: its value, its gradients, and the proposals that it comes from."""

import json
import os
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.engine import HookBase, hooks
from detectron2.layers import cat
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, StandardROIHeads
from detectron2.structures import Instances
from tabulate import tabulate
from torch import Tensor, nn

from mrcnn_plugin.engine import Trainer, start
from mrcnn_plugin.layers import sigmoid_focal_loss, softmax_focal_loss
from mrcnn_plugin.layers.focal_loss import is_class

from . import cells
from .cells import Cell
from .focal_forms import PartlyFocalOutputLayers, is_near, matched_ious
from .lines import Line, identity, read_lines, settings_of
from .run import ARGUMENTS, about, checked_config


def row_losses(predictor: FastRCNNOutputLayers, scores: Tensor, gt_classes: Tensor) -> Tensor:
    """Returns the classification loss [R] of each proposal, before any divisor of their sum."""
    kind = getattr(predictor, "cls_loss", "cross_entropy")
    alpha, gamma = getattr(predictor, "focal_alpha", -1.0), getattr(predictor, "focal_gamma", 0.0)
    if isinstance(predictor, PartlyFocalOutputLayers):
        return predictor.row_losses(scores, gt_classes)
    if kind == "softmax_focal":
        return softmax_focal_loss(scores, gt_classes, alpha, gamma)
    if kind == "cross_entropy" and not predictor.use_sigmoid_ce:
        return F.cross_entropy(scores, gt_classes, reduction="none")
    if kind == "cross_entropy":
        alpha, gamma = -1.0, 0.0
    elif kind != "sigmoid_focal":
        raise ValueError(f"MODEL.ROI_BOX_HEAD.CLS_LOSS {kind!r} has no shares of proposals yet")
    targets = is_class(gt_classes, predictor.num_classes)
    return sigmoid_focal_loss(scores[:, :-1], targets, alpha, gamma).sum(1)


def gradient_norms(loss: Tensor, parts: dict[str, nn.Module]) -> dict[str, float]:
    """The norm of the gradient for the parameters of each part, 0 where the loss does not depend on them."""
    parameters = {part: list(module.parameters()) for part, module in parts.items()}
    gradients = iter(
        torch.autograd.grad(
            loss,
            [p for own in parameters.values() for p in own],
            retain_graph=True,
            allow_unused=True,
        )
    )
    found = {part: [next(gradients) for _ in own] for part, own in parameters.items()}
    return {
        part: float(torch.nn.utils.get_total_norm([g for g in own if g is not None]))
        for part, own in found.items()
    }


class LossRecorder:
    """Records every so many training iterations of a model what its losses weigh.

    It only reads the graph of the model, so that the training stays what it is.

    Attributes:
        records: a dictionary for each recorded iteration, in which

            * `losses` has the value of each loss,
            * `gradients` the norm of its gradient for the parameters that all heads share
              ("backbone") and for those that the two predictions of the box head share ("box_head"),
            * `proposals` for those whose IoU with their object is near the threshold ("near"), below
              ("background") and above ("foreground"): their number, and their parts of the
              classification loss and of the sum of the absolute gradients of all logits.
    """

    def __init__(self, model: nn.Module, every: int) -> None:
        """
        Raises:
            ValueError: the model is not a Mask R-CNN with one box head.
        """
        heads = getattr(model, "roi_heads", None)
        predictor = getattr(heads, "box_predictor", None)
        if not isinstance(model, GeneralizedRCNN) or not isinstance(heads, StandardROIHeads):
            raise ValueError(f"The model is a {type(model).__name__} without one box head.")
        if not isinstance(predictor, FastRCNNOutputLayers):
            raise ValueError(
                f"The box predictor is a {type(predictor).__name__}, not a single one."
            )
        self.heads, self.predictor, self.every = heads, predictor, every
        self.records: list[dict[str, Any]] = []
        self.iteration = 0
        predictor.register_forward_hook(self._keep_scores)
        heads.register_forward_hook(self._keep_proposals)
        model.register_forward_hook(self._record)

    def _keep_scores(self, module: nn.Module, inputs: Any, outputs: tuple[Tensor, Tensor]) -> None:
        self.scores = outputs[0]

    def _keep_proposals(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        self.proposals: list[Instances] = outputs[0]

    def _record(self, model: nn.Module, inputs: Any, losses: dict[str, Tensor]) -> None:
        if not model.training:
            return
        if self.iteration % self.every == 0:
            parts = {"backbone": model.backbone, "box_head": self.heads.box_head}
            norms = {name: gradient_norms(loss, parts) for name, loss in losses.items()}
            self.records.append(
                {
                    "iteration": self.iteration,
                    "losses": {name: loss.item() for name, loss in losses.items()},
                    "gradients": {
                        part: {name: of_parts[part] for name, of_parts in norms.items()}
                        for part in parts
                    },
                    "proposals": self._shares(losses["loss_cls"]),
                }
            )
        self.iteration += 1

    def _shares(self, loss: Tensor) -> dict[str, dict[str, float]]:
        gt_classes = cat([p.gt_classes for p in self.proposals])
        (gradients,) = torch.autograd.grad(loss, self.scores, retain_graph=True)
        with torch.no_grad():
            rows = {
                "loss": row_losses(self.predictor, self.scores, gt_classes),
                "gradient": gradients.abs().sum(1),
            }
        near = is_near(matched_ious(self.proposals))
        foreground = gt_classes < self.predictor.num_classes
        groups = {"background": ~foreground & ~near, "near": near, "foreground": foreground & ~near}
        return {
            group: {
                "number": int(mask.sum()),
                **{name: float(v[mask].sum() / v.sum()) for name, v in rows.items()},
            }
            for group, mask in groups.items()
        }


class RecordingTrainer(Trainer):
    """Trains as a cell is trained, without evaluations and checkpoints."""

    def build_hooks(self) -> list[HookBase | None]:
        return [hooks.LRScheduler()]


def record(cell: Cell, every: int, output_dir: str) -> Line:
    """Trains the cell, and returns the line with its records.

    Raises:
        As :func:`checked_config` and :class:`LossRecorder`.
    """
    cfg = checked_config(cell, output_dir)
    start(cfg, ARGUMENTS)
    trainer = RecordingTrainer(cfg)
    trainer.resume_or_load(resume=False)
    recorder = LossRecorder(trainer.model, every)
    trainer.train()
    return {**about(cell, cfg), "every": every, "metrics": recorder.records}


def record_all(chosen: Sequence[Cell], args: Namespace) -> None:
    """Records every cell that has no line yet, one after the other.

    Raises:
        ValueError: `args.every` leaves fewer than three records.
        As :func:`record`.
    """
    os.makedirs(os.path.dirname(os.path.abspath(args.results)), exist_ok=True)
    for cell in chosen:
        cfg = checked_config(cell, args.output_dir)
        longest = (cfg.SOLVER.MAX_ITER - 1) // 2
        if args.every > longest:
            raise ValueError(
                f"--every is {args.every}, but a training with SOLVER.MAX_ITER {cfg.SOLVER.MAX_ITER} has the three "
                f"records that `shares` needs with at most {longest}"
            )
        if not find_lines(args.results, settings_of(cfg), cell.seed):
            line = record(cell, args.every, args.output_dir)
            with open(args.results, "a", encoding="utf-8") as f:
                f.write(json.dumps(line) + "\n")


def find_lines(file: str, settings: dict[str, Any], seed: int | None = None) -> list[Line]:
    """The lines of a configuration, of one seed or of all."""
    return [
        line
        for line in read_lines(file)
        if identity(line["settings"]) == identity(settings) and seed in (None, line["seed"])
    ]


def print_shares(args: Namespace) -> str:
    """A row for each cell. Each number is that of the first, the second and the last third of the records.

    Raises:
        ValueError: no cell has a line.
    """
    body, found = [], []
    for config in cells.with_baselines(args.config):
        lines = find_lines(args.results, settings_of(cells.load(config, args.opts)))
        found += lines
        if lines:
            body.append([cells.stem(config), str(len(lines)), *_columns(lines)])
    if not body:
        raise ValueError(f"{args.results} has no line of {', '.join(args.config)}.")
    headers = ["", "seeds", "loss_cls", "of all losses, %", "loss_mask"]
    for part in ("backbone", "box head"):
        headers += [f"gradient in the {part}", f"of gradients in the {part}, %"]
    headers += ["near: proposals, %", "near: loss_cls, %", "near: its gradient, %"]
    table = tabulate(body, headers, tablefmt="github", disable_numparse=True)
    devices, versions, every = (
        " and ".join(sorted({str(value(line)) for line in found}))
        for value in (
            lambda line: line["device"],
            lambda line: line["versions"]["torch"],
            lambda line: line["every"],
        )
    )
    return f"{table}\n\nA record every {every} iterations; device {devices}, torch {versions}."


def _columns(lines: Sequence[Line]) -> list[str]:
    def thirds(digits: int, value: Any) -> str:
        means = [
            np.mean([np.mean([value(r) for r in part]) for part in parts])
            for parts in zip(*(np.array_split(line["metrics"], 3) for line in lines), strict=True)
        ]
        return " / ".join(f"{mean:.{digits}f}" for mean in means)

    def share(terms: dict[str, float]) -> float:
        return 100 * terms["loss_cls"] / sum(terms.values())

    def near(record: dict[str, Any], name: str) -> float:
        groups = record["proposals"]
        return 100 * groups["near"][name] / sum(group[name] for group in groups.values())

    return [
        thirds(2, lambda r: r["losses"]["loss_cls"]),
        thirds(0, lambda r: share(r["losses"])),
        thirds(2, lambda r: r["losses"]["loss_mask"]),
        *(
            column
            for part in ("backbone", "box_head")
            for column in (
                thirds(2, lambda r, p=part: r["gradients"][p]["loss_cls"]),
                thirds(0, lambda r, p=part: share(r["gradients"][p])),
            )
        ),
        *(thirds(0, lambda r, n=name: near(r, n)) for name in ("number", "loss", "gradient")),
    ]
