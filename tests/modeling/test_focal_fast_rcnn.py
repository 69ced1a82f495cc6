"""The focal box predictor is compared with Detectron2's own and with the float64 losses."""

import math

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from mrcnn_plugin.modeling import FocalFastRCNNOutputLayers
from tests import oracles, small
from tests.features import detectron2_module, needs_fed_loss, needs_sigmoid_ce

CLASSES = 3
INPUT = ShapeSpec(channels=8)
SIGMOID = ["sigmoid_focal", "sigmoid_focal_star"]
FOCAL = [*SIGMOID, "softmax_focal"]
ALL = ["cross_entropy", *FOCAL]
# The options with which each loss is a cross entropy.
NO_FOCUS = {
    "sigmoid_focal": dict(focal_alpha=-1, focal_gamma=0, normalizer="proposals"),
    "sigmoid_focal_star": dict(focal_alpha=-1, focal_gamma=1, focal_beta=0, normalizer="proposals"),
    "softmax_focal": dict(focal_alpha=-1, focal_gamma=0, normalizer="proposals"),
}
# The options of a federated loss over 4 of 5 classes and the background.
FED = dict(
    use_sigmoid_ce=True,
    use_fed_loss=True,
    get_fed_loss_cls_weights=lambda: torch.tensor([1.0, 2.0, 3.0, 1.0, 2.0]),
    fed_loss_num_classes=4,
    num_classes=5,
)


def predictor(layer, num_classes=CLASSES, **options):
    transform = Box2BoxTransform(weights=(10, 10, 5, 5))
    return layer(INPUT, box2box_transform=transform, num_classes=num_classes, **options)


def stock(**options):
    return predictor(FastRCNNOutputLayers, **options)


def focal(**options):
    """Returns a focal predictor with RetinaNet's weights, unless the options say otherwise."""
    options = {"focal_alpha": 0.25, "normalizer": "foreground", **options}
    return predictor(FocalFastRCNNOutputLayers, **options)


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
    deltas = torch.zeros(len(scores), layer.bbox_pred.out_features, dtype=scores.dtype)
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


@needs_sigmoid_ce
@pytest.mark.parametrize("cls_loss", SIGMOID)
@pytest.mark.parametrize("use_sigmoid_ce", [False, True])
def test_sigmoid_without_focus_equals_stock_sigmoid_cross_entropy(scores, cls_loss, use_sigmoid_ce):
    layer = focal(cls_loss=cls_loss, use_sigmoid_ce=use_sigmoid_ce, **NO_FOCUS[cls_loss])
    ours = losses(layer, scores, proposals(LABELS))["loss_cls"]
    expected = losses(stock(use_sigmoid_ce=True), scores, proposals(LABELS))["loss_cls"]
    assert torch.equal(ours, expected)
    assert torch.equal(gradient(ours, scores), gradient(expected, scores))


def test_softmax_without_focus_equals_stock_cross_entropy(scores):
    layer = focal(cls_loss="softmax_focal", **NO_FOCUS["softmax_focal"])
    ours = losses(layer, scores, proposals(LABELS))["loss_cls"]
    expected = losses(stock(), scores, proposals(LABELS))["loss_cls"]
    torch.testing.assert_close(
        ours, expected, rtol=2e-7, atol=0
    )  # torch computes its mean in another order
    assert torch.equal(gradient(ours, scores), gradient(expected, scores))


@pytest.mark.parametrize(
    "options", [{}, pytest.param({"use_sigmoid_ce": True}, marks=needs_sigmoid_ce)]
)
def test_cross_entropy_is_the_parent(scores, options):
    ours, expected = (
        losses(layer, scores, proposals(LABELS))
        for layer in (focal(cls_loss="cross_entropy", **options), stock(**options))
    )
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[key], expected[key]) for key in ours)


@pytest.mark.parametrize("cls_loss", ALL)
def test_the_same_seed_gives_the_weights_of_the_parent(cls_loss):
    torch.manual_seed(0)
    expected = stock().state_dict()
    torch.manual_seed(0)
    actual = focal(cls_loss=cls_loss, prior_prob=0.5).state_dict()
    assert all(torch.equal(actual[key], expected[key]) for key in expected)


@pytest.mark.parametrize("cls_loss", FOCAL)
@pytest.mark.parametrize("alpha, gamma", [(0.25, 2.0), (-1.0, 0.5), ([0.1, 0.9, 0.5], 1.0)])
@pytest.mark.parametrize("normalizer, divisor", [("foreground", 4), ("proposals", 8)])
def test_the_loss_equals_the_equation(scores, cls_loss, alpha, gamma, normalizer, divisor):
    layer = focal(cls_loss=cls_loss, focal_alpha=alpha, focal_gamma=gamma, normalizer=normalizer)
    labels = torch.tensor(LABELS)
    logits = scores.detach().double().numpy()
    targets = (labels[:, None] == torch.arange(CLASSES)).numpy()
    if cls_loss == "softmax_focal":
        expected = oracles.softmax_focal_loss(logits, labels.numpy(), alpha, gamma)
    elif cls_loss == "sigmoid_focal":
        expected = oracles.sigmoid_focal_loss(logits[:, :-1], targets, alpha, gamma)
    else:
        expected = oracles.sigmoid_focal_star_loss(logits[:, :-1], targets, alpha, gamma, 1.0)
    loss = losses(layer, scores, proposals(LABELS))["loss_cls"]
    assert loss.item() == pytest.approx(expected.sum() / divisor, rel=1e-5)


@needs_fed_loss
class TestFederatedLoss:
    """The loss is that of Gupta et al., arXiv 1908.03195. Detectron2 chooses the classes that count."""

    labels = [0, 4, 5, 5]
    scores = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)) * 3

    def losses(self, layer, scores, seed):
        torch.manual_seed(seed)
        return losses(layer, scores, proposals(self.labels))["loss_cls"]

    @pytest.mark.parametrize("cls_loss", [*SIGMOID, "cross_entropy"])
    def test_without_focus_the_loss_is_that_of_the_parent(self, cls_loss):
        ours = focal(cls_loss=cls_loss, **NO_FOCUS.get(cls_loss, {}), **FED)
        parent = stock(**FED)
        scores = self.scores.clone().requires_grad_()
        values = set()
        for seed in range(8):
            actual, expected = (self.losses(layer, scores, seed) for layer in (ours, parent))
            assert torch.equal(actual, expected)
            assert torch.equal(gradient(actual, scores), gradient(expected, scores))
            values.add(actual.item())
        assert len(values) == 3  # one more class beside those of the ground truth: 1, 2 or 3

    @pytest.mark.parametrize("cls_loss", SIGMOID)
    @pytest.mark.parametrize("weights", [{}, {"loss_weight": {"loss_cls": 2.0}}])
    def test_other_classes_do_not_count(self, cls_loss, weights):
        layer = focal(cls_loss=cls_loss, **weights, **FED)
        scores = self.scores.clone().requires_grad_()
        grad = gradient(self.losses(layer, scores, 0), scores)
        counts = grad.abs().sum(0) > 0
        assert counts[[0, 4]].all() and counts[1:4].sum() == 1 and not counts[5]
        plain = focal(cls_loss=cls_loss, **weights, num_classes=5)
        expected = gradient(self.losses(plain, scores, 0), scores)
        torch.testing.assert_close(grad, expected * counts)

    def test_it_works_with_as_many_classes_as_lvis(self):
        """The metadata of the data set has the frequencies of 1,203 classes."""
        generator = torch.Generator().manual_seed(0)
        counts = torch.randint(1, 1000, (1203,), generator=generator).tolist()
        meta = MetadataCatalog.get("test_fed_loss")
        meta.class_image_count = [{"id": i + 1, "image_count": n} for i, n in enumerate(counts)]
        try:
            layer = FocalFastRCNNOutputLayers(
                small.config(
                    DATASETS__TRAIN=("test_fed_loss",),
                    MODEL__ROI_HEADS__NUM_CLASSES=1203,
                    MODEL__ROI_BOX_HEAD__CLS_LOSS="sigmoid_focal",
                    MODEL__ROI_BOX_HEAD__USE_SIGMOID_CE=True,
                    MODEL__ROI_BOX_HEAD__USE_FED_LOSS=True,
                ),
                INPUT,
            )
        finally:
            MetadataCatalog.remove("test_fed_loss")
        scores = torch.zeros(6, 1204, requires_grad=True)
        loss = losses(layer, scores, proposals([0, 1202, 7, 1203, 1203, 1203]))["loss_cls"]
        counts = gradient(loss, scores).abs().sum(0) > 0
        assert counts[[0, 7, 1202]].all() and counts.sum() == 49  # 50 with the background

    @pytest.mark.parametrize("cls_loss", SIGMOID)
    def test_no_proposals_give_a_loss_of_zero(self, cls_loss):
        layer = focal(cls_loss=cls_loss, **FED)
        scores = torch.zeros(0, 6, requires_grad=True)
        loss = losses(layer, scores, proposals([]))["loss_cls"]
        loss.backward()
        assert loss.item() == 0


@pytest.mark.parametrize("cls_loss", FOCAL)
def test_the_loss_does_not_depend_on_how_proposals_are_spread_over_images(scores, cls_loss):
    together = losses(focal(cls_loss=cls_loss), scores, proposals(LABELS))
    apart = losses(focal(cls_loss=cls_loss), scores, proposals(LABELS[:3], [], LABELS[3:]))
    assert torch.equal(together["loss_cls"], apart["loss_cls"])


def test_the_box_loss_is_that_of_the_parent_and_weights_apply(scores):
    weight = {"loss_cls": 2.0, "loss_box_reg": 3.0}
    weighted = losses(focal(loss_weight=weight), scores, proposals(LABELS))
    plain = losses(focal(), scores, proposals(LABELS))
    expected = losses(stock(), scores, proposals(LABELS))["loss_box_reg"]
    assert torch.equal(plain["loss_box_reg"], expected)
    torch.testing.assert_close(weighted["loss_box_reg"], 3 * expected)
    torch.testing.assert_close(weighted["loss_cls"], 2 * plain["loss_cls"])


@pytest.mark.parametrize("cls_loss", FOCAL)
@pytest.mark.parametrize("normalizer", ["foreground", "proposals"])
@pytest.mark.parametrize("images", [[[]], [[], []]])
def test_no_proposals_give_zero_loss_and_gradient(cls_loss, normalizer, images):
    scores = torch.zeros(0, CLASSES + 1, requires_grad=True)
    layer = focal(cls_loss=cls_loss, normalizer=normalizer)
    loss = losses(layer, scores, proposals(*images))["loss_cls"]
    assert loss.item() == 0
    loss.backward()


@pytest.mark.parametrize(
    "cls_loss, options",
    [*((c, {}) for c in ALL), *(pytest.param(c, FED, marks=needs_fed_loss) for c in SIGMOID)],
)
def test_no_images_give_zero_losses_and_no_detections(cls_loss, options):
    """The losses are zero. The parent accepts such a batch only if boxes are class-agnostic."""
    layer = focal(cls_loss=cls_loss, cls_agnostic_bbox_reg=True, **options)
    predictions = layer(torch.zeros(0, 8))
    with EventStorage():
        loss = layer.losses(predictions, [])
    assert all(value.item() == 0 for value in loss.values())
    sum(loss.values()).backward()
    assert all(p.grad is not None for p in layer.parameters())
    assert layer.inference(predictions, []) == ([], [])


@pytest.mark.parametrize("cls_loss", FOCAL)
def test_no_images_give_zero_losses_with_boxes_of_each_class(cls_loss):
    layer = focal(cls_loss=cls_loss)
    with EventStorage():
        loss = layer.losses(layer(torch.zeros(0, 8)), [])
    sum(loss.values()).backward()
    assert all(value.item() == 0 for value in loss.values())
    assert all(p.grad is not None for p in layer.parameters())


@pytest.mark.parametrize("cls_loss", FOCAL)
def test_no_cross_entropy_is_computed_beside_the_focal_loss(scores, cls_loss, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a loss that nobody asked for")

    monkeypatch.setattr("detectron2.modeling.roi_heads.fast_rcnn.cross_entropy", refuse)
    with pytest.raises(AssertionError, match="nobody asked for"):
        losses(focal(cls_loss="cross_entropy"), scores, proposals(LABELS))
    assert losses(focal(cls_loss=cls_loss), scores, proposals(LABELS))["loss_cls"] > 0


@pytest.mark.parametrize("cls_loss", FOCAL)
def test_without_foreground_the_loss_is_not_divided(scores, cls_loss):
    background = [CLASSES] * len(LABELS)
    mean, total = (
        losses(focal(cls_loss=cls_loss, normalizer=n), scores, proposals(background))["loss_cls"]
        for n in ("proposals", "foreground")
    )
    assert mean > 0
    torch.testing.assert_close(total, len(LABELS) * mean)
    assert gradient(total, scores).abs().sum() > 0


@pytest.mark.parametrize("cls_loss", ALL)
@pytest.mark.parametrize("classes", [1, 1203])
def test_one_class_and_as_many_as_in_lvis_work(cls_loss, classes):
    layer = focal(cls_loss=cls_loss, num_classes=classes, focal_alpha=[0.25] * classes)
    scores, deltas = layer(torch.randn(4, 8))
    assert scores.shape == (4, classes + 1)
    targets = proposals([0, classes - 1, classes, classes])
    loss = losses(layer, scores, targets)["loss_cls"]
    grad = gradient(loss, scores)
    assert loss > 0 and grad.isfinite().all() and grad[0, 0] < 0 and grad[1, classes - 1] < 0
    (detections,), _ = layer.inference((scores, deltas), targets)
    assert detections.pred_classes.max() < classes


@pytest.mark.parametrize(
    "cls_loss, dtype",
    [
        # In float16, the sum of the parent overflows. Mixed precision computes it in float32.
        *((c, torch.float16) for c in FOCAL),
        *((c, dtype) for c in ALL for dtype in (torch.float32, torch.bfloat16)),
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("labels", [LABELS, [CLASSES] * len(LABELS)])
def test_value_and_gradient_are_finite_at_logits_of_ten_thousand(cls_loss, dtype, sign, labels):
    scores = torch.full((len(labels), CLASSES + 1), sign * 1e4)
    scores[::2, ::2] *= -1
    scores = scores.to(dtype).requires_grad_()
    loss = losses(focal(cls_loss=cls_loss), scores, proposals(labels))["loss_cls"]
    assert loss.isfinite() and loss > 0
    assert gradient(loss, scores).isfinite().all()


@pytest.mark.parametrize("cls_loss", ALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_under_autocast_the_loss_has_full_precision(cls_loss, dtype):
    layer = focal(cls_loss=cls_loss)
    features = torch.randn(len(LABELS), 8) * 100
    expected = losses(layer, layer(features)[0], proposals(LABELS))["loss_cls"]
    with torch.autocast("cpu", dtype):
        scores, _ = layer(features)
        loss = losses(layer, scores, proposals(LABELS))["loss_cls"]
    assert scores.dtype == dtype and loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.02, atol=0)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in layer.cls_score.parameters())


@pytest.mark.parametrize("cls_loss", FOCAL)
@pytest.mark.parametrize("alpha", [0.25, [0.1, 0.9, 0.5]])
def test_the_loss_does_not_wait_for_the_device(cls_loss, alpha):
    """Meta tensors have no values, so an operation that needs a value on the host raises an error."""
    layer = focal(cls_loss=cls_loss, focal_alpha=alpha).to("meta")
    scores = torch.zeros(8, CLASSES + 1, device="meta", requires_grad=True)
    loss = layer.focal_loss(scores, torch.zeros(8, dtype=torch.int64, device="meta"))
    assert loss.shape == () and gradient(loss, scores).shape == scores.shape


@pytest.mark.parametrize("cls_loss", SIGMOID)
def test_sigmoids_start_with_the_prior_probability(cls_loss):
    layer = focal(cls_loss=cls_loss, prior_prob=0.02)
    scores, _ = layer(torch.randn(100, 8) * 0.01)
    (probabilities,) = layer.predict_probs((scores, None), proposals([3] * 100))
    torch.testing.assert_close(
        probabilities[:, :CLASSES], torch.full((100, CLASSES), 0.02), rtol=0.05, atol=0
    )
    assert layer.cls_score.bias[-1] == 0


@pytest.mark.parametrize("cls_loss", ["softmax_focal", "cross_entropy"])
def test_a_softmax_has_no_prior(cls_loss):
    assert not focal(cls_loss=cls_loss).cls_score.bias.any()


@pytest.mark.parametrize("cls_loss", ALL)
def test_scores_at_inference_fit_the_loss(scores, cls_loss):
    probabilities = focal(cls_loss=cls_loss).predict_probs(
        (scores, None), proposals([0] * 3, [0] * 5)
    )
    assert [len(p) for p in probabilities] == [3, 5]
    expected = scores.sigmoid() if cls_loss in SIGMOID else scores.softmax(dim=1)
    assert torch.equal(torch.cat(probabilities), expected)


@pytest.mark.parametrize("cls_loss", ALL)
def test_a_trace_takes_another_number_of_proposals(cls_loss):
    layer = focal(cls_loss=cls_loss)

    class Probabilities(torch.nn.Module):
        def forward(self, scores, boxes):
            (probabilities,) = layer.predict_probs(
                (scores, None), [Instances((32, 32), proposal_boxes=Boxes(boxes))]
            )
            return probabilities

    module = Probabilities()
    with detectron2_module("export.torchscript_patch").patch_builtin_len():
        traced = torch.jit.trace(module, (torch.randn(5, 4), torch.randn(5, 4)))
    for count in (15, 1, 0):
        inputs = torch.randn(count, 4), torch.randn(count, 4)
        assert torch.equal(traced(*inputs), module(*inputs))


@pytest.mark.parametrize("cls_loss", SIGMOID)
def test_the_logged_accuracy_of_sigmoids_is_that_of_what_would_be_detected(cls_loss):
    layer = focal(cls_loss=cls_loss, test_score_thresh=0.05)
    # The scores are above 0.05, above 0.05 but in a wrong class, and below 0.05.
    scores = torch.tensor([[-2.0, -9, -9, 5], [-9, -9, -2, 5], [-9, -9, -3.5, 5]])
    with EventStorage() as storage:
        layer.losses((scores, torch.zeros(3, 4 * CLASSES)), proposals([0, 1, 2]))
    logged = {name: value for name, (value, _) in storage.latest().items()}
    assert logged["fast_rcnn/fg_cls_accuracy"] == pytest.approx(1 / 3)
    assert logged["fast_rcnn/false_negative"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_the_accuracy_is_logged_at_thresholds_without_a_logit(scores, threshold):
    layer = focal(cls_loss="sigmoid_focal", test_score_thresh=threshold)
    with EventStorage() as storage:
        layer.losses((scores, torch.zeros(len(LABELS), 4 * CLASSES)), proposals(LABELS))
    # With these thresholds, everything is detected, or nothing.
    assert storage.latest()["fast_rcnn/false_negative"][0] == threshold


@pytest.mark.parametrize("alpha", [0.25, [0.1, 0.9, 0.5]])
def test_parameters_are_named_and_shaped_as_in_the_parent(alpha):
    ours, expected = focal(focal_alpha=alpha).state_dict(), stock().state_dict()
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
        ({"focal_alpha": [0.5, 0.5]}, "FOCAL.ALPHA_PER_CLASS must hold NUM_CLASSES = 3 .* got 2"),
        ({"focal_alpha": [0.5, 2.0, 0.5]}, "FOCAL.ALPHA_PER_CLASS .* in .0, 1., .* 2.0"),
        ({"focal_alpha": [0.5, -1.0, 0.5]}, "FOCAL.ALPHA_PER_CLASS .* -1.0"),
        ({"focal_alpha": [0.5, "1e-1", 0.5]}, "FOCAL.ALPHA_PER_CLASS .* '1e-1'"),
        (
            {"cls_loss": "sigmoid_focal_star", "focal_gamma": 0.0},
            "FOCAL.GAMMA must be above 0 for CLS_LOSS 'sigmoid_focal_star'",
        ),
        ({"focal_beta": math.inf}, "FOCAL.BETA must be finite, got inf"),
        (
            {"cls_loss": "softmax_focal", "use_sigmoid_ce": True},
            "USE_SIGMOID_CE is for independent sigmoids, but CLS_LOSS 'softmax_focal' is a softmax",
        ),
        (
            {"cls_loss": "softmax_focal", "use_fed_loss": True},
            "USE_FED_LOSS is for independent sigmoids, but CLS_LOSS 'softmax_focal' is a softmax",
        ),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        focal(**options)


def test_every_option_comes_from_its_key():
    cfg = small.config(
        MODEL__ROI_BOX_HEAD__CLS_LOSS="sigmoid_focal_star",
        MODEL__ROI_BOX_HEAD__FOCAL__ALPHA=0.5,
        MODEL__ROI_BOX_HEAD__FOCAL__GAMMA=1.5,
        MODEL__ROI_BOX_HEAD__FOCAL__BETA=0.5,
        MODEL__ROI_BOX_HEAD__FOCAL__NORMALIZER="proposals",
    )
    layer = FocalFastRCNNOutputLayers(cfg, INPUT)
    assert layer.cls_loss == "sigmoid_focal_star" and layer.normalizer == "proposals"
    assert (layer.focal_alpha, layer.focal_gamma, layer.focal_beta) == (0.5, 1.5, 0.5)
    cfg.MODEL.ROI_BOX_HEAD.FOCAL.ALPHA_PER_CLASS = [0.1, 0.2, 0.3]
    layer = FocalFastRCNNOutputLayers(cfg, INPUT)
    assert torch.equal(layer.focal_alpha, torch.tensor([0.1, 0.2, 0.3]))
    assert layer.loss_weight == {"loss_cls": 1.0, "loss_box_reg": 1.0}
    cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS_WEIGHT, cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT = 2.0, 3.0
    layer = FocalFastRCNNOutputLayers(cfg, INPUT)
    assert layer.loss_weight == {"loss_cls": 2.0, "loss_box_reg": 3.0}
    cfg = small.config(MODEL__ROI_BOX_HEAD__FOCAL__PRIOR_PROB=0.5)
    assert not FocalFastRCNNOutputLayers(cfg, INPUT).cls_score.bias.any()  # log(0.5 / 0.5)


@pytest.mark.parametrize("weight", [-1.0, math.inf, math.nan])
def test_a_bad_loss_weight_is_named(weight):
    cfg = small.config(MODEL__ROI_BOX_HEAD__CLS_LOSS_WEIGHT=weight)
    with pytest.raises(ValueError, match=f"CLS_LOSS_WEIGHT must be finite .*, got {weight}"):
        FocalFastRCNNOutputLayers(cfg, INPUT)


def test_the_weight_applies_to_cross_entropy_too(scores):
    weight = {"loss_cls": 2.0}
    ours = losses(focal(cls_loss="cross_entropy", loss_weight=weight), scores, proposals(LABELS))
    expected = losses(stock(), scores, proposals(LABELS))
    torch.testing.assert_close(ours["loss_cls"], 2 * expected["loss_cls"])
