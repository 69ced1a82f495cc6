import json
import os

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage, JSONWriter
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.cocoeval import COCOeval

from mrcnn_plugin.analysis import charts, coco, images
from mrcnn_plugin.data import generate_shapes
from mrcnn_plugin.data.shapes import CLASSES
from tests import small
from tests.conftest import load_tool

plot_results = load_tool("plot_results")

AP = {"AP": 50.04, "AP50": 80.25, "AP75": 60.0, "APs": 40.5, "APm": 55.0, "APl": float("nan")}


PICTURES = (
    "ap_over_time.png",
    "predictions.png",
    "precision_recall_boxes.png",
    "precision_recall_masks.png",
    "average_precision.png",
    "confusion_matrix.png",
    "worst_images.png",
)


@pytest.fixture
def output(tmp_path, monkeypatch):
    """Returns the OUTPUT_DIR of a training, whose predictions are the ground truth moved by two pixels."""
    monkeypatch.chdir(tmp_path)
    os.makedirs("run/inference")
    with open("run/metrics.json", "w") as f:
        for iteration in (19, 39):
            losses = {"loss_cls": 1 / iteration, "loss_mask": 0.5, "total_loss": 1.0, "lr": 0.1}
            f.write(json.dumps({"iteration": iteration, **losses}) + "\n")
        f.write(json.dumps({"iteration": 40, **prefixed("bbox/"), **prefixed("segm/", 10)}) + "\n")
    write_results(DatasetCatalog.get("mrcnn_shapes_val"))
    return tmp_path / "run"


def prefixed(prefix, more=0):
    return {prefix + name: value + more for name, value in AP.items()}


def write_results(dicts, score=0.9):
    results = [
        {
            "image_id": d["image_id"],
            "category_id": a["category_id"] + 1,
            "bbox": [a["bbox"][0] + 2, *a["bbox"][1:]],
            "score": score,
            "segmentation": a["segmentation"],
        }
        for d in dicts
        for a in d["annotations"]
    ]
    json.dump(results, open("run/inference/coco_instances_results.json", "w"))


def run(*opts):
    config = str(small.CONFIGS / "quickstart.yaml")
    plot_results.main(["--config-file", config, "OUTPUT_DIR", "run", *opts])


def coco_table(task):
    """Returns what pycocotools itself says of the results."""
    truth = coco.load_ground_truth("mrcnn_shapes_val", "run/inference")
    found = json.load(open("run/inference/coco_instances_results.json"))
    if task == "segm":
        # The area of a detection is then that of its mask, as in COCOEvaluator.
        for result in found:
            del result["bbox"]
    evaluation = COCOeval(truth, truth.loadRes(found), task)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return ["-" if value < 0 else f"{100 * value:.1f}" for value in evaluation.stats[:6]]


def test_the_pictures_are_written_and_the_table_printed(output, capsys):
    run()
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    assert cells[0] == ["", "AP", "AP50", "AP75", "APs", "APm", "APl"]
    assert cells[2:] == [["bbox", *coco_table("bbox")], ["segm", *coco_table("segm")]]
    for name in ("losses.png", "predictions.png"):
        picture = cv2.imread(str(output / name))
        assert picture.shape[1] > 1000 and picture.std() > 10


def test_a_second_run_replaces_its_own_pictures(output):
    run()
    before = (output / "worst_images.png").read_bytes()
    write_results(DatasetCatalog.get("mrcnn_shapes_val")[:20])
    run()
    assert (output / "worst_images.png").read_bytes() != before


def test_annotations_that_changed_after_the_evaluation_are_named(output, capsys):
    annotations = MetadataCatalog.get("mrcnn_shapes_val").json_file
    results = "run/inference/coco_instances_results.json"
    for age in (0, 60):
        os.utime(results, times=(os.path.getmtime(annotations) - age,) * 2)
        run()
        named = f"{annotations} is younger than {results}" in capsys.readouterr().out
        assert named == (age > 0)


def test_a_younger_copy_of_annotations_is_no_news(output, capsys, monkeypatch, tmp_path):
    (tmp_path / "source.json").touch()
    metadata = MetadataCatalog.get("mrcnn_shapes_val")
    monkeypatch.setattr(metadata, "coco_json_source", str(tmp_path / "source.json"), raising=False)
    before = os.path.getmtime(metadata.json_file) - 60
    os.utime("run/inference/coco_instances_results.json", times=(before, before))
    os.utime(tmp_path / "source.json", times=(before, before))
    run()
    assert "is younger than" not in capsys.readouterr().out


def test_an_evaluation_without_a_training_has_a_table_and_pictures(output, capsys):
    os.remove("run/metrics.json")
    run()
    printed = capsys.readouterr().out
    assert "There is no losses.png, because run/metrics.json is not there." in printed
    assert "there is no ap_over_time.png, because run/metrics.json has no bbox/AP." in printed
    assert coco_table("bbox")[0] in printed
    assert set(PICTURES) - set(os.listdir(output)) == {"ap_over_time.png"}
    assert not os.path.exists("run/losses.png") and "ap_over_time.png\n" not in printed


def test_metrics_without_losses_have_the_other_pictures(output, capsys):
    open("run/metrics.json", "w").write(json.dumps({"iteration": 1, **prefixed("bbox/")}))
    run()
    printed = capsys.readouterr().out
    assert "There is no losses.png, because run/metrics.json has no losses." in printed
    assert set(PICTURES) < set(os.listdir(output))


def test_a_training_that_was_evaluated_later_has_a_table_and_losses(output, capsys):
    open("run/metrics.json", "w").write(json.dumps({"iteration": 1, "total_loss": 2.0}))
    run()
    assert "there is no ap_over_time.png" in capsys.readouterr().out
    assert set(PICTURES) - set(os.listdir(output)) == {"ap_over_time.png"}
    assert os.path.exists("run/losses.png")


def test_several_test_sets_show_the_last_one(output, capsys):
    # Each AP has the name of its data set, and the results are those of the last one.
    last = prefixed("mrcnn_shapes_val/bbox/") | {f"mrcnn_shapes_train/bbox/{k}": 1.0 for k in AP}
    with open("run/metrics.json", "a") as f:
        f.write(json.dumps({"iteration": 41, **last}) + "\n")
    run("DATASETS.TEST", "('mrcnn_shapes_train', 'mrcnn_shapes_val')")
    printed = capsys.readouterr().out
    assert "mrcnn_shapes_val:" in printed and "| bbox |" in printed
    assert "no ap_over_time.png" not in printed


def test_each_of_several_test_sets_has_a_folder_of_its_own(output):
    own = output / "inference" / "mrcnn_shapes_val"
    own.mkdir()
    names = "('mrcnn_shapes_train', 'mrcnn_shapes_val')"
    with pytest.raises(FileNotFoundError, match="inference/mrcnn_shapes_val/coco_instances"):
        run("DATASETS.TEST", names)


def test_results_are_those_of_the_test_sets_of_the_last_run(output, capsys):
    """The files of earlier runs with other test sets may still be there."""
    config = output / "config.yaml"
    config.write_text("DATASETS: {TEST: [mrcnn_shapes_val]}")
    for names in ("('mrcnn_shapes_train',)", "('mrcnn_shapes_val', 'mrcnn_shapes_train')"):
        cfg = small.load_cfg(str(small.CONFIGS / "quickstart.yaml"), ["DATASETS.TEST", names])
        cfg.OUTPUT_DIR = "run"
        file = plot_results.find_results(cfg, "mrcnn_shapes_train")
        assert file == "run/inference/mrcnn_shapes_train/coco_instances_results.json"
        file = plot_results.find_results(cfg, "mrcnn_shapes_val")
        assert file == "run/inference/coco_instances_results.json"
    config.write_text("DATASETS: {TEST: [mrcnn_shapes_train, mrcnn_shapes_val]}")
    (output / "inference" / "mrcnn_shapes_val").mkdir()
    file = plot_results.find_results(cfg, "mrcnn_shapes_val")
    assert file == "run/inference/mrcnn_shapes_val/coco_instances_results.json"


def test_a_config_of_another_program_is_no_obstacle(output):
    for content in (b"model: {}\n", b"- a list", b"{", b"", b"name: \xff"):
        (output / "config.yaml").write_bytes(content)
        cfg = small.load_cfg(str(small.CONFIGS / "quickstart.yaml"), ["OUTPUT_DIR", "run"])
        file = plot_results.find_results(cfg, "mrcnn_shapes_val")
        assert file == "run/inference/coco_instances_results.json"


def test_an_image_that_cannot_be_read_costs_no_other(output, capsys, monkeypatch):
    read_image, first = images.read_image, []

    def read(path, format):
        first.append(path)
        return read_image("missing.png" if path == first[0] else path, format)

    monkeypatch.setattr(images, "read_image", read)
    run()
    assert f"{first[0]} cannot be read and is left out" in capsys.readouterr().out
    assert cv2.imread(str(output / "predictions.png")).std() > 10


def test_names_of_images_may_be_not_utf_8(output, capsys, monkeypatch):
    dicts = DatasetCatalog.get("mrcnn_shapes_val")
    for record in dicts:
        record["file_name"] += "\udce9"
    monkeypatch.setattr(DatasetCatalog, "get", lambda name: dicts)
    run()
    assert r"000001.png\udce9 cannot be read and is left out" in capsys.readouterr().out
    assert set(PICTURES) < set(os.listdir(output))


def test_each_test_set_has_a_folder_of_pictures(output, capsys, monkeypatch):
    names = ("mrcnn_shapes_train", "mrcnn_shapes_val")
    both = {f"{name}/bbox/{k}": v for name in names for k, v in AP.items()}
    with open("run/metrics.json", "a") as f:
        f.write(json.dumps({"iteration": 41, **both}) + "\n")
    for name in names:
        write_results(DatasetCatalog.get(name)[:20])
        os.makedirs(f"run/inference/{name}")
        file = "coco_instances_results.json"
        os.rename(f"run/inference/{file}", f"run/inference/{name}/{file}")
    run("DATASETS.TEST", str(names))
    printed = capsys.readouterr().out
    for name in names:
        assert sorted(os.listdir(output / name)) == sorted(PICTURES)
        assert f"run/{name}/worst_images.png" in printed
    # One without results does not cost the other its pictures.
    of_train = "run/inference/mrcnn_shapes_train/coco_instances_results.json"
    os.remove(of_train)
    plot_test_set, drawn = plot_results.plot_test_set, []

    def draw(cfg, name, *rest):
        if name == "mrcnn_shapes_train":
            return plot_test_set(cfg, name, *rest)
        drawn.append(name)
        return "", []

    monkeypatch.setattr(plot_results, "plot_test_set", draw)
    run("DATASETS.TEST", str(names))
    assert drawn == ["mrcnn_shapes_val"]
    assert "mrcnn_shapes_train: there is no run/inference/mrcnn_shapes_train/coco" in (
        capsys.readouterr().out
    )
    # A test set whose results are damaged does not stop the others either.
    with open(of_train, "w") as f:
        f.write("[")
    with pytest.raises(ValueError, match=f"{of_train} is no JSON"):
        run("DATASETS.TEST", str(names))
    assert drawn == ["mrcnn_shapes_val"] * 2


def test_a_model_that_finds_nothing_has_pictures_too(output, capsys):
    json.dump([], open("run/inference/coco_instances_results.json", "w"))
    run()
    assert set(PICTURES) < set(os.listdir(output))
    # The same holds if all scores are low.
    write_results(DatasetCatalog.get("mrcnn_shapes_val"), 0.25)
    run()
    assert (
        "no detection has a score of 0.5; the highest is 0.250. To see detections, add --min-score"
        in (capsys.readouterr().out)
    )


def test_results_of_boxes_alone_are_drawn(output):
    write_results(DatasetCatalog.get("mrcnn_shapes_val"))
    file = "run/inference/coco_instances_results.json"
    results = json.load(open(file))
    for result in results:
        del result["segmentation"]
    json.dump(results, open(file, "w"))
    run()
    assert "precision_recall_boxes.png" in os.listdir(output)
    assert "precision_recall_masks.png" not in os.listdir(output)


def test_keypoints_have_a_row_and_curves(output, capsys, monkeypatch):
    json_file = generate_shapes("data", 6, seed=2)
    content = json.load(open(json_file))
    for category in content["categories"]:
        category["keypoints"] = ["a", "b"]
    for one in content["annotations"]:
        x, y, width, height = one["bbox"]
        one.update(keypoints=[x, y, 2, x + width, y + height, 2], num_keypoints=2)
    json.dump(content, open(json_file, "w"))
    keys = ("image_id", "category_id", "bbox", "keypoints")
    found = [{**{key: a[key] for key in keys}, "score": 0.9} for a in content["annotations"]]
    json.dump(found, open("run/inference/coco_instances_results.json", "w"))
    with open("run/metrics.json", "a") as f:
        f.write(json.dumps({"iteration": 40, **prefixed("keypoints/", 15)}) + "\n")
    labels = []
    legend = charts.Figure.legend
    monkeypatch.setattr(
        charts.Figure,
        "legend",
        lambda figure, *args, **kwargs: (
            labels.extend(line.get_label() for line in figure.axes[0].get_lines())
            or legend(figure, *args, **kwargs)
        ),
    )
    entries = [["shapes_with_keypoints", json_file, "data/images"]]
    changes = {
        "DATASETS.COCO_JSON": entries,
        "DATASETS.TEST": "('shapes_with_keypoints',)",
        "MODEL.MASK_ON": False,
        "MODEL.KEYPOINT_ON": True,
        "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": 2,
        "TEST.KEYPOINT_OKS_SIGMAS": [0.1, 0.1],
    }
    try:
        run(*(str(item) for pair in changes.items() for item in pair))
        # A model that finds nothing
        json.dump([], open("run/inference/coco_instances_results.json", "w"))
        run(*(str(item) for pair in changes.items() for item in pair))
    finally:
        DatasetCatalog.remove("shapes_with_keypoints")
        MetadataCatalog.remove("shapes_with_keypoints")
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "keypoints " in line]
    assert [row[1:6] for row in rows] == [
        ["keypoints", "|", "100.0", "|", "100.0"],
        ["keypoints", "|", "0.0", "|", "0.0"],
    ]
    assert "precision_recall_keypoints.png" in os.listdir(output)
    assert "AP of keypoints: 65.0 at last" in labels


def test_the_config_may_stand_behind_config_changes(capsys):
    config = str(small.CONFIGS / "quickstart.yaml")
    args = plot_results.parse_args(
        ["--min-score", "0.2", "OUTPUT_DIR", "o", "--config-file", config]
    )
    assert (args.config_file, args.min_score, args.opts) == (config, 0.2, ["OUTPUT_DIR", "o"])
    with pytest.raises(SystemExit):
        plot_results.parse_args(["OUTPUT_DIR", "o"])
    assert "--config-file is missing" in capsys.readouterr().err


@pytest.mark.parametrize("score", ["-0.1", "1.5", "nan"])
def test_a_score_outside_of_0_to_1_is_an_error(output, score):
    config = str(small.CONFIGS / "quickstart.yaml")
    with pytest.raises(ValueError, match=r"--min-score is .*; it must be in \[0, 1\]"):
        plot_results.main(["--config-file", config, "--min-score", score, "OUTPUT_DIR", "run"])


# metrics.json


def write_metrics(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return plot_results.read_metrics(str(path))


def test_the_lines_of_detectron2_are_read(tmp_path):
    file = str(tmp_path / "metrics.json")
    with EventStorage(0) as storage:
        writer = JSONWriter(file)
        for iteration in range(4):
            storage.iter = iteration
            storage.put_scalar("total_loss", float(10 - iteration), smoothing_hint=False)
            writer.write()
        storage.iter = 4
        storage.put_scalar("bbox/AP", 33.0, smoothing_hint=False)
        writer.write()
        writer.close()
    metrics = plot_results.read_metrics(file)
    assert [metrics[i]["total_loss"] for i in range(4)] == [10, 9, 8, 7]
    assert metrics[4] == {"bbox/AP": 33}


def test_lines_of_one_iteration_are_taken_together(tmp_path):
    lines = [
        {"iteration": 9, "total_loss": 2.0, "lr": 0.1},
        {"iteration": 9, "total_loss": 1.0, "bbox/AP": 5.0},
    ]
    metrics = write_metrics(tmp_path / "m.json", lines)
    assert metrics == {9: {"total_loss": 1.0, "lr": 0.1, "bbox/AP": 5.0}}


def test_an_evaluation_that_is_written_late_drops_nothing(tmp_path):
    # Detectron2 writes these lines if it evaluates after 2 iterations and writes after every 4.
    lines = [{"iteration": 3, "total_loss": 2.0}, {"iteration": 1, "bbox/AP": 5.0}]
    metrics = write_metrics(tmp_path / "m.json", lines)
    assert metrics == {3: {"total_loss": 2.0}, 1: {"bbox/AP": 5.0}}


@settings(max_examples=50, deadline=None)
@given(starts=st.lists(st.integers(0, 5), max_size=4), lengths=st.lists(st.integers(1, 6)))
def test_only_the_run_that_counts_is_left(tmp_path_factory, starts, lengths):
    # A run starts from 0, and each later run starts again within the one before. The values that are
    # read must be those of a training that ends in the last state.
    lines, expected, end = [], {}, 0
    for run, (start, length) in enumerate(zip([0, *starts], lengths, strict=False)):
        start = min(start, max(end - 1, 0))
        expected = {i: v for i, v in expected.items() if i < start}
        for iteration in range(start, start + length):
            lines.append({"iteration": iteration, "total_loss": 100.0 * run + iteration})
            expected[iteration] = {"total_loss": 100.0 * run + iteration}
        end = start + length
    folder = tmp_path_factory.mktemp("metrics")
    assert write_metrics(folder / "metrics.json", lines) == expected


# losses.png


def test_every_loss_is_plotted_against_its_iterations(monkeypatch, tmp_path):
    saved = []
    monkeypatch.setattr(
        charts.Figure, "savefig", lambda figure, file, **kwargs: saved.append(figure)
    )
    metrics = {
        39: {"loss_cls": 2.0, "total_loss": 3.0, "lr": 0.1},
        19: {"loss_cls": 4.0, "total_loss": 5.0},
        40: {"bbox/AP": 3.0},
        59: {"loss_mask": 1.0},
    }
    charts.plot_losses(metrics, str(tmp_path / "losses.png"))
    (axes,) = saved[0].axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
    assert lines == {
        "loss_cls": [[19, 4], [39, 2]],
        "loss_mask": [[59, 1]],
        "total_loss": [[19, 5], [39, 3]],
    }


# predictions.png


def test_ground_truth_and_predictions_stand_side_by_side(output, monkeypatch):
    drawn = []
    draw = images.draw

    def record(image, annotations, names):
        drawn.append(annotations)
        assert names == list(CLASSES)
        return draw(image, annotations, names)

    monkeypatch.setattr(images, "draw", record)
    run()
    assert len(drawn) == 2 * images.NUM_IMAGES
    for truth, prediction in zip(drawn[::2], drawn[1::2], strict=True):
        assert [a["category_id"] for a in truth] == [a["category_id"] for a in prediction]
        assert [a["bbox"][0] + 2 for a in truth] == [a["bbox"][0] for a in prediction]
        assert {a["bbox_mode"] for a in prediction} == {BoxMode.XYWH_ABS}
        assert [a["segmentation"] for a in truth] == [a["segmentation"] for a in prediction]


@pytest.mark.parametrize("score, left_out", [(0.499, True), (0.5, False)])
def test_unlikely_predictions_are_left_out(output, monkeypatch, score, left_out):
    write_results(DatasetCatalog.get("mrcnn_shapes_val"), score)
    drawn = []
    monkeypatch.setattr(
        images,
        "draw",
        lambda image, annotations, names: drawn.append(annotations) or image,
    )
    run()
    assert all((predicted == []) == left_out for predicted in drawn[1::2])
    assert all(drawn[::2])


def test_a_mask_is_drawn_where_it_is_with_its_hole():
    mask = np.zeros((60, 90), np.uint8)
    mask[10:50, 30:80] = 1
    mask[20:40, 45:65] = 0
    annotation = {
        "bbox": [30, 10, 50, 40],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 0,
        "segmentation": mask_util.encode(np.asfortranarray(mask)),
    }
    grey = np.full((60, 90, 3), 100, np.uint8)
    picture = images.draw(grey, [annotation], ["ring", "disc"])
    factor = images.PICTURE_SIZE / 90
    assert picture.shape == (round(60 * factor), images.PICTURE_SIZE, 3)

    def is_colored(y, x):
        return np.ptp(picture[int(y * factor), int(x * factor)].astype(int)) > 20

    assert is_colored(45, 50) and is_colored(30, 35) and is_colored(30, 75)
    assert not is_colored(30, 55) and not is_colored(30, 20) and not is_colored(55, 50)


def test_images_without_detections_and_masks_are_drawn():
    image = np.full((50, 50, 3), 100, np.uint8)
    assert images.draw(image, [], ["a"]).std() == 0
    box = {"bbox": [5, 5, 20, 20], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "score": 1.0}
    assert images.draw(image, [box], ["a"]).std() > 0
    assert images.draw(image, [box], ["US$ or NZ$ {"]).std() > 0


def test_a_crowd_has_no_labels():
    def black(number):
        box = {"bbox": [5, 5, 20, 20], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
        picture = images.draw(np.full((50, 50, 3), 200, np.uint8), [box] * number, ["a", "b"])
        return (picture.max(axis=2) < 60).any()

    assert black(1) and black(images.MAX_LABELS)
    assert not black(images.MAX_LABELS + 1)


# Errors


def test_missing_results_are_an_error(output):
    os.remove("run/inference/coco_instances_results.json")
    with pytest.raises(
        FileNotFoundError, match="no run/inference/coco_instances_results.json; eval"
    ):
        run()


@pytest.mark.parametrize("line", ['{"iteration": 3, "total_l', "[]", "3", '{"total_loss": 1.0}'])
def test_a_damaged_line_is_an_error(tmp_path, line):
    file = tmp_path / "metrics.json"
    file.write_text('{"iteration": 1, "total_loss": 2.0}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"metrics.json, line 2 is not a JSON object"):
        plot_results.read_metrics(str(file))


def test_a_missing_test_set_is_an_error(output):
    with pytest.raises(ValueError, match="DATASETS.TEST is empty"):
        run("DATASETS.TEST", "()")
