"""Counts what the memory accesses of the CUDA kernels cost, without a GPU.

The kernels run on the emulation, on the benchmark's workload of 7 x 7 bins at stride 8 in float32. A
request is an access of a warp. The tool prints the 32-byte sectors of requests to global memory and
the wavefronts of requests to shared memory. The column `least` has the number that the same words
would take if they were neighbours. Nothing is measured: there are neither caches nor time.

`theirs` works as torchvision's operator does: a thread makes one bin and adds up the samples with
bilinear weights. It copies a channels_last map to NCHW first, which is not counted.

    python -m tests.emulation.costs
"""

import argparse
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from tabulate import tabulate

from tests.emulation import CSRC

FOLDER = Path(__file__).parent
CXX = os.environ.get("CXX", "c++")
# A copy of a Pack has to stay one access, and a loop that nvcc unrolls has to be unrolled.
FLAGS = ["-std=c++20", "-O2", "-fno-tree-sra", "-fno-tree-vectorize", "-fno-store-merging", "-w"]

# The kernels run on this part of the channels.
SHARE = 4


class Cost(NamedTuple):
    kernel: str
    memory: str  # "global" or "shared"
    array: str
    kind: str  # "r", "w", or "a" for an atomic addition
    bytes: int
    requests: int
    units: int
    least: int


def build(folder: Path) -> Path:
    """Compiles costs.cpp and the kernels into a program in `folder`."""
    sources = folder / "csrc"
    shutil.copytree(CSRC, sources)
    for file in (*FOLDER.glob("*.cpp"), *FOLDER.glob("*.h")):
        shutil.copy(file, sources)
    for file in filter(Path.is_file, sources.rglob("*")):
        # Fewer channels have fewer blocks, but should be treated as all of them.
        text = re.sub(r"(kFewBlocks = )(\d+)", rf"\g<1>\2 / {SHARE}", file.read_text())
        # Only float32 is counted, and the other types would take long to compile.
        text = re.sub(r"^MRCNN_INSTANTIATE\((?!float).*", "", text, flags=re.M)
        text = re.sub(r"#pragma unroll$", "#pragma GCC unroll 16", text, flags=re.M)
        file.write_text(re.sub(r"#pragma unroll (\d)", r"#pragma GCC unroll \1", text))
    include = Path(torch.__file__).parent / "include"
    compile = [CXX, *FLAGS, f"-I{sources}", "-isystem", include]
    program, kernels = folder / "costs", folder / "costs.o"
    for command in (
        [*compile, "-fsanitize=thread", "-c", sources / "costs.cpp", "-o", kernels],
        [*compile, kernels, sources / "costs_runtime.cpp", "-pthread", "-o", program],
    ):
        subprocess.run(command, check=True)
    return program


def run(program: Path, name: str, *arguments: object, boxes: bytes = b"") -> tuple[str, list[Cost]]:
    """Runs the program. Returns the line before the costs, which has a bin, and the costs."""
    command = [str(part) for part in (program, name, *arguments)]
    output = subprocess.run(command, input=boxes, stdout=subprocess.PIPE, check=True).stdout
    lines = [line.split("\t") for line in output.decode().splitlines()]
    costs = [Cost(*line[:4], *map(int, line[4:])) for line in lines if len(line) > 1]
    return lines[0][0], costs


def table(title: str, costs: Iterable[Cost], scale: int) -> list[list[object]]:
    """Returns a row for each kernel, memory, array and kind of access, in thousands.

    All costs are multiplied by `scale`, except those of the weights, which the channels share.
    """
    sums: dict[tuple[str, ...], list[int]] = {}
    for cost in costs:
        kernel = re.sub(r"\W*(\w+).*", r"\1", cost.kernel)
        if kernel == "theirs":
            kernel = "backward" if "true" in cost.kernel else "forward"
        key = (title, kernel.removesuffix("_kernel"), cost.memory, cost.array, cost.kind)
        total = sums.setdefault(key, [0, 0, 0])
        for i, number in enumerate((cost.requests, cost.units, cost.least)):
            total[i] += number * (1 if "taps" in kernel else scale)
    return [
        [*key, requests / 1e3, units / 1e3, units / requests, least / 1e3]
        for key, (requests, units, least) in sums.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.parse_args()
    # The tools folder is no package.
    import runpy

    benchmark = runpy.run_path(str(FOLDER.parents[1] / "tools/benchmark_roi_align.py"))
    level = benchmark["LEVELS"][1]
    case = benchmark["Case"](*level, 7, "cpu", channels=1)
    boxes = case.boxes.numpy().tobytes()
    channels = benchmark["CHANNELS"]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(folder))
        # These channels are a whole number of blocks of ours and warps of theirs. All channels
        # therefore cost a whole multiple.
        count = channels // SHARE
        for name, title, last in (
            ("ours", "ours, NCHW", 0),
            ("ours", "ours, channels_last", 1),
            ("theirs", "theirs", 0),
        ):
            sizes = (count, case.height, case.width, len(case.boxes), last, case.scale)
            rows += table(title, run(program, name, *sizes, boxes=boxes)[1], SHARE)
    headers = ["", "kernel", "memory", "array", "access"]
    headers += ["requests", "sectors or wavefronts", "per request", "least"]
    print(
        f"{len(case.boxes)} boxes, {channels} channels, {case.height} x {case.width}, in thousands"
    )
    print(tabulate(rows, headers, floatfmt=("", "", "", "", "", ".0f", ".0f", ".1f", ".0f")))


if __name__ == "__main__":
    main()
