import itertools
import json
import math

import pytest
import torch
import torchvision
from detectron2.modeling import build_model
from detectron2.structures import Boxes

from mrcnn_plugin.layers import roi_align
from tests import small
from tests.conftest import load_tool


@pytest.fixture
def tool(monkeypatch):
    """Returns the tool with a very small workload."""
    tool = load_tool("benchmark_roi_align")
    monkeypatch.setattr(tool, "IMAGE_HEIGHT", 128)
    monkeypatch.setattr(tool, "IMAGE_WIDTH", 192)
    monkeypatch.setattr(tool, "LEVELS", [(6, 16, 30, 4), (6, 30, 60, 8), (4, 40, 64, 16)])
    monkeypatch.setattr(tool, "HIGH", 100)
    monkeypatch.setattr(tool, "POOLINGS", dict.fromkeys(tool.POOLINGS, [(7, 10, 2)]))
    monkeypatch.setattr(tool, "COLD_BYTES", 1_000_000)
    monkeypatch.setattr(tool, "LEAST_TURNS", 1)

    def mask_rcnn(device):
        changes = {"MODEL__DEVICE": device, "MODEL__ROI_HEADS__NUM_CLASSES": 80}
        return build_model(small.config(**changes))

    monkeypatch.setattr(tool, "mask_rcnn", mask_rcnn)
    return tool


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_the_results_of_all_sections_are_written(tool, device, tmp_path, capsys):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    # This leaves out the compilation of torchvision's deterministic operator on a GPU, which takes long.
    sections = ["cases", "pooler", "model"] + ["others", "deterministic"] * (device == "cpu")
    options = ["--device", device, "--seconds", "0.001", "--output", str(tmp_path)]
    tool.main([*options, "--sections", *sections])

    assert (tmp_path / f"roi_align_{device}.png").stat().st_size > 10_000
    report = json.loads((tmp_path / f"roi_align_{device}.json").read_text())
    cases = [row for row in report["cases"] if row["pass"] in ("forward", "backward")]
    assert len(cases) == len(report["floors"]) == 2 * 6 * len(tool.KINDS[device])
    poolings = [(row["pooler"], row["pass"]) for row in report["pooler"]]
    assert sorted(poolings) == sorted(itertools.product(tool.OUR_POOLERS, ("backward", "forward")))
    assert len(report["model"]) == 4
    assert device == "cuda" or len(report["layouts"]) == 12
    for section in sections:
        for row in report[section]:
            assert row["ratio"] == row["theirs_ms"] / row["ours_ms"] > 0
    forward = [row["ratio"] for row in cases if row["pass"] == "forward"][:6]
    mean = report["geometric_means"][0]
    assert mean["geometric_mean"] == pytest.approx(math.prod(forward) ** (1 / 6))
    assert mean["smallest"] == min(forward)
    out = capsys.readouterr().out
    assert "Pooler of p2 to p5" in out and out.endswith(f"roi_align_{device}.png\n")


def test_a_picture_without_content_is_not_said_to_be_written(tool, tmp_path, capsys):
    tool.main(["--seconds", "0.001", "--output", str(tmp_path), "--sections", "others"])
    assert capsys.readouterr().out.endswith(f"Wrote {tmp_path / 'roi_align_cpu.json'}\n")
    assert not (tmp_path / "roi_align_cpu.png").exists()


def test_the_operator_of_a_pooler_gives_its_result(tool):
    pooler = tool.pooler_of("ROIAlignBicubic", 7)
    boxes = [Boxes(tool.random_boxes(9, 16, 100, torch.Generator().manual_seed(0)))]
    maps = [torch.randn(1, 3, 128 // stride, 192 // stride) for stride in tool.STRIDES]
    operator = tool.operator_of(pooler, boxes, [maps])
    torch.testing.assert_close(operator(), pooler(maps, boxes), rtol=0, atol=0)


def test_only_pixels_that_a_box_reads_have_to_be_moved(tool):
    case = tool.Case(*tool.LEVELS[1], 7, "cpu", channels=1)
    features = case.features.requires_grad_()
    pooled = roi_align(features, case.boxes, case.size, case.scale)
    pooled.backward(case.grad)
    pixels = features.grad.count_nonzero().item()
    assert 0 < pixels < features.numel()
    traffic = tool.least_traffic(case)
    assert traffic["forward"] == 4 * (pixels + case.grad.numel())
    assert traffic["backward"] == 4 * (features.numel() + case.grad.numel())


def test_failures_of_torchvision_are_reported(tool, monkeypatch):
    def fail(*_):
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(torchvision.ops, "roi_align", fail)
    row = tool.deterministic_case("cpu", 0.001, 2)
    assert row["error"] == "RuntimeError: out of memory"
    assert not torch.are_deterministic_algorithms_enabled()


def test_sections_that_cannot_run_are_refused(tool, capsys):
    with pytest.raises(SystemExit):
        tool.main(["--sections", "nothing"])
    assert "invalid choice: 'nothing'" in capsys.readouterr().err
