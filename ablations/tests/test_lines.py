"""A line says what was trained, whatever names and defaults become."""

import json

import pytest

from ablations import cells
from ablations.lines import check_unchanged, differences, read_lines, settings_of


def test_recorded_results_are_read_under_the_new_names(tmp_path):
    old = {
        "MODEL.BIFPN.NUM_REPEATS": 2,
        "MODEL.ROI_ALIGN.A": -0.75,
        "MODEL.BACKBONE.NAME": "build_resnet_bifpn_backbone",
        "MODEL.ROI_HEADS.NAME": "FocalROIHeads",
        "MODEL.PROPOSAL_GENERATOR.NAME": "RPN",
        "DATASETS.TRAIN": ["shapes_small_train"],
        "DATASETS.TEST": ["shapes_val"],
        "MODEL.ANCHOR_GENERATOR.SIZES": [[8], [16]],
    }
    line = {
        "name": "a",
        "opts": ["MODEL.ROI_ALIGN.A", "-0.75"],
        "seed": 1,
        "settings": old,
        "metrics": {},
    }
    (tmp_path / "results.jsonl").write_text(json.dumps(line))
    (read,) = read_lines(str(tmp_path / "results.jsonl"))
    assert read["opts"] == ["MODEL.MRCNN_PLUGIN.ROI_ALIGN.A", "-0.75"]
    assert read["settings"] == {
        "MODEL.MRCNN_PLUGIN.BIFPN.NUM_REPEATS": 2,
        "MODEL.MRCNN_PLUGIN.ROI_ALIGN.A": -0.75,
        "MODEL.BACKBONE.NAME": "build_mrcnn_resnet_bifpn_backbone",
        "MODEL.ROI_HEADS.NAME": "MRCNNFocalROIHeads",
        "MODEL.PROPOSAL_GENERATOR.NAME": "RPN",
        "DATASETS.TRAIN": ["ablations_shapes_small_train"],
        "DATASETS.TEST": ["mrcnn_shapes_val"],
        "MODEL.ANCHOR_GENERATOR.SIZES": [[8], [16]],
    }


def test_a_line_says_what_it_was_run_with_when_a_default_has_changed_since(folder, monkeypatch):
    before = settings_of(cells.load("base.yaml"))
    key = "MODEL.MRCNN_PLUGIN.BIFPN.NUM_REPEATS"
    assert before[key] == 3
    now = {**before, key: 5}
    assert differences(before, now) == f"{key} 3 instead of 5"
    # A key that there was not yet has its default.
    older = {name: value for name, value in before.items() if name != key}
    assert differences(older, before) == ""
    with pytest.raises(ValueError, match=f"has {key} 3 instead of 5; the config was changed"):
        check_unchanged(before, now, "The line", "Delete it.")


def test_what_the_model_does_not_read_does_not_matter():
    gamma0 = settings_of(cells.load("retinanet_nuclei/gamma0"))
    assert differences({**gamma0, "MODEL.ROI_HEADS.NAME": "MRCNNFocalROIHeads"}, gamma0) == ""
    stock = settings_of(cells.load("nuclei/stock"))
    different = {**stock, "MODEL.ROI_HEADS.NAME": "MRCNNFocalROIHeads"}
    assert "MODEL.ROI_HEADS.NAME" in differences(different, stock)
