import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from mrcnn_plugin.data import generate_shapes, register_shapes, shapes
from mrcnn_plugin.data.shapes import CLASSES, Scene, draw_shapes, register_scene
from tests.small import ROOT

SEED = 7


def _files(root):
    root = Path(root)
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def _load(json_file):
    return json.loads(Path(json_file).read_text())


@pytest.fixture(scope="module")
def drawn():
    return [draw_shapes(SEED, i) for i in range(60)]


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes") / "data"
    generate_shapes(str(root), 8, SEED, (96, 160))
    return root


# Determinism


def test_the_same_arguments_give_the_same_bytes(generated, tmp_path):
    generate_shapes(str(tmp_path / "again"), 8, SEED, (96, 160))
    assert _files(tmp_path / "again") == _files(generated)


def test_an_image_does_not_depend_on_how_many_there_are(generated, tmp_path):
    generate_shapes(str(tmp_path / "fewer"), 3, SEED, (96, 160))
    fewer, all = _files(tmp_path / "fewer"), _files(generated)
    assert all[os.path.join("images", "000002.png")] == fewer[os.path.join("images", "000002.png")]
    annotations = [a for a in _load(generated / "instances.json")["annotations"] if a["id"] < 10]
    assert annotations == _load(tmp_path / "fewer" / "instances.json")["annotations"][:9]


def test_seeds_and_indices_give_different_images():
    images = [draw_shapes(seed, index)[0].tobytes() for seed in (1, 2) for index in (1, 2)]
    assert len(set(images)) == 4


# What is drawn is what is annotated


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    index=st.integers(0, 2**20),
    size=st.tuples(st.integers(64, 150), st.integers(64, 150)),
)
def test_masks_are_disjoint_visible_and_inside_the_image(seed, index, size):
    image, instances = draw_shapes(seed, index, size)
    assert image.shape == (*size, 3) and image.dtype == np.uint8
    assert 2 <= len(instances) <= 9
    assert all(0 <= class_index < len(CLASSES) for class_index, _ in instances)
    masks = np.stack([mask for _, mask in instances])
    assert masks.shape[1:] == size and masks.dtype == bool
    assert masks.sum(0).max() == 1
    assert masks.sum((1, 2)).min() >= 24


def test_mask_outlines_lie_on_the_edges_of_the_image(drawn):
    # If an outline is moved by one pixel in any direction, the edges below it are weaker. Therefore axes
    # are not swapped, nothing is off by a pixel, and masks have the visible parts only.
    def contrast(image, mask, dy, dx):
        mask = np.roll(mask, (dy, dx), (0, 1))[4:-4, 4:-4]
        image = image[4:-4, 4:-4].astype(float)
        across = mask[:, 1:] != mask[:, :-1]
        down = mask[1:] != mask[:-1]
        return (
            np.abs(np.diff(image, axis=1))[across].sum()
            + np.abs(np.diff(image, axis=0))[down].sum()
        )

    total = {
        (dy, dx): sum(contrast(image, m, dy, dx) for image, shown in drawn for _, m in shown)
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
    }
    best = total.pop((0, 0))
    assert best > 1.3 * max(total.values())


def test_every_pixel_of_a_mask_shows_its_shape(monkeypatch):
    # With plain colours instead of textures, the inside of each mask has one colour, up to noise. This
    # would not hold for a mask with pixels of another shape, or with the background inside a ring.
    monkeypatch.setattr(
        shapes,
        "_texture",
        lambda rng, size, color: np.broadcast_to(color, (*size, 3)).astype(np.float32),
    )
    for index in range(40):
        image, instances = draw_shapes(SEED, index)
        background = ~np.any([mask for _, mask in instances], axis=0)
        for mask in [background] + [mask for _, mask in instances]:
            inside = ndimage.binary_erosion(mask)
            colors = image[inside & (image.min(2) > 30) & (image.max(2) < 225)]
            if len(colors) > 20:
                assert colors.std(0).max() < 14


def test_unoccluded_shapes_have_the_area_and_holes_of_their_class(drawn):
    # The area as a fraction of that of the circumscribed circle and of the convex hull, from geometry.
    expected = {
        "disc": ((1, 1), (1, 1)),
        "square": ((2 / np.pi, 2 / np.pi), (1, 1)),
        "triangle": ((0.75 * np.sqrt(3) / np.pi, 0.75 * np.sqrt(3) / np.pi), (1, 1)),
        "ring": ((1 - 0.65**2, 1 - 0.45**2), (1 - 0.65**2, 1 - 0.45**2)),
    }
    met = set()
    for _, instances in drawn:
        for i, (class_index, mask) in enumerate(instances):
            others = np.any([m for j, (_, m) in enumerate(instances) if j != i], axis=0)
            alone = not (ndimage.binary_dilation(mask) & others).any()
            touches_border = mask[[0, -1]].any() or mask[:, [0, -1]].any()
            if not alone or touches_border or mask.sum() < 400:
                continue
            name = CLASSES[class_index]
            # The circle has to enclose whole pixels, and not only their centres.
            grown = np.kron(mask, np.ones((4, 4)))
            points = np.argwhere(grown).astype(np.float32) / 4
            _, radius = cv2.minEnclosingCircle(points)
            circle = np.pi * (radius - 0.3) ** 2
            hull = cv2.contourArea(cv2.convexHull(points))
            for area, (low, high) in zip((circle, hull), expected[name], strict=True):
                assert low - 0.07 < mask.sum() / area < high + 0.07, name
            assert ndimage.label(~mask)[1] - 1 == (name == "ring")
            met.add(name)
    assert met == set(CLASSES)


def test_images_hold_small_and_large_shapes_and_shapes_that_cover_others(drawn):
    sides = [
        max(np.ptp(np.argwhere(mask), axis=0)) + 1
        for _, instances in drawn
        for _, mask in instances
    ]
    assert 8 <= min(sides) < 18 and 50 < max(sides) <= 59
    assert {len(instances) for _, instances in drawn} >= {4, 5, 6, 7, 8, 9}
    covered = 0
    for _, instances in drawn:
        for class_index, mask in instances:
            inner = mask[1:-1, 1:-1].sum() == mask.sum()
            if CLASSES[class_index] == "disc" and inner:
                (contour, *_), _ = cv2.findContours(
                    mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
                )
                _, radius = cv2.minEnclosingCircle(contour)
                covered += mask.sum() < 0.85 * np.pi * radius**2
    assert covered > 0


def test_a_scene_draws_its_sizes_numbers_and_frequencies():
    scene = Scene(diameter=(0.08, 0.2), number=(3, 5), frequency=(8.0, 4.0, 2.0, 1.0))
    images = [draw_shapes(SEED, i, scene=scene)[1] for i in range(150)]
    assert {len(image) for image in images} == {3, 4, 5}
    counts = np.bincount([one[0] for image in images for one in image], minlength=4)
    expected = counts.sum() * np.array([8, 4, 2, 1]) / 15
    # The tolerance is four standard deviations of a binomial distribution, and a tenth for shapes that
    # find no room.
    assert (np.abs(counts - expected) < 4 * np.sqrt(expected) + 0.1 * expected).all()
    sides = [np.ptp(np.argwhere(mask), axis=0).max() + 1 for image in images for _, mask in image]
    assert 0.85 * 0.2 * 128 < max(sides) <= 0.2 * 128 + 1


# Files


def test_a_scene_is_part_of_what_a_folder_holds(tmp_path):
    root = str(tmp_path / "data")
    scene = Scene(number=(2, 3), frequency=(0, 0, 1, 0))
    annotations = _load(generate_shapes(root, 5, SEED, scene=scene))["annotations"]
    assert {a["category_id"] for a in annotations} == {CLASSES.index("triangle") + 1}
    assert 10 <= len(annotations) <= 15
    generate_shapes(root, 5, SEED, scene=scene)
    with pytest.raises(FileExistsError, match=r"scene.number \[2, 3\] instead of None"):
        generate_shapes(root, 5, SEED)


@pytest.mark.parametrize(
    "scene, message",
    [
        (Scene(diameter=(0.5, 0.4)), r"diameter is \(0.5, 0.4\); it must be 0 < smallest"),
        (Scene(number=(0, 4)), r"number is \(0, 4\); it must be 1 <= fewest"),
        (Scene(frequency=(1.0, 1.0)), r"frequency is \(1.0, 1.0\); it must be 4 numbers"),
        (Scene(frequency=(1.0, -1.0, 0.0, 0.0)), "none negative"),
    ],
)
def test_scenes_that_cannot_be_drawn_are_errors(tmp_path, scene, message):
    with pytest.raises(ValueError, match=message):
        generate_shapes(str(tmp_path / "data"), 1, SEED, scene=scene)


def test_annotations_describe_the_masks(generated):
    data = _load(generated / "instances.json")
    assert [c["name"] for c in data["categories"]] == list(CLASSES)
    assert len({a["id"] for a in data["annotations"]}) == len(data["annotations"])
    assert min(a["id"] for a in data["annotations"]) == 1
    for index, image in enumerate(data["images"]):
        drawn_image, instances = draw_shapes(SEED, index, (96, 160))
        on_disk = cv2.imread(str(generated / "images" / image["file_name"]))
        assert (image["height"], image["width"]) == on_disk.shape[:2] == (96, 160)
        assert np.array_equal(on_disk, drawn_image)
        annotations = [a for a in data["annotations"] if a["image_id"] == image["id"]]
        assert len(annotations) == len(instances)
        for annotation, (class_index, mask) in zip(annotations, instances, strict=True):
            assert annotation["category_id"] == class_index + 1
            assert annotation["iscrowd"] == 0
            assert np.array_equal(mask_util.decode(annotation["segmentation"]), mask)
            assert annotation["area"] == mask.sum()
            y, x = np.nonzero(mask)
            width, height = x.max() - x.min() + 1, y.max() - y.min() + 1
            assert annotation["bbox"] == [x.min(), y.min(), width, height]


def test_a_second_call_uses_the_files_that_are_there(generated):
    before = {p: p.stat().st_mtime_ns for p in generated.rglob("*")}
    assert generate_shapes(str(generated), 8, SEED, (96, 160)) == str(generated / "instances.json")
    assert {p: p.stat().st_mtime_ns for p in generated.rglob("*")} == before


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "data").mkdir()
    assert os.path.isfile(generate_shapes(str(tmp_path / "data"), 1, SEED))


def test_a_killed_generation_is_not_taken_for_a_finished_one(tmp_path):
    root = tmp_path / "data"
    script = f"""
import os, cv2
from mrcnn_plugin.data import generate_shapes
write = cv2.imwrite
def write_or_die(path, image):
    if path.endswith("000002.png"):
        os.kill(os.getpid(), {int(signal.SIGKILL)})
    return write(path, image)
cv2.imwrite = write_or_die
generate_shapes({str(root)!r}, 4, {SEED})
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
    assert not root.exists()
    generate_shapes(str(root), 4, SEED)
    assert len(list((root / "images").iterdir())) == 4


def test_an_interrupted_generation_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(path, image):
        raise KeyboardInterrupt

    monkeypatch.setattr(cv2, "imwrite", interrupt)
    with pytest.raises(KeyboardInterrupt):
        generate_shapes(str(tmp_path / "data"), 4, SEED)
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_comes_second_uses_the_files_of_the_first(tmp_path, monkeypatch):
    root, first = str(tmp_path / "data"), []
    write = shapes._write

    def write_after_another_process(*arguments):
        if not first:
            first.append(True)
            generate_shapes(root, 4, SEED)
        write(*arguments)

    monkeypatch.setattr(shapes, "_write", write_after_another_process)
    assert os.path.isfile(generate_shapes(root, 4, SEED))
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_another_data_set_is_not_overwritten(generated):
    before = _files(generated)
    with pytest.raises(FileExistsError, match=r"num_images 8 instead of 9.*Delete this folder"):
        generate_shapes(str(generated), 9, SEED, (96, 160))
    assert _files(generated) == before


@pytest.mark.parametrize("content", ['{"images": []}', "[]", "not JSON"])
def test_a_folder_of_the_user_is_not_overwritten(tmp_path, content):
    (tmp_path / "instances.json").write_text(content)
    with pytest.raises(FileExistsError, match="other than a generated.*into another one"):
        generate_shapes(str(tmp_path), 4, SEED)
    assert (tmp_path / "instances.json").read_text() == content


def test_a_file_in_place_of_the_folder_is_not_overwritten(tmp_path):
    (tmp_path / "data").write_text("mine")
    with pytest.raises(FileExistsError):
        generate_shapes(str(tmp_path / "data"), 4, SEED)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((0, 1), "num_images is 0; it must be at least 1"),
        ((1, -1), "seed is -1; it must be at least 0"),
        ((1, 1, (63, 128)), r"image_size\[0\] is 63; it must be at least 64"),
        ((1, 1, (128, 0)), r"image_size\[1\] is 0; it must be at least 64"),
    ],
)
def test_arguments_out_of_range_are_errors(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        generate_shapes(str(tmp_path / "data"), *arguments)
    assert not (tmp_path / "data").exists()


# In Detectron2


@pytest.fixture
def registered(tmp_path, monkeypatch):
    """Registers the data sets again, and returns the working directory, which is empty."""
    monkeypatch.chdir(tmp_path)
    for name in ("mrcnn_shapes_train", "mrcnn_shapes_val"):
        # `import mrcnn_plugin` registered them.
        monkeypatch.delitem(DatasetCatalog.data, name)
    register_shapes()
    register_shapes()
    return tmp_path


def test_registering_writes_nothing(registered):
    assert {"mrcnn_shapes_train", "mrcnn_shapes_val"} <= set(DatasetCatalog.list())
    assert list(registered.iterdir()) == []


def test_a_scene_is_registered_under_its_name(registered):
    name = "squares_few"
    register_scene(name, 3, SEED, Scene(frequency=(0, 1, 0, 0)))
    try:
        dicts = DatasetCatalog.get(name)
        metadata = MetadataCatalog.get(name)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert len(dicts) == 3
    classes = {a["category_id"] for d in dicts for a in d["annotations"]}
    assert classes == {CLASSES.index("square")}
    assert os.path.isfile(metadata.json_file)


@pytest.mark.parametrize(
    "environment, folder",
    [
        ({"DETECTRON2_DATASETS": "data", "FVCORE_CACHE": "cache"}, "data"),
        ({"FVCORE_CACHE": "cache"}, "cache"),
        ({}, "home/.torch/iopath_cache"),
    ],
)
def test_loading_generates_them_beside_data_sets_or_downloads(
    environment, folder, tmp_path, monkeypatch
):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("DETECTRON2_DATASETS", "FVCORE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    for name in ("mrcnn_shapes_train", "mrcnn_shapes_val"):
        # What `import mrcnn_plugin` registered.
        monkeypatch.delitem(DatasetCatalog.data, name)
        monkeypatch.delitem(MetadataCatalog.data, name)
    register_shapes()
    expected = tmp_path / folder / "mrcnn_shapes" / "val"
    assert MetadataCatalog.get("mrcnn_shapes_val").json_file == str(expected / "instances.json")
    assert os.listdir(tmp_path) == ["work"]
    DatasetCatalog.get("mrcnn_shapes_val")
    assert os.listdir(".") == []
    assert len(list((expected / "images").iterdir())) == 60


def test_import_registers_only_the_data_sets_of_the_quickstart_and_writes_nothing(tmp_path):
    (tmp_path / "work").mkdir()
    program = """
import os
from detectron2.data import DatasetCatalog, MetadataCatalog
before = set(DatasetCatalog.list())
import mrcnn_plugin
assert set(DatasetCatalog.list()) - before == {"mrcnn_shapes_train", "mrcnn_shapes_val"}
print(os.path.dirname(MetadataCatalog.get("mrcnn_shapes_val").json_file))
print(os.listdir("..") + os.listdir("."))
"""
    environment = {**os.environ, "HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    for name in ("DETECTRON2_DATASETS", "FVCORE_CACHE"):
        environment.pop(name, None)
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=tmp_path / "work",
        env=environment,
        capture_output=True,
        text=True,
    )
    expected = tmp_path / "home/.torch/iopath_cache/mrcnn_shapes/val"
    assert result.stdout.splitlines() == [str(expected), "['work']"], result.stderr


def test_a_data_set_of_the_user_under_the_same_name_stays(monkeypatch):
    def users_own():
        return []

    register_shapes()
    monkeypatch.setitem(DatasetCatalog.data, "mrcnn_shapes_val", users_own)
    register_shapes()
    assert DatasetCatalog["mrcnn_shapes_val"] is users_own


def test_detectron2_loads_what_its_metadata_says(registered):
    dicts = DatasetCatalog.get("mrcnn_shapes_val")
    metadata = MetadataCatalog.get("mrcnn_shapes_val")
    assert len(dicts) == 60
    assert all(os.path.isfile(d["file_name"]) for d in dicts)
    assert {a["category_id"] for d in dicts for a in d["annotations"]} == set(range(len(CLASSES)))
    assert os.path.isfile(metadata.json_file)
    assert os.path.samefile(metadata.image_root, os.path.dirname(dicts[0]["file_name"]))
    assert metadata.thing_classes == list(CLASSES)
    assert metadata.evaluator_type == "coco"
    assert len(DatasetCatalog.get("mrcnn_shapes_val")) == 60


def test_train_and_val_share_no_image(registered):
    names = [f"images/{i:06d}.png" for i in range(1, 61)]
    DatasetCatalog.get("mrcnn_shapes_train")
    DatasetCatalog.get("mrcnn_shapes_val")
    folder = Path(os.environ["DETECTRON2_DATASETS"]) / "mrcnn_shapes"
    train, val = (_files(folder / split) for split in ("train", "val"))
    assert not {train[n] for n in names} & {val[n] for n in names}


def test_the_ground_truth_as_prediction_scores_100(registered):
    dicts = DatasetCatalog.get("mrcnn_shapes_val")
    evaluator = COCOEvaluator("mrcnn_shapes_val", ("bbox", "segm"), distributed=False)
    evaluator.reset()
    for d in dicts:
        instances = Instances((d["height"], d["width"]))
        boxes = [
            BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in d["annotations"]
        ]
        instances.pred_boxes = Boxes(torch.tensor(boxes))
        instances.pred_classes = torch.tensor([a["category_id"] for a in d["annotations"]])
        instances.scores = torch.ones(len(boxes))
        masks = [mask_util.decode(a["segmentation"]) for a in d["annotations"]]
        instances.pred_masks = torch.from_numpy(np.stack(masks)).bool()
        evaluator.process([d], [{"instances": instances}])
    results = evaluator.evaluate()
    assert results["bbox"]["AP"] == results["segm"]["AP"] == pytest.approx(100)
