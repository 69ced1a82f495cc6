#!/usr/bin/env python
"""Times our bicubic RoIAlign and the bilinear ones of torchvision and Detectron2.

The operator is compared with torchvision's. The whole pooler, and a Mask R-CNN with it, is compared
with Detectron2's. Both sides run in one process, in turn, on the same boxes, and a figure is the
median of all turns. On a GPU, `ours_ms` is the time of a call's kernels, and `ours_wall_ms` is the
time from the call to its result. The tool prints tables. With --output it also writes
FOLDER/roi_align_DEVICE.json and FOLDER/roi_align_DEVICE.png.

    python tools/benchmark_roi_align.py --output docs/results
    python tools/benchmark_roi_align.py --device cuda --sections cases pooler
"""

import argparse
import contextlib
import ctypes
import itertools
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torchvision
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from matplotlib.figure import Figure
from tabulate import tabulate
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import mrcnn_plugin
from mrcnn_plugin.engine import processor
from mrcnn_plugin.layers import roi_align
from mrcnn_plugin.layers.roi_align import pool
from mrcnn_plugin.layers.roi_align_reference import axis_matrix
from mrcnn_plugin.modeling import MultiscaleROIPooler

IMAGE_HEIGHT, IMAGE_WIDTH, BATCH, CHANNELS = 800, 1216, 2, 256
# The number of boxes, their shortest and longest side in pixels, and the stride of the map.
# Detectron2 would assign boxes of these sides to the levels p2, p3 and p4.
LEVELS = [(512, 16, 112, 4), (512, 112, 224, 8), (256, 224, 448, 16)]
SIZES = [7, 14]
# The dtypes of the features, and whether they are channels_last.
KINDS = {
    "cpu": [(torch.float32, False)],
    "cuda": [(d, last) for d in (torch.float32, torch.float16) for last in (False, True)],
}

# For the whole pooler: the strides of p2 to p5, the shortest and longest side of its boxes, and its
# cases (bins, boxes of an image, images).
STRIDES = [4, 8, 16, 32]
LOW, HIGH = 16, 600
POOLINGS = {
    "cpu": [(7, 512, 2), (14, 128, 2)],
    "cuda": list(itertools.product(SIZES, (100, 1000), (1, 2))),
}
OUR_POOLERS = ["ROIAlignBicubic", "ROIAlignBilinear"]

COLORS = ["#1f6fb4", "#e07b1a", "#8ab8de", "#f2bd8c"]

# Calls on a GPU use copies of their input in turn. These have more bytes than the caches hold.
COLD_BYTES = 150_000_000
# Turns that a measurement on the host takes at least.
LEAST_TURNS = 5
# The profiler records so many calls at a time.
CALLS = 12

Row = dict[str, Any]
Functions = dict[str, Callable[[], Any]]
# The results of a section: for each, the place in the JSON file, the title, and the value.
Findings = Iterator[tuple[str, str, Any]]


def random_boxes(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Returns boxes [count, 4] anywhere on the image. The logarithms of their sides are uniform."""
    extent = torch.tensor([IMAGE_WIDTH, IMAGE_HEIGHT])
    sides = torch.rand(count, 2, generator=generator) * math.log(high / low)
    sides = sides.exp() * low
    corner = torch.rand(count, 2, generator=generator) * (extent - sides)
    return torch.cat([corner, corner + sides], dim=1)


def rotating(tensor: Tensor) -> Iterator[Tensor]:
    """Yields `tensor` for ever. On a GPU it alternates with copies, so that no cache holds the next."""
    copies = math.ceil(COLD_BYTES / max(tensor.nbytes, 1)) if tensor.is_cuda else 0
    return itertools.cycle([tensor, *(tensor.clone() for _ in range(copies))])


def in_turn(calls: Sequence[Callable[[], Any]]) -> Callable[[], Any]:
    """Returns a function that makes the next of the calls each time."""
    turn = itertools.cycle(calls)
    return lambda: next(turn)()


class Case:
    """The features, boxes and gradient of one level."""

    def __init__(
        self,
        num_rois: int,
        low: float,
        high: float,
        stride: int,
        size: int,
        device: str,
        channels: int = CHANNELS,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        sampling_ratio: int = 0,
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        format = torch.channels_last if channels_last else torch.contiguous_format

        def normal(*shape: int) -> Tensor:
            values = torch.randn(*shape, generator=generator).to(device, dtype)
            return values.contiguous(memory_format=format)

        boxes = random_boxes(num_rois, low, high, generator)
        image = torch.arange(num_rois)[:, None] % BATCH
        self.boxes = torch.cat([image, boxes], dim=1).to(
            device, torch.float64 if dtype == torch.float64 else torch.float32
        )
        self.height, self.width = IMAGE_HEIGHT // stride, IMAGE_WIDTH // stride
        self.features = normal(BATCH, channels, self.height, self.width)
        self.grad = normal(num_rois, channels, size, size)
        self.size, self.scale, self.sampling_ratio = size, 1 / stride, sampling_ratio

    def forward(self) -> Functions:
        features = rotating(self.features)
        options = (self.size, self.scale, self.sampling_ratio, True)
        # torchvision needs boxes of the features' dtype, although half precision rounds them.
        boxes = self.boxes.to(self.features.dtype)
        return {
            "ours": lambda: roi_align(next(features), self.boxes, *options),
            "theirs": lambda: torchvision.ops.roi_align(next(features), boxes, *options),
        }

    def forward_under_autocast(self) -> Functions:
        """As forward, but torchvision's operator runs in float32 and its result is converted back."""
        features = rotating(self.features)
        options = (self.boxes, self.size, self.scale, self.sampling_ratio, True)

        def theirs() -> Tensor:
            pooled = torchvision.ops.roi_align(next(features).float(), *options)
            return pooled.to(self.features.dtype)

        return {**self.forward(), "theirs": theirs}

    def backward(self) -> Functions:
        n, c, h, w = self.features.shape
        grads = rotating(self.grad)
        options = (self.sampling_ratio, True)
        boxes = self.boxes.to(self.grad.dtype)
        sizes = (self.size, self.size, n, c, h, w)
        # As autograd calls them.
        our_map = (None, [self.scale], n, [h], [w], [True])
        ours = torch.ops.mrcnn_plugin.roi_align_backward
        theirs = torch.ops.torchvision._roi_align_backward
        return {
            "ours": lambda: ours(next(grads), self.boxes, *our_map, *options, "bicubic", -0.5)[0],
            "theirs": lambda: theirs(next(grads), boxes, self.scale, *sizes, *options),
        }

    def passes(self) -> dict[str, Functions]:
        return {"forward": self.forward(), "backward": self.backward()}


def taps(case: Case) -> tuple[Tensor, Tensor]:
    """Returns which rows and columns each bin reads, [K, size, height] and [K, size, width]."""
    _, x1, y1, x2, y2 = case.boxes.unbind(1)
    options = (case.size, case.scale, case.sampling_ratio, True, "bicubic", -0.5)
    rows, columns = (
        axis_matrix(low, high, pixels, *options) != 0
        for low, high, pixels in ((y1, y2, case.height), (x1, x2, case.width))
    )
    return rows, columns


def multiply_adds(case: Case) -> int:
    """Counts the multiply-adds of a forward or backward pass, which are the same."""
    is_tap_y, is_tap_x = taps(case)
    columns = is_tap_x.any(dim=1).sum(dim=1)
    per_roi = is_tap_y.sum(dim=(1, 2)) * columns + case.size * is_tap_x.sum(dim=(1, 2))
    return int(per_roi.sum()) * case.features.shape[1]


def least_traffic(case: Case) -> dict[str, int]:
    """Returns the bytes that each pass has to move at least.

    Forward reads each pixel that a box reads once, and writes the bins. Backward reads the bins and
    writes the whole gradient.
    """
    rows, columns = (is_tap.any(dim=1).float() for is_tap in taps(case))
    images = [case.boxes[:, 0] == image for image in range(BATCH)]
    pixels = sum(int((rows[of].T @ columns[of]).count_nonzero()) for of in images)
    read = pixels * case.features[0, :, 0, 0].nbytes
    return {
        "forward": read + case.grad.nbytes,
        "backward": case.features.nbytes + case.grad.nbytes,
    }


def milliseconds(functions: Functions, seconds: float, device: str) -> dict[str, float]:
    """Measures the median time of each function. They take LEAST_TURNS turns or more, and `seconds`."""

    def run(function: Callable[[], Any]) -> float:
        start = time.perf_counter()
        result = function()
        if device == "cuda":
            torch.cuda.synchronize()
        elapsed = time.perf_counter() - start
        del result
        return elapsed * 1e3

    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        run(function)
    end = time.perf_counter() + seconds
    turns = 0
    while turns < LEAST_TURNS or time.perf_counter() < end:
        for name, function in functions.items():
            times[name].append(run(function))
        turns += 1
    return {name: statistics.median(values) for name, values in times.items()}


def gpu_milliseconds(functions: Functions, seconds: float) -> dict[str, float]:
    """Measures the GPU time of all kernels of each function, as a median of means over CALLS calls.

    The functions take at least one turn, and `seconds`.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    end = time.perf_counter() + seconds
    while not all(times.values()) or time.perf_counter() < end:
        for name, function in functions.items():
            torch.cuda.synchronize()
            with profile(activities=[ProfilerActivity.CUDA]) as profiler:
                for _ in range(CALLS):
                    function()
                torch.cuda.synchronize()
            # Events of the host may also contain the time of the kernels that they launch.
            kernels = [e for e in profiler.key_averages() if e.device_type == DeviceType.CUDA]
            times[name].append(sum(e.self_device_time_total for e in kernels) / CALLS / 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def with_ratio(row: Row, times: dict[str, float], kind: str = "") -> Row:
    ratio = times["theirs"] / times["ours"]
    return {
        **row,
        **{f"{name}_{kind}ms": time for name, time in times.items()},
        f"{kind}ratio": ratio,
    }


def measured(functions: Functions, seconds: float, device: str) -> dict[str, dict[str, float]]:
    """Measures the functions in turn: on a GPU, the time of the kernels and the clock ("wall_")."""
    if device == "cpu":
        return {"": milliseconds(functions, seconds, device)}
    return {
        "": gpu_milliseconds(functions, seconds / 2),
        "wall_": milliseconds(functions, seconds / 2, device),
    }


def timed(row: Row, functions: Functions, seconds: float, device: str) -> Row:
    """Adds the times of the functions and their ratio to `row`."""
    for kind, times in measured(functions, seconds, device).items():
        row = with_ratio(row, times, kind)
    return row


def keep_freed_memory() -> None:
    """Lets malloc keep freed memory, so that it touches no new pages. This works only with glibc."""
    mmap_max, trim_threshold = -4, -1  # names of malloc.h
    libc = ctypes.CDLL(None)
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, 2**31 - 1)
    # What follows is allocated from these 2 GiB, which have been touched and are freed at once.
    torch.ones(2**31, dtype=torch.uint8)


def extra_memory(function: Callable[[], Tensor]) -> float:
    """Measures the peak memory of a call beyond its result, in MiB. This works only with glibc."""

    def status(key: str) -> int:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(key))

    function()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    result = function()
    return (status("VmHWM") - before) / 1024 - result.nbytes / 2**20


def main_cases(device: str, seconds: float, dtype: torch.dtype, channels_last: bool) -> list[Row]:
    rows = []
    for size, level in itertools.product(SIZES, LEVELS):
        case = Case(*level, size, device, dtype=dtype, channels_last=channels_last)
        traffic = least_traffic(case)
        passes = case.passes()
        if dtype == torch.float16:
            passes["forward, autocast"] = case.forward_under_autocast()
        for name, functions in passes.items():
            row = {
                "pass": name,
                "dtype": str(dtype).removeprefix("torch."),
                "layout": "channels_last" if channels_last else "NCHW",
                "size": size,
                "stride": level[3],
                "rois": level[0],
                "mbyte": traffic[name.split(",")[0]] / 1e6,
            }
            rows.append(timed(row, functions, seconds, device))
    return rows


def geometric_means(rows: list[Row]) -> list[Row]:
    """Returns the geometric mean and the smallest ratio of each pass, dtype and layout."""
    keys = ("pass", "dtype", "layout")
    groups: dict[tuple[str, ...], list[float]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row["ratio"])
    return [
        {
            **dict(zip(keys, group, strict=True)),
            "geometric_mean": statistics.geometric_mean(ratios),
            "smallest": min(ratios),
        }
        for group, ratios in groups.items()
    ]


def copy_rate(device: str, seconds: float) -> float:
    """Measures the GB/s that a copy reads and writes, which equal MB/ms."""
    a, b = torch.empty(2, 2**28 if device == "cuda" else 2**25, device=device)
    copy = {"copy": lambda: b.copy_(a)}
    times = (
        gpu_milliseconds(copy, seconds) if device == "cuda" else milliseconds(copy, seconds, device)
    )
    return 2 * a.nbytes / 1e6 / times["copy"]


def floors(rows: list[Row], rate: float) -> list[Row]:
    """Returns how long the least traffic of each main case takes at the rate of a copy."""
    keys = ("pass", "dtype", "layout", "size", "stride", "mbyte")
    return [
        {
            **{key: row[key] for key in keys},
            "floor_ms": row["mbyte"] / rate,
            "ours_ms": row["ours_ms"],
            "share": row["mbyte"] / rate / row["ours_ms"],
        }
        for row in rows
        if row["pass"] in ("forward", "backward")
    ]


def arithmetic(rows: list[Row], device: str, seconds: float) -> list[Row]:
    """Returns how long the multiply-adds of each main case take at the rate of `torch.mm`."""
    size = 1024
    a, b = torch.randn(2, size, size, device=device)
    of_mm = milliseconds({"mm": lambda: torch.mm(a, b)}, seconds, device)["mm"]
    results = []
    for row in rows:
        level = next(level for level in LEVELS if level[3] == row["stride"])
        millions = multiply_adds(Case(*level, row["size"], device)) / 1e6
        limit = millions * 1e6 / size**3 * of_mm
        name = {key: row[key] for key in ("pass", "size", "stride")}
        results.append(
            {
                **name,
                "millions": millions,
                "limit_ms": limit,
                "ours_ms": row["ours_ms"],
                "share": limit / row["ours_ms"],
            }
        )
    return results


def growth(device: str, seconds: float) -> dict[str, list[Row]]:
    """Measures how time grows with one number of the case of 7 x 7 bins, 512 boxes and stride 8."""
    count, low, high, stride = LEVELS[1]
    results: dict[str, list[Row]] = {}

    def measure(name: str, value: int, case: Case) -> None:
        for pass_name, functions in case.passes().items():
            row = timed({"pass": pass_name, name: value}, functions, seconds, device)
            results.setdefault(name, []).append(row)

    for rois in (64, 128, 256, 512, 1024):
        measure("rois", rois, Case(rois, low, high, stride, 7, device))
    for channels in (64, 128, 256, 512):
        measure("channels", channels, Case(count, low, high, stride, 7, device, channels))
    for ratio in (1, 2, 3, 4, 6, 8):
        case = Case(count, low, high, stride, 7, device, sampling_ratio=ratio)
        measure("sampling_ratio", ratio, case)
    if device == "cpu":
        results["threads"] = growth_with_threads(seconds)
    return results


def growth_with_threads(seconds: float) -> list[Row]:
    """Measures how time shrinks with the number of threads.

    The operators do not take turns here. torchvision's has one thread, and our threads would fall
    asleep while it runs.
    """
    count, low, high, stride = LEVELS[1]
    case = Case(count, low, high, stride, 7, "cpu")
    rows = []
    before = torch.get_num_threads()
    for number in sorted({2**i for i in range(10) if 2**i < os.cpu_count()} | {os.cpu_count()}):
        torch.set_num_threads(number)
        for pass_name, functions in case.passes().items():
            times: dict[str, float] = {}
            for name, function in functions.items():
                times.update(milliseconds({name: function}, seconds, "cpu"))
            rows.append(with_ratio({"pass": pass_name, "threads": number}, times))
    torch.set_num_threads(before)
    return rows


def others(device: str, seconds: float) -> list[Row]:
    """Measures other layouts, dtypes and shapes."""
    rows = []
    count, low, high, stride = LEVELS[1]
    for name, options in {
        "channels_last": {"channels_last": True},
        "float64": {"dtype": torch.float64},
        "bfloat16": {"dtype": torch.bfloat16},
        "float16": {"dtype": torch.float16},
    }.items():
        case = Case(count, low, high, stride, 7, device, **options)
        for pass_name, pair in case.passes().items():
            if name.endswith("16") and device == "cpu":
                # torchvision has no half-precision kernel for the CPU, so one would use float32.
                plain = Case(count, low, high, stride, 7, device)
                pair["theirs"] = plain.passes()[pass_name]["theirs"]
            rows.append(timed({"what": f"{name}, {pass_name}"}, pair, seconds, device))
    one = Case(1, low, high, 16, 7, device)
    one.features = one.features[:1, :, :25, :38].contiguous()
    one.boxes = torch.tensor([[0.0, 40.0, 50.0, 200.0, 180.0]], device=device)
    row = {"what": "one box on a map of 25 x 38, forward"}
    rows.append(timed(row, one.forward(), seconds, device))
    return rows


def layouts(device: str, seconds: float) -> list[Row]:
    """Compares our operator on channels_last maps ("ours") with itself on NCHW maps ("theirs")."""
    rows = []
    for size, level in itertools.product(SIZES, LEVELS):
        last, plain = (
            Case(*level, size, device, channels_last=channels_last).passes()
            for channels_last in (True, False)
        )
        for name in plain:
            row = {"pass": name, "size": size, "stride": level[3]}
            pair = {"ours": last[name]["ours"], "theirs": plain[name]["ours"]}
            rows.append(timed(row, pair, seconds, device))
    return rows


def pooler_of(pooler_type: str, size: int) -> Any:
    """Returns one of our poolers, or Detectron2's for the type ROIAlignV2."""
    pooler = MultiscaleROIPooler if pooler_type in OUR_POOLERS else ROIPooler
    return pooler(size, [1 / stride for stride in STRIDES], 0, pooler_type)


def pooler_passes(pooler: Any, boxes: list[Any], pyramids: list[list[Tensor]]) -> Functions:
    """Returns the passes as in training: forward records the graph, and backward covers all maps."""
    pooled = [pooler(maps, boxes) for maps in pyramids]
    return {
        "forward": in_turn([partial(pooler, maps, boxes) for maps in pyramids]),
        "backward": in_turn(
            [
                partial(torch.autograd.grad, out, maps, torch.ones_like(out), retain_graph=True)
                for out, maps in zip(pooled, pyramids, strict=True)
            ]
        ),
    }


def operator_of(pooler: Any, boxes: list[Any], pyramids: list[list[Tensor]]) -> Callable[[], Any]:
    """Returns only the calls of the operator that our pooler makes."""
    calls = []
    for maps in pyramids:
        with mock.patch("mrcnn_plugin.modeling.poolers.pool", wraps=pool) as spy:
            pooler(maps, boxes)
        calls.append(partial(pool, *spy.call_args.args))
    return in_turn(calls)


@torch.enable_grad()
def pooler_cases(device: str, seconds: float) -> list[Row]:
    """Measures our poolers and Detectron2's in one set of turns, so that both have the same opponent."""
    rows = []
    for size, count, images in POOLINGS[device]:
        generator = torch.Generator().manual_seed(0)
        boxes = [Boxes(random_boxes(count, LOW, HIGH, generator).to(device)) for _ in range(images)]
        shapes = [(images, CHANNELS, IMAGE_HEIGHT // s, IMAGE_WIDTH // s) for s in STRIDES]
        # The caches of a GPU cannot hold two pyramids.
        pyramids = [
            [torch.randn(shape, device=device, requires_grad=True) for shape in shapes]
            for _ in range(1 if device == "cpu" else 2)
        ]
        poolers = {name: pooler_of(name, size) for name in (*OUR_POOLERS, "ROIAlignV2")}
        passes = {name: pooler_passes(one, boxes, pyramids) for name, one in poolers.items()}
        for pass_name in ("forward", "backward"):
            functions = {name: found[pass_name] for name, found in passes.items()}
            if pass_name == "forward":  # The pooler has no backward pass of its own.
                for name in OUR_POOLERS:
                    functions[f"{name}/operator"] = operator_of(poolers[name], boxes, pyramids)
            by_kind = measured(functions, seconds, device)
            for name in OUR_POOLERS:
                row: Row = {
                    "pass": pass_name,
                    "pooler": name,
                    "size": size,
                    "boxes": count,
                    "images": images,
                }
                for kind, times in by_kind.items():
                    shown = {"ours": times[name], "theirs": times["ROIAlignV2"]}
                    if pass_name == "forward":
                        shown["operator"] = times[f"{name}/operator"]
                    row = with_ratio(row, shown, kind)
                rows.append(row)
    return rows


def mask_rcnn(device: str) -> Any:
    """Returns a stock R50-FPN. Its weights are random, so batch normalisation is used everywhere."""
    cfg = get_cfg()
    name = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
    cfg.merge_from_file(model_zoo.get_config_file(name))
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE, cfg.INPUT.MASK_FORMAT = "", device, "bitmask"
    cfg.MODEL.RESNETS.NORM, cfg.MODEL.BACKBONE.FREEZE_AT = "BN", 0
    torch.manual_seed(0)
    model = build_model(cfg)
    # This makes one class probable, so that the model returns as many detections as it may.
    model.roi_heads.box_predictor.cls_score.bias.data[0] = 4
    return model


def training_batch(device: str) -> list[dict[str, Any]]:
    """Returns random images. The masks of their objects fill their boxes."""
    objects = 16
    generator = torch.Generator().manual_seed(0)
    size = (IMAGE_HEIGHT, IMAGE_WIDTH)
    batch = []
    for _ in range(BATCH):
        boxes = random_boxes(objects, LOW, HIGH, generator)
        masks = torch.zeros(objects, *size, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.long().tolist(), strict=True):
            mask[y1:y2, x1:x2] = True
        instances = Instances(
            size,
            gt_boxes=Boxes(boxes),
            gt_classes=torch.randint(80, (objects,), generator=generator),
            gt_masks=BitMasks(masks),
        )
        image = torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8)
        batch.append({"image": image.to(device), "instances": instances.to(device)})
    return batch


def peak_memory(function: Callable[[], Any]) -> float:
    """Returns the peak memory of a call on the GPU, in MiB."""
    torch.cuda.reset_peak_memory_stats()
    function()
    return torch.cuda.max_memory_allocated() / 2**20


def model_cases(device: str, seconds: float) -> list[Row]:
    """Measures a training iteration and inference of Mask R-CNN. Only the poolers differ."""
    model, batch = mask_rcnn(device), training_batch(device)
    heads = model.roi_heads
    half = torch.float16 if device == "cuda" else torch.bfloat16
    ours, theirs = (
        [pooler_of(pooler_type, size) for size in (7, 14)]
        for pooler_type in (OUR_POOLERS[0], "ROIAlignV2")
    )

    def use(poolers: list[Any]) -> None:
        heads.box_pooler, heads.mask_pooler = poolers
        # The random choices of training are the same for both.
        torch.manual_seed(0)

    @torch.enable_grad()
    def train(poolers: list[Any], amp: bool) -> None:
        use(poolers)
        model.zero_grad(set_to_none=True)
        with EventStorage(), torch.autocast(device, half, enabled=amp):
            loss = sum(model(batch).values())
        loss.backward()

    def infer(poolers: list[Any], amp: bool) -> Any:
        use(poolers)
        with torch.autocast(device, half, enabled=amp):
            return model(batch)

    rows = []
    for amp, (what, function) in itertools.product(
        (False, True), (("training iteration", train), ("inference", infer))
    ):
        model.train(function is train)
        functions: Functions = {
            "ours": partial(function, ours, amp),
            "theirs": partial(function, theirs, amp),
        }
        row = {"what": what, "precision": "AMP" if amp else "float32"}
        # Pooling is a small part of this time, so the measurement takes longer.
        row = with_ratio(row, milliseconds(functions, 5 * seconds, device))
        if device == "cuda":
            row.update({f"{name}_mib": peak_memory(f) for name, f in functions.items()})
        rows.append(row)
    return rows


@contextlib.contextmanager
def deterministic_algorithms() -> Iterator[None]:
    """Lets torch use deterministic algorithms, but not fill new tensors, which would take time."""
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = fill


@torch.enable_grad()
def deterministic_case(device: str, seconds: float, sampling_ratio: int) -> Row:
    """Measures forward and backward if gradients must have the same bits in every run.

    torchvision then uses another operator, which is compiled and needs memory for all samples.
    """
    case = Case(*LEVELS[2], 7, device, sampling_ratio=sampling_ratio)
    features = rotating(case.features.requires_grad_())
    options = (case.boxes, case.size, case.scale, case.sampling_ratio, True)

    def both(operator: Callable[..., Tensor]) -> Any:
        input = next(features)
        return torch.autograd.grad(operator(input, *options), input, case.grad)

    row: Row = {"size": case.size, "stride": LEVELS[2][3], "sampling_ratio": sampling_ratio}
    with deterministic_algorithms():
        start = time.perf_counter()
        try:
            both(torchvision.ops.roi_align)
            row["first_call_s"] = time.perf_counter() - start
            functions: Functions = {
                "ours": partial(both, roi_align),
                "theirs": partial(both, torchvision.ops.roi_align),
            }
            return timed(row, functions, seconds, device)
        # There may be no compiler or not enough memory, which raise many kinds of errors.
        except Exception as error:
            return {**row, "error": f"{type(error).__name__}: {error}".splitlines()[0][:120]}


def cases_section(device: str, seconds: float) -> Findings:
    rows = []
    for dtype, channels_last in KINDS[device]:
        found = main_cases(device, seconds, dtype, channels_last)
        yield (
            "cases",
            "Our bicubic operator and torchvision's bilinear one, results in new memory",
            found,
        )
        rows += found
    yield "geometric_means", "Ratios of these cases", geometric_means(rows)
    rate = copy_rate(device, seconds)
    yield "copy", "Rate at which a copy reads and writes", {"gb_per_s": rate}
    yield "floors", "Least memory traffic, and the time of a copy of that size", floors(rows, rate)
    if device == "cpu":
        title = "Multiply-adds, and the time that torch.mm takes for as many"
        yield "arithmetic", title, arithmetic(rows, device, seconds)


def others_section(device: str, seconds: float) -> Findings:
    title = "Other inputs, with 512 boxes and stride 8 unless given"
    yield "others", title, others(device, seconds)
    title = "Our operator on channels_last (ours) and on NCHW (theirs)"
    yield "layouts", title, layouts(device, seconds)


def growth_section(device: str, seconds: float) -> Findings:
    for name, rows in growth(device, seconds).items():
        yield f"growth/{name}", f"Time for each value of {name}", rows


def pooler_section(device: str, seconds: float) -> Findings:
    title = "Pooler of p2 to p5: ours and Detectron2's ROIAlignV2, results in new memory"
    yield "pooler", title, pooler_cases(device, seconds)


def model_section(device: str, seconds: float) -> Findings:
    title = f"Mask R-CNN R50-FPN, {BATCH} images: our {OUR_POOLERS[0]} and Detectron2's ROIAlignV2"
    yield "model", title, model_cases(device, seconds)


def deterministic_section(device: str, seconds: float) -> Findings:
    # torchvision may need more memory for adaptive sampling than there is.
    for sampling_ratio in (2, 0):
        title = "Forward and backward with deterministic algorithms"
        yield "deterministic", title, [deterministic_case(device, seconds, sampling_ratio)]


def memory_section(device: str, seconds: float) -> Findings:
    """Runs on the CPU with glibc. It has to be the last, since it changes how memory is allocated."""
    extra = {
        f"{name}, stride {level[3]}": extra_memory(functions["ours"])
        for level in LEVELS
        for name, functions in Case(*level, 14, device).passes().items()
    }
    yield "extra_memory_mib", "MiB beyond the result, 14 x 14", extra
    keep_freed_memory()
    rows = main_cases(device, seconds, *KINDS[device][0])
    yield "warm", "The same cases, results in memory that was used before", rows
    title = "Pooler of p2 to p5, results in memory that was used before"
    yield "warm_pooler", title, pooler_cases(device, seconds)


SECTIONS: dict[str, Callable[[str, float], Findings]] = {
    "cases": cases_section,
    "others": others_section,
    "growth": growth_section,
    "pooler": pooler_section,
    "model": model_section,
    "deterministic": deterministic_section,
    "memory": memory_section,
}
DEFAULT_SECTIONS = {
    "cpu": ["cases", "others", "growth", "pooler", "memory"],
    "cuda": ["cases", "pooler", "model", "deterministic"],
}


def show(title: str, found: Any) -> None:
    print(f"\n{title}")
    print(
        tabulate(found if isinstance(found, list) else [found], headers="keys", floatfmt=".4g"),
        flush=True,
    )


def bar_panels(report: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Returns the ratios of each panel of the figure, by series (which share a colour) and label."""
    panels: dict[str, dict[str, dict[str, float]]] = {}

    def add(panel: str, series: str, label: str, ratio: float) -> None:
        panels.setdefault(panel, {}).setdefault(series, {})[label] = ratio

    for row in report.get("cases", []):
        label = f"{row['size']}×{row['size']}\nstride {row['stride']}"
        add(f"operator, {row['dtype']}, {row['layout']}", row["pass"], label, row["ratio"])
    for row in report.get("pooler", []):
        label = f"{row['size']}×{row['size']}\n{row['images']}·{row['boxes']}\nboxes"
        add(f"{row['pooler']}, p2 to p5", row["pass"], label, row["ratio"])
        if "wall_ratio" in row:
            series = f"{row['pass']}, clock"
            add(f"{row['pooler']}, p2 to p5", series, label, row["wall_ratio"])
    for row in report.get("model", []):
        add("Mask R-CNN", row["what"], row["precision"], row["ratio"])
    return panels


def plot_bars(axis: Any, title: str, series: dict[str, dict[str, float]]) -> None:
    labels = list(next(iter(series.values())))
    width = 0.8 / len(series)
    for i, (name, ratios) in enumerate(series.items()):
        positions = [labels.index(label) + (i + 0.5) * width - 0.4 for label in ratios]
        bars = axis.bar(positions, ratios.values(), width * 0.95, label=name, color=COLORS[i])
        axis.bar_label(bars, fmt="%.3g", fontsize=7)
    axis.set_xticks(range(len(labels)), labels, fontsize=7)
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set_title(title, fontsize=9)
    axis.set_ylabel("bilinear time / our time")
    axis.legend(frameon=False, fontsize=7)


def plot_growth(axis: Any, name: str, rows: list[Row]) -> None:
    for pass_name, color in zip(("forward", "backward"), COLORS, strict=False):
        chosen = [row for row in rows if row["pass"] == pass_name]
        for key, style in (("ours_ms", "o-"), ("theirs_ms", "s--")):
            axis.plot(
                [row[name] for row in chosen],
                [row[key] for row in chosen],
                style,
                color=color,
                markersize=4,
                label=f"{'ours' if key == 'ours_ms' else 'torchvision'}, {pass_name}",
            )
    axis.set_xscale("log", base=2)
    axis.set_xticks([row[name] for row in chosen], [str(row[name]) for row in chosen])
    axis.minorticks_off()
    axis.set_yscale("log")
    axis.set_xlabel(name.replace("_", " "))
    axis.set_ylabel("ms")
    axis.legend(frameon=False, fontsize=7)


def plot(report: dict[str, Any], path: Path) -> bool:
    """Draws the sections that have something to draw, and returns whether there is one."""
    bars, growth = bar_panels(report), report.get("growth", {})
    drawings = [partial(plot_bars, title=title, series=series) for title, series in bars.items()]
    drawings += [partial(plot_growth, name=name, rows=rows) for name, rows in growth.items()]
    if not drawings:
        return False
    columns = min(len(drawings), 3)
    lines = math.ceil(len(drawings) / columns)
    figure = Figure(figsize=(6 * columns, 4 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    for axis in axes.flat[len(drawings) :]:
        axis.set_axis_off()
    for axis, draw in zip(axes.flat, drawings, strict=False):
        draw(axis)
    about = report["environment"]
    figure.suptitle(
        f"RoIAlign, {CHANNELS} channels, {IMAGE_HEIGHT}×{IMAGE_WIDTH} images, adaptive sampling.\n"
        f"{about['processor']}, {about['threads']} thread(s), torch {about['torch']}",
        fontsize=10,
    )
    figure.savefig(path, dpi=110)
    return True


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where to run (default: cpu)"
    )
    parser.add_argument(
        "--sections",
        nargs="+",
        choices=SECTIONS,
        metavar="NAME",
        help=f"sections to run, out of {', '.join(SECTIONS)}; they run in this order, and the output "
        "has only these (the default depends on the device)",
    )
    parser.add_argument("--threads", type=int, default=1, help="number of CPU threads (default: 1)")
    parser.add_argument(
        "--seconds", type=float, help="seconds per measurement (default: 1, or 0.4 on a GPU)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="folder for the results, which are otherwise only printed",
    )
    arguments = parser.parse_args(argv)
    if arguments.threads < 1:
        parser.error(f"--threads {arguments.threads}: must be at least 1")
    if arguments.seconds is None:
        arguments.seconds = 1.0 if arguments.device == "cpu" else 0.4
    if not arguments.seconds > 0:
        parser.error(f"--seconds {arguments.seconds}: must be positive")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA GPU")
    glibc = platform.libc_ver()[0] == "glibc"
    if arguments.sections is None:
        arguments.sections = list(DEFAULT_SECTIONS[arguments.device])
        if not glibc:
            arguments.sections.remove("memory")
    elif "memory" in arguments.sections and not (glibc and arguments.device == "cpu"):
        parser.error("--sections memory: this section needs --device cpu and glibc")
    return arguments


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    device = arguments.device
    torch.set_num_threads(arguments.threads)
    report: dict[str, Any] = {
        "environment": {
            "processor": processor(device),
            "threads": arguments.threads,
            "instruction_set": torch.backends.cpu.get_cpu_capability(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "mrcnn_plugin": mrcnn_plugin.__version__,
        }
    }
    print(tabulate(report["environment"].items(), tablefmt="plain"), flush=True)
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
        stem = arguments.output / f"roi_align_{device}"
    start = time.perf_counter()
    for section in filter(arguments.sections.__contains__, SECTIONS):
        for key, title, found in SECTIONS[section](device, arguments.seconds):
            *parents, name = key.split("/")
            place = report
            for parent in parents:
                place = place.setdefault(parent, {})
            # A section may yield the rows of a table in several parts.
            place[name] = place.get(name, []) + found if isinstance(found, list) else found
            show(title, found)
            if arguments.output:
                stem.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
        print(f"\n{section}: {time.perf_counter() - start:.0f} s since the start", flush=True)
    if arguments.output:
        drawn = plot(report, stem.with_suffix(".png"))
        print(f"\nWrote {stem}.json" + (f" and {stem}.png" if drawn else ""))


if __name__ == "__main__":
    main()
