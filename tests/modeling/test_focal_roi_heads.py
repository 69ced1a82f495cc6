"""FocalROIHeads in a whole model."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from tests import small

LOSSES = ["cross_entropy", "sigmoid_focal", "softmax_focal"]


@pytest.mark.parametrize("cls_loss", LOSSES)
def test_trains_a_step_and_detects(cls_loss):
    torch.manual_seed(0)
    model = build_model(small.config(MODEL__ROI_BOX_HEAD__CLS_LOSS=cls_loss))
    with EventStorage():
        losses = model(small.batch((64, 96), (80, 64)))
    sum(losses.values()).backward()
    assert {"loss_cls", "loss_box_reg", "loss_mask"} <= losses.keys()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    with torch.no_grad():
        outputs = model.eval()(small.batch((64, 96), (80, 64)))
    for output, size in zip(outputs, [(64, 96), (80, 64)], strict=True):
        assert output["instances"].pred_masks.shape[1:] == size
        assert ((output["instances"].scores >= 0) & (output["instances"].scores <= 1)).all()


def test_state_dict_is_that_of_standard_roi_heads():
    ours = build_model(small.config()).state_dict()
    expected = build_model(small.config(**STOCK_HEADS)).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in expected.items()}


STOCK_HEADS = {
    "MODEL__ROI_HEADS__NAME": "StandardROIHeads",
    "MODEL__ROI_BOX_HEAD__POOLER_TYPE": "ROIAlignV2",
    "MODEL__ROI_MASK_HEAD__POOLER_TYPE": "ROIAlignV2",
}


def test_with_cross_entropy_and_stock_poolers_it_is_standard_roi_heads():
    stock = build_model(small.config(**STOCK_HEADS)).eval()
    settings = {**STOCK_HEADS, "MODEL__ROI_HEADS__NAME": "FocalROIHeads"}
    ours = build_model(
        small.config(**settings, MODEL__ROI_BOX_HEAD__CLS_LOSS="cross_entropy")
    ).eval()
    ours.load_state_dict(stock.state_dict())
    with torch.no_grad():
        (expected,), (actual,) = stock(small.batch((64, 96))), ours(small.batch((64, 96)))
    assert len(expected["instances"]) > 0
    for field, value in expected["instances"].get_fields().items():
        value, other = (getattr(v, "tensor", v) for v in (value, actual["instances"].get(field)))
        assert torch.equal(value, other), field
