#!/usr/bin/env python
"""Prints a table of the parameters, multiply-adds and times of the pyramids and Detectron2's FPN.

    python tools/compare_pyramids.py
    python tools/compare_pyramids.py --device cuda

The inputs have the shapes that a ResNet-50 computes from an image that is padded as in Detectron2's
models. On the CPU, times are CPU times of one thread, because other processes change them less than
the time on the clock. On a GPU they are times on the clock, from a call to its result. The pyramids
take turns in one process, and the table has the median of the turns.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from detectron2.modeling import build_backbone
from detectron2.utils.analysis import FlopCountAnalysis
from tabulate import tabulate
from torch import nn

from mrcnn_plugin import get_cfg
from mrcnn_plugin.engine import processor

# For each row: its name in the table, MODEL.BACKBONE.NAME, and other keys and values.
VARIANTS = [
    ("FPN of Detectron2", "build_resnet_fpn_backbone", []),
    *[
        (
            f"UpsampleFPN, {upsample}",
            "build_mrcnn_resnet_upsample_fpn_backbone",
            ["MODEL.FPN.UPSAMPLE", upsample],
        )
        for upsample in ("nearest", "mean", "bilinear", "bicubic", "carafe")
    ],
    ("PAFPN", "build_mrcnn_resnet_pafpn_backbone", []),
    ("BiFPN", "build_mrcnn_resnet_bifpn_backbone", []),
    (
        "BiFPN, full convolutions",
        "build_mrcnn_resnet_bifpn_backbone",
        ["MODEL.MRCNN_PLUGIN.BIFPN.DEPTHWISE", False],
    ),
]


class Case(NamedTuple):
    """A module and its input."""

    name: str
    module: nn.Module
    x: Any

    def forward(self) -> None:
        with torch.no_grad():
            self.module(self.x)

    def forward_and_backward(self) -> None:
        torch.stack([level.sum() for level in self.module(self.x).values()]).sum().backward()
        self.module.zero_grad()
        if isinstance(self.x, dict):
            for features in self.x.values():
                features.grad = None


def build_cases(height: int, width: int, channels: int, device: str = "cpu") -> list[Case]:
    cases: list[Case] = []
    for name, builder, opts in VARIANTS:
        cfg = get_cfg()
        cfg.MODEL.BACKBONE.NAME = builder
        cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
        cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
        cfg.MODEL.FPN.OUT_CHANNELS = channels
        cfg.merge_from_list(opts)
        pyramid = build_backbone(cfg).to(device)
        resnet, pyramid.bottom_up = pyramid.bottom_up, nn.Identity()
        multiple = pyramid.size_divisibility
        h, w = (math.ceil(side / multiple) * multiple for side in (height, width))
        if not cases:
            image = torch.randn(1, 3, h, w, device=device)
            cases.append(Case("ResNet-50, below each", resnet, image))
        features = {
            level: torch.randn(
                1, s.channels, h // s.stride, w // s.stride, device=device, requires_grad=True
            )
            for level, s in resnet.output_shape().items()
        }
        cases.append(Case(name, pyramid, features))
    return cases


def count_multiply_adds(case: Case) -> int:
    """Counts the convolutions and the reassembly of CARAFE."""
    counter = FlopCountAnalysis(case.module, case.x)
    counts = counter.unsupported_ops_warnings(False).by_operator()
    return counts["conv"] + counts["addcmul"]


def gpu_clock() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def median_seconds(
    functions: Sequence[Callable[[], None]], turns: int, clock: Callable[[], float]
) -> list[float]:
    """Returns the median time of each function over some turns, after one turn of warm-up."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(turns + 1):
        for function, record in zip(functions, times, strict=True):
            start = clock()
            function()
            record.append(clock() - start)
    return [statistics.median(record[1:]) for record in times]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--height", type=int, default=800, help="height of the image in pixels (800)"
    )
    parser.add_argument(
        "--width", type=int, default=1216, help="width of the image in pixels (1216)"
    )
    parser.add_argument("--channels", type=int, default=256, help="channels of the pyramid (256)")
    parser.add_argument(
        "--turns", type=int, default=5, help="number of measurements of each row (5)"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where to run (cpu)"
    )
    args = parser.parse_args(argv)
    is_cpu = args.device == "cpu"
    if not (is_cpu or torch.cuda.is_available()):
        parser.error("--device cuda: torch finds no CUDA GPU")
    if args.turns < 1:
        parser.error(f"--turns {args.turns}: must be at least 1")
    torch.set_num_threads(1)
    cases = build_cases(args.height, args.width, args.channels, args.device)
    clock = time.process_time if is_cpu else gpu_clock
    forward = median_seconds([c.forward for c in cases], args.turns, clock)
    training = median_seconds([c.forward_and_backward for c in cases], args.turns, clock)
    factor, digits, unit = (1, 2, "CPU s") if is_cpu else (1e3, 1, "ms")
    table = tabulate(
        [
            [
                case.name,
                f"{sum(p.numel() for p in case.module.parameters()) / 1e6:.2f}",
                f"{count_multiply_adds(case) / 1e9:.1f}",
                f"{seconds * factor:.{digits}f}",
                f"{seconds_of_training * factor:.{digits}f}",
            ]
            for case, seconds, seconds_of_training in zip(cases, forward, training, strict=True)
        ],
        headers=[
            "",
            "parameters, M",
            "multiply-adds, G",
            f"forward, {unit}",
            f"forward and backward, {unit}",
        ],
        tablefmt="github",
        disable_numparse=True,
    )
    print(table)
    options = " ".join(f"--{name} {value}" for name, value in vars(args).items())
    print(
        f"\n`python tools/compare_pyramids.py {options}`, torch {torch.__version__}, "
        f"{processor(args.device)}"
    )


if __name__ == "__main__":
    main()
