"""UpsampleFPN is compared with Detectron2's FPN, and its upsampling with the definitions."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7

from mrcnn_plugin.modeling import UpsampleFPN
from mrcnn_plugin.modeling.backbone.upsample_fpn import build_upsample
from tests import oracles
from tests.small import BottomUp

FEATURES = ["res2", "res3", "res4", "res5"]


@pytest.mark.parametrize("norm", ["", "GN", "BN"])
@pytest.mark.parametrize("fuse_type", ["sum", "avg"])
@pytest.mark.parametrize("in_features", [FEATURES, FEATURES[1:], FEATURES[3:]])
@pytest.mark.parametrize("top_block", [None, LastLevelMaxPool, lambda: LastLevelP6P7(5, 32)])
def test_nearest_is_exactly_the_stock_fpn(norm, fuse_type, in_features, top_block):
    stock, ours = (
        cls(BottomUp(), in_features, 32, norm, top_block and top_block(), fuse_type)
        for cls in (FPN, UpsampleFPN)
    )
    ours.load_state_dict(stock.state_dict())
    assert ours.output_shape() == stock.output_shape()
    assert ours.size_divisibility == stock.size_divisibility
    images = torch.randn(2, 3, 64, 96)
    expected, actual = stock(images), ours(images)
    assert list(actual) == list(expected)
    assert all(torch.equal(actual[level], expected[level]) for level in expected)
    for levels in (expected, actual):
        sum(level.square().sum() for level in levels.values()).backward()
    for name, parameter in stock.named_parameters():
        assert torch.equal(ours.get_parameter(name).grad, parameter.grad), name


@pytest.mark.parametrize(
    "upsample, kernel",
    [("bilinear", oracles.linear_kernel), ("bicubic", oracles.keys_kernel(-0.75))],
)
def test_interpolation_is_aligned_by_half_pixels(upsample, kernel):
    plane = torch.randn(4, 5, dtype=torch.float64)
    expected = np.empty((8, 10))
    for y, x in np.ndindex(8, 10):
        position = (y + 0.5) / 2 - 0.5, (x + 0.5) / 2 - 0.5
        expected[y, x] = oracles.interpolate(plane.numpy(), *position, kernel)
    actual = build_upsample(upsample, 1)(plane[None, None])[0, 0]
    torch.testing.assert_close(actual, torch.from_numpy(expected), rtol=0, atol=1e-12)


def test_mean_is_that_of_the_neighbours_with_zeros_around():
    plane = torch.randn(4, 6, dtype=torch.float64)
    expected = torch.zeros(8, 12, dtype=torch.float64)
    for y, x in np.ndindex(8, 12):
        neighbours = plane[max(y // 2 - 2, 0) : y // 2 + 3, max(x // 2 - 2, 0) : x // 2 + 3]
        expected[y, x] = neighbours.sum() / 25
    upsample = build_upsample("mean", 1)
    for module in (upsample, torch.jit.script(upsample)):
        actual = module(plane[None, None])[0, 0]
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("fuse_type", ["sum", "avg"])
@pytest.mark.parametrize("upsample", ["bilinear", "bicubic", "carafe"])
def test_the_top_down_path_uses_the_upsampling(upsample, fuse_type):
    fpn = UpsampleFPN(BottomUp(), FEATURES, 8, fuse_type=fuse_type, upsample=upsample).double()
    for parameter in fpn.upsample.parameters():
        torch.nn.init.normal_(parameter)
    images = torch.randn(1, 3, 64, 96, dtype=torch.float64)

    def up(x, stage):
        if upsample == "carafe":
            return fpn.upsample[str(stage)](x)
        return F.interpolate(x, scale_factor=2, mode=upsample, align_corners=False)

    features = fpn.bottom_up(images)
    share = 0.5 if fuse_type == "avg" else 1.0
    m5 = fpn.fpn_lateral5(features["res5"])
    m4 = (fpn.fpn_lateral4(features["res4"]) + up(m5, 4)) * share
    m3 = (fpn.fpn_lateral3(features["res3"]) + up(m4, 3)) * share
    m2 = (fpn.fpn_lateral2(features["res2"]) + up(m3, 2)) * share
    actual = fpn(images)
    torch.testing.assert_close(actual["p5"], fpn.fpn_output5(m5))
    torch.testing.assert_close(actual["p4"], fpn.fpn_output4(m4))
    torch.testing.assert_close(actual["p3"], fpn.fpn_output3(m3))
    torch.testing.assert_close(actual["p2"], fpn.fpn_output2(m2))


def test_only_carafe_has_parameters():
    stock = FPN(BottomUp(), FEATURES, 8).state_dict().keys()
    for upsample in ("nearest", "mean", "bilinear", "bicubic"):
        assert UpsampleFPN(BottomUp(), FEATURES, 8, upsample=upsample).state_dict().keys() == stock
    new = UpsampleFPN(BottomUp(), FEATURES, 8, upsample="carafe").state_dict().keys() - stock
    assert {name.rsplit(".", 2)[0] for name in new} == {f"upsample.{stage}" for stage in (2, 3, 4)}
