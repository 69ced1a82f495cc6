#!/usr/bin/env python
"""Times mrcnn_plugin's bicubic RoIAlign against torchvision's bilinear one.

Both run in one process, in turn, on the same boxes; a figure is the median of all turns. Prints tables; with --output,
also writes FOLDER/roi_align_DEVICE.json and .png.

    python tools/benchmark_roi_align.py --output docs/results
"""

import argparse
import ctypes
import json
import math
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence

import matplotlib
import torch
import torch.nn.functional as F
import torchvision
from tabulate import tabulate
from torch import Tensor

import mrcnn_plugin
from mrcnn_plugin.layers import roi_align
from mrcnn_plugin.layers.roi_align_reference import axis_matrix

IMAGE_HEIGHT, IMAGE_WIDTH, BATCH, CHANNELS = 800, 1216, 2, 256
# Boxes, shortest and longest side in pixels, stride of the map: as Detectron2 assigns boxes to the levels p2, p3, p4.
LEVELS = [(512, 16, 112, 4), (512, 112, 224, 8), (256, 224, 448, 16)]
SIZES = [7, 14]

Functions = Dict[str, Callable[[], Any]]


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

        extent = torch.tensor([IMAGE_WIDTH, IMAGE_HEIGHT])
        sides = torch.rand(num_rois, 2, generator=generator) * math.log(high / low)
        sides = sides.exp() * low
        corner = torch.rand(num_rois, 2, generator=generator) * (extent - sides)
        image = torch.arange(num_rois)[:, None] % BATCH
        self.boxes = torch.cat([image, corner, corner + sides], dim=1).to(
            device, torch.float64 if dtype == torch.float64 else torch.float32
        )
        self.height, self.width = IMAGE_HEIGHT // stride, IMAGE_WIDTH // stride
        self.features = normal(BATCH, channels, self.height, self.width)
        self.grad = normal(num_rois, channels, size, size)
        self.size, self.scale, self.sampling_ratio = size, 1 / stride, sampling_ratio

    def forward(self) -> Functions:
        options = (self.boxes, self.size, self.scale, self.sampling_ratio, True)
        # torchvision wants boxes of the features' dtype, which half precision cannot hold.
        theirs = (self.boxes.to(self.features.dtype), *options[1:])
        return {
            "ours": lambda: roi_align(self.features, *options),
            "theirs": lambda: torchvision.ops.roi_align(self.features, *theirs),
        }

    def backward(self) -> Functions:
        n, c, h, w = self.features.shape
        ours = torch.ops.mrcnn_plugin.roi_align_backward
        theirs = torch.ops.torchvision._roi_align_backward
        boxes = self.boxes.to(self.grad.dtype)
        return {
            "ours": lambda: ours(
                self.grad,
                self.boxes,
                self.scale,
                n,
                h,
                w,
                self.sampling_ratio,
                True,
                "bicubic",
                -0.5,
            ),
            "theirs": lambda: theirs(
                self.grad,
                boxes,
                self.scale,
                self.size,
                self.size,
                n,
                c,
                h,
                w,
                self.sampling_ratio,
                True,
            ),
        }


def multiply_adds(case: Case) -> int:
    """How many the two passes need, in either direction."""
    _, x1, y1, x2, y2 = case.boxes.unbind(1)
    options = (case.size, case.scale, case.sampling_ratio, True, "bicubic", -0.5)
    is_tap_x = axis_matrix(x1, x2, case.width, *options) != 0
    is_tap_y = axis_matrix(y1, y2, case.height, *options) != 0
    columns = is_tap_x.any(dim=1).sum(dim=1)
    per_roi = is_tap_y.sum(dim=(1, 2)) * columns + case.size * is_tap_x.sum(dim=(1, 2))
    return int(per_roi.sum()) * case.features.shape[1]


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


def with_ratio(row: Dict[str, Any], times: Dict[str, float]) -> Dict[str, Any]:
    ours, theirs = times["ours"], times["theirs"]
    return {**row, "ours_ms": ours, "theirs_ms": theirs, "ratio": theirs / ours}


def geometric_mean(ratios: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


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


def main_cases(device: str, seconds: float, **options: Any) -> List[Dict[str, Any]]:
    rows = []
    for size in SIZES:
        for level in LEVELS:
            case = Case(*level, size, device, **options)
            name = {"size": size, "stride": level[3], "rois": level[0]}
            for pass_name, functions in (
                ("forward", case.forward()),
                ("backward", case.backward()),
            ):
                times = milliseconds(functions, seconds, device)
                rows.append(with_ratio({"pass": pass_name, **name}, times))
    return rows


def arithmetic(rows: List[Dict[str, Any]], device: str, seconds: float) -> List[Dict[str, Any]]:
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


def growth(device: str, seconds: float) -> Dict[str, List[Dict[str, Any]]]:
    """How time grows, from 7 x 7 bins of 512 boxes on stride 8."""
    count, low, high, stride = LEVELS[1]
    results: Dict[str, List[Dict[str, Any]]] = {}

    def measure(name: str, value: int, case: Case) -> None:
        for pass_name, functions in (("forward", case.forward()), ("backward", case.backward())):
            times = milliseconds(functions, seconds, device)
            results.setdefault(name, []).append(with_ratio({"pass": pass_name, name: value}, times))

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


def growth_with_threads(seconds: float) -> List[Dict[str, Any]]:
    """Each operator by itself, not in turn with the other: torchvision's has one thread, and for as
    long as it runs, those of ours would fall asleep."""
    count, low, high, stride = LEVELS[1]
    case = Case(count, low, high, stride, 7, "cpu")
    rows = []
    before = torch.get_num_threads()
    for number in sorted({2**i for i in range(10) if 2**i < os.cpu_count()} | {os.cpu_count()}):
        torch.set_num_threads(number)
        for pass_name, functions in (("forward", case.forward()), ("backward", case.backward())):
            times: Dict[str, float] = {}
            for name, function in functions.items():
                times.update(milliseconds({name: function}, seconds, "cpu"))
            rows.append(with_ratio({"pass": pass_name, "threads": number}, times))
    torch.set_num_threads(before)
    return rows


def others(device: str, seconds: float) -> List[Dict[str, Any]]:
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
        functions = {"forward": case.forward(), "backward": case.backward()}
        for pass_name, pair in functions.items():
            if name.endswith("16") and device == "cpu":
                # torchvision has no such kernel there; its float32 one is what one would run instead.
                plain = Case(count, low, high, stride, 7, device)
                pair["theirs"] = getattr(plain, pass_name)()["theirs"]
            times = milliseconds(pair, seconds, device)
            rows.append(with_ratio({"what": f"{name}, {pass_name}"}, times))
    one = Case(1, low, high, 16, 7, device)
    one.features = one.features[:1, :, :25, :38].contiguous()
    one.boxes = torch.tensor([[0.0, 40.0, 50.0, 200.0, 180.0]], device=device)
    rows.append(
        with_ratio(
            {"what": "one box on a map of 25 x 38, forward"},
            milliseconds(one.forward(), seconds, device),
        )
    )
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
        rows.append(with_ratio(row, milliseconds(pair, seconds, device)))
    return rows


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


def print_table(title: str, rows: List[Dict[str, Any]]) -> None:
    print(f"\n{title}")
    print(tabulate(rows, headers="keys", floatfmt=("g",) * (len(rows[0]) - 3) + (".2f",) * 3))


def plot(report: Dict[str, Any], path: Path) -> None:
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colors = {"forward": "#1f6fb4", "backward": "#e07b1a"}
    growth = report["growth"]
    figure, axes = plt.subplots(
        1,
        1 + len(growth),
        figsize=(18, 4),
        layout="constrained",
        width_ratios=[2.2] + [1] * len(growth),
    )
    rows = report["cases"]
    for i, name in enumerate(colors):
        values = [row["ratio"] for row in rows if row["pass"] == name]
        positions = [j + (i - 0.5) * 0.4 for j in range(len(values))]
        bars = axes[0].bar(positions, values, 0.38, label=name, color=colors[name])
        axes[0].bar_label(bars, fmt="%.1f", fontsize=8)
    labels = [
        f"{r['size']}×{r['size']}\nstride {r['stride']}" for r in rows if r["pass"] == "forward"
    ]
    axes[0].set_xticks(range(len(labels)), labels, fontsize=7)
    axes[0].axhline(1, color="black", linewidth=0.8)
    axes[0].set_ylabel("torchvision bilinear time / our bicubic time")
    axes[0].legend(frameon=False)
    for axis, (name, values) in zip(axes[1:], growth.items(), strict=True):
        for pass_name, color in colors.items():
            chosen = [row for row in values if row["pass"] == pass_name]
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
    axes[1].legend(frameon=False, fontsize=7)
    about = report["environment"]
    figure.suptitle(
        f"RoIAlign, {CHANNELS} channels, batch {BATCH}, {IMAGE_HEIGHT}×{IMAGE_WIDTH} images, float32, "
        f"adaptive sampling. "
        f"{about['processor']}, {about['threads']} thread(s), torch {about['torch']}",
        fontsize=10,
    )
    figure.savefig(path, dpi=110)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--seconds", type=float, default=1.0, help="per measurement (default: 1)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="write the results here")
    arguments = parser.parse_args()
    if arguments.threads < 1:
        parser.error(f"--threads {arguments.threads}: must be at least 1")
    if not arguments.seconds > 0:
        parser.error(f"--seconds {arguments.seconds}: must be positive")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA GPU")
    return arguments


@torch.no_grad()
def main() -> None:
    arguments = parse_arguments()
    device, seconds = arguments.device, arguments.seconds
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
    print(tabulate(report["environment"].items(), tablefmt="plain"))

    def add(key: str, title: str, rows: List[Dict[str, Any]]) -> None:
        report[key] = rows
        print_table(title, rows)

    add(
        "cases",
        "Bicubic ours, bilinear torchvision, results in new memory",
        main_cases(device, seconds),
    )
    report["geometric_means"] = {
        name: geometric_mean([row["ratio"] for row in report["cases"] if row["pass"] == name])
        for name in ("forward", "backward")
    }
    print("\ngeometric mean of the ratios:", report["geometric_means"])
    add(
        "arithmetic",
        "Multiply-adds, and the time of as many in torch.mm",
        arithmetic(report["cases"], device, seconds),
    )
    add(
        "others",
        "Other inputs, 512 boxes on stride 8 where nothing is said",
        others(device, seconds),
    )
    report["growth"] = growth(device, seconds)
    for name, rows in report["growth"].items():
        print_table(f"Growth with {name}", rows)
    if device == "cpu" and platform.libc_ver()[0] == "glibc":
        report["extra_memory_mib"] = {
            f"{name}, stride {level[3]}": extra_memory(
                getattr(Case(*level, 14, device), name)()["ours"]
            )
            for level in LEVELS
            for name in ("forward", "backward")
        }
        print("\nMiB beyond the result, 14 x 14:", report["extra_memory_mib"])
        keep_freed_memory()
        add("warm", "Results in memory that was used before", main_cases(device, seconds))
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
        stem = arguments.output / f"roi_align_{device}"
        stem.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
        plot(report, stem.with_suffix(".png"))
        print(f"\nWrote {stem}.json and {stem}.png")


if __name__ == "__main__":
    main()
