"""The statistics of a data set, against pycocotools and Detectron2's own resizing."""

import json

import numpy as np
import pytest
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from pycocotools.coco import COCO

from mrcnn_plugin.data import generate_shapes
from mrcnn_plugin.data.statistics import Statistics, input_scale


@pytest.fixture
def coco(tmp_path):
    generate_shapes(str(tmp_path), 6, seed=3)
    file = tmp_path / "instances.json"
    content = json.loads(file.read_text())
    content["images"].append({"id": 99, "file_name": "none.png", "width": 30, "height": 20})
    content["annotations"][0]["iscrowd"] = 1
    file.write_text(json.dumps(content))
    return COCO(str(file))


def test_statistics_agree_with_pycocotools(coco, tmp_path):
    from detectron2.data.datasets import load_coco_json

    dicts = load_coco_json(str(tmp_path / "instances.json"), str(tmp_path), "statistics_test")
    found = Statistics.of(dicts, [category["name"] for category in coco.cats.values()])
    images = coco.getImgIds()
    objects = coco.loadAnns(coco.getAnnIds(iscrowd=False))
    assert len(objects) < len(coco.anns)
    assert found.class_names == tuple(coco.cats[id]["name"] for id in coco.getCatIds())
    assert found.image_widths[-1] == 30 and found.image_heights[-1] == 20
    assert sorted(found.widths * found.heights) == pytest.approx(
        sorted(o["bbox"][2] * o["bbox"][3] for o in objects)
    )
    np.testing.assert_allclose(found.sizes**2, found.widths * found.heights)
    assert list(found.objects_per_image) == [
        len(coco.getAnnIds([id], iscrowd=False)) for id in images
    ]
    assert list(found.objects_per_class) == [
        len(coco.getAnnIds(catIds=[id], iscrowd=False)) for id in coco.getCatIds()
    ]
    assert list(found.images_per_class) == [
        sum(bool(coco.getAnnIds([image], [id], iscrowd=False)) for image in images)
        for id in coco.getCatIds()
    ]
    assert found.polygons + found.bitmasks == len(objects)


def test_boxes_of_other_modes_and_objects_without_masks():
    dicts = [
        {
            "width": 10,
            "height": 20,
            "annotations": [
                {"bbox": [1, 2, 4, 8], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1},
                {"bbox": [1, 2, 4, 8], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0},
            ],
        }
    ]
    found = Statistics.of(dicts, ["a", "b", "c"])
    assert list(found.classes) == [1, 0]
    assert list(found.widths) == [3, 4] and list(found.heights) == [6, 8]
    assert (found.polygons, found.bitmasks) == (0, 0)
    assert list(found.images_per_class) == [1, 1, 0]


def test_a_data_set_without_objects():
    found = Statistics.of([{"width": 10, "height": 20}], ["a"])
    assert found.sizes.shape == found.sizes_in_input(40, 100).shape == (0,)
    assert list(found.objects_per_image) == list(found.images_per_class) == [0]


@pytest.mark.parametrize(("width", "height"), [(100, 50), (37, 91), (2000, 400)])
def test_the_input_scale_is_that_of_detectron2(width, height):
    image = np.zeros((height, width, 3), dtype=np.uint8)
    new = T.ResizeShortestEdge(128, 512).get_transform(image).apply_image(image)
    scale = input_scale(width, height, 128, 512)
    assert scale**2 * width * height == pytest.approx(new.shape[0] * new.shape[1])
    assert input_scale(width, height, 0, 512) == 1
    found = Statistics.of(
        [
            {"width": 5, "height": 5},
            {
                "width": width,
                "height": height,
                "annotations": [
                    {"bbox": [0, 0, 9, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
                ],
            },
        ],
        ["a"],
    )
    assert found.sizes_in_input(128, 512) == pytest.approx([6 * scale])
