import json
import os
import string
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.data.detection_utils import create_keypoint_hflip_indices
from detectron2.utils.file_io import PathHandler, PathManager
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mrcnn_plugin import add_mrcnn_config
from mrcnn_plugin.data import (
    check_categories,
    check_datasets,
    coco_json,
    register_coco_json,
    register_coco_json_from_file,
)
from mrcnn_plugin.data.checks import Usage
from mrcnn_plugin.data.keypoints import find_flip_pairs

CATEGORIES = [{"id": 7, "name": "spoon"}, {"id": 3, "name": "fork"}]


def write_coco(folder, categories=CATEGORIES):
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 10)).save(folder / "images" / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 10, "width": 20}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": categories[0]["id"],
                "bbox": [1, 2, 5, 5],
                "area": 25,
                "iscrowd": 0,
                "segmentation": [[1, 2, 6, 2, 6, 7, 1, 7]],
            }
        ],
        "categories": categories,
    }
    (folder / "instances.json").write_text(json.dumps(content))
    return str(folder / "instances.json"), str(folder / "images")


@pytest.fixture(autouse=True)
def catalogs():
    """Removes from Detectron2's catalogs what a test registered."""
    names, metadata = set(DatasetCatalog), set(MetadataCatalog)
    yield
    for name in set(DatasetCatalog) - names:
        DatasetCatalog.remove(name)
    for name in set(MetadataCatalog) - metadata:
        MetadataCatalog.remove(name)


@pytest.fixture
def coco(tmp_path):
    return write_coco(tmp_path / "cutlery")


def make_cfg(train=(), test=(), num_classes=2, entries=()):
    cfg = get_cfg()
    add_mrcnn_config(cfg)
    cfg.DATASETS.TRAIN = tuple(train)
    cfg.DATASETS.TEST = tuple(test)
    cfg.DATASETS.COCO_JSON = [list(entry) for entry in entries]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    return cfg


# Registration


def test_detectron2_loads_a_registered_data_set(coco):
    register_coco_json([("cutlery", *coco)])
    (image,) = DatasetCatalog.get("cutlery")
    assert image["file_name"] == os.path.join(coco[1], "a.png")
    assert image["annotations"][0]["category_id"] == 1
    assert MetadataCatalog.get("cutlery").json_file == coco[0]
    assert MetadataCatalog.get("cutlery").evaluator_type == "coco"


@settings(max_examples=25, deadline=None)
@given(
    categories=st.dictionaries(
        st.integers(0, 10**6), st.text(string.ascii_letters, min_size=1), min_size=1, max_size=8
    ).filter(lambda categories: len(set(categories.values())) == len(categories))
)
def test_categories_are_known_before_loading_just_as_after(tmp_path_factory, categories):
    listed = [{"id": id, "name": name} for id, name in categories.items()]
    entry = ("before", *write_coco(tmp_path_factory.mktemp("coco"), listed))
    register_coco_json([entry])
    try:
        metadata = MetadataCatalog.get("before")
        known = (metadata.thing_classes, metadata.thing_dataset_id_to_contiguous_id)
        # Detectron2's own loading, into metadata that nothing was put into.
        load_coco_json(*entry[1:], "after")
        metadata = MetadataCatalog.get("after")
        assert known == (metadata.thing_classes, metadata.thing_dataset_id_to_contiguous_id)
        assert len(DatasetCatalog.get("before")) == 1
    finally:
        DatasetCatalog.remove("before")
        MetadataCatalog.remove("before")
        MetadataCatalog.remove("after")


def test_the_same_entry_again_is_harmless(coco):
    register_coco_json([("cutlery", *coco)])
    register_coco_json([["cutlery", *coco]])
    assert len(DatasetCatalog.get("cutlery")) == 1


def test_a_registered_file_is_not_read_again(coco, monkeypatch):
    register_coco_json([("cutlery", *coco)])
    monkeypatch.setattr(coco_json, "inspect_json", lambda *_, **__: pytest.fail("It is read."))
    register_coco_json([("cutlery", *coco)])


def test_data_sets_are_checked_once_when_the_first_is_loaded(coco, tmp_path, monkeypatch):
    checked = []

    def check_usage(usage):
        checked.append(list(usage.train))
        if len(checked) == 1:
            raise ValueError("It is refused.")

    monkeypatch.setattr(coco_json, "check_usage", check_usage)
    register_coco_json([("one", *coco), ("two", *write_coco(tmp_path / "two"))])
    assert not checked
    with pytest.raises(ValueError, match="It is refused"):
        DatasetCatalog.get("two")
    for name in ("one", "two"):
        DatasetCatalog.get(name)
    assert checked == [["one", "two"]] * 2


def test_variables_and_home_are_expanded(coco, monkeypatch):
    folder = os.path.dirname(coco[0])
    monkeypatch.setenv("CUTLERY", folder)
    monkeypatch.setenv("HOME", folder)
    register_coco_json(
        [
            ("a", "$CUTLERY/instances.json", "${CUTLERY}/images"),
            ("b", "~/instances.json", "~/images"),
        ]
    )
    for name in ("a", "b"):
        assert (MetadataCatalog.get(name).json_file, MetadataCatalog.get(name).image_root) == coco
        assert len(DatasetCatalog.get(name)) == 1


def test_relative_paths_start_at_the_working_directory(coco, monkeypatch):
    monkeypatch.chdir(os.path.dirname(coco[0]))
    register_coco_json([("cutlery", "instances.json", "images")])
    assert len(DatasetCatalog.get("cutlery")) == 1


class _Shelf(PathHandler):
    """Gives the files of a folder the prefix shelf://. Like a remote store, it knows no folders."""

    folder = ""

    def _get_supported_prefixes(self):
        return ["shelf://"]

    def _get_local_path(self, path, force=False, **kwargs):
        return os.path.join(self.folder, path[len("shelf://") :])


def test_paths_may_use_iopath_handlers(coco):
    _Shelf.folder = os.path.dirname(coco[0])
    PathManager.register_handler(_Shelf(), allow_override=True)
    register_coco_json([("cutlery", "shelf://instances.json", "shelf://images")])
    (image,) = DatasetCatalog.get("cutlery")
    assert image["file_name"] == "shelf://images/a.png"
    with pytest.raises(FileNotFoundError, match="shelf://other.json"):
        register_coco_json([("other", "shelf://other.json", "shelf://images")])


def test_an_empty_list_registers_nothing():
    before = set(DatasetCatalog)
    register_coco_json(make_cfg().DATASETS.COCO_JSON)
    assert set(DatasetCatalog) == before


# Keypoints


def with_keypoints(names):
    return [{**category, "keypoints": names} for category in CATEGORIES]


@pytest.mark.parametrize(
    ("names", "flipped"),
    [
        (["left_eye", "right_eye", "nose"], [1, 0, 2]),
        (["nose", "Right eye", "Left eye"], [0, 2, 1]),
        (["LEFT_EYE", "RIGHT_EYE"], [1, 0]),
        (["leftEye", "RightEye"], [1, 0]),
        (["eyeleft", "eyeright"], [1, 0]),
        (["l_eye", "r_eye"], [1, 0]),
        (["eye_l", "eye_r"], [1, 0]),
        (["Eye.L", "Eye.R", "Ear-L", "Ear-R"], [1, 0, 3, 2]),
        (["eye l 1", "eye r 1"], [1, 0]),
        (["L", "R"], [1, 0]),
        (["upright_left", "upright_right"], [1, 0]),
        (["left_eye_left_corner", "right_eye_right_corner"], [1, 0]),
        (["left_eye_right_corner", "right_eye_left_corner"], [1, 0]),
        # No partner
        (["left_eye", "right_ear"], [0, 1]),
        (["left_eye", "r_eye"], [0, 1]),
        (["lip", "rip", "tail", "tair"], [0, 1, 2, 3]),
        # These cannot be told apart.
        (["left_eye", "LEFT_EYE", "right_eye"], [0, 2, 1]),
    ],
)
def test_keypoints_of_left_and_right_are_exchanged(tmp_path, names, flipped):
    register_coco_json([("cutlery", *write_coco(tmp_path, with_keypoints(names)))])
    # What Detectron2's mapper makes of the pairs.
    assert create_keypoint_hflip_indices(["cutlery"]) == flipped


@given(
    st.lists(
        st.lists(st.sampled_from("left Right l R e _ .".split()), min_size=1, max_size=4).map(
            "".join
        ),
        min_size=1,
        unique=True,
    )
)
def test_keypoints_are_exchanged_for_each_other(names):
    MetadataCatalog.get("exchanged").set(
        keypoint_names=names, keypoint_flip_map=find_flip_pairs(names)
    )
    flipped = create_keypoint_hflip_indices(["exchanged"])
    MetadataCatalog.remove("exchanged")
    assert [flipped[i] for i in flipped] == list(range(len(names)))


def test_pairs_of_keypoints_that_other_code_gave_are_kept(tmp_path):
    pairs = [("port", "starboard")]
    MetadataCatalog.get("boats").keypoint_flip_map = pairs
    entry = ("boats", *write_coco(tmp_path, with_keypoints(["port", "starboard"])))
    register_coco_json([entry])
    assert MetadataCatalog.get("boats").keypoint_flip_map == pairs
    # Registered anew
    register_coco_json([entry], masks=False)
    assert MetadataCatalog.get("boats").keypoint_flip_map == pairs
    assert create_keypoint_hflip_indices(["boats"]) == [1, 0]


@pytest.mark.parametrize("remove", [DatasetCatalog.remove, lambda _: DatasetCatalog.clear()])
def test_a_notebook_may_remove_a_data_set_and_register_it_again(tmp_path, remove, monkeypatch):
    monkeypatch.setattr(DatasetCatalog, "data", dict(DatasetCatalog.data))
    entries = [("boats", *write_coco(tmp_path))]
    register_coco_json(entries)
    MetadataCatalog.get("boats").color = "red"
    remove("boats")
    write_coco(tmp_path, [{"id": 1, "name": "boat"}])
    register_coco_json(entries)
    metadata = MetadataCatalog.get("boats")
    assert metadata.thing_classes == ["boat"] and metadata.color == "red"


@pytest.mark.parametrize("classes", [["cat"], np.array(["cat", "dog"])])
def test_other_metadata_of_other_code_are_an_error_before_anything_is_registered(coco, classes):
    MetadataCatalog.get("first").set(palette=np.arange(3), evaluator_type="coco", json_file=coco[0])
    MetadataCatalog.get("mine").thing_classes = classes
    with pytest.raises(ValueError, match="'mine'.*'thing_classes'.*cat.*fork"):
        register_coco_json([("first", *coco), ("mine", *coco)])
    assert not {"first", "mine"} & set(DatasetCatalog)
    register_coco_json([("first", *coco)])
    register_coco_json([("first", *coco)], masks=False)
    assert list(MetadataCatalog.get("first").palette) == [0, 1, 2]


def test_a_file_that_was_written_again_is_registered_anew(tmp_path):
    keypoints = with_keypoints(["left", "right"])
    entries = [("boats", *write_coco(tmp_path, keypoints))]
    register_coco_json(entries)
    MetadataCatalog.get("boats").color = "red"
    MetadataCatalog.get("boats").keypoint_connection_rules = [("left", "right", (1, 2, 3))]
    assert len(DatasetCatalog.get("boats")) == 1
    file = tmp_path / "instances.json"
    content = json.loads(file.read_text())
    content["categories"] = [{"id": 7, "name": "spoon"}]
    content["annotations"][0].update(category_id=7, bbox=[1, 2, -5, 5])
    file.write_text(json.dumps(content))
    register_coco_json(entries)
    metadata = MetadataCatalog.get("boats")
    assert metadata.thing_classes == ["spoon"] and metadata.color == "red"
    assert "keypoint_flip_map" not in metadata.as_dict()
    assert metadata.keypoint_connection_rules == [("left", "right", (1, 2, 3))]
    with pytest.raises(ValueError, match="box"):
        DatasetCatalog.get("boats")
    file.unlink()
    with pytest.raises(FileNotFoundError, match="'boats'.* cannot be read"):
        register_coco_json(entries)


def test_data_sets_that_are_not_registered_cannot_be_checked(coco):
    cfg = get_cfg()
    add_mrcnn_config(cfg)
    cfg.DATASETS.COCO_JSON = [["cutlery", *coco]]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("cutlery",), ()
    with pytest.raises(ValueError, match="'cutlery', which is not registered; call register_coco"):
        check_datasets(cfg)
    register_coco_json(cfg.DATASETS.COCO_JSON)
    check_datasets(cfg)


def test_a_data_set_is_loaded_before_other_code_registers_its_own(coco):
    usage = Usage(train=["cutlery"], test=["theirs"])
    register_coco_json([("cutlery", *coco)], usage=usage)
    assert len(DatasetCatalog.get("cutlery")) == 1


def with_skeleton(skeleton):
    return [{**c, "skeleton": skeleton} for c in with_keypoints(["head", "trunk", "tail"])]


@pytest.mark.parametrize("check", ["fast", "off"])
def test_the_skeleton_says_which_keypoints_are_connected(tmp_path, check):
    entry = ("cutlery", *write_coco(tmp_path, with_skeleton([[1, 2], [3, 2]])))
    # The second registration reads what the first one remembered.
    for masks in (True, False, True):
        register_coco_json([entry], check=check, masks=masks)
        rules = MetadataCatalog.get("cutlery").keypoint_connection_rules
        assert [rule[:2] for rule in rules] == [("head", "trunk"), ("tail", "trunk")]
        colors = {color for _, _, color in rules}
        assert len(colors) == 2 and all(0 <= part <= 255 for color in colors for part in color)


@pytest.mark.parametrize(
    "skeleton",
    [[], None, 3, "12", {"1": 2}, [1, 2], [[1, 2, 3]], [[1]], [[0, 1]], [[1, 4]], [[1, 2.5]], [["1", "2"]],
     [[True, 2]], [None], [[1, 2], [2, None]]],
)  # fmt: skip
def test_a_skeleton_that_is_none_is_left_out(tmp_path, skeleton):
    register_coco_json([("cutlery", *write_coco(tmp_path, with_skeleton(skeleton)))])
    metadata = MetadataCatalog.get("cutlery")
    assert metadata.keypoint_names == ["head", "trunk", "tail"]
    assert "keypoint_connection_rules" not in metadata.as_dict()


def test_skeletons_that_differ_are_left_out(tmp_path):
    spoon, fork = with_skeleton([[1, 2]])
    fork["skeleton"] = [[2, 3]]
    register_coco_json([("cutlery", *write_coco(tmp_path, [spoon, fork]))])
    assert "keypoint_connection_rules" not in MetadataCatalog.get("cutlery").as_dict()


def test_a_skeleton_that_other_code_gave_is_kept(tmp_path):
    rules = [("head", "tail", (1, 2, 3))]
    MetadataCatalog.get("cutlery").keypoint_connection_rules = rules
    entry = ("cutlery", *write_coco(tmp_path, with_skeleton([[1, 2]])))
    for masks in (True, False):
        register_coco_json([entry], masks=masks)
        assert MetadataCatalog.get("cutlery").keypoint_connection_rules == rules


# Errors


@pytest.mark.parametrize(
    "entry",
    ["cutlery", ("cutlery", "a.json"), ("cutlery", "a.json", 3), ("", "a", "b"), {"name": 1}, None],
)
def test_an_entry_must_be_three_strings(coco, entry):
    with pytest.raises(ValueError, match=r"DATASETS.COCO_JSON\[1\] is .* three strings"):
        register_coco_json([("cutlery", *coco), entry])
    assert "cutlery" not in DatasetCatalog


@pytest.mark.parametrize("entries", ["cutlery", None, {"cutlery": "a.json"}])
def test_the_entries_must_be_a_list(entries):
    with pytest.raises(ValueError, match="DATASETS.COCO_JSON is .* must be a list"):
        register_coco_json(entries)


def test_a_missing_json_file_is_an_error(coco, monkeypatch):
    monkeypatch.chdir(os.path.dirname(coco[0]))
    absolute = os.path.join(os.getcwd(), "missing.json")
    with pytest.raises(FileNotFoundError, match=rf"COCO_JSON\[0\] \('cutlery'\).*{absolute}"):
        register_coco_json([("cutlery", "missing.json", coco[1])])


def test_a_folder_in_place_of_a_json_file_is_an_error(coco):
    with pytest.raises(FileNotFoundError, match=r"COCO_JSON\[0\] \('cutlery'\).*cannot be read"):
        register_coco_json([("cutlery", coco[1], coco[1])])


def test_a_missing_image_root_is_an_error(coco):
    with pytest.raises(FileNotFoundError, match=r"COCO_JSON\[0\].*image root .*nowhere is no dir"):
        register_coco_json([("cutlery", coco[0], coco[1] + "/nowhere")])


def test_nothing_is_registered_if_any_entry_is_wrong(coco):
    with pytest.raises(FileNotFoundError, match=r"COCO_JSON\[1\]"):
        register_coco_json([("first", *coco), ("second", "missing.json", coco[1])])
    assert "first" not in DatasetCatalog


def test_a_name_that_is_listed_twice_is_an_error(coco):
    with pytest.raises(ValueError, match=r"COCO_JSON\[1\] \('cutlery'\).*COCO_JSON\[0\]"):
        register_coco_json([("cutlery", *coco), ("cutlery", *coco)])


def test_a_name_of_detectron2_is_an_error(coco):
    with pytest.raises(ValueError, match=r"COCO_JSON\[0\] \('coco_2017_train'\).*Use another name"):
        register_coco_json([("coco_2017_train", *coco)])


def test_a_name_that_is_registered_with_other_files_is_an_error(coco, tmp_path):
    register_coco_json([("cutlery", *coco)])
    with pytest.raises(ValueError, match="cutlery.*registered already.*moved"):
        register_coco_json([("cutlery", *write_coco(tmp_path / "moved"))])


@pytest.mark.parametrize("path", ["$CUTLERY/instances.json", "a/${CUTLERY}/instances.json"])
def test_a_variable_that_is_not_set_is_an_error(coco, monkeypatch, path):
    monkeypatch.delenv("CUTLERY", raising=False)
    with pytest.raises(
        ValueError, match=r"json file of DATASETS.COCO_JSON\[0\].*CUTLERY is not set"
    ):
        register_coco_json([("cutlery", path, coco[1])])
    with pytest.raises(ValueError, match=r"image root of DATASETS.COCO_JSON\[0\].*CUTLERY is not"):
        register_coco_json([("cutlery", coco[0], path)])


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "not valid JSON"),
        ('{"images": [', "not valid JSON"),
        ("[1, 2]", "not COCO JSON"),
        ('{"categories": [{"id": 1, "name": "a"}]}', "not COCO JSON"),
        ('{"images": []}', "no categories"),
        ('{"images": [], "categories": []}', "no categories"),
        ('{"images": [], "categories": ["fork"]}', "category 'fork'"),
        ('{"images": [], "categories": [{"id": "1", "name": "fork"}]}', "unique integer id"),
        ('{"images": [], "categories": [{"id": 1}]}', "unique integer id"),
        (
            '{"images": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
            "unique integer id",
        ),
    ],
)
def test_a_file_that_is_not_coco_json_is_an_error(coco, content, message):
    Path(coco[0]).write_text(content)
    with pytest.raises(ValueError, match=rf"COCO_JSON\[0\] \('cutlery'\).*{message}"):
        register_coco_json([("cutlery", *coco)])
    assert "cutlery" not in DatasetCatalog


# A YAML file


def test_a_yaml_file_needs_no_other_key(coco, tmp_path):
    file = tmp_path / "datasets.yaml"
    file.write_text(f"DATASETS:\n  COCO_JSON:\n    - {json.dumps(['cutlery', *coco])}\n")
    register_coco_json_from_file(str(file))
    assert len(DatasetCatalog.get("cutlery")) == 1


def test_a_config_file_inherits_its_data_sets(coco, tmp_path):
    (tmp_path / "Base.yaml").write_text(
        f"DATASETS:\n  COCO_JSON: [{json.dumps(['cutlery', *coco])}]\nVERSION: 2\n"
    )
    (tmp_path / "config.yaml").write_text(
        '_BASE_: "Base.yaml"\nMODEL:\n  MASK_ON: True\nDATASETS:\n  TRAIN: ("cutlery",)\n'
    )
    register_coco_json_from_file(str(tmp_path / "config.yaml"))
    assert "cutlery" in DatasetCatalog


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "is empty; it must be a mapping"),
        ("[]", "holds a list; it must be a mapping"),
        ("MODEL:\n  MASK_ON: True", "has no DATASETS.COCO_JSON"),
        ("DATASETS:", "DATASETS is None; it must be a mapping"),
        ("DATASETS: !!python/object/apply:os.getcwd []", ".*MRCNN_PLUGIN_ALLOW_UNSAFE_YAML=1"),
    ],
)
def test_a_yaml_file_without_data_sets_is_an_error(tmp_path, content, message):
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(ValueError, match=f"config.yaml[,:]? {message}"):
        register_coco_json_from_file(str(tmp_path / "config.yaml"))


@pytest.mark.parametrize(
    "value, message",
    [
        ('TRAIN: ("q"', r"DATASETS.TRAIN is '\(\"q\"', which is no tuple"),
        ("TEST: (q,)", r"DATASETS.TEST is '\(q,\)', which is no tuple"),
        ("TEST: q", "DATASETS.TEST is 'q'; it must be a list"),
        ("COCO_JSON: [[]]", r"DATASETS.COCO_JSON\[0\] is \[\]; it must be three strings"),
        ("COCO_JSON: 3", "DATASETS.COCO_JSON is 3; it must be a list"),
    ],
)
def test_a_wrong_value_in_a_yaml_file_is_named(tmp_path, value, message):
    content = value if "COCO_JSON" in value else f"COCO_JSON: []\n  {value}"
    (tmp_path / "config.yaml").write_text(f"DATASETS:\n  {content}\n")
    with pytest.raises(ValueError, match=message):
        register_coco_json_from_file(str(tmp_path / "config.yaml"))


def test_a_missing_yaml_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing.yaml.*DATASETS.COCO_JSON"):
        register_coco_json_from_file(str(tmp_path / "missing.yaml"))


# Categories


def register_two(tmp_path, categories):
    entries = [
        ("train", *write_coco(tmp_path / "train")),
        ("val", *write_coco(tmp_path / "val", categories)),
    ]
    register_coco_json(entries)
    return entries


def test_data_sets_with_the_same_categories_fit(tmp_path):
    entries = register_two(tmp_path, CATEGORIES[::-1])
    check_categories(make_cfg(["train"], ["val"], entries=entries))
    check_categories(make_cfg([], []))


@pytest.mark.parametrize(
    "categories, difference",
    [
        (CATEGORIES[:1], "id 3: 'fork' against None"),
        (CATEGORIES[:1] + [{"id": 3, "name": "knife"}], "id 3: 'fork' against 'knife'"),
        (CATEGORIES + [{"id": 8, "name": "knife"}], "id 8: None against 'knife'"),
        (
            [{"id": 3, "name": "spoon"}, {"id": 7, "name": "fork"}],
            "id 3: 'fork' against 'spoon'; id 7: 'spoon' against 'fork'",
        ),
    ],
)
def test_data_sets_with_different_categories_are_an_error(tmp_path, categories, difference):
    entries = register_two(tmp_path, categories)
    with pytest.raises(ValueError, match=f"'train' and 'val'.*differ in {difference}"):
        check_categories(make_cfg(["train"], ["val"], entries=entries))
    # A data set that is listed but not used is not checked.
    check_categories(make_cfg(["train"], [], entries=entries))


@pytest.mark.parametrize("num_classes", [1, 3, 80])
def test_the_number_of_classes_must_be_that_of_the_data_set(tmp_path, num_classes):
    entries = register_two(tmp_path, CATEGORIES)
    cfg = make_cfg(["train"], ["val"], num_classes, entries)
    with pytest.raises(ValueError, match=f"NUM_CLASSES is {num_classes}.*'train' has 2 .* to 2"):
        check_categories(cfg)
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    with pytest.raises(ValueError, match="MODEL.RETINANET.NUM_CLASSES is 80.*'train' has 2"):
        check_categories(cfg)
    cfg.MODEL.RETINANET.NUM_CLASSES = 2
    check_categories(cfg)
    cfg.MODEL.META_ARCHITECTURE = "ProposalNetwork"
    check_categories(cfg)


def test_generated_shapes_and_detectron2s_data_sets_are_checked_too():
    check_categories(make_cfg(["mrcnn_shapes_train"], ["mrcnn_shapes_val"], 4))
    check_categories(make_cfg(["coco_2017_train"], ["coco_2017_val"], 80))
    with pytest.raises(
        ValueError, match="NUM_CLASSES is 80, but the data set 'mrcnn_shapes_train' has 4"
    ):
        check_categories(make_cfg(["mrcnn_shapes_train"], ["mrcnn_shapes_val"], 80))
    with pytest.raises(ValueError, match="id 1: 'person' against 'disc'.*and 75 more"):
        check_categories(make_cfg(["coco_2017_train"], ["mrcnn_shapes_val"], 80))


def test_data_sets_of_unknown_categories_are_left_alone():
    check_categories(make_cfg(["lvis_v1_train"], ["cityscapes_fine_instance_seg_val"], 11))


@pytest.mark.parametrize("key", ["TRAIN", "TEST"])
def test_a_data_set_that_is_not_registered_is_an_error(coco, key):
    register_coco_json([("cutlery_train", *coco)])
    cfg = make_cfg(**{key.lower(): ["cutlery_tarin"]})
    with pytest.raises(ValueError, match=f"DATASETS.{key} .*'cutlery_tarin'.*'cutlery_train'"):
        check_categories(cfg)
    cfg = make_cfg(**{key.lower(): ["xyz"]})
    with pytest.raises(ValueError, match="'xyz'.*registered are .*cutlery_train"):
        check_categories(cfg)


def test_a_file_with_the_categories_of_coco_fits_detectron2s_coco(tmp_path):
    ids = MetadataCatalog.get("coco_2017_val").thing_dataset_id_to_contiguous_id
    names = MetadataCatalog.get("coco_2017_val").thing_classes
    categories = [{"id": id, "name": names[i]} for id, i in ids.items()]
    register_coco_json([("photos", *write_coco(tmp_path, categories))])
    assert len(DatasetCatalog.get("photos")) == 1
    check_categories(make_cfg(["photos"], ["coco_2017_val"], 80))
