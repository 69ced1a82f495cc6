"""What docs/existing_projects.md says of programs that know nothing of this package."""

import copy
import os
import pickle
import re
import subprocess
import sys

import pytest
import torch
import yaml
from detectron2 import model_zoo
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model

import mrcnn_plugin
from mrcnn_plugin.config import KEYS
from mrcnn_plugin.env import setup_environment
from mrcnn_plugin.modeling import PAFPN, MRCNNFocalROIHeads, MultiscaleROIPooler
from tests import small

ZOO = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
FOUR_COMPONENTS = {
    "MODEL": {
        "BACKBONE": {"NAME": "build_mrcnn_resnet_pafpn_backbone"},
        "ROI_HEADS": {"NAME": "MRCNNFocalROIHeads"},
        "ROI_BOX_HEAD": {"POOLER_TYPE": "ROIAlignBicubic", "CLS_LOSS": "cross_entropy"},
        "ROI_MASK_HEAD": {"POOLER_TYPE": "ROIAlignBicubic"},
    }
}


def run(program, cwd, **environment):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MRCNN_PLUGIN_")}
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=cwd,
        env={**inherited, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(small.ROOT), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def defaults(monkeypatch):
    """Detectron2's own default config, put back after the test."""
    monkeypatch.delenv("MRCNN_PLUGIN_CONFIG", raising=False)
    monkeypatch.setattr("detectron2.config.defaults._C", get_cfg())


def test_the_errors_without_this_package(tmp_path):
    """In the words of Detectron2, which the page quotes."""
    program = f"""
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import build_roi_heads

def error(function, *arguments):
    try:
        function(*arguments)
    except Exception as e:
        print(type(e).__name__, e)

error(get_cfg().merge_from_file, {str(small.CONFIGS / "mask_rcnn_focal.yaml")!r})
cfg = get_cfg()
cfg.MODEL.ROI_HEADS.NAME = "MRCNNFocalROIHeads"
error(build_roi_heads, cfg, {{}})
error(ROIPooler, 7, [1 / 4], 0, "ROIAlignBicubic")
error(DatasetCatalog.get, "my_train")
"""
    key, name, pooler, data = run(program, tmp_path).splitlines()
    page = (small.ROOT / "docs" / "existing_projects.md").read_text()
    assert key.startswith("KeyError 'Non-existent config key: MODEL.FPN.UPSAMPLE")
    assert name.startswith("KeyError \"No object named 'MRCNNFocalROIHeads' found in 'ROI_HEADS'")
    assert pooler == "ValueError Unknown pooler type: ROIAlignBicubic"
    assert data.startswith("KeyError \"Dataset 'my_train' is not registered!")
    for quoted in (
        "Dataset 'my_train' is not registered!",
        "Non-existent config key: MODEL.FPN.UPSAMPLE",
        "No object named 'MRCNNFocalROIHeads' found in 'ROI_HEADS'",
        "Unknown pooler type: ROIAlignBicubic",
    ):
        assert quoted in page


def test_in_a_notebook_that_has_imported_detectron2(tmp_path):
    program = f"""
import detectron2
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.modeling import build_model

assert "MRCNN_PLUGIN" not in get_cfg().MODEL
import mrcnn_plugin.env
mrcnn_plugin.env.setup_environment()
cfg = get_cfg()
cfg.merge_from_file({str(small.CONFIGS / "quickstart.yaml")!r})
print(type(build_model(cfg).roi_heads).__name__)
"""
    assert run(program, tmp_path) == "MRCNNFocalROIHeads\n"


@pytest.mark.parametrize("named", ["my_environment", "my_environment.py"])
def test_a_second_environment_module_is_chained(named, tmp_path):
    (tmp_path / "my_environment.py").write_text("""
import mrcnn_plugin.env

def setup_environment():
    mrcnn_plugin.env.setup_environment()
    print("and mine")
""")
    program = "from detectron2.config import get_cfg; print(get_cfg().MODEL.FPN.UPSAMPLE)"
    path = os.pathsep.join([str(small.ROOT), str(tmp_path)])
    output = run(program, tmp_path, DETECTRON2_ENV_MODULE=named, PYTHONPATH=path)
    assert output == "and mine\nnearest\n"


class TestStripConfig:
    def stock(self, **changes):
        cfg = mrcnn_plugin.get_cfg()
        cfg.merge_from_file(model_zoo.get_config_file(ZOO))
        for key, value in changes.items():
            cfg.merge_from_list([key.replace("__", "."), value])
        return cfg

    def test_a_stock_model_becomes_readable_without_this_package(self, tmp_path):
        cfg = self.stock(SOLVER__MAX_ITER=7)
        cfg.freeze()
        before = cfg.dump()
        stripped = mrcnn_plugin.strip_config(cfg)
        assert cfg.dump() == before and cfg.is_frozen()
        expected = get_cfg()
        expected.merge_from_file(model_zoo.get_config_file(ZOO))
        expected.SOLVER.MAX_ITER = 7
        assert yaml.safe_load(stripped.dump()) == yaml.safe_load(expected.dump())

        (tmp_path / "saved.yaml").write_text(before)
        with pytest.raises(KeyError, match="Non-existent config key"):
            get_cfg().merge_from_file(str(tmp_path / "saved.yaml"))
        (tmp_path / "saved.yaml").write_text(stripped.dump())
        again = get_cfg()
        again.merge_from_file(str(tmp_path / "saved.yaml"))
        assert yaml.safe_load(again.dump()) == yaml.safe_load(expected.dump())

    def test_keys_of_others_are_kept(self):
        cfg = self.stock()
        cfg.MODEL.POINT_HEAD = CfgNode({"NAME": "StandardPointHead"})
        assert mrcnn_plugin.strip_config(cfg).MODEL.POINT_HEAD.NAME == "StandardPointHead"

    def test_a_config_without_our_keys_stays_as_it_is(self):
        assert mrcnn_plugin.strip_config(get_cfg()).dump() == get_cfg().dump()

    @pytest.mark.parametrize(
        "changes, key",
        [
            ({"MODEL__ROI_HEADS__NAME": "MRCNNFocalROIHeads"}, "MODEL.ROI_BOX_HEAD.CLS_LOSS"),
            (
                {"MODEL__BACKBONE__NAME": "build_mrcnn_resnet_pafpn_backbone"},
                "MODEL.FPN.UPSAMPLE",
            ),
            ({"MODEL__PROPOSAL_GENERATOR__NAME": "MRCNNFocalRPN"}, "MODEL.RPN.FOCAL.GAMMA"),
            ({"DATASETS__COCO_JSON": [["mine", "a.json", "images"]]}, "DATASETS.COCO_JSON"),
            ({"DATASETS__TRAIN": ("mrcnn_shapes_train",)}, "(mrcnn_shapes_train)"),
        ],
    )
    def test_what_would_be_lost_is_refused(self, changes, key):
        with pytest.raises(ValueError, match=re.escape(key)):
            mrcnn_plugin.strip_config(self.stock(**changes))

    def test_data_sets_of_others_are_kept(self):
        cfg = self.stock(DATASETS__TRAIN=("mrcnn_cells_train",))
        assert mrcnn_plugin.strip_config(cfg).DATASETS.TRAIN == ("mrcnn_cells_train",)

    @pytest.mark.parametrize("architecture", ["RetinaNet", "SemanticSegmentor"])
    def test_a_component_that_the_model_does_not_have_is_no_obstacle(self, architecture):
        cfg = self.stock(MODEL__META_ARCHITECTURE=architecture)
        cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
        cfg.MODEL.ROI_HEADS.NAME = "MRCNNFocalROIHeads"
        cfg.MODEL.PROPOSAL_GENERATOR.NAME = "MRCNNFocalRPN"
        cfg.MODEL.DEVICE = "meta"
        stripped = mrcnn_plugin.strip_config(cfg)
        assert "FOCAL" not in stripped.MODEL.RPN
        with torch.device("meta"):
            build_model(stripped)

    def test_a_key_that_nothing_reads_is_not_missed(self):
        cfg = self.stock(MODEL__ROI_BOX_HEAD__FOCAL__GAMMA=1.0)
        assert "FOCAL" not in mrcnn_plugin.strip_config(cfg).MODEL.ROI_BOX_HEAD


class TestGetConfigFile:
    @pytest.mark.parametrize("name", [*small.CONFIG_NAMES, "lazy/mask_rcnn_focal.py"])
    def test_every_config_of_the_repository_is_found(self, name):
        assert os.path.samefile(mrcnn_plugin.get_config_file(name), small.CONFIGS / name)

    @pytest.mark.parametrize("name", ["nothing.yaml", "README", "lazy", ""])
    def test_another_name_gets_the_list(self, name):
        with pytest.raises(FileNotFoundError, match="mask_rcnn_focal.yaml, .*quickstart.yaml"):
            mrcnn_plugin.get_config_file(name)


def test_our_components_are_merged_into_a_config_of_the_zoo():
    cfg = model_zoo.get_config(ZOO)
    mrcnn_plugin.add_mrcnn_config(cfg)
    before = cfg.SOLVER.dump()
    cfg.merge_from_file(mrcnn_plugin.get_config_file("Base-RCNN-CARAFE-Focal.yaml"))
    assert cfg.MODEL.BACKBONE.NAME == "build_mrcnn_resnet_upsample_fpn_backbone"
    assert cfg.MODEL.ROI_MASK_HEAD.POOLER_TYPE == "ROIAlignBicubic"
    assert cfg.SOLVER.dump() == before and cfg.MODEL.RESNETS.DEPTH == 50


class TestPreferredConfig:
    """MRCNN_PLUGIN_CONFIG."""

    @pytest.fixture
    def four_components(self, defaults, tmp_path, monkeypatch):
        (tmp_path / "four.yaml").write_text(yaml.safe_dump(FOUR_COMPONENTS))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("MRCNN_PLUGIN_CONFIG", "four.yaml")
        setup_environment()
        setup_environment()
        monkeypatch.chdir("/")  # the variable is read once

    def expected(self):
        cfg = mrcnn_plugin.get_cfg()
        cfg.merge_from_file(model_zoo.get_config_file(ZOO))
        for node, value in FOUR_COMPONENTS["MODEL"].items():
            for key in value:
                cfg.MODEL[node][key] = value[key]
        return cfg

    def test_the_defaults_have_its_values(self, four_components):
        assert get_cfg().MODEL.ROI_HEADS.NAME == "MRCNNFocalROIHeads"

    def test_a_model_of_the_zoo_gets_our_components_and_keeps_the_rest(self, defaults, request):
        expected = self.expected()
        request.getfixturevalue("four_components")
        assert model_zoo.get_config(ZOO).dump() == expected.dump()

    def test_such_a_model_is_built(self, four_components):
        cfg = model_zoo.get_config(ZOO)
        for key, value in small.TINY.items():
            cfg.merge_from_list([key, value])
        cfg.MODEL.RESNETS.DEPTH = 18
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
        model = build_model(cfg)
        assert type(model.backbone) is PAFPN and type(model.roi_heads) is MRCNNFocalROIHeads
        poolers = [model.roi_heads.box_pooler, model.roi_heads.mask_pooler]
        assert all(isinstance(p, MultiscaleROIPooler) for p in poolers)

    def test_code_and_command_line_win(self, four_components):
        cfg = model_zoo.get_config(ZOO)
        cfg.merge_from_list(["MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignV2"])
        cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
        other = CfgNode({"MODEL": {"ROI_MASK_HEAD": {"POOLER_TYPE": "ROIAlign"}}})
        cfg.merge_from_other_cfg(other)
        assert cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE == "ROIAlignV2"
        assert cfg.MODEL.BACKBONE.NAME == "build_resnet_fpn_backbone"
        assert cfg.MODEL.ROI_MASK_HEAD.POOLER_TYPE == "ROIAlign"

    def test_a_saved_config_is_read_as_it_was_saved(self, four_components, tmp_path):
        saved = model_zoo.get_config(ZOO)
        saved.MODEL.BACKBONE.NAME = "build_mrcnn_resnet_bifpn_backbone"
        (tmp_path / "saved.yaml").write_text(saved.dump())
        cfg = get_cfg()
        cfg.OF_THE_PROGRAM = CfgNode({"KEY": 1})
        saved.OF_THE_PROGRAM = CfgNode({"KEY": 1})
        cfg.merge_from_file(str(tmp_path / "saved.yaml"))
        assert yaml.safe_load(cfg.dump()) == yaml.safe_load(saved.dump())
        (tmp_path / "derived.yaml").write_text("_BASE_: saved.yaml\nSEED: 3")
        cfg.merge_from_file(str(tmp_path / "derived.yaml"))
        assert cfg.MODEL.BACKBONE.NAME == "build_mrcnn_resnet_pafpn_backbone"

    def test_a_missing_file_is_an_error_of_detectron2(self, four_components):
        with pytest.raises(AssertionError, match="'none.yaml' does not exist"):
            get_cfg().merge_from_file("none.yaml")

    def test_a_config_saved_without_our_keys_gets_our_components(self, defaults, request, tmp_path):
        (tmp_path / "saved.yaml").write_text(model_zoo.get_config(ZOO).dump())
        expected = self.expected()
        request.getfixturevalue("four_components")
        cfg = get_cfg()
        cfg.merge_from_file(str(tmp_path / "saved.yaml"))
        assert yaml.safe_load(cfg.dump()) == yaml.safe_load(expected.dump())

    def test_nodes_of_other_packages_are_merged(self, four_components, tmp_path):
        (tmp_path / "theirs.yaml").write_text("MODEL: {POINT_HEAD: {NAME: B}}\nVERSION: 2")
        cfg = get_cfg()
        cfg.MODEL.POINT_HEAD = CfgNode({"NAME": "A"})
        cfg.EXTRA = CfgNode({"KEY": 1})
        cfg.merge_from_file(str(tmp_path / "theirs.yaml"))
        assert cfg.MODEL.POINT_HEAD.NAME == "B" and cfg.EXTRA.KEY == 1

    def test_a_renamed_key_is_refused_with_its_new_name(self, four_components, tmp_path):
        (tmp_path / "renamed.yaml").write_text("MODEL: {ROI_ALIGN: {A: -0.75}}\nVERSION: 2")
        with pytest.raises(KeyError, match="renamed to MODEL.MRCNN_PLUGIN.ROI_ALIGN"):
            get_cfg().merge_from_file(str(tmp_path / "renamed.yaml"))

    def test_a_file_of_an_older_version_is_converted(self, four_components, tmp_path):
        (tmp_path / "old.yaml").write_text(
            "MODEL: {ROI_HEADS: {NAME: StandardROIHeads}, WEIGHT: a.pkl}\nVERSION: 1"
        )
        cfg = get_cfg()
        cfg.merge_from_file(str(tmp_path / "old.yaml"))
        assert cfg.MODEL.WEIGHTS == "a.pkl" and cfg.VERSION == 2
        assert cfg.MODEL.ROI_HEADS.NAME == "MRCNNFocalROIHeads"

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda cfg: pickle.loads(pickle.dumps(cfg))])
    def test_a_copy_behaves_alike(self, copied, four_components):
        cfg = copied(get_cfg())
        cfg.freeze()
        assert cfg.is_frozen() and not get_cfg().is_frozen()
        cfg.defrost()
        cfg.merge_from_file(model_zoo.get_config_file(ZOO))
        assert cfg.MODEL.ROI_HEADS.NAME == "MRCNNFocalROIHeads"

    def test_a_log_says_so(self, four_components, caplog):
        model_zoo.get_config(ZOO)
        (message,) = [r.getMessage() for r in caplog.records if r.name.startswith("mrcnn_plugin")]
        assert "four.yaml win over" in message and ZOO in message

    def test_a_config_of_this_package_is_found_by_name(self, defaults, monkeypatch):
        monkeypatch.setenv("MRCNN_PLUGIN_CONFIG", "Base-RCNN-CARAFE-Focal.yaml")
        setup_environment()
        cfg = model_zoo.get_config(ZOO)
        assert cfg.MODEL.BACKBONE.NAME == "build_mrcnn_resnet_upsample_fpn_backbone"

    @pytest.mark.parametrize(
        "content, error, message",
        [
            (None, FileNotFoundError, "'bad.yaml', but mrcnn_plugin has no config file"),
            ("MODEL: {FPN: {UPSAMPEL: carafe}}", ValueError, "MODEL.FPN.UPSAMPEL"),
            ("MODEL: {MASK_ON: many}", ValueError, "MASK_ON"),
            ("MODEL: !!python/object/apply:os.getpid []", ValueError, "ALLOW_UNSAFE_YAML=1"),
        ],
    )
    def test_a_bad_file_is_named(self, content, error, message, defaults, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        if content is not None:
            (tmp_path / "bad.yaml").write_text(content)
        monkeypatch.setenv("MRCNN_PLUGIN_CONFIG", "bad.yaml")
        with pytest.raises(error, match="(?s)^MRCNN_PLUGIN_CONFIG is 'bad.yaml'.*") as caught:
            setup_environment()
        assert message in str(caught.value)

    def test_an_empty_variable_is_none(self, defaults, monkeypatch):
        before = get_cfg().MODEL.ROI_HEADS.NAME
        for name in ("MRCNN_PLUGIN_CONFIG", "MRCNN_PLUGIN_DATASETS"):
            monkeypatch.setenv(name, "")
        setup_environment()
        assert type(get_cfg()) is CfgNode and get_cfg().MODEL.ROI_HEADS.NAME == before

    def test_it_works_through_the_environment_module(self, tmp_path):
        program = f"""
from detectron2 import model_zoo
print(model_zoo.get_config({ZOO!r}).MODEL.ROI_HEADS.NAME)
"""
        output = run(
            program,
            tmp_path,
            DETECTRON2_ENV_MODULE="mrcnn_plugin.env",
            MRCNN_PLUGIN_CONFIG="Base-RCNN-CARAFE-Focal.yaml",
        )
        assert output == "MRCNNFocalROIHeads\n"


def test_every_key_can_be_stripped():
    """A key that is added to config.py later, too."""
    stripped = mrcnn_plugin.strip_config(mrcnn_plugin.get_cfg())
    assert yaml.safe_load(stripped.dump()) == yaml.safe_load(get_cfg().dump()) and KEYS


@pytest.mark.parametrize("loss, detects", [("sigmoid_focal", False), ("softmax_focal", True)])
def test_a_sigmoid_loss_detects_nothing_before_it_has_learned(loss, detects):
    """Scores begin at MODEL.ROI_BOX_HEAD.FOCAL.PRIOR_PROB, which is below the usual threshold."""
    torch.manual_seed(0)
    model = build_model(
        small.config(MODEL__ROI_BOX_HEAD__CLS_LOSS=loss, MODEL__ROI_HEADS__SCORE_THRESH_TEST=0.05)
    ).eval()
    with torch.no_grad():
        (output,) = model(small.batch((64, 96)))
    assert (len(output["instances"]) > 0) == detects


def test_the_page_names_tests_and_files_that_there_are():
    page = (small.ROOT / "docs" / "existing_projects.md").read_text()
    files = {"existing": __file__, "stock": small.ROOT / "tests" / "test_stock_features.py"}
    cited = re.findall(r"\b(existing|stock)::(\w+)", page)
    assert len(cited) > 5
    for file, name in cited:
        with open(files[file]) as f:
            assert re.search(rf"^(def|class) {name}\b", f.read(), re.MULTILINE), name
    for file in re.findall(r"`((?:\w+/)?test_\w+\.py)", page):
        assert (small.ROOT / "tests" / file).exists(), file
    for link in re.findall(r"\]\(([^)#]+)", page):
        assert (small.ROOT / "docs" / link).exists(), link
