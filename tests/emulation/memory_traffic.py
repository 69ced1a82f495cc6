"""Counts what the CUDA kernels ask of global memory, by running them in the emulation.

python -m tests.emulation.memory_traffic > docs/results/cuda_memory_traffic.md
"""

import sys
from typing import Any, Dict, List

import torch
from tabulate import tabulate

from tests import emulation
from tests.conftest import load_tool

# Counts per channel do not change beyond a block's channels, at most 32.
CHANNELS = 32
TEXT = """\
# What the CUDA kernels ask of global memory

Counted in the emulation of the kernels on the CPU (`python -m tests.emulation.memory_traffic`); **nothing was run on a
GPU**, and counts are not times. The workload is that of the benchmark, float32, with {channels} channels: images of
{width} x {height}, batch {batch}, bicubic with adaptive sampling. Numbers are per element of the pooled output. Loads
include those of weights and of what describes bins and RoIs, but not the writing of the weights, which is done once per
RoI for all channels.

torchvision's kernels (bilinear) load 4 values per sample and output in forward, and add 4 atomically per sample in
backward; the number of samples follows from the boxes.

{table}

* forward, backward: loads, or loads and atomic additions, per output element.
* gather: the deterministic backward. Its stores are one per pixel of the map; torchvision has no such kernel.
"""


def samples_per_bin(case: Any) -> float:
    """torchvision's samples of a bin, on average over the boxes."""
    sides = (case.boxes[:, 3:] - case.boxes[:, 1:3]) * case.scale
    return float(torch.ceil(sides / case.size).prod(dim=1).mean())


def count(benchmark: Any, level: Any, size: int, channels_last: bool) -> Dict[str, Any]:
    ops = emulation.load()
    case = benchmark.Case(
        *level, size, "cpu", channels=CHANNELS, channels_last=channels_last, sampling_ratio=0
    )
    options = (0, True, "bicubic", -0.5)
    outputs = case.grad.numel()

    def counters() -> List[float]:
        return [value / outputs for value in ops.counters()]

    counters()
    ops.roi_align(case.features, case.boxes, case.scale, size, size, *options)
    forward = counters()
    shape = (case.features.shape[0], case.height, case.width)
    ops.roi_align_backward(case.grad, case.boxes, case.scale, *shape, *options)
    atomic = counters()
    torch.use_deterministic_algorithms(True)
    ops.roi_align_backward(case.grad, case.boxes, case.scale, *shape, *options)
    torch.use_deterministic_algorithms(False)
    gather = counters()
    samples = samples_per_bin(case)
    return {
        "bins": f"{size} x {size}",
        "stride": level[3],
        "layout": "channels_last" if channels_last else "NCHW",
        "forward loads": forward[0],
        "torchvision's": 4 * samples,
        "backward loads": atomic[0],
        "atomics": atomic[2],
        "torchvision's atomics": 4 * samples,
        "gather loads": gather[0],
        "gather stores": gather[1],
    }


def main() -> None:
    benchmark = load_tool("benchmark_roi_align")
    rows = []
    for size in benchmark.SIZES:
        for level in benchmark.LEVELS:
            for channels_last in (False, True):
                rows.append(count(benchmark, level, size, channels_last))
                print(rows[-1], file=sys.stderr)
    print(
        TEXT.format(
            channels=CHANNELS,
            width=benchmark.IMAGE_WIDTH,
            height=benchmark.IMAGE_HEIGHT,
            batch=benchmark.BATCH,
            table=tabulate(rows, headers="keys", tablefmt="github", floatfmt=".2f"),
        ),
        end="",
    )


if __name__ == "__main__":
    main()
