import contextlib
import io
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances

from mrcnn_plugin.analysis import coco
from mrcnn_plugin.data import generate_shapes
from tests.analysis.made import SIZE, ground_truth, results

A, B, C = (5, 5, 20, 20), (50, 10, 40, 30), (10, 60, 30, 30)
OBJECTS = [(1, 3, A), (1, 7, B), (2, 3, C), (2, 7, A)]
PERFECT = [(*one, 0.9 - 0.1 * n) for n, one in enumerate(OBJECTS)]

both = pytest.mark.parametrize("task", ["bbox", "segm"])


def grid(number):
    return [(10 * (n % 10), 10 * (n // 10), 8, 8) for n in range(number)]


def confusion(truth, found, task="segm", min_score=0.5):
    outcomes = coco.match(truth, found, task, min_score)
    assert [outcome.image_id for outcome in outcomes] == sorted(truth.imgs)
    return coco.confusion_matrix(outcomes, sorted(truth.cats)).tolist()


# Matching. Rows are what is there, columns what was found: classes 3, 7, 9, background.


@both
def test_a_perfect_result(task):
    truth = ground_truth(OBJECTS)
    found = results(*PERFECT)
    assert confusion(truth, found, task) == [[2, 0, 0, 0], [0, 2, 0, 0], [0] * 4, [0] * 4]
    evaluated = coco.evaluate(truth, found, task)
    assert evaluated.ap() == evaluated.ap(0.75, index=0) == pytest.approx(100)
    np.testing.assert_allclose(evaluated.curve()[:, :2], 1)


@both
def test_everything_is_missed(task):
    truth = ground_truth(OBJECTS)
    # Where no object is.
    found = results((1, 3, (70, 70, 20, 20), 0.9), (2, 9, (70, 70, 20, 20), 0.8))
    expected = [[0, 0, 0, 2], [0, 0, 0, 2], [0] * 4, [1, 0, 1, 0]]
    assert confusion(truth, found, task) == expected
    assert coco.evaluate(truth, found, task).ap() == 0


@both
def test_no_detection_at_all(task):
    truth = ground_truth(OBJECTS)
    assert confusion(truth, [], task) == [[0, 0, 0, 2], [0, 0, 0, 2], [0] * 4, [0] * 4]
    evaluated = coco.evaluate(truth, [], task)
    assert evaluated.ap() == evaluated.ap(0.5, "small") == 0
    assert evaluated.curve(0.5)[:, 0].tolist() == [0] * 101


@both
def test_ids_may_be_larger_than_a_float_can_hold(task):
    truth = ground_truth(OBJECTS)
    for annotation in truth.dataset["annotations"]:
        annotation["id"] += 2**60
    truth.createIndex()
    found = results(*PERFECT)
    assert confusion(truth, found, task) == [[2, 0, 0, 0], [0, 2, 0, 0], [0] * 4, [0] * 4]


@both
def test_an_object_of_the_id_0_is_not_found_as_in_ap(task):
    truth = ground_truth(OBJECTS)
    for annotation in truth.dataset["annotations"]:
        annotation["id"] -= 1
    truth.createIndex()
    matrix = confusion(truth, results(*PERFECT), task)
    assert sum(matrix[i][i] for i in range(3)) == 3


@both
def test_two_classes_swapped(task):
    truth = ground_truth(OBJECTS)
    found = results(*[(i, {3: 7, 7: 3}[c], box, score) for i, c, box, score in PERFECT])
    assert confusion(truth, found, task) == [[0, 2, 0, 0], [2, 0, 0, 0], [0] * 4, [0] * 4]
    outcomes = coco.match(truth, found, task, 0.5)
    assert [len(o.swapped) for o in outcomes] == [2, 2] and not any(o.right for o in outcomes)
    assert coco.evaluate(truth, found, task).ap() == 0


@both
def test_duplicates_are_false_detections(task):
    truth = ground_truth(OBJECTS)
    found = results(*PERFECT, (1, 3, A, 0.55), (1, 9, A, 0.95))
    assert confusion(truth, found, task) == [[2, 0, 0, 0], [0, 2, 0, 0], [0] * 4, [1, 0, 1, 0]]


def test_the_higher_score_has_the_first_choice():
    truth = ground_truth([(1, 3, A)])
    # Both match, and the one with the smaller IoU has the higher score.
    better, worse = (5, 5, 20, 19), (5, 5, 20, 14)
    (outcome, _) = coco.match(truth, results((1, 3, better, 0.6), (1, 3, worse, 0.9)), "bbox", 0.5)
    ((detection, _, iou),) = outcome.pairs
    assert detection["bbox"] == list(worse) and iou == pytest.approx(0.7)
    assert [d["bbox"] for d in outcome.false] == [list(better)]


@pytest.mark.parametrize("height, matches", [(10, True), (9, False)])
def test_matches_begin_at_half_overlap(height, matches):
    truth = ground_truth([(1, 3, A)])
    found = results((1, 3, (5, 5, 20, height), 0.9))
    assert confusion(truth, found)[0] == ([1, 0, 0, 0] if matches else [0, 0, 0, 1])


@pytest.mark.parametrize("score, counts", [(0.5, True), (0.499, False)])
def test_detections_of_low_scores_do_not_count(score, counts):
    truth = ground_truth([(1, 3, A)])
    assert confusion(truth, results((1, 3, A, score)))[0] == (
        [1, 0, 0, 0] if counts else [0, 0, 0, 1]
    )


@both
def test_objects_of_any_size_and_any_number_of_detections_match(task):
    truth = ground_truth([(1, 3, box) for box in grid(100)])
    for one in truth.anns.values():
        one["area"] = 1e6
    large = (1, 3, (0, 0, 100, 100), 0.95)
    found = results(*[large] * 201, *[(1, 3, box, 0.9) for box in grid(100)])
    assert confusion(truth, found, task) == [[100, 0, 0, 0], [0] * 4, [0] * 4, [201, 0, 0, 0]]


@both
def test_detections_in_a_crowd_of_their_class_do_not_count(task):
    truth = ground_truth([(1, 3, B, True), (1, 7, A)])
    inside = (55, 12, 10, 10)
    found = results((1, 3, inside, 0.9), (1, 3, B, 0.8), (1, 7, A, 0.7))
    assert confusion(truth, found, task) == [[0] * 4, [0, 1, 0, 0], [0] * 4, [0] * 4]
    # One of another class is false, as for COCO's AP.
    found = results((1, 9, inside, 0.9), (1, 9, B, 0.8))
    assert confusion(truth, found, task) == [[0] * 4, [0, 0, 0, 1], [0] * 4, [0, 0, 2, 0]]
    assert coco.evaluate(truth, found, task).num_objects[:, 0].tolist() == [0, 1, 0]


def test_a_class_without_objects():
    truth = ground_truth(OBJECTS)
    evaluated = coco.evaluate(truth, results(*PERFECT, (1, 9, A, 0.9)), "segm")
    assert math.isnan(evaluated.ap(index=2)) and np.isnan(evaluated.curve()[:, 2]).all()
    assert evaluated.num_objects.tolist() == [[2, 2, 0, 0], [2, 1, 1, 0], [0] * 4]
    # COCO leaves it out of the mean.
    assert evaluated.ap() == pytest.approx(100)
    assert math.isnan(evaluated.ap(size="large"))


def test_objects_on_the_border_of_two_sizes_count_for_both():
    truth = ground_truth([(1, 3, (0, 0, 32, 32)), (1, 7, (0, 0, 96, 96))])
    assert coco.evaluate(truth, [], "bbox").num_objects.tolist() == [
        [1, 1, 1, 0],
        [1, 0, 1, 1],
        [0] * 4,
    ]


@pytest.mark.parametrize("max_detections, ap", [(100, 100), (20, 95)])
def test_only_so_many_detections_of_an_image_count(max_detections, ap):
    truth = ground_truth([(1, 3, box) for box in grid(21)])
    found = results(*[(1, 3, box, 0.9 - 0.01 * n) for n, box in enumerate(grid(21))])
    evaluated = coco.evaluate(truth, found, "bbox", max_detections)
    assert evaluated.ap() == pytest.approx(ap, abs=0.1)


def test_of_keypoints_20_detections_count_with_the_sigmas_of_coco():
    content = ground_truth([(1, 3, box) for box in grid(21)]).dataset
    found = results(*[(1, 3, box, 0.9 - 0.01 * n) for n, box in enumerate(grid(21))])
    for one, detection in zip(content["annotations"], found, strict=True):
        x, y, *_ = one["bbox"]
        one["area"] = 2000.0
        one["keypoints"] = detection["keypoints"] = [x, y, 2] * 17
        one["num_keypoints"] = 17
    truth = coco._subset(SimpleNamespace(dataset=content), content["annotations"])
    assert coco.evaluate(truth, found, "keypoints").ap() == pytest.approx(95, abs=0.1)


def test_the_size_of_keypoints_is_that_of_their_box():
    content = ground_truth([(1, 3, (0, 0, 40, 40))]).dataset
    content["annotations"][0].update(keypoints=[5, 5, 2] * 17, num_keypoints=17)
    # A false one of a large box, whose keypoints are on a medium part of it.
    found = results((1, 3, (0, 0, 40, 40), 0.5), (1, 3, (0, 0, 100, 100), 0.9))
    for detection, low, high in zip(found, (5, 50), (5, 90), strict=True):
        detection["keypoints"] = [low, low, 2] * 16 + [high, high, 2]
    truth = coco._subset(SimpleNamespace(dataset=content), content["annotations"])
    evaluated = coco.evaluate(truth, found, "keypoints")
    assert evaluated.ap(size="medium") == pytest.approx(100)
    assert evaluated.ap() == pytest.approx(50)


def test_the_order_in_the_file_does_not_matter():
    truth = ground_truth(OBJECTS, categories=(9, 3, 7))
    truth.imgs = dict(reversed(truth.imgs.items()))
    assert coco.class_names(truth) == ["class 3", "class 7", "class 9"]
    assert confusion(truth, results(*PERFECT)) == [[2, 0, 0, 0], [0, 2, 0, 0], [0] * 4, [0] * 4]


def test_boxes_are_there_without_results():
    assert coco.tasks([]) == ["bbox"]


def test_the_iou_of_masks_is_not_that_of_boxes():
    truth = ground_truth([(1, 3, (0, 0, 40, 40))])
    (found,) = results((1, 3, (0, 0, 40, 40), 0.9))
    found["segmentation"] = results((1, 3, (0, 0, 40, 24), 0.9))[0]["segmentation"]
    for task, iou in (("bbox", 1.0), ("segm", 0.6)):
        outcome = coco.match(truth, [found], task, 0.5)[0]
        assert outcome.pairs[0][2] == pytest.approx(iou)


def test_results_are_left_as_they_are():
    found = results(*PERFECT)
    before = json.dumps(found)
    truth = ground_truth(OBJECTS)
    coco.evaluate(truth, found, "segm")
    coco.match(truth, found, "bbox", 0.5)
    assert json.dumps(found) == before


# Against COCOEvaluator


@pytest.fixture
def shapes(tmp_path, register):
    register("shapes_to_evaluate", generate_shapes(str(tmp_path / "shapes"), 8, seed=3))
    return "shapes_to_evaluate"


@pytest.mark.parametrize("max_detections", [100, 3])
def test_ap_is_that_of_coco_evaluator(tmp_path, shapes, max_detections):
    rng = np.random.default_rng(0)
    evaluator = COCOEvaluator(
        shapes, output_dir=str(tmp_path), max_dets_per_image=max_detections, distributed=False
    )
    evaluator.reset()
    truth = coco.load_ground_truth(shapes, str(tmp_path))
    for d in DatasetCatalog.get(shapes):
        instances = Instances((d["height"], d["width"]))
        objects = truth.imgToAnns[d["image_id"]]
        masks = np.stack(
            [np.roll(truth.annToMask(a), rng.integers(0, 5, 2), (0, 1)) for a in objects]
        )
        boxes = np.array([a["bbox"] for a in objects]) + rng.uniform(-3, 3, (len(objects), 4))
        boxes[:, 2:] += boxes[:, :2]
        instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
        instances.scores = torch.tensor(rng.uniform(0.1, 1, len(objects)))
        classes = [a["category_id"] - 1 for a in objects]
        classes[0] = int(rng.integers(4))
        instances.pred_classes = torch.tensor(classes)
        instances.pred_masks = torch.tensor(masks.astype(bool))
        evaluator.process([{"image_id": d["image_id"]}], [{"instances": instances}])
    with contextlib.redirect_stdout(io.StringIO()):
        expected = evaluator.evaluate()

    file = str(tmp_path / "coco_instances_results.json")
    found = coco.read_results(file)
    coco.check_results(truth, found, file)
    assert coco.tasks(found) == ["bbox", "segm"]
    names = coco.class_names(truth)
    assert names == MetadataCatalog.get(shapes).thing_classes
    for task in ("bbox", "segm"):
        evaluated = coco.evaluate(truth, found, task, max_detections)
        actual = {
            "AP": evaluated.ap(),
            "AP50": evaluated.ap(0.5),
            "AP75": evaluated.ap(0.75),
            "APs": evaluated.ap(size="small"),
            "APm": evaluated.ap(size="medium"),
            "APl": evaluated.ap(size="large"),
            **{f"AP-{name}": evaluated.ap(index=i) for i, name in enumerate(names)},
        }
        assert actual == pytest.approx(expected[task], nan_ok=True)
        assert 0 < actual["AP"] < 100
        # AP is the mean of the curve that is drawn.
        drawn = 100 * evaluated.curve().mean(axis=0)
        assert drawn.tolist() == pytest.approx([expected[task][f"AP-{name}"] for name in names])


def test_ap_of_keypoints_is_that_of_coco_evaluator(tmp_path):
    rng, sigmas = np.random.default_rng(0), [0.05, 0.1, 0.2]
    large = (0, 0, 99, 99)
    content = ground_truth([*OBJECTS, (1, 9, large), (2, 9, large), (2, 9, B)]).dataset
    for number, one in enumerate(content["annotations"]):
        x, y, width, height = one["bbox"]
        points = rng.uniform((x, y), (x + width, y + height), (3, 2))
        labelled = number > 0
        one["keypoints"] = np.insert(points * labelled, 2, 2 * labelled, axis=1).ravel().tolist()
        one["num_keypoints"] = 3 * labelled
    file = tmp_path / "keypoints.json"
    file.write_text(json.dumps(content))
    name = "keypoints_to_evaluate"
    classes = {category["id"]: i for i, category in enumerate(content["categories"])}
    MetadataCatalog.get(name).set(
        json_file=str(file),
        thing_dataset_id_to_contiguous_id=classes,
        thing_classes=["a", "b", "c"],
    )
    try:
        evaluator = COCOEvaluator(
            name, output_dir=str(tmp_path), kpt_oks_sigmas=sigmas, distributed=False
        )
        truth = coco.load_ground_truth(name, str(tmp_path))
    finally:
        MetadataCatalog.remove(name)
    evaluator.reset()
    for image_id in (1, 2):
        objects = truth.imgToAnns[image_id]
        boxes = np.array([a["bbox"] for a in objects])
        boxes[:, 2:] += boxes[:, :2]
        points = np.array([a["keypoints"] for a in objects]).reshape(-1, 3, 3)
        points[:, :, :2] += rng.normal(0, 4, points[:, :, :2].shape)
        instances = Instances((SIZE, SIZE))
        instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
        instances.scores = torch.tensor(rng.uniform(0.1, 1, len(objects)))
        instances.pred_classes = torch.tensor([classes[a["category_id"]] for a in objects])
        instances.pred_keypoints = torch.tensor(points, dtype=torch.float32)
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    with contextlib.redirect_stdout(io.StringIO()):
        expected = evaluator.evaluate()["keypoints"]

    found = coco.read_results(str(tmp_path / "coco_instances_results.json"))
    assert coco.tasks(found) == ["bbox", "keypoints"]
    evaluated = coco.evaluate(truth, found, "keypoints", sigmas=sigmas)
    actual = {
        "AP": evaluated.ap(),
        "AP50": evaluated.ap(0.5),
        "AP75": evaluated.ap(0.75),
        "APm": evaluated.ap(size="medium"),
        "APl": evaluated.ap(size="large"),
    }
    assert actual == pytest.approx({key: expected[key] for key in actual})
    assert 0 < actual["AP"] < 100 and actual["APm"] != actual["APl"]
    # COCO's evaluation of keypoints knows no small objects.
    assert math.isnan(evaluated.ap(size="small"))
    # The first object has no labelled keypoint.
    assert evaluated.num_objects.tolist() == [[1, 0, 0, 0], [2, 0, 1, 0], [3, 0, 1, 2]]
    assert coco.evaluate(truth, [], "keypoints", sigmas=sigmas).ap() == 0


# Files


def test_without_a_results_file(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"evaluate first \(tools/train_net.py --eval-only\)"
    ):
        coco.read_results(str(tmp_path / "coco_instances_results.json"))


@pytest.mark.parametrize("content, message", [('[{"image_id"', "is no JSON"), ("{}", "is no list")])
def test_a_damaged_results_file(tmp_path, content, message):
    file = tmp_path / "coco_instances_results.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=f"results.json {message}.*evaluate again"):
        coco.read_results(str(file))


@pytest.mark.parametrize("key", ["image_id", "category_id"])
def test_results_of_another_data_set(key):
    truth = ground_truth(OBJECTS)
    found = results(*PERFECT)
    found[1][key] = 50
    with pytest.raises(ValueError, match=f"r.json has 1 values of {key} .* the first 50"):
        coco.check_results(truth, found, "r.json")
    found[0][key], found[2][key] = "a text", 50
    with pytest.raises(ValueError, match=f"r.json has 2 values of {key} .* the first 'a text'"):
        coco.check_results(truth, found, "r.json")


def test_a_data_set_without_a_json_file(tmp_path, shapes):
    dicts = DatasetCatalog.get(shapes)
    name = "shapes_from_a_function"
    DatasetCatalog.register(name, lambda: dicts)
    try:
        MetadataCatalog.get(name).set(thing_classes=MetadataCatalog.get(shapes).thing_classes)
        truth = coco.load_ground_truth(name, str(tmp_path))
        original = coco.load_ground_truth(shapes, str(tmp_path))
        assert len(truth.anns) == len(original.anns) > 0
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_objects_of_unknown_images_do_not_count(tmp_path):
    # Detectron2 loads and evaluates such a data set too, if nothing checks it before.
    known = ground_truth(OBJECTS)
    content = ground_truth([*OBJECTS, (3, 3, A)]).dataset
    assert [image["id"] for image in content["images"]] == [1, 2]
    (tmp_path / "test.json").write_text(json.dumps(content))
    name = "with_unknown_images"
    try:
        MetadataCatalog.get(name).set(json_file=str(tmp_path / "test.json"))
        truth = coco.load_ground_truth(name, str(tmp_path))
    finally:
        MetadataCatalog.remove(name)
    assert truth.anns == known.anns
    assert confusion(truth, [])[0] == [0, 0, 0, 2]


def test_a_data_set_without_annotations(tmp_path):
    file = tmp_path / "test.json"
    file.write_text('{"images": [], "categories": []}')
    name = "no_annotations"
    try:
        MetadataCatalog.get(name).set(json_file=str(file))
        with pytest.raises(ValueError, match="'no_annotations' has no annotations"):
            coco.load_ground_truth(name, str(tmp_path))
    finally:
        MetadataCatalog.remove(name)


def test_a_file_of_ground_truth_may_be_remote(shapes, tmp_path, monkeypatch):
    local = MetadataCatalog.get(shapes).json_file
    name = f"remote_{tmp_path.name}"
    MetadataCatalog.get(name).json_file = "store://instances.json"
    monkeypatch.setattr(
        coco.PathManager, "get_local_path", {"store://instances.json": local}.__getitem__
    )
    try:
        assert coco.load_ground_truth(name, str(tmp_path)).anns
    finally:
        MetadataCatalog.remove(name)
