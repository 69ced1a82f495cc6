"""Runs the source of the CUDA kernels on the CPU."""

import os
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "mrcnn_plugin/layers/csrc"


def load() -> Any:
    """Compiles binding.cpp into torch's folder for extensions, unless it has not changed.

    Returns:
        torch.ops.mrcnn_plugin_emulation with roi_align, roi_align_backward and set_block_order.
    """
    from torch.utils import cpp_extension

    # cpp_extension looks for ninja on PATH, but it may be installed only beside this Python.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    cpp_extension.load(
        name="mrcnn_plugin_emulation",
        sources=[str(ROOT / "tests/emulation/binding.cpp")],
        extra_include_paths=[str(CSRC), str(ROOT / "tests/emulation")],
        extra_cflags=["-O2", "-g0"],
        extra_ldflags=["-lstdc++"],  # as in setup.py
        is_python_module=False,
    )
    return torch.ops.mrcnn_plugin_emulation
