import cv2
import numpy as np
import pytest
from detectron2.data import Metadata
from detectron2.structures import BoxMode

from mrcnn_plugin.analysis import coco, images
from tests.analysis.made import SIZE, ground_truth, results

A, B, C = (5, 5, 20, 20), (50, 10, 40, 30), (10, 60, 30, 30)
NOWHERE = (75, 75, 20, 20)


@pytest.fixture
def outcomes():
    """Image 1 is perfect, 2 misses two of three, 3 has two false detections, 4 has poor masks, 5 is empty."""
    objects = [(1, 3, A), (2, 3, A), (2, 3, B), (2, 7, C), (3, 3, A), (4, 3, A), (4, 7, B)]
    found = results(
        (1, 3, A, 0.9),
        (2, 3, A, 0.9),
        (3, 3, A, 0.9),
        (3, 3, A, 0.8),
        (3, 7, NOWHERE, 0.7),
        (4, 3, (5, 5, 20, 12), 0.9),
        (4, 3, B, 0.8),
    )
    return coco.match(ground_truth(objects, 5, [3, 7]), found, "segm", 0.5)


def test_the_worst_images(outcomes):
    ids = [[o.image_id for o in images.worst(outcomes, r.badness)] for r in images.RANKINGS]
    assert ids[0] == [2] and ids[1] == [3]
    # Those without an error come not at all.
    assert ids[2] == [4]
    assert images.mean_iou(outcomes[3]) == pytest.approx(0.6)


def test_the_worst_come_first_and_ties_in_order():
    def outcome(image_id, missed):
        return coco.Outcome(image_id, [], [{}] * missed, [])

    outcomes = [outcome(i, missed) for i, missed in enumerate([1, 0, 3, 1, 2, 1])]
    worst = images.worst(outcomes, images.RANKINGS[0].badness)
    assert [o.image_id for o in worst] == [2, 4, 0, 3]


def test_titles_say_how_bad_they_are(outcomes):
    assert [images.describe(outcome) for outcome in outcomes] == [
        "0 of 1 objects missed, 0 false\n1 found with mean IoU 1.00",
        "2 of 3 objects missed, 0 false\n1 found with mean IoU 1.00",
        "0 of 1 objects missed, 2 false\n1 found with mean IoU 1.00",
        "0 of 2 objects missed, 0 false\n1 found with mean IoU 0.60, 1 as another class",
        "0 of 0 objects missed, 0 false\n0 found",
    ]


@pytest.mark.parametrize("masks", [True, False])
def test_colours_are_those_of_the_legend(outcomes, masks):
    names = {3: "cat", 7: "dog"}
    black = np.zeros((SIZE, SIZE, 3), np.uint8)
    factor = images.PICTURE_SIZE / SIZE

    def color(outcome, x, y):
        return images.draw_outcome(black, outcome, names, masks)[int(y * factor), int(x * factor)]

    # The middle of a mask, or the right edge of a box.
    def place(x, y, w, h):
        return (x + w // 2, y + h // 2) if masks else (x + w, y + 3 * h // 4)

    red, green, blue = color(outcomes[1], *place(*B)).astype(int)
    assert red > 2 * max(green, blue) > 0
    red, green, blue = color(outcomes[1], *place(*A)).astype(int)
    assert green >= red and green > blue or not masks
    red, green, blue = color(outcomes[2], *place(*NOWHERE)).astype(int)
    assert red > green > 2 * blue
    red, green, blue = color(outcomes[3], *place(*B)).astype(int)
    assert blue > red > green


def test_a_damaged_image_does_not_cost_the_others(tmp_path, outcomes, capsys):
    files = {}
    for i in range(1, 6):
        files[i] = str(tmp_path / f"{i} of $5 and $6.png")
        cv2.imwrite(files[i], np.full((SIZE, SIZE, 3), 100, np.uint8))
    (tmp_path / "2 of $5 and $6.png").write_bytes(b"damaged")
    picture = str(tmp_path / "worst.png")
    images.plot_worst(outcomes, files, {3: "cat", 7: "dog"}, "segm", "val", picture)
    assert cv2.imread(picture).std() > 10
    assert "2 of $5 and $6.png cannot be read and is left out" in capsys.readouterr().out


@pytest.mark.parametrize("shape", [(20000, 40), (40, 20000), (1, 900)])
def test_no_side_of_a_thin_image_vanishes(outcomes, shape):
    thin = np.full((*shape, 3), 100, np.uint8)
    box = {"bbox": [0, 0, 1, 1], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    for drawn in (
        images.draw(thin, [box], ["cat", "dog"]),
        images.draw_outcome(thin, coco.Outcome(1, [], [], []), {}, True),
    ):
        height, width = drawn.shape[:2]
        assert min(height, width) >= 1
        assert height / width == pytest.approx(shape[0] / shape[1], rel=0.1)


def test_an_image_that_cannot_be_drawn_costs_no_other(tmp_path, outcomes, capsys):
    files = {i: str(tmp_path / f"{i}.png") for i in range(1, 6)}
    for file in files.values():
        cv2.imwrite(file, np.full((SIZE, SIZE, 3), 100, np.uint8))
    # Class 9 has no name.
    outcomes[1].missed[0]["category_id"] = 9
    picture = str(tmp_path / "worst.png")
    images.plot_worst(outcomes, files, {3: "cat", 7: "dog"}, "segm", "val", picture)
    assert cv2.imread(picture).std() > 10
    assert f"{files[2]} cannot be drawn and is left out" in capsys.readouterr().out

    metadata = Metadata(thing_dataset_id_to_contiguous_id={3: 0}, thing_classes=["cat"])
    good = {"bbox": [5, 5, 20, 20], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    dicts = [
        {
            "image_id": i,
            "file_name": files[i],
            "annotations": [good if i > 1 else {**good, "bbox": 3}],
        }
        for i in (1, 2)
    ]
    # The key may be missing for an image without objects.
    dicts.append({"image_id": 3, "file_name": files[3]})
    images.plot_predictions(dicts, [], metadata, picture)
    assert cv2.imread(picture).std() > 10
    assert f"{files[1]} cannot be drawn and is left out" in capsys.readouterr().out


def test_where_nothing_is_wrong(tmp_path):
    picture = str(tmp_path / "worst.png")
    perfect = coco.match(ground_truth([(1, 3, A)]), results((1, 3, A, 0.9)), "bbox", 0.5)
    images.plot_worst(perfect, {}, {3: "cat"}, "bbox", "val", picture)
    assert cv2.imread(picture) is not None
