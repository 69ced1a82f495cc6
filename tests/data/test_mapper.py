"""TrainMapper against Detectron2's own mapper."""

import copy

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.structures import BoxMode
from PIL import Image

from mrcnn_plugin import get_cfg
from mrcnn_plugin.data import TrainMapper


@pytest.mark.parametrize("mask_format", ["bitmask", "polygon"])
def test_without_crops_it_is_detectron2s_own(mask_format, tmp_path):
    file = tmp_path / "image.png"
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    annotation = {
        "bbox": [5, 7, 50, 48],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 0,
        "segmentation": [[5.0, 7.0, 55.0, 20.5, 21.0, 55.0]],
        "iscrowd": 0,
    }
    record = {
        "file_name": str(file),
        "height": 64,
        "width": 64,
        "image_id": 1,
        "annotations": [annotation],
    }
    cfg = get_cfg()
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MASK_FORMAT = mask_format
    cfg.INPUT.MIN_SIZE_TRAIN = (256,)
    cfg.INPUT.RANDOM_FLIP = "none"
    ours, stock = (
        mapper(cfg, is_train=True)(copy.deepcopy(record)) for mapper in (TrainMapper, DatasetMapper)
    )
    assert torch.equal(ours["image"], stock["image"])
    a, b = ours["instances"], stock["instances"]
    assert torch.equal(a.gt_boxes.tensor, b.gt_boxes.tensor)
    if mask_format == "bitmask":
        assert torch.equal(a.gt_masks.tensor, b.gt_masks.tensor)
    else:
        assert [p.tolist() for p in a.gt_masks.polygons[0]] == [
            p.tolist() for p in b.gt_masks.polygons[0]
        ]
