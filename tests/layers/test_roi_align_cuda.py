"""Tests of the CUDA kernels.

The fixture `ops` runs them twice: the emulation (tests/emulation) executes the source of the kernels
on the CPU, and the tests that are marked `cuda` run on a GPU.
"""

import itertools
import math
import shutil
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tests.emulation
from mrcnn_plugin.layers.roi_align_reference import (
    roi_align_backward_reference,
    roi_align_reference,
)
from mrcnn_plugin.layers.roi_align_registration import SCHEMAS
from tests import oracles
from tests.layers.cases import (
    DTYPES,
    INTERPOLATIONS,
    KERNEL_TOLERANCE,
    assert_same,
    boxes_dtype,
    kernel_of,
    layouts,
    random_features,
    random_rois,
)

FORMATS = [torch.contiguous_format, torch.channels_last]
BLOCK_ORDERS = {"forward": 0, "reversed": 1, "host threads": 2}
# float32 rounds positions, which are up to 70 here.
TOLERANCE = {**KERNEL_TOLERANCE, torch.float32: 2e-5}
CUBIC = (0, True, "bicubic", -0.5)


class Operators:
    """Runs the operators of a namespace on a device, with tensors from and to the CPU."""

    def __init__(self, namespace, device, is_first=True):
        self.namespace, self.device, self.is_first = namespace, device, is_first

    def on_device(self, tensor):
        return None if tensor is None else tensor.to(self.device)

    def forward_levels(self, maps, rois, levels, *options):
        return self.namespace.roi_align(
            [self.on_device(map) for map in maps],
            self.on_device(rois),
            self.on_device(levels),
            *options,
        ).cpu()

    def backward_levels(self, grad, rois, levels, *options):
        gradients = self.namespace.roi_align_backward(
            self.on_device(grad), self.on_device(rois), self.on_device(levels), *options
        )
        return [gradient.cpu() for gradient in gradients]

    def forward(self, features, rois, scale, *options):
        return self.forward_levels([features], rois, None, [scale], *options)

    def backward(self, grad, rois, scale, batch, height, width, *options):
        (gradient,) = self.backward_levels(
            grad, rois, None, [scale], batch, [height], [width], [True], *options
        )
        return gradient


def reference(features, rois, scale, *options):
    return roi_align_reference([features], rois, None, [scale], *options)


def reference_gradient(grad, rois, scale, batch, height, width, *options):
    (gradient,) = roi_align_backward_reference(
        grad, rois, None, [scale], batch, [height], [width], [True], *options
    )
    return gradient


def some_layouts(ops, tensor):
    """Yields all layouts for the first order of blocks, and otherwise the two that have kernels."""
    # The tensor moves to the device first, because moving a layout there would make it dense.
    return itertools.islice(layouts(tensor.to(ops.device)), None if ops.is_first else 2)


@pytest.fixture(scope="session")
def emulation():
    """Returns the namespace of the emulated operators."""
    if sys.platform != "linux" or shutil.which("c++") is None:
        pytest.skip("needs Linux and a C++ compiler")
    return tests.emulation.load()


@pytest.fixture(
    params=[*BLOCK_ORDERS, pytest.param("GPU", marks=pytest.mark.cuda)],
    ids=lambda name: name.replace(" ", "_"),
)
def ops(request):
    if request.param == "GPU":
        if not torch.cuda.is_available():
            pytest.skip("no GPU")
        return Operators(torch.ops.mrcnn_plugin, "cuda")
    namespace = request.getfixturevalue("emulation")
    namespace.set_block_order(BLOCK_ORDERS[request.param])
    return Operators(namespace, "cpu", is_first=request.param == "forward")


@pytest.mark.parametrize("interpolation, a", INTERPOLATIONS)
@pytest.mark.parametrize(
    "aligned, sampling_ratio", list(itertools.product([True, False], [0, 1, 3]))
)
def test_the_result_equals_the_definition(ops, interpolation, a, aligned, sampling_ratio):
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
    actual = ops.forward(features, rois, 0.25, 3, 5, sampling_ratio, aligned, interpolation, a)
    assert_same(actual, torch.from_numpy(expected), 1e-12)


# A forward block has 7 bin rows, 48 map rows at a time, 16 or 32 map columns and 64 channels (32 of
# float64). A backward block has 8 x 16 pixels. The sizes are below, at and above each of these.
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels, height, width", [(1, 1, 1), (8, 49, 17), (68, 12, 70)])
@pytest.mark.parametrize("size", [(1, 1), (7, 1), (8, 16), (9, 17)])
def test_every_layout_and_tile_size_equals_the_reference(ops, dtype, channels, height, width, size):
    features = random_features(2, channels, height, width, dtype=torch.float64).to(dtype)
    rois = random_rois(8, 2, height, width, boxes_dtype(dtype))
    grad = random_features(8, channels, *size, dtype=torch.float64, seed=1).to(dtype)
    for name, map in some_layouts(ops, features):
        expected = reference(map.cpu().double(), rois.double(), 1.0, *size, *CUBIC)
        actual = ops.forward(map, rois, 1.0, *size, *CUBIC)
        assert actual.dtype == dtype, name
        assert_same(actual.double(), expected, TOLERANCE[dtype])
    options = (1.0, 2, height, width, *CUBIC)
    for name, gradient in some_layouts(ops, grad):
        expected = reference_gradient(gradient.cpu().double(), rois.double(), *options)
        actual = ops.backward(gradient, rois, *options)
        assert actual.dtype == dtype, name
        assert_same(actual.double(), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("format", FORMATS)
def test_results_have_the_memory_format_of_the_input(ops, format):
    features = random_features(2, 5, 6, 7).contiguous(memory_format=format)
    rois = random_rois(4, 2, 6, 7, torch.float32)
    output = ops.forward(features, rois, 1.0, 3, 2, *CUBIC)
    assert output.is_contiguous(memory_format=format)
    grad_input = ops.backward(output, rois, 1.0, 2, 6, 7, *CUBIC)
    assert grad_input.is_contiguous(memory_format=format)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_order_of_blocks_gives_the_same_gradient_bits(emulation, format, dtype):
    grad = random_features(40, 9, 7, 7).to(dtype).contiguous(memory_format=format)
    rois = random_rois(40, 2, 20, 40, boxes_dtype(dtype))
    ops = Operators(emulation, "cpu")
    results = []
    for order in (0, 1, 2, 2, 2):
        emulation.set_block_order(order)
        results.append(ops.backward(grad, rois, 1.0, 2, 20, 40, *CUBIC))
    assert all(torch.equal(result, results[0]) for result in results[1:])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_every_run_on_a_gpu_gives_the_same_gradient_bits():
    ops = Operators(torch.ops.mrcnn_plugin, "cuda")
    grad, rois = random_features(300, 64, 7, 7), random_rois(300, 2, 40, 60, torch.float32)
    results = [ops.backward(grad, rois, 1.0, 2, 40, 60, *CUBIC) for _ in range(5)]
    assert all(torch.equal(result, results[0]) for result in results[1:])


def test_the_emulated_operators_have_the_schemas_of_the_real_ones(emulation):
    for schema in SCHEMAS:
        op = getattr(emulation, schema.split("(")[0]).default
        assert str(op._schema) == f"mrcnn_plugin_emulation::{schema}"


def test_bins_that_overlap_by_rounding_are_kept(ops):
    # float32 rounds the bins of this box by more than the size of the map, so two of them cover it.
    rois = torch.tensor([[0.0, -6.882088628926e10, 0.0, 5.268357477352e10, 3.0]])
    features = torch.full((1, 1, 3, 2152), 1e10)
    options = (1.0, 1, 1024, *CUBIC)
    expected = torch.ops.mrcnn_plugin.roi_align([features], rois, None, [1.0], *options[1:])
    assert (expected != 0).sum() == 2
    # Each kernel sums the weights of 2152 pixels in another order.
    assert_same(ops.forward(features, rois, *options), expected, 1e-4)


def test_zero_rois_and_zero_channels_give_empty_results(ops):
    for rois, channels in ((0, 3), (4, 0), (0, 0)):
        boxes = torch.zeros(rois, 5)
        output = ops.forward(torch.ones(2, channels, 8, 8), boxes, 1.0, 7, 7, *CUBIC)
        assert output.shape == (rois, channels, 7, 7)
        grad_input = ops.backward(output, boxes, 1.0, 2, 8, 8, *CUBIC)
        assert torch.equal(grad_input, torch.zeros(2, channels, 8, 8))


def test_a_box_may_be_larger_than_a_tile_and_have_many_bins(ops):
    features = random_features(1, 2, 150, 170, dtype=torch.float64)
    rois = torch.tensor([[0.0, -3.0, -2.0, 176.0, 151.0]], dtype=torch.float64)
    for size in ((70, 3), (3, 80)):
        expected = reference(features, rois, 1.0, *size, *CUBIC)
        assert_same(ops.forward(features, rois, 1.0, *size, *CUBIC), expected, 1e-12)
        grad = random_features(1, 2, *size, dtype=torch.float64, seed=1)
        options = (1.0, 1, 150, 170, *CUBIC)
        expected = reference_gradient(grad, rois, *options)
        assert_same(ops.backward(grad, rois, *options), expected, 1e-12)


def test_pixels_without_a_weight_are_not_read(ops):
    features = random_features(1, 8, 20, 20)
    rois = torch.tensor([[0.0, 5.0, 6.0, 12.0, 11.0]])
    outside = torch.full_like(features, float("nan"))
    outside[..., 4:13, 3:14] = features[..., 4:13, 3:14]
    expected = ops.forward(features, rois, 1.0, 3, 3, *CUBIC)
    assert torch.equal(ops.forward(outside, rois, 1.0, 3, 3, *CUBIC), expected)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_pixel_that_is_not_finite_reaches_only_bins_that_give_it_a_weight(
    ops, interpolation, format
):
    features = torch.ones(1, 8, 12, 40)
    features[:, :4, 4, 4], features[:, 4:, 4, 4] = math.nan, math.inf
    features = features.contiguous(memory_format=format)
    # All samples are at the centres of pixels. Along both axes, the first box has them at 2 and 3, and at
    # 4 and 5 in the second bin. The second box has them in the columns 0 and 9, and 18 and 27. Its bins
    # therefore read more than 8 columns, and column 4 is between the samples.
    rois = torch.tensor([[0.0, 2, 2, 6, 6], [0, -4, 2, 32, 6]])
    options = (2, 2, 2, True, interpolation, -0.5)
    expected = torch.ones(2, 8, 2, 2, dtype=torch.bool)
    expected[0, :, 1, 1] = False
    on_cpu = torch.ops.mrcnn_plugin.roi_align([features], rois, None, [1.0], *options)
    assert torch.equal(on_cpu.isfinite(), expected)
    assert torch.equal(ops.forward(features, rois, 1.0, *options).isfinite(), expected)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
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
        max_size=4,
    ),
)
def test_any_box_gives_the_values_of_the_reference(
    ops, height, width, size, sampling_ratio, aligned, interpolation, boxes
):
    features = random_features(1, 2, height, width, dtype=torch.float64)
    rois = torch.nn.functional.pad(torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4), (1, 0))
    options = (sampling_ratio, aligned, interpolation, -0.5)
    actual = ops.forward(features, rois, 0.5, *size, *options)
    assert_same(actual, reference(features, rois, 0.5, *size, *options), 1e-9)
    options = (0.5, 1, height, width, *options)
    expected = reference_gradient(actual, rois, *options)
    assert_same(ops.backward(actual, rois, *options), expected, 1e-9)


# On a GPU, the host does not wait for a check of the batch index, so an invalid one is not an error.
# The kernels read no memory outside of the maps.
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("index", [-1.0, 2.0, 0.5, 1e30, math.inf, math.nan])
def test_an_invalid_batch_index_pools_nan(ops, index, format):
    features = random_features(2, 5, 8, 8).contiguous(memory_format=format)
    rois = torch.tensor([[0, 0, 0, 4, 4], [index, 0, 0, 4, 4], [1, 1, 1, 7, 7]])
    output = ops.forward(features, rois, 1.0, 9, 2, *CUBIC)
    assert output[1].isnan().all()
    assert torch.equal(output[[0, 2]], ops.forward(features, rois[[0, 2]], 1.0, 9, 2, *CUBIC))
    gradient = ops.backward(torch.ones_like(output), rois, 1.0, 2, 8, 8, *CUBIC)
    without = ops.backward(torch.ones_like(output[:2]), rois[[0, 2]], 1.0, 2, 8, 8, *CUBIC)
    assert torch.equal(gradient, without)


@pytest.mark.parametrize("level", [-1, 2, 2**40, -(2**63)])
def test_an_invalid_level_pools_nan(ops, level):
    maps = [random_features(1, 3, 8, 8), random_features(1, 3, 4, 4)]
    rois = torch.tensor([[0.0, 0, 0, 4, 4], [0.0, 1, 1, 7, 7]])
    options = ([1.0, 0.5], 2, 3, *CUBIC)
    output = ops.forward_levels(maps, rois, torch.tensor([level, 1]), *options)
    assert output[0].isnan().all()
    assert torch.equal(output[1:], ops.forward_levels(maps, rois[1:], torch.tensor([1]), *options))
    gradients = ops.backward_levels(
        torch.ones_like(output),
        rois,
        torch.tensor([level, 1]),
        [1.0, 0.5],
        1,
        [8, 4],
        [8, 4],
        [True, True],
        *CUBIC,
    )
    assert torch.equal(gradients[0], torch.zeros(1, 3, 8, 8))
    assert gradients[1].isfinite().all() and gradients[1].any()


@pytest.mark.parametrize(
    "channels, bins", [(2**32 + 64, (1, 1)), (2**31 + 64, (1, 1)), (1, (2**20, 2**20))]
)
def test_a_call_too_large_for_the_integers_of_the_kernels_is_an_error(ops, channels, bins):
    features = torch.ones(1, 1, 1, 1, dtype=torch.half, device=ops.device)
    box = torch.tensor([[0.0, 0, 0, 4, 4]])
    with pytest.raises(ValueError, match="this call is too large for CUDA"):
        ops.forward(features.expand(1, channels, 1, 1), box, 1.0, *bins, *CUBIC)


def test_a_call_whose_weights_have_no_addresses_is_an_error(ops):
    # Modulo 2 ** 64, the weights of this call take 20 GB.
    most = 2**29 - 1
    features = torch.ones(1, 1, 1, 1, dtype=torch.double, device=ops.device)
    boxes = torch.ones(1, 5, dtype=torch.double, device=ops.device).expand(most, 5)
    with pytest.raises(ValueError, match="need more than 2\\^63 bytes"):
        ops.forward(features.expand(1, 1, most, 1), boxes, 1.0, 1, 1, *CUBIC)


SHAPES = [(40, 70), (20, 35), (10, 18), (5, 9)]
SCALES = [1 / 4, 1 / 8, 1 / 16, 1 / 32]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(7, 7), (14, 14)])
def test_several_levels_may_have_different_layouts(ops, dtype, size):
    maps = [
        random_features(2, 5, *shape, dtype=torch.float64, seed=i)
        .to(dtype)
        .contiguous(memory_format=FORMATS[i % 2])
        for i, shape in enumerate(SHAPES)
    ]
    rois = random_rois(20, 2, 160, 280, boxes_dtype(dtype))
    levels = torch.arange(20) % 3  # the last level has no RoIs
    options = (SCALES, *size, *CUBIC)
    expected = roi_align_reference([m.double() for m in maps], rois.double(), levels, *options)
    actual = ops.forward_levels(maps, rois, levels, *options)
    assert_same(actual.double(), expected, TOLERANCE[dtype])
    grad = random_features(20, 5, *size, dtype=torch.float64, seed=9).to(dtype)
    needed = [True, False, True, True]
    options = (SCALES, 2, [h for h, _ in SHAPES], [w for _, w in SHAPES], needed, *CUBIC)
    expected = roi_align_backward_reference(grad.double(), rois.double(), levels, *options)
    gradients = ops.backward_levels(grad, rois, levels, *options)
    assert len(gradients) == 3 and not gradients[2].any()
    for gradient, reference in zip(gradients, expected, strict=True):
        assert gradient.dtype == dtype
        assert_same(gradient.double(), reference, TOLERANCE[dtype])


def test_the_kernel_for_few_blocks_equals_the_kernel_for_many(ops):
    # With few images there are few blocks, for which the launch chooses blocks of fewer channels.
    grad = random_features(6, 70, 7, 7)
    rois = random_rois(6, 1, 30, 30, torch.float32)
    few = ops.backward(grad, rois, 1.0, 1, 30, 30, *CUBIC)
    many = ops.backward(grad, rois, 1.0, 70, 30, 30, *CUBIC)
    assert torch.equal(few[0], many[0])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
class TestOnGpu:
    """These tests need a GPU: dispatch, streams, autograd and opcheck."""

    def args(self):
        """Returns arguments of the operator."""
        maps = [
            random_features(2, 3, *shape, seed=i).cuda().requires_grad_()
            for i, shape in enumerate([(8, 9), (4, 5)])
        ]
        rois = random_rois(6, 2, 16, 18, torch.float32).cuda()
        levels = torch.tensor([0, 1, 0, 1, 1, 0], device="cuda")
        return (maps, rois, levels, [0.5, 0.25], 2, 3, *CUBIC)

    def test_opcheck_passes(self):
        torch.library.opcheck(torch.ops.mrcnn_plugin.roi_align.default, self.args())

    def test_the_kernels_run_on_the_current_stream(self):
        maps, *others = self.args()
        expected = torch.ops.mrcnn_plugin.roi_align(maps, *others)
        late = [torch.zeros_like(map) for map in maps]
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda._sleep(100_000_000)  # a kernel on another stream would read zeros
            for target, source in zip(late, maps, strict=True):
                target.copy_(source)
            actual = torch.ops.mrcnn_plugin.roi_align(late, *others)
        torch.cuda.synchronize()
        assert torch.equal(actual, expected)

    @pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs")
    def test_the_kernels_run_on_the_device_of_the_tensors(self):
        maps, rois, levels, *options = self.args()
        expected = torch.ops.mrcnn_plugin.roi_align(maps, rois, levels, *options)
        gradients = torch.autograd.grad(expected.square().sum(), maps)
        others = [map.detach().to("cuda:1").requires_grad_() for map in maps]
        with torch.cuda.device(0):
            actual = torch.ops.mrcnn_plugin.roi_align(
                others, rois.to("cuda:1"), levels.to("cuda:1"), *options
            )
            other_gradients = torch.autograd.grad(actual.square().sum(), others)
        assert actual.device == torch.device("cuda:1")
        assert torch.equal(actual.cpu(), expected.cpu())
        for one, other in zip(gradients, other_gradients, strict=True):
            assert torch.equal(one.cpu(), other.cpu())

    def test_there_may_be_more_rois_than_65535(self):
        maps = [random_features(2, 3, 20, 30)]
        rois = random_rois(70_000, 2, 20, 30, torch.float32)
        options = (None, [1.0], 2, 3, *CUBIC)
        expected = torch.ops.mrcnn_plugin.roi_align(maps, rois, *options)
        maps = [maps[0].cuda().requires_grad_()]
        actual = torch.ops.mrcnn_plugin.roi_align(maps, rois.cuda(), *options)
        assert_same(actual.cpu(), expected, TOLERANCE[torch.float32])
        (gradient,) = torch.autograd.grad(actual.sum(), maps)
        assert gradient.isfinite().all() and gradient.all()

    @pytest.mark.parametrize("format", FORMATS)
    def test_a_map_may_have_more_than_2_to_the_31_elements(self, format):
        shape = (2, 256, 2200, 2048)
        if torch.cuda.mem_get_info()[0] < 12 * 2**30:
            pytest.skip("needs 12 GB of GPU memory")
        map = torch.zeros(shape, dtype=torch.half, device="cuda").to(memory_format=format)
        last = random_features(1, 1, *shape[2:], seed=3).half()
        map[-1:, -1:] = last.cuda()
        rois = torch.tensor([[1.0, 1900, 2100, 2040, 2190], [1.0, 3, 5, 2000, 2100]])
        options = (None, [1.0], 7, 7, *CUBIC)
        actual = torch.ops.mrcnn_plugin.roi_align([map], rois.cuda(), *options)
        assert not actual[:, :-1].any()
        rois[:, 0] = 0
        expected = torch.ops.mrcnn_plugin.roi_align([last.float()], rois, *options)
        assert_same(actual[:, -1:].float().cpu(), expected, TOLERANCE[torch.half])

    def test_two_streams_can_run_at_once(self):
        features = random_features(2, 64, 100, 100).cuda()
        rois = random_rois(300, 2, 100, 100, torch.float32).cuda()
        options = (None, [1.0], 7, 7, *CUBIC)
        expected = torch.ops.mrcnn_plugin.roi_align([features], rois, *options)
        torch.cuda.synchronize()
        streams = [torch.cuda.Stream() for _ in range(2)]
        results = []
        for i in range(20):
            with torch.cuda.stream(streams[i % 2]):
                results.append(torch.ops.mrcnn_plugin.roi_align([features], rois, *options))
        torch.cuda.synchronize()
        assert all(torch.equal(result, expected) for result in results)

    def test_gradcheck_passes(self):
        maps, rois, *others = self.args()
        assert torch.autograd.gradcheck(
            lambda *maps: torch.ops.mrcnn_plugin.roi_align(list(maps), rois.double(), *others),
            [map.detach().double().requires_grad_() for map in maps],
        )

    def test_autocast_keeps_the_dtype_of_the_maps(self):
        maps, *others = self.args()
        with torch.autocast("cuda", dtype=torch.float16):
            output = torch.ops.mrcnn_plugin.roi_align([map.half() for map in maps], *others)
        assert output.dtype == torch.float16

    def test_a_cuda_graph_can_hold_forward_and_backward(self):
        maps, *others = self.args()

        def step():
            output = torch.ops.mrcnn_plugin.roi_align(maps, *others)
            return output, torch.autograd.grad(output.square().sum(), maps)

        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output, gradients = step()
        with torch.no_grad():
            for map in maps:
                map.mul_(2)
        graph.replay()
        expected, expected_gradients = step()
        torch.cuda.synchronize()
        assert torch.equal(output, expected)
        for actual, wanted in zip(gradients, expected_gradients, strict=True):
            assert torch.equal(actual, wanted)

    @pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
    def test_torch_compile_works(self, mode):
        maps, *others = self.args()

        def pool(maps):
            return torch.ops.mrcnn_plugin.roi_align(maps, *others).square().sum()

        expected = torch.autograd.grad(pool(maps), maps)
        compiled = torch.compile(pool, fullgraph=True, mode=mode)
        for _ in range(3):  # reduce-overhead records a graph the second time
            actual = [g.clone() for g in torch.autograd.grad(compiled(maps), maps)]
        torch.testing.assert_close(actual, list(expected))

    def test_running_out_of_memory_leaves_the_device_usable(self):
        features = torch.zeros(1, 4096, 8, 8, device="cuda")
        rois = torch.zeros(200_000, 5, device="cuda")
        with pytest.raises(torch.cuda.OutOfMemoryError):  # 600 GB
            torch.ops.mrcnn_plugin.roi_align([features], rois, None, [1.0], 14, 14, *CUBIC)
        output = torch.ops.mrcnn_plugin.roi_align([features], rois[:2], None, [1.0], 2, 2, *CUBIC)
        assert torch.equal(output, torch.zeros(2, 4096, 2, 2, device="cuda"))
