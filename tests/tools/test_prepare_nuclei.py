"""tools/prepare_nuclei.py, on a small source with the folders of the real one."""

import cv2
import numpy as np
import pytest
from detectron2.data.datasets import load_coco_json
from pycocotools import mask as mask_util

from tests.conftest import load_tool

NAMES = ("aaaaa", "bbbbb", "ccccc", "ddddd", "eeeee")
COLOURED = NAMES[1]


@pytest.fixture
def tool(monkeypatch):
    tool = load_tool("prepare_nuclei")
    monkeypatch.setattr(tool, "EXPECTED", {"all": (5, 15), "train": (2, 6), "val": (1, 4)})
    monkeypatch.setattr(tool, "VALIDATION", ["ddddd"])
    monkeypatch.setattr(tool, "LEFT_OUT", ["ccccc"])
    return tool


def nucleus(position):
    mask = np.zeros((256, 256), np.uint8)
    mask[position : position + 10, position : position + 12] = 255
    return mask


@pytest.fixture
def source(tmp_path):
    for number, start in enumerate(NAMES, 1):
        folder = tmp_path / "source" / "stage1_train" / f"{start}{start * 10}"
        (folder / "images").mkdir(parents=True)
        (folder / "masks").mkdir()
        image = np.full((256, 256, 4), 40 * number, np.uint8)
        if start == COLOURED:
            image[0, 0, 2] += 1
        cv2.imwrite(str(folder / "images" / f"{folder.name}.png"), image)
        for i in range(number):
            cv2.imwrite(str(folder / "masks" / f"{i}.png"), nucleus(20 * i))
    return tmp_path / "source"


def test_grey_images_are_divided_into_two_parts(tool, source, tmp_path):
    output = tmp_path / "data" / "nuclei"
    tool.main([str(source), str(output)])
    train, val = (
        load_coco_json(str(output / f"instances_{part}.json"), str(output / "images"))
        for part in ("train", "val")
    )
    assert [image["image_id"] for image in train] == [1, 5]
    assert [image["image_id"] for image in val] == [4]
    assert [len(image["annotations"]) for image in train + val] == [1, 5, 4]
    for image in train + val:
        pixels = cv2.imread(image["file_name"], cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(pixels, np.full((256, 256), 40 * image["image_id"]))
        for i, annotation in enumerate(image["annotations"]):
            assert annotation["bbox"] == [20 * i, 20 * i, 12, 10]
            mask = mask_util.decode(annotation["segmentation"])
            np.testing.assert_array_equal(mask, nucleus(20 * i) > 0)
    names = {path.name for path in output.iterdir()}
    assert names == {"images", "instances_train.json", "instances_val.json"}


def test_nothing_is_overwritten(tool, source, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "file").write_text("mine")
    for output, message in (
        ("mine", "mine exists already"),
        ("link", "link exists already"),
        ("file/nuclei", "file/nuclei cannot be written"),
    ):
        with pytest.raises(SystemExit):
            tool.main([str(source), str(tmp_path / output)])
        assert message in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"source", "mine", "link", "file"}
    assert not list((tmp_path / "mine").iterdir())


def refused(tool, source, output, message):
    with pytest.raises(SystemExit, match=message):
        tool.main([str(source), str(output)])
    assert not output.exists() and not list(output.parent.glob("*.partial-*"))


def test_an_incomplete_source_is_refused(tool, source, tmp_path):
    output = tmp_path / "nuclei"
    (source / "stage1_train" / ".DS_Store").write_bytes(b"")
    refused(tool, tmp_path, output, "'train': \\(0, 0\\).* Expected are .*'train': \\(2, 6\\)")
    folders = sorted(source.glob("stage1_train/*/masks"))
    # It belongs to no part, but the ids of those after it would change.
    left_out = folders[2] / "0.png"
    left_out.rename(source / "0.png")
    refused(tool, source, output, "'all': \\(5, 14\\)")
    (source / "0.png").rename(left_out)
    cv2.imwrite(str(folders[3] / "0.png"), np.zeros((256, 256, 3), np.uint8))
    refused(tool, source, output, "0.png is missing or damaged")
    next(source.rglob("images/*.png")).write_bytes(b"no picture")
    refused(tool, source, output, "png is missing or damaged")
