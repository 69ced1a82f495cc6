"""tools/check_dataset.py, run as a user would."""

import json

import pytest

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
    assert "0 kinds of faults are refused, 0 others found" in capsys.readouterr().out


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
    assert "1 kinds of faults are refused" in out
    (entry,) = json.loads((tmp_path / "report.json").read_text())
    assert entry["level"] == "error" and words in entry["hint"]


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        (None, (), "config.yaml cannot be read"),
        ("a: [", (), "config.yaml cannot be read"),
        ("- 1", (), "config.yaml cannot be read"),
        ("MODEL: {MASK_OM: True}\nVERSION: 2", (), "MASK_OM"),
        ("VERSION: 2", ("DATASETS.CHECK",), "config.yaml cannot be read"),
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
