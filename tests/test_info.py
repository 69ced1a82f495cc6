"""`python -m mrcnn_plugin.info`."""

import os
import re
import sys

import detectron2
import pytest
import torch
import torchvision

import mrcnn_plugin
from mrcnn_plugin import info
from mrcnn_plugin.layers import roi_align
from mrcnn_plugin.layers.roi_align_registration import HAS_EXTENSION
from tests.environments import run
from tests.small import ROOT

needs_extension = pytest.mark.skipif(not HAS_EXTENSION, reason="needs the extension")


def value(output, name):
    (line,) = [line for line in output.splitlines() if line.startswith(f"{name}  ")]
    return line[len(name) :].strip()


def test_the_report_has_what_a_bug_report_needs(capfd, monkeypatch):
    monkeypatch.setenv("MRCNN_PLUGIN_DATASETS", "my.yaml")
    assert info.main() == 0
    output = capfd.readouterr().out
    assert value(output, "mrcnn_plugin").startswith(f"{mrcnn_plugin.__version__} @")
    assert value(output, "PyTorch").startswith(torch.__version__)
    assert value(output, "torchvision").startswith(torchvision.__version__)
    assert sys.version.split()[0] in value(output, "Python")
    assert value(output, "Detectron2") == os.path.dirname(detectron2.__file__)
    assert value(output, "MRCNN_PLUGIN_DATASETS") == "my.yaml"
    devices = 1 + torch.cuda.is_available()
    assert output.count("passed") == len(info.CHECKS) * devices and "FAILED" not in output


def test_the_report_has_every_variable_that_the_package_reads():
    files = ROOT.joinpath("mrcnn_plugin").rglob("*.py")
    read = {n for file in files for n in re.findall(r'environ.*"(MRCNN_\w+)"', file.read_text())}
    assert "MRCNN_PLUGIN_CONFIG" in read and read <= set(info.VARIABLES)


@needs_extension
def test_the_instruction_set_is_the_one_that_torch_chose(monkeypatch):
    chosen = dict(info.describe_extension())["CPU instruction set"]
    assert chosen.endswith(f"(that of torch: {torch.backends.cpu.get_cpu_capability()})")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    rows = dict(info.describe_extension())
    assert rows["CPU instruction set"] == "default (that of torch: DEFAULT)"


@needs_extension
def test_an_extension_of_another_torch_is_said():
    here = re.match(r"\d+\.\d+\.\d+", torch.__version__)[0]
    outputs = [
        run(
            *(sys.executable, "-c"),
            f"import torch; torch.__version__ = {version!r}; import mrcnn_plugin.layers",
            cwd=ROOT,
        )
        for version in (f"{here}.dev20260101+cpu", f"{here}a0+git1", "9.9.9+cu130")
    ]
    said = [
        re.findall("compiled for torch (.*), and this is torch (.*?)\\. It", o) for o in outputs
    ]
    assert said == [[], [], [(here, "9.9.9+cu130")]]


def test_the_torch_that_an_extension_was_built_for_is_read_from_its_file(tmp_path):
    file = tmp_path / "_C.abi3.so"
    file.write_bytes(b"\x7fELF\0mrcnn_plugin for torch 2.6.0\0more")
    assert info.built_for(str(file)) == "2.6.0"
    file.write_bytes(b"\x7fELF\0")
    assert info.built_for(str(file)).startswith("unknown")


def test_the_architectures_are_those_that_cuobjdump_lists(tmp_path, monkeypatch):
    tool = tmp_path / "bin" / "cuobjdump"
    tool.parent.mkdir()
    tool.write_text(
        "#!/bin/sh\necho ELF file 1: $2.1.sm_90.cubin; echo ELF file 2: $2.2.sm_100.cubin"
    )
    tool.chmod(0o755)
    monkeypatch.setattr(info, "CUDA_HOME", str(tmp_path))
    assert info.architectures("_C.abi3.so") == "sm_90, sm_100"
    tool.write_text("#!/bin/sh\nexit 1")
    monkeypatch.setattr(info.importlib.util, "find_spec", lambda name: None)
    assert info.architectures("_C.abi3.so").startswith("unknown")


@pytest.mark.parametrize("wrong", ["values", "gradients", "ramp", "crash"])
def test_a_wrong_operator_fails_the_self_test(wrong, monkeypatch, capsys):
    def broken(features, boxes, *arguments, interpolation="bicubic", **options):
        if wrong == "crash":
            raise RuntimeError("no kernel image is available")
        pooled = roi_align(features, boxes, *arguments, interpolation=interpolation, **options)
        if interpolation == "bilinear" and wrong == "gradients":
            return 2 * pooled - pooled.detach()
        if wrong == ("values" if interpolation == "bilinear" else "ramp"):
            return pooled + 0.01
        return pooled

    monkeypatch.setattr(info, "roi_align", broken)
    monkeypatch.setattr(info, "collect_env_info", lambda: "")
    assert info.main() == 1
    output = capsys.readouterr().out
    failed = [line for line in output.splitlines() if "FAILED" in line]
    devices = 1 + torch.cuda.is_available()
    assert len(failed) == (2 if wrong == "crash" else 1) * devices
    said = {"crash": "no kernel image is available", "ramp": "bicubic"}.get(wrong, wrong)
    assert said in failed[0]


def test_without_the_extension_the_report_says_why_and_the_self_test_runs(tmp_path):
    program = """
import sys
sys.modules["mrcnn_plugin._C"] = None
import runpy
runpy.run_module("mrcnn_plugin.info", run_name="__main__")
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    output = run(sys.executable, "-W", "ignore", "-c", program, cwd=tmp_path, env=environment)
    name = "loaded" if info.find_extension() else "extension"
    assert value(output, name).startswith("no")
    assert "RoIAlign runs in PyTorch" in value(output, name)
    assert "passed" in output
