import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model

from mrcnn_plugin import export
from tests import small
from tests.conftest import load_tool
from tests.environments import file_limit
from tests.features import detectron2_module

export_model = load_tool("export_model")

needs_extension = pytest.mark.skipif(
    export.operator_library() is None, reason="the extension is not built"
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a config, weights, and two images of different shapes."""
    detectron2_module("export")
    folder = tmp_path_factory.mktemp("trained")
    cfg = small.config(INPUT__MIN_SIZE_TEST=64, INPUT__MAX_SIZE_TEST=96)
    torch.manual_seed(0)
    model = build_model(cfg)
    DetectionCheckpointer(model, str(folder)).save("weights")
    cfg.MODEL.WEIGHTS = str(folder / "weights.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    rng = np.random.default_rng(0)
    for name, size in (("wide.png", (64, 96, 3)), ("high.png", (140, 100, 3))):
        cv2.imwrite(str(folder / name), rng.integers(0, 256, size).astype(np.uint8))
    return folder


def run(trained, output, *more, format="torchscript"):
    images = [str(trained / name) for name in ("wide.png", "high.png")]
    return export_model.main(
        ["--config-file", str(trained / "config.yaml"), "--format", format, "--input", *images]
        + ["--output", str(output), *more]
    )


def table(printed):
    """The cells of the rows of images: image, size, detections, differences."""
    rows = [
        line.split("|")[1:-1] for line in printed.splitlines() if ".png" in line and "|" in line
    ]
    return [[cell.strip() for cell in row] for row in rows]


LOAD = """
import sys, torch, torchvision
torch.ops.load_library(sys.argv[1])
model = torch.jit.load(sys.argv[2])
image, expected = torch.load(sys.argv[3])
with torch.no_grad():
    for actual, one in zip(model(image), expected, strict=True):
        torch.testing.assert_close(actual, one)
assert "mrcnn_plugin" not in sys.modules and "detectron2" not in sys.modules
print("loaded")
"""


@needs_extension
def test_torchscript_detects_what_the_model_does(trained, tmp_path, capsys):
    file = tmp_path / "model.ts"
    assert run(trained, file) == 0
    printed = capsys.readouterr().out
    rows = table(printed)
    assert [row[1:3] for row in rows] == [["64x96", "5"], ["90x64", "5"]]
    assert all(float(cell) < 1e-4 for row in rows for cell in row[3:]) and len(rows[0]) == 6
    assert f"load_library with a copy of {export.operator_library()}" in printed
    # A program that has neither this package nor Detectron2.
    cfg = export_model.load_cfg(str(trained / "config.yaml"))
    model = build_model(cfg).eval()
    DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    image = export_model.read(str(trained / "high.png"), cfg)
    expected = tuple(export.Traceable(model, image).detect(image).values())
    torch.save((image, expected), tmp_path / "expected.pt")
    arguments = [export.operator_library(), str(file), str(tmp_path / "expected.pt")]
    command = [sys.executable, "-W", "ignore", "-c", LOAD, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "loaded\n", done.stderr


def test_names_of_images_may_be_not_utf_8(trained, tmp_path, capsys):
    odd = shutil.copy(trained / "wide.png", tmp_path / "caf\udce9.png")
    assert run(trained, tmp_path / "model.ts", "--input", str(odd)) == 0
    assert r"caf\udce9.png" in capsys.readouterr().out


def test_onnx_detects_what_the_model_does(trained, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    file = tmp_path / "model.onnx"
    assert run(trained, file, "--opset", "11", format="onnx") == 0
    rows = table(capsys.readouterr().out)
    assert [row[1:3] for row in rows] == [["64x96", "5"], ["90x64", "5"]]
    assert all(float(cell) < 1e-3 for row in rows for cell in row[3:])
    model = onnx.load(file)
    assert [i.name for i in model.graph.input] == ["image"]
    assert [o.name for o in model.graph.output] == ["boxes", "scores", "classes", "masks"]
    assert {i.domain: i.version for i in model.opset_import}[""] == 11


@pytest.mark.parametrize("change", [0.0, 1.0, float("nan")])
def test_a_file_that_differs_is_refused(trained, tmp_path, monkeypatch, capsys, change):
    def to_torchscript(self, file):
        Path(file).write_text("new")

        def exported(image):
            found = self.detect(image)
            boxes = found["boxes"] + change if image.shape[1] == 90 else found["boxes"]
            return {**found, "boxes": boxes}

        return exported

    monkeypatch.setattr(export.Traceable, "to_torchscript", to_torchscript)
    (tmp_path / "model.ts").write_text("old")
    assert run(trained, tmp_path / "model.ts", "--overwrite") == (change != 0)
    # What is refused replaces nothing, but can be looked at.
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == (
        {"model.ts": "old", "model.ts.partial": "new"} if change else {"model.ts": "new"}
    )
    printed = capsys.readouterr()
    assert [row[3] for row in table(printed.out)] == ["0", f"{change:g}"]
    expected = r"1 of 2 images differ by more than the tolerance, the first \S*high.png; do not use \S*partial"
    assert bool(re.search(expected, printed.err)) == (change != 0)


def test_a_file_that_fails_is_refused(trained, tmp_path, monkeypatch, capsys):
    def to_torchscript(self, file):
        Path(file).write_text("new")

        def exported(image):
            if image.std() < 100:
                raise RuntimeError("no such operator")
            return self.detect(image)

        return exported

    monkeypatch.setattr(export.Traceable, "to_torchscript", to_torchscript)
    opts = ("--opts", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1.0")
    assert run(trained, tmp_path / "model.ts", *opts) == 1
    printed = capsys.readouterr()
    assert "model.ts fails for a blank image: no such operator" in printed.err
    assert re.search(r"a blank image *\| 64x96 *\| 0 *\| inf", printed.out)


def test_onnx_takes_an_image_without_detections(tmp_path):
    """GroupNorm in the mask head, as in Base-R18-GN-Small.yaml, fails in ONNX where it gets no detection."""
    pytest.importorskip("onnxruntime")
    detectron2_module("export")
    cfg = small.config()
    model = build_model(cfg).eval()
    assert any(isinstance(m, torch.nn.GroupNorm) for m in model.roi_heads.mask_head.modules())
    (image,) = small.batch((64, 96))
    traceable = export.Traceable(model, image["image"].float())
    detect = traceable.to_onnx(str(tmp_path / "model.onnx"), 17)
    nothing = torch.full((3, 64, 64), torch.nan)
    assert len(traceable.detect(nothing)["boxes"]) == 0
    assert set(export.differences(traceable.detect(nothing), detect(nothing)).values()) == {0.0}
    assert "layers" not in vars(model.roi_heads.mask_head)


def test_nothing_to_compare_is_a_failure(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export.Traceable, "to_torchscript", lambda self, file: self.detect)
    opts = ("--opts", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1.0")
    (tmp_path / "model.ts").write_text("old")
    assert run(trained, tmp_path / "model.ts", "--overwrite", *opts) == 1
    err = capsys.readouterr().err
    assert "finds nothing in these images" in err and "is in" in err and "model.ts.partial" in err
    assert (tmp_path / "model.ts").read_text() == "old"


@pytest.mark.parametrize("format", ["torchscript", "onnx"])
def test_a_full_disk_leaves_the_old_file(trained, tmp_path, format):
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    file = tmp_path / "model"
    file.write_text("old")
    with file_limit() as set_limit, pytest.raises(OSError, match="File too large"):
        set_limit(100_000)
        run(trained, file, "--overwrite", format=format)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert file.read_text() == "old"


# Differences


def detections(*boxes, classes=None, scores=None):
    number = len(boxes)
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "scores": torch.tensor(scores or [0.5] * number),
        "classes": torch.tensor(classes or [0] * number),
        "masks": torch.zeros(number, 1, 2, 2),
    }


A, B = (0, 0, 10, 10), (5, 5, 20, 20)
INFINITE = {"boxes": float("inf"), "scores": float("inf"), "masks": float("inf")}


def test_differences_are_the_largest():
    actual = detections((0, 0, 10, 10.5), (5, 4, 20, 20), scores=[0.5, 0.25])
    actual["masks"][1, 0, 1, 1] = 0.125
    found = export.differences(detections(A, B), actual)
    assert found == {"boxes": 1.0, "scores": 0.25, "masks": 0.125}


def test_the_order_does_not_matter():
    found = export.differences(detections(A, B, classes=[1, 2]), detections(B, A, classes=[2, 1]))
    assert set(found.values()) == {0.0}


@pytest.mark.parametrize(
    "actual",
    [
        detections(A),
        detections(A, B, B),
        detections(A, B, classes=[0, 1]),
        # Twice the same, in place of both.
        detections(A, A),
    ],
)
def test_other_detections_differ_infinitely(actual):
    assert export.differences(detections(A, B), actual) == INFINITE


def test_no_detections_do_not_differ():
    assert set(export.differences(detections(), detections()).values()) == {0.0}


# Errors, before anything is computed


@pytest.fixture
def nothing_built(monkeypatch):
    monkeypatch.setattr(export_model, "load_model", lambda cfg: pytest.fail("a model was built"))


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_a_missing_onnxruntime_is_an_error(trained, tmp_path, monkeypatch, nothing_built, missing):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == missing else find(name) or True
    )
    with pytest.raises(
        ImportError, match=f"^{missing} must be installed .* pip install {missing}$"
    ):
        run(trained, tmp_path / "model.onnx", format="onnx")


def test_keypoints_are_refused_for_onnx_only(trained, tmp_path, nothing_built):
    options = ("--opts", "MODEL.KEYPOINT_ON", "True")
    with pytest.raises(ValueError, match=r"MODEL.KEYPOINT_ON is True.*--format torchscript"):
        run(trained, tmp_path / "model.onnx", *options, format="onnx")
    with pytest.raises(pytest.fail.Exception, match="a model was built"):
        run(trained, tmp_path / "model.ts", *options)


def test_a_file_that_is_there_is_kept(trained, tmp_path, nothing_built):
    file = tmp_path / "model.ts"
    file.write_text("mine")
    with pytest.raises(FileExistsError, match="model.ts is there already; give --overwrite"):
        run(trained, file)


def test_bad_paths_are_errors(trained, tmp_path, nothing_built):
    for name in ("model.ts", ""):
        with pytest.raises(FileNotFoundError, match="--output: there is no folder .*nowhere"):
            run(trained, f"{tmp_path}/nowhere/{name}")
    with pytest.raises(ValueError, match="--output: .* is a folder; it must be a file"):
        run(trained, tmp_path, "--overwrite")
    with pytest.raises(FileNotFoundError, match="MODEL.WEIGHTS is 'none.pth', which is no file"):
        run(trained, tmp_path / "model.ts", "--opts", "MODEL.WEIGHTS", "none.pth")
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is empty"):
        run(trained, tmp_path / "model.ts", "--opts", "MODEL.WEIGHTS", "")
    (trained / "high.png").rename(trained / "away.png")
    try:
        with pytest.raises(FileNotFoundError, match="--input: .*high.png is no file"):
            run(trained, tmp_path / "model.ts")
    finally:
        (trained / "away.png").rename(trained / "high.png")


def test_images_of_16_bits_are_refused(trained, tmp_path, nothing_built):
    path = str(tmp_path / "deep.png")
    cv2.imwrite(path, np.full((64, 64), 4095, np.uint16))
    cfg = export_model.load_cfg(str(trained / "config.yaml"))
    with pytest.raises(ValueError, match="deep.png: it has 16 .* set INPUT.PIXEL_RANGE"):
        export_model.read(path, cfg)
    cfg.INPUT.PIXEL_RANGE = [0, 8190]
    assert export_model.read(path, cfg).unique().tolist() == [128.0]


def test_other_architectures_are_refused():
    cfg = small.config(MODEL__META_ARCHITECTURE="ProposalNetwork")
    with pytest.raises(ValueError, match="META_ARCHITECTURE is 'ProposalNetwork'; only 'General"):
        export.Traceable(build_model(cfg).eval(), torch.zeros(3, 64, 64))
