"""RoIAlign works with torch's tools: compile, export, tracing, autocast, flop counters and ONNX."""

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from mrcnn_plugin.layers import ROIAlign, roi_align
from mrcnn_plugin.layers.roi_align_reference import roi_align_dense
from mrcnn_plugin.layers.roi_align_registration import count_multiply_adds
from tests.features import detectron2_module
from tests.layers.cases import assert_same, random_features, random_rois


def inputs(num_rois=6, channels=3, height=8, width=9, batch=2):
    features = random_features(batch, channels, height, width)
    return features, random_rois(num_rois, batch, height, width, torch.float32)


class Model(nn.Module):
    """Has a pooler between two other operators."""

    def __init__(self, **options):
        super().__init__()
        self.pooler = ROIAlign((2, 3), 0.5, 0, **options)

    def forward(self, features, rois):
        return self.pooler(features * 2, rois) + 1


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_torch_compile_works_for_any_shape_and_the_gradient(backend):
    model = Model()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    for shape in ({}, dict(num_rois=9, height=12), dict(num_rois=4, channels=5, width=17)):
        features, rois = inputs(**shape)
        ours, theirs = features.clone().requires_grad_(), features.requires_grad_()
        actual, expected = compiled(ours, rois), model(theirs, rois)
        torch.testing.assert_close(actual, expected)
        actual.square().sum().backward()
        expected.square().sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_torch_compile_works_if_the_options_change():
    features, rois = inputs()
    compiled = torch.compile(roi_align, fullgraph=True, dynamic=True, backend="eager")
    for options in ((2, 0.5, 0), (3, 0.25, 1), ((4, 5), 1.0, 2)):
        actual = compiled(features, rois, *options)
        assert torch.equal(actual, roi_align(features, rois, *options))


def test_torch_export_allows_a_dynamic_number_of_boxes():
    num_rois, height = torch.export.Dim("num_rois"), torch.export.Dim("height")
    program = torch.export.export(
        Model(), inputs(), dynamic_shapes={"features": {2: height}, "rois": {0: num_rois}}
    )
    other = inputs(num_rois=11, height=15)
    assert torch.equal(program.module()(*other), Model()(*other))


@pytest.mark.parametrize(
    "trace",
    [
        torch.fx.symbolic_trace,
        lambda model: make_fx(model)(*inputs()),
        lambda model: torch.jit.trace(model, inputs()),
        torch.jit.script,
    ],
    ids=["symbolic_trace", "make_fx", "jit.trace", "jit.script"],
)
def test_a_traced_module_equals_the_module(trace):
    traced = trace(Model())
    features, rois = inputs(num_rois=9)
    assert torch.equal(traced(features, rois), Model()(features, rois))


def test_a_module_whose_options_are_integers_can_be_scripted():
    features, rois = inputs()
    pooler = ROIAlign(2, 1, 0, a=-1)
    assert torch.equal(torch.jit.script(pooler)(features, rois), pooler(features, rois))


def test_a_gradient_is_computed_only_if_it_is_needed():
    features, rois = inputs()
    calls = []

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            calls.append(func)
            return func(*args, **(kwargs or {}))

    weight = torch.ones(3, requires_grad=True)
    with Count():
        (roi_align(features, rois, 2) * weight[:, None, None]).sum().backward()
    backward = torch.ops.mrcnn_plugin.roi_align_backward.default
    assert backward not in calls and weight.grad is not None
    with Count():
        roi_align(features.requires_grad_(), rois, 2).sum().backward()
    assert backward in calls


class TestAutocast:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_autocast_keeps_the_dtype_of_the_features(self, dtype):
        features, rois = inputs()
        features = features.to(dtype).requires_grad_()
        expected = roi_align(features, rois, 2)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = roi_align(features, rois, 2)
        assert actual.dtype == dtype and torch.equal(actual, expected)
        actual.sum().backward()
        assert features.grad.dtype == dtype

    def test_half_precision_boxes_keep_their_values(self):
        features, rois = inputs()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = roi_align(features, rois.bfloat16(), 2)
        assert torch.equal(actual, roi_align(features, rois.bfloat16().float(), 2))


class TestFlops:
    # This is a count by hand for one box, one channel and 2 x 3 bins of 2 x 2 samples. A bin reads
    # 5 x 5 pixels, and the box reads 9 columns. The y pass has 2 bin rows x 9 columns x 5 pixels, and
    # the x pass has 6 bins x 5 pixels.
    ONE = 2 * 9 * 5 + 6 * 5

    def test_the_formula_counts_what_a_count_by_hand_gives(self):
        assert count_multiply_adds(1, 1, 2, 3, 2, "bicubic") == self.ONE
        assert count_multiply_adds(7, 11, 2, 3, 2, "bicubic") == 77 * self.ONE
        # A bin has one sample with two taps, and the box reads 4 columns.
        assert count_multiply_adds(1, 1, 2, 3, 0, "bilinear") == 2 * 4 * 2 + 6 * 2

    def test_torch_counts_both_passes(self):
        features, rois = inputs()
        with FlopCounterMode(display=False) as counter:
            roi_align(features.requires_grad_(), rois, (2, 3), 1.0, 2).sum().backward()
        assert counter.get_total_flops() == 2 * 2 * 6 * 3 * self.ONE

    def test_detectron2_counts_the_operator(self):
        class Pool(nn.Module):
            def forward(self, features, rois):
                return roi_align(features, rois, (2, 3), 1.0, 2)

        analysis = detectron2_module("utils.analysis").FlopCountAnalysis(Pool(), inputs())
        assert analysis.total() == 6 * 3 * self.ONE
        assert not analysis.unsupported_ops()


class TestOnnx:
    @pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
    @pytest.mark.parametrize("sampling_ratio", [0, 2])
    def test_the_dense_form_equals_the_operator(self, interpolation, sampling_ratio):
        features, rois = inputs(num_rois=20)
        args = ([features], rois, None, [0.5], 3, 2, sampling_ratio, True, interpolation, -0.5)
        expected = torch.ops.mrcnn_plugin.roi_align(*args)
        assert_same(roi_align_dense(*args), expected, 1e-5)

    @pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
    @pytest.mark.parametrize("opset", ["dynamo", *range(11, 21)])
    @pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
    def test_onnxruntime_computes_the_same(self, interpolation, opset, tmp_path):
        onnxruntime = pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
        model = Model(interpolation=interpolation).eval()
        path = tmp_path / "model.onnx"
        dynamic = {"features": {2: "height"}, "rois": {0: "num_rois"}}
        dynamo = opset == "dynamo"
        torch.onnx.export(
            model,
            inputs(),
            path,
            dynamo=dynamo,
            opset_version=None if dynamo else opset,
            verbose=False,
            input_names=["features", "rois"],
            **{"dynamic_shapes" if dynamo else "dynamic_axes": dynamic},
        )
        session = onnxruntime.InferenceSession(path)
        for shape in ({}, dict(num_rois=1), dict(num_rois=0), dict(num_rois=13, height=31)):
            features, rois = inputs(**shape)
            (actual,) = session.run(None, {"features": features.numpy(), "rois": rois.numpy()})
            assert_same(torch.from_numpy(actual), model(features, rois), 1e-5)
