"""Names that other projects use stay free. An old name gives an error that says the new one."""

import os
import sys

import pytest
import yaml
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.modeling import BACKBONE_REGISTRY, PROPOSAL_GENERATOR_REGISTRY, ROI_HEADS_REGISTRY

import mrcnn_plugin
from mrcnn_plugin import add_mrcnn_config, renamed
from mrcnn_plugin.data import check_categories
from tests.environments import run
from tests.small import ROOT

REGISTRIES = {
    "DATASETS.TRAIN": DatasetCatalog,
    "DATASETS.TEST": DatasetCatalog,
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.PROPOSAL_GENERATOR.NAME": PROPOSAL_GENERATOR_REGISTRY,
    "MODEL.ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
}
# The keys that add_centernet_config of CenterNet2 puts there.
FOREIGN_BIFPN = {
    "NUM_LEVELS": 5,
    "NUM_BIFPN": 6,
    "NORM": "GN",
    "OUT_CHANNELS": 160,
    "SEPARABLE_CONV": False,
}


def merge(cfg, key, value, how, folder):
    """Sets a key in the way of a config file or of the command line."""
    if how == "list":
        cfg.merge_from_list([key, str(value)])
        return
    for part in reversed(key.split(".")):
        value = {part: value}
    (folder / "config.yaml").write_text(yaml.safe_dump(value))
    cfg.merge_from_file(str(folder / "config.yaml"))


def test_other_projects_can_register_their_names_beside_ours(tmp_path):
    program = f"""
import mrcnn_plugin
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from detectron2.modeling import (
    BACKBONE_REGISTRY, PROPOSAL_GENERATOR_REGISTRY, ROI_HEADS_REGISTRY, build_backbone
)
from mrcnn_plugin import renamed

registries = {{
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.PROPOSAL_GENERATOR.NAME": PROPOSAL_GENERATOR_REGISTRY,
    "MODEL.ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
}}
for key, registry in registries.items():
    for name in renamed.VALUES[key]:
        def foreign(*arguments):
            raise AssertionError("This is not ours.")
        foreign.__name__ = name
        registry.register(foreign)
for name in renamed.VALUES["DATASETS.TRAIN"]:
    DatasetCatalog.register(name, list)

cfg = get_cfg()
mrcnn_plugin.add_mrcnn_config(cfg)
cfg.MODEL.BIFPN = CfgNode({FOREIGN_BIFPN!r})
cfg.MODEL.BACKBONE.NAME = "build_mrcnn_resnet_bifpn_backbone"
cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
cfg.MODEL.MRCNN_PLUGIN.BIFPN.NUM_REPEATS = 2
print(type(build_backbone(cfg)).__module__, len(build_backbone(cfg).bifpn))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    output = run(sys.executable, "-W", "ignore", "-c", program, cwd=tmp_path, env=environment)
    assert output == "mrcnn_plugin.modeling.backbone.bifpn 2\n"


@pytest.mark.parametrize("how", ["file", "list"])
@pytest.mark.parametrize("order", ["theirs first", "ours first"])
@pytest.mark.parametrize("key, value", [("NUM_BIFPN", 3), ("OUT_CHANNELS", 88)])
def test_the_foreign_node_takes_its_own_keys(how, order, key, value, tmp_path):
    cfg = get_cfg()
    if order == "ours first":
        add_mrcnn_config(cfg)
    cfg.MODEL.BIFPN = type(cfg)(FOREIGN_BIFPN)
    add_mrcnn_config(cfg)
    merge(cfg, f"MODEL.BIFPN.{key}", value, how, tmp_path)
    assert cfg.MODEL.BIFPN == {**FOREIGN_BIFPN, key: value}


@pytest.mark.parametrize("how", ["file", "list"])
def test_a_foreign_key_may_have_an_old_name(how, tmp_path):
    cfg = get_cfg()
    cfg.MODEL.BIFPN = type(cfg)({"NUM_REPEATS": 7})
    add_mrcnn_config(cfg)
    merge(cfg, "MODEL.BIFPN.NUM_REPEATS", 3, how, tmp_path)
    assert cfg.MODEL.BIFPN.NUM_REPEATS == 3
    with pytest.raises(KeyError, match="MODEL.BIFPN.DEPTHWISE was renamed to"):
        merge(cfg, "MODEL.BIFPN.DEPTHWISE", True, how, tmp_path)


@pytest.mark.parametrize("how", ["file", "list"])
@pytest.mark.parametrize(
    "key, value",
    [
        ("MODEL.BIFPN.NUM_REPEATS", 2),
        ("MODEL.BIFPN.DEPTHWISE", False),
        ("MODEL.ROI_ALIGN.A", -0.75),
    ],
)
def test_an_old_key_is_refused_with_the_new_one(key, value, how, tmp_path):
    new = renamed.KEYS[key if how == "list" else key.rpartition(".")[0]]
    with pytest.raises(KeyError, match=f"was renamed to {new}; please update"):
        merge(mrcnn_plugin.get_cfg(), key, value, how, tmp_path)
    merge(mrcnn_plugin.get_cfg(), renamed.KEYS[key], value, how, tmp_path)


def test_an_old_key_in_a_foreign_node_of_its_name_is_refused_too(tmp_path):
    cfg = mrcnn_plugin.get_cfg()
    cfg.MODEL.BIFPN = type(cfg)(FOREIGN_BIFPN)
    with pytest.raises(KeyError, match="MODEL.BIFPN.NUM_REPEATS was renamed to"):
        merge(cfg, "MODEL.BIFPN.NUM_REPEATS", 2, "file", tmp_path)


def test_the_new_names_exist():
    def keys(node, prefix=""):
        for key, value in node.items():
            yield prefix + key
            if isinstance(value, dict):
                yield from keys(value, f"{prefix}{key}.")

    assert set(renamed.KEYS.values()) <= set(keys(mrcnn_plugin.get_cfg()))
    for key, names in renamed.VALUES.items():
        registered = REGISTRIES[key]
        assert all(name in registered for name in names.values())
        # A project that uses an old name for something of its own can be installed too.
        assert not any(name in registered for name in names)


OLD_NAMES = {
    "DATASETS.TRAIN": ["shapes_train", "shapes_val"],
    "DATASETS.TEST": ["shapes_train", "shapes_val"],
    "MODEL.BACKBONE.NAME": [
        f"build_{detector}resnet_{pyramid}_backbone"
        for detector in ("", "retinanet_")
        for pyramid in ("bifpn", "pafpn", "upsample_fpn")
    ],
    "MODEL.PROPOSAL_GENERATOR.NAME": ["FocalRPN"],
    "MODEL.ROI_HEADS.NAME": ["FocalROIHeads", "FocalCascadeROIHeads", "FocalRes5ROIHeads"],
}


@pytest.mark.parametrize("key", renamed.VALUES)
def test_a_new_name_is_the_old_one_with_that_of_this_package(key):
    names = renamed.VALUES[key]
    assert sorted(names) == sorted(OLD_NAMES[key])
    for old, new in names.items():
        assert new.replace("mrcnn_", "").replace("MRCNN", "") == old


OLD_COMPONENTS = [
    (key, name)
    for key, names in renamed.VALUES.items()
    if key.startswith("MODEL.")
    for name in names
]


@pytest.mark.parametrize("key, name", OLD_COMPONENTS)
def test_an_old_component_is_refused_with_the_new_one(key, name, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("VERSION: 2")
    new = renamed.VALUES[key][name]
    with pytest.raises(ValueError, match=f"{key} '{name}' was renamed to '{new}'"):
        mrcnn_plugin.load_cfg(str(file), [key, name])
    mrcnn_plugin.load_cfg(str(file), [key, new])


def test_an_old_name_that_somebody_else_has_registered_is_theirs(tmp_path, monkeypatch):
    file = tmp_path / "config.yaml"
    file.write_text("MODEL: {BACKBONE: {NAME: build_resnet_pafpn_backbone}}")
    foreign = {"build_resnet_pafpn_backbone": lambda cfg, input_shape: None}
    monkeypatch.setattr(BACKBONE_REGISTRY, "_obj_map", {**BACKBONE_REGISTRY._obj_map, **foreign})
    cfg = mrcnn_plugin.load_cfg(str(file))
    assert cfg.MODEL.BACKBONE.NAME == "build_resnet_pafpn_backbone"


@pytest.mark.parametrize("key", ["DATASETS.TRAIN", "DATASETS.TEST"])
@pytest.mark.parametrize("name", renamed.VALUES["DATASETS.TRAIN"])
def test_an_old_data_set_is_refused_with_the_new_one(key, name):
    cfg = mrcnn_plugin.get_cfg()
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()
    cfg.merge_from_list([key, (name,)])
    with pytest.raises(ValueError, match=f"{key} names .*'{name}', .* renamed to 'mrcnn_{name}'"):
        check_categories(cfg)
