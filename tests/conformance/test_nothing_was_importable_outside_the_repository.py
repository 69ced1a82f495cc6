"""The code of 2018 ran in its repository only. These tests build a wheel from the source distribution,
install it into another environment, and use it from another folder."""

import os
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.environments import HAS_COMPILER, create_environment, needs_compiler, run
from tests.small import ROOT

PROGRAM = """
import mrcnn_plugin
import mrcnn_plugin._C
import torch
from detectron2.modeling import BACKBONE_REGISTRY, ROI_HEADS_REGISTRY

assert "MRCNNFocalROIHeads" in ROI_HEADS_REGISTRY
assert "build_mrcnn_resnet_pafpn_backbone" in BACKBONE_REGISTRY
ramp = torch.arange(8.0).expand(1, 1, 8, 8)
rois = torch.tensor([[0.0, 2.0, 2.0, 6.0, 6.0]])
pooled = torch.ops.mrcnn_plugin.roi_align([ramp], rois, None, [1.0], 2, 2, 0, True, "bicubic", -0.5)
torch.testing.assert_close(pooled[0, 0], torch.tensor([[2.5, 4.5], [2.5, 4.5]]))
assert torch.__version__.startswith(mrcnn_plugin._C.__doc__.removeprefix("mrcnn_plugin for torch "))
cfg = mrcnn_plugin.load_cfg(mrcnn_plugin.get_config_file("mask_rcnn_focal.yaml"))
assert cfg.MODEL.ROI_HEADS.NAME == "MRCNNFocalROIHeads"
print("\\n".join(["", mrcnn_plugin.__file__, mrcnn_plugin._C.__file__]))
"""


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """Builds the source distribution, and a wheel from it."""
    folder = tmp_path_factory.mktemp("dist")
    environment = dict(os.environ)
    if HAS_COMPILER:
        # Without optimisation, the kernels compile in a third of the time.
        compiler = tmp_path_factory.mktemp("bin") / "c++"
        compiler.write_text(f'#!/bin/sh\nexec {os.environ.get("CXX", "c++")} "$@" -O0\n')
        compiler.chmod(0o755)
        environment["CXX"] = str(compiler)
    build = [sys.executable, "-m", "build", "--no-isolation"]
    run(*build, "--outdir", folder, ROOT, cwd=folder, env=environment)
    (sdist,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


def files_below(folder):
    return {p.relative_to(ROOT).as_posix() for p in folder.rglob("*") if p.is_file()}


def python_files():
    return {name for name in files_below(ROOT / "mrcnn_plugin") if name.endswith(".py")}


def configs():
    files = files_below(ROOT / "configs")
    return {f"mrcnn_plugin/{name}" for name in files if name.endswith((".yaml", ".py"))}


def test_the_source_distribution_holds_all_sources_and_no_extension(distributions):
    with tarfile.open(distributions[0]) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {name.split("/", 1)[-1] for name in configs()} <= names
    assert python_files() | files_below(ROOT / "mrcnn_plugin/layers/csrc") <= names
    assert {"setup.py", "pyproject.toml"} <= names
    assert not [name for name in names if name.endswith(".so")]


@needs_compiler
def test_the_wheel_holds_the_package_and_one_extension_for_every_python(distributions):
    wheel = distributions[1]
    assert "-cp310-abi3-" in wheel.name
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == python_files() | configs() | {"mrcnn_plugin/_C.abi3.so"}


@needs_compiler
def test_the_wheel_works_in_another_environment(distributions, tmp_path):
    python, site = create_environment(tmp_path / "environment")
    # pip would consider a package on PYTHONPATH as installed.
    plain = {
        k: v for k, v in os.environ.items() if k not in ("DETECTRON2_ENV_MODULE", "PYTHONPATH")
    }
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps"]
    run(*install, "--no-index", "--quiet", distributions[1], cwd=tmp_path, env=plain)

    output = run(python, "-I", "-c", PROGRAM, cwd=tmp_path, env=plain)
    package, extension = output.splitlines()[-2:]
    assert Path(package).parent == Path(extension).parent == site / "mrcnn_plugin"
