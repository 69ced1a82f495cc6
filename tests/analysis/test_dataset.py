import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.config import get_cfg
from detectron2.structures import BoxMode
from matplotlib.figure import Figure

from mrcnn_plugin.analysis import dataset
from mrcnn_plugin.data.checks.annotations import Finding, check_content
from mrcnn_plugin.data.statistics import Statistics
from tests.small import full_config

SETTINGS = dataset.Settings(800, 1333, (32, 64, 128, 256, 512), (2, 5), 100)


@pytest.fixture
def saved(monkeypatch):
    """Figures that are saved, drawn but not written."""
    figures = []

    def keep(figure, file, **options):
        figure.set_dpi(options["dpi"])
        figure.draw_without_rendering()
        figures.append(figure)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def record(number, *boxes, size=(100, 80), **options):
    """An image of 100 x 80 px with objects (class, x, y, width, height), whose masks fill their boxes."""
    width, height = size
    annotations = []
    for category, x, y, w, h in boxes:
        polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
        annotations.append(
            {
                "bbox": [x, y, w, h],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": category,
                "segmentation": [polygon],
                "iscrowd": 0,
                **options,
            }
        )
    return {
        "file_name": f"folder/{number}.png",
        "image_id": number,
        "width": width,
        "height": height,
        "annotations": annotations,
    }


def read(file):
    return np.full((80, 100, 3), 200, np.uint8)


def with_objects(*numbers):
    """Statistics of one image with these numbers of objects of each class."""
    classes = np.repeat(np.arange(len(numbers)), numbers)
    sides = np.full(len(classes), 10.0)
    names = tuple(f"a class of number {c}" for c in range(len(numbers)))
    image = np.array([100])
    return Statistics(names, image, image, sides, sides, classes, np.zeros_like(classes), 0, 0)


# Numbers


def test_levels_are_those_of_the_paper():
    # Lin et al. 2017, equation 1: floor(4 + log2(size / 224)), within the levels that there are.
    sizes = np.array([1, 30, 111, 113, 223, 225, 447, 449, 895, 897, 5000], dtype=np.float64)
    expected = np.clip(np.floor(4 + np.log2(sizes / 224)), 2, 5)
    assert dataset.levels_of(sizes, (2, 5)).tolist() == expected.tolist()
    assert dataset.levels_of(sizes, (3, 4)).tolist() == np.clip(expected, 3, 4).tolist()


def test_settings_are_those_of_the_config():
    settings = dataset.Settings.of(full_config("mask_rcnn_focal.yaml"))
    assert settings == SETTINGS
    assert dataset.Settings.of(None) == SETTINGS
    cfg = get_cfg()
    assert dataset.Settings.of(cfg).levels is None
    cfg.merge_from_list(["MODEL.META_ARCHITECTURE", "RetinaNet", "INPUT.MIN_SIZE_TEST", 0])
    cfg.merge_from_list(["MODEL.ANCHOR_GENERATOR.SIZES", [[40, 50.8], [20]]])
    cfg.merge_from_list(["MODEL.ROI_HEADS.IN_FEATURES", ["p3", "p4"]])
    settings = dataset.Settings.of(cfg)
    assert (settings.min_size, settings.anchors, settings.levels) == (0, (20, 40, 50.8), None)
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [64, 16]
    assert dataset.Settings.of(cfg).anchors == (16, 64)
    cfg.merge_from_list(["MODEL.META_ARCHITECTURE", "PanopticFPN"])
    assert dataset.Settings.of(cfg).levels == (3, 4)


def test_the_summary_of_a_data_set():
    records = [
        record(1, (0, 0, 0, 10, 10), (2, 0, 0, 40, 10), (0, 0, 0, 10, 40)),
        record(2, size=(200, 160)),
        record(3, (2, 0, 0, 10, 10), (2, 0, 0, 1, 1)),
    ]
    statistics = Statistics.of(records, ["cat", "dog", "cow"])
    settings = dataset.Settings(160, 1333, (16, 32), (2, 5), 2)
    assert dataset.describe(statistics, settings) == [
        "3 images of 100 x 80 to 200 x 160 px; 1 without objects.",
        "5 objects of 2 classes: cow 3, cat 2. Without objects: dog.",
        "Object sizes in px of the image (root of the area of the box): median 10, 90 % in 3 to 20, all in 1 to 20.",
        "Object sizes in px of the input (root of the area of the box): median 20, 90 % in 6 to 40, all in 2 to 40. "
        "20.0 % are smaller than half of the smallest anchor (16), 0.0 % larger than twice the largest (32).",
        "Objects per image: 1.7 on average, at most 3. More than TEST.DETECTIONS_PER_IMAGE 2: 1 image.",
    ]


def test_the_summary_leaves_out_objects_without_a_size():
    settings = dataset.Settings(0, 0, (10,), None, 2)
    records = [record(1, (0, 0, 0, 20, 20), (0, 0, 0, 0, 20))]
    *_, sizes, numbers = dataset.describe(Statistics.of(records, ["cat"]), settings)
    assert "median 20, 90 % in 20 to 20, all in 20 to 20. 0.0 % are smaller" in sizes
    # No image has more objects than the limit.
    assert numbers == "Objects per image: 2.0 on average, at most 2."
    records = [record(1, (0, 0, 0, 0, 20))]
    # A negative number of detections is no limit.
    settings = dataset.Settings(0, 0, (10,), None, -1)
    *_, sizes, numbers = dataset.describe(Statistics.of(records, ["cat"]), settings)
    assert "all in 0 to 0. There are no objects." in sizes
    assert numbers == "Objects per image: 1.0 on average, at most 1."


def test_the_smallest_image_is_that_of_the_fewest_pixels():
    records = [record(1, size=(300, 10)), record(2, size=(100, 100)), record(3, size=(90, 200))]
    (line,) = dataset.describe(Statistics.of(records, ["cat"]), SETTINGS)
    assert line == "3 images of 300 x 10 to 90 x 200 px; 3 without objects."


def test_data_sets_without_images_or_objects_have_a_summary():
    assert dataset.describe(Statistics.of([], ["cat"]), SETTINGS) == ["The data set has no images."]
    statistics = Statistics.of([record(1)], ["cat"])
    assert dataset.describe(statistics, SETTINGS) == ["1 image of 100 x 80 px; 1 without objects."]


# Charts


def overlaps(artists):
    """Pairs of artists whose bounding boxes overlap."""
    boxes = [(a, a.get_window_extent()) for a in artists if a.get_text()]
    return [
        (a.get_text(), b.get_text())
        for i, (a, one) in enumerate(boxes)
        for b, other in boxes[i + 1 :]
        if one.overlaps(other)
    ]


@pytest.mark.parametrize("number", [1, 12, 31, 80, 300])
def test_no_labels_of_classes_overlap(saved, number):
    counts = [1 + 3 * (c % 7) for c in range(number)]
    # Of many classes, one has so many objects that the axis is logarithmic.
    counts[:1], counts[-1:] = [200000 if number > 12 else 50], [0 if number > 1 else 1234]
    dataset.plot_statistics(with_objects(*counts), SETTINGS, "title", "")
    *_, axes = saved[0].axes
    assert overlaps(axes.get_xticklabels()) == overlaps(axes.texts) == []
    numbers = [text for text in axes.texts if text.get_text() != "…"]
    assert len(numbers) == min(number, dataset.MAX_BARS)
    assert all(text.get_window_extent().y1 < axes.get_window_extent().y1 for text in numbers)
    shown = {text.get_text() for text in axes.get_xticklabels()}
    assert (f"a class of number {number - 1}" in shown) or number == 300
    assert ("40 with the fewest" in axes.get_title()) == (number == 300)


def test_bars_are_as_high_as_the_numbers(saved):
    records = [record(1, *[(1, 0, 0, 5, 5)] * 3), record(2, (0, 0, 0, 5, 5), (1, 0, 0, 50, 50))]
    dataset.plot_statistics(Statistics.of(records, ["a$b", "c"]), SETTINGS, "title", "")
    sizes, per_image, classes = saved[0].axes
    assert [bar.get_height() for bar in classes.patches] == [4, 1, 2, 1]
    assert [label.get_text() for label in classes.get_xticklabels()] == ["c", r"a\$b"]
    heights = [bar.get_height() for bar in per_image.patches]
    assert heights == [0, 0, 1, 1]
    # 5 px of an image whose shorter side of 80 px becomes 800 px are 50 px.
    assert sum(bar.get_height() for bar in sizes.patches) == 5
    labels = [text.get_text() for text in sizes.get_legend().get_texts()]
    assert labels[:4] == [
        "pooled from p2: 4 (80 %)",
        "pooled from p3: 0 (0 %)",
        "pooled from p4: 0 (0 %)",
        "pooled from p5: 1 (20 %)",
    ]


@pytest.mark.parametrize(
    ("records", "levels"),
    [([], (2, 5)), ([record(1)], None), ([record(1, (0, 0, 0, 0, 5))], (2, 5))],
)
def test_charts_of_data_sets_without_objects(saved, records, levels):
    settings = dataset.Settings(0, 0, (32,), levels, -1)
    dataset.plot_statistics(Statistics.of(records, ["cat"]), settings, "title", "")
    assert len(saved) == 1


def test_objects_that_all_have_the_size_of_the_only_anchor_are_drawn(saved):
    settings = dataset.Settings(0, 0, (32,), None, -1)
    statistics = Statistics.of([record(1, (0, 0, 0, 32, 32))], ["cat"])
    dataset.plot_statistics(statistics, settings, "title", "")
    assert sum(bar.get_height() for bar in saved[0].axes[0].patches) == 1


# Images


def test_samples_show_every_class_with_few_images_and_few_objects():
    classes = [{0}, {0, 1}, {0, 1}, {2}, set(), {0}]
    numbers = [1, 9, 2, 5, 0, 1]
    assert dataset.choose_samples(classes, numbers, least=2, most=5) == [2, 3]
    assert dataset.choose_samples(classes, numbers, least=1, most=1) == [2]
    # The others are spread over the images with objects.
    assert dataset.choose_samples(classes, numbers, least=4, most=5) == [0, 1, 2, 3]
    assert dataset.choose_samples(classes, numbers, least=9, most=9) == [0, 1, 2, 3, 5]
    assert dataset.choose_samples([set()], [0], least=3, most=5) == []


def test_a_page_of_samples_names_each_class(saved):
    records = [record(1, (0, 5, 5, 20, 20), (0, 40, 5, 20, 20), (1, 5, 40, 20, 20)), record(2)]
    dataset.plot_samples(records, Statistics.of(records, ["cat", "US$ or NZ$"]), read, "val", "")
    (axes,) = saved[0].axes
    assert axes.get_title() == "1.png"
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["cat 2", r"US\$ or NZ\$ 1"]
    assert saved[0].get_suptitle() == "Samples. val\nEvery class that has objects appears."
    # The colours of the legend are those of the objects.
    picture = axes.get_images()[0].get_array()
    colors = [patch.get_facecolor() for patch in axes.get_legend().get_patches()]
    scale = picture.shape[0] / 80
    for (x, y), color in zip(((15, 15), (50, 15), (15, 50)), (colors[0], *colors), strict=True):
        expected = 0.5 * 200 + 0.5 * 255 * np.array(color[:3])
        assert np.abs(picture[int(y * scale), int(x * scale), :3] - expected).max() < 8


def test_classes_that_do_not_fit_on_the_page_are_named(saved, monkeypatch):
    monkeypatch.setattr(dataset, "NUM_SAMPLES", 2)
    monkeypatch.setattr(dataset, "MAX_SAMPLES", 3)
    records = [record(c, (c, 5, 5, 20, 20)) for c in range(5)]
    names = [f"c{c}" for c in range(5)]
    dataset.plot_samples(records, Statistics.of(records, names), read, "val", "")
    assert "3 of 5 classes with objects appear, all but c3, c4." in saved[0].get_suptitle()
    assert len(saved[0].axes) == 3


def test_crowds_are_named_and_are_no_objects(saved):
    records = [record(1, (0, 5, 5, 20, 20)), record(2, (1, 5, 5, 20, 20), iscrowd=1)]
    records[0]["annotations"] += records[1]["annotations"]
    dataset.plot_samples(records, Statistics.of(records, ["cat", "dog"]), read, "val", "")
    (axes,) = saved[0].axes
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["cat 1", "dog (crowd) 1"]


def test_the_most_and_the_smallest_objects(saved):
    records = [
        record(1, (0, 5, 5, 20, 20), (0, 90, 70, 4, 3)),
        record(2, (0, 5, 5, 2, 3), (0, 1, 1, 9, 9), (0, 1, 1, 9, 9)),
        record(3, (0, 40, 40, 0, 3)),
    ]
    statistics = Statistics.of(records, ["cat"])
    dataset.plot_extremes(records, statistics, [], read, "val", "")
    titles = [axes.get_title() for axes in saved[0].axes]
    assert titles[:3] == ["2.png", "1.png", "3.png"]
    assert titles[3:] == [
        "2.png\nthe framed object has 2 x 3 px",
        "1.png\nthe framed object has 4 x 3 px",
    ]
    axes = saved[0].axes[4]
    # The window of 48 px is as far to the right and down as it can be, and the frame is around the object.
    assert axes.get_images()[0].get_extent() == [52, 100, 80, 32]
    x0, y0, x1, y1 = axes.patches[0].get_bbox().extents
    assert 85 < x0 < 90 and 94 < x1 < 99 and 65 < y0 < 70 and 73 < y1 < 78


def test_a_crowd_is_not_the_smallest_object_nor_no_object_the_most(saved):
    one, _ = records = [record(1, (0, 5, 5, 20, 20)), record(2)]
    one["annotations"] += record(1, (0, 50, 50, 2, 2), iscrowd=1)["annotations"]
    dataset.plot_extremes(records, Statistics.of(records, ["cat"]), [], read, "val", "")
    titles = [axes.get_title() for axes in saved[0].axes]
    assert titles == ["1.png", "1.png\nthe framed object has 20 x 20 px"]


def test_a_window_is_not_larger_than_the_image(saved):
    records = [record(1, (0, 5, 5, 9, 9), size=(40, 30))]
    statistics = Statistics.of(records, ["cat"])
    image = np.full((30, 40, 3), 200, np.uint8)
    dataset.plot_extremes(records, statistics, [], lambda file: image, "val", "")
    _, axes = saved[0].axes
    assert axes.get_images()[0].get_extent() == [0, 40, 30, 0]


@pytest.mark.parametrize("as_rle", [True, False])
def test_a_window_has_the_part_of_each_mask(as_rle):
    mask = np.zeros((80, 100), np.uint8)
    cv2.circle(mask, (50, 40), 20, 1, -1)
    annotation = record(1, (0, 30, 20, 41, 41))["annotations"][0]
    (contour,), _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    polygon = [contour.reshape(-1).astype(float).tolist()]
    annotation["segmentation"] = mask_util.encode(np.asfortranarray(mask)) if as_rle else polygon
    other = record(1, (0, 0, 0, 10, 10))["annotations"][0]
    image = np.arange(80 * 100 * 3, dtype=np.uint8).reshape(80, 100, 3)
    above, below = record(1, (0, 50, 0, 10, 30), (0, 50, 70, 10, 10))["annotations"]
    part, (kept,) = dataset._crop(image, [other, above, below, annotation], (40, 30, 90, 70))
    assert np.array_equal(part, image[30:70, 40:90])
    assert kept["bbox"] == [-10, -10, 31, 31]
    found = mask_util.decode(kept["segmentation"])
    assert (found != mask[30:70, 40:90]).sum() <= (0 if as_rle else 60)


def test_an_image_that_cannot_be_drawn_costs_no_other(saved):
    def read_one(file):
        if "1.png" in file:
            raise OSError("it is cut $off$")
        return read(file)

    records = [record(i, (0, 5, 5, 20, 20)) for i in (1, 2)]
    dataset.plot_samples(records, Statistics.of(records, ["cat"]), read_one, "val", "")
    one, two = saved[0].axes
    assert saved[0].get_suptitle() == "Samples. val"
    assert "cannot be drawn: it is cut" in one.texts[0].get_text()
    assert two.get_images()


def finding(kind, images):
    return Finding(kind, len(images), 99, list(images), images=list(images.values()))


def test_findings_name_their_images():
    records = [record(id) for id in (7, "a b", 9)]
    findings = [
        finding("bbox_overhang", {"annotation 3 of image 9: bbox [1, 2]": 9, "annotation 4": None}),
        finding("area_missing", {"annotation 3 of image 7": 7}),
        finding("segmentation_odd", {"annotations[5] of image 'a b'": "a b", "annotation 1": 8}),
        finding("file_size", {"folder/7.png is 3 x 4, not 4 x 3": "folder/7.png"}),
        finding("crowd", {"annotation 3 of image 9": 9}),
    ]
    assert dataset.find_images(findings, records) == [
        (2, "bbox_overhang: annotation 3: bbox [1, 2]"),
        (1, "segmentation_odd: annotations[5]"),
        (0, "file_size: is 3 x 4, not 4 x 3"),
    ]
    many = [finding("crowd", {f"annotation {i} of image {i}": i for i in range(99)})]
    found = dataset.find_images(many, [record(i) for i in range(99)])
    assert [index for index, _ in found] == list(range(8))


@pytest.mark.parametrize("id", ["the name of a camera: frame 7", "7" * 120, 7.0, "annotation"])
def test_a_fault_in_an_image_of_any_id_is_shown(id):
    content = {
        "images": [{"id": id, "file_name": "a.png", "height": 50, "width": 50}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": id, "category_id": 1, "bbox": [40, 5, 30, 30]}],
    }
    findings = check_content(content, masks=False)[0].findings
    ((index, text),) = dataset.find_images(findings, [record("other"), record(id)])
    assert index == 1 and text.startswith("bbox_overhang: annotation 1")
