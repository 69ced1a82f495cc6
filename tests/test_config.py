"""Tests of `mrcnn_plugin.get_cfg` and `mrcnn_plugin.load_cfg`."""

from pathlib import Path

import pytest
from detectron2.config import get_cfg as stock_get_cfg

from mrcnn_plugin import add_mrcnn_config, get_cfg, load_cfg
from tests.small import CONFIGS

QUICKSTART = str(CONFIGS / "quickstart.yaml")


def test_the_defaults_are_those_of_detectron2_and_of_this_package():
    expected = stock_get_cfg()
    add_mrcnn_config(expected)
    assert get_cfg().dump() == expected.dump()


def test_a_file_may_be_named_by_a_path():
    assert load_cfg(Path(QUICKSTART)) == load_cfg(QUICKSTART)


def test_changes_override_the_file_and_the_result_can_be_changed():
    cfg = load_cfg(QUICKSTART, ["MODEL.FPN.UPSAMPLE", "carafe", "SOLVER.MAX_ITER", "7"])
    expected = get_cfg()
    expected.merge_from_file(QUICKSTART)
    assert cfg.MODEL.FPN.UPSAMPLE == "carafe" and cfg.SOLVER.MAX_ITER == 7
    cfg.MODEL.FPN.UPSAMPLE, cfg.SOLVER.MAX_ITER = (
        expected.MODEL.FPN.UPSAMPLE,
        expected.SOLVER.MAX_ITER,
    )
    assert cfg.dump() == expected.dump()


def test_bad_input_is_named(tmp_path):
    with pytest.raises(ValueError, match="focal.py is no YAML file; .*lazyconfig_train_net.py"):
        load_cfg("configs/lazy/mask_rcnn_focal.py")
    file = tmp_path / "config.yaml"
    with pytest.raises(AssertionError, match="config.yaml' does not exist"):
        load_cfg(str(file))
    for endless in ("MODEL: &model\n  FPN: *model\n", "_BASE_: config.yaml\n"):
        file.write_text(endless)
        with pytest.raises(ValueError, match="config.yaml has no end"):
            load_cfg(str(file))
    file.write_text("MODEL: {FPN: {UPSAMPEL: carafe}}")
    with pytest.raises(KeyError, match="MODEL.FPN.UPSAMPEL"):
        load_cfg(str(file))
    with pytest.raises(AssertionError, match="MODEL.FPN.UPSAMPEL"):
        load_cfg(QUICKSTART, ["MODEL.FPN.UPSAMPEL", "carafe"])
    with pytest.raises(AssertionError, match="odd length"):
        load_cfg(QUICKSTART, ["MODEL.FPN.UPSAMPLE"])
