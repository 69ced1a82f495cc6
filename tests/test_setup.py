"""Tests of the set-up if something is missing, or is installed already."""

import os
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
import torch

from tests.environments import create_environment, needs_compiler, run
from tests.small import ROOT


@pytest.fixture
def sources(tmp_path):
    """Returns a copy of the sources, so that no extension built by hand is used or replaced."""
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    for name in ("mrcnn_plugin", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def build_wheel(sources, **environment):
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-v", "."]
    return subprocess.run(
        [*command, "--wheel-dir", "out"],
        cwd=sources,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_without_a_compiler_the_package_is_built_without_its_extension(sources, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    result = build_wheel(sources, PATH=str(sources / "empty"))
    assert result.returncode == 0, result.stdout
    assert "mrcnn_plugin is built without its extension" in result.stdout
    (wheel,) = (sources / "out").glob("mrcnn_plugin-*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "mrcnn_plugin/configs/quickstart.yaml" in names
    assert not [name for name in names if name.endswith(".so")]


def test_without_the_extension_the_operator_runs_with_one_warning():
    program = """
import sys, warnings
sys.modules["mrcnn_plugin._C"] = None
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import mrcnn_plugin, torch
(warning,) = [w for w in caught if "mrcnn_plugin" in str(w.message)]
assert "install a C++ compiler" in str(warning.message)
from mrcnn_plugin.layers import roi_align
pooled = roi_align(torch.ones(1, 2, 8, 8), [torch.tensor([[1.0, 1.0, 5.0, 5.0]])], 2)
torch.testing.assert_close(pooled, torch.ones(1, 2, 2, 2))

def pool(enabled):
    features = torch.rand(1, 2, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        pooled = roi_align(features, torch.tensor([[0, 1.0, 1.0, 5.5, 5.5]]), 2)
        return pooled, torch.autograd.grad(pooled, features, pooled.detach().clone())[0]

for under_autocast, plain in zip(pool(True), pool(False)):
    assert torch.equal(under_autocast, plain)
"""
    run(sys.executable, "-c", program, cwd=ROOT)


@needs_compiler
def test_a_source_that_does_not_compile_is_an_error(sources):
    for source in (sources / "mrcnn_plugin/layers/csrc").rglob("*.cpp"):
        source.write_text("#error broken on purpose")
    result = build_wheel(sources)
    assert result.returncode != 0
    assert "broken on purpose" in result.stdout
    assert not list((sources / "out").glob("*.whl"))


# The lists that nvcc 12.9 and 13.0 print.
CUDA_12 = "50 52 53 60 61 62 70 72 75 80 86 87 89 90 90a 100 100a 101 101a 103 120 120a 121"
CUDA_13 = "75 80 86 87 88 89 90 90a 100 100a 103 110 120 120a 121"


@pytest.mark.skipif(torch.version.cuda is None, reason="torch is built without CUDA")
@pytest.mark.parametrize(
    "codes, expected",
    [
        (CUDA_12, "7.0;7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"),
        (CUDA_13, "7.5;8.0;8.6;8.9;9.0;10.0;11.0;12.0+PTX"),
        # torch does not compile for the last two.
        ("80 90 100 990 991", "8.0;9.0;10.0+PTX"),
    ],
)
def test_the_kernels_are_built_for_what_nvcc_and_torch_know(tmp_path, codes, expected):
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "cuda_runtime_api.h").touch()
    (tmp_path / "bin").mkdir()
    nvcc = tmp_path / "bin" / "nvcc"
    lines = "\n".join(f"sm_{code}" for code in codes.split())
    nvcc.write_text(
        f"#!/bin/sh\n[ $1 = --version ] && echo release {torch.version.cuda}, || echo '{lines}'\n"
    )
    nvcc.chmod(0o755)
    program = """
import os, runpy, setuptools
setuptools.setup = lambda **arguments: None
runpy.run_path("setup.py")
print(os.environ["TORCH_CUDA_ARCH_LIST"])
"""
    environment = {**os.environ, "CUDA_HOME": str(tmp_path), "FORCE_CUDA": "1"}
    environment.pop("TORCH_CUDA_ARCH_LIST", None)
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert result.stdout.strip() == expected, result.stderr


@needs_compiler
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_a_compiler_that_links_statically_still_shares_the_libstdcpp_of_torch(tmp_path):
    program = """
import runpy, setuptools
setuptools.setup = lambda ext_modules, **others: print(*ext_modules[0].extra_link_args)
runpy.run_path("setup.py")
"""
    environment = {**os.environ, "FORCE_CPU": "1"}
    output = run(sys.executable, "-c", program, cwd=ROOT, env=environment)
    options = output.splitlines()[-1].split()  # torch may warn above
    source, library = tmp_path / "print.cpp", tmp_path / "print.so"
    source.write_text("#include <iostream>\nvoid print(double x) { std::cout << x; }\n")
    compiler = os.environ.get("CXX", "c++")
    static = [compiler, "-static-libstdc++", "-shared", "-fPIC", source, "-o", library]
    if subprocess.run(static).returncode != 0:
        pytest.skip("needs a static libstdc++")
    assert "libstdc++.so" not in run("ldd", library)
    run(*static, *options)
    assert "libstdc++.so" in run("ldd", library)


def test_without_torch_the_error_says_how_to_build():
    program = "import runpy, sys; sys.modules['torch'] = None; runpy.run_path('setup.py')"
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode != 0
    assert "Install torch first" in result.stderr and "--no-build-isolation" in result.stderr


def test_a_detectron2_that_is_there_is_not_touched(tmp_path):
    _, site = create_environment(tmp_path / "environment")
    (site / "detectron2").mkdir()
    (site / "detectron2" / "__init__.py").write_text("mine = True")
    before = {path: path.stat().st_mtime_ns for path in site.iterdir()}
    log = run("bash", "requirements/install.sh", tmp_path / "environment", cwd=ROOT)
    assert "Keeping the Detectron2" in log
    assert (site / "detectron2" / "__init__.py").read_text() == "mine = True"
    assert {path: path.stat().st_mtime_ns for path in site.iterdir()} == before


def test_the_lock_has_all_requirements_with_hashes():
    lock = (ROOT / "requirements" / "lock.txt").read_text()
    hashes = r"(?: +--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+"
    locked = re.findall(rf"^(\S+==\S+) .*\n{hashes}", lock, re.MULTILINE)
    assert len(locked) == len(re.findall(r"^[^\s#]", lock, re.MULTILINE)) > 50
    pins = [
        pin.lower()
        for name in ("runtime.in", "dev.in")
        for pin in re.findall(
            r"^[^\s#;]+", (ROOT / "requirements" / name).read_text(), re.MULTILINE
        )
    ]
    assert set(pins) <= set(locked) and "torch==2.14.1" in pins
    assert "://" not in lock  # a lock of one package index
