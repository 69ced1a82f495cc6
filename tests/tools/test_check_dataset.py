"""tools/check_dataset.py, run as a user would."""

import json
import os
import re

import cv2
import numpy as np
import pytest
from detectron2 import model_zoo
from PIL import Image

from mrcnn_plugin import load_cfg
from mrcnn_plugin.analysis import dataset
from mrcnn_plugin.data import generate_shapes
from tests.conftest import load_tool
from tests.small import CONFIGS

check_dataset = load_tool("check_dataset")


@pytest.fixture
def data(tmp_path):
    generate_shapes(str(tmp_path / "data"), 3, seed=5)
    return tmp_path / "data"


def run(data, *arguments):
    return check_dataset.main(
        [str(data / "instances.json"), str(data / "images"), *map(str, arguments)]
    )


def test_a_good_data_set(data, capsys):
    assert run(data, "--config-file", CONFIGS / "quickstart.yaml") == 0
    assert "kinds of faults refused: 0; others found: 0" in capsys.readouterr().out


def test_every_fault_is_listed_in_text_and_in_json(data, capsys, tmp_path):
    file = data / "instances.json"
    content = json.loads(file.read_text())
    for a in content["annotations"]:
        a["bbox"][2] *= -1
        del a["area"]
    file.write_text(json.dumps(content))
    (data / "images" / "000002.png").write_bytes(b"")
    assert run(data, "--json", tmp_path / "report.json") == 1
    out = capsys.readouterr().out
    for a in content["annotations"]:
        assert f"    annotation {a['id']} of image {a['image_id']}: bbox {a['bbox']}" in out
    assert "REPAIRED: " in out and "000002.png: it is empty" in out
    report = {entry["kind"]: entry for entry in json.loads((tmp_path / "report.json").read_text())}
    number = len(content["annotations"])
    assert report["bbox_negative"]["count"] == len(report["bbox_negative"]["examples"]) == number
    assert report["bbox_negative"]["level"] == "error"
    assert report["area_missing"]["level"] == "repaired"
    assert run(data, "--examples", 2) == 1
    assert capsys.readouterr().out.count("    annotation") == 4


def test_a_config_says_more(data, capsys):
    config = ("--config-file", CONFIGS / "quickstart.yaml")
    polygons = ("--opts", "INPUT.MASK_FORMAT", "polygon")
    assert run(data, *config, *polygons) == 1
    assert "INPUT.MASK_FORMAT is 'polygon'" in capsys.readouterr().out
    assert run(data, "--only", "test", *config, *polygons) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("MODEL.ROI_HEADS.NUM_CLASSES", 3), "MODEL.ROI_HEADS.NUM_CLASSES is 3"),
        (("MODEL.KEYPOINT_ON", True), "has no keypoint_names"),
    ],
)
def test_a_data_set_that_does_not_fit_the_config_is_refused(data, capsys, tmp_path, options, words):
    config = ("--config-file", CONFIGS / "quickstart.yaml")
    assert run(data, "--json", tmp_path / "report.json", *config, "--opts", *options) == 1
    out = capsys.readouterr().out
    assert f"REFUSED: {out[9:].splitlines()[0]}" in out and words in out
    assert "kinds of faults refused: 1;" in out
    (entry,) = json.loads((tmp_path / "report.json").read_text())
    assert entry["level"] == "error" and words in entry["hint"]


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        (None, (), "config.yaml cannot be read"),
        ("a: [", (), "config.yaml cannot be read"),
        ("- 1", (), "config.yaml cannot be read"),
        ("MODEL: {MASK_OM: True}\nVERSION: 2", (), "MASK_OM"),
        ("VERSION: 2", ("DATASETS.CHECK",), "--opts DATASETS.CHECK cannot be used"),
        ("VERSION: 2", ("DATASETS.CHECK", "some"), "DATASETS.CHECK is 'some'"),
        ("VERSION: 2", ("DATASETS.ALLOW", "['some']"), "DATASETS.ALLOW has 'some'"),
        ("VERSION: 2", ("INPUT.PIXEL_RANGE", "[1]"), "INPUT.PIXEL_RANGE is [1]"),
    ],
)
def test_a_config_that_cannot_be_used(data, capsys, tmp_path, text, options, words):
    if text is not None:
        (tmp_path / "config.yaml").write_text(text)
    assert run(data, "--config-file", tmp_path / "config.yaml", "--opts", *options) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1


def test_files_that_are_none(data, capsys):
    assert check_dataset.main([str(data / "no.json"), str(data)]) == 2
    (data / "instances.json").write_text("{}")
    assert run(data) == 2
    assert "not COCO JSON" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_costs_no_work(data, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(check_dataset, "find_problems", lambda *_, **__: pytest.fail("work"))
    (tmp_path / "file").touch()
    for folder, name in (("no", "report.json"), ("file", "report.json"), ("no", "")):
        assert run(data, "--json", f"{tmp_path}/{folder}/{name}") == 2
        assert f"there is no folder {tmp_path / folder}" in capsys.readouterr().err


def test_no_file_is_overwritten_by_the_report(data, capsys, monkeypatch):
    monkeypatch.setattr(check_dataset, "find_problems", lambda *_, **__: pytest.fail("work"))
    before = (data / "instances.json").read_bytes()
    assert run(data, "--json", data / "instances.json") == 2
    assert "instances.json exists already; name another file." in capsys.readouterr().err
    assert (data / "instances.json").read_bytes() == before


@pytest.mark.parametrize("written", ["same.yaml", "./same.yaml"])
def test_the_report_and_the_config_are_different_files(
    data, capsys, tmp_path, monkeypatch, written
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(check_dataset, "find_problems", lambda *_, **__: pytest.fail("work"))
    assert run(data, "--json", "same.yaml", "--write-config", written) == 2
    assert f"--json and --write-config both name {written}" in capsys.readouterr().err
    assert not (tmp_path / "same.yaml").exists()


@pytest.fixture
def val(tmp_path):
    generate_shapes(str(tmp_path / "val"), 2, seed=6)
    return [tmp_path / "val" / "instances.json", tmp_path / "val" / "images"]


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


class TestVal:
    def test_is_checked_as_a_test_set_and_the_other_one_for_training(self, data, val, capsys):
        for file in (data / "instances.json", val[0]):
            edit(file, lambda content: [a.pop("area") for a in content["annotations"]])
        assert run(data, "--val", *val) == 0
        out = capsys.readouterr().out
        # Only an evaluation needs areas.
        assert out.count("REPAIRED") == 1
        first, second = (
            out.index(f"{file}: kinds of faults refused: 0")
            for file in (data / "instances.json", val[0])
        )
        assert first < out.index("REPAIRED") < second

    def test_images_that_are_in_both_are_counted(self, data, val, capsys):
        assert run(data, "--val", *val) == 0
        assert "NOTE" not in capsys.readouterr().out
        content = json.loads((data / "instances.json").read_text())
        content["images"] = content["images"][:2]
        ids = [image["id"] for image in content["images"]]
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
        (data / "part.json").write_text(json.dumps(content))
        assert run(data, "--val", data / "part.json") == 0
        assert "NOTE: 2 images of --val are in" in capsys.readouterr().out

    def test_images_that_are_in_both_are_counted_however_the_folder_is_written(
        self, data, capsys, monkeypatch
    ):
        monkeypatch.chdir(data)
        (data / "link").symlink_to("images")
        for i, folder in enumerate(("images", "./images", data / "images", "link")):
            (data / f"copy{i}.json").write_bytes((data / "instances.json").read_bytes())
            assert run(data, "--val", f"copy{i}.json", folder) == 0
            assert "NOTE: 3 images of --val are in" in capsys.readouterr().out

    def test_can_be_in_the_same_folder_of_images_or_be_the_same_file(self, data, capsys):
        assert run(data, "--val", data / "instances.json") == 0
        assert capsys.readouterr().out.count("kinds of faults refused: 0") == 1

    @pytest.mark.parametrize("config", [(), ("--config-file", CONFIGS / "quickstart.yaml")])
    def test_must_have_the_same_categories(self, data, val, capsys, tmp_path, config):
        edit(val[0], lambda content: content["categories"][0].update(name="other"))
        assert run(data, "--val", *val, "--json", tmp_path / "report.json", *config) == 1
        out = capsys.readouterr().out
        assert "must have the same categories" in out and "against 'other'" in out
        (entry,) = json.loads((tmp_path / "report.json").read_text())
        assert (entry["kind"], entry["json_file"]) == ("config", str(val[0]))
        assert run(data, "--val", *val, "--write-config", tmp_path / "my.yaml") == 1
        assert "my.yaml is not written" in capsys.readouterr().out

    def test_names_the_same_json_file_with_the_same_images_only(self, data, val, capsys):
        assert run(data, "--val", data / "instances.json", val[1]) == 2
        err = capsys.readouterr().err
        assert f"--val names {data / 'instances.json'} too, but with the images in {val[1]}" in err
        assert "COCO_JSON" not in err


class TestWriteConfig:
    def test_the_file_trains_on_the_data_sets(self, data, val, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        assert check_dataset.main(
            ["data/instances.json", "data/images", "--val", "val/instances.json", "val/images"]
            + ["--write-config", "my.yaml"]
        ) == 0  # fmt: skip
        assert "Wrote my.yaml. To train: " in capsys.readouterr().out
        cfg = load_cfg("my.yaml")
        assert cfg.DATASETS.COCO_JSON == [
            ["my_train", "data/instances.json", "data/images"],
            ["my_val", "val/instances.json", "val/images"],
        ]
        assert cfg.DATASETS.TRAIN == ("my_train",) and cfg.DATASETS.TEST == ("my_val",)
        assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 4 and cfg.MODEL.DEVICE == "cpu"
        assert cfg.MODEL.RESNETS.DEPTH == 50 and cfg.OUTPUT_DIR == "./output/my"
        before = (tmp_path / "my.yaml").read_bytes()
        assert run(data, "--write-config", "my.yaml") == 2
        assert "my.yaml exists already" in capsys.readouterr().err
        assert (tmp_path / "my.yaml").read_bytes() == before

    def test_paths_that_are_not_utf_8_are_written(self, data, tmp_path):
        odd = data.rename(tmp_path / "caf\udce9")
        assert run(odd, "--write-config", tmp_path / "my.yaml") == 0
        ((_, *paths),) = load_cfg(str(tmp_path / "my.yaml")).DATASETS.COCO_JSON
        assert paths == [str(odd / "instances.json"), str(odd / "images")]

    def test_a_config_is_whole_or_not_there(self, data, tmp_path, monkeypatch):
        def fail(descriptor):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", fail)
        monkeypatch.chdir(tmp_path)
        before = sorted(os.listdir())
        with pytest.raises(OSError, match="No space left"):
            run(data, "--write-config", "my.yaml")
        assert sorted(os.listdir()) == before

    def test_keypoints_that_are_not_trained_are_named(self, data, capsys, tmp_path):
        assert run(data, "--write-config", tmp_path / "plain.yaml") == 0
        assert "Keypoints" not in capsys.readouterr().out
        content = json.loads((data / "instances.json").read_text())
        for category in content["categories"]:
            category["keypoints"] = ["left", "right"]
        file = data / "keypoints.json"
        file.write_text(json.dumps(content))
        arguments = [file, data / "images", "--write-config", tmp_path / "my.yaml"]
        assert check_dataset.main([*map(str, arguments)]) == 0
        assert "Keypoints are not trained." in (said := capsys.readouterr().out)
        assert "NUM_KEYPOINTS 2 " in said

    def test_the_base_is_found_from_the_folder_of_the_file(self, data, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "base.yaml").write_text(
            f"_BASE_: {CONFIGS / 'quickstart.yaml'}\nMODEL: {{MASK_ON: False}}\n"
        )
        (tmp_path / "folder").mkdir()
        assert run(data, "--base", "base.yaml", "--write-config", "folder/my.yaml") == 0
        assert '_BASE_: "../base.yaml"\n' in (tmp_path / "folder" / "my.yaml").read_text()
        cfg = load_cfg("folder/my.yaml")
        assert cfg.MODEL.MASK_ON is False and cfg.DATASETS.TRAIN == ("my_train",)

    def test_values_of_the_config_file_and_of_opts_stay(self, data, tmp_path):
        mine, written = tmp_path / "mine.yaml", tmp_path / "my.yaml"
        mine.write_text(f"_BASE_: {CONFIGS / 'Base-R18-GN-Small.yaml'}\nSOLVER: {{MAX_ITER: 90}}\n")
        assert run(
            data, "--config-file", mine, "--write-config", written, "--opts", "SOLVER.GAMMA", 0.5
        ) == 0  # fmt: skip
        cfg = load_cfg(str(written))
        assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.GAMMA) == (90, (60, 80), 0.5)

    @pytest.mark.parametrize(
        "key, value", [("SOLVER.IMS_PER_BATCH", "-1"), ("MODEL.ROI_BOX_HEAD.CLS_LOSS", "focl")]
    )
    def test_nothing_is_written_that_a_training_refuses(self, data, capsys, tmp_path, key, value):
        file = tmp_path / "my.yaml"
        assert run(data, "--write-config", file, "--opts", key, value) == 2
        assert key in capsys.readouterr().err and not file.exists()
        assert run(data, "--write-config", file, "--opts", "SOLVER.MAX_ITR", "9") == 2
        assert capsys.readouterr().err.startswith("--opts SOLVER.MAX_ITR 9 cannot be used: ")

    @pytest.mark.parametrize(
        "base, key",
        [
            ("COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml", "MODEL.META_ARCHITECTURE"),
            ("COCO-Detection/fast_rcnn_R_50_FPN_1x.yaml", "DATASETS.PROPOSAL_FILES_TRAIN"),
        ],
    )
    def test_a_base_that_cannot_train_on_the_data_is_refused(
        self, data, capsys, tmp_path, base, key
    ):
        file = tmp_path / "my.yaml"
        base = model_zoo.get_config_file(base)
        assert run(data, "--base", base, "--write-config", file) == 2
        assert key in capsys.readouterr().err and not file.exists()

    def test_nothing_is_written_if_data_are_refused(self, data, capsys, tmp_path):
        (data / "images" / "000002.png").write_bytes(b"")
        assert run(data, "--write-config", tmp_path / "my.yaml") == 1
        assert "my.yaml is not written" in capsys.readouterr().out
        assert not (tmp_path / "my.yaml").exists()

    def test_nor_if_the_config_would_not_fit_the_data(self, data, capsys, tmp_path):
        edit(data / "instances.json", lambda content: content["annotations"][0].pop("segmentation"))
        file = tmp_path / "my.yaml"
        assert run(data, "--write-config", file) == 1
        out = capsys.readouterr().out
        assert "MODEL.MASK_ON" in out and "my.yaml is not written" in out and not file.exists()
        assert run(data, "--write-config", file, "--opts", "MODEL.MASK_ON", False) == 0
        assert load_cfg(str(file)).MODEL.MASK_ON is False

    def test_images_of_16_bits_get_a_range(self, data, tmp_path):
        for path in (data / "images").iterdir():
            pixels = np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 16
            Image.fromarray(pixels).save(path)
        assert run(data, "--write-config", tmp_path / "my.yaml") == 0
        low, high = load_cfg(str(tmp_path / "my.yaml")).INPUT.PIXEL_RANGE
        assert 0 <= low < 300 and 3000 < high <= 255 * 16

    @pytest.mark.parametrize(
        "options",
        [
            ("--base", "base.yaml"),
            ("--base", "base.yaml", "--config-file", "my.yaml", "--write-config", "new.yaml"),
            ("--only", "train", "--write-config", "new.yaml"),
            ("--only", "train", "--val", "val.json"),
            ("--val", "a", "b", "c"),
            ("--opts", "MODEL.MASK_ON", False),
        ],
    )
    def test_options_that_exclude_each_other(self, data, capsys, options):
        with pytest.raises(SystemExit, match="2"):
            run(data, *options)
        assert options[0] in capsys.readouterr().err

    def test_a_folder_or_a_base_that_is_not_there(self, data, capsys, tmp_path):
        assert run(data, "--write-config", tmp_path / "no" / "my.yaml") == 2
        assert "no folder" in capsys.readouterr().err
        file = tmp_path / "my.yaml"
        assert run(data, "--base", tmp_path / "no.yaml", "--write-config", file) == 2
        assert f"--base {tmp_path / 'no.yaml'} cannot be read" in capsys.readouterr().err


# Numbers and pictures


def test_pictures_of_a_test_set_are_in_a_folder_of_their_own(data, val, tmp_path, monkeypatch):
    for name in ("plot_samples", "plot_extremes", "plot_statistics"):
        monkeypatch.setattr(dataset, name, lambda *arguments: open(arguments[-1], "x").close())
    assert run(data, "--val", *val, "--pictures", tmp_path / "pictures") == 0
    assert sorted(os.listdir(tmp_path / "pictures")) == sorted((*dataset.PICTURES, "val"))
    assert sorted(os.listdir(tmp_path / "pictures" / "val")) == sorted(dataset.PICTURES)


def test_the_report_ends_with_the_numbers(data, capsys):
    content = json.loads((data / "instances.json").read_text())
    assert run(data) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("3 images of ") and lines[0].endswith("; 0 without objects.")
    assert lines[1].startswith(f"{len(content['annotations'])} objects of ")
    assert lines[-1].endswith("kinds of faults refused: 0; others found: 0.")


def test_pictures(data, capsys, tmp_path):
    folder = tmp_path / "new" / "pictures"
    config = ("--config-file", CONFIGS / "quickstart.yaml")
    assert run(data, *config, "--pictures", folder) == 0
    assert sorted(os.listdir(folder)) == ["extremes.png", "samples.png", "statistics.png"]
    for name in os.listdir(folder):
        picture = cv2.imread(str(folder / name))
        assert min(picture.shape[:2]) > 400 and picture.std() > 10
    assert f"{folder / 'samples.png'}" in capsys.readouterr().out


def test_no_picture_is_overwritten(data, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(check_dataset, "find_problems", lambda *_, **__: pytest.fail("work"))
    (tmp_path / "extremes.png").write_text("mine")
    assert run(data, "--pictures", tmp_path) == 2
    assert "extremes.png exists already; name another folder" in capsys.readouterr().err
    assert (tmp_path / "extremes.png").read_text() == "mine"
    assert not (tmp_path / "samples.png").exists()
    assert run(data, "--pictures", tmp_path / "extremes.png" / "folder") == 2
    assert "folder cannot be written to" in capsys.readouterr().err


def test_pictures_that_fail_leave_the_report(data, tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(check_dataset, "plot_dataset", fail)
    with pytest.raises(OSError, match="No space left"):
        run(data, "--pictures", tmp_path / "pictures", "--json", tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text()) == []


def test_a_report_that_cannot_be_written_leaves_what_is_printed(data, capsys, monkeypatch):
    def fail(file, faults):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(check_dataset, "write_report", fail)
    with pytest.raises(OSError, match="No space left"):
        run(data, "--json", "report.json")
    assert "kinds of faults refused: 0; others found: 0." in capsys.readouterr().out


def test_a_folder_for_pictures_that_cannot_be_written_costs_no_work(data, capsys, monkeypatch):
    monkeypatch.setattr(check_dataset, "find_problems", lambda *_, **__: pytest.fail("work"))
    # Not even root can make a file there.
    assert run(data, "--pictures", "/proc/self") == 2
    assert "--pictures /proc/self cannot be written to" in capsys.readouterr().err


def test_pictures_of_faulty_data(data, capsys, tmp_path):
    file = data / "instances.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"][2] *= -1
    file.write_text(json.dumps(content))
    (data / "images" / "000002.png").write_bytes(b"")
    assert run(data, "--pictures", tmp_path / "pictures") == 1
    assert len(os.listdir(tmp_path / "pictures")) == 3
    content["annotations"][0]["segmentation"] = [1, 2, 3, 4, 5, 6]
    file.write_text(json.dumps(content))
    assert run(data, "--pictures", tmp_path / "none") == 1
    out = capsys.readouterr().out
    assert "there are no numbers and pictures, as the data cannot be read" in out
    assert "refused: 1;" not in out and os.listdir(tmp_path / "none") == []


def test_names_that_are_not_utf_8_are_printed_and_drawn(data, capsys, tmp_path):
    file = data / "instances.json"
    content = json.loads(file.read_text())
    # The byte 0xe9, which is é in Latin-1.
    content["images"][0]["file_name"] = "caf\udce9.png"
    content["images"][0]["width"] += 1
    content["categories"][0]["name"] = "caf\udce9"
    file.write_text(json.dumps(content))
    os.rename(data / "images" / "000001.png", data / "images" / "caf\udce9.png")
    report = tmp_path / "report.json"
    assert run(data, "--pictures", tmp_path / "pictures", "--json", report) == 1
    out = capsys.readouterr().out
    assert r"caf\udce9.png" in out and r"caf\udce9 " in out
    assert json.loads(report.read_text()) and len(os.listdir(tmp_path / "pictures")) == 3


@pytest.mark.parametrize("side", [float("inf"), 1e200])
@pytest.mark.parametrize("number", [1, None])
def test_pictures_of_boundless_boxes(data, capsys, tmp_path, side, number):
    file = data / "instances.json"
    content = json.loads(file.read_text())
    for annotation in content["annotations"][:number]:
        annotation["bbox"][2:] = [side, side]
    file.write_text(json.dumps(content))
    report = tmp_path / "report.json"
    run(data, "--pictures", tmp_path / "pictures", "--json", report)
    assert len(os.listdir(tmp_path / "pictures")) == 3 and json.loads(report.read_text())
    assert not re.search(r"all in .* (inf|nan)", capsys.readouterr().out)


def test_images_of_16_bits_are_drawn_as_they_are_seen(data, tmp_path, monkeypatch):
    originals = []
    for path in sorted((data / "images").iterdir()):
        originals.append(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
        cv2.imwrite(str(path), originals[-1].astype(np.uint16) * 16)
    seen = []

    def keep(dicts, statistics, read, title, file):
        seen.extend(read(record["file_name"]) for record in dicts)

    monkeypatch.setattr(dataset, "plot_samples", keep)
    for other in ("plot_extremes", "plot_statistics"):
        monkeypatch.setattr(dataset, other, lambda *_: None)
    run(data, "--pictures", tmp_path / "pictures")
    for image, original in zip(seen, originals, strict=True):
        assert image.dtype == np.uint8 and image.min() < 20 and image.max() > 235
        assert np.corrcoef(image[:, :, 1].ravel(), original.ravel())[0, 1] > 0.99


@pytest.mark.parametrize(
    "box", [[1, 2, 3], [1, 2, 30, 40, 0], [[1, 2], [3, 4]], "1,2,3,4", {"x": 1}]
)
def test_boxes_without_numbers_are_in_the_report(data, capsys, tmp_path, box):
    file = data / "instances.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"] = box
    file.write_text(json.dumps(content))
    assert run(data, "--json", tmp_path / "report.json") == 1
    assert "there are no numbers and pictures" in capsys.readouterr().out
    kinds = {entry["kind"] for entry in json.loads((tmp_path / "report.json").read_text())}
    assert any("box" in kind for kind in kinds), kinds
