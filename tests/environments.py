"""Helpers of tests that need a virtual environment, a build or a process of their own."""

import contextlib
import os
import resource
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import detectron2
import pytest
import torch

HAS_COMPILER = "CXX" in os.environ or shutil.which("c++") is not None
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="needs a C++ compiler")

# A forked process has imported everything. On macOS torch may crash in it, and with a GPU autograd has
# threads that do not survive.
FORKS = sys.platform == "linux" and not torch.cuda.is_available()
START_METHOD = "fork" if FORKS else "spawn"


def run(*command: Any, **options: Any) -> str:
    """Runs a command, which must succeed, and returns its output."""
    result = subprocess.run(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


@contextlib.contextmanager
def file_limit() -> Iterator[Callable[[int], None]]:
    """Gives a function that sets the largest file that this process can write, in bytes, as on a full disk.

    The limit ends with the context, because pytest itself writes to a file if its output goes to one.
    """
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def create_environment(folder: Path) -> tuple[Path, Path]:
    """Creates a virtual environment that has the installed packages except this one.

    Returns:
        The interpreter of the environment, and its folder site-packages.
    """
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    # Python reads .pth files only in the site-packages of the environment. An editable package needs
    # one, so this package is not found in the folders that are named here, but plain packages are.
    around = {sysconfig.get_path("purelib"), str(Path(detectron2.__file__).parents[1])}
    around |= {path for path in sys.path if path.endswith(("site-packages", "dist-packages"))}
    (Path(site) / "around.pth").write_text("\n".join(sorted(around)))
    return python, Path(site)
