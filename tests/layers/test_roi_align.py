"""The compiled operator and the PyTorch reference are compared with independent truths."""

import math
import warnings

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from mrcnn_plugin.layers import ROIAlign, roi_align
from mrcnn_plugin.layers import roi_align_reference as implementation
from mrcnn_plugin.layers.roi_align_reference import (
    roi_align_backward_reference,
    roi_align_reference,
)
from mrcnn_plugin.layers.roi_align_registration import HAS_EXTENSION, SCHEMAS, _on_any_device
from tests import oracles
from tests.layers.cases import (
    ALIGNED_AND_RATIO,
    INTERPOLATIONS,
    TOLERANCE,
    assert_same,
    kernel_of,
    random_features,
    random_rois,
)

SIZES = [(7, 7), (3, 5), (1, 2)]


def test_the_extension_is_built():
    assert HAS_EXTENSION


def test_the_fallback_defines_the_schemas_of_the_extension():
    for schema in SCHEMAS:
        name = schema.split("(")[0]
        assert (
            str(getattr(torch.ops.mrcnn_plugin, name).default._schema) == f"mrcnn_plugin::{schema}"
        )


def through_reference(
    features, boxes, size, scale, sampling_ratio, aligned, interpolation="bicubic"
):
    rois = torch.cat([F.pad(b, (1, 0), value=i) for i, b in enumerate(boxes)])
    return roi_align_reference(
        [features], rois, None, [scale], size, size, sampling_ratio, aligned, interpolation, -0.5
    )


class TestValues:
    @pytest.mark.parametrize("interpolation, a", INTERPOLATIONS)
    @pytest.mark.parametrize("aligned", [True, False])
    @pytest.mark.parametrize("sampling_ratio", [0, 1, 3])
    def test_the_result_equals_the_definition(self, interpolation, a, aligned, sampling_ratio):
        features = random_features(2, 2, 9, 13, dtype=torch.float64)
        rois = random_rois(24, 2, 9 * 4, 13 * 4, torch.float64)
        expected = oracles.roi_align(
            features.numpy(),
            rois.numpy(),
            (3, 5),
            0.25,
            sampling_ratio,
            aligned,
            kernel_of(interpolation, a),
        )
        actual = roi_align(
            features, rois, (3, 5), 0.25, sampling_ratio, aligned, interpolation=interpolation, a=a
        )
        assert_same(actual, torch.from_numpy(expected), 1e-12)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("aligned, sampling_ratio", ALIGNED_AND_RATIO)
    @pytest.mark.parametrize("size", SIZES)
    def test_bilinear_equals_torchvision_in_value_and_gradient(
        self, dtype, aligned, sampling_ratio, size
    ):
        features = random_features(2, 3, 17, 29, dtype=dtype).requires_grad_()
        rois = random_rois(40, 2, 17 * 8, 29 * 8, dtype)
        if sampling_ratio == 0:  # torchvision fails to allocate memory for some inverted boxes
            rois[:, 3:] = rois[:, 3:].maximum(rois[:, 1:3])
        args = (rois, size, 0.125, sampling_ratio, aligned)
        actual = roi_align(features, *args, interpolation="bilinear")
        expected = torchvision.ops.roi_align(features, *args)
        grad = random_features(*actual.shape, dtype=dtype, seed=1)
        assert_same(actual, expected, TOLERANCE[dtype])
        (actual_grad,) = torch.autograd.grad(actual, features, grad)
        (expected_grad,) = torch.autograd.grad(expected, features, grad)
        assert_same(actual_grad, expected_grad, TOLERANCE[dtype])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("interpolation, a", INTERPOLATIONS)
    @pytest.mark.parametrize("aligned, sampling_ratio", ALIGNED_AND_RATIO)
    @pytest.mark.parametrize("size", SIZES)
    def test_the_extension_equals_the_reference(
        self, dtype, interpolation, a, aligned, sampling_ratio, size, monkeypatch
    ):
        # The reference takes the boxes of an image in several groups.
        monkeypatch.setattr(implementation, "_CHUNK_ELEMENTS", 1000)
        features = random_features(3, 4, 12, 19, dtype=dtype)
        rois = random_rois(40, 3, 12 * 8, 19 * 8, dtype)
        options = (sampling_ratio, aligned, interpolation, a)
        args = ([features], rois, None, [0.125], *size, *options)
        actual = torch.ops.mrcnn_plugin.roi_align(*args)
        expected = roi_align_reference(*args)
        assert_same(actual, expected, TOLERANCE[dtype])
        grad = random_features(*expected.shape, dtype=dtype, seed=1)
        backward_args = (grad, rois, None, [0.125], 3, [12], [19], [True], *options)
        (actual,) = torch.ops.mrcnn_plugin.roi_align_backward(*backward_args)
        (expected,) = roi_align_backward_reference(*backward_args)
        assert_same(actual, expected, TOLERANCE[dtype])

    def test_one_sample_per_bin_with_a_minus_075_equals_grid_sample(self):
        features = random_features(1, 3, 20, 24, dtype=torch.float64)
        box = torch.tensor([4.3, 5.1, 17.7, 13.9], dtype=torch.float64)
        actual = roi_align(features, [box[None]], (6, 9), sampling_ratio=1, a=-0.75)
        x = box[0] + (torch.arange(9).double() + 0.5) * (box[2] - box[0]) / 9
        y = box[1] + (torch.arange(6).double() + 0.5) * (box[3] - box[1]) / 6
        grid = torch.stack(torch.meshgrid(x / 12 - 1, y / 10 - 1, indexing="xy"), dim=-1)[None]
        expected = F.grid_sample(
            features, grid, mode="bicubic", padding_mode="border", align_corners=False
        )
        assert_same(actual, expected, 1e-12)

    def test_one_sample_per_bin_with_a_minus_075_equals_opencv(self):
        features = random_features(1, 1, 16, 16)
        box = torch.tensor([[3.0, 4.0, 11.0, 14.0]])
        actual = roi_align(features, [box], (5, 4), sampling_ratio=1, a=-0.75)[0, 0].numpy()
        y = 4 + (np.arange(5, dtype=np.float32) + 0.5) * 2 - 0.5
        x = 3 + (np.arange(4, dtype=np.float32) + 0.5) * 2 - 0.5
        maps = [m.astype(np.float32) for m in np.meshgrid(x, y)]
        # OpenCV rounds positions to 1/32 of a pixel, which does not change these.
        expected = cv2.remap(features[0, 0].numpy(), *maps, interpolation=cv2.INTER_CUBIC)
        np.testing.assert_allclose(actual, expected, atol=1e-5)

    def test_bicubic_differs_from_bilinear(self):
        features, rois = random_features(1, 1, 12, 12), torch.tensor([[0.0, 2.2, 2.7, 9.1, 8.3]])
        bicubic = roi_align(features, rois, 7)
        assert (bicubic - roi_align(features, rois, 7, interpolation="bilinear")).abs().max() > 0.05

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_features_keep_float32_coordinates(self, dtype):
        features = random_features(1, 4, 8, 400).to(dtype)
        # Far from the origin, half-precision coordinates are off by more than a pixel.
        rois = torch.tensor([[0.0, 3011.3, 7.7, 3161.9, 55.1]])
        actual = roi_align(features, rois, 7, 0.125)
        assert actual.dtype == dtype
        expected = roi_align(features.float(), rois, 7, 0.125).to(dtype)
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_gradients_are_summed_in_float32(self, dtype):
        features = torch.zeros(1, 1, 4, 4, dtype=dtype, requires_grad=True)
        rois = torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]]).repeat(4096, 1)
        roi_align(features, rois, 1).sum().backward()
        # In half precision the sum of 4096 equal terms stops growing long before the last.
        torch.testing.assert_close(
            features.grad.sum(), torch.tensor(4096.0, dtype=dtype), rtol=1e-2, atol=0
        )


class TestProperties:
    @given(
        box=st.tuples(*[st.floats(2, 12)] * 2, *[st.floats(2, 12)] * 2),
        slope=st.tuples(st.floats(-3, 3), st.floats(-3, 3)),
        sampling_ratio=st.integers(0, 3),
        interpolation=st.sampled_from(["bilinear", "bicubic"]),
    )
    def test_a_linear_ramp_returns_its_value_at_the_bin_centres(
        self, box, slope, sampling_ratio, interpolation
    ):
        x, y, width, height = box
        ys, xs = torch.meshgrid(
            torch.arange(28, dtype=torch.float64) + 0.5,
            torch.arange(30, dtype=torch.float64) + 0.5,
            indexing="ij",
        )
        ramp = (slope[0] * ys + slope[1] * xs)[None, None]
        rois = torch.tensor([[0, x, y, x + width, y + height]], dtype=torch.float64)
        actual = roi_align(
            ramp, rois, (3, 4), sampling_ratio=sampling_ratio, interpolation=interpolation
        )
        centre_y = y + (torch.arange(3, dtype=torch.float64) + 0.5) * height / 3
        centre_x = x + (torch.arange(4, dtype=torch.float64) + 0.5) * width / 4
        expected = slope[0] * centre_y[:, None] + slope[1] * centre_x[None, :]
        torch.testing.assert_close(actual[0, 0], expected, rtol=0, atol=1e-9)

    def test_only_a_of_minus_one_half_reproduces_a_ramp(self):
        ramp = torch.arange(8, dtype=torch.float64).expand(1, 1, 8, 8)
        # The box has one sample at x = 3.25, in pixels whose centres are integers.
        rois = torch.tensor([[0, 3.25, 3, 4.25, 4]], dtype=torch.float64)
        assert roi_align(ramp, rois, 1).item() == pytest.approx(3.25, abs=1e-12)
        assert roi_align(ramp, rois, 1, a=-0.75).item() == pytest.approx(3.296875, abs=1e-12)

    @given(
        shift=st.tuples(st.integers(0, 6), st.integers(0, 6)),
        interpolation=st.sampled_from(["bilinear", "bicubic"]),
        seed=st.integers(0, 99),
    )
    def test_moving_map_and_box_by_whole_pixels_changes_nothing(self, shift, interpolation, seed):
        dy, dx = shift
        features = torch.zeros(1, 2, 24, 24, dtype=torch.float64)
        features[..., 4:14, 4:14] = random_features(2, 10, 10, dtype=torch.float64, seed=seed)
        moved = torch.roll(features, (dy, dx), dims=(2, 3))
        rois = torch.tensor([[0, 5.3, 6.1, 12.9, 11.2]], dtype=torch.float64)
        moved_rois = rois + torch.tensor([0, dx, dy, dx, dy], dtype=torch.float64)
        expected = roi_align(features, rois, 5, interpolation=interpolation)
        actual = roi_align(moved, moved_rois, 5, interpolation=interpolation)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("interpolation, a", INTERPOLATIONS)
    def test_a_constant_map_pools_to_the_constant_inside_the_map(self, interpolation, a):
        features = torch.full((1, 1, 10, 10), 3.5, dtype=torch.float64)
        rois = torch.tensor([[0, 0, 0, 10, 10], [0, 2.2, 1.1, 9.7, 3.4]], dtype=torch.float64)
        output = roi_align(features, rois, 4, interpolation=interpolation, a=a)
        torch.testing.assert_close(output, torch.full_like(output, 3.5), rtol=0, atol=1e-12)

    @given(
        height=st.integers(1, 9),
        width=st.integers(1, 9),
        channels=st.integers(0, 3),
        size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
        sampling_ratio=st.integers(0, 3),
        aligned=st.booleans(),
        interpolation=st.sampled_from(["bilinear", "bicubic"]),
        boxes=st.lists(
            st.tuples(
                *[
                    st.floats(-30, 50, width=32)
                    | st.sampled_from([1e9, -1e9, 1e30, -1e30, math.inf, -math.inf, math.nan])
                ]
                * 4
            ),
            max_size=6,
        ),
    )
    def test_any_box_gives_a_finite_result_equal_to_the_reference(
        self, height, width, channels, size, sampling_ratio, aligned, interpolation, boxes
    ):
        features = random_features(1, channels, height, width, dtype=torch.float64)
        rois = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
        options = (0.5, sampling_ratio, aligned)
        actual = roi_align(features, [rois], size, *options, interpolation=interpolation)
        assert actual.shape == (len(boxes), channels, *size)
        assert actual.isfinite().all()
        rois = F.pad(rois, (1, 0))
        expected = roi_align_reference(
            [features], rois, None, [0.5], *size, *options[1:], interpolation, -0.5
        )
        assert_same(actual, expected, 1e-9)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("side", [1e8, 2.0**50, 2.0**51, 1e15, 1e30])
    def test_a_box_far_larger_than_the_map_visits_only_the_map(self, dtype, side):
        # The call ends only if samples outside of the map are not visited.
        rois = torch.tensor([[0, -side, -side, side, side]], dtype=dtype)
        output = roi_align(torch.ones(1, 1, 4, 4, dtype=dtype), rois, 2)
        assert output.isfinite().all() and output.abs().max() < 1e-10

    @pytest.mark.parametrize("op", [roi_align, through_reference])
    @pytest.mark.parametrize("side", [1e6, 1.3e7, 3.1e7, 6.5e7])
    def test_the_samples_of_a_huge_box_have_rounded_positions(self, op, side):
        box = torch.tensor([[-side, 0.5, side, 2.5]])
        low, high = np.float32(-side - 0.5), np.float32(side - 0.5)
        bin_size = np.float32(high - low)
        grid = np.ceil(bin_size)
        i = np.float32(grid / 2) + np.arange(-500, 500, dtype=np.float32)
        x = low + (i + np.float32(0.5)) * bin_size / grid
        on_map = ((x >= -1) & (x <= 4)).sum()
        output = op(torch.ones(1, 1, 4, 4), [box], 1, 1.0, 0, True, interpolation="bilinear")
        assert output.item() == pytest.approx(on_map / grid, rel=1e-5)

    def test_the_last_sample_of_a_huge_bin_is_not_lost(self):
        box = torch.tensor([[-38162495.9, 0, 0.44, 1]])
        options = ((1, 2), 1.0, 0, False)
        actual = roi_align(torch.ones(1, 1, 4, 4), [box], *options)
        expected = roi_align_reference(
            [torch.ones(1, 1, 4, 4)],
            F.pad(box, (1, 0)),
            None,
            [1.0],
            1,
            2,
            0,
            False,
            "bicubic",
            -0.5,
        )
        assert actual[0, 0, 0, 1] > 0
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=0)

    @pytest.mark.parametrize("op", [roi_align, through_reference])
    @pytest.mark.parametrize("border", [-0.5, 1000.5])
    @pytest.mark.parametrize("steps", [-3, -2, -1, 1, 2, 3])
    def test_rounded_samples_at_a_border_are_those_of_torchvision(self, op, border, steps):
        # So few steps of float32 lie between both ends that several samples share a position.
        start = torch.tensor(border)
        end = start
        for _ in range(abs(steps)):
            end = end.nextafter(torch.tensor(steps * math.inf))
        for x1, x2 in [(start, end), (end, start)]:
            boxes = [torch.tensor([[x1, 1, x2, 3]])]
            features = torch.ones(1, 1, 4, 1000)
            for options in [(1.0, 3, True), (1.0, 4, True), (1.0, 33, True), (1.0, 0, True)]:
                actual = op(features, boxes, 2, *options, interpolation="bilinear")
                expected = torchvision.ops.roi_align(features, boxes, 2, *options)
                torch.testing.assert_close(actual, expected)

    @pytest.mark.parametrize("op", [roi_align, through_reference])
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("aligned, sampling_ratio", ALIGNED_AND_RATIO)
    def test_a_box_that_is_not_finite_pools_zeros(self, op, value, aligned, sampling_ratio):
        for coordinate in range(4):
            box = torch.tensor([[1.0, 2.0, 6.0, 7.0]])
            box[0, coordinate] = value
            output = op(torch.ones(1, 2, 8, 8), [box], 3, 1.0, sampling_ratio, aligned)
            assert torch.equal(output, torch.zeros(1, 2, 3, 3))

    @pytest.mark.parametrize("box", [[3, 1, 3, 6], [3, 1, 2, 6]])
    def test_a_box_without_extent_pools_zeros(self, box):
        output = roi_align(torch.ones(1, 2, 8, 8), [torch.tensor([box])], 3)
        assert torch.equal(output, torch.zeros(1, 2, 3, 3))


class TestGradients:
    @pytest.mark.parametrize("interpolation, a", INTERPOLATIONS)
    @pytest.mark.parametrize("aligned", [True, False])
    def test_gradcheck_passes(self, interpolation, a, aligned):
        features = random_features(2, 2, 5, 6, dtype=torch.float64).requires_grad_()
        rois = random_rois(5, 2, 5, 6, torch.float64)

        def pool(x):
            return roi_align(x, rois, (2, 3), 1.0, 0, aligned, interpolation=interpolation, a=a)

        assert torch.autograd.gradcheck(pool, features)
        assert torch.autograd.gradgradcheck(pool, features)

    def test_boxes_get_no_gradient(self):
        features = random_features(1, 1, 6, 6).requires_grad_()
        rois = torch.tensor([[0.0, 1.0, 1.0, 4.0, 4.0]], requires_grad=True)
        roi_align(features, rois, 2).sum().backward()
        assert rois.grad is None and features.grad is not None


class TestOperator:
    def test_zero_rois_and_zero_channels_give_empty_results(self):
        assert roi_align(torch.ones(2, 3, 8, 8), torch.zeros(0, 5), 7).shape == (0, 3, 7, 7)
        assert roi_align(torch.ones(2, 3, 8, 8), [torch.zeros(0, 4)] * 2, 7).shape == (0, 3, 7, 7)
        assert roi_align(torch.ones(2, 0, 8, 8), torch.zeros(4, 5), 7).shape == (4, 0, 7, 7)

    def test_a_list_of_boxes_equals_the_tensor_form(self):
        features = random_features(2, 3, 8, 9)
        boxes = [torch.tensor([[1.0, 2.0, 5.0, 6.0]]), torch.tensor([[0.0, 0.0, 8.0, 8.0]] * 2)]
        rois = torch.cat([F.pad(b, (1, 0), value=i) for i, b in enumerate(boxes)])
        assert torch.equal(roi_align(features, boxes, 3), roi_align(features, rois, 3))

    def test_a_negative_sampling_ratio_is_adaptive_as_in_torchvision(self):
        features, rois = random_features(2, 3, 8, 9), random_rois(6, 2, 8, 9, torch.float32)
        assert torch.equal(
            roi_align(features, rois, 3, sampling_ratio=-1), roi_align(features, rois, 3)
        )

    @pytest.mark.parametrize(
        "two", [np.array(2), np.uint8(2), torch.tensor([2]), torch.tensor(2, dtype=torch.uint8)]
    )
    def test_numbers_of_numpy_and_torch_are_numbers(self, two):
        features, rois = random_features(2, 3, 8, 9), random_rois(6, 2, 4, 4, torch.float32)
        expected = roi_align(features, rois, 2, 2, 2, a=2)
        assert torch.equal(roi_align(features, rois, two, two, two, a=two), expected)
        assert torch.equal(ROIAlign(two, two, two, a=two)(features, rois), expected)

    def test_the_module_equals_the_function(self):
        features, rois = random_features(2, 3, 8, 9), random_rois(6, 2, 16, 18, torch.float32)
        module = ROIAlign((2, 3), 0.5, 2, aligned=False, interpolation="bilinear")
        expected = roi_align(features, rois, (2, 3), 0.5, 2, False, interpolation="bilinear")
        assert torch.equal(module(features, rois), expected)
        assert "interpolation=bilinear" in repr(module)

    def test_a_lazy_config_may_give_its_own_kind_of_list(self):
        features, rois = random_features(2, 3, 8, 9), random_rois(6, 2, 8, 9, torch.float32)
        size, expected = OmegaConf.create([2, 3]), roi_align(features, rois, (2, 3))
        assert torch.equal(ROIAlign(size, 1.0, 0)(features, rois), expected)
        assert torch.equal(roi_align(features, rois, size), expected)


class TestErrors:
    features = torch.ones(2, 3, 8, 8)
    rois = torch.zeros(1, 5)

    @pytest.mark.parametrize("index", [-1.0, 2.0, 0.5, math.nan])
    @pytest.mark.parametrize(
        "op",
        [torch.ops.mrcnn_plugin.roi_align, roi_align_reference],
        ids=["extension", "reference"],
    )
    def test_an_invalid_batch_index_is_an_error(self, op, index):
        rois = torch.tensor([[0, 0, 0, 4, 4], [index, 0, 0, 4, 4]], dtype=torch.float32)
        with pytest.raises(IndexError, match=r"^roi_align: boxes\[1, 0\] is the .* batch size 2"):
            op([self.features], rois, None, [1.0], 2, 2, 0, True, "bicubic", -0.5)

    @pytest.mark.parametrize(
        "arguments, error, message",
        [
            (dict(input=torch.ones(2, 3, 8, 8).int()), TypeError, "got Tensor of torch.int32"),
            (dict(input=[1.0]), TypeError, "input must be a dense Tensor of float64, .*, got list"),
            (
                dict(output_size=(1, 2, 3)),
                TypeError,
                "output_size must be a whole number or a pair",
            ),
            (dict(input=torch.ones(2, 3, 8, 8).to_sparse()), TypeError, "got torch.sparse_coo"),
            (
                dict(input=torch.nested.nested_tensor([torch.ones(3, 8, 8)] * 2)),
                TypeError,
                "got nested Tensor",
            ),
            (dict(boxes=torch.zeros(1, 5) + 1j), TypeError, "real numbers, got .*complex64"),
            (dict(boxes=torch.zeros(1, 5).bool()), TypeError, "real numbers, got .*bool"),
            (dict(boxes=torch.zeros(1, 5).to_sparse()), TypeError, "dense real .* got torch.spa"),
            (dict(output_size=2**63), ValueError, "output_size must be positive and at most"),
            (
                dict(output_size=(2**20 + 1, 1)),
                ValueError,
                "output_size must be .* at most 1048576",
            ),
            (
                dict(output_size=(1, 2**20 + 1)),
                ValueError,
                "output_size must be .* at most 1048576",
            ),
            (dict(output_size=7.5), TypeError, "output_size must be a whole number .*, got 7.5"),
            (dict(output_size=(True, 2)), TypeError, r"output_size must be .*, got \(True, 2\)"),
            (dict(boxes=torch.zeros(1, 5, device="meta")), ValueError, "of input, cpu, got meta"),
            (
                dict(boxes=[torch.zeros(1, 4, device="meta")] * 2),
                ValueError,
                r"boxes\[0\] must be on the device of input, cpu, got meta",
            ),
            (dict(input=torch.ones(3, 8, 8)), ValueError, r"input must have shape \(N, C, H, W\)"),
            (dict(input=torch.ones(2, 3, 0, 8)), ValueError, "H and W at least 1"),
            (
                dict(boxes=torch.zeros(1, 4)),
                ValueError,
                r"boxes as a Tensor must have shape \(K, 5\)",
            ),
            (dict(boxes=[torch.zeros(1, 4)]), ValueError, "one Tensor for each of the 2 images"),
            (
                dict(boxes=[torch.zeros(1, 5)] * 2),
                ValueError,
                r"boxes\[0\] must have shape \(L, 4\)",
            ),
            (dict(boxes="box"), TypeError, r"a list of Tensors, got str.* \[boxes.tensor\]"),
            (
                dict(boxes=[torch.zeros(1, 4), "box"]),
                TypeError,
                r"boxes\[1\] must be a Tensor with rows \(x1, y1, x2, y2\).*Boxes, got str",
            ),
            (dict(output_size=0), ValueError, "output_size must be positive .*, got 0"),
            (dict(spatial_scale=0.0), ValueError, "spatial_scale must be positive"),
            (dict(spatial_scale=1e39), ValueError, "spatial_scale must be .* finite in float32"),
            (dict(interpolation="cubic"), ValueError, '"bilinear" or "bicubic", got \'cubic\''),
            (dict(a=math.nan), ValueError, "a must be finite in float32"),
            (dict(a="-0.5"), TypeError, "a must be a number, got '-0.5'"),
            (dict(a=torch.ones(2)), TypeError, r"a must be a number, got tensor\(\[1., 1.\]\)"),
            (dict(a=np.array([-0.5])), TypeError, r"a must be a number, got array\(\[-0.5\]\)"),
            (dict(a=np.bool_(True)), TypeError, "a must be a number, got .*True"),
            (dict(spatial_scale=np.ones(2)), TypeError, "spatial_scale must be a number, got"),
            (dict(spatial_scale=np.array([0.25])), TypeError, "spatial_scale must be .*, got"),
            (dict(spatial_scale=torch.tensor(True)), TypeError, "spatial_scale must be .*, got"),
            (
                dict(sampling_ratio=torch.ones(2, dtype=torch.int64)),
                TypeError,
                "sampling_ratio must be a whole number, got tensor",
            ),
            (dict(spatial_scale=None), TypeError, "spatial_scale must be a number, got None"),
            (dict(sampling_ratio=0.5), TypeError, "sampling_ratio must be a whole number, got 0.5"),
            (dict(sampling_ratio=np.array([2])), TypeError, "sampling_ratio must be .*, got array"),
            (dict(sampling_ratio=torch.tensor(True)), TypeError, "sampling_ratio must be .*, got"),
            (dict(sampling_ratio=1025), ValueError, "sampling_ratio must be at most 1024, got"),
            (dict(aligned=1), TypeError, "aligned must be True or False, got 1"),
        ],
    )
    def test_errors_name_the_bad_argument(self, arguments, error, message):
        values = {**dict(input=self.features, boxes=self.rois, output_size=2), **arguments}
        with pytest.raises(error, match=f"^roi_align: .*{message}"):
            roi_align(**values)

    @pytest.mark.parametrize(
        "arguments, error, message",
        [
            ((7, 0.5, 1025), ValueError, "sampling_ratio must be at most 1024, got 1025"),
            ((7, 0.5, np.array([2])), TypeError, "sampling_ratio must be .*, got array"),
            ((7, np.array([0.5]), 0), TypeError, "spatial_scale must be a number, got array"),
        ],
    )
    def test_errors_of_the_module_name_it(self, arguments, error, message):
        with pytest.raises(error, match=f"^ROIAlign: {message}"):
            ROIAlign(*arguments)

    @pytest.mark.parametrize(
        "changes, error",
        [
            ({"rois": torch.zeros(1, 4)}, ValueError),
            ({"rois": torch.zeros(1, 5).half()}, TypeError),
            ({"input": [torch.ones(3, 8, 8)]}, ValueError),
            ({"input": [torch.ones(2, 3, 8, 0)]}, ValueError),
            ({"pooled_width": 0}, ValueError),
            ({"sampling_ratio": -1}, ValueError),
            ({"sampling_ratio": 1025}, ValueError),
            ({"interpolation": "cubic"}, ValueError),
        ],
    )
    def test_the_forward_operator_refuses_arguments_that_would_crash_it(self, changes, error):
        values = dict(input=[self.features], rois=self.rois, levels=None, spatial_scales=[1.0])
        values.update(pooled_height=2, pooled_width=2, sampling_ratio=0, aligned=True)
        values.update(interpolation="bicubic", a=-0.5)
        with pytest.raises(error, match="roi_align:"):
            torch.ops.mrcnn_plugin.roi_align(**{**values, **changes})

    @pytest.mark.parametrize(
        "changes, error",
        [
            ({"rois": torch.zeros(50, 5)}, ValueError),
            ({"rois": torch.zeros(1, 5).double()}, TypeError),
            ({"grad": torch.ones(1)}, ValueError),
            ({"grad": torch.ones(1, 3, 0, 2)}, ValueError),
            ({"batch": -1}, ValueError),
            ({"batch": 0}, IndexError),
            ({"heights": [0], "widths": [0]}, ValueError),
            ({"heights": [-5]}, ValueError),
            ({"sampling_ratio": -1}, ValueError),
        ],
    )
    def test_the_backward_operator_refuses_arguments_that_would_crash_it(self, changes, error):
        values = dict(grad=torch.ones(1, 3, 2, 2), rois=self.rois, levels=None)
        values.update(spatial_scales=[1.0], batch=2, heights=[8], widths=[8], needed=[True])
        values.update(sampling_ratio=0, aligned=True, interpolation="bicubic", a=-0.5)
        with pytest.raises(error, match="roi_align:"):
            torch.ops.mrcnn_plugin.roi_align_backward(**{**values, **changes})

    def test_cuda_without_our_kernels_warns_once_that_it_is_slow(self):
        class OnGpu:
            device = torch.device("cuda")

        run = _on_any_device(lambda features, *others: (features, others))
        features = [OnGpu()]
        with pytest.warns(UserWarning, match="built without CUDA kernels.*FORCE_CUDA=1"):
            assert run(features, 1, 2) == (features, (1, 2))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            run(features)
            run(OnGpu())  # The gradient is not in a list.

    def test_the_reference_refuses_a_gradient_of_another_length(self):
        with pytest.raises(ValueError, match="grad has 3 RoIs but boxes have 1"):
            grad, sizes = torch.ones(3, 3, 2, 2), ([8], [8], [True])
            roi_align_backward_reference(
                grad, self.rois, None, [1.0], 2, *sizes, 0, True, "bicubic", -0.5
            )

    @pytest.mark.parametrize("size", [(0, 8), (8, 0)])
    def test_the_reference_refuses_a_map_without_pixels(self, size):
        with pytest.raises(ValueError, match="a height and width of at least 1, got .*0"):
            roi_align_reference(
                [torch.ones(2, 3, *size)], self.rois, None, [1.0], 2, 2, 0, True, "bicubic", -0.5
            )
