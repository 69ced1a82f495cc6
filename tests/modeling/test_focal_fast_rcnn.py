"""The focal box predictor against Detectron2's own FastRCNNOutputLayers and the loss oracles."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from mrcnn_plugin.modeling import FocalFastRCNNOutputLayers
from tests import oracles, small

CLASSES = 3
INPUT = ShapeSpec(channels=8)


def stock(**options):
    return FastRCNNOutputLayers(
        INPUT,
        box2box_transform=Box2BoxTransform(weights=(10, 10, 5, 5)),
        num_classes=CLASSES,
        **options,
    )


def focal(**options):
    return FocalFastRCNNOutputLayers(
        INPUT,
        box2box_transform=Box2BoxTransform(weights=(10, 10, 5, 5)),
        num_classes=CLASSES,
        **options,
    )


def proposals(*classes_per_image):
    result = []
    for classes in classes_per_image:
        count = len(classes)
        boxes = torch.tensor([[0.0, 0.0, 10.0, 12.0]]).repeat(count, 1)
        result.append(
            Instances(
                (32, 32),
                proposal_boxes=Boxes(boxes),
                gt_boxes=Boxes(boxes + 1),
                gt_classes=torch.tensor(classes, dtype=torch.int64),
            )
        )
    return result


def losses(layer, scores, targets):
    deltas = torch.zeros(len(scores), 4 * CLASSES, dtype=scores.dtype)
    with EventStorage():
        return layer.losses((scores, deltas), targets)


def gradient(loss, scores):
    (grad,) = torch.autograd.grad(loss, scores)
    return grad


LABELS = [0, 1, 2, 3, 3, 3, 3, 1]  # 3 is background


@pytest.fixture
def scores():
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(len(LABELS), CLASSES + 1, generator=generator) * 3).requires_grad_()


def test_sigmoid_without_focus_equals_stock_sigmoid_cross_entropy(scores):
    ours = losses(
        focal(cls_loss="sigmoid_focal", focal_alpha=-1, focal_gamma=0, normalizer="proposals"),
        scores,
        proposals(LABELS),
    )["loss_cls"]
    expected = losses(stock(use_sigmoid_ce=True), scores, proposals(LABELS))["loss_cls"]
    assert torch.equal(ours, expected)
    assert torch.equal(gradient(ours, scores), gradient(expected, scores))


def test_softmax_without_focus_equals_stock_cross_entropy(scores):
    ours = losses(
        focal(cls_loss="softmax_focal", focal_alpha=-1, focal_gamma=0, normalizer="proposals"),
        scores,
        proposals(LABELS),
    )["loss_cls"]
    expected = losses(stock(), scores, proposals(LABELS))["loss_cls"]
    torch.testing.assert_close(
        ours, expected, rtol=2e-7, atol=0
    )  # torch sums its mean in another order
    assert torch.equal(gradient(ours, scores), gradient(expected, scores))


@pytest.mark.parametrize("options", [{}, {"use_sigmoid_ce": True}])
def test_cross_entropy_is_the_parent(scores, options):
    ours, expected = (
        losses(layer, scores, proposals(LABELS))
        for layer in (focal(cls_loss="cross_entropy", **options), stock(**options))
    )
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[key], expected[key]) for key in ours)


@pytest.mark.parametrize("cls_loss", ["sigmoid_focal", "softmax_focal"])
@pytest.mark.parametrize("alpha, gamma", [(0.25, 2.0), (-1, 0.5), (0.75, 1.0)])
@pytest.mark.parametrize("normalizer, divisor", [("foreground", 4), ("proposals", 8)])
def test_equals_the_equation(scores, cls_loss, alpha, gamma, normalizer, divisor):
    layer = focal(cls_loss=cls_loss, focal_alpha=alpha, focal_gamma=gamma, normalizer=normalizer)
    labels = torch.tensor(LABELS)
    logits = scores.detach().double().numpy()
    if cls_loss == "sigmoid_focal":
        targets = (labels[:, None] == torch.arange(CLASSES)).numpy()
        expected = oracles.sigmoid_focal_loss(logits[:, :CLASSES], targets, alpha, gamma)
    else:
        expected = oracles.softmax_focal_loss(logits, labels.numpy(), alpha, gamma)
    loss = losses(layer, scores, proposals(LABELS))["loss_cls"]
    assert loss.item() == pytest.approx(expected.sum() / divisor, rel=1e-5)


@pytest.mark.parametrize("cls_loss", ["sigmoid_focal", "softmax_focal"])
def test_the_loss_does_not_depend_on_how_proposals_are_spread_over_images(scores, cls_loss):
    together = losses(focal(cls_loss=cls_loss), scores, proposals(LABELS))
    apart = losses(focal(cls_loss=cls_loss), scores, proposals(LABELS[:3], [], LABELS[3:]))
    assert torch.equal(together["loss_cls"], apart["loss_cls"])


def test_the_other_loss_is_that_of_the_parent_and_weights_apply(scores):
    weight = {"loss_cls": 2.0, "loss_box_reg": 3.0}
    weighted = losses(focal(loss_weight=weight), scores, proposals(LABELS))
    plain = losses(focal(), scores, proposals(LABELS))
    expected = losses(stock(), scores, proposals(LABELS))["loss_box_reg"]
    assert torch.equal(plain["loss_box_reg"], expected)
    torch.testing.assert_close(weighted["loss_box_reg"], 3 * expected)
    torch.testing.assert_close(weighted["loss_cls"], 2 * plain["loss_cls"])


@pytest.mark.parametrize("cls_loss", ["sigmoid_focal", "softmax_focal"])
@pytest.mark.parametrize("normalizer", ["foreground", "proposals"])
@pytest.mark.parametrize("images", [[[]], [[], []]])
def test_no_proposals_give_zero_loss_and_gradient(cls_loss, normalizer, images):
    scores = torch.zeros(0, CLASSES + 1, requires_grad=True)
    layer = focal(cls_loss=cls_loss, normalizer=normalizer)
    loss = losses(layer, scores, proposals(*images))["loss_cls"]
    assert loss.item() == 0
    loss.backward()


def test_starts_from_the_prior_probability():
    layer = focal(cls_loss="sigmoid_focal", prior_prob=0.02)
    scores, _ = layer(torch.randn(100, 8) * 0.01)
    (probabilities,) = layer.predict_probs((scores, None), proposals([3] * 100))
    torch.testing.assert_close(
        probabilities[:, :CLASSES], torch.full((100, CLASSES), 0.02), rtol=0.05, atol=0
    )
    assert layer.cls_score.bias[-1] == 0
    for cls_loss in ("softmax_focal", "cross_entropy"):
        assert not focal(cls_loss=cls_loss).cls_score.bias.any()


@pytest.mark.parametrize("cls_loss", ["cross_entropy", "sigmoid_focal", "softmax_focal"])
def test_scores_at_inference(scores, cls_loss):
    probabilities = focal(cls_loss=cls_loss).predict_probs(
        (scores, None), proposals([0] * 3, [0] * 5)
    )
    assert [len(p) for p in probabilities] == [3, 5]
    expected = scores.sigmoid() if cls_loss == "sigmoid_focal" else scores.softmax(dim=1)
    assert torch.equal(torch.cat(probabilities), expected)


def test_the_logged_accuracy_of_sigmoids_is_that_of_what_would_be_detected():
    layer = focal(cls_loss="sigmoid_focal", test_score_thresh=0.05)
    # Likelier than 0.05, likelier than 0.05 but wrong, and not likely enough.
    scores = torch.tensor([[-2.0, -9, -9, 5], [-9, -9, -2, 5], [-9, -9, -3.5, 5]])
    with EventStorage() as storage:
        layer.losses((scores, torch.zeros(3, 4 * CLASSES)), proposals([0, 1, 2]))
    logged = {name: value for name, (value, _) in storage.latest().items()}
    assert logged["fast_rcnn/fg_cls_accuracy"] == pytest.approx(1 / 3)
    assert logged["fast_rcnn/false_negative"] == pytest.approx(1 / 3)


def test_parameters_are_named_and_shaped_as_in_the_parent():
    ours, expected = focal().state_dict(), stock().state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in expected.items()}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"cls_loss": "focal"}, "CLS_LOSS must be one of .*sigmoid_focal.* got 'focal'"),
        ({"focal_alpha": 1.5}, "FOCAL.ALPHA must lie in .* got 1.5"),
        ({"focal_alpha": -0.5}, "FOCAL.ALPHA must lie in .* got -0.5"),
        ({"focal_gamma": -1.0}, "FOCAL.GAMMA must be finite and at least 0, got -1.0"),
        ({"focal_gamma": math.nan}, "FOCAL.GAMMA must be finite"),
        ({"prior_prob": 0.0}, "FOCAL.PRIOR_PROB must lie between 0 and 1, got 0.0"),
        ({"normalizer": "images"}, "FOCAL.NORMALIZER must be one of .*foreground.* got 'images'"),
        (
            {"use_sigmoid_ce": True},
            "USE_SIGMOID_CE .* cannot be combined with CLS_LOSS 'sigmoid_focal'",
        ),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        focal(**options)


def test_every_option_comes_from_its_key():
    cfg = small.config(
        MODEL__ROI_BOX_HEAD__CLS_LOSS="softmax_focal",
        MODEL__ROI_BOX_HEAD__FOCAL__ALPHA=0.5,
        MODEL__ROI_BOX_HEAD__FOCAL__GAMMA=1.5,
        MODEL__ROI_BOX_HEAD__FOCAL__NORMALIZER="proposals",
    )
    layer = FocalFastRCNNOutputLayers(cfg, INPUT)
    options = (layer.cls_loss, layer.focal_alpha, layer.focal_gamma, layer.normalizer)
    assert options == ("softmax_focal", 0.5, 1.5, "proposals")
    cfg = small.config(MODEL__ROI_BOX_HEAD__FOCAL__PRIOR_PROB=0.5)
    assert not FocalFastRCNNOutputLayers(cfg, INPUT).cls_score.bias.any()  # log(0.5 / 0.5)
