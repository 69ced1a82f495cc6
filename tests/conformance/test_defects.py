"""The 2018 project that this one follows had defects. These tests show that this project has none of them.

Every test has the name of a defect. More detailed tests are beside those of the same part.
"""

import json
import math

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model, build_roi_heads
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage

from mrcnn_plugin.data import generate_shapes
from mrcnn_plugin.layers import roi_align
from mrcnn_plugin.layers.roi_align_reference import roi_align_reference
from tests import oracles, small
from tests.features import needs_saved_optimizer, needs_sigmoid_ce

SHAPES = {f"p{i}": ShapeSpec(channels=32, stride=2**i) for i in range(2, 6)}
FOCAL = ["sigmoid_focal", "sigmoid_focal_star", "softmax_focal"]
LOSS_NAMES = {"loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"}


def training_losses(cfg, inputs, seed=0):
    torch.manual_seed(seed)
    model = build_model(cfg)
    torch.manual_seed(seed)
    with EventStorage():
        return model, model(inputs)


def predictor_loss(scores, classes, **settings):
    settings = {"MODEL__ROI_BOX_HEAD__FOCAL__NORMALIZER": "foreground", **settings}
    predictor = build_roi_heads(small.config(**settings), SHAPES).box_predictor
    boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0]]).repeat(len(classes), 1)
    proposals = Instances((32, 32), proposal_boxes=Boxes(boxes), gt_boxes=Boxes(boxes))
    proposals.gt_classes = torch.tensor(classes, dtype=torch.int64)
    with EventStorage():
        return predictor.losses((scores, scores.new_zeros(len(scores), 4 * 3)), [proposals])[
            "loss_cls"
        ]


class TestFocalLossWasDeadCode:
    @pytest.mark.parametrize("loss", FOCAL)
    def test_alpha_and_gamma_change_the_loss_of_a_model(self, loss):
        inputs = small.batch((64, 64))
        values = {
            (alpha, gamma): training_losses(
                small.config(
                    MODEL__ROI_BOX_HEAD__CLS_LOSS=loss,
                    MODEL__ROI_BOX_HEAD__FOCAL__ALPHA=alpha,
                    MODEL__ROI_BOX_HEAD__FOCAL__GAMMA=gamma,
                ),
                inputs,
            )[1]["loss_cls"].item()
            for alpha in (-1.0, 0.25, 0.6)
            for gamma in (0.5, 1.0, 2.0)
        }
        assert len(set(values.values())) == len(values)

    @needs_sigmoid_ce
    @pytest.mark.parametrize(
        "loss, gamma, stock_is_sigmoid",
        [("softmax_focal", 0.0, False), ("sigmoid_focal", 0.0, True)]
        + [("sigmoid_focal_star", 1.0, True)],
    )
    def test_without_focus_it_is_the_cross_entropy(self, loss, gamma, stock_is_sigmoid):
        scores = torch.randn(6, 4) * 3
        classes = [0, 1, 2, 3, 3, 3]
        actual = predictor_loss(
            scores,
            classes,
            MODEL__ROI_BOX_HEAD__CLS_LOSS=loss,
            MODEL__ROI_BOX_HEAD__FOCAL__ALPHA=-1.0,
            MODEL__ROI_BOX_HEAD__FOCAL__GAMMA=gamma,
            MODEL__ROI_BOX_HEAD__FOCAL__BETA=0.0,
            MODEL__ROI_BOX_HEAD__FOCAL__NORMALIZER="proposals",
        )
        stock = predictor_loss(
            scores,
            classes,
            MODEL__ROI_HEADS__NAME="StandardROIHeads",
            MODEL__ROI_BOX_HEAD__POOLER_TYPE="ROIAlignV2",
            MODEL__ROI_MASK_HEAD__POOLER_TYPE="ROIAlignV2",
            MODEL__ROI_BOX_HEAD__USE_SIGMOID_CE=stock_is_sigmoid,
        )
        torch.testing.assert_close(actual, stock, rtol=2e-7, atol=0)


class TestLabelsWereOffByOne:
    @pytest.mark.parametrize("loss", ["cross_entropy", *FOCAL])
    @pytest.mark.parametrize("label", [0, 1, 2])
    def test_the_score_of_a_class_is_raised_in_its_own_column(self, loss, label):
        scores = torch.zeros(1, 4, requires_grad=True)
        predictor_loss(scores, [label], MODEL__ROI_BOX_HEAD__CLS_LOSS=loss).backward()
        assert (scores.grad[0] < 0).nonzero()[:, 0].tolist() == [label]

    @pytest.mark.parametrize("loss", ["cross_entropy", "softmax_focal"])
    def test_background_is_the_last_column(self, loss):
        scores = torch.zeros(1, 4, requires_grad=True)
        predictor_loss(scores, [3], MODEL__ROI_BOX_HEAD__CLS_LOSS=loss).backward()
        assert (scores.grad[0] < 0).nonzero()[:, 0].tolist() == [3]

    @pytest.mark.parametrize("loss", ["sigmoid_focal", "sigmoid_focal_star"])
    def test_background_lowers_every_class_of_a_sigmoid(self, loss):
        scores = torch.zeros(1, 4, requires_grad=True)
        predictor_loss(scores, [3], MODEL__ROI_BOX_HEAD__CLS_LOSS=loss).backward()
        assert (scores.grad[0, :3] > 0).all() and scores.grad[0, 3] == 0


class TestDivisionByZeroPositivesAndLogOfZero:
    @pytest.mark.parametrize("loss", FOCAL)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("classes", [[], [3, 3], [0, 3]])
    def test_value_and_gradient_are_finite(self, loss, dtype, classes):
        for sign in (1, -1):
            scores = torch.full((len(classes), 4), sign * 1e4, dtype=dtype)
            scores[:, ::2] *= -1
            scores.requires_grad_()
            value = predictor_loss(scores, classes, MODEL__ROI_BOX_HEAD__CLS_LOSS=loss)
            value.backward()
            assert value.isfinite() and scores.grad.isfinite().all()


def test_cubic_was_bilinear():
    features = torch.randn(1, 2, 9, 11, dtype=torch.float64)
    rois = torch.tensor([[0, 1.3, 2.1, 7.9, 6.6]], dtype=torch.float64)
    cubic = roi_align(features, rois, (3, 4))
    expected = oracles.roi_align(
        features.numpy(), rois.numpy(), (3, 4), 1.0, 0, True, oracles.keys_kernel(-0.5)
    )
    torch.testing.assert_close(cubic, torch.from_numpy(expected), rtol=0, atol=1e-12)
    assert (cubic - roi_align(features, rois, (3, 4), interpolation="bilinear")).abs().max() > 0.01


class TestCoordinatesWereScaledByHeightMinusOne:
    x = torch.arange(32, dtype=torch.float64) + 0.5

    def test_a_ramp_returns_the_bin_centres(self):
        rois = torch.tensor([[0, 3.3, 5.2, 24.9, 27.7]], dtype=torch.float64)
        pooled = roi_align(self.x.expand(1, 1, 32, 32), rois, (2, 6))
        centres = 3.3 + (torch.arange(6, dtype=torch.float64) + 0.5) * (24.9 - 3.3) / 6
        torch.testing.assert_close(pooled[0, 0], centres.expand(2, 6), rtol=0, atol=1e-12)

    def test_moving_the_image_and_the_box_by_pixels_changes_nothing(self):
        features = torch.randn(1, 2, 20, 20, dtype=torch.float64)
        rois = torch.tensor([[0, 3.3, 4.1, 11.2, 12.6]], dtype=torch.float64)
        moved = torch.roll(features, (2, 5), dims=(2, 3))
        offset = torch.tensor([0, 5, 2, 5, 2], dtype=torch.float64)
        torch.testing.assert_close(
            roi_align(moved, rois + offset, 4), roi_align(features, rois, 4), rtol=0, atol=1e-12
        )

    def test_the_same_place_is_pooled_from_every_stride(self):
        rois = torch.tensor([[0, 64.0, 72.0, 160.0, 176.0]], dtype=torch.float64)
        pooled = [
            # The map of stride s holds, at each pixel, the image coordinate of its centre.
            roi_align((self.x[: 256 // s] * s).expand(1, 1, 256 // s, 256 // s), rois, 5, 1 / s)
            for s in (8, 16, 32)
        ]
        for other in pooled[1:]:
            torch.testing.assert_close(other, pooled[0], rtol=0, atol=1e-9)

    def test_every_sample_of_a_bin_counts(self):
        impulse = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
        impulse[0, 0, 6, 6] = 1
        rois = torch.tensor([[0, 2, 2, 14, 14]], dtype=torch.float64)
        assert roi_align(impulse, rois, 1).item() == pytest.approx(1 / 144, abs=1e-12)


def test_boxes_were_rounded_before_the_mask_head():
    pooler = build_roi_heads(small.config(), SHAPES).mask_pooler
    features = [torch.arange(64.0 / 2**i).add(0.5).expand(1, 1, 64 >> i, 64 >> i) for i in range(4)]
    box = torch.tensor([[20.0, 20.0, 80.0, 80.0]])
    moved = pooler(features, [Boxes(box + 0.3)]) - pooler(features, [Boxes(box)])
    torch.testing.assert_close(moved, torch.full_like(moved, 0.3 / 4), rtol=0, atol=1e-5)


def test_only_batches_of_one_worked():
    # All are padded to the same size, so that the features of an image do not depend on the others.
    model = build_model(small.config()).eval()
    inputs = small.batch((64, 96), (50, 70))
    with torch.no_grad():
        together = model(inputs)
        alone = [model([x])[0] for x in inputs]
    assert ImageList.from_tensors([x["image"] for x in inputs], 32).tensor.shape[-2:] == (64, 96)
    for a, b in zip(together, alone, strict=True):
        assert len(a["instances"]) == len(b["instances"]) > 0
        torch.testing.assert_close(
            a["instances"].pred_boxes.tensor, b["instances"].pred_boxes.tensor
        )
        torch.testing.assert_close(a["instances"].scores, b["instances"].scores)
        assert torch.equal(a["instances"].pred_masks, b["instances"].pred_masks)


@pytest.mark.parametrize(
    "side, level", [(111, 2), (112, 3), (223, 3), (224, 4), (447, 4), (448, 5), (0, 2)]
)
def test_the_pyramid_level_was_rounded(side, level):
    pooler = build_roi_heads(small.config(), SHAPES).box_pooler
    features = [torch.full((1, 1, 512 >> i, 512 >> i), float(i)) for i in range(2, 6)]
    pooled = pooler(features, [Boxes(torch.tensor([[0.0, 0.0, side, side]]))])
    expected = level if side else 0.0  # a box without area has no samples
    torch.testing.assert_close(pooled, torch.full_like(pooled, expected))


class TestZeroDetectionsCrashed:
    def test_no_detection_in_any_image(self):
        model = build_model(small.config(MODEL__ROI_HEADS__SCORE_THRESH_TEST=1.0)).eval()
        with torch.no_grad():
            outputs = model(small.batch((64, 64), (64, 96)))
        for output, size in zip(outputs, [(64, 64), (64, 96)], strict=True):
            assert len(output["instances"]) == 0 and output["instances"].pred_masks.shape == (
                0,
                *size,
            )

    def test_levels_and_images_without_boxes(self):
        pooler = build_roi_heads(small.config(), SHAPES).box_pooler
        features = [torch.randn(2, 32, 64 >> i, 64 >> i) for i in range(4)]
        boxes = [Boxes(torch.zeros(0, 4)), Boxes(torch.tensor([[0.0, 0.0, 500.0, 500.0]]))]
        assert pooler(features, boxes).shape == (1, 32, 7, 7)


@pytest.mark.parametrize("loss", ["cross_entropy", *FOCAL])
def test_negatives_counted_only_when_there_were_positives(loss):
    cfg = small.config(
        MODEL__ROI_BOX_HEAD__CLS_LOSS=loss, MODEL__ROI_BOX_HEAD__FOCAL__NORMALIZER="foreground"
    )
    model, losses = training_losses(cfg, small.batch((64, 64), objects=False))
    assert losses.keys() == LOSS_NAMES
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["loss_cls"] > 0
    sum(losses.values()).backward()
    assert model.roi_heads.box_predictor.cls_score.weight.grad.abs().sum() > 0


def test_frozen_stages_never_unfroze():
    def frozen(model):
        return {n for n, p in model.backbone.bottom_up.named_parameters() if not p.requires_grad}

    stages = build_model(small.config(MODEL__BACKBONE__FREEZE_AT=2))
    thawed = build_model(small.config(MODEL__BACKBONE__FREEZE_AT=0))
    assert frozen(stages) and all(n.startswith(("stem", "res2")) for n in frozen(stages))
    assert not frozen(thawed)
    thawed.load_state_dict(stages.state_dict(), strict=False)
    with EventStorage():
        sum(thawed(small.batch((64, 64))).values()).backward()
    assert thawed.backbone.bottom_up.stem.conv1.weight.grad.abs().sum() > 0


class TestCheckpoints:
    def test_missing_weights_were_only_printed(self, tmp_path):
        checkpointer = DetectionCheckpointer(build_model(small.config()))
        with pytest.raises((AssertionError, FileNotFoundError), match="nowhere.pth"):
            checkpointer.load(str(tmp_path / "nowhere.pth"))

    @needs_saved_optimizer
    def test_resuming_gives_the_uninterrupted_run(self, tmp_path, train_net, register):
        """The data set has one image, because Detectron2's sampler starts anew when a run is resumed."""
        register("one_image", generate_shapes(str(tmp_path / "data"), 1, seed=3))

        def trainer(name):
            torch.manual_seed(0)
            cfg = small.config(
                "quickstart.yaml",
                OUTPUT_DIR=str(tmp_path / name),
                DATASETS__TRAIN=("one_image",),
                DATASETS__TEST=(),
                MODEL__ROI_HEADS__NUM_CLASSES=4,
                INPUT__RANDOM_FLIP="none",
                SOLVER__IMS_PER_BATCH=1,
                SOLVER__MAX_ITER=4,
                SOLVER__CHECKPOINT_PERIOD=2,
                SOLVER__WARMUP_ITERS=3,
                DATALOADER__NUM_WORKERS=0,
                **small.ALL_SAMPLES,
            )
            (tmp_path / name).mkdir()
            return train_net.Trainer(cfg)

        whole = trainer("whole")
        whole.resume_or_load(resume=False)
        whole.train()
        resumed = trainer("resumed")
        (tmp_path / "whole" / "model_0000001.pth").rename(
            tmp_path / "resumed" / "model_0000001.pth"
        )
        (tmp_path / "resumed" / "last_checkpoint").write_text("model_0000001.pth")
        resumed.resume_or_load(resume=True)
        assert resumed.start_iter == 2
        resumed.train()
        for (name, expected), actual in zip(
            whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True
        ):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5, msg=name)


def test_validation_was_augmented_and_shuffled(tmp_path, train_net, register):
    register("validation", generate_shapes(str(tmp_path / "data"), 4, seed=4))
    cfg = small.config(
        "quickstart.yaml",
        OUTPUT_DIR=str(tmp_path),
        DATASETS__TEST=("validation",),
        MODEL__ROI_HEADS__NUM_CLASSES=4,
        DATALOADER__NUM_WORKERS=0,
    )
    passes = [list(train_net.Trainer.build_test_loader(cfg, "validation")) for _ in range(2)]
    image_ids = [d["image_id"] for d in DatasetCatalog.get("validation")]
    assert [x["image_id"] for (x,) in passes[0]] == image_ids
    for (first,), (second,) in zip(*passes, strict=True):
        assert torch.equal(first["image"], second["image"])
    # This compares detections, because the AP of an untrained model is always zero.
    model = build_model(cfg)
    results = []
    for _ in range(2):
        train_net.Trainer.test(cfg, model)
        file = tmp_path / "inference" / "coco_instances_results.json"
        results.append(json.loads(file.read_text()))
    assert len(results[0]) > 0 and results[0] == results[1]


def test_height_and_width_were_swapped():
    features = torch.zeros(1, 1, 8, 40)
    features[0, 0, :, 30:] = 1
    rois = torch.tensor([[0.0, 28.0, 1.0, 36.0, 5.0]])
    pooled = roi_align(features, rois, (2, 4), interpolation="bilinear", sampling_ratio=1)
    assert pooled.shape == (1, 1, 2, 4)
    torch.testing.assert_close(pooled[0, 0], torch.tensor([[0.0, 1.0, 1.0, 1.0]] * 2))


@pytest.mark.parametrize("index", [-1.0, 1.0, math.nan])
@pytest.mark.parametrize("op", [torch.ops.mrcnn_plugin.roi_align, roi_align_reference])
def test_a_bad_batch_index_exited_or_was_skipped(op, index):
    """The reference implementation runs on devices without a kernel."""
    rois = torch.tensor([[index, 0.0, 0.0, 4.0, 4.0]])
    with pytest.raises(IndexError, match="batch index"):
        op([torch.ones(1, 1, 8, 8)], rois, None, [1.0], 2, 2, 0, True, "bicubic", -0.5)
