"""Builds the extension `mrcnn_plugin._C`, and says which files are in the package. pyproject.toml declares the rest."""

import os
import re
import shutil
import subprocess
import sys
from glob import glob

from setuptools import Extension, find_packages, setup

try:
    import torch
    from torch.utils.cpp_extension import (
        CUDA_HOME,
        BuildExtension,
        CppExtension,
        CUDAExtension,
        _get_cuda_arch_flags,
    )
except ModuleNotFoundError as error:
    sys.exit(
        f"mrcnn_plugin cannot be built: {error}.\n"
        "Its extension has to be compiled against the torch that it will run with. Therefore it cannot be built\n"
        "in an isolated environment. Install torch first, then the package without isolation:\n"
        "    pip install torch torchvision setuptools wheel\n"
        "    pip install --no-build-isolation --editable ."
    )

CSRC = "mrcnn_plugin/layers/csrc"
# Apple's compiler has no OpenMP, so the kernels run on one thread on macOS.
OPENMP = ["-fopenmp"] if sys.platform == "linux" else []
# Some compilers are set up to link libstdc++ statically. A second copy of it beside torch's crashes where an error
# message has a number, so the extension always links the shared one.
LINK = [*OPENMP, "-lstdc++"] if sys.platform == "linux" else []


def has_compiler() -> bool:
    # Whoever sets CXX wants that compiler, so the build has to fail if it is missing.
    return "CXX" in os.environ or shutil.which("c++") is not None


def nvcc_version() -> str | None:
    """Returns the release of the nvcc that torch would use, such as "13.0", or None without one."""
    if CUDA_HOME is None:
        return None
    try:
        # The nvcc on PATH may be a script that wraps another one.
        output = subprocess.check_output(
            [os.path.join(CUDA_HOME, "bin", "nvcc"), "--version"], text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.search(r"release (\d+\.\d+)", output)
    return found and found.group(1)


def is_known_to_torch(architecture: str) -> bool:
    """Returns whether torch compiles for an architecture such as "9.0"."""
    os.environ["TORCH_CUDA_ARCH_LIST"] = architecture
    try:
        _get_cuda_arch_flags()
    except ValueError:
        return False
    finally:
        del os.environ["TORCH_CUDA_ARCH_LIST"]
    return True


def architectures() -> str:
    """Returns architectures for TORCH_CUDA_ARCH_LIST whose code runs on every GPU that nvcc and torch know.

    Volta (sm_70) is the oldest, because earlier GPUs have no `__grid_constant__`.
    """
    output = subprocess.check_output(
        [os.path.join(CUDA_HOME, "bin", "nvcc"), "--list-gpu-code"], text=True
    )
    known = {
        int(code): f"{code[:-1]}.{code[-1]}"
        for code in re.findall(r"^sm_(\d+)$", output, re.MULTILINE)
    }
    codes = [code for code in sorted(known) if code >= 70 and is_known_to_torch(known[code])]
    # Code for sm_XY also runs on every later minor version, so the first version of each generation is enough. Code
    # for a few later ones is added because it is faster.
    first = {code // 10: code for code in reversed(codes)}
    chosen = [known[c] for c in codes if c in first.values() or c in (75, 86, 89)]
    return ";".join(chosen) + "+PTX"


def wants_cuda() -> bool:
    """Returns whether to build the CUDA kernels.

    They are built if torch and nvcc can, unless FORCE_CUDA=1 or FORCE_CPU=1 decides.
    """
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
        problem = "there is no nvcc (set CUDA_HOME to the folder of the CUDA toolkit)"
    elif nvcc.split(".")[0] != torch.version.cuda.split(".")[0]:
        problem = f"nvcc belongs to CUDA {nvcc}, but torch is built with CUDA {torch.version.cuda}"
    elif not any(
        glob(f"{CUDA_HOME}/{folder}/cuda_runtime_api.h")
        for folder in ("include", "targets/*/include")
    ):
        problem = f"{CUDA_HOME} has nvcc, but no CUDA headers (set CUDA_HOME to the folder of the CUDA toolkit)"
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
        # nvcc may fuse multiplications and additions only where the source says so. Otherwise samples would not lie
        # exactly where the CPU puts them.
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
        # One shared object serves every Python >= 3.10. The tag of the wheel (below) says the same.
        py_limited_api=True,
        define_macros=[("Py_LIMITED_API", "0x030A0000")],
        # at::parallel_for is a template, which compiles into a serial loop without OpenMP.
        extra_compile_args=compile_args,
        extra_link_args=LINK,
    )


if not has_compiler():
    print(
        "WARNING: mrcnn_plugin is built without its extension, because there is no C++ compiler (c++ is not on PATH,\n"
        "and CXX is not set). The package works, but RoIAlign uses its slower PyTorch implementation. To get the\n"
        "extension, install a compiler (Debian: apt-get install g++) and install mrcnn_plugin again.",
        file=sys.stderr,
    )

setup(
    # mrcnn_plugin.get_config_file finds the config files in the package. In the repository they stand beside it.
    packages=[*find_packages(include=["mrcnn_plugin*"]), "mrcnn_plugin.configs"],
    package_dir={"mrcnn_plugin.configs": "configs"},
    package_data={"mrcnn_plugin.configs": ["*.yaml", "lazy/*.py"]},
    ext_modules=[extension()] if has_compiler() else [],
    cmdclass={"build_ext": BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
