"""Tests of Detectron2's features with the models of this package. docs/detectron2.md lists them."""

import ast
import functools
import json
import math
import multiprocessing
import os
import re
import runpy
import signal
import sys

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.engine import default_argument_parser, hooks, launch
from detectron2.engine.defaults import create_ddp_model
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from torch import nn

from mrcnn_plugin.data import generate_shapes, register_coco_json
from mrcnn_plugin.env import setup_environment
from tests import small
from tests.conftest import load_tool
from tests.environments import START_METHOD
from tests.features import (
    detectron2_module,
    needs_launch_without_gpus,
    needs_saved_optimizer,
)

NUM_CLASSES = 4  # the number of classes of the generated shapes
LOSSES = ("loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc")


def load_stock(name):
    """Returns a script of Detectron2's tools/ as a module."""
    return load_tool(name, small.STOCK_TOOLS)


@pytest.fixture
def environment(monkeypatch):
    """Adds our keys to Detectron2's defaults, as DETECTRON2_ENV_MODULE=mrcnn_plugin.env does."""
    monkeypatch.setattr("detectron2.config.defaults._C", get_cfg())
    setup_environment()


def tiny_config(folder, dataset, **changes):
    """Returns a tiny config of the quickstart, without any random choice of samples."""
    return small.config(
        "quickstart.yaml",
        **{
            **small.ALL_SAMPLES,
            "OUTPUT_DIR": str(folder),
            "DATASETS.TRAIN": (dataset,),
            "DATASETS.TEST": (),
            "MODEL.ROI_HEADS.NUM_CLASSES": NUM_CLASSES,
            "INPUT.MIN_SIZE_TRAIN": (96,),
            "INPUT.MIN_SIZE_TEST": 96,
            "INPUT.RANDOM_FLIP": "none",
            "SOLVER.IMS_PER_BATCH": 4,
            "SOLVER.MAX_ITER": 1,
            "SOLVER.WARMUP_ITERS": 0,
            "DATALOADER.NUM_WORKERS": 0,
            **changes,
        },
    )


def make_trainer(folder, dataset, **changes):
    """Returns the Trainer of Detectron2's tools/train_net.py."""
    folder.mkdir(exist_ok=True)
    seed_all_rng(0)
    return load_stock("train_net").Trainer(tiny_config(folder, dataset, **changes))


@pytest.fixture
def four_images(tmp_path, register):
    """Registers a data set of four images, which are all in every batch of four."""
    name = f"four_images_of_{tmp_path.name}"
    register(name, generate_shapes(str(tmp_path / "data"), 4, seed=3))
    return name


def parameters(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


SIX_STEPS = {
    "SOLVER.MAX_ITER": 6,
    "SOLVER.CHECKPOINT_PERIOD": 2,
    # A resumed training has its images in another order. CARAFE amplifies the rounding of that.
    "MODEL.BACKBONE.NAME": "build_mrcnn_resnet_pafpn_backbone",
    "MODEL.FPN.UPSAMPLE": "nearest",
}


@pytest.fixture
def one_thread():
    """Several threads add up gradients with different rounding, which the steps of a training amplify."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train_until_killed(folder, entry):
    # A forked process has no other threads than the one that called fork.
    torch.set_num_threads(1)
    register_coco_json([entry])
    trainer = make_trainer(folder, entry[0], **SIX_STEPS)

    def kill(_):
        if trainer.iter == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    trainer.register_hooks([hooks.CallbackHook(after_step=kill)])
    trainer.train()


@needs_saved_optimizer
def test_a_killed_training_resumes_from_its_last_checkpoint(tmp_path, four_images, one_thread):
    metadata = MetadataCatalog.get(four_images)
    killed = multiprocessing.get_context(START_METHOD).Process(
        target=train_until_killed,
        args=(tmp_path / "killed", [four_images, metadata.json_file, metadata.image_root]),
    )
    killed.start()

    def train(folder, resume):
        trainer = make_trainer(folder, four_images, **SIX_STEPS)
        trainer.resume_or_load(resume=resume)
        batches = []
        trainer.model.register_forward_pre_hook(
            lambda _, inputs: batches.append([x["image_id"] for x in inputs[0]])
        )
        trainer.train()
        return trainer, batches

    whole, whole_batches = train(tmp_path / "whole", resume=False)
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "model_final.pth").exists()
    resumed, batches = train(tmp_path / "killed", resume=True)
    assert resumed.start_iter == 4 and resumed.iter == 6
    for name in ("total_loss", "lr"):
        expected, actual = (t.storage.history(name).values()[-2:] for t in (whole, resumed))
        assert [i for _, i in actual] == [i for _, i in expected] == [4, 5]
        assert [v for v, _ in actual] == pytest.approx([v for v, _ in expected], rel=1e-4)
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(
            resumed.model.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name
        )
    # Detectron2's sampler is not in the checkpoint: images come in the order of a new training.
    assert batches == whole_batches[:2] != whole_batches[4:]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine with a GPU trains so")
@pytest.mark.filterwarnings("ignore")
def test_mixed_precision_of_the_stock_trainer_needs_a_gpu(tmp_path, four_images):
    trainer = make_trainer(tmp_path, four_images, **{"SOLVER.AMP.ENABLED": True})
    with pytest.raises(AssertionError, match="CUDA is required for AMP training"):
        trainer.train()


@pytest.mark.parametrize("clip", [True, False])
def test_gradients_are_clipped(clip):
    torch.manual_seed(0)
    cfg = small.config(
        SOLVER__CLIP_GRADIENTS__ENABLED=clip,
        SOLVER__CLIP_GRADIENTS__CLIP_TYPE="value",
        SOLVER__CLIP_GRADIENTS__CLIP_VALUE=1e-3,
        SOLVER__BASE_LR=1.0,
        SOLVER__WEIGHT_DECAY=0.0,
    )
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    before = parameters(model)
    with EventStorage():
        sum(model(small.batch((64, 96))).values()).backward()
    optimizer.step()
    steps = [(p - before[n]).abs().max() for n, p in model.named_parameters()]
    assert (max(steps) <= 1.01e-3) == clip


def test_precise_statistics_of_batch_norm_are_computed(tmp_path, four_images):
    trainer = make_trainer(
        tmp_path,
        four_images,
        **{
            "MODEL.RESNETS.NORM": "BN",
            "TEST.PRECISE_BN.ENABLED": True,
            "TEST.PRECISE_BN.NUM_ITER": 2,
        },
    )
    norm = trainer.model.backbone.bottom_up.stem.conv1.norm
    assert isinstance(norm, nn.BatchNorm2d)
    inputs = []
    norm.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
    trainer.train()
    # The last input comes from the hook, which runs after the last step. All batches are the same.
    assert len(inputs) == 3
    torch.testing.assert_close(
        norm.running_mean, inputs[-1].mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-4
    )


def test_evaluates_periodically_and_keeps_the_best_checkpoint(tmp_path, four_images):
    trainer = make_trainer(
        tmp_path,
        four_images,
        **{"DATASETS.TEST": (four_images,), "SOLVER.MAX_ITER": 3, "TEST.EVAL_PERIOD": 1},
    )
    # After two steps, the AP is still zero. This number stands for it, and rises and falls.
    quality = iter([1.0, 3.0, 2.0])
    trainer.register_hooks(
        [
            hooks.CallbackHook(after_step=lambda t: t.storage.put_scalar("quality", next(quality))),
            hooks.BestCheckpointer(1, trainer.checkpointer, "quality"),
        ]
    )
    trainer.train()
    evaluations = trainer.storage.history("segm/AP").values()
    assert [iteration for _, iteration in evaluations] == [0, 1, 3]  # 3 is after the training
    assert torch.load(tmp_path / "model_best.pth", weights_only=True)["iteration"] == 1


def test_frozen_stages_stay_as_they_are(tmp_path, four_images):
    trainer = make_trainer(tmp_path, four_images, **{"MODEL.BACKBONE.FREEZE_AT": 2})
    before = parameters(trainer.model)
    trainer.train()
    now = parameters(trainer.model)
    changed = {name for name in before if not torch.equal(before[name], now[name])}
    bottom_up = {name for name in before if name.startswith("backbone.bottom_up")}
    frozen = {name for name in bottom_up if ".stem." in name or ".res2." in name}
    assert frozen and not changed & frozen
    assert {name for name in bottom_up - frozen if ".norm." not in name} <= changed


@pytest.fixture
def without_objects(tmp_path, register):
    """Registers a data set of images without objects. Their size differs from `four_images`."""
    json_file = generate_shapes(str(tmp_path / "empty"), 2, seed=4, image_size=(64, 160))
    content = json.loads(open(json_file).read())
    content["annotations"] = []
    with open(json_file, "w") as f:
        json.dump(content, f)
    name = f"without_objects_of_{tmp_path.name}"
    register(name, json_file)
    return name


@pytest.mark.parametrize("with_others", [True, False])
def test_images_without_objects_take_a_training_step(
    with_others, tmp_path, four_images, without_objects
):
    names = (four_images, without_objects) if with_others else (without_objects,)
    trainer = make_trainer(
        tmp_path,
        without_objects,
        **{
            "DATASETS.TRAIN": names,
            "DATALOADER.FILTER_EMPTY_ANNOTATIONS": False,
            "DATALOADER.ASPECT_RATIO_GROUPING": False,
            "SOLVER.IMS_PER_BATCH": 6 if with_others else 2,
        },
    )
    batches = []
    trainer.model.register_forward_pre_hook(lambda _, inputs: batches.append(inputs[0]))
    trainer.train()
    ((*batch,),) = batches
    assert {len(x["instances"]) > 0 for x in batch} == ({True, False} if with_others else {False})
    assert len({x["image"].shape for x in batch}) == (2 if with_others else 1)
    losses = {n: trainer.storage.history(n).latest() for n in LOSSES}
    assert all(math.isfinite(value) for value in losses.values()) and losses["loss_cls"] > 0
    assert (losses["loss_mask"] > 0) == with_others


@pytest.mark.parametrize("norm", ["SyncBN", "nnSyncBN"])
def test_a_mask_head_with_sync_bn_needs_objects(norm):
    model = build_model(small.config(MODEL__ROI_MASK_HEAD__NORM=norm)).train()
    with EventStorage(), pytest.raises(AssertionError, match="does not support empty inputs"):
        model(small.batch((64, 64), objects=False))


def test_augmentation_at_test_time_works(environment, tmp_path, four_images):
    """An augmentation that changes nothing gives the plain detections. A real one is evaluated."""
    stock = load_stock("train_net")
    for sizes, flip in (((96,), False), ((64, 128), True)):
        folder = tmp_path / str(flip)
        cfg = tiny_config(
            folder,
            four_images,
            **{
                "DATASETS.TEST": (four_images,),
                "TEST.AUG.ENABLED": True,
                "TEST.AUG.MIN_SIZES": sizes,
                "TEST.AUG.FLIP": flip,
            },
        )
        path = tmp_path / "config.yaml"
        path.write_text(cfg.dump())
        seed_all_rng(0)
        results = stock.main(
            default_argument_parser().parse_args(["--config-file", str(path), "--eval-only"])
        )
        assert {"bbox", "segm", "bbox_TTA", "segm_TTA"} <= results.keys()
        plain, augmented = (
            json.loads((folder / name / "coco_instances_results.json").read_text())
            for name in ("inference", "inference_TTA")
        )
        assert plain and (plain == augmented) == (not flip)


def run_script(monkeypatch, name, *arguments):
    """Runs a script of Detectron2's tools/ as `python tools/<name>.py arguments`, in this process."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(small.STOCK_TOOLS / f"{name}.py"), run_name="__main__")


def test_analyze_model_counts_the_operator(environment, monkeypatch, tmp_path, four_images, log):
    detectron2_module("utils.analysis")
    path = tmp_path / "config.yaml"
    path.write_text(tiny_config(tmp_path, four_images, **{"DATASETS.TEST": (four_images,)}).dump())
    tasks = ("flop", "activation", "parameter", "structure")
    run_script(
        monkeypatch, "analyze_model", "--config-file", path, "--tasks", *tasks, "--num-inputs", 2
    )
    flops = re.search(r"Average GFlops for each type of operators:\n(.*)", log.text)[1]
    assert {"roi_align", "addcmul"} <= dict(ast.literal_eval(flops)).keys()
    # The counter of activations knows little more than convolutions, so only the flops are checked.
    assert "Unsupported operator mrcnn_plugin" not in log.text.partition("Total GFlops")[0]
    assert "(Million) Activations" in log.text
    assert re.search(r"roi_heads.box_predictor.cls_score *\|", log.text)
    assert "(roi_heads): MRCNNFocalROIHeads" in log.text


def test_visualize_data_draws_the_annotations(environment, monkeypatch, tmp_path, four_images):
    path = tmp_path / "config.yaml"
    path.write_text(tiny_config(tmp_path, four_images).dump())
    output = tmp_path / "pictures"
    arguments = ("--source", "annotation", "--config-file", path, "--output-dir", output)
    run_script(monkeypatch, "visualize_data", *arguments)
    images = tmp_path / "data" / "images"
    assert sorted(os.listdir(output)) == sorted(os.listdir(images))
    for name in os.listdir(output):
        assert (output / name).read_bytes() != (images / name).read_bytes()


def distributed_steps(folder):
    """Takes two steps in one of two processes, with an image of its own, and saves the gradients."""
    torch.set_num_threads(1)
    rank = comm.get_rank()
    torch.manual_seed(rank)
    model = build_model(small.config(**DISTRIBUTED))
    # DefaultTrainer calls this if there is more than one process.
    with pytest.raises(ValueError, match="device_ids .* only work with"):
        create_ddp_model(model, broadcast_buffers=False)
    model = create_ddp_model(model, broadcast_buffers=False, device_ids=None)
    optimizer = build_optimizer(small.config(**DISTRIBUTED), model)
    start = {name: value.clone() for name, value in model.module.state_dict().items()}
    gradients = []
    for _ in range(2):
        optimizer.zero_grad()
        with EventStorage():
            sum(model(small.batch(SIZES[rank])).values()).backward()
        gradients.append({n: p.grad.clone() for n, p in model.module.named_parameters()})
        optimizer.step()
    torch.save((start, gradients), folder / f"{rank}.pth")


SIZES = [(64, 96), (96, 64)]
DISTRIBUTED = {**small.ALL_SAMPLES, "SOLVER.BASE_LR": 1e-3}


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="with GPUs, launch wants one for each process"
)
@needs_launch_without_gpus
def test_two_processes_without_gpus_average_their_gradients(tmp_path, monkeypatch):
    start_processes = functools.partial(
        torch.multiprocessing.start_processes, start_method=START_METHOD
    )
    monkeypatch.setattr(torch.multiprocessing, "start_processes", start_processes)
    launch(distributed_steps, 2, dist_url="auto", args=(tmp_path,))
    (start, gradients), (other_start, other_gradients) = (
        torch.load(tmp_path / f"{rank}.pth") for rank in range(2)
    )
    assert all(torch.equal(start[name], other_start[name]) for name in start)
    for mine, others in zip(gradients, other_gradients, strict=True):
        assert all(torch.equal(mine[name], others[name]) for name in mine)
    model = build_model(small.config(**DISTRIBUTED))
    model.load_state_dict(start)
    for size in SIZES:
        with EventStorage():
            (sum(model(small.batch(size)).values()) / 2).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(gradients[0][name], p.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_1203_classes_train_with_repeated_rare_images(tmp_path, four_images):
    """As in LVIS, there are 1203 classes, its sampler, and many detections of low score."""
    trainer = make_trainer(
        tmp_path,
        four_images,
        **{
            "MODEL.ROI_HEADS.NUM_CLASSES": 1203,
            "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
            "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0001,
            "TEST.DETECTIONS_PER_IMAGE": 300,
            "DATALOADER.SAMPLER_TRAIN": "RepeatFactorTrainingSampler",
            "DATALOADER.REPEAT_THRESHOLD": 0.001,
        },
    )
    trainer.train()
    assert all(math.isfinite(trainer.storage.history(name).latest()) for name in LOSSES)
    with torch.no_grad():
        (output,) = trainer.model.eval()(small.batch((64, 96)))
    assert len(output["instances"]) == 300


def test_keypoints_are_trained_and_evaluated(environment, tmp_path, register):
    """The 17 keypoints that COCO has are points on a grid in the box of a shape."""
    json_file = generate_shapes(str(tmp_path / "data"), 2, seed=3)
    with open(json_file) as f:
        content = json.load(f)
    content["categories"] = content["categories"][:1]
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["category_id"] = content["categories"][0]["id"]
        annotation["num_keypoints"] = 17
        annotation["keypoints"] = [
            value
            for i in range(17)
            for value in (x + i % 5 * width / 5, y + i // 5 * height / 5, 2)
        ]
    with open(json_file, "w") as f:
        json.dump(content, f)
    name = f"keypoints_of_{tmp_path.name}"
    register(name, json_file)
    # Detectron2 wants these in the metadata, because a COCO file does not have them.
    MetadataCatalog.get(name).set(keypoint_names=list(map(str, range(17))), keypoint_flip_map=[])
    cfg = tiny_config(
        tmp_path,
        name,
        **{
            "DATASETS.TEST": (name,),
            "MODEL.MASK_ON": False,
            "MODEL.KEYPOINT_ON": True,
            "MODEL.ROI_HEADS.NUM_CLASSES": 1,
            "MODEL.ROI_KEYPOINT_HEAD.POOLER_TYPE": "ROIAlignBicubic",
            "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": (16,),
            "SOLVER.IMS_PER_BATCH": 2,
        },
    )
    path = tmp_path / "config.yaml"
    path.write_text(cfg.dump())
    load_stock("train_net").main(default_argument_parser().parse_args(["--config-file", str(path)]))
    metrics = {}
    for line in (tmp_path / "metrics.json").read_text().splitlines():
        metrics.update(json.loads(line))
    assert metrics["loss_keypoint"] > 0 and math.isfinite(metrics["total_loss"])
    assert {"bbox/AP", "keypoints/AP"} <= metrics.keys()


@pytest.mark.filterwarnings("ignore")  # from tracing, Detectron2 and the old exporter
@pytest.mark.parametrize("opset", [11, 20])
def test_a_whole_model_is_exported_to_onnx(opset, tmp_path):
    """The export is that of Detectron2's tools/deploy/export_model.py, for images of any size."""
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model = build_model(small.config()).eval()

    def inference(model, inputs):
        return [{"instances": model.inference(inputs, do_postprocess=False)[0]}]

    (image,) = small.batch((64, 96))
    export = detectron2_module("export")
    traceable = export.TracingAdapter(model, [{"image": image["image"]}], inference).eval()
    path = tmp_path / "model.onnx"
    torch.onnx.export(
        traceable,
        traceable.flattened_inputs,
        path,
        dynamo=False,
        opset_version=opset,
        input_names=["image"],
        dynamic_axes={"image": {1: "height", 2: "width"}},
    )
    session = onnxruntime.InferenceSession(path)
    # There are few boxes and four levels, so some levels have no box.
    for size in ((64, 96), (128, 160)):
        (image,) = small.batch(size)
        with torch.no_grad():
            expected = traceable(image["image"])
        actual = session.run(None, {"image": image["image"].numpy()})
        assert len(expected[0]) > 0
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(a), e, rtol=1e-3, atol=1e-3)


def test_the_page_names_tests_that_exist():
    text = (small.ROOT / "docs" / "detectron2.md").read_text()
    defined = "".join(path.read_text() for path in (small.ROOT / "tests").rglob("*.py"))
    names = re.findall(r"::(\w+)", text)
    assert len(names) > 10
    for name in names:
        assert re.search(rf"^(def|class|    def) {name}\b", defined, re.MULTILINE), name
    for file in re.findall(r"`((?:\w+/)?test_\w+\.py)", text):
        assert (small.ROOT / "tests" / file).exists(), file
