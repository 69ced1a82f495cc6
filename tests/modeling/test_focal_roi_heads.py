"""Whole models with the ROI heads of this package are compared with models with their parents."""

import copy

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model, build_roi_heads
from detectron2.modeling.roi_heads import (
    ROI_HEADS_REGISTRY,
    FastRCNNOutputLayers,
    StandardROIHeads,
)
from detectron2.structures import Boxes, ImageList, Instances, Keypoints
from detectron2.utils.events import EventStorage

from mrcnn_plugin.modeling import (
    FocalFastRCNNOutputLayers,
    MRCNNFocalROIHeads,
    MultiscaleROIPooler,
)
from tests import small
from tests.features import detectron2_module, needs_sigmoid_ce

LOSSES = ["cross_entropy", "sigmoid_focal", "sigmoid_focal_star", "softmax_focal"]
PARENTS = {
    "MRCNNFocalROIHeads": "StandardROIHeads",
    "MRCNNFocalCascadeROIHeads": "CascadeROIHeads",
    "MRCNNFocalRes5ROIHeads": "Res5ROIHeads",
}
# The keys that a class needs in addition to the config, which has an FPN.
NEEDS = {
    "MRCNNFocalROIHeads": {},
    "MRCNNFocalCascadeROIHeads": {"MODEL__ROI_BOX_HEAD__CLS_AGNOSTIC_BBOX_REG": True},
    "MRCNNFocalRes5ROIHeads": {
        "MODEL__BACKBONE__NAME": "build_resnet_backbone",
        "MODEL__RESNETS__DEPTH": 50,
        "MODEL__RESNETS__OUT_FEATURES": ["res4"],
        "MODEL__RESNETS__WIDTH_PER_GROUP": 32,
        "MODEL__RESNETS__STEM_OUT_CHANNELS": 32,
        "MODEL__RESNETS__RES2_OUT_CHANNELS": 32,
        "MODEL__ANCHOR_GENERATOR__SIZES": [[16, 32]],
        "MODEL__RPN__IN_FEATURES": ["res4"],
        "MODEL__ROI_HEADS__IN_FEATURES": ["res4"],
    },
}
STOCK_POOLERS = {
    f"MODEL__ROI_{head}_HEAD__POOLER_TYPE": "ROIAlignV2" for head in ("BOX", "MASK", "KEYPOINT")
}
# These are the weights of RetinaNet's loss.
FOCAL = {
    "MODEL__ROI_BOX_HEAD__FOCAL__ALPHA": 0.25,
    "MODEL__ROI_BOX_HEAD__FOCAL__NORMALIZER": "foreground",
}
every_class = pytest.mark.parametrize("name", PARENTS)


def config(name, **changes):
    return small.config(**{"MODEL__ROI_HEADS__NAME": name, **NEEDS[name], **FOCAL, **changes})


def parent_config(name, **changes):
    return config(name, MODEL__ROI_HEADS__NAME=PARENTS[name], **STOCK_POOLERS, **changes)


def predictors(model):
    return [m for m in model.modules() if isinstance(m, FastRCNNOutputLayers)]


def training_losses(model, inputs):
    torch.manual_seed(0)
    with EventStorage():
        return model.train()(inputs)


def detect(model, inputs):
    with torch.no_grad():
        return [output["instances"].get_fields() for output in model.eval()(inputs)]


class OwnLosses:
    def losses(self, predictions, proposals):
        return {**super().losses(predictions, proposals), "loss_own": predictions[0].sum()}


class OwnPredictor(OwnLosses, FastRCNNOutputLayers):
    pass


class OwnFocalPredictor(OwnLosses, FocalFastRCNNOutputLayers):
    pass


class OwnHeads(StandardROIHeads):
    predictor = OwnPredictor

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        head = super()._init_box_head(cfg, input_shape)
        return {**head, "box_predictor": cls.predictor(cfg, head["box_head"].output_shape)}


@pytest.fixture
def combined_heads():
    class CombinedHeads(MRCNNFocalROIHeads, OwnHeads):
        pass

    ROI_HEADS_REGISTRY.register(CombinedHeads)
    yield "CombinedHeads"
    del ROI_HEADS_REGISTRY._obj_map["CombinedHeads"]


def test_a_predictor_of_the_user_is_kept(combined_heads):
    cfg = small.config(MODEL__ROI_HEADS__NAME=combined_heads)
    cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS = "cross_entropy"
    model = build_model(cfg)
    assert "loss_own" in training_losses(model, small.batch((64, 96)))
    assert isinstance(model.roi_heads.box_pooler, MultiscaleROIPooler)


def test_a_predictor_of_the_user_may_have_the_losses_of_this_package(combined_heads, monkeypatch):
    monkeypatch.setattr(OwnHeads, "predictor", OwnFocalPredictor)
    cfg = small.config(MODEL__ROI_HEADS__NAME=combined_heads)
    cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS = "sigmoid_focal"
    model = build_model(cfg)
    assert "loss_own" in training_losses(model, small.batch((64, 96)))
    assert model.roi_heads.box_predictor.cls_loss == "sigmoid_focal"


@pytest.mark.parametrize("key, value", [("CLS_LOSS", "softmax_focal"), ("CLS_LOSS_WEIGHT", 2.0)])
def test_a_loss_that_a_predictor_of_the_user_would_ignore_is_an_error(combined_heads, key, value):
    cfg = small.config(MODEL__ROI_HEADS__NAME=combined_heads)
    cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS = "cross_entropy"
    cfg.MODEL.ROI_BOX_HEAD[key] = value
    with pytest.raises(ValueError, match=f"{key} is '?{value}.*OwnPredictor"):
        build_model(cfg)


@every_class
@pytest.mark.parametrize("cls_loss", LOSSES)
def test_a_model_trains_a_step_and_detects(name, cls_loss):
    model = build_model(config(name, MODEL__ROI_BOX_HEAD__CLS_LOSS=cls_loss))
    losses = training_losses(model, small.batch((64, 96), (80, 64)))
    sum(losses.values()).backward()
    stages = ["_stage0", "_stage1", "_stage2"] if "Cascade" in name else [""]
    expected = {f"{loss}{stage}" for loss in ("loss_cls", "loss_box_reg") for stage in stages}
    assert losses.keys() == expected | {"loss_mask", "loss_rpn_cls", "loss_rpn_loc"}
    # DistributedDataParallel needs a gradient for every parameter.
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert len(predictors(model)) == len(stages)
    for predictor in predictors(model):
        assert type(predictor) is FocalFastRCNNOutputLayers and predictor.cls_loss == cls_loss
        assert predictor.cls_score.weight.grad.any()
    outputs = detect(model, small.batch((64, 96), (80, 64)))
    for output, size in zip(outputs, [(64, 96), (80, 64)], strict=True):
        assert output["pred_masks"].shape[1:] == size and len(output["scores"]) > 0
        assert ((output["scores"] >= 0) & (output["scores"] <= 1)).all()


@every_class
def test_the_state_dict_is_that_of_the_parent(name):
    ours = build_model(config(name, MODEL__ROI_BOX_HEAD__FOCAL__ALPHA_PER_CLASS=[0.1, 0.2, 0.3]))
    expected = build_model(parent_config(name)).state_dict()
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in expected.items()
    }


@every_class
@pytest.mark.parametrize("cls_loss", LOSSES)
def test_a_seed_gives_the_weights_of_the_parent(name, cls_loss):
    states = []
    for cfg in (parent_config(name), config(name, MODEL__ROI_BOX_HEAD__CLS_LOSS=cls_loss)):
        torch.manual_seed(5)
        states.append((build_model(cfg).state_dict(), torch.rand(1)))
    (expected, next_number), (actual, our_next_number) = states
    different = {key for key, value in expected.items() if not torch.equal(value, actual[key])}
    # The only difference is the foreground probability that sigmoids start with.
    sigmoid = cls_loss.startswith("sigmoid")
    assert different == {k for k in expected if sigmoid and k.endswith("cls_score.bias")}
    assert torch.equal(next_number, our_next_number)


@every_class
@pytest.mark.parametrize(
    "options",
    [{}, pytest.param({"MODEL__ROI_BOX_HEAD__USE_SIGMOID_CE": True}, marks=needs_sigmoid_ce)],
)
def test_with_cross_entropy_and_stock_poolers_it_is_the_parent(name, options):
    parent = build_model(parent_config(name, **options))
    cross_entropy = {"MODEL__ROI_BOX_HEAD__CLS_LOSS": "cross_entropy"}
    ours = build_model(config(name, **STOCK_POOLERS, **cross_entropy, **options))
    ours.load_state_dict(parent.state_dict())
    inputs = small.batch((64, 96), (80, 64))
    expected, actual = training_losses(parent, inputs), training_losses(ours, inputs)
    assert expected.keys() == actual.keys()
    for key, value in expected.items():
        assert torch.equal(value, actual[key]), key
    for theirs, own in zip(detect(parent, inputs), detect(ours, inputs), strict=True):
        assert len(theirs["scores"]) > 0 and theirs.keys() == own.keys()
        for field in theirs:
            one, other = (getattr(v[field], "tensor", v[field]) for v in (theirs, own))
            assert torch.equal(one, other), field


@every_class
def test_every_pooler_can_be_bicubic(name):
    heads = build_model(config(name, MODEL__MRCNN_PLUGIN__ROI_ALIGN__A=-0.75)).roi_heads
    poolers = [heads.pooler] if "Res5" in name else [heads.box_pooler, heads.mask_pooler]
    for pooler in poolers:
        assert type(pooler) is MultiscaleROIPooler
        assert (pooler.interpolation, pooler.a) == ("bicubic", -0.75)
    stock = build_model(config(name, **STOCK_POOLERS)).roi_heads
    assert not any(isinstance(module, MultiscaleROIPooler) for module in stock.modules())


def test_every_stage_of_a_cascade_has_its_own_box_weights():
    weights = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
    cfg = config("MRCNNFocalCascadeROIHeads", MODEL__ROI_BOX_CASCADE_HEAD__BBOX_REG_WEIGHTS=weights)
    stages = build_roi_heads(cfg, build_model(cfg).backbone.output_shape()).box_predictor
    assert tuple(stage.box2box_transform.weights for stage in stages) == weights


@pytest.mark.parametrize("name", ["MRCNNFocalROIHeads", "MRCNNFocalRes5ROIHeads"])
def test_boxes_need_not_depend_on_the_class(name):
    """In a cascade, they never do."""
    model = build_model(config(name, MODEL__ROI_BOX_HEAD__CLS_AGNOSTIC_BBOX_REG=True))
    (predictor,) = predictors(model)
    assert predictor.bbox_pred.out_features == 4
    losses = training_losses(model, small.batch((64, 96)))
    assert losses["loss_box_reg"] > 0 and losses["loss_box_reg"].isfinite()
    assert len(detect(model, small.batch((64, 96)))[0]["pred_boxes"]) > 0


@every_class
@pytest.mark.parametrize("cls_loss", LOSSES)
def test_images_without_objects_give_finite_losses(name, cls_loss):
    model = build_model(config(name, MODEL__ROI_BOX_HEAD__CLS_LOSS=cls_loss))
    losses = training_losses(model, small.batch((64, 64), (64, 96), objects=False))
    assert all(loss.isfinite() for loss in losses.values())
    assert all(loss > 0 for key, loss in losses.items() if key.startswith("loss_cls"))
    sum(losses.values()).backward()
    assert all(predictor.cls_score.weight.grad.any() for predictor in predictors(model))


@every_class
def test_a_model_may_detect_nothing(name):
    model = build_model(config(name, MODEL__ROI_HEADS__SCORE_THRESH_TEST=1.0))
    (output,) = detect(model, small.batch((64, 96)))
    assert len(output["scores"]) == 0 and output["pred_masks"].shape == (0, 64, 96)


@pytest.mark.parametrize("name", ["MRCNNFocalROIHeads", "MRCNNFocalCascadeROIHeads"])
def test_keypoints_are_learned_beside_boxes_and_masks(name):
    model = build_model(
        config(
            name,
            MODEL__KEYPOINT_ON=True,
            MODEL__ROI_KEYPOINT_HEAD__POOLER_TYPE="ROIAlignBicubic",
            MODEL__ROI_KEYPOINT_HEAD__CONV_DIMS=[8],
        )
    )
    assert isinstance(model.roi_heads.keypoint_pooler, MultiscaleROIPooler)
    inputs = small.batch((64, 96))
    centres = inputs[0]["instances"].gt_boxes.get_centers()
    visible = torch.cat([centres, torch.full((2, 1), 2.0)], dim=1)
    inputs[0]["instances"].gt_keypoints = Keypoints(visible[:, None].expand(2, 17, 3))
    losses = training_losses(model, inputs)
    assert {"loss_mask", "loss_keypoint"} <= losses.keys()
    assert all(loss.isfinite() for loss in losses.values())
    (output,) = detect(model, inputs)
    assert output["pred_keypoints"].shape == (len(output["scores"]), 17, 3)


def test_the_mask_head_of_point_rend_works():
    point_rend = pytest.importorskip("detectron2.projects.point_rend")
    cfg = config("MRCNNFocalROIHeads")
    point_rend.add_pointrend_config(cfg)
    cfg.merge_from_list(
        ["MODEL.ROI_MASK_HEAD.NAME", "PointRendMaskHead", "MODEL.ROI_MASK_HEAD.POOLER_TYPE", ""]
        + ["MODEL.ROI_MASK_HEAD.FC_DIM", 32, "MODEL.ROI_MASK_HEAD.POINT_HEAD_ON", True]
        + ["MODEL.POINT_HEAD.FC_DIM", 32, "MODEL.POINT_HEAD.NUM_CLASSES", 3]
    )
    model = build_model(cfg)
    losses = training_losses(model, small.batch((64, 96)))
    assert {"loss_mask", "loss_mask_point"} <= losses.keys()
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    (output,) = detect(model, small.batch((64, 96)))
    assert output["pred_masks"].shape[1:] == (64, 96) and len(output["pred_masks"]) > 0


class TestHeadsAlone:
    """The heads get features, proposals and targets directly, as in Detectron2's own tests."""

    sizes = [(48, 64), (60, 40), (64, 64)]
    # The images have no proposals, proposals without area or outside of the image, and usual proposals.
    proposals = [
        [],
        [[5.0, 5.0, 5.0, 20.0], [9.0, 9.0, 9.0, 9.0], [70.0, 10.0, 90.0, 30.0]],
        [[3.0, 4.0, 30.0, 33.0], [20.0, 8.0, 60.0, 50.0], [0.0, 0.0, 64.0, 64.0]],
    ]
    objects = [([], []), ([[4.0, 4.0, 20.0, 30.0]], [1]), ([[3.0, 5.0, 31.0, 30.0]], [2])]

    def inputs(self, name, images):
        shapes = {f"p{i}": ShapeSpec(channels=32, stride=2**i) for i in range(2, 6)}
        if "Res5" in name:
            shapes = {"res4": ShapeSpec(channels=128, stride=16)}
        generator = torch.Generator().manual_seed(0)
        features = {
            key: torch.randn(
                len(images), s.channels, 64 // s.stride, 64 // s.stride, generator=generator
            )
            for key, s in shapes.items()
        }
        proposals, targets = [], []
        for i in images:
            boxes = Boxes(torch.tensor(self.proposals[i]).reshape(-1, 4))
            logits = torch.zeros(len(boxes))
            proposals.append(
                Instances(self.sizes[i], proposal_boxes=boxes, objectness_logits=logits)
            )
            targets.append(small.instances(*self.objects[i], self.sizes[i]))
        padded = ImageList(torch.zeros(len(images), 3, 64, 64), [self.sizes[i] for i in images])
        return shapes, (padded, features, proposals, targets)

    def run(self, heads, inputs):
        torch.manual_seed(0)
        with EventStorage():
            _, losses = heads.train()(*copy.deepcopy(inputs))
        with torch.no_grad():
            detections, _ = heads.eval()(*copy.deepcopy(inputs[:3]))
        return losses, detections

    @every_class
    @pytest.mark.parametrize("images", [[0, 1, 2], [0], [0, 0], [1]])
    def test_with_cross_entropy_the_heads_are_the_parent(self, name, images):
        shapes, inputs = self.inputs(name, images)
        parent = build_roi_heads(parent_config(name), shapes)
        cross_entropy = {"MODEL__ROI_BOX_HEAD__CLS_LOSS": "cross_entropy"}
        ours = build_roi_heads(config(name, **STOCK_POOLERS, **cross_entropy), shapes)
        ours.load_state_dict(parent.state_dict())
        (expected, theirs), (actual, own) = self.run(parent, inputs), self.run(ours, inputs)
        assert expected.keys() == actual.keys()
        for key, value in expected.items():
            assert torch.equal(value, actual[key]), key
        for one, other in zip(theirs, own, strict=True):
            for a, b in zip(detected(one), detected(other), strict=True):
                assert torch.equal(a, b)

    @every_class
    @pytest.mark.parametrize("cls_loss", LOSSES)
    @pytest.mark.parametrize("images", [[0, 1, 2], [0, 0]])
    def test_images_without_proposals_and_boxes_without_area_work(self, name, cls_loss, images):
        shapes, inputs = self.inputs(name, images)
        heads = build_roi_heads(config(name, MODEL__ROI_BOX_HEAD__CLS_LOSS=cls_loss), shapes)
        losses, detections = self.run(heads, inputs)
        assert all(loss.isfinite() for loss in losses.values())
        sum(losses.values()).backward()
        assert all(p.grad.isfinite().all() for p in heads.parameters() if p.grad is not None)
        for i, found in zip(images, detections, strict=True):
            assert len(found) <= 3 * len(self.proposals[i])
            assert found.pred_masks.shape[0] == len(found)
        if images == [0, 0]:
            assert all(v == 0 for key, v in losses.items() if key.startswith("loss_cls"))


def detected(instances):
    return instances.pred_boxes.tensor, instances.scores, instances.pred_classes


@pytest.mark.filterwarnings("ignore:.*(torch.jit|Tracer|Converting a tensor)")
class TestTorchScript:
    """Detectron2 exports the models. It cannot script its own cascade."""

    images = [small.batch(size)[0]["image"] for size in [(64, 96), (80, 64)]]

    def run(self, model, image):
        with torch.no_grad():
            return model.inference([{"image": image}], do_postprocess=False)[0]

    @pytest.mark.parametrize(
        "name, cls_loss",
        [("MRCNNFocalROIHeads", "sigmoid_focal"), ("MRCNNFocalRes5ROIHeads", "cross_entropy")],
    )
    def test_a_scripted_model_detects_the_same(self, name, cls_loss):
        model = build_model(config(name, MODEL__ROI_BOX_HEAD__CLS_LOSS=cls_loss)).eval()
        tensors = ("objectness_logits", "scores", "pred_classes", "pred_masks")
        fields = dict(
            proposal_boxes=Boxes, pred_boxes=Boxes, **dict.fromkeys(tensors, torch.Tensor)
        )
        scripted = detectron2_module("export").scripting_with_instances(model, fields)
        for image in self.images:
            actual, expected = self.run(scripted, image), self.run(model, image)
            assert len(expected) > 0
            for one, other in zip(detected(actual), detected(expected), strict=True):
                torch.testing.assert_close(one, other)

    @every_class
    def test_a_traced_model_detects_the_same(self, name):
        model = build_model(config(name, MODEL__ROI_BOX_HEAD__CLS_LOSS="sigmoid_focal")).eval()
        adapter = detectron2_module("export").TracingAdapter(
            model, [{"image": self.images[0]}], lambda m, x: self.run(m, x[0]["image"])
        )
        traced = torch.jit.trace(adapter.eval(), (self.images[0],), check_trace=False)
        for image in self.images:
            actual = adapter.outputs_schema(traced(image))
            for one, other in zip(detected(actual), detected(self.run(model, image)), strict=True):
                torch.testing.assert_close(one, other)
