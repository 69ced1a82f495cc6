#!/usr/bin/env python
"""Times mrcnn_plugin's bicubic RoIAlign against the bilinear one of torchvision and Detectron2.

The operator is compared with torchvision's, and a whole pooler and a Mask R-CNN with Detectron2's,
which is always bilinear. Both run in one process, in turn, on the same boxes; a figure is the
median of all turns. On a GPU, `ours_ms` is the time of a call's kernels, and `ours_wall_ms` that
from the call to its result. Prints tables; with --output, also writes FOLDER/roi_align_DEVICE.json
and .png.

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
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import matplotlib
import torch
import torch.nn.functional as F
import torchvision
from tabulate import tabulate
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import mrcnn_plugin
from mrcnn_plugin.layers import roi_align
from mrcnn_plugin.layers.roi_align_reference import axis_matrix

IMAGE_HEIGHT, IMAGE_WIDTH, BATCH, CHANNELS = 800, 1216, 2, 256
# Boxes, shortest and longest side in pixels, stride of the map: as Detectron2 assigns boxes to the levels p2, p3, p4.
LEVELS = [(512, 16, 112, 4), (512, 112, 224, 8), (256, 224, 448, 16)]
SIZES = [7, 14]
# dtypes of the features, and whether they are channels_last.
KINDS = {
    "cpu": [(torch.float32, False)],
    "cuda": [(d, last) for d in (torch.float32, torch.float16) for last in (False, True)],
}

# The whole pooler: strides of p2 to p5, sides of its boxes, and (bins, boxes of an image, images).
STRIDES = [4, 8, 16, 32]
LOW, HIGH = 16, 600
POOLINGS = {
    "cpu": [(7, 512, 2), (14, 128, 2)],
    "cuda": list(itertools.product(SIZES, (100, 1000), (1, 2))),
}
OUR_POOLERS = ["ROIAlignBicubic", "ROIAlignBilinear"]

COLORS = ["#1f6fb4", "#e07b1a", "#8ab8de", "#f2bd8c"]

# Inputs of a GPU's calls rotate among so many bytes, more than its caches hold.
COLD_BYTES = 150_000_000
# Calls that the profiler takes together.
CALLS = 12

Row = Dict[str, Any]
Functions = Dict[str, Callable[[], Any]]
# What a section finds, one after the other: where it stands in the JSON file, its title, and itself.
Findings = Iterator[Tuple[str, str, Any]]


def random_boxes(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """[count, 4] anywhere on the image; the logarithms of their sides are uniform."""
    extent = torch.tensor([IMAGE_WIDTH, IMAGE_HEIGHT])
    sides = torch.rand(count, 2, generator=generator) * math.log(high / low)
    sides = sides.exp() * low
    corner = torch.rand(count, 2, generator=generator) * (extent - sides)
    return torch.cat([corner, corner + sides], dim=1)


def rotating(tensor: Tensor) -> Iterator[Tensor]:
    """`tensor` for ever; on a GPU in turn with copies, so that no cache holds the next one."""
    copies = math.ceil(COLD_BYTES / max(tensor.nbytes, 1)) if tensor.is_cuda else 0
    return itertools.cycle([tensor, *(tensor.clone() for _ in range(copies))])


def in_turn(calls: Sequence[Callable[[], Any]]) -> Callable[[], Any]:
    """A function that makes another one of the calls each time."""
    turn = itertools.cycle(calls)
    return lambda: next(turn)()


def our_backward(
    grad: Tensor,
    boxes: Tensor,
    scale: float,
    shape: Sequence[int],
    sampling_ratio: int,
) -> Tensor:
    """What autograd calls for the gradient of a map of the shape [N, C, H, W]."""
    n, _, h, w = shape
    (gradient,) = torch.ops.mrcnn_plugin.roi_align_backward(
        grad, boxes, None, [scale], n, [h], [w], [True], sampling_ratio, True, "bicubic", -0.5
    )
    return gradient


class Case:
    """Features, boxes and a gradient of one level of the workload."""

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
        # torchvision wants boxes of the features' dtype, which half precision cannot hold.
        boxes = self.boxes.to(self.features.dtype)
        return {
            "ours": lambda: roi_align(next(features), self.boxes, *options),
            "theirs": lambda: torchvision.ops.roi_align(next(features), boxes, *options),
        }

    def forward_under_autocast(self) -> Functions:
        """torchvision's runs in float32 there, and its result is converted back."""
        features = rotating(self.features)
        options = (self.boxes, self.size, self.scale, self.sampling_ratio, True)

        def theirs() -> Tensor:
            pooled = torchvision.ops.roi_align(next(features).float(), *options)
            return pooled.to(self.features.dtype)

        return {**self.forward(), "theirs": theirs}

    def backward(self) -> Functions:
        shape = self.features.shape
        grads = rotating(self.grad)
        options = (self.sampling_ratio, True)
        boxes = self.boxes.to(self.grad.dtype)
        sizes = (self.size, self.size, *shape)
        theirs = torch.ops.torchvision._roi_align_backward
        return {
            "ours": lambda: our_backward(
                next(grads), self.boxes, self.scale, shape, self.sampling_ratio
            ),
            "theirs": lambda: theirs(next(grads), boxes, self.scale, *sizes, *options),
        }

    def passes(self) -> Dict[str, Functions]:
        return {"forward": self.forward(), "backward": self.backward()}


def taps(case: Case) -> Tuple[Tensor, Tensor]:
    """Which rows and columns of the map each bin reads. [K, size, height], [K, size, width]."""
    _, x1, y1, x2, y2 = case.boxes.unbind(1)
    options = (case.size, case.scale, case.sampling_ratio, True, "bicubic", -0.5)
    rows, columns = (
        axis_matrix(low, high, pixels, *options) != 0
        for low, high, pixels in ((y1, y2, case.height), (x1, x2, case.width))
    )
    return rows, columns


def multiply_adds(case: Case) -> int:
    """How many the two passes need, in either direction."""
    is_tap_y, is_tap_x = taps(case)
    columns = is_tap_x.any(dim=1).sum(dim=1)
    per_roi = is_tap_y.sum(dim=(1, 2)) * columns + case.size * is_tap_x.sum(dim=(1, 2))
    return int(per_roi.sum()) * case.features.shape[1]


def least_traffic(case: Case) -> Dict[str, int]:
    """Bytes that a pass has to move: those pixels that a box reads, once, or all of their gradient,
    and the bins."""
    rows, columns = (is_tap.any(dim=1).float() for is_tap in taps(case))
    images = [case.boxes[:, 0] == image for image in range(BATCH)]
    pixels = sum(int((rows[of].T @ columns[of]).count_nonzero()) for of in images)
    read = pixels * case.features[0, :, 0, 0].nbytes
    return {
        "forward": read + case.grad.nbytes,
        "backward": case.features.nbytes + case.grad.nbytes,
    }


def grid_sample_roi_align(features: Tensor, boxes: Tensor, size: int, scale: float) -> Tensor:
    """Bicubic RoIAlign of 2 x 2 samples a bin as one would write it today. [K, C, size, size]."""
    height, width = features.shape[2:]
    pooled = features.new_empty(len(boxes), features.shape[1], size, size)
    steps = (torch.arange(2 * size, device=boxes.device) + 0.5) / (2 * size)
    for image in range(features.shape[0]):
        indices = (boxes[:, 0] == image).nonzero()[:, 0]
        x1, y1, x2, y2 = (boxes[indices, 1:] * scale - 0.5).T[..., None]
        # grid_sample's coordinates: -1 and 1 are the centres of the corner pixels.
        x = (x1 + (x2 - x1) * steps).clamp(0, width - 1) * 2 / (width - 1) - 1
        y = (y1 + (y2 - y1) * steps).clamp(0, height - 1) * 2 / (height - 1) - 1
        for k, grid_x, grid_y in zip(indices.tolist(), x, y, strict=True):
            grid = torch.stack(torch.meshgrid(grid_x, grid_y, indexing="xy"), dim=-1)
            samples = F.grid_sample(
                features[image : image + 1],
                grid[None],
                mode="bicubic",
                padding_mode="border",
                align_corners=True,
            )
            pooled[k] = F.avg_pool2d(samples, 2)[0]
    return pooled


def milliseconds(functions: Functions, seconds: float, device: str) -> Dict[str, float]:
    """The median time of each function. All take turns for at least `seconds` and five turns."""

    def run(function: Callable[[], Any]) -> float:
        start = time.perf_counter()
        result = function()
        if device == "cuda":
            torch.cuda.synchronize()
        elapsed = time.perf_counter() - start
        del result
        return elapsed * 1e3

    times: Dict[str, List[float]] = {name: [] for name in functions}
    for function in functions.values():
        run(function)
    end = time.perf_counter() + seconds
    turns = 0
    while turns < 5 or time.perf_counter() < end:
        for name, function in functions.items():
            times[name].append(run(function))
        turns += 1
    return {name: statistics.median(values) for name, values in times.items()}


def gpu_milliseconds(functions: Functions, seconds: float) -> Dict[str, float]:
    """The GPU time of each function, of all its kernels: a median of means over some calls. All take turns for at
    least `seconds` and one turn."""
    times: Dict[str, List[float]] = {name: [] for name in functions}
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
            # Events of the host may have the time of what they launch, too.
            kernels = [e for e in profiler.key_averages() if e.device_type == DeviceType.CUDA]
            times[name].append(sum(e.self_device_time_total for e in kernels) / CALLS / 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def with_ratio(row: Row, times: Dict[str, float], kind: str = "") -> Row:
    ours, theirs = times["ours"], times["theirs"]
    return {
        **row,
        f"ours_{kind}ms": ours,
        f"theirs_{kind}ms": theirs,
        f"{kind}ratio": theirs / ours,
    }


def timed(row: Row, functions: Functions, seconds: float, device: str) -> Row:
    """`row` with the times of "ours" and "theirs"; on a GPU, of its kernels and of the clock."""
    if device == "cpu":
        return with_ratio(row, milliseconds(functions, seconds, device))
    row = with_ratio(row, gpu_milliseconds(functions, seconds / 2))
    return with_ratio(row, milliseconds(functions, seconds / 2, device), "wall_")


def keep_freed_memory() -> None:
    """From now on freed memory is reused, so that no new pages are touched. Linux with glibc only."""
    mmap_max, trim_threshold = -4, -1  # names of malloc.h
    libc = ctypes.CDLL(None)
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, 2**31 - 1)


def extra_memory(function: Callable[[], Tensor]) -> float:
    """MiB that a call needs at its peak beyond its result. Linux with glibc only."""

    def status(key: str) -> int:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(key))

    function()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    result = function()
    return (status("VmHWM") - before) / 1024 - result.nbytes / 2**20


def main_cases(device: str, seconds: float, dtype: torch.dtype, channels_last: bool) -> List[Row]:
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


def geometric_means(rows: List[Row]) -> List[Row]:
    """Of the ratios of each pass, dtype and layout, with the smallest of them."""
    keys = ("pass", "dtype", "layout")
    groups: Dict[Tuple[str, ...], List[float]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row["ratio"])
    return [
        {
            **dict(zip(keys, group, strict=True)),
            "geometric_mean": math.exp(statistics.fmean(map(math.log, ratios))),
            "smallest": min(ratios),
        }
        for group, ratios in groups.items()
    ]


def copy_rate(device: str, seconds: float) -> float:
    """Gigabytes that a copy reads and writes in a second, or megabytes in a millisecond."""
    a, b = torch.empty(2, 2**28 if device == "cuda" else 2**25, device=device)
    copy = {"copy": lambda: b.copy_(a)}
    times = (
        gpu_milliseconds(copy, seconds) if device == "cuda" else milliseconds(copy, seconds, device)
    )
    return 2 * a.nbytes / 1e6 / times["copy"]


def floors(rows: List[Row], rate: float) -> List[Row]:
    """The time that the least traffic of each main case takes at the rate of a copy."""
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


def arithmetic(rows: List[Row], device: str, seconds: float) -> List[Row]:
    """The time that the multiply-adds of each main case would take at the rate of `torch.mm`."""
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


def growth(device: str, seconds: float) -> Dict[str, List[Row]]:
    """How time grows, from 7 x 7 bins of 512 boxes on stride 8."""
    count, low, high, stride = LEVELS[1]
    results: Dict[str, List[Row]] = {}

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


def growth_with_threads(seconds: float) -> List[Row]:
    """Each operator by itself, not in turn with the other: torchvision's has one thread, and for as
    long as it runs, those of ours would fall asleep."""
    count, low, high, stride = LEVELS[1]
    case = Case(count, low, high, stride, 7, "cpu")
    rows = []
    before = torch.get_num_threads()
    for number in sorted({2**i for i in range(10) if 2**i < os.cpu_count()} | {os.cpu_count()}):
        torch.set_num_threads(number)
        for pass_name, functions in case.passes().items():
            times: Dict[str, float] = {}
            for name, function in functions.items():
                times.update(milliseconds({name: function}, seconds, "cpu"))
            rows.append(with_ratio({"pass": pass_name, "threads": number}, times))
    torch.set_num_threads(before)
    return rows


def others(device: str, seconds: float) -> List[Row]:
    """Other layouts, dtypes and shapes, and what one would write without this package."""
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
                # torchvision has no such kernel there; its float32 one is what one would run instead.
                plain = Case(count, low, high, stride, 7, device)
                pair["theirs"] = plain.passes()[pass_name]["theirs"]
            rows.append(timed({"what": f"{name}, {pass_name}"}, pair, seconds, device))
    one = Case(1, low, high, 16, 7, device)
    one.features = one.features[:1, :, :25, :38].contiguous()
    one.boxes = torch.tensor([[0.0, 40.0, 50.0, 200.0, 180.0]], device=device)
    row = {"what": "one box on a map of 25 x 38, forward"}
    rows.append(timed(row, one.forward(), seconds, device))
    for level in LEVELS:
        case = Case(*level, 7, device)
        sizes = (case.size, case.scale)
        ours = roi_align(case.features, case.boxes, *sizes, 2, True, a=-0.75)
        torch.testing.assert_close(
            grid_sample_roi_align(case.features, case.boxes, *sizes), ours, atol=1e-3, rtol=0
        )
        pair = {
            "ours": lambda c=case, s=sizes: roi_align(c.features, c.boxes, *s, 2, True, a=-0.75),
            "theirs": lambda c=case, s=sizes: grid_sample_roi_align(c.features, c.boxes, *s),
        }
        row = {"what": f"bicubic grid_sample, 2 x 2 samples, stride {level[3]}, forward"}
        rows.append(timed(row, pair, seconds, device))
    return rows


def pooler_of(pooler_type: str, size: int) -> Any:
    """Detectron2's pooler of the type ROIAlignV2, or one of ours."""
    from detectron2.modeling.poolers import ROIPooler

    from mrcnn_plugin.modeling import MultiscaleROIPooler

    pooler = MultiscaleROIPooler if pooler_type in OUR_POOLERS else ROIPooler
    return pooler(size, [1 / stride for stride in STRIDES], 0, pooler_type)


def pooler_passes(pooler: Any, boxes: List[Any], pyramids: List[List[Tensor]]) -> Functions:
    """Forward keeps what backward needs, as in training; backward is that of all maps."""
    pooled = [pooler(maps, boxes) for maps in pyramids]
    grad = torch.ones_like(pooled[0])
    return {
        "forward": in_turn([partial(pooler, maps, boxes) for maps in pyramids]),
        "backward": in_turn(
            [
                partial(torch.autograd.grad, output, maps, grad, retain_graph=True)
                for output, maps in zip(pooled, pyramids, strict=True)
            ]
        ),
    }


@torch.enable_grad()
def pooler_cases(device: str, seconds: float, pooler_type: str) -> List[Row]:
    from detectron2.structures import Boxes

    rows = []
    for size, count, images in POOLINGS[device]:
        generator = torch.Generator().manual_seed(0)
        boxes = [Boxes(random_boxes(count, LOW, HIGH, generator).to(device)) for _ in range(images)]
        shapes = [(images, CHANNELS, IMAGE_HEIGHT // s, IMAGE_WIDTH // s) for s in STRIDES]
        # Two pyramids are more than the caches of a GPU hold.
        pyramids = [
            [torch.randn(shape, device=device, requires_grad=True) for shape in shapes]
            for _ in range(1 if device == "cpu" else 2)
        ]
        ours, theirs = (
            pooler_passes(pooler_of(name, size), boxes, pyramids)
            for name in (pooler_type, "ROIAlignV2")
        )
        for name in ours:
            row = {
                "pass": name,
                "pooler": pooler_type,
                "size": size,
                "boxes": count,
                "images": images,
            }
            functions = {"ours": ours[name], "theirs": theirs[name]}
            rows.append(timed(row, functions, seconds, device))
    return rows


def mask_rcnn(device: str) -> Any:
    """Stock R50-FPN. Random weights need batch normalisation all over, which takes some time of its own."""
    from detectron2 import model_zoo
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    cfg = get_cfg()
    name = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
    cfg.merge_from_file(model_zoo.get_config_file(name))
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE, cfg.INPUT.MASK_FORMAT = "", device, "bitmask"
    cfg.MODEL.RESNETS.NORM, cfg.MODEL.BACKBONE.FREEZE_AT = "BN", 0
    torch.manual_seed(0)
    model = build_model(cfg)
    # So that there are as many detections as it may return: no class is probable otherwise.
    model.roi_heads.box_predictor.cls_score.bias.data[0] = 4
    return model


def training_batch(device: str, objects: int = 16) -> List[Dict[str, Any]]:
    """Random images; the masks of their objects fill the boxes."""
    from detectron2.structures import BitMasks, Boxes, Instances

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
    """MiB on the GPU."""
    torch.cuda.reset_peak_memory_stats()
    function()
    return torch.cuda.max_memory_allocated() / 2**20


def model_cases(device: str, seconds: float) -> List[Row]:
    """A training iteration and inference of Mask R-CNN, of which only the poolers differ."""
    from detectron2.utils.events import EventStorage

    model, batch = mask_rcnn(device), training_batch(device)
    heads = model.roi_heads
    half = torch.float16 if device == "cuda" else torch.bfloat16
    ours, theirs = (
        [pooler_of(pooler_type, size) for size in (7, 14)]
        for pooler_type in (OUR_POOLERS[0], "ROIAlignV2")
    )

    def use(poolers: List[Any]) -> None:
        heads.box_pooler, heads.mask_pooler = poolers
        # What training draws by chance is the same.
        torch.manual_seed(0)

    @torch.enable_grad()
    def train(poolers: List[Any], amp: bool) -> None:
        use(poolers)
        model.zero_grad(set_to_none=True)
        with EventStorage(), torch.autocast(device, half, enabled=amp):
            loss = sum(model(batch).values())
        loss.backward()

    def infer(poolers: List[Any], amp: bool) -> Any:
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
        # Pooling is a small part of it.
        row = with_ratio(row, milliseconds(functions, 5 * seconds, device))
        if device == "cuda":
            row.update({f"{name}_mib": peak_memory(f) for name, f in functions.items()})
        rows.append(row)
    return rows


@contextlib.contextmanager
def deterministic_algorithms() -> Iterator[None]:
    """Without torch's filling of every new tensor, which would be timed, too."""
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
    """Forward and backward where gradients have to have the same bits in each run. torchvision's operator is then
    another one, which is compiled, and needs memory for all samples."""
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
        # Of many kinds: there is no compiler, or not enough memory.
        except Exception as error:
            return {**row, "error": f"{type(error).__name__}: {error}".splitlines()[0][:120]}


def processor(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        with open("/proc/cpuinfo") as file:
            return next(
                line.split(":")[1].strip() for line in file if line.startswith("model name")
            )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def cases_section(device: str, seconds: float) -> Findings:
    rows = []
    for dtype, channels_last in KINDS[device]:
        found = main_cases(device, seconds, dtype, channels_last)
        yield "cases", "Bicubic ours, bilinear torchvision, results in new memory", found
        rows += found
    yield "geometric_means", "Ratios of these cases", geometric_means(rows)
    rate = copy_rate(device, seconds)
    yield "copy", "What a copy reads and writes", {"gb_per_s": rate}
    yield "floors", "What has to be moved, and the time of as large a copy", floors(rows, rate)
    if device == "cpu":
        title = "Multiply-adds, and the time of as many in torch.mm"
        yield "arithmetic", title, arithmetic(rows, device, seconds)


def others_section(device: str, seconds: float) -> Findings:
    title = "Other inputs, 512 boxes on stride 8 where nothing is said"
    yield "others", title, others(device, seconds)


def growth_section(device: str, seconds: float) -> Findings:
    for name, rows in growth(device, seconds).items():
        yield f"growth/{name}", f"Growth with {name}", rows


def pooler_section(device: str, seconds: float) -> Findings:
    for pooler_type in OUR_POOLERS:
        title = f"Pooler of p2 to p5: {pooler_type} ours, ROIAlignV2 Detectron2"
        yield "pooler", title, pooler_cases(device, seconds, pooler_type)


def model_section(device: str, seconds: float) -> Findings:
    title = f"Mask R-CNN R50-FPN, {BATCH} images: {OUR_POOLERS[0]} ours, ROIAlignV2 Detectron2"
    yield "model", title, model_cases(device, seconds)


def deterministic_section(device: str, seconds: float) -> Findings:
    # What torchvision needs for adaptive sampling may be more memory than there is.
    for sampling_ratio in (2, 0):
        title = "Forward and backward with deterministic algorithms"
        yield "deterministic", title, [deterministic_case(device, seconds, sampling_ratio)]


def memory_section(device: str, seconds: float) -> Findings:
    """On the CPU, with glibc. The last one, since it changes how memory is allocated."""
    extra = {
        f"{name}, stride {level[3]}": extra_memory(functions["ours"])
        for level in LEVELS
        for name, functions in Case(*level, 14, device).passes().items()
    }
    yield "extra_memory_mib", "MiB beyond the result, 14 x 14", extra
    keep_freed_memory()
    rows = main_cases(device, seconds, *KINDS[device][0])
    yield "warm", "Results in memory that was used before", rows


SECTIONS: Dict[str, Callable[[str, float], Findings]] = {
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


def bar_panels(report: Dict[str, Any]) -> Dict[str, Dict[str, Dict[str, float]]]:
    """The ratios of each panel of the figure, by series (colour) and label."""
    panels: Dict[str, Dict[str, Dict[str, float]]] = {}

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


def plot_bars(axis: Any, title: str, series: Dict[str, Dict[str, float]]) -> None:
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


def plot_growth(axis: Any, name: str, rows: List[Row]) -> None:
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


def plot(report: Dict[str, Any], path: Path) -> None:
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    bars, growth = bar_panels(report), report.get("growth", {})
    drawings = [partial(plot_bars, title=title, series=series) for title, series in bars.items()]
    drawings += [partial(plot_growth, name=name, rows=rows) for name, rows in growth.items()]
    if not drawings:
        return
    columns = min(len(drawings), 3)
    lines = math.ceil(len(drawings) / columns)
    size = (6 * columns, 4 * lines)
    figure, axes = plt.subplots(lines, columns, figsize=size, layout="constrained", squeeze=False)
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


def parse_arguments(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--sections",
        nargs="+",
        choices=SECTIONS,
        metavar="NAME",
        help=f"of {', '.join(SECTIONS)}, in this order (default: those of the device); what is "
        "written holds these sections only",
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--seconds", type=float, help="per measurement (default: 1, on a GPU 0.4)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="write the results here")
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
        parser.error("--sections memory: only on the CPU, and with glibc")
    return arguments


@torch.no_grad()
def main(argv: Optional[Sequence[str]] = None) -> None:
    arguments = parse_arguments(argv)
    device = arguments.device
    torch.set_num_threads(arguments.threads)
    report: Dict[str, Any] = {
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
            # A section may find the rows of a table one after the other.
            place[name] = place.get(name, []) + found if isinstance(found, list) else found
            show(title, found)
            if arguments.output:
                stem.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
        print(f"\n{section}: {time.perf_counter() - start:.0f} s since the start", flush=True)
    if arguments.output:
        plot(report, stem.with_suffix(".png"))
        print(f"\nWrote {stem}.json and {stem}.png")


if __name__ == "__main__":
    main()
