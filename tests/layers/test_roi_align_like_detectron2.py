"""ROIAlign in bilinear mode passes the tests of Detectron2's own ROIAlign and ROIPooler."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ROIAlign as StockROIAlign
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch import nn

from mrcnn_plugin.layers import ROIAlign
from tests.features import detectron2_module
from tests.layers.cases import random_features, random_rois


def align(size, scale=1.0, ratio=0, aligned=True):
    return ROIAlign(size, scale, ratio, aligned, interpolation="bilinear")


@pytest.mark.parametrize("aligned", [True, False])
def test_a_ramp_gives_its_values_at_the_bin_centres(aligned):
    # The map is 5 y + x, and a bin has the value at its centre, which is 0.25 + 0.5 i from the corner
    # at 1. If boxes are aligned with pixels, that corner is half a pixel before the centre of pixel 1.
    features = torch.arange(25.0).view(1, 1, 5, 5)
    output = align((4, 4), aligned=aligned)(features, torch.tensor([[0.0, 1.0, 1.0, 3.0, 3.0]]))
    first = 4.5 if aligned else 7.5
    expected = [[first + 2.5 * row + 0.5 * column for column in range(4)] for row in range(4)]
    torch.testing.assert_close(output[0, 0], torch.tensor(expected))


def test_a_box_pools_the_same_from_a_map_of_half_the_size():
    features = torch.rand(30, 30, generator=torch.Generator().manual_seed(0))
    half = cv2.resize(features.numpy(), (15, 15), interpolation=cv2.INTER_LINEAR)
    box = torch.tensor([[0.0, 10.0, 10.0, 20.0, 20.0]])
    output = align((5, 5))(features[None, None], box)
    of_half = align((5, 5), 0.5)(torch.from_numpy(half)[None, None], box)
    assert float((output - of_half).abs().max()) < 1e-4


@pytest.mark.parametrize("ratio", [1, 2])
def test_grid_sample_and_the_stock_layer_give_the_same_values(ratio):
    features = random_features(1, 2, 20, 30)
    rois = torch.tensor([[0.0, 3.0, 4.0, 24.0, 17.0]])
    output = align((4, 5), ratio=ratio)(features, rois)
    x = 3 - 0.5 + (np.arange(5 * ratio) + 0.5) * 21 / (5 * ratio)
    y = 4 - 0.5 + (np.arange(4 * ratio) + 0.5) * 13 / (4 * ratio)
    grid = np.stack(np.meshgrid(x * 2 / 29 - 1, y * 2 / 19 - 1), axis=-1)[None]
    sampled = F.grid_sample(features, torch.from_numpy(grid).float(), align_corners=True)
    torch.testing.assert_close(output, F.avg_pool2d(sampled, ratio), rtol=0, atol=1e-5)
    torch.testing.assert_close(output, StockROIAlign((4, 5), 1.0, ratio)(features, rois))


def test_a_box_without_area_pools_zeros_and_has_no_gradient():
    features = torch.rand(1, 3, 5, 5, requires_grad=True)
    output = align((7, 7))(features, torch.tensor([[0.0, 3.0, 3.0, 3.0, 3.0]]))
    assert torch.equal(output, torch.zeros(1, 3, 7, 7))
    output.sum().backward()
    assert torch.equal(features.grad, torch.zeros(1, 3, 5, 5))


def test_zero_images_pool_nothing():
    features = torch.zeros(0, 3, 10, 10, requires_grad=True)
    output = align((7, 7))(features, torch.zeros(0, 5))
    assert output.shape == (0, 3, 7, 7)
    output.sum().backward()
    assert features.grad.shape == features.shape


class TestInAPooler:
    @staticmethod
    def poolers():
        """Returns a stock ROIPooler, and one with our layers."""
        stock, ours = (ROIPooler(7, [1 / 4, 1 / 8], 0, "ROIAlignV2") for _ in range(2))
        ours.level_poolers = nn.ModuleList(align(7, p.spatial_scale) for p in stock.level_poolers)
        return stock, ours

    @staticmethod
    def inputs():
        features = [random_features(2, 4, 64, 96), random_features(2, 4, 32, 48, seed=1)]
        rois = random_rois(20, 2, 256, 384, torch.float32)
        return features, [Boxes(rois[:11, 1:]), Boxes(rois[11:, 1:])]

    def test_it_pools_the_values_of_the_stock_pooler(self):
        stock, ours = self.poolers()
        features, boxes = self.inputs()
        torch.testing.assert_close(ours(features, boxes), stock(features, boxes))

    def test_zero_boxes_pool_nothing(self):
        _, ours = self.poolers()
        features, _ = self.inputs()
        assert ours(features, [Boxes(torch.zeros(0, 4))] * 2).shape == (0, 4, 7, 7)

    def test_it_can_be_traced(self):
        _, ours = self.poolers()
        features, boxes = self.inputs()

        class Wrapper(nn.Module):
            def forward(self, p2, p3, first, second):
                return ours([p2, p3], [Boxes(first), Boxes(second)])

        traced = torch.jit.trace(Wrapper(), (*features, *(b.tensor for b in boxes)))
        fewer = [b.tensor[:5] for b in boxes]
        torch.testing.assert_close(
            traced(*features, *fewer), ours(features, [Boxes(b) for b in fewer])
        )

    def test_it_can_be_scripted(self):
        _, ours = self.poolers()
        features, boxes = self.inputs()
        with detectron2_module("export.torchscript_patch").patch_builtin_len():
            scripted = torch.jit.script(ours)
        torch.testing.assert_close(scripted(features, boxes), ours(features, boxes))
