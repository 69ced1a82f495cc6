import json
import os
import re
import shutil
import signal

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.visualizer import Visualizer
from PIL import Image

from mrcnn_plugin import add_mrcnn_config
from mrcnn_plugin.data import generate_shapes
from tests import small
from tests.conftest import load_tool
from tests.environments import file_limit

demo = load_tool("demo")

TINY = {
    **small.TINY,
    "MODEL.ROI_HEADS.NUM_CLASSES": 4,
    "DATASETS.TEST": "('mrcnn_shapes_val',)",
    "INPUT.MIN_SIZE_TEST": 96,
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Returns an untrained model that detects something in every image."""
    torch.manual_seed(0)
    model = build_model(make_cfg())
    # The classification layer of an untrained model is almost zero, so all objects would have one class.
    torch.nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.5)
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"model": model.state_dict()}, path)
    return str(path)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    generate_shapes(str(root / "shapes"), 3, 5, (64, 80))
    return root / "shapes" / "images"


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def opts(**changes):
    settings = {**TINY, **{key.replace("__", "."): value for key, value in changes.items()}}
    return [str(item) for pair in settings.items() for item in pair]


def make_cfg():
    cfg = get_cfg()
    add_mrcnn_config(cfg)
    cfg.merge_from_file(str(small.CONFIGS / "quickstart.yaml"))
    cfg.merge_from_list(opts())
    return cfg


def run(weights, *arguments, threshold="0", config="quickstart.yaml", **changes):
    return demo.main(
        ["--config-file", str(small.CONFIGS / config), "--confidence-threshold", threshold]
        + [str(argument) for argument in arguments]
        + ["--opts", *opts(MODEL__WEIGHTS=weights, **changes)]
    )


def test_a_folder_becomes_pictures_and_coco_results(weights, images):
    assert run(weights, "--input", images, "--output", "out", "--json", "new/results.json") == 0
    assert sorted(os.listdir("out")) == ["000001.png", "000002.png", "000003.png"]
    results = json.load(open("new/results.json"))

    cfg = make_cfg()
    cfg.MODEL.WEIGHTS = weights
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    predictor = DefaultPredictor(cfg)
    for image_id in (1, 2, 3):
        image = cv2.imread(str(images / f"{image_id:06d}.png"))
        expected = predictor(image)["instances"]
        found = [r for r in results if r["image_id"] == image_id]
        assert len(found) == len(expected) > 0
        # The category ids of the data set start at 1.
        assert [r["category_id"] for r in found] == (expected.pred_classes + 1).tolist()
        assert [r["score"] for r in found] == pytest.approx(expected.scores.tolist())
        x0, y0, x1, y1 = expected.pred_boxes.tensor.double().numpy().T
        assert np.allclose([r["bbox"] for r in found], np.stack([x0, y0, x1 - x0, y1 - y0], 1))
        masks = [mask_util.decode(r["segmentation"]) for r in found]
        assert np.array_equal(masks, expected.pred_masks.numpy())

        # The picture is the enlarged image with objects drawn on it.
        picture = cv2.imread(f"out/{image_id:06d}.png")
        assert picture.shape == (480, 600, 3)
        plain = cv2.resize(image, (600, 480), interpolation=cv2.INTER_NEAREST)
        changed = (np.abs(picture.astype(int) - plain) > 20).any(2).mean()
        assert 0.01 < changed < 0.99


def test_nothing_above_the_threshold_leaves_the_image_as_it_is(weights, images, capsys):
    arguments = ("--input", images / "000001.png", "--output", "out", "--json", "results.json")
    assert run(weights, *arguments, threshold="1") == 0
    assert json.load(open("results.json")) == []
    assert "Nothing was found with a score above 1 " in capsys.readouterr().out
    image = cv2.imread(str(images / "000001.png"))
    plain = cv2.resize(image, (600, 480), interpolation=cv2.INTER_NEAREST)
    assert np.abs(cv2.imread("out/000001.png").astype(int) - plain).mean() < 3


def test_a_large_image_keeps_its_size(weights):
    cv2.imwrite("large.jpg", np.zeros((310, 700, 3), np.uint8))
    run(weights, "--input", "large.jpg", "--output", "out")
    assert cv2.imread("out/large.png").shape == (310, 700, 3)


def test_image_ids_are_numbers_where_names_are(weights, images):
    image = cv2.imread(str(images / "000001.png"))
    cv2.imwrite("000000000139.jpg", image)
    cv2.imwrite("holiday 2.png", image)
    run(
        weights, "--input", "000000000139.jpg", "holiday 2.png", "--output", "o", "--json", "r.json"
    )
    assert {r["image_id"] for r in json.load(open("r.json"))} == {139, "holiday 2"}


# What --input may be


def test_folders_patterns_and_images_are_found_once_each(images, monkeypatch, caplog):
    os.makedirs("more/deep")
    for name in ("more/b.JPG", "more/a.png", "more/x.txt", "more/deep/c.png", "odd.dat"):
        open(name, "w").close()
    found = demo.find_inputs(["more", "mo*/x.*", "more/../more/a.png", "odd.dat", "more/**/c.*"])
    assert found == ["more/a.png", "more/b.JPG", "more/x.txt", "odd.dat", "more/deep/c.png"]
    assert "2 other files or folders in more are left out, the first deep." in caplog.text
    monkeypatch.setenv("HOME", os.getcwd())
    assert demo.find_inputs(["~/odd.dat"]) == [os.path.abspath("odd.dat")]


@pytest.mark.parametrize("name", ["missing.png", "empty", "no*match"])
def test_an_input_that_names_nothing_is_an_error(weights, images, name):
    os.mkdir("empty")
    with pytest.raises(FileNotFoundError, match="--input " + re.escape(name)):
        run(weights, "--input", images, name, "--output", "out")
    assert not os.path.exists("out")


def test_an_unreadable_image_does_not_stop_the_others(weights, images, capsys):
    os.mkdir("in")
    open("in/broken.png", "w").write("no image")
    content = (images / "000001.png").read_bytes()
    open("in/cut.png", "wb").write(content[: len(content) // 2])
    open("in/whole.png", "wb").write(content)
    assert run(weights, "--input", "in", "--output", "out", "--json", "results.json") == 1
    assert os.listdir("out") == ["whole.png"]
    assert {r["image_id"] for r in json.load(open("results.json"))} == {"whole"}
    error = capsys.readouterr().err
    assert "2 of 3 files could not be read" in error
    assert "in/broken.png: " in error and "in/cut.png: " in error


# Videos


def moving(number=6, size=(80, 64)):
    """Returns frames [H, W, 3] of a bright square that moves, on noise that a codec changes little."""
    width, height = size
    rng = np.random.default_rng(0)
    noise = cv2.resize(rng.integers(0, 120, (8, 8, 3), dtype=np.uint8), size)
    frames = []
    for i in range(number):
        frame = noise.copy()
        cv2.rectangle(frame, (4 * i, 10), (4 * i + 30, 45), (40, 200, 250), -1)
        frames.append(frame)
    assert frames[0].shape == (height, width, 3)
    return frames


def write_video(name, frames, rate=12.5, codec="mp4v"):
    size = frames[0].shape[1::-1]
    writer = cv2.VideoWriter(name, cv2.VideoWriter.fourcc(*codec), rate, size)
    for frame in frames:
        writer.write(frame)
    writer.release()


def read_video(name):
    """Returns the frames of a video and its rate."""
    capture = cv2.VideoCapture(name)
    return list(demo.read_frames(capture)), capture.get(cv2.CAP_PROP_FPS)


@pytest.mark.parametrize("order", ["BGR", "RGB"])
def test_a_video_becomes_a_video_and_results_with_frame_numbers(weights, order):
    write_video("clip.avi", moving())
    arguments = ("--input", "clip.avi", "--output", "out", "--json", "r.json")
    assert run(weights, *arguments, INPUT__FORMAT=order) == 0
    assert os.listdir("out") == ["clip.mp4"]
    frames, rate = read_video("clip.avi")
    drawn, drawn_rate = read_video("out/clip.mp4")
    assert len(drawn) == len(frames) == 6
    assert drawn_rate == rate == 12.5
    results = json.load(open("r.json"))
    assert {r["image_id"] for r in results} == {"clip"}

    cfg = make_cfg()
    cfg.merge_from_list(["MODEL.WEIGHTS", weights, "INPUT.FORMAT", order])
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    predictor = DefaultPredictor(cfg)
    for number, (frame, picture) in enumerate(zip(frames, drawn, strict=True)):
        expected = predictor(frame)["instances"]
        found = [r for r in results if r["frame_number"] == number]
        assert len(found) == len(expected) > 0
        assert [r["score"] for r in found] == pytest.approx(expected.scores.tolist())
        assert [r["category_id"] for r in found] == (expected.pred_classes + 1).tolist()
        assert picture.shape == frame.shape
        assert (np.abs(picture.astype(int) - frame) > 40).any(2).mean() > 0.01


def test_a_time_may_be_the_name_of_a_video(weights):
    write_video("clip.avi", moving(2))
    os.rename("clip.avi", "2024-01-01T12:30:00.avi")
    assert run(weights, "--input", ".", "--output", "out") == 0
    assert len(read_video("out/2024-01-01T12:30:00.mp4")[0]) == 2


def test_a_video_whose_name_is_not_utf_8_costs_no_other(weights, capfd):
    for name in ("a.avi", "b.avi"):
        write_video(name, moving(2))
    os.rename("a.avi", "caf\udce9.avi")
    assert run(weights, "--input", "caf\udce9.avi", "b.avi", "--output", "out") == 1
    assert ".avi: OpenCV cannot take a name that is not UTF-8" in capfd.readouterr().err
    assert os.listdir("out") == ["b.mp4"]
    assert run(weights, "--input", "b.avi", "--output", "caf\udce9") == 1
    assert "b.avi: OpenCV cannot take a name that is not UTF-8" in capfd.readouterr().err
    assert os.listdir("caf\udce9") == []
    # The name of the working directory is another matter.
    os.chdir("caf\udce9")
    shutil.move("../b.avi", "b.avi")
    assert run(weights, "--input", "b.avi", "--output", ".") == 0


def test_a_video_keeps_its_colours_and_rate(weights, capsys):
    write_video("clip.mkv", moving(), rate=30000 / 1001)
    arguments = ("--input", "clip.mkv", "--output", "out")
    assert run(weights, *arguments, threshold="1", INPUT__FORMAT="RGB") == 0
    frames, rate = read_video("clip.mkv")
    drawn, drawn_rate = read_video("out/clip.mp4")
    assert drawn_rate == pytest.approx(rate, abs=0.01)
    assert len(drawn) == len(frames) == 6
    assert np.abs(np.subtract(drawn, frames, dtype=int)).mean() < 5
    assert "Nothing was found with a score above 1 " in capsys.readouterr().out


def test_a_video_with_a_rate_that_its_codec_cannot_have_is_written(weights, log):
    write_video("slow motion.avi", moving(2), rate=238.947, codec="MJPG")
    assert run(weights, "--input", "slow motion.avi", "--output", "out") == 0
    drawn, rate = read_video("out/slow motion.mp4")
    assert len(drawn) == 2 and rate == pytest.approx(238.95, abs=0.001)
    assert re.search(r"slow motion.avi has 238.947\d* frames .*; 238.95 are", log.text)


def test_a_rate_that_cannot_be_written_is_named(weights, monkeypatch, capsys):
    write_video("clip.avi", moving(2), rate=100.123, codec="MJPG")
    tried = []

    class Writer:
        fourcc = cv2.VideoWriter.fourcc

        def __init__(self, file, codec, rate, size):
            tried.append(rate)

        def isOpened(self):
            return False

    monkeypatch.setattr(demo, "find_codec", lambda: demo.CODECS[0])
    monkeypatch.setattr(cv2, "VideoWriter", Writer)
    assert run(weights, "--input", "clip.avi", "--output", "out") == 1
    assert tried == pytest.approx([100.123, 100.12, 100], abs=1e-4)
    assert "80 x 64 pixels and 100.123 frames per second" in capsys.readouterr().err


def test_a_frame_of_odd_size_loses_nothing():
    drawn = demo.even(np.arange(63 * 47 * 3, dtype=np.uint8).reshape(47, 63, 3))
    assert drawn.shape == (48, 64, 3)
    assert np.array_equal(drawn[-1], drawn[-2]) and np.array_equal(drawn[:, -1], drawn[:, -2])
    assert drawn[:47, :63].tobytes() == np.arange(63 * 47 * 3, dtype=np.uint8).tobytes()


def test_images_and_videos_that_cannot_be_read_cost_only_themselves(weights, images, capsys):
    os.mkdir("in")
    open("in/none.mp4", "w").write("no video")
    write_video("in/cut.avi", moving(20), codec="MJPG")
    content = open("in/cut.avi", "rb").read()
    open("in/cut.avi", "wb").write(content[: len(content) // 2])
    open("in/text.png", "w").write("no image")
    write_video("in/whole.mp4", moving(2))
    open("in/picture.png", "wb").write((images / "000001.png").read_bytes())
    assert run(weights, "--input", "in", "--output", "out", "--json", "r.json") == 1
    error = capsys.readouterr().err
    assert "3 of 5 files could not be read or drawn" in error
    assert "in/none.mp4: OpenCV cannot read it as a video" in error
    assert "in/text.png: " in error
    number = int(re.search(r"in/cut.avi: only (\d+) frames .* header says 20", error)[1])
    assert 5 < number < 15
    assert sorted(os.listdir("out")) == ["cut.mp4", "picture.png", "whole.mp4"]
    assert len(read_video("out/cut.mp4")[0]) == number
    results = json.load(open("r.json"))
    assert {r["image_id"] for r in results} == {"cut", "whole", "picture"}
    frames = {r["frame_number"] for r in results if r["image_id"] == "cut"}
    assert frames == set(range(number))
    assert not any("frame_number" in r for r in results if r["image_id"] == "picture")


def interrupt(monkeypatch, at, action):
    """Lets `action` run after the model has seen its image or frame of number `at`."""
    predict = demo.Predictor.__call__
    calls = []

    def wrapped(self, image):
        calls.append(1)
        if len(calls) == at:
            action()
        return predict(self, image)

    monkeypatch.setattr(demo.Predictor, "__call__", wrapped)


def fail():
    raise RuntimeError("out of memory")


def test_a_frame_on_which_the_model_fails_ends_its_video_only(weights, monkeypatch, capsys):
    write_video("a.mp4", moving())
    write_video("b.mp4", moving(2))
    interrupt(monkeypatch, 4, fail)
    arguments = ("--input", "a.mp4", "b.mp4", "--output", "out", "--json", "r.json")
    assert run(weights, *arguments) == 1
    assert "a.mp4: frame 3: out of memory. The frames before are in" in capsys.readouterr().err
    assert [len(read_video(f"out/{name}.mp4")[0]) for name in "ab"] == [3, 2]
    found = {(r["image_id"], r["frame_number"]) for r in json.load(open("r.json"))}
    assert found == {("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1)}


def test_another_codec_is_used_where_the_first_cannot_be_written(weights, monkeypatch):
    write_video("clip.mp4", moving(2))
    monkeypatch.setattr(demo, "CODECS", [("none", ".mp4"), ("MJPG", ".avi")])
    assert run(weights, "--input", "clip.mp4", "--output", "out") == 0
    assert len(read_video("out/clip.avi")[0]) == 2


def test_an_opencv_without_codecs_is_an_error_for_videos_only(weights, images, monkeypatch):
    write_video("clip.mp4", moving(2))
    monkeypatch.setattr(demo, "CODECS", [("none", ".mp4")])
    with pytest.raises(RuntimeError, match=r"can write none here \(tried none in .mp4\)"):
        run(weights, "--input", images, "clip.mp4", "--output", "out")
    assert not os.path.exists("out")
    assert run(weights, "--input", images, "--output", "out") == 0


def test_a_video_is_not_replaced_unless_asked_nor_by_its_own_result(weights):
    write_video("clip.mp4", moving(2))
    os.mkdir("out")
    open("out/clip.mp4", "w").write("mine")
    arguments = ("--input", "clip.mp4", "--output", "out")
    with pytest.raises(FileExistsError, match="the first out/clip.mp4"):
        run(weights, *arguments)
    assert open("out/clip.mp4").read() == "mine"
    assert run(weights, *arguments, "--overwrite") == 0
    assert len(read_video("out/clip.mp4")[0]) == 2
    with pytest.raises(ValueError, match="clip.mp4 would replace a video"):
        run(weights, "--input", "clip.mp4", "--output", ".", "--overwrite")


# What survives


def test_the_json_is_whole_after_every_image():
    results = demo.Results("r.json")
    assert json.load(open("r.json.partial")) == []
    results.add([{"a": 1}, {"a": 2}])
    assert json.load(open("r.json.partial")) == [{"a": 1}, {"a": 2}]
    results.add([])
    results.add([{"a": 3}])
    assert json.load(open("r.json.partial")) == [{"a": 1}, {"a": 2}, {"a": 3}]
    results.close()
    assert json.load(open("r.json")) == [{"a": 1}, {"a": 2}, {"a": 3}]
    assert os.listdir() == ["r.json"]


def test_the_json_is_whole_on_a_full_disk():
    results = demo.Results("r.json")
    results.add([{"a": 1}])
    with file_limit() as set_limit, pytest.raises(OSError):
        set_limit(100)
        results.add([{"a": "x" * 200}])
    assert json.load(open("r.json.partial")) == [{"a": 1}]
    results.add([{"a": 2}])
    results.close()
    assert json.load(open("r.json")) == [{"a": 1}, {"a": 2}]


def test_a_full_disk_leaves_nothing_half_written(weights, images, capsys):
    write_video("clip.mp4", moving(40))
    with file_limit() as set_limit:
        set_limit(4000)
        assert run(weights, "--input", images, "clip.mp4", "--output", "out") == 1
    error = capsys.readouterr().err
    assert "4 of 4 files" in error and "clip.mp4: OpenCV could not write all frames" in error
    assert os.listdir("out") == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_run_after_the_image_in_work(weights, images, number, monkeypatch, capsys):
    handler = signal.getsignal(number)
    interrupt(monkeypatch, 2, lambda: os.kill(os.getpid(), number))
    arguments = ("--input", images, "--output", "out", "--json", "r.json")
    assert run(weights, *arguments) == 128 + number
    assert sorted(os.listdir("out")) == ["000001.png", "000002.png"]
    assert {r["image_id"] for r in json.load(open("r.json"))} == {1, 2}
    assert f"{number.name} ended the run after 2 of 3 files." in capsys.readouterr().err
    assert signal.getsignal(number) is handler


def test_a_signal_ends_a_video_after_the_frame_in_work(weights, images, monkeypatch, capsys):
    write_video("clip.mp4", moving())
    interrupt(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGINT))
    arguments = ("--input", "clip.mp4", images, "--output", "out", "--json", "r.json")
    assert run(weights, *arguments) == 130
    assert os.listdir("out") == ["clip.mp4"]
    assert len(read_video("out/clip.mp4")[0]) == 3
    assert {r["frame_number"] for r in json.load(open("r.json"))} == {0, 1, 2}
    assert "after 0 of 4 files; 3 frames of clip.mp4." in capsys.readouterr().err


def test_a_second_signal_ends_at_once_with_the_json_whole(weights, images, monkeypatch):
    def twice():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    interrupt(monkeypatch, 2, twice)
    with pytest.raises(KeyboardInterrupt):
        run(weights, "--input", images, "--output", "out", "--json", "r.json")
    assert {r["image_id"] for r in json.load(open("r.json"))} == {1}


def test_a_signal_that_is_ignored_stays_so():
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with demo.Signals() as signals:
            os.kill(os.getpid(), signal.SIGINT)
        assert signals.received is None
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, handler)


def test_a_picture_that_cannot_be_drawn_is_in_the_json_all_the_same(
    weights, images, monkeypatch, capsys
):
    draw = demo.Visualizer.draw_instance_predictions
    calls = []

    def draw_but_one(self, instances):
        calls.append(1)
        return draw(self, instances) if len(calls) != 2 else fail()

    monkeypatch.setattr(demo.Visualizer, "draw_instance_predictions", draw_but_one)
    assert run(weights, "--input", images, "--output", "out", "--json", "r.json") == 1
    assert sorted(os.listdir("out")) == ["000001.png", "000003.png"]
    assert {r["image_id"] for r in json.load(open("r.json"))} == {1, 2, 3}
    assert "000002.png: out of memory" in capsys.readouterr().err


# What is said


def test_it_says_where_nothing_was_found_and_at_which_threshold():
    tallies = {f"{i}.png": demo.Tally(0, 1, 1) for i in range(7)}
    assert demo.summary(tallies, 0.5) == (
        "Nothing was found with a score above 0.5 (--confidence-threshold)."
    )
    tallies["a.png"], tallies["b.png"] = demo.Tally(3, 1, 0), demo.Tally()
    text = demo.summary(tallies, 0.25)
    assert text.startswith("3 objects were found with a score above 0.25")
    assert text.endswith("found in 0.png, 1.png, 2.png, 3.png, 4.png and 2 more files.")
    tallies = {"c.mp4": demo.Tally(4, 10, 3), "d.mp4": demo.Tally(4, 10, 0)}
    assert demo.summary(tallies, 0.5).endswith("Nothing was found in 3 of 10 frames of c.mp4.")


def test_names_that_are_not_utf_8_are_printed(weights, images, monkeypatch, capsys):
    shutil.copy(images / "000001.png", "caf\udce9.png")
    monkeypatch.setattr(demo, "summary", lambda tallies, threshold: f"Found in {[*tallies][0]}.")
    assert run(weights, "--input", "caf\udce9.png", "--output", "out") == 0
    assert r"Found in caf\udce9.png." in capsys.readouterr().out


# Nothing is overwritten


def test_the_folder_for_pictures_is_no_file(weights, images):
    open("out", "w").close()
    with pytest.raises(ValueError, match="--output: out is a file; it must be a folder"):
        run(weights, "--input", images, "--output", "out")


def test_only_the_first_page_is_drawn_and_that_is_said(weights, log):
    pages = [Image.new("RGB", (64, 64), color) for color in ("red", "blue")]
    pages[0].save("pages.tif", save_all=True, append_images=pages[1:])
    pages[0].save("page.png")
    content = open("pages.tif", "rb").read()
    open("torn.tif", "wb").write(content[: len(content) // 2])
    assert run(weights, "--input", "pages.tif", "page.png", "torn.tif", "--output", "out") == 0
    (said,) = [r.getMessage() for r in log.records if "pages" in r.getMessage()]
    assert said == "pages.tif has several frames or pages. Only the first is drawn."


def test_existing_files_are_kept_unless_asked(weights, images):
    os.mkdir("out")
    for mine in ("out/000002.png", "results.json"):
        open(mine, "w").write("mine")
        arguments = ("--input", images, "--output", "out", "--json", "results.json")
        with pytest.raises(FileExistsError, match=f"the first {mine}; give --overwrite"):
            run(weights, *arguments)
        assert open(mine).read() == "mine"
        assert len(os.listdir("out")) == (mine == "out/000002.png")
        os.remove(mine)
    open("out/000002.png", "w").write("mine")
    assert run(weights, *arguments, "--overwrite") == 0
    assert cv2.imread("out/000002.png") is not None


def test_images_are_never_replaced_by_results(weights, images):
    os.mkdir("in")
    content = (images / "000001.png").read_bytes()
    open("in/a.png", "wb").write(content)
    with pytest.raises(ValueError, match="in/a.png would replace an image"):
        run(weights, "--input", "in", "--output", "in", "--overwrite")
    with pytest.raises(ValueError, match="--json: in/a.png would replace an image"):
        run(weights, "--input", "in", "--output", "out", "--json", "in/a.png", "--overwrite")
    assert open("in/a.png", "rb").read() == content


def test_two_images_of_one_name_are_an_error(weights):
    for name in ("a/x.png", "b/x.jpg"):
        os.makedirs(os.path.dirname(name))
        cv2.imwrite(name, np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match="a/x.png and b/x.jpg would both be drawn to out/x.png"):
        run(weights, "--input", "a", "b", "--output", "out")


def test_json_that_is_a_folder_is_an_error(weights, images):
    with pytest.raises(ValueError, match="--json: .* is a folder"):
        run(weights, "--input", images, "--output", "out", "--json", ".", "--overwrite")


# The model


def test_weights_must_be_given_and_exist(images):
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is empty; name a trained model"):
        run("", "--input", images, "--output", "out")
    with pytest.raises(FileNotFoundError, match="MODEL.WEIGHTS is 'missing.pth', which is no file"):
        run("missing.pth", "--input", images, "--output", "out")
    assert not os.path.exists("out")


@pytest.mark.parametrize("threshold", ["-0.1", "1.5", "nan"])
def test_the_threshold_must_be_a_score(weights, images, threshold):
    with pytest.raises(ValueError, match="--confidence-threshold is .* in \\[0, 1\\]"):
        run(weights, "--input", images, "--output", "out", threshold=threshold)


def test_without_a_gpu_the_cpu_is_used(weights, images, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments = ("--input", images / "000001.png", "--output", "out")
    assert run(weights, *arguments, MODEL__DEVICE="cuda") == 0
    assert os.listdir("out") == ["000001.png"]


def own_data(json_file):
    return {
        "DATASETS__COCO_JSON": [["cutlery", json_file, "."]],
        "DATASETS__TEST": "('cutlery',)",
    }


def test_two_images_of_one_number_are_an_error(weights):
    os.mkdir("in")
    for name in ("in/001.png", "in/1.png"):
        cv2.imwrite(name, np.zeros((32, 32, 3), np.uint8))
    arguments = ("--input", "in", "--output", "out")
    assert run(weights, *arguments) == 0
    with pytest.raises(ValueError, match="in/001.png and in/1.png would both have the image_id 1"):
        run(weights, *arguments, "--overwrite", "--json", "results.json")


@pytest.fixture
def forget_cutlery():
    yield
    if "cutlery" in DatasetCatalog:
        DatasetCatalog.remove("cutlery")
    if "cutlery" in set(MetadataCatalog):
        MetadataCatalog.remove("cutlery")


def test_category_ids_are_those_of_the_users_data_set(weights, images, forget_cutlery):
    categories = [{"id": 10 * i + 7, "name": f"spoon {i}"} for i in range(4)]
    json.dump({"images": [], "categories": categories}, open("cutlery.json", "w"))
    arguments = ("--input", images, "--output", "out", "--json", "results.json")
    assert run(weights, *arguments, **own_data("cutlery.json")) == 0
    ids = {r["category_id"] for r in json.load(open("results.json"))}
    assert ids and ids <= {7, 17, 27, 37}


@pytest.mark.parametrize("json_file", ["missing.json", "$NOT_SET/instances.json"])
def test_data_set_files_are_not_needed(weights, images, forget_cutlery, json_file):
    arguments = ("--input", images, "--output", "out", "--json", "results.json")
    assert run(weights, *arguments, **own_data(json_file)) == 0
    ids = {r["category_id"] for r in json.load(open("results.json"))}
    assert ids and ids <= set(range(4))
    assert len(os.listdir("out")) == 3


def test_an_entry_that_is_none_is_named(caplog):
    cfg = make_cfg()
    cfg.DATASETS.COCO_JSON, cfg.DATASETS.TEST = [[]], ("cutlery",)
    demo.find_metadata(cfg)
    assert "DATASETS.COCO_JSON[0] is []" in caplog.text


def test_no_data_set_is_needed(weights, images):
    arguments = ("--input", images / "000001.png", "--output", "out")
    assert run(weights, *arguments, DATASETS__TEST="()", DATASETS__TRAIN="()") == 0


def test_a_data_set_with_another_number_of_classes_is_an_error(weights, images):
    with pytest.raises(ValueError, match="NUM_CLASSES is 4, but .*'coco_2017_val' has 80"):
        run(weights, "--input", images, "--output", "out", DATASETS__TEST="('coco_2017_val',)")
    assert not os.path.exists("out")


def test_weights_that_do_not_fit_are_refused_unless_told(weights, images):
    arguments = ("--input", images / "000001.png", "--output", "out")
    with pytest.raises(ValueError, match="does not fit.*MODEL.WEIGHTS.*PARTIAL_WEIGHTS"):
        run(weights, *arguments, MODEL__ROI_BOX_HEAD__FC_DIM=48)
    partial = {"MODEL__MRCNN_PLUGIN__PARTIAL_WEIGHTS": True}
    assert run(weights, *arguments, MODEL__ROI_BOX_HEAD__FC_DIM=48, **partial) == 0


def test_a_model_without_objects_is_named(images, capsys):
    changes = {"MODEL__META_ARCHITECTURE": "ProposalNetwork"}
    cfg = make_cfg()
    cfg.merge_from_list(opts(**changes))
    torch.save({"model": build_model(cfg).state_dict()}, "rpn.pth")
    assert run("rpn.pth", "--input", images / "000001.png", "--output", "out", **changes) == 1
    error = capsys.readouterr().err
    assert "MODEL.META_ARCHITECTURE is 'ProposalNetwork', which finds proposals" in error


def test_grey_models(images):
    cfg = make_cfg()
    grey = {
        "INPUT__FORMAT": "L",
        "MODEL__PIXEL_MEAN": [100.0],
        "MODEL__PIXEL_STD": [50.0],
    }
    cfg.merge_from_list(opts(**grey))
    torch.save({"model": build_model(cfg).state_dict()}, "grey.pth")
    assert run("grey.pth", "--input", images, "--output", "out", **grey) == 0
    assert len(os.listdir("out")) == 3


def test_16_bit_images_are_refused_or_scaled(weights, images, capsys):
    grey = cv2.imread(str(images / "000001.png"), cv2.IMREAD_GRAYSCALE)
    os.mkdir("in")
    cv2.imwrite("in/a.png", grey.astype(np.uint16) * 257)
    cv2.imwrite("in/b.png", grey)
    arguments = ("--input", "in", "--output", "out", "--json", "r.json", "--overwrite")
    assert run(weights, *arguments) == 1
    error = capsys.readouterr().err
    assert "in/a.png: it has 16" in error and "INPUT.PIXEL_RANGE" in error
    assert run(weights, *arguments, INPUT__PIXEL_RANGE=[0, 65535]) == 0
    results = json.load(open("r.json"))
    a, b = ([r["score"] for r in results if r["image_id"] == id] for id in "ab")
    assert a == b and a


def test_an_image_on_which_the_model_fails_costs_no_other(weights, images, capsys):
    os.mkdir("in")
    cv2.imwrite("in/line.png", np.zeros((1, 3000), np.uint8))
    open("in/whole.png", "wb").write((images / "000001.png").read_bytes())
    assert run(weights, "--input", "in", "--output", "out", "--json", "r.json") == 1
    assert {r["image_id"] for r in json.load(open("r.json"))} == {"whole"}
    assert "in/line.png: " in capsys.readouterr().err


@pytest.mark.parametrize("number, shown", [(3, True), (2, False)])
def test_the_skeleton_is_drawn(forget_cutlery, number, shown):
    names = ["head", "trunk", "tail"]
    category = {"id": 1, "name": "spoon", "keypoints": names, "skeleton": [[1, 2], [2, 3]]}
    json.dump({"images": [], "categories": [category]}, open("cutlery.json", "w"))
    cfg = make_cfg()
    cfg.merge_from_list(["MODEL.ROI_HEADS.NUM_CLASSES", 1, "MODEL.KEYPOINT_ON", True])
    cfg.merge_from_list(["MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", number])
    cfg.DATASETS.COCO_JSON, cfg.DATASETS.TEST = [["cutlery", "cutlery.json", "."]], ("cutlery",)
    drawn = demo.Demo(cfg, None, demo.find_metadata(cfg), None, "", demo.Signals()).drawn

    points = [[20, 20, 1], [20, 180, 1], [180, 180, 1]][:number]
    found = Instances((200, 200), pred_keypoints=torch.tensor([points], dtype=torch.float32))
    found.scores, found.pred_classes = torch.ones(1), torch.zeros(1, dtype=torch.int64)
    found.pred_boxes = Boxes(torch.tensor([[5.0, 5, 195, 195]]))
    image = np.full((200, 200, 3), 255, np.uint8)
    picture = Visualizer(image, drawn).draw_instance_predictions(found).get_image()
    # In the middle between two keypoints
    assert (picture[100, 15:25].min() < 200) == (picture[175:185, 100].min() < 200) == shown


def test_dollars_in_class_names(weights, images, forget_cutlery):
    categories = [{"id": i, "name": f"US$ or NZ$ {{{i}"} for i in range(4)]
    json.dump({"images": [], "categories": categories}, open("cutlery.json", "w"))
    assert run(weights, "--input", images, "--output", "o", **own_data("cutlery.json")) == 0
