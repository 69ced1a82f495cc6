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


def test_files_that_are_none(data, capsys):
    assert check_dataset.main([str(data / "no.json"), str(data)]) == 2
    (data / "instances.json").write_text("{}")
    assert run(data) == 2
    assert "not COCO JSON" in capsys.readouterr().err
