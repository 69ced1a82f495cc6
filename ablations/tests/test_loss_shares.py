"""What a training's losses weigh is compared with separate backward passes, and shares with plain sums."""

import json

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from ablations import cells, loss_shares
from ablations.__main__ import main
from tests import small

from .test_focal_forms import ROWS, proposals
from .test_report import cells_of

SMALL = ["MODEL.RPN.POST_NMS_TOPK_TRAIN", 40, "MODEL.FPN.OUT_CHANNELS", 32]


def model_of(variant, seed=0):
    torch.manual_seed(seed)
    model = build_model(cells.load(f"shapes_scales/{variant}", SMALL))
    # At its start, a model that sigmoids make sure of background has no loss to divide.
    torch.nn.init.normal_(model.roi_heads.box_predictor.cls_score.bias)
    return model


def losses_of(model):
    torch.manual_seed(1)  # for the samples of proposals
    with EventStorage():
        return model(small.batch((128, 96), (96, 96)))


def gradient_norm(parameters):
    return sum((p.grad.double() ** 2).sum().item() for p in parameters if p.grad is not None) ** 0.5


def test_norms_are_those_of_a_backward_pass_of_each_loss():
    model = model_of("softmax_focal")
    recorder = loss_shares.LossRecorder(model, every=1)
    losses = losses_of(model)
    (record,) = recorder.records
    assert record["losses"] == {name: loss.item() for name, loss in losses.items()}
    assert len(losses) == 5
    for name in losses:
        model.zero_grad()
        losses_of(model)[name].backward()
        for part, module in (("backbone", model.backbone), ("box_head", model.roi_heads.box_head)):
            expected = gradient_norm(module.parameters())
            assert record["gradients"][part][name] == pytest.approx(expected, rel=1e-4)
    of_box_head = record["gradients"]["box_head"]
    assert {name for name, norm in of_box_head.items() if norm} == {"loss_cls", "loss_box_reg"}


def test_a_training_that_is_recorded_stays_what_it_is():
    states = []
    for every in (0, 1):
        model = model_of("stock")
        if every:
            recorder = loss_shares.LossRecorder(model, every)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        torch.manual_seed(1)
        for _ in range(2):
            with EventStorage():
                losses = model(small.batch((128, 96)))
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
        states.append(model.state_dict())
    assert [record["iteration"] for record in recorder.records] == [0, 1]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_every_so_many_iterations_of_a_training_are_recorded():
    model = model_of("stock")
    recorder = loss_shares.LossRecorder(model, every=2)
    for _ in range(3):
        losses_of(model)
    model.eval()
    with torch.no_grad():
        model(small.batch((128, 96)))
    assert [record["iteration"] for record in recorder.records] == [0, 2]


@pytest.mark.parametrize(
    "variant",
    [
        *("stock", "stock_sigmoid_cross_entropy", "sigmoid_cross_entropy", "sigmoid_focal"),
        *("softmax_focal", "softmax_focal_normalized", "softmax_focal_background"),
    ],
)
def test_the_losses_of_proposals_sum_up_to_the_loss(variant):
    model = model_of(variant)
    recorder = loss_shares.LossRecorder(model, every=1)
    loss = losses_of(model)["loss_cls"].item()
    gt_classes = torch.cat([p.gt_classes for p in recorder.proposals])
    rows = loss_shares.row_losses(recorder.predictor, recorder.scores, gt_classes)
    divisor = len(gt_classes)
    if variant == "sigmoid_focal":
        divisor = (gt_classes < 4).sum().item()
    if variant == "softmax_focal_normalized":
        p = recorder.scores.softmax(1)[range(divisor), gt_classes]
        divisor = ((1 - p) ** 2).sum().item()
    assert divisor > 0 and rows.shape == gt_classes.shape
    assert rows.sum().item() / divisor == pytest.approx(loss, rel=1e-5)


def test_shares_are_of_the_proposals_near_the_threshold_and_beyond():
    recorder = loss_shares.LossRecorder(model_of("stock"), every=1)
    recorder.proposals = proposals()
    scores = torch.randn(len(ROWS) + 1, 5, generator=torch.Generator().manual_seed(0)).double()
    recorder.scores = scores.requires_grad_()
    labels = torch.tensor([label for _, label in ROWS] + [4])
    found = recorder._shares(torch.nn.functional.cross_entropy(recorder.scores, labels))

    p = np.exp(scores.detach().numpy())
    p /= p.sum(1, keepdims=True)
    one_hot = np.eye(5)[labels]
    losses = -np.log((p * one_hot).sum(1))
    # The gradient of a softmax cross entropy is p minus the one-hot label.
    gradients = np.abs(p - one_hot).sum(1)
    groups = {"foreground": [0, 1], "near": [2, 3, 4], "background": [5, 6, 7, 8]}
    assert found.keys() == groups.keys()
    for group, rows in groups.items():
        assert found[group]["number"] == len(rows)
        assert found[group]["loss"] == pytest.approx(losses[rows].sum() / losses.sum())
        assert found[group]["gradient"] == pytest.approx(gradients[rows].sum() / gradients.sum())


def test_other_models_are_refused():
    retinanet = build_model(cells.load("retinanet_nuclei/gamma2"))
    with pytest.raises(ValueError, match="a RetinaNet without one box head"):
        loss_shares.LossRecorder(retinanet, every=1)
    cascade = small.config(
        MODEL__ROI_HEADS__NAME="CascadeROIHeads",
        MODEL__ROI_BOX_HEAD__CLS_AGNOSTIC_BBOX_REG=True,
        MODEL__ROI_BOX_HEAD__POOLER_TYPE="ROIAlignV2",
        MODEL__ROI_MASK_HEAD__POOLER_TYPE="ROIAlignV2",
    )
    with pytest.raises(ValueError, match="The box predictor is a ModuleList"):
        loss_shares.LossRecorder(build_model(cascade), every=1)


def test_cells_are_recorded_once_and_shown(folder, capsys):
    words = ["--config", "other.yaml", "--results", "out/shares.jsonl"]
    arguments = ["losses", *words, "--seeds", "1", "--output-dir", "out", "--every"]
    with pytest.raises(ValueError, match="--every is 2.* SOLVER.MAX_ITER 3 .* at most 1"):
        main([*arguments, "2", "--opts", "SOLVER.MAX_ITER", "3"])
    arguments.append("1")
    main([*arguments, "--opts", "SOLVER.MAX_ITER", "3"])
    lines = (folder / "out" / "shares.jsonl").read_text().splitlines()
    assert [(line["name"], line["seed"]) for line in map(json.loads, lines)] == [
        (f"{name} SOLVER.MAX_ITER 3", 1) for name in ("base", "other")
    ]
    assert [r["iteration"] for r in json.loads(lines[0])["metrics"]] == [0, 1, 2]
    main([*arguments, "--opts", "SOLVER.MAX_ITER", "3"])
    assert (folder / "out" / "shares.jsonl").read_text().splitlines() == lines

    capsys.readouterr()
    with pytest.raises(ValueError, match="has no line of other.yaml"):
        main(["shares", *words])
    main(["shares", *words, "--opts", "SOLVER.MAX_ITER", "3"])
    _, _, base, other = cells_of(capsys.readouterr().out)
    assert (base[0], other[0]) == ("base", "other") and base[1] == other[1] == "1"


def test_the_table_has_means_over_thirds_and_seeds(folder, capsys):
    def record(cls, near):
        norms = {"loss_cls": cls, "loss_mask": 1.0}
        group = {"number": 10, "loss": 1 - near, "gradient": 1 - near}
        proposals = {"near": {"number": 30, "loss": near, "gradient": near}, "background": group}
        gradients = {"backbone": norms, "box_head": {"loss_cls": cls, "loss_mask": 0.0}}
        return {"losses": norms, "gradients": gradients, "proposals": proposals}

    settings = loss_shares.settings_of(cells.load("base.yaml"))
    found = [
        {
            "name": "base",
            "opts": [],
            "seed": seed,
            "settings": settings,
            "metrics": metrics,
            "every": 20,
            "device": "a CPU",
            "versions": {"torch": "2"},
        }
        for seed, metrics in (
            (1, [record(1.0, 0.2), record(1.0, 0.4), record(3.0, 0.1), record(4.0, 0.5)]),
            (2, [record(3.0, 0.1), record(3.0, 0.3), record(4.0, 0.5)]),
        )
    ]
    (folder / "shares.jsonl").write_text("".join(json.dumps(one) + "\n" for one in found))
    main(["shares", "--config", "base.yaml", "--results", "shares.jsonl"])
    printed = capsys.readouterr().out
    assert printed.endswith("\n\nA record every 20 iterations; device a CPU, torch 2.\n")
    _, _, base = cells_of(printed)
    assert base[:2] == ["base", "2"]
    # The first third of four records has two of them.
    assert base[2] == base[5] == base[7] == "2.00 / 3.00 / 4.00"
    assert base[4] == "1.00 / 1.00 / 1.00"
    assert base[3] == base[6] == "62 / 75 / 80" and base[8] == "100 / 100 / 100"
    assert base[9] == "75 / 75 / 75" and base[10] == base[11] == "20 / 20 / 50"
