"""Builds the extension `mrcnn_plugin._C`. pyproject.toml declares everything else."""

import os
import shutil
import sys
from glob import glob

from setuptools import Extension, setup

try:
    from torch.utils.cpp_extension import BuildExtension, CppExtension
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


def cpu_extension() -> Extension:
    return CppExtension(
        "mrcnn_plugin._C",
        sources=sorted(glob(f"{CSRC}/*.cpp") + glob(f"{CSRC}/cpu/*.cpp")),
        depends=sorted(glob(f"{CSRC}/**/*.h", recursive=True)),
        include_dirs=[CSRC],
        # One shared object for every Python >= 3.10, as the tag of the wheel (below) says.
        py_limited_api=True,
        define_macros=[("Py_LIMITED_API", "0x030A0000")],
        # at::parallel_for is a template: without OpenMP here it is compiled into a serial loop.
        extra_compile_args={"cxx": ["-O3", "-g0", *OPENMP]},
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
    ext_modules=[cpu_extension()] if has_compiler() else [],
    cmdclass={"build_ext": BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
