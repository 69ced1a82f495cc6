"""BiFPN is compared with the equations of EfficientDet, written out in float64."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from detectron2.structures import ImageList

from mrcnn_plugin.modeling import BiFPN
from mrcnn_plugin.modeling.backbone.bifpn import FusionNode
from tests.features import needs_padding_constraints
from tests.small import BottomUp

FEATURES = ["res3", "res4", "res5"]


def bifpn(norm="", top_block=LastLevelMaxPool, **options):
    return BiFPN(BottomUp(), FEATURES, 32, norm, top_block and top_block(), **options)


@needs_padding_constraints
def test_images_can_be_padded_to_a_square():
    padded = ImageList.from_tensors(
        [torch.zeros(3, 64, 96)], padding_constraints=bifpn(square_pad=256).padding_constraints
    )
    assert padded.tensor.shape == (1, 3, 256, 256)


@pytest.mark.parametrize("depthwise", [True, False])
def test_bifpn_computes_the_equations(depthwise):
    pyramid = bifpn(depthwise=depthwise, num_repeats=2).double()
    for parameter in pyramid.bifpn.parameters():
        torch.nn.init.normal_(parameter, mean=0.1, std=0.3)
    p = dict(pyramid.named_parameters())

    def node(name, *inputs):
        w = p[f"{name}.weight"].clamp(min=0)
        fused = sum(w[i] * x for i, x in enumerate(inputs)) / (w.sum() + 0.0001)
        x = fused * torch.sigmoid(fused)
        if depthwise:
            part = f"{name}.conv.depthwise"
            x = F.conv2d(x, p[f"{part}.weight"], p[f"{part}.bias"], padding=1, groups=32)
            part = f"{name}.conv.pointwise"
            return F.conv2d(x, p[f"{part}.weight"], p[f"{part}.bias"])
        return F.conv2d(x, p[f"{name}.conv.weight"], p[f"{name}.conv.bias"], padding=1)

    def up(x):
        return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)

    def down(x):
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)

    images = torch.randn(2, 3, 64, 128, dtype=torch.float64)
    features = pyramid.bottom_up(images)
    p3 = F.conv2d(features["res3"], p["fpn_lateral3.weight"], p["fpn_lateral3.bias"])
    p4 = F.conv2d(features["res4"], p["fpn_lateral4.weight"], p["fpn_lateral4.bias"])
    p5 = F.conv2d(features["res5"], p["fpn_lateral5.weight"], p["fpn_lateral5.bias"])
    p6 = p5[:, :, ::2, ::2]
    for repeat in ("bifpn.0", "bifpn.1"):
        t5 = node(f"{repeat}.top_down.0", p5, up(p6))
        t4 = node(f"{repeat}.top_down.1", p4, up(t5))
        p3 = node(f"{repeat}.top_down.2", p3, up(t4))
        p4 = node(f"{repeat}.bottom_up.0", p4, t4, down(p3))
        p5 = node(f"{repeat}.bottom_up.1", p5, t5, down(p4))
        p6 = node(f"{repeat}.bottom_up.2", p6, down(p5))
    actual = pyramid(images)
    assert list(actual) == ["p3", "p4", "p5", "p6"]
    for level, expected in {"p3": p3, "p4": p4, "p5": p5, "p6": p6}.items():
        torch.testing.assert_close(actual[level], expected, rtol=1e-12, atol=1e-12)


def test_fusion_weights_are_convex_up_to_epsilon():
    node = FusionNode(3, torch.nn.Identity(), 32, "", depthwise=True)
    assert torch.allclose(node.fusion_weights(), torch.full((3,), 1 / 3), atol=1e-4)
    node.weight.data = torch.tensor([2.0, -1.0, 1.0])
    weights = node.fusion_weights()
    torch.testing.assert_close(weights, torch.tensor([2 / 3.0001, 0.0, 1 / 3.0001]))
    for _ in range(100):
        torch.nn.init.normal_(node.weight)
        weights = node.fusion_weights()
        assert (weights >= 0).all() and 0 <= weights.sum() <= 1
    node.weight.data = torch.full((3,), -1.0)  # the weights are then divided by epsilon alone
    assert (node.fusion_weights() == 0).all()


@pytest.mark.parametrize("top_block", [None, LastLevelMaxPool, lambda: LastLevelP6P7(5, 32)])
@pytest.mark.parametrize("norm", ["", "GN", "BN", "FrozenBN"])
@pytest.mark.parametrize("depthwise", [True, False])
def test_every_parameter_learns(norm, depthwise, top_block):
    torch.manual_seed(0)
    pyramid = bifpn(norm, top_block, depthwise=depthwise, num_repeats=2, upsample="bilinear")
    levels = pyramid(torch.randn(2, 3, 256, 384))
    for name, shape in pyramid.output_shape().items():
        assert levels[name].shape == (2, 32, 256 // shape.stride, 384 // shape.stride)
    sum(level.pow(3).sum() for level in levels.values()).backward()
    dead = [n for n, p in pyramid.named_parameters() if p.grad is None or not p.grad.any()]
    # Batch normalisation removes the bias of the convolution before it.
    assert not [n for n in dead if not (norm == "BN" and n.endswith("depthwise.bias"))]


@pytest.mark.parametrize("norm, smallest", [("", 1 / 30), ("GN", 1 / 3)])
@pytest.mark.parametrize("depthwise", [True, False])
def test_levels_and_gradients_start_with_the_size_of_those_of_fpn(norm, smallest, depthwise):
    torch.manual_seed(0)

    def sizes(pyramid):
        x = torch.randn(2, 3, 128, 192)
        laterals = []
        for stage in (3, 4, 5):
            conv = getattr(pyramid, f"fpn_lateral{stage}")
            # The laterals have the size 1, whatever is below them.
            conv.register_forward_hook(
                lambda _, __, output: (
                    laterals.append(torch.randn_like(output).requires_grad_()) or laterals[-1]
                )
            )
        levels = [level for name, level in pyramid(x).items() if name != "p6"]
        sum((level * torch.randn_like(level)).sum() for level in levels).backward()
        return torch.stack([v.std() for v in levels + [x.grad for x in laterals]])

    stock = sizes(FPN(BottomUp(), FEATURES, 128, norm, top_block=LastLevelMaxPool()))
    ours = sizes(
        BiFPN(BottomUp(), FEATURES, 128, norm, top_block=LastLevelMaxPool(), depthwise=depthwise)
    )
    assert (ours > smallest * stock).all() and (ours < 10 * stock).all()


def test_every_level_sees_every_other():
    pyramid = bifpn(num_repeats=1).double()
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    lateral = {}
    for stage in (3, 4, 5):
        conv = getattr(pyramid, f"fpn_lateral{stage}")
        conv.register_forward_hook(lambda _, __, output, s=stage: lateral.update({s: output}))
    for level in pyramid(images).values():
        gradients = torch.autograd.grad(level.sum(), list(lateral.values()), retain_graph=True)
        assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_carafe_is_learned_by_each_step_of_each_block():
    names = bifpn(upsample="carafe", num_repeats=2).state_dict()
    assert len([n for n in names if n.endswith("encoder.weight")]) == 2 * 3


@pytest.mark.parametrize("top_block, multiple", [(LastLevelMaxPool, 64), (None, 32)])
def test_images_are_padded_so_that_every_level_halves(top_block, multiple):
    assert bifpn(top_block=top_block).size_divisibility == multiple


@pytest.mark.parametrize(
    "in_features, options, message",
    [
        (
            FEATURES,
            {"num_repeats": 0},
            "MODEL.MRCNN_PLUGIN.BIFPN.NUM_REPEATS must be at least 1, got 0",
        ),
        (FEATURES, {"fuse_type": "avg"}, "MODEL.FPN.FUSE_TYPE is 'avg'.*leave it at 'sum'"),
        (["res5"], {}, r"MODEL.FPN.IN_FEATURES is \['res5'\].*at least two levels"),
    ],
)
def test_options_that_cannot_work_are_errors(in_features, options, message):
    with pytest.raises(ValueError, match=message):
        BiFPN(BottomUp(), in_features, 32, **options)


@pytest.mark.parametrize("norm", ["", "GN"])
def test_a_seed_gives_the_same_laterals_and_top_block_as_in_the_stock_fpn(norm):
    states = []
    for pyramid in (FPN, BiFPN):
        torch.manual_seed(0)
        states.append(pyramid(BottomUp(), FEATURES, 32, norm, LastLevelP6P7(5, 32)).state_dict())
    stock, ours = states
    shared = [name for name in ours if not name.startswith("bifpn.")]
    assert shared == [name for name in stock if not name.startswith("fpn_output")]
    assert all(torch.equal(ours[name], stock[name]) for name in shared)


def test_bifpn_has_no_module_that_it_does_not_use():
    pyramid = bifpn()
    assert not isinstance(pyramid, FPN)
    assert {name.rstrip("345") for name, _ in pyramid.named_children()} == {
        "fpn_lateral",
        "top_block",
        "bottom_up",
        "bifpn",
    }
