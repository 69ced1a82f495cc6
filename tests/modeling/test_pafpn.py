"""PAFPN is compared with Detectron2's FPN, and its second path with the equation."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import FPN, build_backbone, build_model
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7

from mrcnn_plugin.modeling import PAFPN, UpsampleFPN
from tests import small
from tests.small import BottomUp

NAME = "build_mrcnn_resnet_pafpn_backbone"


def pyramids(norm="", top_block=LastLevelMaxPool, in_features=("res2", "res3", "res4", "res5")):
    """Returns a stock FPN, and a PAFPN with the parameters of that FPN."""
    stock = FPN(BottomUp(), list(in_features), 32, norm, top_block=top_block and top_block())
    ours = PAFPN(BottomUp(), list(in_features), 32, norm, top_block=top_block and top_block())
    missing, unexpected = ours.load_state_dict(stock.state_dict(), strict=False)
    assert not unexpected and all(key.startswith("pafpn.") for key in missing)
    return stock, ours


def assert_equal_levels(actual, expected):
    assert list(actual) == list(expected)
    assert all(torch.equal(actual[level], expected[level]) for level in expected)


@pytest.mark.parametrize("norm", ["", "GN", "BN", "FrozenBN"])
@pytest.mark.parametrize("top_block", [None, LastLevelMaxPool, lambda: LastLevelP6P7(5, 32)])
def test_pafpn_starts_as_the_stock_fpn(norm, top_block):
    stock, ours = pyramids(norm, top_block)
    images = torch.randn(2, 3, 64, 96)
    assert_equal_levels(ours(images), stock(images))
    assert ours.output_shape() == stock.output_shape()
    assert ours.size_divisibility == stock.size_divisibility


@pytest.mark.parametrize("norm", ["", "GN", "BN", "FrozenBN"])
def test_the_new_path_learns_from_its_start(norm):
    _, ours = pyramids(norm)
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1)
    images = torch.randn(1, 3, 64, 96)
    before = {name: p.detach().clone() for name, p in ours.named_parameters() if "pafpn" in name}
    for _ in range(
        2
    ):  # the downsampling convolutions get no gradient before the zeros after them have changed
        optimizer.zero_grad()
        sum(level.square().mean() for level in ours(images).values()).backward()
        # They are huge if a norm follows a convolution of zeros.
        gradients = [p.grad for p in ours.pafpn.parameters() if p.grad is not None]
        assert all(gradient.abs().max() < 1 for gradient in gradients)
        optimizer.step()
    unmoved = [
        name for name, value in before.items() if torch.equal(ours.get_parameter(name), value)
    ]
    assert not [name for name in unmoved if name.endswith("weight")]


def test_the_new_path_computes_the_equation():
    stock, ours = pyramids(in_features=("res3", "res4", "res5"))
    for name, parameter in ours.named_parameters():
        if "pafpn" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    weights = dict(ours.named_parameters())

    def conv(name, x, stride):
        return F.conv2d(
            x, weights[f"{name}.weight"], weights[f"{name}.bias"], stride=stride, padding=1
        )

    images = torch.randn(1, 3, 64, 96)
    levels = stock(images)
    for i in (3, 4):
        p = levels[f"p{i + 1}"]
        down = conv(f"pafpn.{i + 1}.downsample", levels[f"p{i}"], 2).relu()
        levels[f"p{i + 1}"] = p + conv(f"pafpn.{i + 1}.output", p + down, 1)
    levels["p6"] = F.max_pool2d(levels["p5"], 1, 2)
    actual = ours(images)
    for level, expected in levels.items():
        torch.testing.assert_close(actual[level], expected)


@pytest.mark.parametrize("upsample", ["bicubic", "carafe", "gated_carafe"])
def test_the_second_path_starts_from_the_levels_of_the_chosen_upsampling(upsample):
    options = (["res2", "res3", "res4", "res5"], 16)
    fpn = UpsampleFPN(BottomUp(), *options, upsample=upsample)
    ours = PAFPN(BottomUp(), *options, upsample=upsample)
    for parameter in fpn.upsample.parameters():
        torch.nn.init.normal_(parameter)
    missing, unexpected = ours.load_state_dict(fpn.state_dict(), strict=False)
    assert not unexpected and all(key.startswith("pafpn.") for key in missing)
    images = torch.randn(1, 3, 64, 96)
    assert_equal_levels(ours(images), fpn(images))
    nearest = PAFPN(BottomUp(), *options)
    nearest.load_state_dict(ours.state_dict(), strict=False)
    assert not torch.equal(nearest(images)["p2"], ours(images)["p2"])


def test_every_level_sees_the_lowest_one_once_trained():
    _, ours = pyramids()
    for name, parameter in ours.named_parameters():
        if "pafpn" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    ours.fpn_output2.weight.grad = None
    ours(torch.randn(1, 3, 64, 64))["p6"].sum().backward()
    assert ours.fpn_output2.weight.grad.abs().sum() > 0


def test_one_level_is_a_plain_fpn():
    stock, ours = pyramids(in_features=("res5",))
    images = torch.randn(1, 3, 64, 64)
    assert_equal_levels(ours(images), stock(images))


def test_pafpn_is_built_from_yaml():
    changes = {"MODEL__BACKBONE__NAME": NAME, "MODEL__FPN__UPSAMPLE": "bicubic"}
    backbone = build_backbone(small.config(**changes))
    assert isinstance(backbone, PAFPN) and backbone.upsample["4"].mode == "bicubic"
    assert list(backbone.output_shape()) == ["p2", "p3", "p4", "p5", "p6"]


@pytest.mark.parametrize(
    "upsample, new",
    [
        ("nearest", ("backbone.pafpn.",)),
        ("gated_carafe", ("backbone.pafpn.", "backbone.upsample.")),
    ],
)
def test_a_whole_model_with_a_stock_checkpoint_gives_the_stock_outputs(upsample, new):
    stock = build_model(small.config(MODEL__BACKBONE__NAME="build_resnet_fpn_backbone")).eval()
    changes = {"MODEL__BACKBONE__NAME": NAME, "MODEL__FPN__UPSAMPLE": upsample}
    ours = build_model(small.config(**changes)).eval()
    missing, unexpected = ours.load_state_dict(stock.state_dict(), strict=False)
    assert not unexpected and {key[: key.index(".", 9) + 1] for key in missing} == set(new)
    with torch.no_grad():
        expected, actual = (
            stock(small.batch((64, 96), (96, 64))),
            ours(small.batch((64, 96), (96, 64))),
        )
    for a, b in zip(actual, expected, strict=True):
        assert len(b["instances"]) > 0
        for field, value in b["instances"].get_fields().items():
            other = a["instances"].get(field)
            assert torch.equal(getattr(other, "tensor", other), getattr(value, "tensor", value)), (
                field
            )
