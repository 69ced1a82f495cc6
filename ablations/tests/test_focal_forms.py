"""The forms of the focal loss are compared with their equations, written with plain numbers."""

import math

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from ablations import cells, focal_forms
from tests import small

# IoU with the object, and label; 4 is background.
ROWS = [(1.0, 2), (0.7, 0), (0.59, 1), (0.52, 3), (0.45, 4), (0.38, 4), (0.1, 4), (0.0, 4)]
FORMS = ("background", "far", "normalized")


def predictor(form, gamma=2.0):
    key = "MODEL.ROI_BOX_HEAD.FOCAL.GAMMA"
    cfg = cells.load(f"shapes_scales/softmax_focal_{form}", [key, gamma])
    return build_model(cfg).roi_heads.box_predictor


def proposals():
    """One image with the rows, and one without objects."""
    with_objects, without = Instances((100, 100)), Instances((100, 100))
    # The part of the object that a box inside of it covers is their IoU.
    boxes = torch.tensor([[0.0, 0.0, 100 * iou, 50.0] for iou, _ in ROWS])
    with_objects.proposal_boxes = Boxes(boxes)
    with_objects.gt_boxes = Boxes(torch.tensor([[0.0, 0.0, 100.0, 50.0]] * len(ROWS)))
    with_objects.gt_classes = torch.tensor([label for _, label in ROWS])
    without.proposal_boxes = Boxes(torch.tensor([[0.0, 0.0, 9.0, 9.0]]))
    without.gt_classes = torch.tensor([4])
    return [with_objects, without]


def expected(form, scores, gamma):
    p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    rows = [*ROWS, (0.0, 4)]
    factors, losses = [], []
    for row, (iou, label) in zip(p, rows, strict=True):
        factor = (1 - row[label]) ** gamma
        if form == "background" and label != 4 or form == "far" and 0.4 < iou < 0.6:
            factor = 1.0
        factors.append(factor)
        losses.append(-factor * math.log(row[label]))
    return sum(losses) / (sum(factors) if form == "normalized" else len(rows))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_a_form_is_its_equation(form, gamma):
    scores = torch.randn(len(ROWS) + 1, 5, generator=torch.Generator().manual_seed(0)) * 2
    with EventStorage():
        losses = predictor(form, gamma).losses((scores, torch.zeros(len(scores), 16)), proposals())
    reference = expected(form, scores.double().numpy(), gamma)
    assert losses["loss_cls"].item() == pytest.approx(reference, rel=1e-5)


def test_the_iou_is_that_with_the_object_of_a_proposal():
    ious = focal_forms.matched_ious(proposals())
    torch.testing.assert_close(ious, torch.tensor([iou for iou, _ in ROWS] + [0.0]))


@pytest.mark.parametrize("form", FORMS)
def test_a_form_starts_from_the_weights_of_the_stock_model(form):
    models = []
    for name in ("stock", f"softmax_focal_{form}"):
        torch.manual_seed(3)
        models.append(build_model(cells.load(f"shapes_scales/{name}")).state_dict())
    stock, ours = models
    assert ours.keys() == stock.keys()
    assert all(torch.equal(ours[key], stock[key]) for key in stock)


@pytest.mark.parametrize("form", FORMS)
def test_images_without_objects_train(form):
    model = build_model(cells.load(f"shapes_scales/softmax_focal_{form}"))
    with EventStorage():
        losses = model(small.batch((64, 96), objects=False))
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())


def test_another_loss_is_refused():
    opts = ["MODEL.ROI_BOX_HEAD.CLS_LOSS", "sigmoid_focal"]
    with pytest.raises(ValueError, match="CLS_LOSS is 'sigmoid_focal'"):
        build_model(cells.load("shapes_scales/softmax_focal_far", opts))
