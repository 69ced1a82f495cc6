"""MRCNNFocalRPN is compared with the loss in float64 and with Detectron2's RPN."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model, build_proposal_generator
from detectron2.structures import Boxes, ImageList
from detectron2.utils.events import EventStorage
from torch import nn

from mrcnn_plugin.modeling import MRCNNFocalRPN
from tests import oracles, small
from tests.features import detectron2_module

SHAPES = {f"p{i}": ShapeSpec(channels=32, stride=2**i) for i in range(2, 7)}
NO_FOCUS = {"MODEL__RPN__FOCAL__ALPHA": -1.0, "MODEL__RPN__FOCAL__GAMMA": 0.0}
SIZES = [(64, 96), (64, 96)]


def config(name="MRCNNFocalRPN", **changes):
    return small.config(MODEL__PROPOSAL_GENERATOR__NAME=name, **changes)


def rpn(name="MRCNNFocalRPN", **changes):
    return build_proposal_generator(config(name, **changes), SHAPES)


def inputs(objects=True):
    random = torch.Generator().manual_seed(0)
    features = {
        name: torch.randn(2, 32, 64 // shape.stride, 96 // shape.stride, generator=random)
        for name, shape in SHAPES.items()
    }
    targets = [x["instances"] for x in small.batch(*SIZES, objects=objects)]
    return ImageList(torch.zeros(2, 3, 64, 96), SIZES), features, targets


def run(generator, objects=True):
    """Returns the losses of two images, and the number of foreground anchors."""
    with EventStorage() as storage:
        _, losses = generator(*inputs(objects))
    return losses, storage.latest()["rpn/num_pos_anchors"][0] * len(SIZES)


@pytest.mark.parametrize("alpha, gamma", [(0.25, 2.0), (-1.0, 0.5), (0.6, 0.0)])
def test_the_loss_equals_the_equation_over_all_anchors_that_are_not_ignored(alpha, gamma):
    generator = rpn(MODEL__RPN__FOCAL__ALPHA=alpha, MODEL__RPN__FOCAL__GAMMA=gamma)
    logits = (torch.randn(2, 50) * 3).requires_grad_()
    labels = torch.randint(-1, 2, (2, 50))
    counts = labels >= 0
    loss = generator.focal_loss(logits, labels)
    expected = oracles.sigmoid_focal_loss(
        logits.detach().double().numpy(), labels.numpy(), alpha, gamma
    )
    expected = expected[counts.numpy()].sum() / (labels == 1).sum().item()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    (grad,) = torch.autograd.grad(loss, logits)
    assert torch.equal(grad != 0, counts)


def test_without_focus_the_loss_is_the_cross_entropy_of_rpn_without_sampling():
    anchors = 10**6  # more than there are anchors
    stock = rpn("RPN", MODEL__RPN__BATCH_SIZE_PER_IMAGE=anchors)
    ours = rpn(**NO_FOCUS)
    ours.load_state_dict(stock.state_dict())
    expected, foreground = run(stock)
    actual, also = run(ours)
    assert foreground == also > 0
    mean = expected["loss_rpn_cls"] * anchors * len(SIZES) / foreground
    torch.testing.assert_close(actual["loss_rpn_cls"], mean)


@pytest.mark.parametrize("no_focus", [{}, NO_FOCUS])
def test_the_loss_of_boxes_is_that_of_rpn(no_focus):
    stock, ours = rpn("RPN"), rpn(**no_focus)
    ours.load_state_dict(stock.state_dict())
    expected, foreground = run(stock)
    assert 0 < foreground < 128, "the parent keeps them all"
    actual, _ = run(ours)
    assert expected["loss_rpn_loc"] > 0
    torch.testing.assert_close(actual["loss_rpn_loc"], expected["loss_rpn_loc"])


@pytest.mark.parametrize("training", [False, True])
def test_the_proposals_are_those_of_rpn(training):
    stock, ours = rpn("RPN").train(training), rpn().train(training)
    ours.load_state_dict(stock.state_dict())
    images, features, targets = inputs()
    with EventStorage():
        (expected, _), (actual, _) = (rpn(images, features, targets) for rpn in (stock, ours))
    for one, other in zip(expected, actual, strict=True):
        assert len(one) > 0 and one.image_size == other.image_size
        assert torch.equal(one.proposal_boxes.tensor, other.proposal_boxes.tensor)
        assert torch.equal(one.objectness_logits, other.objectness_logits)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_the_rpn_can_be_scripted():
    generator = rpn().eval()
    fields = {"proposal_boxes": Boxes, "objectness_logits": torch.Tensor}
    scripted = detectron2_module("export").scripting_with_instances(generator, fields)
    images, features, _ = inputs()
    (expected, _), (actual, _) = (m(images, features) for m in (generator, scripted))
    for one, other in zip(expected, actual, strict=True):
        assert torch.equal(one.proposal_boxes.tensor, other.proposal_boxes.tensor)


def test_the_weights_of_losses_apply():
    weighted = rpn(MODEL__RPN__LOSS_WEIGHT=2.0, MODEL__RPN__BBOX_REG_LOSS_WEIGHT=3.0)
    plain = rpn()
    plain.load_state_dict(weighted.state_dict())
    (expected, _), (actual, _) = run(plain), run(weighted)
    torch.testing.assert_close(actual["loss_rpn_cls"], 2 * expected["loss_rpn_cls"])
    torch.testing.assert_close(actual["loss_rpn_loc"], 6 * expected["loss_rpn_loc"])


def test_images_without_objects_give_finite_losses():
    generator = rpn()
    losses, foreground = run(generator, objects=False)
    assert foreground == 0
    assert losses["loss_rpn_cls"] > 0 and losses["loss_rpn_cls"].isfinite()
    assert losses["loss_rpn_loc"] == 0
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in generator.parameters())
    assert generator.rpn_head.objectness_logits.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("foreground", [0, 3])
def test_value_and_gradient_are_finite_at_logits_of_ten_thousand(dtype, foreground):
    labels = torch.tensor([[1] * foreground + [0] * (10 - foreground), [-1] * 10])
    logits = torch.tensor([1e4, -1e4] * 10).reshape(2, 10).to(dtype).requires_grad_()
    loss = rpn().focal_loss(logits, labels)
    (grad,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite() and loss > 0 and grad.isfinite().all()


def test_the_loss_does_not_wait_for_the_device():
    """Meta tensors have no values, so an operation that needs a value on the host raises an error."""
    logits, labels = torch.zeros(2, 10, device="meta"), torch.zeros(2, 10, device="meta").long()
    assert rpn().focal_loss(logits, labels).shape == ()


def test_the_objectness_starts_with_the_prior_probability():
    layer = rpn(MODEL__RPN__FOCAL__PRIOR_PROB=0.02).rpn_head.objectness_logits
    probabilities = layer(torch.randn(1, 32, 8, 8)).sigmoid()
    assert 0.01 < probabilities.min() and probabilities.max() < 0.04


def test_the_state_dict_is_that_of_rpn():
    ours, expected = rpn().state_dict(), rpn("RPN").state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in expected.items()}


def test_a_whole_model_trains_a_step_and_detects():
    model = build_model(config())
    assert type(model.proposal_generator) is MRCNNFocalRPN
    before = model.proposal_generator.rpn_head.objectness_logits.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with EventStorage():
        losses = model(small.batch((64, 96), (80, 64)))
    assert all(loss.isfinite() for loss in losses.values()) and losses["loss_rpn_cls"] > 0
    sum(losses.values()).backward()
    optimizer.step()
    assert not torch.equal(model.proposal_generator.rpn_head.objectness_logits.weight, before)
    with torch.no_grad():
        (output,) = model.eval()(small.batch((64, 96)))
    assert len(output["instances"]) > 0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"focal_alpha": 1.5}, "MODEL.RPN.FOCAL.ALPHA must lie in .* got 1.5"),
        ({"focal_gamma": -1.0}, "MODEL.RPN.FOCAL.GAMMA must be finite and at least 0, got -1.0"),
        ({"prior_prob": 1.0}, "MODEL.RPN.FOCAL.PRIOR_PROB must lie between 0 and 1, got 1.0"),
        ({"head": nn.Identity()}, "MODEL.RPN.HEAD_NAME .* `objectness_logits` .* got Identity"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        MRCNNFocalRPN(**{**MRCNNFocalRPN.from_config(config(), SHAPES), **options})
