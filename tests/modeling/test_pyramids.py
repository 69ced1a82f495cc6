"""Tests of all pyramids in whole models, with export, other bottom-up networks and checkpoints."""

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_backbone, build_model
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from detectron2.modeling.backbone.regnet import RegNet, ResBottleneckBlock, SimpleStem
from detectron2.solver import build_optimizer
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage

from mrcnn_plugin.modeling import PAFPN, BiFPN, UpsampleFPN
from mrcnn_plugin.modeling.backbone.upsample_fpn import UPSAMPLE
from tests import small
from tests.conftest import load_tool
from tests.features import detectron2_module
from tests.small import BottomUp

NAMES = ["upsample_fpn", "pafpn", "bifpn"]
CLASSES = [UpsampleFPN, PAFPN, BiFPN]
FEATURES = ["res2", "res3", "res4", "res5"]


def config(name, **changes):
    return small.config(MODEL__BACKBONE__NAME=f"build_mrcnn_resnet_{name}_backbone", **changes)


def retinanet_config(builder, **changes):
    return small.config(
        MODEL__META_ARCHITECTURE="RetinaNet",
        MODEL__BACKBONE__NAME=builder,
        MODEL__FPN__IN_FEATURES=["res3", "res4", "res5"],
        MODEL__RETINANET__NUM_CLASSES=3,
        **changes,
    )


def moved(model):
    """Gives the parameters of the pyramid random values, because some start at zero or one."""
    backbone = getattr(model, "backbone", model)
    for name, parameter in backbone.named_parameters():
        if not name.startswith("bottom_up."):
            torch.nn.init.normal_(parameter, mean=0.05, std=0.1)
    return model.eval()


@pytest.mark.parametrize("upsample", UPSAMPLE)
@pytest.mark.parametrize("name", NAMES)
def test_a_model_trains_on_odd_sizes_and_an_image_does_not_depend_on_others(name, upsample):
    torch.manual_seed(0)
    # Both are padded to the same size, so that the features of one do not depend on the other.
    inputs = small.batch((65, 97), (90, 120))
    model = build_model(config(name, MODEL__FPN__UPSAMPLE=upsample))
    with EventStorage():
        losses = model(inputs)
    sum(losses.values()).backward()
    grads = [p.grad for p in model.backbone.parameters() if p.requires_grad]
    assert all(grad is not None and grad.isfinite().all() for grad in grads)
    moved(model)
    with torch.no_grad():
        together = model(inputs)
        alone = [model([x])[0] for x in inputs]
    for a, b, x in zip(together, alone, inputs, strict=True):
        assert len(a["instances"]) == len(b["instances"]) > 0
        assert a["instances"].image_size == x["image"].shape[1:]
        torch.testing.assert_close(
            a["instances"].pred_boxes.tensor, b["instances"].pred_boxes.tensor
        )
        torch.testing.assert_close(a["instances"].scores, b["instances"].scores)


@pytest.mark.parametrize("upsample", ["nearest", "mean", "bicubic", "carafe", "gated_carafe"])
@pytest.mark.parametrize("pyramid", CLASSES)
def test_mixed_precision_computes_the_same(pyramid, upsample):
    torch.manual_seed(0)
    fpn = pyramid(BottomUp(), FEATURES, 32, "GN", LastLevelMaxPool(), upsample=upsample)
    images = torch.randn(1, 3, 128, 192)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        levels = fpn(images)
    for name, expected in fpn(images).items():
        torch.testing.assert_close(levels[name].float(), expected, rtol=0.1, atol=0.3)
    sum(level.float().square().mean() for level in levels.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in fpn.parameters())


@pytest.mark.parametrize(
    "name, upsample", [*((name, "gated_carafe") for name in NAMES), ("upsample_fpn", "mean")]
)
def test_the_backbone_can_be_scripted_and_traced(name, upsample):
    # Importing it makes Detectron2's ResNet scriptable.
    detectron2_module("export")
    backbone = moved(build_backbone(config(name, MODEL__FPN__UPSAMPLE=upsample)))
    images = torch.rand(2, 3, 128, 128)
    scripted = torch.jit.script(backbone)
    traced = torch.jit.trace(backbone, images, strict=False, check_trace=False)
    with torch.no_grad():
        for x in (images, torch.rand(1, 3, 64, 192)):
            expected = backbone(x)
            for exported in (scripted(x), traced(x)):
                assert exported.keys() == expected.keys()
                for level, value in expected.items():
                    torch.testing.assert_close(exported[level], value)


@pytest.mark.parametrize("upsample", ["nearest", "bicubic"])
@pytest.mark.parametrize("name", NAMES)
def test_a_whole_model_can_be_scripted_as_with_the_stock_fpn(name, upsample):
    heads = {  # The heads are Detectron2's own, so that the pyramid is tested.
        "MODEL__ROI_HEADS__NAME": "StandardROIHeads",
        "MODEL__ROI_BOX_HEAD__POOLER_TYPE": "ROIAlignV2",
        "MODEL__ROI_MASK_HEAD__POOLER_TYPE": "ROIAlignV2",
    }
    model = moved(build_model(config(name, MODEL__FPN__UPSAMPLE=upsample, **heads)))
    fields = {
        "proposal_boxes": Boxes,
        "objectness_logits": torch.Tensor,
        "pred_boxes": Boxes,
        "scores": torch.Tensor,
        "pred_classes": torch.Tensor,
        "pred_masks": torch.Tensor,
    }
    inputs = [{"image": x["image"].float()} for x in small.batch((65, 97), (90, 120))]
    scripted = detectron2_module("export").scripting_with_instances(model, fields)
    with torch.no_grad():
        expected = model.inference(inputs, do_postprocess=False)
        actual = scripted.inference(inputs, do_postprocess=False)
    for a, b in zip(actual, expected, strict=True):
        assert len(b) > 0
        torch.testing.assert_close(a.pred_boxes.tensor, b.pred_boxes.tensor)
        torch.testing.assert_close(a.scores, b.scores)
        torch.testing.assert_close(a.pred_masks, b.pred_masks)


@pytest.mark.parametrize("name", NAMES)
def test_retinanet_trains_on_p3_to_p7(name):
    torch.manual_seed(0)
    cfg = retinanet_config(f"build_mrcnn_retinanet_resnet_{name}_backbone")
    model = build_model(cfg)
    assert list(model.backbone.output_shape()) == ["p3", "p4", "p5", "p6", "p7"]
    optimizer = build_optimizer(cfg, model)
    before = {n: p.detach().clone() for n, p in model.backbone.named_parameters()}
    inputs = small.batch((65, 140), (90, 250))
    with EventStorage():
        losses = model(inputs)
    sum(losses.values()).backward()
    optimizer.step()
    assert all(loss.isfinite() for loss in losses.values())
    trained = [n for n, p in model.backbone.named_parameters() if not torch.equal(p, before[n])]
    assert {"top_block.p6.weight", "top_block.p7.weight"} <= set(trained)
    with torch.no_grad():
        outputs = model.eval()(inputs)
    assert [x["instances"].image_size for x in outputs] == [(65, 140), (90, 250)]


@pytest.mark.parametrize("name", NAMES)
def test_retinanet_with_a_backbone_for_mask_rcnn_is_an_error(name):
    builder = f"build_mrcnn_resnet_{name}_backbone"
    message = f"MODEL.RETINANET.IN_FEATURES is .*'p7'.*{builder}.*'p6'.*build_mrcnn_retinanet_"
    with pytest.raises(ValueError, match=message):
        build_model(retinanet_config(builder))


@pytest.mark.parametrize("pyramid", CLASSES)
@pytest.mark.parametrize("top_block", [LastLevelMaxPool, lambda: LastLevelP6P7(64, 32, "s4")])
def test_a_pyramid_works_on_a_regnet(pyramid, top_block):
    regnet = RegNet(
        stem_class=SimpleStem,
        stem_width=8,
        block_class=ResBottleneckBlock,
        depth=8,
        w_a=8,
        w_0=8,
        w_m=2,
        group_width=8,
        out_features=["s1", "s2", "s3", "s4"],
    )
    fpn = pyramid(regnet, ["s1", "s2", "s3", "s4"], 32, "GN", top_block())
    levels = fpn(torch.randn(1, 3, 128, 256))
    for name, shape in fpn.output_shape().items():
        assert levels[name].shape == (1, 32, 128 // shape.stride, 256 // shape.stride)
    assert list(levels)[:5] == ["p2", "p3", "p4", "p5", "p6"]


@pytest.mark.parametrize("pyramid", CLASSES)
@pytest.mark.parametrize(
    "in_features, top_block, fuse_type, message",
    [
        (["res2", "res6"], None, "sum", "'res6'.*must name features of the bottom-up: .*'res5'"),
        ([], None, "sum", r"MODEL.FPN.IN_FEATURES is \[\], but must name features"),
        (["res2", "res4"], None, "sum", r"strides \[4, 16\].*successive powers of two"),
        (["res3", "res2"], None, "sum", r"strides \[8, 4\].*successive powers of two"),
        (["res2", "res3"], LastLevelMaxPool(), "sum", "last level is 'p3'.*from 'p5'"),
        (["res2", "res3"], LastLevelP6P7(5, 8), "sum", "last level is 'p3'.*from 'res5'"),
        (FEATURES, None, "max", "MODEL.FPN.FUSE_TYPE must be 'sum' or 'avg', got 'max'"),
    ],
)
def test_options_that_cannot_work_are_errors(pyramid, in_features, top_block, fuse_type, message):
    with pytest.raises(ValueError, match=message):
        pyramid(BottomUp(), in_features, 8, top_block=top_block, fuse_type=fuse_type)


@pytest.mark.parametrize("prefix", ["build_mrcnn", "build_mrcnn_retinanet"])
@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_upsampling_is_named_when_the_model_is_built(prefix, name):
    cfg = small.config(
        MODEL__BACKBONE__NAME=f"{prefix}_resnet_{name}_backbone", MODEL__FPN__UPSAMPLE="cubic"
    )
    message = "MODEL.FPN.UPSAMPLE must be one of .*'nearest'.*'carafe'.*, got 'cubic'"
    with pytest.raises(ValueError, match=message):
        build_backbone(cfg)


def test_a_feature_that_the_resnet_lacks_is_named():
    with pytest.raises(ValueError, match="MODEL.RESNETS.OUT_FEATURES is .*'res5': add it"):
        build_backbone(
            small.config(
                MODEL__BACKBONE__NAME="build_mrcnn_retinanet_resnet_pafpn_backbone",
                MODEL__RESNETS__OUT_FEATURES=["res3", "res4"],
                MODEL__FPN__IN_FEATURES=["res3", "res4"],
            )
        )
    with pytest.raises(ValueError, match=r"strides \[4, 8, 16, 16\]"):
        build_backbone(
            config(
                "pafpn",
                MODEL__RESNETS__DEPTH=50,
                MODEL__RESNETS__RES5_DILATION=2,
                MODEL__RESNETS__RES2_OUT_CHANNELS=256,
            )
        )


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """Returns a stock Mask R-CNN, and the file of its checkpoint."""
    folder = tmp_path_factory.mktemp("stock")
    model = build_model(small.config(MODEL__BACKBONE__NAME="build_resnet_fpn_backbone")).eval()
    DetectionCheckpointer(model, str(folder)).save("stock")
    return model, str(folder / "stock.pth")


@pytest.mark.parametrize(
    "name, upsample, new, left_out",
    [
        ("upsample_fpn", "nearest", (), ()),
        ("upsample_fpn", "bicubic", (), ()),
        ("upsample_fpn", "mean", (), ()),
        ("upsample_fpn", "carafe", ("backbone.upsample.",), ()),
        ("upsample_fpn", "gated_carafe", ("backbone.upsample.",), ()),
        ("pafpn", "nearest", ("backbone.pafpn.",), ()),
        ("pafpn", "carafe", ("backbone.pafpn.", "backbone.upsample."), ()),
        ("pafpn", "gated_carafe", ("backbone.pafpn.", "backbone.upsample."), ()),
        ("bifpn", "nearest", ("backbone.bifpn.",), ("backbone.fpn_output",)),
    ],
)
def test_a_stock_checkpoint_lacks_only_what_is_new(stock, name, upsample, new, left_out):
    stock_model, file = stock
    model = build_model(config(name, MODEL__FPN__UPSAMPLE=upsample)).eval()
    checkpointer = load_tool("upgrade_checkpoint").ReportingCheckpointer(model)
    checkpointer.load(file)
    keys, stock_keys = model.state_dict(), stock_model.state_dict()
    missing, unexpected, shapes = checkpointer.incompatible
    assert set(missing) == {key for key in keys if key.startswith(new)}
    assert set(unexpected) == {key for key in stock_keys if key.startswith(left_out)}
    assert not shapes and len(keys) - len(missing) == len(stock_keys) - len(unexpected)
    if upsample in ("nearest", "gated_carafe") and name != "bifpn":
        images = torch.rand(1, 3, 64, 96)
        with torch.no_grad():
            expected, actual = stock_model.backbone(images), model.backbone(images)
        assert all(torch.equal(actual[level], expected[level]) for level in expected)


@pytest.mark.parametrize("name", ["upsample_fpn", "pafpn"])
@pytest.mark.parametrize("upsample", UPSAMPLE)
def test_a_seed_gives_the_rest_of_a_model_the_weights_of_a_stock_one(name, upsample):
    models = []
    for cfg in (
        small.config(MODEL__BACKBONE__NAME="build_resnet_fpn_backbone"),
        config(name, MODEL__FPN__UPSAMPLE=upsample),
    ):
        torch.manual_seed(3)
        models.append(build_model(cfg).state_dict())
    stock, ours = models
    for key, value in stock.items():
        assert torch.equal(ours[key], value), key
