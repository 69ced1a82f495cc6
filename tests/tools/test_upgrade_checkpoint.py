"""Tests of tools/upgrade_checkpoint.py, which is run as a user would run it."""

import pickle
import re

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model

from tests import small
from tests.conftest import load_tool
from tests.environments import file_limit
from tests.features import needs_sigmoid_ce

upgrade_checkpoint = load_tool("upgrade_checkpoint")
CHANGES = {  # in addition to the CARAFE of the config
    "MODEL__BACKBONE__NAME": "build_mrcnn_resnet_pafpn_backbone",
    "MODEL__ROI_BOX_HEAD__CLS_LOSS": "sigmoid_focal",
}


@pytest.fixture(scope="module")
def stock():
    return build_model(small.config(MODEL__BACKBONE__NAME="build_resnet_fpn_backbone"))


@pytest.fixture
def upgrade(tmp_path, capsys):
    """Runs the script on a state dict. Returns its output and the file that it wrote."""
    config_file = tmp_path / "config.yaml"
    config_file.write_text(small.config(**CHANGES).dump())

    def run(state, format="pth", output="folder/new.pth", flags=("--keep-classifier",), opts=()):
        weights = tmp_path / f"stock.{format}"
        if format == "pth":
            torch.save({"model": state, "iteration": 9}, weights)
        else:  # as in Detectron2's model zoo
            arrays = {name: value.numpy() for name, value in state.items()}
            weights.write_bytes(pickle.dumps({"model": arrays, "__author__": "a test"}))
        arguments = ["--config-file", config_file, "--weights", weights]
        arguments += ["--output", tmp_path / output, *flags]
        upgrade_checkpoint.main([*map(str, arguments), "SEED", "7", *opts])
        return capsys.readouterr().out, tmp_path / output

    return run


def printed(text, what):
    """Returns the names below the line "N what", after checking that there are N of them."""
    number, names = re.search(rf"^(\d+) {what}\n((?:  .*\n)*)", text, re.MULTILINE).groups()
    names = [line.strip() for line in names.splitlines()]
    assert len(names) == int(number)
    return names


@pytest.mark.parametrize("format", ["pth", "pkl"])
def test_the_written_checkpoint_lacks_nothing(upgrade, stock, format, caplog):
    text, file = upgrade(stock.state_dict(), format)
    model = build_model(small.config(**CHANGES))
    assert set(torch.load(file)["model"]) == set(model.state_dict())
    caplog.clear()
    with caplog.at_level("WARNING"):
        rest = DetectionCheckpointer(model).load(str(file))
    assert not caplog.records  # about parameters that are missing, unexpected or of another shape
    assert not rest  # with an iteration, a training would resume there
    for name, value in stock.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    new = set(model.state_dict()) - set(stock.state_dict())
    assert set(printed(text, "from the checkpoint")) == set(stock.state_dict())
    assert set(printed(text, "new, as initialised")) == new
    assert not printed(text, "in the checkpoint only, not used")
    assert not printed(text, "of another shape, as initialised")


def test_a_classifier_with_sigmoids_starts_with_its_prior(upgrade, stock):
    text, file = upgrade(stock.state_dict(), flags=())
    layer = "roi_heads.box_predictor.cls_score"
    names = printed(text, "of a classifier with sigmoids, as initialised")
    assert names == [f"{layer}.weight", f"{layer}.bias"]
    assert not set(names) & set(printed(text, "from the checkpoint"))
    written = torch.load(file)["model"]
    torch.testing.assert_close(written[f"{layer}.bias"][:-1].sigmoid(), torch.full((3,), 0.01))
    assert not torch.equal(written[f"{layer}.weight"], stock.state_dict()[f"{layer}.weight"])


def test_new_parameters_follow_from_the_seed(upgrade, stock):
    (_, first), (_, second) = (upgrade(stock.state_dict(), output=f"{i}.pth") for i in "12")
    first, second = (torch.load(file)["model"] for file in (first, second))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["backbone.upsample.2.encoder.weight"].any()


def test_the_tool_lists_what_does_not_fit(upgrade, stock):
    state = stock.state_dict()
    state["backbone.fpn_output5.weight"] = torch.ones(8, 8, 3, 3)
    state["backbone.other.weight"] = torch.ones(1)
    text, file = upgrade(state)
    assert printed(text, "in the checkpoint only, not used") == ["backbone.other.weight"]
    (misfit,) = printed(text, "of another shape, as initialised")
    assert re.match(r"backbone.fpn_output5.weight: \(8, 8, 3, 3\) .*\(32, 32, 3, 3\)", misfit)
    assert "backbone.fpn_output5.weight" not in printed(text, "new, as initialised")
    assert "backbone.fpn_output5.weight" not in printed(text, "from the checkpoint")
    written = torch.load(file)["model"]
    assert written["backbone.fpn_output5.weight"].shape == (32, 32, 3, 3)
    assert "backbone.other.weight" not in written


def test_running_statistics_that_frozen_norms_fill_in_are_new(upgrade):
    state = build_model(small.config(MODEL__RESNETS__NORM="GN")).state_dict()
    text, _ = upgrade(state, opts=("MODEL.RESNETS.NORM", "FrozenBN"))
    assert "backbone.bottom_up.stem.conv1.norm.running_mean" in printed(text, "new, as initialised")


def test_the_name_of_the_file_may_be_not_utf_8(upgrade, stock):
    text, file = upgrade(stock.state_dict(), output="caf\udce9.pth")
    assert r"caf\udce9.pth" in text and file.exists()


def test_empty_weights_are_refused(capsys):
    with pytest.raises(SystemExit):
        upgrade_checkpoint.main(["--config-file", "x", "--weights", "", "--output", "x.pth"])
    assert "--weights is empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes, by_sigmoids",
    [
        pytest.param(
            {"CLS_LOSS": "cross_entropy", "USE_SIGMOID_CE": True}, True, marks=needs_sigmoid_ce
        ),
        ({"CLS_LOSS": "cross_entropy"}, False),
        ({"CLS_LOSS": "softmax_focal"}, False),
        ({"CLS_LOSS": "sigmoid_focal"}, True),
    ],
)
def test_classifiers_that_end_in_sigmoids_are_found(changes, by_sigmoids):
    cfg = small.config(**{f"MODEL.ROI_BOX_HEAD.{key}": value for key, value in changes.items()})
    assert bool(upgrade_checkpoint.sigmoid_classifiers(build_model(cfg))) == by_sigmoids


def test_a_checkpoint_of_something_else_is_an_error(upgrade, tmp_path):
    with pytest.raises(ValueError, match="stock.pth: no parameter in it fits the model of"):
        upgrade({"encoder.weight": torch.ones(1)})
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize(
    "output, message", [("kept.pth", "exists already"), ("new.pkl", "must end in .pth")]
)
def test_bad_outputs_are_refused_before_anything_is_done(
    upgrade, stock, tmp_path, capsys, output, message
):
    (tmp_path / "kept.pth").write_text("kept")
    with pytest.raises(SystemExit):
        upgrade(stock.state_dict(), output=output)
    assert message in capsys.readouterr().err
    assert (tmp_path / "kept.pth").read_text() == "kept" and not (tmp_path / "new.pkl").exists()


def test_a_full_disk_leaves_no_half_checkpoint(upgrade, stock, tmp_path):
    error = r"--output .*new.pth cannot be written: .*File too large"
    with file_limit() as set_limit, pytest.raises(OSError, match=error):
        save = torch.save

        def save_on_a_full_disk(content, file):
            if getattr(file, "name", "").startswith(str(tmp_path / "folder")):
                set_limit(100_000)
            save(content, file)

        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(torch, "save", save_on_a_full_disk)
            upgrade(stock.state_dict())
    assert list((tmp_path / "folder").iterdir()) == []
