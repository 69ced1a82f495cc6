"""Builds the extension `mrcnn_plugin._C`. pyproject.toml declares everything else."""

import os
import re
import shutil
import subprocess
import sys
from glob import glob
from typing import Optional

from setuptools import Extension, setup

try:
    import torch
    from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension
except ModuleNotFoundError as error:
    sys.exit(
        f"mrcnn_plugin cannot be built: {error}.\n"
        "Its extension has to be compiled against the very torch that it will run with, so that it cannot be\n"
        "built in an isolated environment. Install torch first, then the package without isolation:\n"
        "    pip install torch torchvision setuptools wheel\n"
        "    pip install --no-build-isolation ."
    )

CSRC = "mrcnn_plugin/layers/csrc"
# On macOS, Apple's compiler has no OpenMP and the kernels run on one thread.
OPENMP = ["-fopenmp"] if sys.platform == "linux" else []


def has_compiler() -> bool:
    # With CXX set, somebody wants that compiler: if it is missing, the build has to say so.
    return "CXX" in os.environ or shutil.which("c++") is not None


def nvcc_version() -> Optional[str]:
    """The release of the nvcc that torch would use, such as "13.0"."""
    if CUDA_HOME is None:
        return None
    try:
        # Not the nvcc on PATH: that can be a script which stands for it.
        output = subprocess.check_output(
            [os.path.join(CUDA_HOME, "bin", "nvcc"), "--version"], text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.search(r"release (\d+\.\d+)", output)
    return found and found.group(1)


def architectures() -> str:
    """What runs on every GPU that nvcc compiles for, in the form of TORCH_CUDA_ARCH_LIST."""
    output = subprocess.check_output(
        [os.path.join(CUDA_HOME, "bin", "nvcc"), "--list-gpu-code"], text=True
    )
    codes = sorted({int(code) for code in re.findall(r"^sm_(\d+)$", output, re.MULTILINE)})
    # Code for sm_XY runs on every later minor version: the first of each generation, and those that make a difference.
    # Before sm_60 there is no atomic addition of doubles.
    first = {code // 10: code for code in reversed(codes)}
    chosen = [
        code for code in codes if code >= 60 and (code in first.values() or code in (75, 86, 89))
    ]
    return ";".join(f"{code // 10}.{code % 10}" for code in chosen) + "+PTX"


def wants_cuda() -> bool:
    """Whether to build the CUDA kernels: where torch and nvcc can, unless FORCE_CUDA=1 or FORCE_CPU=1 decides."""
    force_cuda, force_cpu = (
        os.environ.get(name, "0") == "1" for name in ("FORCE_CUDA", "FORCE_CPU")
    )
    if force_cuda and force_cpu:
        sys.exit("mrcnn_plugin: FORCE_CUDA=1 and FORCE_CPU=1 exclude each other.")
    if force_cpu:
        return False
    nvcc = nvcc_version()
    if torch.version.cuda is None:
        problem = f"torch {torch.__version__} is built without CUDA"
    elif nvcc is None:
        problem = "there is no nvcc (CUDA_HOME says where the toolkit is)"
    elif nvcc.split(".")[0] != torch.version.cuda.split(".")[0]:
        problem = f"nvcc is of CUDA {nvcc}, but torch of CUDA {torch.version.cuda}"
    elif not any(
        glob(f"{CUDA_HOME}/{folder}/cuda_runtime_api.h")
        for folder in ("include", "targets/*/include")
    ):
        problem = f"{CUDA_HOME}, where nvcc was found, holds no CUDA headers (CUDA_HOME says where the toolkit is)"
    else:
        return True
    if force_cuda:
        sys.exit(f"mrcnn_plugin: FORCE_CUDA=1, but {problem}.")
    print(f"mrcnn_plugin is built for the CPU only: {problem}.", file=sys.stderr)
    return False


def extension() -> Extension:
    cuda = wants_cuda()
    folders = [CSRC, f"{CSRC}/cpu"] + [f"{CSRC}/cuda"] * cuda
    compile_args = {"cxx": ["-O3", "-g0", *OPENMP]}
    if cuda:
        # nvcc compiles one of the files in cuda/. It fuses only what that says: samples lie where the CPU puts them.
        compile_args["nvcc"] = ["-O3", "-fmad=false", *os.environ.get("NVCC_FLAGS", "").split()]
        if not os.environ.get("TORCH_CUDA_ARCH_LIST"):
            os.environ["TORCH_CUDA_ARCH_LIST"] = architectures()
    return (CUDAExtension if cuda else CppExtension)(
        "mrcnn_plugin._C",
        sources=sorted(
            file
            for folder in folders
            for file in glob(f"{folder}/*.c*")
            if not file.endswith("cuh")
        ),
        depends=sorted(glob(f"{CSRC}/**/*.*h", recursive=True)),
        include_dirs=[CSRC],
        # One shared object for every Python >= 3.10, as the tag of the wheel (below) says.
        py_limited_api=True,
        define_macros=[("Py_LIMITED_API", "0x030A0000")],
        # at::parallel_for is a template: without OpenMP here it is compiled into a serial loop.
        extra_compile_args=compile_args,
        extra_link_args=OPENMP,
    )


if not has_compiler():
    print(
        "WARNING: mrcnn_plugin is built without its extension, since there is no C++ compiler (no c++ on PATH, and\n"
        "CXX is not set). It works, but RoIAlign runs on its slower PyTorch implementation. To have the extension,\n"
        "install a compiler (Debian: apt-get install g++) and install mrcnn_plugin again.",
        file=sys.stderr,
    )

setup(
    ext_modules=[extension()] if has_compiler() else [],
    cmdclass={"build_ext": BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
