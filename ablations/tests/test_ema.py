"""The average of the weights is compared with its definition, and does not change the training."""

import json

import pytest
import torch
from detectron2.engine import HookBase

from ablations import run as run_module
from ablations.__main__ import main
from ablations.cells import Cell, load
from ablations.lines import read_lines

from .helpers import run


def trainer_of(folder, ema, monkeypatch, resume=False):
    """A trainer of base.yaml, and the models that it evaluates."""
    evaluated = []

    def test(cfg, model, evaluators=None):
        evaluated.append({name: p.detach().clone() for name, p in model.named_parameters()})
        return {"bbox": {"AP": float(len(evaluated))}}

    monkeypatch.setattr(run_module.AblationTrainer, "test", staticmethod(test))
    opts = ["OUTPUT_DIR", str(folder), "TEST.EVAL_PERIOD", 0, "SEED", 1]
    cfg = load("base.yaml", opts)
    run_module.start(cfg, run_module.ARGUMENTS)
    trainer = run_module.AblationTrainer(cfg, ema)
    trainer.resume_or_load(resume=resume)
    return trainer, evaluated


class Keep(HookBase):
    def __init__(self):
        self.weights = []

    def after_step(self):
        named = self.trainer.model.named_parameters()
        self.weights.append({name: p.detach().clone() for name, p in named})


def test_the_average_is_that_of_the_weights_after_each_iteration(folder, monkeypatch):
    run_module.checked_config(Cell("base.yaml", (), 1), "out")  # registers the data
    plain, raw = trainer_of(folder / "plain", None, monkeypatch)
    plain.train()
    assert len(raw) == 1
    trainer, evaluated = trainer_of(folder / "ema", 0.75, monkeypatch)
    keep = Keep()
    trainer.register_hooks([keep])
    trainer.train()

    average = keep.weights[0]
    for weights in keep.weights[1:]:
        average = {key: 0.75 * average[key] + 0.25 * weights[key] for key in weights}
    assert len(keep.weights) == 4 and len(evaluated) == 2
    moved = 0
    for key, value in average.items():
        torch.testing.assert_close(evaluated[0][key], value, rtol=1e-5, atol=1e-7)
        moved += not torch.equal(evaluated[0][key], evaluated[1][key])
        # The training itself is the one without an average.
        assert torch.equal(evaluated[1][key], raw[0][key])
    assert moved > len(average) / 2

    metrics = run_module.read_metrics(str(folder / "ema" / "metrics.json"))
    (last,) = [values for values in metrics.values() if "bbox/AP" in values]
    assert (last["ema/bbox/AP"], last["bbox/AP"]) == (1.0, 2.0)

    # A resumed training goes on with the average.
    again, evaluated_again = trainer_of(folder / "ema", 0.75, monkeypatch, resume=True)
    again.train()
    assert all(torch.equal(evaluated_again[0][key], evaluated[0][key]) for key in average)


def test_a_cell_with_an_average_has_its_metrics(folder, forked_cells, capsys):
    arguments = ["--config", "base.yaml", "--seeds", "1", "--ema", "0.5"]
    code, printed = run(capsys, *arguments)
    assert code == 0, printed
    results = folder / "output" / "ablations" / "results.jsonl"
    (line,) = read_lines(str(results))
    assert line["ema"] == 0.5
    assert {"bbox/AP", "segm/AP", "ema/bbox/AP", "ema/segm/AP"} <= line["metrics"].keys()
    output = folder / "output" / "ablations" / "ema0.5" / "base" / "seed1"
    assert json.loads((output / "result.json").read_text()) == line
    assert (output / "inference_ema").is_dir()
    main(["run", *arguments])
    assert "1 of 1 cells have a line" in capsys.readouterr().out
    for other, said in (([], "None"), (["--ema", "0.9"], "0.9")):
        with pytest.raises(ValueError, match=f"was run with --ema 0.5 instead of {said}"):
            main(["run", "--config", "base.yaml", "--seeds", "1", *other])


@pytest.mark.parametrize("decay", ["1", "-0.1", "nan"])
def test_a_decay_that_cannot_be(folder, capsys, decay):
    with pytest.raises(SystemExit):
        main(["run", "--config", "base.yaml", "--seeds", "1", "--ema", decay])
    assert "it must be at least 0 and below 1" in capsys.readouterr().err


def test_an_average_that_detects_nothing_has_an_ap_of_zero():
    metrics = {9: {"bbox/AP": 50.0, "ema/bbox/AP": float("nan")}}
    assert run_module.final_metrics(metrics, ["bbox", "ema/bbox"]) == {
        "bbox/AP": 50.0,
        "ema/bbox/AP": 0.0,
    }
