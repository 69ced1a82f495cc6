"""Tests of tools/train_net.py that need a GPU, or two."""

import json
import subprocess
import sys

import pytest
import torch

from tests.small import ROOT

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]
# So many detections are compared that a few may swap places in a sorted list or be suppressed.
MANY = {
    "MODEL__RPN__PRE_NMS_TOPK_TEST": 1000,
    "MODEL__RPN__POST_NMS_TOPK_TEST": 1000,
    "TEST__DETECTIONS_PER_IMAGE": 100,
}


def is_same(a, b):
    return (
        (a["image_id"], a["category_id"]) == (b["image_id"], b["category_id"])
        and a["score"] == pytest.approx(b["score"], abs=1e-3)
        and a["bbox"] == pytest.approx(b["bbox"], abs=0.05)
    )


def share_found_again(detections, others):
    """Returns the share of the detections that are among others too."""
    return sum(any(is_same(d, o) for o in others) for d in detections) / len(detections)


@pytest.mark.parametrize("amp", [False, True])
def test_a_model_trained_on_a_gpu_detects_the_same_on_the_cpu(run, tmp_path, amp):
    run(
        MODEL__DEVICE="cuda",
        SOLVER__AMP__ENABLED=amp,
        SOLVER__MAX_ITER=30,
        SOLVER__CHECKPOINT_PERIOD=30,
        DATASETS__TEST="()",
    )

    def detections(device):
        weights = tmp_path / "out" / "model_final.pth"
        run("--eval-only", MODEL__DEVICE=device, MODEL__WEIGHTS=weights, **MANY)
        file = tmp_path / "out" / "inference" / "coco_instances_results.json"
        return json.loads(file.read_text())

    # TF32 would round the inputs of convolutions on the GPU.
    with torch.backends.cudnn.flags(allow_tf32=False):
        on_gpu = detections("cuda")
    on_cpu = detections("cpu")
    assert len(on_gpu) == len(on_cpu) > 100
    assert share_found_again(on_gpu, on_cpu) > 0.97


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs")
@pytest.mark.usefixtures("run")  # It writes the config and the data.
def test_two_gpus_train_together(tmp_path):
    command = [sys.executable, str(ROOT / "tools" / "train_net.py"), "--num-gpus", "2"]
    changes = {
        "OUTPUT_DIR": tmp_path / "two",
        "MODEL.DEVICE": "cuda",
        "MODEL.ROI_HEADS.NUM_CLASSES": 4,
        "SOLVER.MAX_ITER": 3,
        "TEST.EVAL_PERIOD": 3,
    }
    opts = [str(item) for pair in changes.items() for item in pair]
    config = ["--config-file", str(tmp_path / "config.yaml")]
    subprocess.run([*command, *config, *opts], check=True)
    lines = (tmp_path / "two" / "metrics.json").read_text()
    assert "total_loss" in lines and "segm/AP" in lines
