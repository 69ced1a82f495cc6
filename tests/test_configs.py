"""Every YAML of configs/ builds its model, takes a training step and detects."""

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.structures import PolygonMasks
from detectron2.utils.events import EventStorage

from mrcnn_plugin.layers import ROIAlign
from tests import small

NAMES = sorted(str(p.relative_to(small.CONFIGS)) for p in small.CONFIGS.rglob("*.yaml"))


def config(name):
    """The config itself; only what would need a GPU, a download or much memory is taken out."""
    cfg = small.get_cfg()
    small.add_mrcnn_config(cfg)
    cfg.merge_from_file(str(small.CONFIGS / name))
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    return cfg


@pytest.mark.parametrize("name", NAMES)
def test_builds_steps_and_detects(name):
    torch.manual_seed(0)
    cfg = config(name)
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    before = [p.detach().clone() for p in model.parameters()]
    inputs = small.batch((64, 96), (96, 64))
    for x in inputs:
        x["instances"].gt_classes %= cfg.MODEL.ROI_HEADS.NUM_CLASSES
        if cfg.INPUT.MASK_FORMAT == "polygon":
            x["instances"].gt_masks = polygons(x["instances"].gt_boxes)
    with EventStorage():
        losses = model(inputs)
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    optimizer.step()
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    with torch.no_grad():
        outputs = model.eval()(small.batch((64, 96)))
    assert outputs[0]["instances"].pred_masks.shape[1:] == (64, 96)


def polygons(boxes):
    return PolygonMasks([[b[[0, 1, 2, 1, 2, 3, 0, 3]].double().numpy()] for b in boxes])


def test_the_headline_has_the_three_components():
    cfg = config("mask_rcnn_focal.yaml")
    model = build_model(cfg)
    assert type(model.backbone).__name__ == "PAFPN" and cfg.MODEL.RESNETS.DEPTH == 50
    heads = model.roi_heads
    assert (
        type(heads).__name__ == "FocalROIHeads" and heads.box_predictor.cls_loss == "sigmoid_focal"
    )
    for pooler in (heads.box_pooler, heads.mask_pooler):
        for level in pooler.level_poolers:
            assert isinstance(level, ROIAlign) and level.interpolation == "bicubic"


def test_the_headline_trains_under_autocast():
    torch.manual_seed(0)
    model = build_model(config("mask_rcnn_focal.yaml"))
    inputs = small.batch((64, 96))
    inputs[0]["instances"].gt_masks = polygons(inputs[0]["instances"].gt_boxes)
    with EventStorage(), torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(inputs)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    "name, classes", [("mask_rcnn_focal.yaml", 80), ("quickstart.yaml", None), ("nuclei.yaml", 1)]
)
def test_the_model_has_the_classes_of_its_data(name, classes):
    cfg = config(name)
    if classes is None:
        classes = len(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == classes
