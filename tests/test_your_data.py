"""The commands of docs/your_data.md, run in their order on generated images."""

import itertools
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from mrcnn_plugin import load_cfg
from mrcnn_plugin.data import generate_shapes
from tests.small import ROOT

PAGE = (ROOT / "docs" / "your_data.md").read_text(encoding="utf-8")
# What makes the training of the page last seconds. The tool writes it into the config.
SHORT = {
    "INPUT.MIN_SIZE_TRAIN": (96,),
    "SOLVER.MAX_ITER": 1,
    "SOLVER.IMS_PER_BATCH": 2,
    "DATALOADER.NUM_WORKERS": 0,
    "MODEL.DEVICE": "cpu",
    "TEST.DETECTIONS_PER_IMAGE": 10,
}


def commands(start):
    """The indented commands of the page that begin with a word."""
    text = PAGE.replace("\\\n", "")
    return [line.strip() for line in re.findall(rf"^    {re.escape(start)} .*", text, re.MULTILINE)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A clone of this repository with the files that the page expects."""
    monkeypatch.chdir(tmp_path)
    for name in ("configs", "tools"):
        (tmp_path / name).symlink_to(ROOT / name)
    yield tmp_path
    for name in DatasetCatalog.list():
        if name.startswith("my_") or name.endswith(".json"):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def write_data(folder, **parts):
    """Writes a JSON file for each part, with so many images, and the folder `images` of all of them."""
    generated = folder / "generated"
    content = json.loads(Path(generate_shapes(str(generated), sum(parts.values()), 0)).read_text())
    (generated / "images").rename(folder / "images")
    for annotation in content["annotations"]:
        mask = mask_util.decode(annotation["segmentation"])
        contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        annotation["segmentation"] = [c.ravel().tolist() for c in contours if len(c) > 2]
    images = iter(content["images"])
    for file, number in parts.items():
        part = list(itertools.islice(images, number))
        ids = {image["id"] for image in part}
        objects = [a for a in content["annotations"] if a["image_id"] in ids]
        (folder / f"{file}.json").write_text(
            json.dumps({**content, "images": part, "annotations": objects})
        )


def run(command, monkeypatch):
    """Runs a Python script of the page in this process, which has imported everything."""
    _, script, *arguments = shlex.split(command)
    if "--write-config" in arguments:
        arguments += ["--opts", *(str(item) for pair in SHORT.items() for item in pair)]
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        assert not end.code, command


def test_the_commands_lead_from_images_to_pictures(folder, monkeypatch):
    write_data(folder, train=2, val=1)
    page_commands = commands(".venv/bin/python")
    tools = [shlex.split(command)[1] for command in page_commands]
    assert tools[:5] == [
        *["tools/check_dataset.py"] * 2,
        "tools/train_net.py",
        "tools/plot_results.py",
        "tools/demo.py",
    ]
    for command in page_commands:
        run(command, monkeypatch)
    assert load_cfg("my.yaml").SOLVER.BASE_LR == 0.0025
    for picture in ("losses.png", "predictions.png", "worst_images.png"):
        assert (folder / "output" / "my" / picture).is_file()
    assert len(list((folder / "predictions").glob("*.png"))) == 3


def test_labelme_is_converted_as_the_page_says(folder, monkeypatch):
    pytest.importorskip("supervision")
    write_data(folder, train=8)
    content = json.loads((folder / "train.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    (folder / "images").rename(folder / "folder")
    for image in content["images"]:
        shapes = [
            {
                "label": names[a["category_id"]],
                "shape_type": "polygon",
                "points": list(zip(polygon[::2], polygon[1::2], strict=True)),
                "group_id": a["id"],
            }
            for a in content["annotations"]
            if a["image_id"] == image["id"]
            for polygon in a["segmentation"]
        ]
        file = {"imagePath": image["file_name"], "shapes": shapes, "flags": {}, "imageData": None}
        file.update(imageHeight=image["height"], imageWidth=image["width"])
        (folder / "folder" / Path(image["file_name"]).with_suffix(".json")).write_text(
            json.dumps(file)
        )
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(snippet, {})
    parts = [json.loads((folder / f"{name}.json").read_text()) for name in ("train", "val")]
    assert sum(len(part["annotations"]) for part in parts) == len(content["annotations"])
    assert not any(a["iscrowd"] for part in parts for a in part["annotations"])
    run(
        "python tools/check_dataset.py train.json folder --val val.json folder",
        monkeypatch,
    )


@pytest.mark.skipif(not shutil.which("datum"), reason="datumaro is not installed")
def test_one_file_is_split_as_the_page_says(folder, monkeypatch):
    write_data(folder, instances_default=10)
    (folder / "export" / "annotations").mkdir(parents=True)
    (folder / "images").rename(folder / "export" / "images")
    (folder / "instances_default.json").rename(
        folder / "export" / "annotations" / "instances_default.json"
    )
    (command,) = commands("datum")
    subprocess.run(shlex.split(command), check=True)
    run(
        "python tools/check_dataset.py split/annotations/instances_train.json split/images/train "
        "--val split/annotations/instances_val.json split/images/val",
        monkeypatch,
    )
