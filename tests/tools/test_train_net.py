"""Tests of tools/train_net.py, which is run as a user would run it."""

import json
import math

import pytest
import torch
import yaml
from detectron2.engine import default_argument_parser

from mrcnn_plugin.data import generate_shapes
from tests.small import CONFIGS, TINY


@pytest.fixture
def run(train_net, tmp_path):
    """Runs the main function of the script with a config, flags and changed keys. Returns its results."""
    json_file = generate_shapes(str(tmp_path / "data"), 4, seed=5)
    name = f"shapes_of_{tmp_path.name}"
    content = {
        "_BASE_": str(CONFIGS / "quickstart.yaml"),
        "DATASETS": {
            "COCO_JSON": [[name, json_file, str(tmp_path / "data" / "images")]],
            "TRAIN": [name],
            "TEST": [name],
        },
        "SOLVER": {"MAX_ITER": 2, "IMS_PER_BATCH": 2, "CHECKPOINT_PERIOD": 1},
        "DATALOADER": {"NUM_WORKERS": 0},
        "OUTPUT_DIR": str(tmp_path / "out"),
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))

    def main(*flags, **changes):
        settings = {**TINY, "MODEL.ROI_HEADS.NUM_CLASSES": 4}
        settings.update({key.replace("__", "."): value for key, value in changes.items()})
        opts = [str(item) for pair in settings.items() for item in pair]
        args = default_argument_parser().parse_args(["--config-file", str(path), *flags, *opts])
        return train_net.main(args)

    return main


def same(a, b):
    return a == b or (math.isnan(a) and math.isnan(b))


def test_the_tool_trains_writes_metrics_and_evaluates_what_it_saved(run, tmp_path):
    run(TEST__EVAL_PERIOD=1)
    out = tmp_path / "out"
    lines = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    assert any("loss_mask" in line and "loss_cls" in line for line in lines)
    assert any("bbox/AP" in line and "segm/AP" in line for line in lines)
    assert list(out.glob("events.out.tfevents.*"))
    assert (out / "model_0000000.pth").exists() and (out / "model_final.pth").exists()
    results = out / "inference" / "coco_instances_results.json"
    detections = json.loads(results.read_text())
    evaluated = run("--eval-only", MODEL__WEIGHTS=out / "model_final.pth")
    # After two iterations, the AP may be zero whatever was loaded, but scores and boxes are not.
    assert detections and json.loads(results.read_text()) == detections
    for task in ("bbox", "segm"):
        for metric, value in evaluated[task].items():
            trained = next(v for v in reversed(lines) if f"{task}/{metric}" in v)
            assert same(trained[f"{task}/{metric}"], value), metric


def test_resume_goes_on_where_the_run_ended(run, tmp_path):
    run(SOLVER__MAX_ITER=1)
    run("--resume", SOLVER__MAX_ITER=3)
    checkpoint = torch.load(tmp_path / "out" / "model_final.pth", weights_only=False)
    assert checkpoint["iteration"] == 2
    assert not (tmp_path / "out" / "model_0000003.pth").exists()


def test_evaluation_needs_weights(run, tmp_path):
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is empty"):
        run("--eval-only")


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"MODEL__DEVICE": "cuda"}, ValueError, "MODEL.DEVICE is 'cuda'.*MODEL.DEVICE cpu"),
        ({"MODEL__ROI_HEADS__NUM_CLASSES": 80}, ValueError, "NUM_CLASSES is 80.*set it to 4"),
        ({"DATASETS__TEST": "('shapes_vall',)"}, ValueError, "DATASETS.TEST.*'shapes_vall'"),
        ({"TEST__AUG__ENABLED": True}, ValueError, "TEST.AUG.ENABLED is True"),
        ({"MODEL__WEIGHTS": "nowhere.pth"}, (AssertionError, FileNotFoundError), "nowhere.pth"),
    ],
)
def test_bad_input_is_named_before_any_training(run, tmp_path, changes, error, message):
    if changes.get("MODEL__DEVICE") == "cuda" and torch.cuda.is_available():
        pytest.skip("a machine with a GPU trains on it")
    with pytest.raises(error, match=message):
        run(**changes)
    metrics = tmp_path / "out" / "metrics.json"
    assert not metrics.exists() or not metrics.read_text()
