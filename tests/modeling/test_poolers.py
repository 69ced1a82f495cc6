"""Tests of the pooler types of this package, in each ROI head and alone, and beside stock types."""

import math

import pytest
import torch
from detectron2.layers import ROIAlign as StockROIAlign
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_roi_heads
from detectron2.modeling.poolers import (
    ROIPooler,
    assign_boxes_to_levels,
    convert_boxes_to_pooler_format,
)
from detectron2.structures import Boxes
from omegaconf import OmegaConf
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import RoIPool

from mrcnn_plugin.layers import roi_align
from mrcnn_plugin.layers.roi_align import MAX_LEVELS
from mrcnn_plugin.modeling import MultiscaleROIPooler
from tests import small
from tests.features import detectron2_module
from tests.layers.cases import random_features, random_rois

SHAPES = {f"p{i}": ShapeSpec(channels=32, stride=2**i) for i in range(2, 6)}
HEADS = ["ROI_BOX_HEAD", "ROI_MASK_HEAD", "ROI_KEYPOINT_HEAD"]
INTERPOLATION = {"ROIAlignBicubic": "bicubic", "ROIAlignBilinear": "bilinear"}
SCALES = [2.0**-s for s in range(2, 6)]
every_type = pytest.mark.parametrize("pooler_type", INTERPOLATION)


def poolers(cfg):
    heads = build_roi_heads(cfg, SHAPES)
    return [heads.box_pooler, heads.mask_pooler, heads.keypoint_pooler]


def features_and_boxes(count=60):
    """Returns maps of two images, and boxes on all levels. Some are inverted, empty or outside."""
    features = [random_features(2, 4, 128 >> i, 192 >> i, seed=i) for i in range(4)]
    rois = random_rois(count, 2, 512, 768, torch.float32)
    return features, [Boxes(rois[rois[:, 0] == i, 1:]) for i in range(2)]


class TestInHeads:
    @pytest.mark.parametrize("ours", HEADS)
    @every_type
    def test_each_head_chooses_its_own_pooler(self, ours, pooler_type):
        cfg = small.config(MODEL__KEYPOINT_ON=True, MODEL__MRCNN_PLUGIN__ROI_ALIGN__A=-0.75)
        for head in HEADS:
            cfg.MODEL[head].POOLER_TYPE = pooler_type if head == ours else "ROIAlignV2"
            cfg.MODEL[head].POOLER_SAMPLING_RATIO = 3
            cfg.MODEL[head].POOLER_RESOLUTION = 6
        for head, pooler in zip(HEADS, poolers(cfg), strict=True):
            if head == ours:
                assert type(pooler) is MultiscaleROIPooler
                assert (pooler.interpolation, pooler.a) == (INTERPOLATION[pooler_type], -0.75)
                assert (pooler.output_size, pooler.sampling_ratio) == ((6, 6), 3)
                assert pooler.scales == SCALES
            else:
                assert type(pooler) is ROIPooler
                assert all(type(level) is StockROIAlign for level in pooler.level_poolers)
        assert cfg.MODEL[ours].POOLER_TYPE == pooler_type, "the config is left as it was"

    @pytest.mark.parametrize(
        "name, layer, aligned", [("ROIAlign", StockROIAlign, False), ("ROIPool", RoIPool, None)]
    )
    def test_stock_pooler_types_still_work(self, name, layer, aligned):
        cfg = small.config(MODEL__ROI_BOX_HEAD__POOLER_TYPE=name)
        pooler = build_roi_heads(cfg, SHAPES).box_pooler
        for level in pooler.level_poolers:
            assert isinstance(level, layer) and getattr(level, "aligned", None) == aligned

    def test_an_unknown_pooler_type_is_an_error(self):
        with pytest.raises(ValueError, match="Unknown pooler type: ROIAlignCubic"):
            build_roi_heads(small.config(MODEL__ROI_BOX_HEAD__POOLER_TYPE="ROIAlignCubic"), SHAPES)

    def test_a_head_that_is_switched_off_needs_no_pooler(self):
        heads = build_roi_heads(small.config(MODEL__MASK_ON=False), SHAPES)
        assert not heads.mask_on and not hasattr(heads, "mask_pooler")

    @every_type
    def test_checkpoints_hold_nothing_of_the_pooler(self, pooler_type):
        pooler = MultiscaleROIPooler(7, SCALES, 0, pooler_type)
        assert not pooler.state_dict() and not list(pooler.children())


class TestValues:
    @pytest.mark.parametrize("sampling_ratio", [0, 2])
    @pytest.mark.parametrize("levels", [[0, 1, 2, 3], [1, 2], [2]])
    def test_bilinear_is_the_stock_pooler(self, sampling_ratio, levels):
        features, boxes = features_and_boxes()
        features = [features[i].requires_grad_() for i in levels]
        if levels == [2] and sampling_ratio == 0:  # torchvision cannot pool all inverted boxes
            for b in boxes:
                b.tensor[:, 2:] = b.tensor[:, 2:].maximum(b.tensor[:, :2])
        args = (7, [SCALES[i] for i in levels], sampling_ratio)
        stock = ROIPooler(*args, "ROIAlignV2")
        expected = stock(features, boxes)
        grad = random_features(*expected.shape, seed=9)
        expected_gradients = torch.autograd.grad(expected, features, grad)
        for pooler in (
            MultiscaleROIPooler(*args, "ROIAlignBilinear"),
            MultiscaleROIPooler.like(stock),
        ):
            actual = pooler(features, boxes)
            torch.testing.assert_close(actual, expected, rtol=0, atol=2e-6)
            gradients = torch.autograd.grad(actual, features, grad)
            torch.testing.assert_close(gradients, expected_gradients, rtol=0, atol=2e-5)

    @every_type
    def test_the_pooler_pools_what_roi_align_pools_from_each_level(self, pooler_type):
        features, boxes = features_and_boxes()
        for b in boxes:
            b.tensor[:, 2:] = b.tensor[:, 2:].maximum(b.tensor[:, :2])
        pooled = MultiscaleROIPooler((3, 5), SCALES, 2, pooler_type, a=-0.75)(features, boxes)
        levels = assign_boxes_to_levels(boxes, 2, 5, 224, 4)
        rois = convert_boxes_to_pooler_format(boxes)
        options = dict(interpolation=INTERPOLATION[pooler_type], a=-0.75)
        for level in range(4):
            rows = levels == level
            expected = roi_align(features[level], rois[rows], (3, 5), SCALES[level], 2, **options)
            assert rows.any() and torch.equal(pooled[rows], expected)

    @pytest.mark.parametrize(
        "side, level", [(111, 0), (112, 1), (223, 1), (224, 2), (448, 3), (0, 0), (3000, 3)]
    )
    @every_type
    def test_each_box_is_pooled_from_the_level_of_its_size(self, side, level, pooler_type):
        """The level is 4 + log2(side / 224), rounded down (FPN, arXiv 1612.03144, equation 1)."""
        features = [torch.full((1, 1, 1024 >> s, 1024 >> s), float(s - 2)) for s in range(2, 6)]
        pooler = MultiscaleROIPooler(7, SCALES, 2, pooler_type)
        pooled = pooler(features, [Boxes(torch.tensor([[0.0, 0.0, side, side]]))])
        assert pooled[0, 0, 0, 0].item() == pytest.approx(level)

    def test_the_canonical_size_and_level_are_those_of_the_parent(self):
        features, boxes = features_and_boxes()
        stock = ROIPooler(7, SCALES, 2, "ROIAlignV2", 100, 3)
        expected = stock(features, boxes)
        for ours in (
            MultiscaleROIPooler(7, SCALES, 2, "ROIAlignBilinear", 100, 3),
            MultiscaleROIPooler.like(stock),
        ):
            torch.testing.assert_close(ours(features, boxes), expected, rtol=0, atol=2e-6)

    @pytest.mark.parametrize("box", [[9, 9, 5, 20], [math.nan, 1, 30, 40], [1, 1, math.inf, 9]])
    @pytest.mark.parametrize("sampling_ratio", [0, 2])
    def test_a_box_that_belongs_to_no_level_pools_zeros_as_in_the_parent(self, box, sampling_ratio):
        features, _ = features_and_boxes()
        boxes = [Boxes(torch.tensor([[10.0, 10, 60, 60], box])), Boxes(torch.zeros(0, 4))]
        args = (7, SCALES, sampling_ratio)
        pooled = MultiscaleROIPooler(*args, "ROIAlignBilinear")(features, boxes)
        assert pooled[0].any() and not pooled[1].any()
        if math.inf not in box:  # torchvision does not end, or fails to allocate memory
            stock = ROIPooler(*args, "ROIAlignV2")(features, boxes)
            torch.testing.assert_close(pooled, stock, rtol=0, atol=2e-6)

    @pytest.mark.parametrize("box", [[9.0, 9, 5, 20], [math.nan, 1, 30, 40]])
    @pytest.mark.parametrize("sampling_ratio", [0, 2])
    def test_such_a_box_belongs_to_no_level_of_the_finest_maps_either(self, box, sampling_ratio):
        # Its level is the smallest integer. The parent subtracts the level of the first map, which is 0.
        features, _ = features_and_boxes()
        boxes = [Boxes(torch.tensor([box])), Boxes(torch.zeros(0, 4))]
        pooler = MultiscaleROIPooler(7, [1.0, 0.5], sampling_ratio, "ROIAlignBilinear")
        assert not pooler(features[:2], boxes).any()

    def test_a_lazy_config_may_give_its_own_kind_of_list(self):
        size = OmegaConf.create([7, 5])
        assert MultiscaleROIPooler(size, SCALES, 0, "ROIAlignBicubic").output_size == (7, 5)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_the_result_has_the_dtype_of_the_maps_and_full_coordinates(self, dtype):
        features, boxes = features_and_boxes()
        features = [f.to(dtype) for f in features]
        pooler = MultiscaleROIPooler(7, SCALES, 0, "ROIAlignBicubic")
        expected = pooler([f.float() for f in features], boxes)
        actual = pooler(features, boxes)
        assert actual.dtype == dtype
        tolerance = 1e-4 if dtype == torch.float64 else 0
        torch.testing.assert_close(
            actual.float(), expected.to(dtype).float(), rtol=0, atol=tolerance
        )

    @every_type
    def test_no_boxes_and_no_images_pool_nothing(self, pooler_type):
        features, _ = features_and_boxes()
        pooler = MultiscaleROIPooler((7, 5), SCALES, 0, pooler_type)
        no_boxes = [Boxes(torch.zeros(0, 4))]
        assert pooler(features, no_boxes * 2).shape == (0, 4, 7, 5)
        assert pooler([f[:0] for f in features], []).shape == (0, 4, 7, 5)

    def test_the_operator_is_called_once_and_the_host_does_not_wait(self):
        calls = []

        class Record(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                calls.append(func)
                return func(*args, **(kwargs or {}))

        pooler = MultiscaleROIPooler(7, SCALES, 0, "ROIAlignBicubic")
        with Record():
            pooler(*features_and_boxes())
        assert calls.count(torch.ops.mrcnn_plugin.roi_align.default) == 1
        waits = "nonzero", "repeat_interleave", "_local_scalar_dense", "index_put_"
        assert not [call for call in calls if call._schema.name.removeprefix("aten::") in waits]

    @pytest.mark.cuda
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
    @pytest.mark.parametrize("sampling_ratio", [0, 2])
    def test_a_cuda_graph_replays_forward_and_backward(self, sampling_ratio):
        pooler = MultiscaleROIPooler(7, SCALES, sampling_ratio, "ROIAlignBicubic")
        features, boxes = features_and_boxes()
        features = [f.cuda().requires_grad_() for f in features]
        boxes = [Boxes(b.tensor.cuda()) for b in boxes]

        def step():
            return torch.autograd.grad(pooler(features, boxes).square().sum(), features)

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        with torch.no_grad():
            for box in boxes:
                box.tensor.add_(8)
        graph.replay()
        for actual, expected in zip(captured, step(), strict=True):
            assert torch.equal(actual, expected)


class TestErrors:
    @pytest.mark.parametrize(
        "changes, error, message",
        [
            (
                dict(pooler_type="ROIAlignV2"),
                ValueError,
                "pooler_type must be one of .*ROIAlignBilinear.*, got 'ROIAlignV2'",
            ),
            (dict(a=math.nan), ValueError, "a must be finite in float32, got nan"),
            (dict(output_size=0), ValueError, "output_size must be positive .*, got 0"),
            (dict(scales=[0.5, 0.0]), ValueError, r"scales\[1\] must be positive .*, got 0.0"),
            (dict(sampling_ratio=0.5), TypeError, "sampling_ratio must be a whole number, got 0.5"),
            (
                dict(sampling_ratio=torch.tensor(2.5)),
                TypeError,
                "sampling_ratio must be a whole number, got tensor",
            ),
            (dict(output_size=True), TypeError, "output_size must be a whole number .*, got True"),
            (dict(pooler_type=["ROIAlignBilinear"]), ValueError, "pooler_type must be one of"),
            (dict(scales=0.25), TypeError, "scales must be a list of numbers, got 0.25"),
            (dict(scales=[]), ValueError, "scales must be 1 to 8 numbers, got 0"),
            (dict(scales=[2.0**-i for i in range(9)]), ValueError, "scales must be .*, got 9"),
            (dict(scales=[1 / 3]), ValueError, "powers of two .*, got .0.333"),
            (dict(scales=[2.0, 1.0]), ValueError, "powers of two .*, got .2.0, 1.0"),
            (dict(scales=[1 / 4, 1 / 16]), ValueError, "each twice the one before, .*, got"),
            (dict(canonical_box_size=0), ValueError, "canonical_box_size must be .*, got 0"),
            (dict(canonical_box_size=math.inf), ValueError, "canonical_box_size must be .*, got"),
            (dict(canonical_level=math.nan), ValueError, "canonical_level must be .*, got nan"),
            (dict(canonical_level="4"), TypeError, "canonical_level must be a number, got '4'"),
        ],
    )
    def test_bad_arguments_are_named(self, changes, error, message):
        values = dict(output_size=7, scales=SCALES, sampling_ratio=0, pooler_type="ROIAlignBicubic")
        with pytest.raises(error, match=message):
            MultiscaleROIPooler(**{**values, **changes})

    @pytest.mark.parametrize("count", [1, MAX_LEVELS])
    def test_the_fewest_and_the_most_scales_are_accepted(self, count):
        scales = [2.0**-i for i in range(count)]
        assert MultiscaleROIPooler(7, scales, 0, "ROIAlignBicubic").scales == scales

    def test_lengths_that_differ_are_errors(self):
        features, boxes = features_and_boxes()
        pooler = MultiscaleROIPooler(7, SCALES, 0, "ROIAlignBicubic")
        with pytest.raises(
            AssertionError, match="x must hold a map for each of the 4 scales, got 3"
        ):
            pooler(features[:3], boxes)
        with pytest.raises(AssertionError, match="the boxes of 2 images, got 1"):
            pooler(features, boxes[:1])

    @pytest.mark.parametrize("pooler_type", ["ROIAlign", "ROIPool"])
    def test_only_aligned_poolers_can_be_replaced(self, pooler_type):
        message = "pooler must be an ROIPooler of Detectron2 of type ROIAlignV2, got "
        with pytest.raises(ValueError, match=message + "ROIPooler"):
            MultiscaleROIPooler.like(ROIPooler(7, SCALES, 0, pooler_type))
        with pytest.raises(ValueError, match=message + "Linear$"):
            MultiscaleROIPooler.like(nn.Linear(1, 1))

    def test_its_own_poolers_can_be_replaced(self):
        ours = MultiscaleROIPooler(7, SCALES, 2, "ROIAlignBilinear", 112, 3)
        again = MultiscaleROIPooler.like(ours, "ROIAlignBicubic", a=-0.75)
        expected = MultiscaleROIPooler(7, SCALES, 2, "ROIAlignBicubic", 112, 3, a=-0.75)
        assert again.extra_repr() == expected.extra_repr()
        features, boxes = features_and_boxes()
        assert torch.equal(again(features, boxes), expected(features, boxes))


@pytest.mark.filterwarnings("ignore:.*(torch.jit|Tracer|Converting a tensor|legacy TorchScript)")
class TestTorch:
    class Wrapper(nn.Module):
        def __init__(self, pooler):
            super().__init__()
            self.pooler = pooler

        def forward(self, p2, p3, p4, p5, first, second):
            return self.pooler([p2, p3, p4, p5], [Boxes(first), Boxes(second)])

    @every_type
    @pytest.mark.parametrize("num_levels", [4, 1])
    def test_a_scripted_pooler_computes_the_same(self, pooler_type, num_levels):
        pooler = MultiscaleROIPooler(7, SCALES[:num_levels], 0, pooler_type, a=-0.75)
        with detectron2_module("export.torchscript_patch").patch_builtin_len():
            scripted = torch.jit.script(pooler)
        features, boxes = features_and_boxes()
        for maps in (features, [f.double() for f in features], [f.half() for f in features]):
            maps = maps[:num_levels]
            assert torch.equal(scripted(maps, boxes), pooler(maps, boxes))
        no_boxes = [Boxes(torch.zeros(0, 4))] * 2
        assert scripted(features[:num_levels], no_boxes).shape == (0, 4, 7, 7)

    @every_type
    def test_a_traced_pooler_computes_the_same(self, pooler_type):
        model = self.Wrapper(MultiscaleROIPooler(7, SCALES, 0, pooler_type))
        features, boxes = features_and_boxes()
        traced = torch.jit.trace(model, (*features, *(b.tensor for b in boxes)))
        for count in (5, 1, 0):
            args = (*features, boxes[0].tensor[:count], boxes[1].tensor[: 2 * count])
            assert torch.equal(traced(*args), model(*args))

    @pytest.mark.parametrize("opset", range(11, 21))
    def test_onnxruntime_computes_the_same(self, opset, tmp_path):
        onnxruntime = pytest.importorskip("onnxruntime")
        model = self.Wrapper(MultiscaleROIPooler(7, SCALES, 0, "ROIAlignBicubic")).eval()
        features, boxes = features_and_boxes(20)
        names = ["p2", "p3", "p4", "p5", "first", "second"]
        path = tmp_path / "model.onnx"
        torch.onnx.export(
            model,
            (*features, *(b.tensor for b in boxes)),
            path,
            dynamo=False,
            opset_version=opset,
            input_names=names,
            dynamic_axes={"first": {0: "first"}, "second": {0: "second"}},
        )
        session = onnxruntime.InferenceSession(path)
        features, boxes = features_and_boxes()
        for count in (20, 1, 0):
            args = (*features, boxes[0].tensor[:count], boxes[1].tensor[: 2 * count])
            feed = {name: value.numpy() for name, value in zip(names, args, strict=True)}
            (actual,) = session.run(None, feed)
            expected = model(*args)
            torch.testing.assert_close(torch.from_numpy(actual), expected, rtol=0, atol=1e-5)

    def test_a_compiled_pooler_takes_any_number_of_boxes(self):
        model = self.Wrapper(MultiscaleROIPooler(7, SCALES, 0, "ROIAlignBicubic"))
        features, boxes = features_and_boxes()
        compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
        for count in (20, 5):
            args = (*features, *(b.tensor[:count] for b in boxes))
            torch.testing.assert_close(compiled(*args), model(*args))
