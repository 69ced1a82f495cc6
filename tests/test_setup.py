"""Tests of the set-up if something is missing, or is installed already."""

import os
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

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
