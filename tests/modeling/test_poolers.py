"""The pooler type ROIAlignBicubic in each ROI head, and stock pooler types beside it."""

import pytest
import torch
from detectron2.layers import ROIAlign as StockROIAlign
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_roi_heads
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torchvision.ops import RoIPool

from mrcnn_plugin.layers import ROIAlign, roi_align
from mrcnn_plugin.modeling.poolers import use_bicubic
from tests import small

SHAPES = {f"p{i}": ShapeSpec(channels=32, stride=2**i) for i in range(2, 6)}
HEADS = ["ROI_BOX_HEAD", "ROI_MASK_HEAD", "ROI_KEYPOINT_HEAD"]


def poolers(cfg):
    heads = build_roi_heads(cfg, SHAPES)
    return [heads.box_pooler, heads.mask_pooler, heads.keypoint_pooler]


@pytest.mark.parametrize("bicubic", HEADS)
def test_each_head_chooses_its_own_pooler(bicubic):
    cfg = small.config(MODEL__KEYPOINT_ON=True, MODEL__ROI_ALIGN__A=-0.75)
    for head in HEADS:
        cfg.MODEL[head].POOLER_TYPE = "ROIAlignBicubic" if head == bicubic else "ROIAlignV2"
    for head, pooler in zip(HEADS, poolers(cfg), strict=True):
        for level in pooler.level_poolers:
            if head == bicubic:
                assert isinstance(level, ROIAlign)
                assert (level.interpolation, level.a, level.aligned) == ("bicubic", -0.75, True)
            else:
                assert isinstance(level, StockROIAlign)
    assert cfg.MODEL[bicubic].POOLER_TYPE == "ROIAlignBicubic", "the config is left as it was"


@pytest.mark.parametrize(
    "name, layer, aligned", [("ROIAlign", StockROIAlign, False), ("ROIPool", RoIPool, None)]
)
def test_stock_pooler_types_still_work(name, layer, aligned):
    cfg = small.config(MODEL__ROI_BOX_HEAD__POOLER_TYPE=name)
    pooler = build_roi_heads(cfg, SHAPES).box_pooler
    for level in pooler.level_poolers:
        assert isinstance(level, layer) and getattr(level, "aligned", None) == aligned


def test_an_unknown_pooler_type_is_an_error():
    with pytest.raises(ValueError, match="Unknown pooler type: ROIAlignCubic"):
        build_roi_heads(small.config(MODEL__ROI_BOX_HEAD__POOLER_TYPE="ROIAlignCubic"), SHAPES)


def test_a_head_that_is_switched_off_needs_no_pooler():
    heads = build_roi_heads(small.config(MODEL__MASK_ON=False), SHAPES)
    assert not heads.mask_on and not hasattr(heads, "mask_pooler")


@pytest.mark.parametrize(
    "side, level", [(111, 0), (112, 1), (223, 1), (224, 2), (448, 3), (0, 0), (3000, 3)]
)
def test_each_box_is_pooled_from_the_level_of_its_size(side, level):
    """FPN, arXiv 1612.03144, eq. 1: level 4 + log2(side / 224), rounded down."""
    features = [torch.full((1, 1, 1024 >> s, 1024 >> s), float(s - 2)) for s in range(2, 6)]
    pooler = use_bicubic(ROIPooler(7, [2.0**-s for s in range(2, 6)], 2, "ROIAlignV2"), a=-0.5)
    pooled = pooler(features, [Boxes(torch.tensor([[0.0, 0.0, side, side]]))])
    assert pooled[0, 0, 0, 0].item() == pytest.approx(level)


def test_pools_what_roi_align_pools():
    features = [torch.randn(2, 4, 64 >> i, 96 >> i) for i in range(4)]
    boxes = [
        Boxes(torch.tensor([[10.0, 20.0, 60.0, 90.0]])),
        Boxes(torch.tensor([[0.0, 0.0, 200.0, 180.0]])),
    ]
    pooler = use_bicubic(ROIPooler(7, [2.0**-s for s in range(2, 6)], 0, "ROIAlignV2"), a=-0.5)
    first, second = pooler(features, boxes)
    torch.testing.assert_close(first, roi_align(features[0][:1], [boxes[0].tensor], 7, 1 / 4)[0])
    torch.testing.assert_close(second, roi_align(features[1][1:], [boxes[1].tensor], 7, 1 / 8)[0])


def test_no_boxes_at_all():
    features = [torch.randn(2, 4, 64 >> i, 96 >> i) for i in range(4)]
    pooler = use_bicubic(ROIPooler(7, [2.0**-s for s in range(2, 6)], 0, "ROIAlignV2"), a=-0.5)
    assert pooler(features, [Boxes(torch.zeros(0, 4))] * 2).shape == (0, 4, 7, 7)
