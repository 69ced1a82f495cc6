"""Tests of one call of the operator for several levels."""

import itertools
import math
import subprocess
import sys

import mrcnn_plugin._C
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from mrcnn_plugin.layers import multiscale_roi_align, roi_align
from mrcnn_plugin.layers.roi_align import MAX_LEVELS
from mrcnn_plugin.layers.roi_align_reference import (
    roi_align_backward_reference,
    roi_align_dense,
    roi_align_reference,
)
from mrcnn_plugin.layers.roi_align_registration import count_multiply_adds
from tests import oracles
from tests.features import detectron2_module
from tests.layers.cases import (
    ALIGNED_AND_RATIO,
    CHANNELS_LAST,
    CONTIGUOUS,
    DTYPES,
    INTERPOLATIONS,
    KERNEL_TOLERANCE,
    TOLERANCE,
    assert_same,
    boxes_dtype,
    kernel_of,
    layouts,
    random_features,
    random_rois,
)

# torch.fx records calls of the functions that the calling module has wrapped.
torch.fx.wrap("multiscale_roi_align")

SCALES = [1 / 4, 1 / 8, 1 / 16]
OPTIONS = (0, True, "bicubic", -0.5)
OPERATOR = torch.ops.mrcnn_plugin.roi_align
BACKWARD = torch.ops.mrcnn_plugin.roi_align_backward
BOTH_FORWARD = pytest.mark.parametrize(
    "op", [OPERATOR, roi_align_reference], ids=["extension", "reference"]
)
BOTH_BACKWARD = pytest.mark.parametrize(
    "op", [BACKWARD, roi_align_backward_reference], ids=["extension", "reference"]
)


def pyramid(channels=3, height=16, width=24, dtype=torch.float32, batch=2):
    """Returns a map for each of SCALES."""
    return [
        random_features(batch, channels, max(height >> i, 1), max(width >> i, 1), seed=i).to(dtype)
        for i in range(len(SCALES))
    ]


def rois_and_levels(count=30, height=16, width=24, dtype=torch.float32, batch=2):
    """Returns boxes on and around maps of that size, and their levels in random order."""
    rois = random_rois(count, batch, height * 4, width * 4, dtype)
    generator = torch.Generator().manual_seed(1)
    return rois, torch.arange(count)[torch.randperm(count, generator=generator)] % len(SCALES)


def sizes(maps):
    return [m.shape[2] for m in maps], [m.shape[3] for m in maps]


class TestValues:
    @pytest.mark.parametrize("interpolation, a", INTERPOLATIONS)
    @pytest.mark.parametrize("aligned, sampling_ratio", ALIGNED_AND_RATIO)
    def test_values_and_gradients_equal_the_definition(
        self, interpolation, a, aligned, sampling_ratio
    ):
        maps = [m.requires_grad_() for m in pyramid(2, 8, 12, dtype=torch.float64)]
        rois, levels = rois_and_levels(12, 8, 12, torch.float64)
        size = (2, 3)
        options = dict(interpolation=interpolation, a=a)
        actual = multiscale_roi_align(
            maps, rois, levels, size, SCALES, sampling_ratio, aligned, **options
        )
        grad = random_features(*actual.shape, dtype=torch.float64, seed=9)
        gradients = torch.autograd.grad(actual, maps, grad)
        for level, (map, scale, gradient) in enumerate(zip(maps, SCALES, gradients, strict=True)):
            rows = (levels == level).nonzero()[:, 0]
            height, width = map.shape[2:]
            # Each channel of these maps has one pixel of value 1, so the definition gives its matrix.
            pixels = torch.eye(height * width, dtype=torch.float64).view(1, -1, height, width)
            of_one_image = rois[rows].clone()
            of_one_image[:, 0] = 0
            kernel = kernel_of(interpolation, a)
            matrix = torch.from_numpy(
                oracles.roi_align(
                    pixels.numpy(),
                    of_one_image.numpy(),
                    size,
                    scale,
                    sampling_ratio,
                    aligned,
                    kernel,
                )
            )
            images = rois[rows, 0].long()
            values = map.detach().flatten(2)[images]
            assert_same(actual[rows], torch.einsum("kxpq,kcx->kcpq", matrix, values), 1e-12)
            expected = torch.zeros(*map.shape[:2], height * width, dtype=torch.float64)
            expected.index_add_(0, images, torch.einsum("kxpq,kcpq->kcx", matrix, grad[rows]))
            assert_same(gradient, expected.view_as(map), 1e-12)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("sampling_ratio", [0, 2])
    def test_bilinear_equals_torchvision_on_each_level(self, dtype, sampling_ratio):
        maps = [m.requires_grad_() for m in pyramid(dtype=dtype)]
        rois, levels = rois_and_levels(40, dtype=dtype)
        rois[:, 3:] = rois[:, 3:].maximum(
            rois[:, 1:3]
        )  # torchvision fails on inverted boxes with ratio 0
        actual = multiscale_roi_align(
            maps, rois, levels, (7, 5), SCALES, sampling_ratio, interpolation="bilinear"
        )
        expected = torch.zeros_like(actual)
        for level, (map, scale) in enumerate(zip(maps, SCALES, strict=True)):
            rows = levels == level
            args = (map, rois[rows], (7, 5), scale, sampling_ratio, True)
            expected[rows] = torchvision.ops.roi_align(*args)
        assert_same(actual, expected, TOLERANCE[dtype])
        grad = random_features(*actual.shape, dtype=dtype, seed=9)
        ours, theirs = (torch.autograd.grad(y, maps, grad) for y in (actual, expected))
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other, TOLERANCE[dtype])

    @pytest.mark.parametrize("format", [CONTIGUOUS, CHANNELS_LAST])
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_one_call_gives_the_same_bits_as_a_call_for_each_level(self, dtype, format):
        maps = [
            m.contiguous(memory_format=format).requires_grad_() for m in pyramid(19, dtype=dtype)
        ]
        rois, levels = rois_and_levels(dtype=boxes_dtype(dtype))
        actual = multiscale_roi_align(maps, rois, levels, (3, 2), SCALES)
        grad = random_features(*actual.shape, seed=9).to(dtype).contiguous(memory_format=format)
        gradients = torch.autograd.grad(actual, maps, grad)
        for level, (map, scale) in enumerate(zip(maps, SCALES, strict=True)):
            rows = levels == level
            expected = roi_align(map, rois[rows], (3, 2), scale)
            assert rows.any() and torch.equal(actual[rows], expected)
            part = grad[rows].contiguous(memory_format=format)
            assert torch.equal(gradients[level], torch.autograd.grad(expected, map, part)[0])

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("first", range(7))
    def test_one_call_accepts_maps_of_all_layouts(self, dtype, first):
        rois, levels = rois_and_levels(dtype=boxes_dtype(dtype))
        maps = []
        for i, map in enumerate(pyramid(21, dtype=dtype)):
            names_and_maps = list(layouts(map))
            maps.append(names_and_maps[(first + 2 * i) % len(names_and_maps)][1])
        assert len({m.stride() for m in maps}) == len(maps)
        actual = OPERATOR(maps, rois, levels, SCALES, 3, 2, *OPTIONS)
        expected = roi_align_reference(
            [m.double() for m in maps], rois.double(), levels, SCALES, 3, 2, *OPTIONS
        )
        assert actual.dtype == dtype
        assert_same(actual.double(), expected, KERNEL_TOLERANCE[dtype])

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_the_gradient_may_have_any_layout(self, dtype):
        rois, levels = rois_and_levels(dtype=boxes_dtype(dtype))
        maps = pyramid(21)
        for name, grad in layouts(random_features(30, 21, 3, 2, seed=9).to(dtype)):
            args = (levels, SCALES, 2, *sizes(maps), [True] * 3, *OPTIONS)
            expected = roi_align_backward_reference(grad.double(), rois.double(), *args)
            for one, other in zip(BACKWARD(grad, rois, *args), expected, strict=True):
                assert one.dtype == dtype, name
                assert_same(one.double(), other, KERNEL_TOLERANCE[dtype])

    @pytest.mark.parametrize("interpolation, a", INTERPOLATIONS)
    def test_the_reference_equals_the_extension(self, interpolation, a):
        maps = pyramid(dtype=torch.float64)
        rois, levels = rois_and_levels(dtype=torch.float64)
        options = (2, False, interpolation, a)
        args = (maps, rois, levels, SCALES, 3, 2, *options)
        assert_same(roi_align_reference(*args), OPERATOR(*args), 1e-12)
        assert_same(roi_align_dense(*args), OPERATOR(*args), 1e-12)
        grad = random_features(30, 3, 3, 2, dtype=torch.float64)
        args = (grad, rois, levels, SCALES, 2, *sizes(maps), [True, False, True], *options)
        pairs = zip(roi_align_backward_reference(*args), BACKWARD(*args), strict=True)
        for one, other in pairs:
            assert_same(one, other, 1e-12)

    def test_a_single_map_equals_roi_align(self):
        (map, *_), (rois, _) = pyramid(), rois_and_levels()
        expected = roi_align(map, rois, 3, 0.25)
        for levels in (None, torch.zeros(30, dtype=torch.int64)):
            assert torch.equal(multiscale_roi_align([map], rois, levels, 3, [0.25]), expected)

    def test_boxes_of_a_list_keep_their_order(self):
        maps = pyramid()
        rois, levels = rois_and_levels()
        order = rois[:, 0].argsort(stable=True)
        boxes = [rois[rois[:, 0] == i, 1:] for i in range(2)]
        assert torch.equal(
            multiscale_roi_align(maps, boxes, levels[order], 3, SCALES),
            multiscale_roi_align(maps, rois, levels, 3, SCALES)[order],
        )

    def test_a_call_may_have_the_most_levels(self):
        maps = [torch.full((1, 2, 4, 4), float(i)) for i in range(MAX_LEVELS)]
        levels = torch.arange(MAX_LEVELS).flip(0)
        rois = torch.tensor([[0.0, 1.0, 1.0, 3.0, 3.0]]).expand(MAX_LEVELS, 5)
        pooled = multiscale_roi_align(maps, rois, levels, 1, [1.0] * MAX_LEVELS)
        torch.testing.assert_close(pooled[:, 0, 0, 0], levels.float())


class TestNothingToPool:
    @BOTH_BACKWARD
    def test_a_level_without_rois_has_a_zero_gradient(self, op):
        maps = pyramid()
        rois, _ = rois_and_levels()
        levels = torch.full((30,), 1)
        grad = random_features(30, 3, 2, 2)
        gradients = op(grad, rois, levels, SCALES, 2, *sizes(maps), [True] * 3, *OPTIONS)
        for level, (gradient, map) in enumerate(zip(gradients, maps, strict=True)):
            assert gradient.shape == map.shape and bool(gradient.any()) == (level == 1)

    @pytest.mark.parametrize("boxes", [torch.zeros(0, 5), [torch.zeros(0, 4)] * 2])
    def test_zero_rois_pool_nothing(self, boxes):
        maps = [m.requires_grad_() for m in pyramid()]
        pooled = multiscale_roi_align(maps, boxes, torch.zeros(0, dtype=torch.int64), 7, SCALES)
        assert pooled.shape == (0, 3, 7, 7)
        for gradient, map in zip(torch.autograd.grad(pooled.sum(), maps), maps, strict=True):
            assert torch.equal(gradient, torch.zeros_like(map))

    def test_zero_images_pool_nothing(self):
        maps = [m.requires_grad_() for m in pyramid(batch=0)]
        empty = torch.zeros(0, dtype=torch.int64)
        pooled = multiscale_roi_align(maps, torch.zeros(0, 5), empty, 7, SCALES)
        pooled.sum().backward()
        assert pooled.shape == (0, 3, 7, 7) and maps[1].grad.shape == maps[1].shape


class TestMemory:
    @pytest.mark.parametrize("first", [CONTIGUOUS, CHANNELS_LAST])
    @BOTH_FORWARD
    def test_the_result_has_the_memory_format_of_the_first_map(self, first, op):
        other = CONTIGUOUS if first is CHANNELS_LAST else CHANNELS_LAST
        p2, p3, p4 = pyramid()
        maps = [p2.contiguous(memory_format=first), p3.contiguous(memory_format=other), p4]
        output = op(maps, *rois_and_levels(), SCALES, 3, 2, *OPTIONS)
        assert output.is_contiguous(memory_format=first)

    @pytest.mark.parametrize("format", [CONTIGUOUS, CHANNELS_LAST])
    @BOTH_BACKWARD
    def test_gradients_of_maps_have_the_memory_format_of_the_output_gradient(self, format, op):
        grad = random_features(30, 3, 3, 2).contiguous(memory_format=format)
        args = (SCALES, 2, *sizes(pyramid()), [True] * 3, *OPTIONS)
        for gradient in op(grad, *rois_and_levels(), *args):
            assert gradient.is_contiguous(memory_format=format)

    def test_levels_may_have_any_stride(self):
        maps, (rois, levels) = pyramid(), rois_and_levels()
        strided = torch.stack([levels, -levels], dim=1)[:, 0]
        assert torch.equal(
            multiscale_roi_align(maps, rois, strided, 2, SCALES),
            multiscale_roi_align(maps, rois, levels, 2, SCALES),
        )

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("format", [CONTIGUOUS, CHANNELS_LAST])
    def test_any_number_of_threads_gives_the_same_bits(self, dtype, format, threads):  # noqa: F811
        maps = [m.contiguous(memory_format=format) for m in pyramid(24, dtype=dtype)]
        rois, levels = rois_and_levels(96, dtype=boxes_dtype(dtype))
        grad = random_features(96, 24, 7, 7).to(dtype).contiguous(memory_format=format)
        results = []
        for count in (1, 2, 3, 5, 64):
            threads(count)
            forward = OPERATOR(maps, rois, levels, SCALES, 7, 7, *OPTIONS)
            args = (levels, SCALES, 2, *sizes(maps), [True] * 3, *OPTIONS)
            results.append([forward, *BACKWARD(grad, rois, *args)])
        for tensors in results[1:]:
            assert all(map(torch.equal, tensors, results[0]))


class Count(torch.utils._python_dispatch.TorchDispatchMode):
    """Records the arguments of each call of the backward operator."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is BACKWARD.default:
            self.calls.append(args)
        return func(*args, **(kwargs or {}))


class TestGradients:
    @pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
    def test_first_and_second_derivative_are_correct(self, interpolation):
        maps = [m.requires_grad_() for m in pyramid(1, 4, 8, dtype=torch.float64)]
        rois, levels = rois_and_levels(5, 4, 8, torch.float64)

        def pool(*maps):
            return multiscale_roi_align(
                maps, rois, levels, (2, 1), SCALES, interpolation=interpolation
            )

        assert torch.autograd.gradcheck(pool, maps)
        assert torch.autograd.gradgradcheck(pool, maps)

    def test_the_second_derivative_is_correct_if_some_maps_are_frozen(self):
        frozen, *maps = pyramid(1, 4, 8, dtype=torch.float64)
        maps = [m.requires_grad_() for m in maps]
        rois, levels = rois_and_levels(6, 4, 8, torch.float64)
        assert torch.autograd.gradgradcheck(
            lambda *m: multiscale_roi_align([frozen, *m], rois, levels, 2, SCALES), maps
        )

    @pytest.mark.parametrize("needed", list(itertools.product([True, False], repeat=3)))
    def test_only_maps_that_need_a_gradient_get_one(self, needed):
        maps, (rois, levels) = pyramid(), rois_and_levels()
        grad = random_features(30, 3, 2, 2, seed=9)
        args = (grad, rois, levels, SCALES, 2, *sizes(maps), [True] * 3, *OPTIONS)
        expected = BACKWARD(*args)
        for map, is_needed in zip(maps, needed, strict=True):
            map.requires_grad_(is_needed)
        weight = torch.ones(3, 1, 1, requires_grad=True)
        with Count() as count:
            (multiscale_roi_align(maps, rois, levels, 2, SCALES) * weight).backward(grad)
        assert [list(args[7]) for args in count.calls] == ([list(needed)] if any(needed) else [])
        for map, is_needed, gradient in zip(maps, needed, expected, strict=True):
            assert torch.equal(map.grad, gradient) if is_needed else map.grad is None

    @BOTH_BACKWARD
    def test_the_operator_returns_the_needed_gradients_in_order(self, op):
        maps, (rois, levels) = pyramid(), rois_and_levels()
        args = (random_features(30, 3, 2, 2), rois, levels, SCALES, 2, *sizes(maps))
        every = op(*args, [True] * 3, *OPTIONS)
        first, last = op(*args, [True, False, True], *OPTIONS)
        assert torch.equal(first, every[0]) and torch.equal(last, every[2])
        assert list(op(*args, [False] * 3, *OPTIONS)) == []

    def test_boxes_get_no_gradient(self):
        maps, (rois, levels) = pyramid(), rois_and_levels()
        maps[0].requires_grad_()
        multiscale_roi_align(maps, rois.requires_grad_(), levels, 2, SCALES).sum().backward()
        assert rois.grad is None and maps[0].grad is not None


class TestErrors:
    maps = [torch.ones(2, 3, 8, 8), torch.ones(2, 3, 4, 4)]
    rois = torch.zeros(2, 5)
    levels = torch.tensor([1, 0])

    @pytest.mark.parametrize("level", [-1, 2, 2**40, -(2**63)])
    def test_an_invalid_level_is_an_error(self, level):
        message = rf"^multiscale_roi_align: levels\[1\] is {level}, .* must be in \[0, 2\)"
        levels = torch.tensor([0, level])
        for op in (OPERATOR, roi_align_reference):
            with pytest.raises(IndexError, match=message):
                op(self.maps, self.rois, levels, [1.0, 0.5], 2, 2, *OPTIONS)
        args = (torch.ones(2, 3, 2, 2), self.rois, levels, [1.0, 0.5], 2, [8, 4], [8, 4])
        for op in (BACKWARD, roi_align_backward_reference):
            with pytest.raises(IndexError, match=message):
                op(*args, [True, False], *OPTIONS)

    @BOTH_FORWARD
    @pytest.mark.parametrize("index", [-1.0, 2.0, 0.5, math.nan])
    def test_an_invalid_batch_index_is_an_error(self, op, index):
        rois = torch.tensor([[0.0, 0, 0, 4, 4], [index, 0, 0, 4, 4]])
        message = r"^multiscale_roi_align: boxes\[1, 0\] is the batch index .* batch size 2"
        with pytest.raises(IndexError, match=message):
            op(self.maps, rois, self.levels, [1.0, 0.5], 2, 2, *OPTIONS)

    def test_an_invalid_batch_index_is_an_error_even_if_its_level_needs_no_gradient(self):
        rois = torch.tensor([[5.0, 0, 0, 4, 4], [0.0, 0, 0, 4, 4]])
        grad, scales = torch.ones(2, 3, 2, 2), [1.0, 0.5]
        with pytest.raises(IndexError, match=r"boxes\[0, 0\] is the batch index 5"):
            BACKWARD(grad, rois, self.levels, scales, 2, [8, 4], [8, 4], [True, False], *OPTIONS)

    @pytest.mark.parametrize(
        "changes, error, message",
        [
            (dict(inputs=torch.ones(2, 3, 8, 8)), TypeError, "inputs must be a list of Tensors"),
            (dict(inputs=[]), ValueError, "inputs must be 1 to 8 Tensors, got 0"),
            (dict(inputs=[maps[0]] * 9), ValueError, "inputs must be 1 to 8 Tensors, got 9"),
            (dict(inputs=[maps[0], None]), TypeError, r"inputs\[1\] must be .*, got NoneType"),
            (
                dict(inputs=[maps[0], maps[1].int()]),
                TypeError,
                r"inputs\[1\] must be a dense Tensor of .*, got Tensor of torch.int32",
            ),
            (
                dict(inputs=[maps[0], maps[1].double()]),
                TypeError,
                r"dtype of inputs\[0\], torch.float32, but inputs\[1\] has torch.float64",
            ),
            (
                dict(inputs=[maps[0], maps[1][0]]),
                ValueError,
                r"inputs\[1\] must have shape \(N, C, H, W\)",
            ),
            (dict(inputs=[maps[0], maps[1][:, :, :0]]), ValueError, "H and W at least 1"),
            (
                dict(inputs=[maps[0], maps[1][:1]]),
                ValueError,
                r"channels of inputs\[0\], \(2, 3\), but inputs\[1\] has \(1, 3\)",
            ),
            (dict(inputs=[maps[0], maps[1][:, :2]]), ValueError, r"inputs\[1\] has \(2, 2\)"),
            (
                dict(inputs=[maps[0], maps[1].to("meta")]),
                ValueError,
                r"device of inputs\[0\], cpu, but inputs\[1\] is on meta",
            ),
            (dict(levels=None), TypeError, "levels must be a dense Tensor of int64, got NoneType"),
            (dict(levels=levels.int()), TypeError, "levels must be .* int64, got .*int32"),
            (
                dict(levels=levels[:1]),
                ValueError,
                r"levels must have shape \(K,\), one level for each of the 2 boxes, got \(1,\)",
            ),
            (dict(levels=levels[:, None]), ValueError, r"levels must have .*, got \(2, 1\)"),
            (dict(levels=levels.to("meta")), ValueError, "device of inputs, cpu, got meta"),
            (dict(boxes=torch.zeros(2, 4)), ValueError, r"boxes as a Tensor must have shape"),
            (dict(boxes=rois.to("meta")), ValueError, "device of inputs, cpu, got meta"),
            (dict(boxes=[torch.zeros(2, 4)]), ValueError, "each of the 2 images of inputs, got 1"),
            (dict(spatial_scales=0.5), TypeError, "spatial_scales must be a list of numbers"),
            (
                dict(spatial_scales=[0.5]),
                ValueError,
                "spatial_scales must have one number for each of the 2 inputs, got 1",
            ),
            (
                dict(spatial_scales=[0.5, "x"]),
                TypeError,
                r"spatial_scales\[1\] must be a number, got 'x'",
            ),
            (
                dict(spatial_scales=[0.5, 0.0]),
                ValueError,
                r"spatial_scales\[1\] must be positive and finite in float32, got 0.0",
            ),
            (dict(output_size=0), ValueError, "output_size must be positive .*, got 0"),
            (dict(interpolation="cubic"), ValueError, '"bilinear" or "bicubic", got \'cubic\''),
            (dict(a=math.nan), ValueError, "a must be finite in float32, got nan"),
            (dict(sampling_ratio=1025), ValueError, "sampling_ratio must be at most 1024, got"),
        ],
    )
    def test_errors_name_the_bad_argument(self, changes, error, message):
        values = dict(inputs=self.maps, boxes=self.rois, levels=self.levels, output_size=2)
        values.update(spatial_scales=[1.0, 0.5])
        with pytest.raises(error, match=f"^multiscale_roi_align: .*{message}"):
            multiscale_roi_align(**{**values, **changes})

    @pytest.mark.parametrize(
        "changes, error, message",
        [
            (dict(input=[]), ValueError, "from 1 to 8 maps, got 0"),
            (dict(input=[maps[0]] * 9), ValueError, "from 1 to 8 maps, got 9"),
            (dict(spatial_scales=[1.0]), ValueError, "spatial_scales .* each of the 2 maps, got 1"),
            (dict(input=[maps[0], maps[1][0]]), ValueError, r"input\[1\] must have shape"),
            (dict(input=[maps[0], maps[1].half()]), TypeError, r"but input\[1\] has Half"),
            (dict(input=[maps[0], maps[1][:, :1]]), ValueError, r"input\[1\] has shape"),
            (dict(input=[maps[0], maps[1][..., :0]]), ValueError, r"input\[1\] must have a height"),
            (dict(levels=levels.int()), TypeError, "levels must be int64, got Int"),
            (dict(levels=levels[:1]), ValueError, r"levels must have shape \(K,\)"),
        ],
    )
    def test_the_forward_operator_refuses_arguments_that_would_crash_it(
        self, changes, error, message
    ):
        values = dict(input=self.maps, rois=self.rois, levels=self.levels)
        values.update(spatial_scales=[1.0, 0.5], pooled_height=2, pooled_width=2)
        values.update(sampling_ratio=0, aligned=True, interpolation="bicubic", a=-0.5)
        with pytest.raises(error, match=f"roi_align: .*{message}"):
            OPERATOR(**{**values, **changes})

    @pytest.mark.parametrize("name", ["heights", "widths", "needed"])
    def test_the_backward_operator_requires_a_value_for_each_map(self, name):
        values = dict(grad=torch.ones(2, 3, 2, 2), rois=self.rois, levels=self.levels)
        values.update(spatial_scales=[1.0, 0.5], batch=2, heights=[8, 4], widths=[8, 4])
        values.update(needed=[True, True], sampling_ratio=0, aligned=True)
        values.update(interpolation="bicubic", a=-0.5)
        values[name] = values[name][:1]
        with pytest.raises(ValueError, match=f"{name} must hold one value for each of the 2 maps"):
            BACKWARD(**values)


def inputs(num_rois=6, height=16, width=24):
    return (*pyramid(3, height, width), *rois_and_levels(num_rois, height, width))


class MultiscaleModule(nn.Module):
    """Calls the operator directly, as TorchScript requires."""

    def __init__(self, scales: list[float]):
        super().__init__()
        self.scales = scales

    def forward(self, maps: list[Tensor], rois: Tensor, levels: Tensor) -> Tensor:
        return torch.ops.mrcnn_plugin.roi_align(
            maps, rois, levels, self.scales, 2, 3, 0, True, "bicubic", -0.5
        )


class Model(nn.Module):
    """Has the operator between two others."""

    def __init__(self, size=(2, 3), sampling_ratio=0, interpolation="bicubic"):
        super().__init__()
        self.size, self.sampling_ratio, self.interpolation = size, sampling_ratio, interpolation

    def forward(self, p2, p3, p4, rois, levels):
        return self.pool([p2 * 2, p3, p4], rois, levels)

    def pool(self, maps, rois, levels):
        return 1 + multiscale_roi_align(
            maps,
            rois,
            levels,
            self.size,
            SCALES[: len(maps)],
            self.sampling_ratio,
            interpolation=self.interpolation,
        )


class ModelOfTwoLevels(Model):
    def forward(self, p2, p3, rois, levels):
        return self.pool([p2 * 2, p3], rois, levels)


class TestTorch:
    @pytest.mark.parametrize("levels", [True, False])
    @pytest.mark.parametrize("format", [CONTIGUOUS, CHANNELS_LAST])
    def test_opcheck_passes(self, format, levels):
        *maps, rois, of_rois = inputs()
        if not levels:
            maps, of_rois = maps[:1], None
        maps[0] = maps[0].contiguous(memory_format=format)
        maps = [m.requires_grad_() for m in maps]
        scales = SCALES[: len(maps)]
        torch.library.opcheck(OPERATOR.default, (maps, rois, of_rois, scales, 2, 3, *OPTIONS))
        grad = random_features(6, 3, 2, 3).contiguous(memory_format=format).requires_grad_()
        needed = [True, False, True][: len(maps)]
        args = (grad, rois, of_rois, scales, 2, *sizes(maps), needed, *OPTIONS)
        torch.library.opcheck(BACKWARD.default, args)

    @pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
    def test_torch_compile_works_for_any_shape_and_the_gradients(self, backend):
        model = Model()
        compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
        for shape in ({}, dict(num_rois=9, height=32), dict(num_rois=4, width=40)):
            *maps, rois, levels = inputs(**shape)
            gradients = []
            for run in (compiled, model):
                p2, p3, p4 = (m.clone() for m in maps)
                p2.requires_grad_(), p4.requires_grad_()
                output = run(p2, p3, p4, rois, levels)
                output.square().sum().backward()
                gradients.append((output.detach(), p2.grad, p4.grad))
            torch.testing.assert_close(*gradients)

    def test_torch_export_allows_a_dynamic_number_of_boxes(self):
        num_rois = torch.export.Dim("num_rois")
        shapes = dict.fromkeys(("p2", "p3", "p4")) | {
            "rois": {0: num_rois},
            "levels": {0: num_rois},
        }
        program = torch.export.export(Model(), inputs(), dynamic_shapes=shapes)
        other = inputs(num_rois=11)
        assert torch.equal(program.module()(*other), Model()(*other))

    @pytest.mark.parametrize(
        "trace",
        [
            torch.fx.symbolic_trace,
            lambda model: make_fx(model)(*inputs()),
            lambda model: torch.jit.trace(model, inputs()),
        ],
        ids=["symbolic_trace", "make_fx", "jit.trace"],
    )
    @pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
    def test_a_traced_module_equals_the_module(self, trace):
        traced = trace(Model())
        other = inputs(num_rois=9)
        assert torch.equal(traced(*other), Model()(*other))

    @pytest.mark.filterwarnings("ignore:.*torch.jit.script:")
    def test_the_operator_can_be_scripted(self):
        def pool(maps: list[Tensor], rois: Tensor, levels: Tensor | None, scales: list[float]):
            return torch.ops.mrcnn_plugin.roi_align(
                maps, rois, levels, scales, 2, 3, 0, True, "bicubic", -0.5
            )

        scripted = torch.jit.script(pool)
        *maps, rois, levels = inputs()
        for args in ((maps, rois, levels, SCALES), (maps[:1], rois, None, SCALES[:1])):
            assert torch.equal(scripted(*args), pool(*args))

    @pytest.mark.filterwarnings("ignore:.*torch.jit")
    def test_a_saved_script_needs_only_the_library(self, tmp_path):
        module = MultiscaleModule(SCALES)
        *maps, rois, levels = inputs()
        torch.jit.script(module).save(tmp_path / "script.pt")
        torch.save((maps, rois, levels), tmp_path / "inputs.pt")
        program = f"""
import sys, torch
torch.ops.load_library({mrcnn_plugin._C.__file__!r})
pool = torch.jit.load({str(tmp_path / "script.pt")!r})
torch.save(pool(*torch.load({str(tmp_path / "inputs.pt")!r})), {str(tmp_path / "output.pt")!r})
assert not {{"mrcnn_plugin", "detectron2"}} & set(sys.modules)
"""
        subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, cwd=tmp_path)
        assert torch.equal(torch.load(tmp_path / "output.pt"), module(maps, rois, levels))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_autocast_keeps_the_dtype_of_the_maps(self, dtype):
        *maps, rois, levels = inputs()
        maps = [m.to(dtype).requires_grad_() for m in maps]
        expected = multiscale_roi_align(maps, rois, levels, 2, SCALES)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = multiscale_roi_align(maps, rois, levels, 2, SCALES)
        assert actual.dtype == dtype and torch.equal(actual, expected)
        actual.sum().backward()
        assert all(m.grad.dtype == dtype for m in maps)

    def test_torch_and_fvcore_count_the_same_multiply_adds(self):
        expected = count_multiply_adds(6, 3, 2, 3, 4, "bicubic")
        *maps, rois, levels = inputs()
        with FlopCounterMode(display=False) as counter:
            output = Model(sampling_ratio=4)(maps[0].requires_grad_(), *maps[1:], rois, levels)
            output.sum().backward()
        assert counter.get_total_flops() == 2 * 2 * expected
        analysis = detectron2_module("utils.analysis").FlopCountAnalysis(
            Model(sampling_ratio=4), inputs()
        )
        assert analysis.by_operator()["roi_align"] == expected


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
class TestOnnx:
    def check(self, path, model, inputs, **options):
        onnxruntime = pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
        model.eval()
        names = ["p2", "p3", "p4"][: len(inputs()) - 2] + ["rois", "levels"]
        torch.onnx.export(model, inputs(), path, verbose=False, input_names=names, **options)
        session = onnxruntime.InferenceSession(path)
        # With one box, all levels but one have no boxes.
        for num_rois in (6, 1, 0, 40):
            args = inputs(num_rois=num_rois)
            feed = {name: value.numpy() for name, value in zip(names, args, strict=True)}
            (actual,) = session.run(None, feed)
            assert_same(torch.from_numpy(actual), model(*args), 1e-5)

    @pytest.mark.parametrize("opset", range(11, 21))
    @pytest.mark.parametrize(
        "interpolation, sampling_ratio", [("bilinear", 0), ("bicubic", 0), ("bicubic", 2)]
    )
    def test_onnxruntime_computes_the_same(self, opset, interpolation, sampling_ratio, tmp_path):
        self.check(
            tmp_path / "model.onnx",
            Model(sampling_ratio=sampling_ratio, interpolation=interpolation),
            inputs,
            dynamo=False,
            opset_version=opset,
            dynamic_axes={"rois": {0: "num_rois"}, "levels": {0: "num_rois"}},
        )

    def test_an_export_through_torch_export_computes_the_same(self, tmp_path):
        # Each level adds to the time that such an export takes.
        def of_two_levels(**sizes):
            p2, p3, _, rois, levels = inputs(**sizes)
            return p2, p3, rois, levels.clamp(max=1)

        num_rois = torch.export.Dim("num_rois")
        shapes = dict.fromkeys(("p2", "p3")) | {"rois": {0: num_rois}, "levels": {0: num_rois}}
        model = ModelOfTwoLevels(interpolation="bicubic")
        path = tmp_path / "model.onnx"
        self.check(path, model, of_two_levels, dynamo=True, dynamic_shapes=shapes)
