"""The config that is suggested for a data set, against what Detectron2 makes of it."""

import numpy as np
import pytest
import torch
from detectron2.data.detection_utils import build_augmentation
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.engine import DefaultTrainer
from detectron2.solver import build_lr_scheduler
from detectron2.structures import Boxes, BoxMode, pairwise_iou
from PIL import Image

from mrcnn_plugin import load_cfg
from mrcnn_plugin.config import find_own_keys
from mrcnn_plugin.data import suggest as module
from mrcnn_plugin.data.statistics import Statistics
from mrcnn_plugin.data.suggest import suggest_config, to_yaml
from tests.small import CONFIGS

ENTRIES = [("train.json", "images"), ("val.json", "images")]
POLYGON = [[0, 0, 4, 0, 4, 4]]
RLE = {"size": [4, 4], "counts": "0"}


def make(images, *, size=(256, 256), sizes=(32,), classes=(0,), mask=POLYGON):
    """Images of (width, height) that each have one square object for each of `sizes` and of `classes`."""
    return [
        {
            "width": size[0],
            "height": size[1],
            "annotations": [
                {
                    "bbox": [0, 0, side, side],
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "category_id": label,
                    **({"segmentation": mask} if mask else {}),
                }
                for side in sizes
                for label in classes
            ],
        }
        for _ in range(images)
    ]


def suggest(dicts, val=None, base="mask_rcnn_focal.yaml", opts=(), kept=None, deep=(), names="ab"):
    cfg = load_cfg(str(CONFIGS / base), opts)
    kept = {**(kept or {}), **dict.fromkeys(opts[::2], "--opts")}
    train = Statistics.of(dicts, names)
    val = val and Statistics.of(val, names)
    entries = ENTRIES if val else ENTRIES[:1]
    return suggest_config(cfg, kept, train, val, entries, deep, "./output/my")


@pytest.mark.parametrize(
    ("size", "objects", "expected"),
    [
        ((256, 256), (12, 20), (512, 512)),  # twice, and no more
        ((256, 256), (40, 60), (256, 256)),
        ((640, 480), (20, 20, 300), (672, 896)),  # 28 px
        ((4000, 3000), (300, 600), (800, 1088)),  # as for COCO
        ((4000, 3000), (30, 30), (1536, 2048)),  # the limit
        ((480, 640), (300,), (480, 640)),
        ((800, 352), (300,), (352, 800)),  # 352 * (800 / 352) is more than 800 in floats
    ],
)
def test_the_input_size_follows_from_images_and_objects(size, objects, expected):
    suggestion = suggest(make(3, size=size, sizes=objects))
    node = suggestion.cfg.INPUT
    assert (node.MIN_SIZE_TEST, node.MAX_SIZE_TEST) == expected
    assert max(node.MIN_SIZE_TRAIN) == expected[0] and node.MAX_SIZE_TRAIN == expected[1]
    assert all(0.7 * expected[0] < short for short in node.MIN_SIZE_TRAIN)


def smallest_quarter_in_input(dicts, cfg):
    """Below how many px a quarter of the objects is after Detectron2's resizing of a test image."""
    sizes = []
    for record in dicts:
        shape = record["height"], record["width"]
        (resize,) = build_augmentation(cfg, is_train=False)
        transform = resize.get_transform(np.zeros(shape, np.uint8))
        for annotation in record["annotations"]:
            x, y, width, height = annotation["bbox"]
            corners = transform.apply_coords(np.array([[x, y], [x + width, y + height]]) * 1.0)
            sizes.append(np.prod(corners[1] - corners[0]) ** 0.5)
    return np.percentile(sizes, 25)


def input_reason(suggestion):
    (line,) = [line for line in suggestion.lines if line.key == "INPUT.MIN_SIZE_TEST"]
    return line.reason


@pytest.mark.parametrize("objects", [3, 100])
def test_a_few_long_images_do_not_reduce_the_others(objects):
    usual = make(20, size=(640, 480), sizes=(20, 20, 300))
    long = make(2, size=(8000, 480), sizes=(20,) * objects)
    suggestion = suggest(usual + long)
    node = suggestion.cfg.INPUT
    assert node.MIN_SIZE_TEST == suggest(usual).cfg.INPUT.MIN_SIZE_TEST == 672
    assert node.MAX_SIZE_TEST == node.MAX_SIZE_TRAIN == 2048


def test_objects_count_with_the_size_of_their_own_image():
    small, large = make(60, sizes=(100,)), make(40, size=(4000, 4000), sizes=(100,) * 50)
    node = suggest(small + large).cfg.INPUT
    assert node.MIN_SIZE_TEST == suggest(large).cfg.INPUT.MIN_SIZE_TEST == 1120  # 28 px
    # They are nearly all of these objects.
    small, large = make(60, sizes=(100,) * 50), make(40, size=(4000, 4000), sizes=(1000,))
    assert suggest(small + large).cfg.INPUT.MIN_SIZE_TEST == 256


@pytest.mark.parametrize("opts", [(), ("INPUT.MAX_SIZE_TEST", 1024)])
def test_the_comment_says_how_large_objects_become(opts):
    dicts = make(3, sizes=(30,) * 9) + make(3, size=(4000, 400), sizes=(12, 14))
    suggestion = suggest(dicts, opts=opts)
    expected = smallest_quarter_in_input(dicts, suggestion.cfg)
    assert f"in a test input, a quarter is smaller than {expected:.0f} px" in input_reason(
        suggestion
    )


def share_matched(sizes, anchors):
    """The share of squares whose best anchor at the same centre has an IoU of at least 0.5."""
    half = torch.tensor(sizes)[:, None] / 2
    objects = Boxes(torch.cat([-half, -half, half, half], dim=1))
    half = torch.tensor([float(size) for level in anchors for size in level])[:, None] / 2
    of_anchors = Boxes(torch.cat([-half, -half, half, half], dim=1))
    return (pairwise_iou(objects, of_anchors).amax(1) >= 0.5).float().mean().item()


@pytest.mark.parametrize(
    "base",
    ["mask_rcnn_focal.yaml", "retinanet_R_50_PAFPN_1x.yaml", "mask_rcnn_focal_R_50_C4_1x.yaml"],
)
def test_anchors_match_more_objects_than_those_of_the_base(base):
    sizes = np.random.default_rng(0).uniform(6, 30, 40).tolist()
    suggestion = suggest(make(1, sizes=sizes), base=base)
    scale = suggestion.cfg.INPUT.MIN_SIZE_TEST / 256
    found = suggestion.cfg.MODEL.ANCHOR_GENERATOR.SIZES
    given = load_cfg(str(CONFIGS / base)).MODEL.ANCHOR_GENERATOR.SIZES
    assert [len(level) for level in found] == [len(level) for level in given]
    share = share_matched([size * scale for size in sizes], found)
    assert share > share_matched([size * scale for size in sizes], given)
    assert share > 0.95
    (line,) = [line for line in suggestion.lines if line.key == "MODEL.ANCHOR_GENERATOR.SIZES"]
    assert f" {100 * share:.0f} % of all" in line.reason


def test_anchors_for_objects_as_in_coco_stay():
    suggestion = suggest(make(2, size=(1000, 800), sizes=(40, 60, 130, 240, 500)))
    assert suggestion.cfg.MODEL.ANCHOR_GENERATOR.SIZES == [[32], [64], [128], [256], [512]]


@pytest.mark.parametrize("images", [5, 57, 234, 3000, 20_000])
def test_the_schedule_is_detectron2s_scaled_linearly(images):
    solver = suggest(make(images)).cfg.SOLVER
    assert solver.BASE_LR / solver.IMS_PER_BATCH == pytest.approx(0.02 / 16)
    epochs = solver.MAX_ITER * solver.IMS_PER_BATCH / images
    if solver.MAX_ITER == 500:
        # Few images, from which a model learns nothing in less.
        assert images < 200 and epochs > 50
    else:
        assert 12 <= epochs < 12.1 if images > 10_000 else 12 < epochs <= 51
    assert solver.STEPS == pytest.approx(
        np.array([60_000, 80_000]) * solver.MAX_ITER / 90_000, abs=1
    )
    assert solver.WARMUP_ITERS < solver.STEPS[0] and solver.WARMUP_ITERS <= 1000
    assert solver.IMS_PER_BATCH <= images
    assert suggest(make(images), base="retinanet_R_50_PAFPN_1x.yaml").cfg.SOLVER.BASE_LR == (
        solver.BASE_LR / 2
    )


@pytest.mark.parametrize("iterations", [1, 2, 3, 9])
def test_detectron2_takes_the_steps_of_short_schedules(iterations):
    cfg = suggest(make(4), opts=["SOLVER.MAX_ITER", iterations]).cfg
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    scheduler = build_lr_scheduler(cfg, optimizer)
    for _ in range(iterations):
        optimizer.step()
        scheduler.step()


def test_more_images_are_never_trained_on_less():
    counts = [10, 50, 170, 180, 500, 1000, 5000, 9999, 10_001]
    solvers = [suggest(make(count)).cfg.SOLVER for count in counts]
    seen = [solver.MAX_ITER * solver.IMS_PER_BATCH for solver in solvers]
    assert seen == sorted(seen)


def test_inputs_of_a_batch_have_no_more_pixels_than_detectron2s():
    for size in ((256, 256), (512, 512), (1333, 800), (4000, 3000)):
        cfg = suggest(make(40, size=size)).cfg
        batch = cfg.SOLVER.IMS_PER_BATCH
        pixels = batch * cfg.INPUT.MIN_SIZE_TEST * cfg.INPUT.MAX_SIZE_TEST
        assert batch == 2 or pixels <= 2 * 800 * 1333


def test_images_without_objects_are_not_counted_in_the_schedule():
    dicts = make(40) + make(40, sizes=())
    assert suggest(dicts).cfg.SOLVER.MAX_ITER == suggest(make(40)).cfg.SOLVER.MAX_ITER
    opts = ["DATALOADER.FILTER_EMPTY_ANNOTATIONS", False]
    assert suggest(dicts, opts=opts).cfg.SOLVER.MAX_ITER == suggest(make(80)).cfg.SOLVER.MAX_ITER


def test_evaluation():
    cfg = suggest(make(100), val=make(20)).cfg
    assert cfg.DATASETS.TRAIN == ("my_train",) and cfg.DATASETS.TEST == ("my_val",)
    assert cfg.TEST.EVAL_PERIOD == cfg.SOLVER.CHECKPOINT_PERIOD == cfg.SOLVER.MAX_ITER / 10
    # An evaluation of 10,000 images is not made every few iterations.
    large = suggest(make(100), val=make(10_000)).cfg
    assert large.TEST.EVAL_PERIOD == large.SOLVER.MAX_ITER
    assert large.SOLVER.CHECKPOINT_PERIOD == large.SOLVER.MAX_ITER / 10
    long = suggest(make(2), opts=["SOLVER.MAX_ITER", 90_000]).cfg
    assert long.SOLVER.CHECKPOINT_PERIOD == 5000
    alone = suggest(make(100)).cfg
    assert alone.DATASETS.TEST == () and alone.TEST.EVAL_PERIOD == 0
    assert alone.SOLVER.CHECKPOINT_PERIOD == cfg.SOLVER.CHECKPOINT_PERIOD


def test_detections_of_an_image():
    assert suggest(make(3, sizes=[30] * 60)).cfg.TEST.DETECTIONS_PER_IMAGE == 100
    cfg = suggest(make(3), val=make(1, sizes=[30] * 700)).cfg
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 1050
    assert cfg.MODEL.RPN.PRE_NMS_TOPK_TEST == cfg.MODEL.RPN.POST_NMS_TOPK_TEST == 2100
    # There are no fewer proposals than those of the base.
    few = suggest(make(3), val=make(1)).cfg.MODEL.RPN
    given = load_cfg(str(CONFIGS / "mask_rcnn_focal.yaml")).MODEL.RPN
    assert few.POST_NMS_TOPK_TEST == given.POST_NMS_TOPK_TEST == 1000


def test_only_images_of_rare_classes_are_repeated():
    dicts = make(50, classes=(0,)) + make(8, classes=(1,)) + make(2, classes=(0, 2))
    cfg = suggest(dicts, names="abcd").cfg
    assert cfg.DATALOADER.SAMPLER_TRAIN == "RepeatFactorTrainingSampler"
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        dicts, cfg.DATALOADER.REPEAT_THRESHOLD
    )
    assert set(factors[:58].tolist()) == {1.0}
    assert factors[58:].tolist() == pytest.approx([(52 / 10 / 2) ** 0.5] * 2, rel=1e-3)
    # A class without images is not rare.
    assert suggest(dicts[:58], names="abcd").cfg.DATALOADER.SAMPLER_TRAIN == "TrainingSampler"


def test_masks():
    assert suggest(make(2)).cfg.INPUT.MASK_FORMAT == "polygon"
    both = suggest(make(2) + make(1, mask=RLE)).cfg
    assert both.INPUT.MASK_FORMAT == "bitmask" and both.MODEL.MASK_ON
    none = suggest(make(2, mask=None)).cfg
    assert none.MODEL.MASK_ON is False and none.MODEL.ROI_HEADS.NUM_CLASSES == 2
    retinanet = suggest(make(2), base="retinanet_R_50_PAFPN_1x.yaml", names="abc")
    assert retinanet.cfg.MODEL.RETINANET.NUM_CLASSES == 3
    assert all("MASK" not in line.key for line in retinanet.lines)


def test_a_model_without_proposals_gets_no_number_of_them():
    retinanet = suggest(make(1, sizes=[30] * 700), base="retinanet_R_50_PAFPN_1x.yaml")
    assert retinanet.cfg.TEST.DETECTIONS_PER_IMAGE == 1050
    assert all("RPN" not in line.key for line in retinanet.lines)


def test_a_training_set_that_is_evaluated_is_one_data_set():
    train = Statistics.of(make(2), "ab")
    cfg = load_cfg(str(CONFIGS / "mask_rcnn_focal.yaml"))
    suggestion = suggest_config(cfg, {}, train, train, ENTRIES[:1] * 2, (), "./output/my")
    node = suggestion.cfg.DATASETS
    assert node.COCO_JSON == [["my_train", *ENTRIES[0]]]
    assert node.TRAIN == node.TEST == ("my_train",)
    (line,) = [line for line in suggestion.lines if line.key == "DATASETS.TEST"]
    assert "AP is higher than on new images" in line.reason


@pytest.mark.parametrize(("gpu", "device"), [(True, "cuda"), (False, "cpu")])
@pytest.mark.parametrize("base", ["mask_rcnn_focal.yaml", "quickstart.yaml"])
def test_the_device_is_the_one_that_torch_sees(monkeypatch, gpu, device, base):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    suggestion = suggest(make(2), base=base)
    assert suggestion.cfg.MODEL.DEVICE == device
    given = load_cfg(str(CONFIGS / base)).MODEL.DEVICE
    assert any(line.key == "MODEL.DEVICE" for line in suggestion.lines) == (given != device)


class TestPixelRange:
    def images(self, folder, *maxima):
        paths = []
        for i, maximum in enumerate(maxima):
            pixels = np.linspace(100, maximum, 64 * 64).reshape(64, 64).astype(np.uint16)
            paths.append(str(folder / f"{i}.png"))
            Image.fromarray(pixels).save(paths[-1])
        return paths

    def test_is_that_of_the_values_if_images_are_alike(self, tmp_path):
        deep = self.images(tmp_path, 4000, 3000)
        node = suggest(make(2), deep=deep).cfg.INPUT
        assert node.PIXEL_RANGE_UNIT == "value"
        assert node.PIXEL_RANGE == pytest.approx([103, 3996], abs=1)

    def test_is_that_of_each_image_if_they_differ(self, tmp_path):
        node = suggest(make(2), deep=self.images(tmp_path, 60_000, 3000)).cfg.INPUT
        assert (node.PIXEL_RANGE_UNIT, node.PIXEL_RANGE) == ("percentile", [0.1, 99.9])

    def test_follows_from_images_all_over_the_data_set(self, tmp_path, monkeypatch):
        monkeypatch.setattr(module, "_IMAGES_FOR_PIXELS", 2)
        deep = self.images(tmp_path, 1000, 4000, 3000)
        node = suggest(make(2), deep=deep).cfg.INPUT
        assert node.PIXEL_RANGE == pytest.approx([101, 2997], abs=1)

    def test_follows_from_pixels_that_are_numbers(self, tmp_path):
        (path,) = self.images(tmp_path, 4000)
        pixels = np.asarray(Image.open(path)).astype(np.float32)
        pixels[:2, 0] = np.nan, np.inf
        paths = [str(tmp_path / name) for name in ("some.tif", "none.tif", "grey.png")]
        Image.fromarray(pixels).save(paths[0])
        Image.fromarray(np.full_like(pixels, np.nan)).save(paths[1])
        Image.new("L", (64, 64)).save(paths[2])
        node = suggest(make(2), deep=paths).cfg.INPUT
        assert node.PIXEL_RANGE_UNIT == "value"
        assert node.PIXEL_RANGE == pytest.approx([104, 3996], abs=1)

    def test_of_images_that_are_black(self, tmp_path):
        node = suggest(make(2), deep=self.images(tmp_path, 100, 100)).cfg.INPUT
        assert node.PIXEL_RANGE_UNIT == "percentile"


class TestWhatTheUserHasSet:
    def test_stays_and_other_values_follow_from_it(self):
        opts = ["SOLVER.IMS_PER_BATCH", 4, "INPUT.MIN_SIZE_TRAIN", (128, 160)]
        cfg = suggest(make(100), opts=opts).cfg
        assert cfg.SOLVER.IMS_PER_BATCH == 4 and cfg.SOLVER.BASE_LR == 0.005
        assert cfg.SOLVER.MAX_ITER == 50 * 100 / 4
        assert cfg.INPUT.MIN_SIZE_TRAIN == (128, 160)
        assert cfg.INPUT.MIN_SIZE_TEST == cfg.INPUT.MAX_SIZE_TRAIN == 160
        assert cfg.INPUT.MAX_SIZE_TEST == 160
        cfg = suggest(make(100), opts=["INPUT.MIN_SIZE_TEST", 0]).cfg
        assert cfg.INPUT.MIN_SIZE_TEST == 0 and max(cfg.INPUT.MIN_SIZE_TRAIN) == 256
        assert cfg.INPUT.MAX_SIZE_TRAIN == 256
        cfg = suggest(make(100), opts=["INPUT.MIN_SIZE_TRAIN", (0,)]).cfg
        assert cfg.INPUT.MIN_SIZE_TRAIN == (0,) and cfg.INPUT.MIN_SIZE_TEST == 0
        assert cfg.INPUT.MAX_SIZE_TRAIN == cfg.INPUT.MAX_SIZE_TEST == 256
        cfg = suggest(make(100), opts=["INPUT.MIN_SIZE_TEST", 3000]).cfg
        assert cfg.INPUT.MAX_SIZE_TEST == 3000
        shorter = suggest(make(100), val=make(10), opts=["SOLVER.MAX_ITER", 90]).cfg
        assert shorter.SOLVER.STEPS == (60, 80) and shorter.TEST.EVAL_PERIOD == 9
        shortest = suggest(make(100), val=make(10), opts=["SOLVER.MAX_ITER", 9]).cfg
        assert shortest.SOLVER.CHECKPOINT_PERIOD == shortest.TEST.EVAL_PERIOD == 1

    def test_is_not_lost_in_the_config_that_was_given(self):
        cfg = load_cfg(str(CONFIGS / "mask_rcnn_focal.yaml"))
        before = cfg.dump()
        train = Statistics.of(make(2), "ab")
        suggestion = suggest_config(cfg, {}, train, None, ENTRIES[:1], (), "./output/my")
        assert cfg.dump() == before != suggestion.cfg.dump()

    def test_and_what_the_data_suggest_stands_in_the_comment(self, tmp_path):
        mine = tmp_path / "mine.yaml"
        mine.write_text(
            f'_BASE_: "{CONFIGS / "mask_rcnn_focal.yaml"}"\n'
            "SOLVER: {IMS_PER_BATCH: 4}\nTEST: {EVAL_PERIOD: 7, DETECTIONS_PER_IMAGE: 100}\n"
        )
        assert find_own_keys(str(mine)) == [
            "SOLVER.IMS_PER_BATCH",
            "TEST.EVAL_PERIOD",
            "TEST.DETECTIONS_PER_IMAGE",
        ]
        merged = tmp_path / "merged.yaml"
        merged.write_text("SOLVER: {<<: {MAX_ITER: 7}, BASE_LR: 0.1}\n")
        assert find_own_keys(str(merged)) == ["SOLVER.MAX_ITER", "SOLVER.BASE_LR"]
        kept = dict.fromkeys(find_own_keys(str(mine)), "mine.yaml")
        suggestion = suggest(make(100), base=mine, kept=kept, opts=["SOLVER.WEIGHT_DECAY", 0.5])
        text = to_yaml(suggestion, str(mine), "A header.")
        assert "# SOLVER.IMS_PER_BATCH is 4, as mine.yaml sets it. The data suggest 16." in text
        assert "# TEST.DETECTIONS_PER_IMAGE is 100, as mine.yaml sets it.\n" in text
        assert "\nTEST:" not in text and "\n# TEST:\n" in text
        assert "  # SOLVER.WEIGHT_DECAY is 0.5, as --opts sets it.\n  WEIGHT_DECAY: 0.5\n" in text
        own = suggest(make(100), opts=["SOLVER.IMS_PER_BATCH", 4])
        assert "4, as --opts sets it. The data suggest 16." in to_yaml(own, str(mine), "A header.")
        written = tmp_path / "written.yaml"
        written.write_text(text)
        assert load_cfg(str(written)) == suggestion.cfg

    def test_a_batch_is_for_the_gpus_of_the_user(self):
        assert suggest(make(9)).cfg.SOLVER.REFERENCE_WORLD_SIZE == 1
        cfg = suggest(make(9), opts=["SOLVER.IMS_PER_BATCH", 16]).cfg
        assert DefaultTrainer.auto_scale_workers(cfg, num_workers=8).SOLVER.IMS_PER_BATCH == 16

    def test_a_batch_is_for_as_many_gpus_as_the_reference(self):
        one = suggest(make(99)).cfg
        cfg = suggest(make(99), opts=["SOLVER.REFERENCE_WORLD_SIZE", 4]).cfg
        assert cfg.SOLVER.IMS_PER_BATCH == 4 * one.SOLVER.IMS_PER_BATCH
        scaled = DefaultTrainer.auto_scale_workers(cfg, num_workers=1).SOLVER
        assert (scaled.IMS_PER_BATCH, scaled.BASE_LR) == (
            one.SOLVER.IMS_PER_BATCH,
            one.SOLVER.BASE_LR,
        )
        cfg = suggest(make(99), opts=["SOLVER.REFERENCE_WORLD_SIZE", 0]).cfg
        assert cfg.SOLVER.IMS_PER_BATCH == one.SOLVER.IMS_PER_BATCH

    def test_a_pixel_range_keeps_its_unit(self, tmp_path):
        deep = TestPixelRange().images(tmp_path, 60_000, 3000)
        cfg = suggest(make(2), deep=deep, opts=["INPUT.PIXEL_RANGE", [0, 4095]]).cfg
        assert (cfg.INPUT.PIXEL_RANGE, cfg.INPUT.PIXEL_RANGE_UNIT) == ([0, 4095], "value")

    @pytest.mark.parametrize(
        ("unit", "maxima", "high"),
        [("value", (60_000, 3000), 59_940), ("percentile", (4000, 3000), 99.9)],
    )
    def test_a_pixel_range_is_of_the_unit_that_is_set(self, tmp_path, unit, maxima, high):
        deep = TestPixelRange().images(tmp_path, *maxima)
        cfg = suggest(make(2), deep=deep, opts=["INPUT.PIXEL_RANGE_UNIT", unit]).cfg
        assert cfg.INPUT.PIXEL_RANGE_UNIT == unit
        assert cfg.INPUT.PIXEL_RANGE[1] == pytest.approx(high, rel=1e-3)

    def test_anchors_may_be_one_list_for_all_levels(self):
        opts = ["MODEL.ANCHOR_GENERATOR.SIZES", [16, 64]]
        suggestion = suggest(make(2, sizes=(8, 32)), opts=opts)
        assert suggestion.cfg.MODEL.ANCHOR_GENERATOR.SIZES == [16, 64]
        (line,) = [n for n in suggestion.lines if n.key == "MODEL.ANCHOR_GENERATOR.SIZES"]
        assert "with the anchors of the base it is 100 %" in line.reason

    def test_a_range_of_training_sizes_has_two_ends(self):
        cfg = suggest(make(2), opts=["INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"]).cfg
        assert cfg.INPUT.MIN_SIZE_TRAIN == (192, 256)
        build_augmentation(cfg, is_train=True)

    def test_data_sets_of_other_files_are_refused(self):
        kept = {"DATASETS.TRAIN": "mine.yaml"}
        with pytest.raises(ValueError, match="DATASETS.TRAIN is .'coco_2017_train',.*--base"):
            suggest(make(2), kept=kept)
        mine = [["mine", "train.json", "images"]]
        cfg = suggest(make(2), opts=["DATASETS.COCO_JSON", mine]).cfg
        assert cfg.DATASETS.COCO_JSON == mine and cfg.DATASETS.TRAIN == ("mine",)
        both = [*mine, ["other", "other.json", "images"]]
        with pytest.raises(ValueError, match="DATASETS.TRAIN is .'other',"):
            opts = ["DATASETS.COCO_JSON", both, "DATASETS.TRAIN", ("other",)]
            suggest(make(2), opts=opts)
        with pytest.raises(ValueError, match="DATASETS.TEST is .*val.json, images"):
            suggest(make(2), val=make(2), opts=["DATASETS.COCO_JSON", mine])
        with pytest.raises(ValueError, match="DATASETS.TEST is .'coco_2017_val'"):
            suggest(make(2), kept={"DATASETS.TEST": "mine.yaml"})


@pytest.mark.parametrize("base", ["mask_rcnn_focal.yaml", "Base-R18-GN-Small.yaml"])
@pytest.mark.parametrize("with_val", [True, False])
def test_the_file_gives_the_suggested_config(tmp_path, base, with_val):
    dicts = make(60, classes=(0,)) + make(1, size=(300, 200), classes=(1,), mask=None)
    suggestion = suggest(dicts, val=make(2, sizes=[9] * 99) if with_val else None, base=base)
    text = to_yaml(suggestion, str(CONFIGS / base), "word " * 50)
    file = tmp_path / "ü.yaml"
    file.write_text(text, encoding="utf-8")
    assert load_cfg(str(file)) == suggestion.cfg
    assert max(map(len, text.splitlines())) <= 110
    rows = text.splitlines()
    for row, before in zip(rows[1:], rows, strict=False):
        value = row.split("#")[0].rstrip()
        if value and not value.endswith(":") and "- [" not in value and "_BASE_" not in value:
            assert before.strip().startswith("#"), row


def test_small_and_large_numbers_are_numbers_in_the_file(tmp_path):
    opts = ["INPUT.PIXEL_RANGE", [3e-05, 1e16], "MODEL.ANCHOR_GENERATOR.OFFSET", 1e-05]
    suggestion = suggest(make(2), opts=opts)
    file = tmp_path / "my.yaml"
    file.write_text(to_yaml(suggestion, str(CONFIGS / "mask_rcnn_focal.yaml"), "A header."))
    assert load_cfg(str(file)) == suggestion.cfg
    assert load_cfg(str(file)).INPUT.PIXEL_RANGE == [3e-05, 1e16]


def test_nothing_follows_from_no_object():
    with pytest.raises(ValueError, match="no object"):
        suggest(make(2, sizes=()))
