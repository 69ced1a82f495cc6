"""Planted faults in data sets, and what is said of them before training."""

import copy
import io
import json
import logging
import math
import os
import re
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import portalocker
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.datasets import register_coco_instances
from detectron2.data.detection_utils import read_image
from detectron2.structures import Boxes, Instances
from detectron2.utils.visualizer import GenericMask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from mrcnn_plugin import add_mrcnn_config
from mrcnn_plugin.data import (
    TrainMapper,
    check_datasets,
    check_pixel_range,
    register_coco_json,
    register_coco_json_from_file,
    scaled_path,
)
from mrcnn_plugin.data.checks import (
    Usage,
    annotations,
    check_values,
    images,
    inspection,
    judge,
    sentence,
)
from mrcnn_plugin.data.checks.annotations import Finding
from mrcnn_plugin.data.checks.kinds import KINDS, Level
from mrcnn_plugin.data.pixels import scale_pixels
from mrcnn_plugin.engine import register_datasets
from mrcnn_plugin.evaluation import build_coco_evaluator
from tests.small import ROOT

WIDTH, HEIGHT = 60, 40


def square(x, y, side):
    return [x, y, x + side, y, x + side, y + side, x, y + side]


def good():
    """Two images, with three objects each."""
    objects = [(5, 5, 10), (20, 8, 12), (40, 20, 15)]
    return {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in (1, 2)
        ],
        "annotations": [
            {
                "id": 3 * (image - 1) + n + 1,
                "image_id": image,
                "category_id": 1 + n % 2,
                "bbox": [x, y, side, side],
                "area": side * side,
                "iscrowd": 0,
                "segmentation": [square(x, y, side)],
            }
            for image in (1, 2)
            for n, (x, y, side) in enumerate(objects)
        ],
        "categories": [{"id": 1, "name": "fork"}, {"id": 2, "name": "spoon"}],
    }


def rle(mask):
    encoded = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def with_rle(data):
    for a in data["annotations"]:
        x, y, w, h = map(int, a["bbox"])
        mask = np.zeros((HEIGHT, WIDTH))
        mask[y : y + h, x : x + w] = 1
        a["segmentation"] = rle(mask)
    return data


class DataSets:
    """A train and a test set, written and checked as a user's."""

    def __init__(self, folder, caplog):
        self.folder = folder
        self.caplog = caplog
        self.images = folder / "images"
        self.images.mkdir()
        for i in (1, 2):
            pixels = np.random.default_rng(i).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
            Image.fromarray(pixels).save(self.images / f"{i}.png")

    def write(self, train, val=None):
        for name, data in (("train", train), ("val", good() if val is None else val)):
            text = data if isinstance(data, str) else json.dumps(data)
            (self.folder / f"{name}.json").write_text(text, encoding="utf-8")

    def config(self, **changes):
        cfg = get_cfg()
        add_mrcnn_config(cfg)
        cfg.MODEL.MASK_ON = True
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
        cfg.DATASETS.COCO_JSON = [
            [f"my_{name}", str(self.folder / f"{name}.json"), str(self.images)]
            for name in ("train", "val")
        ]
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("my_train",), ("my_val",)
        cfg.merge_from_list(
            [item for k, v in changes.items() for item in (k.replace("__", "."), v)]
        )
        return cfg

    def check(self, train, val=None, **changes):
        """What is said of them, a line for each kind; an error if they are refused."""
        self.write(train, val)
        cfg = self.config(**changes)
        forget()
        register_datasets(cfg, train=True)
        self.caplog.clear()
        with self.caplog.at_level(logging.WARNING):
            check_datasets(cfg)
        return [record.getMessage() for record in self.caplog.records]

    def refused(self, *data, **changes):
        """The first line of the error: a traceback shows it beside the error's name."""
        with pytest.raises(ValueError) as error:
            self.check(*data, **changes)
        return str(error.value).splitlines()[0]


def forget():
    for name in ("my_train", "my_val"):
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
        if name in set(MetadataCatalog):
            MetadataCatalog.remove(name)


@pytest.fixture
def sets(tmp_path, caplog):
    # Detectron2's loggers may not propagate once a test has set them up.
    logger = logging.getLogger("detectron2")
    propagates, logger.propagate = logger.propagate, True
    yield DataSets(tmp_path, caplog)
    logger.propagate = propagates
    forget()


def each(field, value):
    """Sets a field of every annotation; a function gets the annotation, and None deletes."""

    def edit(data):
        for a in data["annotations"]:
            set_field(a, field, value)

    return edit


def one(field, value, index=2):
    def edit(data):
        set_field(data["annotations"][index], field, value)

    return edit


def set_field(annotation, field, value):
    new = value(annotation) if callable(value) else value
    if new is None:
        del annotation[field]
    else:
        annotation[field] = new


def image(field, value, index=1):
    def edit(data):
        if value is None:
            del data["images"][index][field]
        else:
            data["images"][index][field] = value

    return edit


def put(field, value):
    def edit(data):
        data[field] = value

    return edit


def add_category(data):
    data["categories"].append({"id": 3, "name": "fork"})


def merged(data):
    more = good()
    data["images"] += more["images"]
    data["annotations"] += more["annotations"]


def repeated_file(data):
    data["images"].append({**data["images"][0], "id": 9})
    data["annotations"][0]["image_id"] = 9


def polygon(a):
    return a["segmentation"][0]


def points(a):
    return [[polygon(a)[i : i + 2] for i in range(0, 8, 2)]]


def changed_rle(change):
    def edit(data):
        with_rle(data)
        for a in data["annotations"][:1]:
            change(a)

    return edit


def cut_counts(a):
    a["segmentation"]["counts"] = a["segmentation"]["counts"][:4]


def kaggle_counts(a):
    a["segmentation"]["counts"] = [300, 10, 340, 10, 380, 10]


def no_pixel(a):
    a["segmentation"]["counts"] = [HEIGHT * WIDTH]


def turned(a):
    a["segmentation"]["size"] = a["segmentation"]["size"][::-1]


def corner_box(a):
    x, y, w, h = a["bbox"]
    return [x, y, x + w, y + h]


def negative_box(a):
    x, y, w, h = a["bbox"]
    return [x + w, y + h, -w, -h]


def relative_box(a):
    return [v / s for v, s in zip(a["bbox"], [WIDTH, HEIGHT] * 2, strict=True)]


NAN = float("nan")
# What is planted, and what the first line of the error has to name beside the data set.
REFUSED = [
    # Segmentations
    (each("segmentation", polygon), ["6 of 6 annotations", "flat list", "annotation 1 of image 1", "and 1 more"]),
    (each("segmentation", lambda a: json.dumps(a["segmentation"])), ["text as segmentation"]),
    (one("segmentation", "none"), ["text as segmentation", "'none'"]),
    (one("segmentation", 7), ["malformed segmentation", "annotation 3", "7"]),
    (each("segmentation", points), ["lists of points"]),
    (one("segmentation", [["1", "2", "3", "4", "5", "6"]]), ["malformed segmentation"]),
    (one("segmentation", [[1, 2, 3, 4, 5, None]]), ["malformed segmentation"]),
    (one("segmentation", [[1, 2, 3, 4, 5, 6, 7]]), ["odd count"]),
    (one("segmentation", [[5, 5, NAN, 5, 9, 9]]), ["segmentation with NaN or infinity"]),
    (one("segmentation", [[5, 5, math.inf, 5, 9, 9]]), ["segmentation with NaN or infinity"]),
    (one("segmentation", [[5, 5, 1e10, 5, 9, 9]]), ["segmentation", "far outside"]),
    (one("segmentation", [[5, 5, 10**400, 5, 9, 9]]), ["segmentation"]),
    (one("segmentation", [[5, 5, 9, 5, 9, -500]]), ["segmentation", "far outside"]),
    (each("segmentation", lambda a: [a["bbox"]]), ["segmentation", "fewer than 3 points", "segmentation_short"]),
    (each("segmentation", [[5, 5, 9, 9, 5, 5]]), ["empty segmentation", "mask_empty"]),
    (each("segmentation", [[5.1, 5.1, 5.3, 5.1, 5.2, 5.3]]), ["empty segmentation", "mask_empty"]),
    (each("segmentation", []), ["no mask", "MASK_ON"]),
    (each("segmentation", [[]]), ["no mask", "MASK_ON"]),
    (each("segmentation", None), ["no mask", "MASK_ON"]),
    (one("segmentation", {}), ["1 of 6 annotations have no mask", "MASK_ON"]),
    # RLE
    (lambda d: with_rle(d), ["MASK_FORMAT", "'bitmask'"]),
    (changed_rle(cut_counts), ["RLE", "corrupt|sum"]),
    (changed_rle(kaggle_counts), ["RLE counts do not sum"]),
    (changed_rle(turned), ["RLE has another size"]),
    (
        changed_rle(lambda a: a["segmentation"].update(size=[10**400, WIDTH])),
        ["RLE has another size"],
    ),
    (changed_rle(lambda a: a["segmentation"].pop("size")), ["malformed RLE"]),
    (changed_rle(lambda a: a["segmentation"].update(counts=[1, -1])), ["malformed RLE"]),
    (changed_rle(lambda a: a["segmentation"].update(counts="né")), ["corrupt"]),
    (changed_rle(lambda a: a["segmentation"].update(counts=[2.5, 3])), ["malformed RLE"]),
    (changed_rle(lambda a: a["segmentation"].update(counts="d1")), ["RLE counts do not sum"]),
    # One ends within a number. The sums of the others are right, but of -1 and of a long number.
    (changed_rle(lambda a: a["segmentation"].update(counts="P[R")), ["corrupt"]),
    (changed_rle(lambda a: a["segmentation"].update(counts="OQ[2")), ["corrupt"]),
    (changed_rle(lambda a: a["segmentation"].update(counts="P[R" + 10 * "P" + "0")), ["corrupt"]),
    (changed_rle(lambda a: a.update(segmentation=[a["segmentation"]])), ["list of RLE"]),
    (changed_rle(no_pixel), ["empty segmentation"]),
    # Boxes
    (one("bbox", None), ["no bbox", "annotation 3 of image 1"]),
    (one("bbox", []), ["no bbox"]),
    (one("bbox", ["40", "20", "15", "15"]), ["not four numbers", "'40'"]),
    (one("bbox", [1, 2, 3]), ["not four numbers"]),
    (one("bbox", {"x": 1}), ["not four numbers"]),
    (one("bbox", [1, 2, None, 4]), ["not four numbers"]),
    (one("bbox", [NAN] * 4), ["bbox with NaN"]),
    (each("bbox", lambda a: [*a["bbox"][:2], 0, 0]), ["bbox of no width", "bbox_empty"]),
    (each("bbox", negative_box), ["negative width"]),
    (one("bbox", negative_box), ["negative width", "annotation 3"]),
    (one("bbox", [20, 20, -5, 10]), ["negative width", "[20, 20, -5, 10]"]),
    (each("bbox", corner_box), ["bbox", "contradicts", "look like [x1, y1, x2, y2]", "box_mask"]),
    (each("segmentation", lambda a: [[v / 60 for v in polygon(a)]]), ["segmentation within [0, 1]"]),
    (each("bbox", relative_box), ["bbox within [0, 1]", "bbox_relative"]),
    (one("bbox", [100, 5, 10, 10]), ["bbox that lies outside", "bbox_outside"]),
    # References and fields
    (one("category_id", 7), ["category_id 7", "annotation 3"]),
    (each("category_id", lambda a: str(a["category_id"])), ["category_id '1'"]),
    (one("category_id", None), ["no category_id"]),
    (one("category_id", [1]), ["category_id [1]"]),
    (each("image_id", lambda a: str(a["image_id"])), ["image_id '1'", "image_id_unknown"]),
    (one("image_id", 77), ["image_id 77"]),
    (one("image_id", [1]), ["image_id [1]"]),
    (one("image_id", None), ["no image_id"]),
    (one("iscrowd", 2), ["iscrowd 2"]),
    (each("iscrowd", "0"), ["text as iscrowd", "'0'", "iscrowd_text"]),
    (one("iscrowd", "yes"), ["iscrowd 'yes'"]),
    (one("ignore", 1), ["ignore 1", "annotation 3"]),
    (one("ignore", "0"), ["ignore '0'"]),
    (each("id", 4), ["unique", "annotation_id_twice"]),
    (merged, ["image", "unique"]),
    (repeated_file, ["'1.png'", "twice"]),
    (add_category, ["'fork' has the ids 1 and 3", "category_names"]),
    (put("annotations", None), ["annotations", "no list", "None"]),
    (put("annotations", {}), ["annotations", "no list"]),
    (lambda d: (put("annotations", 5)(d), image("width", 60.0)(d)), ["no list", "annotations: 5"]),
    (put("annotations", []), ["no object"]),
    (lambda d: d.pop("annotations"), ["no annotations"]),
    (lambda d: d["annotations"].append([1]), ["annotations", "are no objects", "[1]"]),
    (each("iscrowd", 1), ["no object", "6 with iscrowd 1"]),
    (put("images", []), ["is empty: it has no image"]),
    # Images
    (image("height", None), ["no height", "image 2 ('2.png')"]),
    (image("width", "60"), ["'60'", "positive integers"]),
    (image("width", 0), ["width 0"]),
    (image("width", NAN), ["width nan"]),
    (image("width", 60.5), ["width 60.5", "positive integers"]),
    (image("file_name", None), ["no file_name"]),
    (image("file_name", 5), ["no file_name", "5"]),
    (image("id", None), ["no id"]),
    (image("id", "2"), ["text as id"]),
    (lambda d: d["images"].append("3.png"), ["images", "are no objects"]),
    (image("file_name", "upload/2.png"), ["do not exist", "upload/2.png", "take the folders out"]),
    (image("file_name", "2.png "), ["do not exist", "blank"]),
    (image("file_name", "%32.png"), ["do not exist", "'2.png'", "URL"]),
    (image("file_name", "2.PNG"), ["do not exist", "'2.png'", "upper and lower case"]),
    (image("file_name", "folder\\2.png"), ["do not exist", "write / instead"]),
    (image("file_name", "fol\0der/3.png"), ["do not exist", "null"]),
    (image("width", WIDTH + 1), ["2.png is 60 x 40, width and height say 61 x 40"]),
    (lambda d: d["images"][1].update(width=HEIGHT, height=WIDTH), ["swapped"]),
]  # fmt: skip


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(("edit", "words"), REFUSED)
def test_a_fault_is_refused_in_a_line_that_names_it(sets, split, edit, words):
    data = good()
    edit(data)
    if split == "val" and words[0] in ("MASK_FORMAT", "no annotations"):
        # A test set may have them.
        sets.check(good(), data)
        return
    mask_format = "polygon" if words[0] == "MASK_FORMAT" else "bitmask"
    message = sets.refused(
        *((data,) if split == "train" else (good(), data)), INPUT__MASK_FORMAT=mask_format
    )
    assert f"Data set 'my_{split}'" in message and f"{split}.json" in message
    for word in words:
        assert any(part in message for part in word.split("|")), message


# What is planted, what is said, and how often the object in it is left in the data set.
SAID = [
    (each("area", None), ["6 of 6 annotations have no area"]),
    (each("area", 0), ["area of 0 or less"]),
    (one("area", "144"), ["area that is no number", "'144'"]),
    (one("area", NAN), ["area that is no number"]),
    (each("area", lambda a: a["area"] / 2400), ["area that contradicts"]),
    (each("iscrowd", None), ["have no iscrowd"]),
    (lambda d: d["annotations"][2].update(iscrowd=None), ["1 of 6", "have no iscrowd"]),
    (each("iscrowd", lambda a: a["id"] % 2), ["3 of 6 annotations have iscrowd 1"]),
    (each("id", None), ["have no id"]),
    (each("id", lambda a: f"a{a['id']}"), ["id that is no integer"]),
    (each("id", lambda a: a["id"] - 1), ["the id 0"]),
    (image("width", 60.0), ["width that is no integer"]),
    (lambda d: d["annotations"].append({**d["annotations"][0], "id": 99}), ["exact copy"]),
    (one("segmentation", [square(40, 20, 15), [41, 21, 42, 22]]), ["some polygons", "fewer than 3"]),
    (one("segmentation", [[41, 21, 42, 22], square(40, 20, 15)]), ["some polygons", "fewer than 3"]),
    (one("segmentation", [[], square(40, 20, 15), []]), ["some polygons", "fewer than 3"]),
    (one("segmentation", [[41, 21], square(40, 20, 15)]), ["some polygons", "fewer than 3"]),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "words"), SAID)
def test_what_is_certain_is_repaired_and_said(sets, edit, words):
    data = good()
    edit(data)
    said = sets.check(good(), data)
    (line,) = [line for line in said if "my_val" in line and "iscrowd" in line] or said
    assert "Data set 'my_val'" in line and "val.json" in line
    for word in words:
        assert word in line
    # Whatever is repaired is so in a copy.
    levels = {KINDS[kind].level for kind in kinds(data)}
    is_copy = MetadataCatalog.get("my_val").json_file != str(sets.folder / "val.json")
    assert is_copy == (Level.REPAIRED in levels)
    assert ap_of_ground_truth() == {"bbox": pytest.approx(100), "segm": pytest.approx(100)}


def ap_of_ground_truth(**changes):
    """AP of the test set's own objects as predictions, by Detectron2's evaluator."""
    cfg = get_cfg()
    add_mrcnn_config(cfg)
    cfg.merge_from_list([item for pair in changes.items() for item in pair])
    evaluator = build_coco_evaluator(cfg, "my_val", "")
    evaluator.reset()
    for d in DatasetCatalog.get("my_val"):
        objects = [a for a in d["annotations"] if not a["iscrowd"]]
        boxes = np.array([a["bbox"] for a in objects], dtype=np.float32)
        boxes[:, 2:] += boxes[:, :2]
        masks = [GenericMask(a["segmentation"], HEIGHT, WIDTH).mask for a in objects]
        instances = Instances((HEIGHT, WIDTH))
        instances.pred_boxes = Boxes(torch.tensor(boxes))
        instances.scores = torch.linspace(0.9, 0.8, len(objects))
        instances.pred_classes = torch.tensor([a["category_id"] for a in objects])
        instances.pred_masks = torch.tensor(np.array(masks)).bool()
        if "keypoints" in objects[0]:
            keypoints = torch.tensor([a["keypoints"] for a in objects], dtype=torch.float32)
            instances.pred_keypoints = keypoints.reshape(len(objects), -1, 3)
        evaluator.process([{"image_id": d["image_id"]}], [{"instances": instances}])
    return {task: values["AP"] for task, values in evaluator.evaluate().items()}


@pytest.mark.parametrize("short", [[], [41, 21], [41, 21, 42, 22]])
@pytest.mark.parametrize("iscrowd", [0, 1])
def test_short_polygons_are_taken_out_for_pycocotools_too(sets, short, iscrowd):
    data = good()
    data["annotations"][2].update(
        iscrowd=iscrowd, segmentation=[short, square(40, 20, 6), square(49, 29, 6)]
    )
    sets.check(good(), data)
    coco = COCO(MetadataCatalog.get("my_val").json_file)
    assert mask_util.area(coco.annToRLE(coco.anns[3])) == 2 * 6 * 6
    assert ap_of_ground_truth() == {"bbox": pytest.approx(100), "segm": pytest.approx(100)}
    # Without masks, nobody reads them.
    assert not any("3 points" in line for line in sets.check(good(), data, MODEL__MASK_ON=False))
    assert MetadataCatalog.get("my_val").json_file == str(sets.folder / "val.json")


def test_good_data_give_no_word(sets):
    assert sets.check(good()) == []
    assert sets.check(with_rle(good()), INPUT__MASK_FORMAT="bitmask") == []
    # The files themselves are used.
    assert MetadataCatalog.get("my_val").json_file == str(sets.folder / "val.json")


def test_uncompressed_rle_and_text_ids_are_good(sets):
    data = with_rle(good())
    for a in data["annotations"]:
        mask = mask_util.decode(a["segmentation"]).ravel(order="F")
        edges = np.flatnonzero(np.diff(mask, prepend=0, append=0))
        ends = [0, *edges.tolist(), HEIGHT * WIDTH]
        a["segmentation"]["counts"] = np.diff(ends).tolist()
        a["image_id"] = f"image {a['image_id']}"
    for i in data["images"]:
        i["id"] = f"image {i['id']}"
    assert sets.check(data, data, INPUT__MASK_FORMAT="bitmask") == []
    assert ap_of_ground_truth() == {"bbox": pytest.approx(100), "segm": pytest.approx(100)}


def test_ids_of_images_may_be_floats_of_the_same_number(sets):
    data = good()
    for i in data["images"]:
        i["id"] = float(i["id"])
    assert sets.check(data, data) == []
    assert ap_of_ground_truth() == {"bbox": pytest.approx(100), "segm": pytest.approx(100)}


def test_ignore_may_be_null(sets):
    data = good()
    data["annotations"][2]["ignore"] = None
    assert sets.check(data, data) == []
    # Detectron2 refuses anything but 0.
    assert sum(len(d["annotations"]) for d in DatasetCatalog.get("my_train")) == 6


def test_areas_of_many_rle(sets):
    data = with_rle(many(50))
    each("area", None)(data)
    sets.check(data, data, INPUT__MASK_FORMAT="bitmask")
    areas = [a["area"] for a in json.load(open(MetadataCatalog.get("my_val").json_file))["annotations"]]  # fmt: skip
    assert areas == [float(side * side) for side in (10, 12, 15)] * 100


def test_box_only_data_train_without_masks(sets):
    for empty in ([], [[]], None, {}):
        data = good()
        each("segmentation", lambda a, empty=empty: copy.deepcopy(empty))(data)
        assert sets.check(data, data, MODEL__MASK_ON=False) == []
        assert sum(len(d["annotations"]) for d in DatasetCatalog.get("my_train")) == 6


@pytest.mark.parametrize(
    "segmentation", ["[[1, 2, 3]]", [[5, 5, 9, 9]], [[5, 5, 9, 9, 5, 5]], {"size": 1}]
)
def test_without_masks_a_faulty_segmentation_does_no_harm(sets, segmentation):
    data = good()
    each("segmentation", lambda a: segmentation)(data)
    assert sets.check(data, MODEL__MASK_ON=False) == []
    assert sum(len(d["annotations"]) for d in DatasetCatalog.get("my_train")) == 6


def many(count):
    data = good()
    data["annotations"] = [
        {**copy.deepcopy(a), "id": 6 * n + a["id"], "bbox": [*a["bbox"][:3], a["bbox"][3] + n / 1000]}
        for n in range(count)
        for a in good()["annotations"]
    ]  # fmt: skip
    return data


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("segmentation", [[5, 5, 9, 9]], "segmentation_short"),
        ("segmentation", [[5, 5, 9, 9, 5, 5]], "mask_empty"),
        ("bbox", [5, 5, 0, 3], "bbox_empty"),
        ("bbox", [-9, 5, 3, 3], "bbox_outside"),
    ],
)
def test_a_few_useless_objects_are_left_out_and_more_are_refused(sets, field, value, kind):
    data = many(20)
    data["annotations"][7][field] = value
    said = sets.check(good(), data)
    assert len(said) == 1 and "1 of 120" in said[0] and "left out" in said[0]
    left = [a for d in DatasetCatalog.get("my_val") for a in d["annotations"]]
    assert len(left) == 119
    counted = annotations.check_content(copy.deepcopy(data))[0].objects
    assert sum(number * count for number, count in counted.items()) == 119
    for index in (17, 27):
        data["annotations"][index][field] = value
    assert f"add '{kind}' to DATASETS.ALLOW" in sets.refused(good(), data)
    said = sets.check(good(), data, DATASETS__ALLOW=[kind])
    assert "3 of 120" in said[0]


@pytest.mark.parametrize(
    ("kind", "box", "corner"),
    [
        ("box_mask", [0, 0, 10, 10], 20),
        ("bbox_overhang", [53, 20, 10, 10], 50),
        ("segmentation_overhang", [50, 20, 10, 10], 53),
    ],
)
def test_a_few_odd_objects_are_used_and_more_are_refused(sets, kind, box, corner):
    data = many(20)
    for a in data["annotations"][:12]:
        a.update(bbox=box, segmentation=[square(corner, 20, 10)], area=100)
    said = [line for line in sets.check(good(), data) if "exact copy" not in line]
    assert len(said) == 1 and "12 of 120 annotations" in said[0]
    data["annotations"][12].update(bbox=box, segmentation=[square(corner, 20, 10)], area=100)
    assert f"add '{kind}' to DATASETS.ALLOW" in sets.refused(good(), data)
    assert "13 of 120" in sets.check(good(), data, DATASETS__ALLOW=[kind])[0]


def kinds(content, **options):
    """kind -> how often it is found."""
    findings = annotations.check_content(content, **options)[0].findings
    return {finding.kind: finding.count for finding in findings}


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        ([50, 10, 12, 10], None),  # 2 px beyond
        ([50, 10, 13, 10], "bbox_overhang"),
        ([10, 33, 10, 10], "bbox_overhang"),
        ([-3, 10, 10, 10], "bbox_overhang"),
        ([10, -3, 10, 10], "bbox_overhang"),
        ([60, 10, 10, 10], "bbox_outside"),
        ([10, 40, 10, 10], "bbox_outside"),
        ([-10, 10, 10, 10], "bbox_outside"),
        ([10, -10, 10, 10], "bbox_outside"),
    ],
)
def test_boxes_may_reach_a_little_outside_of_the_image(box, kind):
    content = good()
    content["annotations"][0]["bbox"] = box
    found = {k: count for k, count in kinds(content).items() if k.startswith("bbox")}
    assert found == ({kind: 1} if kind else {})


@pytest.mark.parametrize(
    ("polygon", "kind"),
    [
        ([50, 10, 62, 10, 62, 20], None),
        ([50, 10, 63, 10, 63, 20], "segmentation_overhang"),
        ([10, 33, 20, 33, 20, 43], "segmentation_overhang"),
        ([-3, 10, 10, 10, 10, 20], "segmentation_overhang"),
        ([10, -3, 10, 10, 20, 10], "segmentation_overhang"),
        ([60, 10, 70, 10, 70, 20], "mask_empty"),
        ([10, 40, 20, 40, 20, 50], "mask_empty"),
        ([-10, 10, 0, 10, 0, 20], "mask_empty"),
        ([10, 10, 121, 10, 121, 20], "segmentation_far"),
    ],
)
def test_masks_may_reach_a_little_outside_of_the_image(polygon, kind):
    content = good()
    content["annotations"][0]["segmentation"] = [polygon]
    found = kinds(content)
    found.pop("box_mask", None)
    found.pop("area_odd", None)
    assert found == ({kind: 1} if kind else {})


def test_in_a_large_image_more_may_be_outside():
    content = good()
    for i in content["images"]:
        i.update(width=1000, height=500)
    for beyond, kind in ((20, {}), (21, {"bbox_overhang": 1, "segmentation_overhang": 1})):
        content["annotations"][0].update(
            bbox=[900, 100, 100 + beyond, 50],
            segmentation=[[900, 100, 1000 + beyond, 100, 1000 + beyond, 150, 900, 150]],
            area=50 * (100 + beyond),
        )
        assert kinds(content) == kind


def test_it_makes_no_difference_where_the_file_is_divided(monkeypatch):
    content = many(3)
    for n, a in enumerate(content["annotations"]):
        a["area"] *= 5
        a["iscrowd"] = "0" if n % 2 else 0
        a["bbox"] = corner_box(a) if n % 3 else a["bbox"]
    content["annotations"].append({**content["annotations"][0], "id": 99})
    whole = annotations.check_content(content)
    assert {"area_odd", "iscrowd_text", "box_mask", "object_twice"} <= set(kinds(content))
    monkeypatch.setattr(annotations, "_CHUNK", 4)
    assert annotations.check_content(content) == whole


def test_crowds_may_have_other_masks_than_objects(sets):
    data = good()
    crowd = data["annotations"][0]
    # As those of COCO, which trains with polygons.
    crowd.update(iscrowd=1, segmentation=with_rle(good())["annotations"][0]["segmentation"])
    for said in (sets.check(data, data, INPUT__MASK_FORMAT="polygon"), sets.check(data)):
        assert all("have iscrowd 1" in line for line in said)
    for segmentation in ([], {}):
        crowd["segmentation"] = segmentation
        # Nothing is trained on crowds, but an evaluation reads their masks.
        assert all("have iscrowd 1" in line for line in sets.check(data))
        assert "1 of 6 annotations of crowds have no mask" in sets.refused(good(), data)


@pytest.mark.parametrize("box", [[0, 0, 1, 1], [0.2, 0.2, 0.8, 0.8]])
def test_a_box_as_large_as_the_image_may_be_a_share_of_it(box):
    content = good()
    each("bbox", box)(content)
    assert kinds(content)["bbox_relative"] == 6


def test_boxes_of_no_size_are_no_share_of_the_image():
    content = good()
    each("bbox", [0, 0, 0, 0])(content)
    assert kinds(content) == {"bbox_empty": 6, "no_objects": 1}


def rectangles():
    """Objects that are not as high as wide."""
    content = good()
    for a in content["annotations"]:
        x, y, side, _ = a["bbox"]
        a["bbox"] = [x, y, side, side - 5]
        a["segmentation"] = [[x, y, x + side, y, x + side, y + side - 5, x, y + side - 5]]
        a["area"] = side * (side - 5)
    return content


def centre_box(a):
    x, y, w, h = a["bbox"]
    return [x + w / 2, y + h / 2, w, h]


def share(box):
    return [v / s for v, s in zip(box, [WIDTH, HEIGHT] * 2, strict=True)]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (corner_box, "[x1, y1, x2, y2]"),
        (centre_box, "[centre x, centre y, width, height]"),
        (lambda a: [a["bbox"][i] for i in (1, 0, 3, 2)], "[y, x, height, width]"),
        (lambda a: share(a["bbox"]), "[x, y, width, height] as shares of the image's size"),
        (lambda a: share(corner_box(a)), "[x1, y1, x2, y2] as shares of the image's size"),
        (
            lambda a: share(centre_box(a)),
            "[centre x, centre y, width, height] as shares of the image's size",
        ),
        (lambda a: [a["bbox"][0], a["bbox"][1] + 9, *a["bbox"][2:]], None),
    ],
)
def test_how_boxes_that_contradict_their_masks_are_probably_meant(change, what):
    content = rectangles()
    each("bbox", change)(content)
    (finding,) = [f for f in annotations.check_content(content)[0].findings if f.kind == "box_mask"]
    assert finding.hint == (f"They look like {what}." if what else "")


def test_only_boxes_that_can_be_compared_contradict_their_masks():
    content = good()
    thin, crowd, empty, *_ = content["annotations"]
    thin.update(bbox=[5, 5, 40, 1], segmentation=[[5, 5, 45, 5, 45, 8, 5, 8]], area=40)
    crowd.update(bbox=[0, 0, 5, 5], iscrowd=1)
    empty.update(bbox=[40, 20, 0, 15])
    assert "box_mask" not in kinds(content)
    content["annotations"][3].update(bbox=[0, 0, 5, 5])
    (finding,) = [f for f in annotations.check_content(content)[0].findings if f.kind == "box_mask"]
    assert finding.examples == ["annotation 4 of image 2: bbox [0, 0, 5, 5]"]
    assert (finding.count, finding.total) == (1, 3)


@pytest.mark.parametrize(("masks", "area"), [(True, 50), (False, 100)])
def test_a_missing_area_is_that_of_the_mask_or_else_of_the_box(masks, area):
    content = good()
    content["annotations"][0]["segmentation"] = [[5, 5, 15, 5, 15, 15]]
    del content["annotations"][0]["area"]
    repaired = annotations.check_content(content, masks=masks)[1]
    assert repaired["annotations"][0]["area"] == area


@pytest.mark.parametrize(
    ("segmentation", "least", "most"),
    [
        ([square(40, 20, 15)], 113, 450),
        ([[40, 20, 55, 20, 55, 35]], 57, 450),  # half of its box
        (None, 2, 450),  # a mask that is not known
    ],
)
def test_areas_may_be_those_of_masks_or_of_boxes(segmentation, least, most):
    content = good()
    one("segmentation", segmentation)(content)
    for area, odd in ((least - 1, 1), (least, 0), (most, 0), (most + 1, 1)):
        content["annotations"][2]["area"] = area
        assert kinds(content).get("area_odd", 0) == odd
    # Small ones may differ.
    content["annotations"][0]["area"] = 1
    findings = {f.kind: f for f in annotations.check_content(content)[0].findings}
    assert (findings["area_odd"].count, findings["area_odd"].total) == (1, 4)


def test_an_area_of_zero_is_no_contradiction_too():
    content = good()
    each("area", 0)(content)
    assert kinds(content) == {"area_zero": 6}


def test_objects_with_other_masks_are_no_copies():
    content = good()
    first = content["annotations"][0]
    content["annotations"] += [
        {**first, "id": 7, "segmentation": [[5, 5, 15, 5, 15, 15]]},
        {**first, "id": 8, "category_id": 2},
        {**first, "id": 9, "image_id": 2, "category_id": 2},
    ]
    assert kinds(content) == {}
    content["annotations"].append({**first, "id": 10})
    assert kinds(content) == {"object_twice": 1}


def test_what_only_some_objects_have_is_no_share_of_the_image():
    content = good()
    for a in content["annotations"][:3]:
        a.update(bbox=relative_box(a), segmentation=[[0.1, 0.1, 0.9, 0.1, 0.9, 0.9]])
    some = kinds(content)
    for a in content["annotations"][3:4]:
        a.update(bbox=relative_box(a), segmentation=[[0.1, 0.1, 0.9, 0.1, 0.9, 0.9]])
    found = kinds(content)
    for kind in ("bbox_relative", "segmentation_relative"):
        assert kind not in some and found[kind] == 4


def test_few_boxes_do_not_say_how_all_are_meant():
    content = rectangles()
    each("bbox", lambda a: corner_box(a) if a["id"] % 3 else [0, 0, 4, 4])(content)
    (finding,) = [f for f in annotations.check_content(content)[0].findings if f.kind == "box_mask"]
    assert (finding.count, finding.hint) == (6, "")


def test_sizes_of_images_are_integers_in_the_copy():
    content = good()
    image("width", 60.0)(content)
    size = annotations.check_content(content)[1]["images"][1]
    assert (type(size["width"]), size["width"], size["height"]) == (int, WIDTH, HEIGHT)


@pytest.mark.parametrize("short", [[], [51, 21], [51, 21, 52, 22]])
def test_a_small_mask_at_the_right_edge_has_pixels(short):
    content = good()
    small = [50, 20, 55, 20, 55, 25]
    content["annotations"][2].update(segmentation=[short, small], bbox=[50, 20, 5, 5], area=12)
    assert kinds(content) == {"polygon_short": 1}


def test_annotations_of_no_image_or_category_are_not_in_the_copy():
    content = good()
    one("image_id", 77, index=0)(content)
    one("category_id", 7, index=1)(content)
    repaired = annotations.check_content(content)[1]
    assert [a["id"] for a in repaired["annotations"]] == [3, 4, 5, 6]


@pytest.mark.parametrize(
    "kind", [k for k, v in KINDS.items() if v.level is Level.JUDGEMENT and k != "no_objects"]
)
def test_a_judgement_can_be_overruled(sets, kind):
    faults = {
        "category_names": add_category,
        "file_name_twice": repeated_file,
        "image_id_unknown": one("image_id", 77),
        "category_id_unknown": one("category_id", 7),
        "bbox_relative": each("bbox", relative_box),
        "annotation_id_twice": each("id", 4),
        "iscrowd_text": each("iscrowd", "0"),
        "file_16_bit": lambda data: data["images"][1].update(
            file_name=deep(sets.images / "2.png", np.uint16)
        ),
    }
    data = good()
    faults[kind](data)
    allow = [kind, "box_mask"] if kind == "bbox_relative" else [kind]
    assert f"add '{kind}' to DATASETS.ALLOW" in sets.refused(data)
    assert sets.check(data, DATASETS__ALLOW=allow)
    assert all(a["iscrowd"] == 0 for d in DatasetCatalog.get("my_train") for a in d["annotations"])
    ids = [a["id"] for a in json.load(open(MetadataCatalog.get("my_train").json_file))["annotations"]]  # fmt: skip
    assert len(set(ids)) == len(ids)


def test_data_sets_without_objects_can_be_allowed(sets):
    data = good()
    data["annotations"] = []
    assert "add 'no_objects' to DATASETS.ALLOW" in sets.refused(good(), data)
    assert "no object" in sets.check(good(), data, DATASETS__ALLOW=["no_objects"])[0]
    assert "no object" in sets.check(data, DATASETS__ALLOW=["no_objects"])[0]


def test_without_a_model_missing_masks_are_a_note_and_broken_ones_are_not():
    usage = Usage(train=[], test=["any"])
    levels = [
        judge(Finding(kind, 1, 1, []), usage, train=False, test=True)
        for kind in ("mask_missing", "mask_missing_crowd", "rle_sum")
    ]
    assert levels == [Level.NOTE, Level.NOTE, Level.ERROR]


def level(kind, count=1, total=1, train=False, test=True, **usage):
    finding = Finding(kind, count, total, [])
    return judge(finding, Usage(train=[], test=[], **usage), train=train, test=test)


@pytest.mark.parametrize(
    ("kind", "few", "outcome"),
    [
        ("bbox_empty", 10, Level.LEFT_OUT),  # 1 in 100
        ("box_mask", 100, Level.NOTE),  # 1 in 10
    ],
)
def test_so_many_of_1000_are_few(kind, few, outcome):
    assert level(kind, few, 1000) is level(kind, few, 1000, allow=[kind]) is outcome
    assert level(kind, few + 1, 1000) is Level.JUDGEMENT


@pytest.mark.parametrize(
    "kind", ["area_missing", "area_form", "area_zero", "area_odd", "mask_missing_crowd"]
)
def test_what_only_an_evaluation_needs_is_not_said_of_a_training_set(kind):
    assert level(kind, mask_on=True) is KINDS[kind].level
    assert level(kind, mask_on=True, train=True, test=False) is None


@pytest.mark.parametrize(
    "kind", ["segmentation_form", "rle_sum", "mask_missing", "box_mask", "polygon_short"]
)
def test_a_model_of_boxes_has_no_faulty_masks(kind):
    assert level(kind, mask_on=False) is None
    assert level(kind) is not None


@pytest.mark.parametrize(
    ("mask_format", "outcome"), [("polygon", Level.ERROR), ("bitmask", None), (None, None)]
)
def test_rle_are_a_fault_only_in_a_training_on_polygons(mask_format, outcome):
    assert level("rle", train=True, test=False, mask_format=mask_format) is outcome
    assert level("rle", mask_format=mask_format) is None


@pytest.mark.parametrize("kind", ["keypoints_form", "num_keypoints_wrong"])
@pytest.mark.parametrize("mask_on", [True, False, None])
def test_a_model_without_keypoints_has_no_faulty_ones(kind, mask_on):
    assert level(kind, mask_on=mask_on) is None
    assert level(kind, mask_on=mask_on, keypoints=2) is KINDS[kind].level


@pytest.mark.parametrize(
    ("finding", "options", "text"),
    [
        (Finding("images_empty", 1, 1, [""]), {}, "the file is empty: it has no image. The list"),
        (Finding("crowd", 3, 9, ["", ""]), {}, "3 of 9 annotations have iscrowd 1. Crowds are"),
        (Finding("crowd", 3, 9, ["a", "b"]), {}, "3 of 9 annotations have iscrowd 1 (a; b; and 1"),
        (Finding("crowd", 2, 9, ["a", "b"]), {}, "2 of 9 annotations have iscrowd 1 (a; b). Crow"),
        (Finding("crowd", 2, 9, ["a"]), {"examples": False}, "2 of 9 annotations have iscrowd 1. "),
    ],
)
def test_a_finding_in_words(finding, options, text):
    assert sentence(finding, refused=False, **options).startswith(text)


def test_a_finding_in_words_says_what_becomes_of_objects():
    left_out, odd = Finding("bbox_empty", 1, 9, []), Finding("box_mask", 1, 9, [])
    outcome = "They are left out of training and of evaluation."
    assert sentence(left_out, refused=False).endswith(f" {outcome}")
    allowed = "To leave them out of training and of evaluation, add 'bbox_empty' to DATASETS.ALLOW."
    assert sentence(left_out, refused=True).endswith(f" {allowed}")
    assert outcome not in sentence(left_out, refused=True) + sentence(odd, refused=False)
    allowed = "To go on all the same, add 'box_mask' to DATASETS.ALLOW."
    assert sentence(odd, refused=True).endswith(f" {allowed}")


def test_the_page_lists_the_kinds_that_can_be_allowed():
    page = (ROOT / "docs" / "your_data.md").read_text()
    _, section = page.split("### Refused unless you allow it")
    rows = re.findall(r"^\|(.+?)\|", section.partition("\n### ")[0], re.MULTILINE)
    listed = {kind for row in rows for kind in re.findall(r"`(\w+)`", row)}
    for kind in KINDS:
        if kind in listed:
            check_values("fast", [kind])
        else:
            with pytest.raises(ValueError, match=f"DATASETS.ALLOW has '{kind}'"):
                check_values("fast", [kind])
    assert len(listed) > 10 and listed <= KINDS.keys()


def test_crowds_and_what_is_left_out_are_no_objects(sets):
    data = good()
    one("iscrowd", 1, index=0)(data)
    for index in range(1, 6):
        one("category_id", 7, index)(data)
    said = sets.refused(data, DATASETS__ALLOW=["category_id_unknown"])
    assert "no object" in said and "6 annotations, 1 with iscrowd 1, 5 left out" in said


def test_all_faults_are_named_at_once(sets):
    data = good()
    one("bbox", None)(data)
    each("category_id", 7)(data)
    with pytest.raises(ValueError) as error:
        sets.check(data, data)
    lines = str(error.value).splitlines()
    for split in ("train", "val"):
        of_split = [line for line in lines if f"my_{split}" in line]
        assert any("no bbox" in line for line in of_split)
        assert any("category_id 7" in line and "and 1 more" in line for line in of_split)
    assert "tools/check_dataset.py" in lines[-1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"DATASETS__CHECK": "slow"}, "DATASETS.CHECK is 'slow'.*'fast', 'full', 'off'"),
        ({"DATASETS__ALLOW": ["bbox_form"]}, "DATASETS.ALLOW has 'bbox_form'.*'bbox_empty'"),
    ],
)
def test_values_of_the_keys(sets, changes, message):
    sets.write(good())
    with pytest.raises(ValueError, match=message):
        cfg = sets.config(**changes)
        register_datasets(cfg, train=True)
        check_datasets(cfg)


@pytest.mark.parametrize("key", ["DATASETS.TRAIN", "DATASETS.TEST"])
def test_a_data_set_that_is_not_registered_is_named(sets, key):
    sets.write(good())
    cfg = sets.config()
    register_datasets(cfg, train=True)
    cfg.merge_from_list([key, ("my_trian",)])
    with pytest.raises(ValueError, match="TRAIN or TEST has 'my_trian', which is not registered"):
        check_datasets(cfg)


def test_a_data_set_of_other_code_is_not_checked(sets):
    DatasetCatalog.register("my_val", list)
    sets.write(good())
    cfg = sets.config()
    cfg.DATASETS.COCO_JSON = cfg.DATASETS.COCO_JSON[:1]
    register_datasets(cfg, train=True)
    check_datasets(cfg)


def test_a_data_set_that_is_trained_and_evaluated_on_is_checked_once(sets):
    data = good()
    each("area", None)(data)
    (said,) = sets.check(data, DATASETS__TEST=("my_train",))
    assert "have no area" in said


def test_off_checks_nothing(sets):
    data = good()
    each("bbox", negative_box)(data)
    each("iscrowd", None)(data)
    os.remove(sets.images / "1.png")
    assert sets.check(data, DATASETS__CHECK="off") == []
    # A repaired copy would lie elsewhere.
    assert MetadataCatalog.get("my_train").json_file == str(sets.folder / "train.json")


# Checks of stock scripts, on load


def test_the_test_set_is_checked_when_the_train_set_is_loaded(sets):
    data = good()
    each("bbox", negative_box)(data)
    sets.write(good(), data)
    register_coco_json(sets.config().DATASETS.COCO_JSON)
    with pytest.raises(ValueError, match="'my_val'.*negative width"):
        DatasetCatalog.get("my_train")


def write_yaml(sets, text=""):
    file = sets.folder / "my.yaml"
    entries = json.dumps(sets.config().DATASETS.COCO_JSON)
    file.write_text(f"DATASETS:\n  COCO_JSON: {entries}\n{text}")
    return str(file)


def test_a_yaml_file_says_which_data_sets_are_used_and_how(sets):
    data = good()
    each("segmentation", [])(data)
    sets.write(data, data)
    mask_on = "MODEL: {MASK_ON: True}"
    for text, refused in (
        ("", False),
        (mask_on, True),
        ("MODEL: {MASK_ON: False}", False),
        ('  TRAIN: ("my_val",)\n  TEST: ()\n' + mask_on, False),
        ('  CHECK: "off"\n' + mask_on, False),
    ):
        forget()
        register_coco_json_from_file(write_yaml(sets, text))
        if refused:
            with pytest.raises(ValueError, match="'my_train'.*no mask"):
                DatasetCatalog.get("my_train")
        else:
            assert len(DatasetCatalog.get("my_train")) == 2


# Encodings


def test_a_byte_order_mark_is_taken_away(sets):
    sets.write(good(), "\ufeff" + json.dumps(good()))
    cfg = sets.config()
    register_datasets(cfg, train=True)
    check_datasets(cfg)
    assert len(DatasetCatalog.get("my_val")) == 2


def test_names_survive_a_locale_that_is_not_utf_8(sets, monkeypatch):
    data = good()
    data["categories"][0]["name"] = "piéton"
    text = json.dumps(data, ensure_ascii=False)
    monkeypatch.setattr("locale.getpreferredencoding", lambda do_setlocale=True: "ISO-8859-1")
    sets.check(text, text)
    content = Path(MetadataCatalog.get("my_val").json_file).read_bytes()
    assert content.isascii() and json.loads(content)["categories"][0]["name"] == "piéton"


# Image files


def save_png(path, **arguments):
    Image.new("RGB", (WIDTH, HEIGHT)).save(path, "png", **arguments)


def cut(path, share=0.5):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


@pytest.mark.parametrize("extension", ["jpg", "png", "tif", "bmp", "webp", "gif"])
@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.parametrize("seconds_to_decode", [0, 10])
def test_a_cut_image_is_named(sets, extension, share, seconds_to_decode, monkeypatch):
    monkeypatch.setattr(inspection, "SECONDS_TO_DECODE", seconds_to_decode)
    pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    path = sets.images / f"cut.{extension}"
    data = good()
    data["images"][1]["file_name"] = path.name
    # A thumbnail's end is not that of the image.
    Image.fromarray(pixels).save(path)
    assert [line for line in sets.check(data) if "frames" not in line] == []
    cut(path, share)
    message = sets.refused(data)
    assert str(path) in message and ("damaged" in message or "cannot be read" in message)


def test_further_pages_of_an_image_are_named(sets):
    pages = [Image.new("RGB", (WIDTH, HEIGHT)) for _ in range(2)]
    pages[0].save(sets.images / "2.tif", save_all=True, append_images=pages[1:])
    data = good()
    data["images"][1]["file_name"] = "2.tif"
    assert "have several frames or pages" in sets.check(data)[0]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "it is empty"), (b"no image at all", "no format"), (None, "it is a folder")],
)
def test_a_file_that_is_no_image(sets, content, words):
    path = sets.images / "2.png"
    path.unlink()
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    assert words in sets.refused(good())


def test_a_damaged_middle_needs_decoding(sets, monkeypatch):
    path = sets.images / "2.png"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with monkeypatch.context() as patch:
        patch.setattr(inspection, "SECONDS_TO_DECODE", 0)
        assert sets.check(good()) == []
        assert "2.png" in sets.refused(good(), DATASETS__CHECK="full")
    path.write_bytes(content + b" ")
    assert "2.png" in sets.refused(good())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(sets, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    save_png(sets.images / "2.png", exif=exif)
    # As Detectron2 reads it.
    read = read_image(str(sets.images / "2.png")).shape[:2]
    if read == (HEIGHT, WIDTH):
        said = sets.check(good())
        assert any("EXIF" in line for line in said) == (orientation != 1)
    else:
        message = sets.refused(good())
        assert f"EXIF orientation {orientation}" in message and "40 x 60" in message
        data = good()
        data["images"][1].update(width=HEIGHT, height=WIDTH)
        each("segmentation", [square(5, 5, 10)])(data)
        each("bbox", [5, 5, 10, 10])(data)
        sets.check(data, data)


def test_an_image_beyond_pillows_limit(sets, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    message = sets.refused(good())
    assert "decompression" in message and "1.png" in message


def test_an_image_of_which_nothing_is_left(sets):
    Image.new("L", (1200, 2)).save(sets.images / "thin.png")
    data = good()
    data["images"].append({"id": 3, "file_name": "thin.png", "width": 1200, "height": 2})
    small = {"INPUT__MIN_SIZE_TRAIN": "(128,)", "INPUT__MAX_SIZE_TRAIN": 128}
    assert "thin.png of 1200 x 2 becomes 128 x 0" in sets.refused(data, **small)
    small = {"INPUT__MIN_SIZE_TEST": 128, "INPUT__MAX_SIZE_TEST": 128}
    assert "thin.png of 1200 x 2 becomes 128 x 0" in sets.refused(data, **small)
    assert sets.check(data) == []
    # Detectron2 does not resize then.
    assert sets.check(data, INPUT__MIN_SIZE_TEST=0) == []


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK"])
def test_all_modes_of_8_bits_are_good(sets, mode):
    path = sets.images / ("2.tif" if mode == "CMYK" else "2.png")
    Image.open(sets.images / "1.png").convert(mode).save(path)
    data = good()
    data["images"][1]["file_name"] = path.name
    assert sets.check(data) == []


def deep(path, dtype, factor=257):
    pixels = np.asarray(Image.open(path).convert("L")).astype(dtype) * factor
    new = path.with_suffix(".tif")
    Image.fromarray(pixels).save(new)
    return new.name


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_deep_images_are_refused_or_scaled(sets, dtype):
    data = good()
    grey = np.asarray(Image.open(sets.images / "2.png").convert("L"))
    data["images"][1]["file_name"] = deep(sets.images / "2.png", dtype)
    assert "bits" in sets.refused(data) and "INPUT.PIXEL_RANGE" in sets.refused(data)
    assert sets.check(data, INPUT__PIXEL_RANGE="[0, 65535]") == []
    first, second = DatasetCatalog.get("my_train")
    assert np.array_equal(read_image(second["file_name"], "BGR"), np.stack([grey] * 3, 2))
    limits = {"INPUT__PIXEL_RANGE": "[0, 100]", "INPUT__PIXEL_RANGE_UNIT": "percentile"}
    assert sets.check(data, **limits) == []
    _, second = DatasetCatalog.get("my_train")
    stretched = scale_pixels(grey.astype(float), 0, 100, "percentile")
    assert np.abs(read_image(second["file_name"], "BGR")[..., 0] - stretched.astype(int)).max() <= 1
    # Images of 8 bits stay.
    assert np.array_equal(
        read_image(first["file_name"], "RGB"), np.asarray(Image.open(sets.images / "1.png"))
    )


def scaled_grey(sets, data, absolute=False):
    """Makes the second image a deep one; returns what it shall be once it is scaled."""
    grey = np.asarray(Image.open(sets.images / "2.png").convert("L"))
    name = deep(sets.images / "2.png", np.uint16)
    data["images"][1]["file_name"] = str(sets.images / name) if absolute else name
    return np.stack([grey] * 3, 2)


def test_a_registration_with_a_range_replaces_our_own_without_one(sets):
    data = good()
    expected = scaled_grey(sets, data)
    sets.write(data, data)
    register_coco_json_from_file(write_yaml(sets))
    MetadataCatalog.get("my_train").thing_colors = [(1, 2, 3), (4, 5, 6)]
    cfg = sets.config(INPUT__PIXEL_RANGE="[0, 65535]")
    with pytest.raises(ValueError, match="bits"):
        check_datasets(cfg)
    register_datasets(cfg, train=True)
    check_datasets(cfg)
    record = DatasetCatalog.get("my_train")[1]
    assert np.array_equal(read_image(record["file_name"], "BGR"), expected)
    assert MetadataCatalog.get("my_train").thing_colors == [(1, 2, 3), (4, 5, 6)]


def test_a_registration_without_masks_replaces_our_own_with_them(sets):
    data = good()
    each("segmentation", lambda a: "[[1, 2, 3]]")(data)
    sets.write(data, data)
    register_datasets(sets.config(), train=True)
    cfg = sets.config(MODEL__MASK_ON=False)
    register_datasets(cfg, train=True)
    assert "segmentation" not in DatasetCatalog.get("my_train")[0]["annotations"][0]


def test_a_data_set_of_other_code_is_not_replaced(sets):
    sets.write(good())
    cfg = sets.config(INPUT__PIXEL_RANGE="[0, 65535]")
    register_coco_instances("my_train", {}, *cfg.DATASETS.COCO_JSON[0][1:])
    with pytest.raises(ValueError, match="my_train.*other code.*PIXEL_RANGE"):
        register_datasets(cfg, train=True)


def test_a_yaml_file_may_have_a_range(sets):
    data = good()
    expected = scaled_grey(sets, data)
    sets.write(data, data)
    register_coco_json_from_file(write_yaml(sets, "INPUT: {PIXEL_RANGE: [0, 65535]}"))
    record = DatasetCatalog.get("my_train")[1]
    assert np.array_equal(read_image(record["file_name"], "BGR"), expected)
    forget()
    with pytest.raises(ValueError, match="PIXEL_RANGE is .* two numbers"):
        register_coco_json_from_file(write_yaml(sets, "INPUT: {PIXEL_RANGE: [0]}"))


def test_absolute_names_are_scaled_too(sets):
    data = good()
    expected = scaled_grey(sets, data, absolute=True)
    sets.check(data, INPUT__PIXEL_RANGE="[0, 65535]")
    record = DatasetCatalog.get("my_train")[1]
    assert np.array_equal(read_image(record["file_name"], "BGR"), expected)


@pytest.mark.parametrize("extension, orientation", [("png", 1), ("png", 6), ("tif", 1)])
def test_colours_of_16_bits(sets, extension, orientation):
    colours = np.asarray(Image.open(sets.images / "2.png"))
    path = sets.images / f"deep.{extension}"
    # 12 of 16 bits, of which Pillow would keep 4.
    cv2.imwrite(str(path), colours[:, :, ::-1].astype(np.uint16) * 16)
    if orientation != 1:
        add_exif_to_png(path, orientation)
    data = good()
    data["images"][1]["file_name"] = path.name
    if orientation == 6:
        data["images"][1].update(width=HEIGHT, height=WIDTH)
        each("segmentation", [square(5, 5, 10)])(data)
        each("bbox", [5, 5, 10, 10])(data)
    assert "bits" in sets.refused(data)
    sets.check(data, INPUT__PIXEL_RANGE="[0, 4080]")
    read = read_image(DatasetCatalog.get("my_train")[1]["file_name"], "RGB")
    assert np.array_equal(read, np.rot90(colours, -1) if orientation == 6 else colours)


def add_exif_to_png(path, orientation):
    """Puts a chunk eXIf before the pixels; Pillow would write 8 bits."""
    exif = Image.Exif()
    exif[274] = orientation
    body = b"eXIf" + exif.tobytes()[6:]
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    content = path.read_bytes()
    place = content.index(b"IDAT") - 4
    path.write_bytes(content[:place] + chunk + content[place:])


def test_pixels_are_scaled_and_cut_off():
    pixels = np.array([[0.0, 100.0, 150.0], [200.0, np.nan, np.inf]])
    scaled = scale_pixels(pixels, 100, 200, "value")
    assert scaled.dtype == np.uint8 and scaled.tolist() == [[0, 0, 128], [255, 0, 255]]
    values = np.arange(101.0)
    scaled = scale_pixels(values, 10, 90, "percentile")
    assert (scaled[10], scaled[50], scaled[90], scaled[100]) == (0, 128, 255, 255)


@pytest.mark.parametrize(
    ("limits", "unit", "message"),
    [
        ([1], "value", "PIXEL_RANGE is .* two numbers"),
        ([5, 5], "value", "low < high"),
        ([0, 101], "percentile", r"\[0, 100\]"),
        ([0, 1], "percent", "PIXEL_RANGE_UNIT is 'percent'"),
    ],
)
def test_values_of_the_pixel_range(sets, limits, unit, message):
    cfg = sets.config(INPUT__PIXEL_RANGE=limits, INPUT__PIXEL_RANGE_UNIT=unit)
    with pytest.raises(ValueError, match=message):
        check_pixel_range(cfg)


def test_a_scaled_path_is_a_file_for_detectron2(sets):
    path = scaled_path(str(sets.images / "1.png"), [0, 1], "value")
    from detectron2.utils.file_io import PathManager

    assert PathManager.isfile(path) and not PathManager.isfile(path + "x")
    assert PathManager.get_local_path(path) == str(sets.images / "1.png")


# What is remembered


def test_nothing_is_read_again_until_it_changes(sets, monkeypatch):
    data = good()
    each("area", None)(data)
    said = sets.check(data, data)
    copied = MetadataCatalog.get("my_val").json_file

    def fail(*args, **kwargs):
        raise AssertionError("it was read again")

    with monkeypatch.context() as patch:
        patch.setattr(inspection, "read_content", fail)
        patch.setattr(images, "look_at", fail)
        cfg = sets.config()
        forget()
        register_datasets(cfg, train=True)
        sets.caplog.clear()
        check_datasets(cfg)
        assert [r.getMessage() for r in sets.caplog.records if "area" in r.getMessage()] == said
        assert MetadataCatalog.get("my_val").json_file == copied
    cut(sets.images / "2.png")
    assert "2.png" in sets.refused(data)
    save_png(sets.images / "2.png")
    each("bbox", negative_box)(data)
    assert "negative" in sets.refused(data)


def test_a_cache_that_cannot_be_written_is_not_a_fault_of_the_data_set(sets, monkeypatch, tmp_path):
    # A file in place of the folder. The rights of a folder do not stop root.
    (tmp_path / "cache").write_text("")
    monkeypatch.setattr(inspection, "_folder", lambda: str(tmp_path / "cache"))
    sets.write(good())
    cfg = sets.config()
    with sets.caplog.at_level(logging.WARNING):
        register_datasets(cfg, train=True)
        check_datasets(cfg)
    said = sets.caplog.text
    assert "cannot be remembered" in said and str(tmp_path / "cache") in said
    assert len(DatasetCatalog.get("my_train")) == 2
    data = good()
    each("area", None)(data)
    message = sets.refused(data)
    assert "repaired copy" in message and str(tmp_path / "cache") in message
    assert "FVCORE_CACHE" in message and "cannot be read" not in message


def test_a_cache_that_cannot_be_locked_is_used_without_a_lock(sets, monkeypatch):
    def fail(path):
        raise portalocker.LockException("No locks available")

    monkeypatch.setattr(inspection, "file_lock", fail)
    sets.write(good())
    cfg = sets.config()
    with sets.caplog.at_level(logging.WARNING):
        register_datasets(cfg, train=True)
        check_datasets(cfg)
    assert "cannot be locked" in sets.caplog.text and "No locks available" in sets.caplog.text
    assert len(DatasetCatalog.get("my_train")) == 2


def test_when_the_time_is_up_the_rest_is_named(sets, monkeypatch):
    monkeypatch.setattr(inspection, "SECONDS_FOR_HEADERS", -1.0)
    said = sets.check(good())
    assert any("2 of 2 image files were not looked at" in line for line in said)


# Run-length encodings, against pycocotools


@given(st.lists(st.integers(1, 2**20), min_size=1, max_size=30), st.integers(1, 3))
def test_sums_of_compressed_counts(counts, copies):
    total = sum(counts)
    text = mask_util.frPyObjects({"size": [total, 1], "counts": counts}, total, 1)["counts"]
    other = mask_util.frPyObjects({"size": [7, 1], "counts": [3, 4]}, 7, 1)["counts"]
    sums = annotations._rle_totals([other] + [text] * copies + [other])
    assert sums.tolist() == [7] + [total] * copies + [7]


@pytest.mark.parametrize("other", [[], [[40, 30, 43, 30, 43, 33, 40, 33]]])
@pytest.mark.parametrize(
    "crossing",
    [
        [5, 5, 25, 25, 25, 5, 5, 25],
        [5, 5, 25, 25, 25, 5, 5, 24],
        [5, 5, 25, 5, 5, 25, 20, 25],
    ],
)
def test_an_object_whose_corners_cross_over_has_the_area_that_is_drawn(other, crossing):
    content = good()
    segmentation = [crossing, *other]
    content["annotations"][0].update(segmentation=segmentation, bbox=[5, 5, 20, 20])
    for a in content["annotations"]:
        del a["area"]
    mask = mask_util.merge(mask_util.frPyObjects(segmentation, HEIGHT, WIDTH))
    repaired = annotations.check_content(content)[1]["annotations"]
    assert repaired[0]["area"] == mask_util.area(mask)
    assert repaired[1]["area"] == 144


@pytest.mark.parametrize("sliver", [[5, 5, 25, 24, 15, 14.6], [11, 23, 10, 23, 12, 25]])
def test_a_sliver_without_pixels_is_left_out(sliver):
    content = good()
    content["annotations"][0].update(segmentation=[sliver])
    checked, _ = annotations.check_content(content)
    assert "mask_empty" in [finding.kind for finding in checked.findings]


def test_a_polygon_in_an_image_of_an_absurd_size_is_not_drawn():
    content = good()
    for image in content["images"]:
        image.update(width=2 * 10**9, height=2 * 10**9)
    far = 10**9
    for a in content["annotations"]:
        del a["area"]
    polygon = [10, 10, far, far, far, far + 3, 10, 13]
    content["annotations"][0].update(segmentation=[polygon], bbox=[10, 10, far, far])
    repaired = annotations.check_content(content)[1]["annotations"]
    assert repaired[0]["area"] == pytest.approx(3 * far, rel=1e-6)


@given(st.data())
def test_boxes_and_areas_of_polygons(data):
    coordinate = st.integers(0, HEIGHT)
    polygons = data.draw(
        st.lists(
            st.lists(st.tuples(coordinate, coordinate), min_size=3, max_size=8), min_size=1, max_size=4
        )
    )  # fmt: skip
    content = good()
    content["annotations"] = []
    for n, p in enumerate(polygons, start=1):
        x, y, w, h = cv2.boundingRect(np.array(p, dtype=np.int32))
        content["annotations"].append(
            {
                "id": n,
                "image_id": 1,
                "category_id": 1,
                "bbox": [x, y, w, h],
                "iscrowd": 0,
                "segmentation": [np.ravel(p).tolist()],
            }
        )
    _, repaired = annotations.check_content(content)
    areas = {a["id"]: a["area"] for a in repaired["annotations"]}
    for n, p in enumerate(polygons, start=1):
        (drawn,) = mask_util.area(mask_util.frPyObjects([np.ravel(p).tolist()], HEIGHT, WIDTH))
        if n not in areas:
            # Nothing is left of a sliver when it is drawn.
            assert drawn == 0
        else:
            # The parts of a polygon that crosses itself may cancel.
            area = cv2.contourArea(np.array(p, dtype=np.float32))
            assert areas[n] == pytest.approx(area, abs=0.01) or areas[n] == drawn > 2 * area


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from([10**400, -1, 0, 1, 2, "1", 1.0, 1e10, [], [[]], {}, [1, 2, 3, 4]]),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=8,
)  # fmt: skip


def places(value, path=()):
    """The paths to everything in a JSON value."""
    yield path
    items = []
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield from places(inner, (*path, key))


@settings(max_examples=int(os.environ.get("MRCNN_PLUGIN_EXAMPLES", 60)), deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(st.data())
def test_whatever_is_not_refused_can_be_used(sets, data):
    content = good() if data.draw(st.booleans()) else with_rle(good())
    for _ in range(data.draw(st.integers(1, 2))):
        *path, last = data.draw(st.sampled_from([p for p in places(content) if p]))
        place = content
        for key in path:
            place = place[key]
        if data.draw(st.integers(0, 4)) == 0:
            del place[last]
        else:
            place[last] = copy.deepcopy(data.draw(VALUES))
    try:
        sets.check(content, content, INPUT__MASK_FORMAT="bitmask", INPUT__CROP__ENABLED=True)
    except ValueError as error:
        assert "my_train" in str(error) or "my_val" in str(error)
        return
    cfg = sets.config(INPUT__MASK_FORMAT="bitmask", INPUT__CROP__ENABLED=True)
    mapper = TrainMapper(cfg, True)
    for d in get_detection_dataset_dicts(["my_train"]):
        mapper(d)
    ap = ap_of_ground_truth()
    assert all(value == pytest.approx(100) or math.isnan(value) for value in ap.values())


def test_every_message_is_a_whole_sentence():
    for _, _, what, then in KINDS.values():
        assert what.split()[0] in ("has", "have", "is", "are", "of", "do", "cannot", "were")
        assert then.endswith(".")


KEYPOINTS_ON = {"MODEL__KEYPOINT_ON": True, "MODEL__ROI_KEYPOINT_HEAD__NUM_KEYPOINTS": 2}


def test_keypoints_stand_with_the_categories(sets):
    data = good()
    on = dict(KEYPOINTS_ON)
    message = sets.refused(data, **on)
    assert "my_train" in message and "keypoint_names" in message and "COCO_JSON" in message
    data = with_keypoints()
    assert sets.check(data, data, **on) == []
    assert MetadataCatalog.get("my_train").keypoint_flip_map == [("left_eye", "right_eye")]
    for number in (1, 17):
        on["MODEL__ROI_KEYPOINT_HEAD__NUM_KEYPOINTS"] = number
        assert "have 2 keypoints" in sets.refused(data, data, **on)


def with_keypoints(names=("left_eye", "right_eye")):
    data = good()
    for category in data["categories"]:
        category["keypoints"] = list(names)
    for a in data["annotations"]:
        x, y, side, _ = a["bbox"]
        a.update(keypoints=[x + 2, y + 2, 2, x + side - 2, y + 3, 1], num_keypoints=2)
    return data


def crowd_with(**fields):
    """Makes the first annotation a crowd with these fields for keypoints."""

    def edit(data):
        a = data["annotations"][0]
        del a["keypoints"], a["num_keypoints"]
        a.update(iscrowd=1, **fields)

    return edit


@pytest.mark.parametrize(
    ("edit", "words", "numbers"),
    [
        (lambda data: None, [], [2] * 6),
        (each("num_keypoints", None), ["6 of 6", "have no num_keypoints"], [2] * 6),
        (one("keypoints", [0] * 6, 0), ["1 of 6", "num_keypoints 2"], [0, 2, 2, 2, 2, 2]),
        (one("keypoints", [7, 7, 0, 9, 9, 1], 0), ["num_keypoints 2"], [1, 2, 2, 2, 2, 2]),
        (each("num_keypoints", 0), ["6 of 6", "num_keypoints 0", "v above 0"], [2] * 6),
        (each("num_keypoints", lambda a: "2"), ["6 of 6", "num_keypoints '2'"], [2] * 6),
        (
            lambda data: data["annotations"][0].update(num_keypoints=None),
            ["1 of 6", "num_keypoints None"],
            [2] * 6,
        ),
        (crowd_with(), ["1 of 6", "of crowds have no keypoints"], [0, 2, 2, 2, 2, 2]),
        (crowd_with(keypoints=[]), ["of crowds have no keypoints"], [0, 2, 2, 2, 2, 2]),
        (crowd_with(keypoints=None), ["of crowds have no keypoints"], [0, 2, 2, 2, 2, 2]),
        (crowd_with(keypoints=[6, 6, 2, 0, 0, 0]), ["no num_keypoints"], [1, 2, 2, 2, 2, 2]),
        (crowd_with(keypoints=[0] * 6, num_keypoints=0), [], [0, 2, 2, 2, 2, 2]),
    ],
)
def test_what_the_evaluation_of_keypoints_needs_is_repaired(sets, edit, words, numbers):
    data = with_keypoints()
    edit(data)
    said = [
        line for line in sets.check(with_keypoints(), data, **KEYPOINTS_ON) if "iscrowd" not in line
    ]
    assert len(said) == bool(words) and all(word in said[0] for word in words)
    content = json.loads(Path(MetadataCatalog.get("my_val").json_file).read_text())
    assert [a["num_keypoints"] for a in content["annotations"]] == numbers
    # All points that are labelled count: none of their objects is ignored.
    ap = ap_of_ground_truth(**{"TEST.KEYPOINT_OKS_SIGMAS": [0.05, 0.05]})
    assert ap == dict.fromkeys(("bbox", "segm", "keypoints"), pytest.approx(100))
    # Neither a training nor a model without keypoints needs them.
    for again in (sets.check(data, with_keypoints(), **KEYPOINTS_ON), sets.check(data, data)):
        assert [line for line in again if "iscrowd" not in line] == []


@pytest.mark.parametrize("iscrowd", [0, 1])
@pytest.mark.parametrize(
    "keypoints",
    [
        [5, 5, 2],
        "none",
        [5, 5, "2", 6, 6, "2"],
        [5, math.nan, 2, 6, 6, 2],
        [5, 10**400, 2, 6, 6, 2],
    ],
)
def test_malformed_keypoints_are_refused(sets, iscrowd, keypoints):
    data = with_keypoints()
    data["annotations"][0].update(iscrowd=iscrowd, keypoints=keypoints)
    message = sets.refused(with_keypoints(), data, **KEYPOINTS_ON)
    assert "my_val" in message and "1 of 6" in message and "three numbers" in message


@pytest.mark.parametrize("with_names", [True, False])
@pytest.mark.parametrize(
    "keypoints", ["none", 5, {"x": 5}, [[5, 5, 2], [6, 6, 2]], [5, None, 2], [10**400]]
)
def test_malformed_keypoints_do_a_model_without_keypoints_no_harm(sets, with_names, keypoints):
    data = with_keypoints() if with_names else good()
    data["annotations"][0]["keypoints"] = keypoints
    assert sets.check(data, data) == []
    objects = [a for record in DatasetCatalog.get("my_train") for a in record["annotations"]]
    assert len(objects) == 6 and "keypoints" not in objects[0]


@pytest.mark.parametrize("keypoints", [None, []])
def test_objects_without_keypoints_are_refused(sets, keypoints):
    data = with_keypoints()
    one("keypoints", keypoints)(data)
    assert "three numbers" in sets.refused(data, **KEYPOINTS_ON)
    assert "three numbers" in sets.refused(with_keypoints(), data, **KEYPOINTS_ON)


@pytest.mark.parametrize(
    ("flip", "names", "words"),
    [
        ("horizontal", ["Left eye", "Right eye"], []),
        ("horizontal", ["head", "tail"], ["2 of 2 keypoints", "(head; tail)", "left_eye and"]),
        ("horizontal", ["LEye", "REye"], ["2 of 2 keypoints", "(LEye; REye)"]),
        ("horizontal", ["l_eye", "r_ear"], ["2 of 2 keypoints", "(l_eye; r_ear)"]),
        ("horizontal", ["l_eye", "r_eye", "Left ear", "nose"], ["1 of 4 keypoints", "(Left ear)"]),
        ("horizontal", list("abcdef"), ["6 of 6 keypoints", "(a; b; c; d; e; and 1 more)"]),
        ("vertical", ["Left eye", "Right eye"], ["2 of 2 keypoints", "horizontal flips only"]),
        ("none", ["head", "tail"], []),
    ],
)
def test_keypoints_that_a_flip_leaves_are_said_before_training(sets, flip, names, words):
    data = with_keypoints(names)
    each("keypoints", [6, 6, 2] * len(names))(data)
    each("num_keypoints", len(names))(data)
    on = {"MODEL__ROI_KEYPOINT_HEAD__NUM_KEYPOINTS": len(names), "INPUT__RANDOM_FLIP": flip}
    said = sets.check(data, data, MODEL__KEYPOINT_ON=True, **on)
    assert len(said) == bool(words) and all(word in said[0] for word in words)
    assert all("'my_train'" in line and "INPUT.RANDOM_FLIP to 'none'" in line for line in said)
    assert sets.check(data, data, **on) == []


def test_images_of_a_class_are_counted_for_the_federated_loss(sets):
    data = good()
    data["annotations"] = [
        a for a in data["annotations"] if a["image_id"] == 1 or a["category_id"] == 1
    ]
    data["annotations"][1]["iscrowd"] = 1
    sets.check(data)
    counts = MetadataCatalog.get("my_train").class_image_count
    assert counts == [{"id": 1, "image_count": 2}, {"id": 2, "image_count": 0}]


def test_more_objects_than_detections(sets):
    data = many(40)
    assert any("TEST.DETECTIONS_PER_IMAGE" in line for line in sets.check(good(), data))
    for enough in (120, -1):
        assert sets.check(good(), data, TEST__DETECTIONS_PER_IMAGE=enough) == []


def test_an_image_with_as_many_objects_as_detections_is_no_example(sets):
    data = good()
    del data["annotations"][-1]
    (said,) = sets.check(good(), data, TEST__DETECTIONS_PER_IMAGE=2)
    assert "1 of 2 images have more objects" in said and "(image 1 has 3)." in said


def test_all_images_with_more_objects_than_detections_are_counted(sets):
    data = good()
    # Image 1 has 3 objects, and so has each of 29 more; image 2 has 2.
    del data["annotations"][-1]
    for i in range(3, 32):
        data["images"].append({**data["images"][0], "id": i, "file_name": f"{i}.png"})
        data["annotations"] += [
            {**a, "id": 10 * i + a["id"], "image_id": i} for a in data["annotations"][:3]
        ]
        Image.open(sets.images / "1.png").save(sets.images / f"{i}.png")
    (said,) = sets.check(good(), data, TEST__DETECTIONS_PER_IMAGE=2)
    assert "30 of 31 images have more objects" in said and "and 25 more" in said
    # From memory, with another limit.
    sets.caplog.clear()
    check_datasets(sets.config(TEST__DETECTIONS_PER_IMAGE=1))
    assert "31 of 31 images have more objects" in sets.caplog.text
    assert sets.check(good(), data, TEST__DETECTIONS_PER_IMAGE=3) == []


def test_images_are_kept_in_memory_only_as_long_as_they_are_read(sets):
    facts = images.look_at(str(sets.images / "1.png"), full=True)
    assert (facts.width, facts.height, facts.mode, facts.fault) == (WIDTH, HEIGHT, "RGB", "")
    assert io.BytesIO((sets.images / "1.png").read_bytes()).getbuffer().nbytes == facts.bytes
