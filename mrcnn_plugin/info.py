"""python -m mrcnn_plugin.info: what a bug report needs, and a self-test of a few seconds.

The exit status is 1 if the self-test fails. The report names folders of the machine; read it before you publish it.
"""

import argparse
import importlib.util
import os
import platform
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from importlib import metadata
from importlib.machinery import EXTENSION_SUFFIXES

import detectron2
import torch
import torchvision.ops
from detectron2.utils.collect_env import collect_env_info
from tabulate import tabulate
from torch.utils.cpp_extension import CUDA_HOME

from . import __version__
from .layers import roi_align

OPERATORS = ("roi_align", "roi_align_backward")

# Environment variables that this package reads, or that change what it does.
VARIABLES = (
    "DETECTRON2_ENV_MODULE",
    "MRCNN_PLUGIN_CONFIG",
    "MRCNN_PLUGIN_DATASETS",
    "MRCNN_PLUGIN_ALLOW_UNSAFE_YAML",
    "DETECTRON2_DATASETS",
    "FVCORE_CACHE",
    "ATEN_CPU_CAPABILITY",
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
)


def describe_detectron2() -> list[tuple[str, str]]:
    names = sorted(set(metadata.packages_distributions().get("detectron2", [])))
    distributions = [f"{name} {metadata.version(name)}" for name in names]
    has_extension = importlib.util.find_spec("detectron2._C") is not None
    return [
        ("Detectron2", os.path.dirname(detectron2.__file__)),
        ("Detectron2's distribution", ", ".join(distributions) or "none: it was not installed"),
        ("detectron2._C", "there" if has_extension else "missing; this package does not need it"),
    ]


def find_extension() -> str | None:
    """The path of the extension, which need not be one that can be imported."""
    folder = os.path.dirname(os.path.abspath(__file__))
    paths = [os.path.join(folder, f"_C{suffix}") for suffix in EXTENSION_SUFFIXES]
    return next(filter(os.path.isfile, paths), None)


def built_for(file: str) -> str:
    """The version of torch that an extension was compiled with, as csrc/ops.cpp writes it."""
    with open(file, "rb") as f:
        found = re.search(rb"mrcnn_plugin for torch (\d[\w.+]*)", f.read())
    return found[1].decode() if found else "unknown (built before it was recorded)"


def architectures(file: str) -> str:
    """The GPUs that an extension has machine code for, such as "sm_80, sm_90".

    `detect_compute_compatibility` of Detectron2 takes sm_100 for 1.0.0, and finds no cuobjdump but that
    of CUDA_HOME. The packages of torch for CUDA bring one along in triton.
    """
    triton = importlib.util.find_spec("triton")
    folders = [CUDA_HOME] + [
        os.path.join(folder, "backends", "nvidia")
        for folder in (triton and triton.submodule_search_locations) or []
    ]
    tools = [os.path.join(folder, "bin", "cuobjdump") for folder in folders if folder]
    for tool in filter(os.path.isfile, tools):
        try:
            output = subprocess.check_output(
                [tool, "--list-elf", file], text=True, stderr=subprocess.STDOUT
            )
        except (OSError, subprocess.CalledProcessError):
            continue
        codes = sorted(set(re.findall(r"\.sm_(\d+)", output)), key=int)
        return ", ".join(f"sm_{code}" for code in codes) or "no GPU"
    return "unknown architectures (cuobjdump was not found)"


def describe_extension() -> list[tuple[str, str]]:
    file = find_extension()
    if file is None:
        return [("extension", "none: it was not built; RoIAlign runs in PyTorch, which is slower")]
    here = torch.__version__.partition("+")[0]
    rows = [("extension", file), ("built for torch", f"{built_for(file)}; this is {here}")]
    try:
        importlib.import_module("mrcnn_plugin._C")
    except ImportError as error:
        return [*rows, ("loaded", f"no: {error}; RoIAlign runs in PyTorch, which is slower")]
    # The choice that best_kernels() of csrc/cpu/roi_align_cpu.cpp makes.
    capability = torch.backends.cpu.get_cpu_capability()
    avx2 = platform.machine() == "x86_64" and capability in ("AVX2", "AVX512")
    has_cuda = all(
        torch._C._dispatch_has_kernel_for_dispatch_key(f"mrcnn_plugin::{name}", "CUDA")
        for name in OPERATORS
    )
    kernels = f"for {architectures(file)}" if has_cuda else "none: built for the CPU only"
    return [
        *rows,
        ("loaded", "yes"),
        ("CPU instruction set", f"{'AVX2' if avx2 else 'default'} (that of torch: {capability})"),
        ("CUDA kernels", kernels),
    ]


def _check_like_torchvision(device: str) -> None:
    """Bilinear RoIAlign and its gradient equal torchvision's."""
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(2, 8, 25, 38, generator=generator).to(device)
    corners = torch.rand(20, 2, 2, generator=generator) * torch.tensor([160.0, 110.0])
    boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
    rois = torch.cat([torch.arange(20.0)[:, None] % 2, boxes], dim=1).to(device)
    weights = torch.rand(20, 8, 7, 7, generator=generator).to(device)

    def pooled_and_gradient(pool: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        maps = features.clone().requires_grad_()
        pooled = pool(maps)
        return [pooled.detach(), *torch.autograd.grad((pooled * weights).sum(), [maps])]

    ours = pooled_and_gradient(
        lambda maps: roi_align(maps, rois, 7, 0.25, interpolation="bilinear")
    )
    theirs = pooled_and_gradient(
        lambda maps: torchvision.ops.roi_align(maps, rois, 7, 0.25, aligned=True)
    )
    for name, actual, expected in zip(("values", "gradients"), ours, theirs, strict=True):
        difference = (actual - expected).abs().max().item()
        # Not less than 1e-4, so that a NaN fails too.
        if not difference < 1e-4:
            raise ArithmeticError(f"the {name} differ by {difference:.1e}")


def _check_bicubic(device: str) -> None:
    """Bicubic RoIAlign returns a linear ramp at the centres of the bins."""
    ramp = torch.arange(16.0, device=device).expand(1, 1, 16, 16)
    boxes = torch.tensor([[3.0, 4.0, 11.0, 12.0]], device=device)
    centres = torch.tensor([3.5, 5.5, 7.5, 9.5], device=device)
    torch.testing.assert_close(roi_align(ramp, [boxes], 4), centres.expand(1, 1, 4, 4))


CHECKS: dict[str, Callable[[str], None]] = {
    "bilinear RoIAlign and its gradient, like torchvision's": _check_like_torchvision,
    "bicubic RoIAlign of a linear ramp": _check_bicubic,
}


def run_self_test() -> list[tuple[str, str, str]]:
    """Runs every check on the CPU, and on a GPU if torch sees one.

    Returns:
        Rows (device, check, "passed" or what went wrong).
    """
    rows = []
    for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
        for name, check in CHECKS.items():
            try:
                check(device)
                result = "passed"
            # Whatever goes wrong belongs into the report.
            except Exception as error:
                result = f"FAILED: {type(error).__name__}: {error}"
            rows.append((device, name, result))
    return rows


def main() -> int:
    about = [
        ("mrcnn_plugin", f"{__version__} @{os.path.dirname(os.path.abspath(__file__))}"),
        ("CUDA of torch", torch.version.cuda or "none: torch is built without CUDA"),
    ]
    print(tabulate(about + describe_detectron2() + describe_extension()), flush=True)
    print("Environment variables")
    print(tabulate((name, os.environ.get(name, "<not set>")) for name in VARIABLES), flush=True)
    print("Detectron2's report (detectron2.utils.collect_env)")
    print(collect_env_info(), flush=True)
    print("Self-test")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "loaded" says it above
        results = run_self_test()
    print(tabulate(results), flush=True)
    return 0 if all(result == "passed" for *_, result in results) else 1


if __name__ == "__main__":
    # Without options this only answers --help.
    argparse.ArgumentParser("python -m mrcnn_plugin.info", description=__doc__).parse_args()
    sys.exit(main())
