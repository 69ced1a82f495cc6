"""The table of variants, the base configs, and what a config is compared with."""

import re

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model, build_roi_heads
from detectron2.utils.events import EventStorage

from ablations import cells, scenes
from ablations.lines import flat
from mrcnn_plugin.data.shapes import CLASSES, draw_shapes
from mrcnn_plugin.modeling import find_unused_keys
from tests import small
from tests.small import ROOT


def changes(name, other):
    one, two = flat(cells.load(name)), flat(cells.load(other))
    return {key: one[key] for key in one if one[key] != two[key]}


HEADS = ("MODEL.ROI_BOX_HEAD", "MODEL.ROI_MASK_HEAD")
FOCAL_HEADS = {
    "MODEL.ROI_HEADS.NAME": "MRCNNFocalROIHeads",
    "MODEL.ROI_BOX_HEAD.CLS_LOSS": "cross_entropy",
}


@pytest.mark.parametrize("base", [base for base, v in cells.BASES.items() if v is cells.MASK_RCNN])
def test_stock_is_stock_and_a_variant_changes_what_it_asks_about(base):
    stock = cells.load(f"{base}/stock")
    assert stock.MODEL.BACKBONE.NAME == "build_resnet_fpn_backbone"
    assert stock.MODEL.ROI_HEADS.NAME == "StandardROIHeads"
    assert (
        stock.MODEL.ROI_BOX_HEAD.POOLER_TYPE
        == stock.MODEL.ROI_MASK_HEAD.POOLER_TYPE
        == "ROIAlignV2"
    )

    def change(variant, against="stock"):
        assert cells.baseline_of(f"{base}/{variant}") == f"{base}/{against}"
        return changes(f"{base}/{variant}", f"{base}/{against}")

    def poolers(name):
        return {f"{head}.POOLER_TYPE": name for head in HEADS}

    assert change("stock") == {}
    for name in ("bilinear", "bicubic"):
        assert change(name) == {**FOCAL_HEADS, **poolers(f"ROIAlign{name.capitalize()}")}
    assert change("bicubic_a0.75", "bicubic") == {"MODEL.MRCNN_PLUGIN.ROI_ALIGN.A": -0.75}
    for ratio in (1, 2):
        samples = {f"{head}.POOLER_SAMPLING_RATIO": ratio for head in HEADS}
        assert change(f"stock_ratio{ratio}") == samples
        assert change(f"bicubic_ratio{ratio}", f"stock_ratio{ratio}") == change("bicubic")

    for head in ("BOX", "MASK"):
        key = f"MODEL.ROI_{head}_HEAD.POOLER_TYPE"
        name = {"BOX": "bicubic_boxes", "MASK": "bicubic_masks"}[head]
        assert change(name) == {**FOCAL_HEADS, key: "ROIAlignBicubic"}

    focal = "MODEL.ROI_BOX_HEAD.FOCAL"
    heads = {"MODEL.ROI_HEADS.NAME": "MRCNNFocalROIHeads"}
    loss = "MODEL.ROI_BOX_HEAD.CLS_LOSS"
    weights = {f"{focal}.ALPHA": 0.25, f"{focal}.NORMALIZER": "foreground"}
    # It is the default of the key, which stock heads do not read.
    assert change("softmax_focal") == heads
    assert cells.load(f"{base}/softmax_focal").MODEL.ROI_BOX_HEAD.CLS_LOSS == "softmax_focal"
    for gamma in (0.5, 1.0):
        assert change(f"softmax_focal_gamma{gamma:g}") == {**heads, f"{focal}.GAMMA": gamma}
    for form in ("Background", "Far", "Normalized"):
        name = f"Ablations{form}FocalROIHeads"
        assert change(f"softmax_focal_{form.lower()}") == {"MODEL.ROI_HEADS.NAME": name}
    for weight in (1.5, 2.0, 4.0):
        key = "MODEL.ROI_BOX_HEAD.CLS_LOSS_WEIGHT"
        assert change(f"softmax_focal_weight{weight:g}") == {**heads, key: weight}
    assert change("sigmoid_cross_entropy") == {
        **heads,
        loss: "sigmoid_focal",
        f"{focal}.GAMMA": 0.0,
    }
    sigmoid_ce = {"MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": True}
    assert change("stock_sigmoid_cross_entropy") == sigmoid_ce
    sigmoid = {**heads, loss: "sigmoid_focal", **weights}
    assert change("sigmoid_focal") == sigmoid
    assert change("sigmoid_focal_gamma1") == {**sigmoid, f"{focal}.GAMMA": 1.0}
    assert change("sigmoid_focal_star") == {**sigmoid, loss: "sigmoid_focal_star"}
    assert change("sigmoid_focal_proposals", "sigmoid_focal") == {
        f"{focal}.ALPHA": -1.0,
        f"{focal}.NORMALIZER": "proposals",
    }

    def backbone(name, **fpn):
        return {"MODEL.BACKBONE.NAME": f"build_mrcnn_resnet_{name}_backbone"} | {
            f"MODEL.FPN.{key}": value for key, value in fpn.items()
        }

    assert change("pafpn") == backbone("pafpn")
    assert change("bifpn") == backbone("bifpn")
    assert change("upsample_bicubic") == backbone("upsample_fpn", UPSAMPLE="bicubic")
    assert change("upsample_mean") == backbone("upsample_fpn", UPSAMPLE="mean")
    assert change("carafe") == backbone("upsample_fpn", UPSAMPLE="carafe")
    assert change("carafe_bicubic") == {**change("carafe"), **change("bicubic")}
    bicubic = poolers("ROIAlignBicubic")
    gated = {**bicubic, **backbone("upsample_fpn", UPSAMPLE="gated_carafe")}
    assert change("gated_carafe_bicubic") == {**FOCAL_HEADS, **gated}
    assert change("pafpn_gated_carafe_bicubic") == {
        **FOCAL_HEADS,
        **bicubic,
        **backbone("pafpn", UPSAMPLE="gated_carafe"),
    }
    assert change("pafpn_bicubic_focal") == {**heads, **bicubic, **change("pafpn")}
    assert change("pafpn_bicubic_sigmoid_focal") == {**sigmoid, **bicubic, **change("pafpn")}
    milder = {**heads, f"{focal}.GAMMA": 0.5}
    assert change("headline") == {**milder, **bicubic, **change("carafe")}
    for name, upsample in (("mean", "mean"), ("gated_carafe", "gated_carafe")):
        assert change(f"headline_{name}", "headline") == {"MODEL.FPN.UPSAMPLE": upsample}


def test_the_headline_is_that_of_the_configs():
    ours = cells.load("nuclei/headline")
    theirs = cells.load(str(ROOT / "configs" / "mask_rcnn_focal.yaml"))
    for key in (
        "MODEL.BACKBONE.NAME",
        "MODEL.FPN.UPSAMPLE",
        "MODEL.ROI_HEADS.NAME",
        "MODEL.ROI_BOX_HEAD.POOLER_TYPE",
        "MODEL.ROI_MASK_HEAD.POOLER_TYPE",
        "MODEL.ROI_BOX_HEAD.CLS_LOSS",
        "MODEL.ROI_BOX_HEAD.FOCAL.GAMMA",
    ):
        assert flat(ours)[key] == flat(theirs)[key]


def test_sigmoid_cross_entropy_is_the_loss_of_detectron2():
    ours = cells.load("shapes_scales/sigmoid_cross_entropy")
    stock = cells.load("shapes_scales/stock_sigmoid_cross_entropy")
    classes, proposals = stock.MODEL.ROI_HEADS.NUM_CLASSES, 12
    predictors = [
        build_roi_heads(
            cfg, {f"p{i}": ShapeSpec(64, stride=2**i) for i in (2, 3, 4, 5)}
        ).box_predictor
        for cfg in (ours, stock)
    ]
    torch.manual_seed(0)
    # From logits that a trained model may have to those at which a sigmoid is 0 or 1.
    scores = torch.randn(proposals, classes + 1) * torch.logspace(-1, 2, proposals)[:, None]
    labels = torch.arange(proposals) % (classes + 1)
    losses, gradients = [], []
    for loss in (predictors[0].focal_loss, predictors[1].sigmoid_cross_entropy_loss):
        logits = scores.clone().requires_grad_()
        losses.append(loss(logits, labels))
        # Each logit has its own derivative, which tells the weight of each element of the loss.
        gradients += torch.autograd.grad(losses[-1], logits)
    assert torch.equal(*losses) and torch.equal(*gradients)
    assert not gradients[0][:, -1].any()
    assert predictors[0].scores_are_sigmoids and predictors[1].use_sigmoid_ce


@pytest.mark.parametrize("base", ["retinanet_nuclei", "retinanet_shapes_long_tail"])
def test_retinanet_changes_gamma_and_alpha(base):
    node = "MODEL.RETINANET.FOCAL_LOSS"
    assert changes(f"{base}/gamma2", f"{base}/gamma0") == {
        f"{node}_GAMMA": 2.0,
        f"{node}_ALPHA": 0.25,
    }
    assert changes(f"{base}/gamma0", f"{base}/gamma2") == {
        f"{node}_GAMMA": 0.0,
        f"{node}_ALPHA": 0.75,
    }
    assert cells.baseline_of(f"{base}/gamma2") == f"{base}/gamma0"


@pytest.mark.parametrize(
    "name", [name for name in cells.NAMES if name.startswith(("shapes_small/", "retinanet_shapes"))]
)
def test_every_variant_trains_and_reads_the_keys_that_it_sets(name):
    torch.manual_seed(0)
    cfg = cells.load(name)
    unused = " ".join(find_unused_keys(cfg))
    assert not [key for key in cells.variant_of(name).keys if key in unused]
    model = build_model(cfg)
    with EventStorage():
        losses = model(small.batch((64, 96)))
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("base", cells.BASES)
def test_the_model_has_the_classes_of_its_data(base):
    scenes.register()
    (name, *_) = cells.BASES[base]
    cfg = cells.load(f"{base}/{name}")
    node = cfg.MODEL.RETINANET if base.startswith("retinanet") else cfg.MODEL.ROI_HEADS
    classes = 1 if base.endswith("nuclei") else len(CLASSES)
    assert node.NUM_CLASSES == classes
    if classes > 1:
        for split in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
            assert split in DatasetCatalog.list()
            assert MetadataCatalog.get(split).thing_classes == list(CLASSES)


@pytest.mark.parametrize(
    "name, classes, diameters",
    [
        ("ablations_shapes_small_train", [1, 1, 1, 1], (10, 24)),
        ("ablations_shapes_scales_train", [1, 1, 1, 1], (10, 110)),
        ("ablations_shapes_long_tail_train", [100, 21.5, 4.6, 1], (16, 58)),
        ("ablations_shapes_long_tail_val", [1, 1, 1, 1], (16, 58)),
    ],
)
def test_data_sets_are_difficult_in_one_respect(name, classes, diameters):
    _, seed, scene = scenes.DATASETS[name]
    instances = [one for i in range(150) for one in draw_shapes(seed, i, scene=scene)[1]]
    counts = np.bincount([class_index for class_index, _ in instances], minlength=4)
    expected = len(instances) * np.array(classes) / sum(classes)
    # Four standard deviations of a binomial distribution, and what is not drawn for want of room.
    assert (np.abs(counts - expected) < 4 * np.sqrt(expected) + 0.1 * expected).all()
    whole_discs = [
        2 * np.sqrt(mask.sum() / np.pi)
        for class_index, mask in instances
        if CLASSES[class_index] == "disc" and not mask[[0, -1]].any() and not mask[:, [0, -1]].any()
    ]
    sides = [np.ptp(np.argwhere(mask), axis=0).max() + 1 for _, mask in instances]
    smallest, largest = diameters
    assert 0.85 * largest < max(sides) <= largest + 1
    assert np.quantile(whole_discs, 0.05) > 0.75 * smallest


def test_the_large_validation_sets_begin_with_the_images_of_the_small_ones():
    scenes.register()
    large = [name for name in scenes.DATASETS if name.endswith("_val1000")]
    assert len(large) == 3
    for name in large:
        number, seed, scene = scenes.DATASETS[name]
        assert (100, seed, scene) == scenes.DATASETS[name.removesuffix("1000")]
        assert number == 1000 and name in DatasetCatalog.list()


def test_patterns_name_variants_and_unknown_names_are_refused():
    assert cells.choose(["shapes_small/bicubic_ratio?"]) == [
        "shapes_small/bicubic_ratio1",
        "shapes_small/bicubic_ratio2",
    ]
    assert cells.with_baselines(["nuclei/bicubic_a0.75"]) == [
        "nuclei/stock",
        "nuclei/bicubic",
        "nuclei/bicubic_a0.75",
    ]
    assert cells.with_baselines(["shapes_*/carafe", "nuclei/bicubic"]) == [
        *("nuclei/stock", "nuclei/bicubic", "shapes_small/stock", "shapes_small/carafe"),
        *("shapes_scales/stock", "shapes_scales/carafe"),
        *("shapes_long_tail/stock", "shapes_long_tail/carafe"),
    ]
    with pytest.raises(ValueError, match="neither a YAML file nor one of: nuclei/stock"):
        cells.choose(["nuclei"])
    with pytest.raises(ValueError, match="no.yaml, which is no file"):
        cells.choose(["no.yaml"])


def test_nothing_outside_depends_on_the_study():
    files = [
        f for folder in ("mrcnn_plugin", "tools", "tests") for f in (ROOT / folder).rglob("*.py")
    ]
    assert files
    for file in files:
        assert not re.search(r"^\s*(from|import) ablations", file.read_text(), re.MULTILINE), file


def test_cells_of_a_name_have_folders_of_that_name():
    cell = cells.Cell("nuclei/bicubic", (), 3)
    assert (cell.name, cell.folder("out")) == ("nuclei/bicubic", "out/nuclei/bicubic/seed3")
    assert cell.baseline() == cells.Cell("nuclei/stock", (), 3)


def test_changes_are_part_of_a_name(folder):
    data = str(cells.load("base.yaml").DATASETS.COCO_JSON)
    # Values with spaces, and what is no setting.
    opts = ["SOLVER.STEPS", "(2, 3)", "DATASETS.COCO_JSON", data, "TEST.EVAL_PERIOD", "3"]
    found = cells.all_cells(["other.yaml"], opts, [1])
    named = "SOLVER.STEPS (2, 3) TEST.EVAL_PERIOD 3"
    other = cells.Cell("other.yaml", ("SOLVER.STEPS", "(2,3)", "TEST.EVAL_PERIOD", "3"), 1)
    assert len({cell.folder("out") for cell in (*found, other)}) == 3
    assert [cell.name for cell in found] == [f"base {named}", f"other {named}"]


@pytest.mark.parametrize("base", ["other.yaml", "./other.yaml", "{folder}/other.yaml"])
def test_a_file_is_compared_with_its_base_in_the_same_folder(folder, base):
    (folder / "third.yaml").write_text("_BASE_: " + base.format(folder=folder))
    path = str(folder / "third.yaml")
    assert cells.baseline_of(path) == str(folder / "other.yaml")
    assert cells.baseline_of("base.yaml") == "base.yaml"
    (folder / "two.yaml").write_text("_BASE_: [base.yaml, other.yaml]")
    assert cells.baseline_of("two.yaml") == "two.yaml"
    # Detectron2 has such bases, which are not models yet, beside its configs.
    quickstart = str(ROOT / "configs" / "quickstart.yaml")
    assert cells.with_baselines([quickstart]) == [quickstart]
    # Each once, and after what it is compared with.
    found = cells.all_cells(["third.yaml", "./other.yaml"], ["A", "1"], [2, 1, 2])
    assert [(cell.name, cell.seed) for cell in found] == [
        (f"{name} A 1", seed) for seed in (2, 1) for name in ("base", "other", "third")
    ]


def test_configs_of_the_same_name_cannot_be_told_apart(folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "base.yaml").write_text("{}")
    (folder / "sub" / "another.yaml").write_text("_BASE_: base.yaml")
    for config in ("sub/base.yaml", "sub/another.yaml"):
        with pytest.raises(ValueError, match="base.yaml and sub/base.yaml have the same name"):
            cells.with_baselines(["other.yaml", config])
