"""Cells are trained, resumed and recorded."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from detectron2.data import DatasetCatalog
from detectron2.engine import default_argument_parser
from detectron2.evaluation.testing import flatten_results_dict

from ablations import run as run_module
from ablations.__main__ import main, parse
from ablations.cells import Cell, load
from ablations.lines import read_lines
from mrcnn_plugin.output_dir import read_metrics
from tests.conftest import load_tool
from tests.environments import START_METHOD

from .helpers import COMMAND, run, write_other


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(run_module, "POLL_SECONDS", 0.1)


def refused(*arguments):
    """What a run that trains nothing says, in this process."""
    with pytest.raises(ValueError) as error:
        main(["run", *arguments])
    return str(error.value)


def lines(folder):
    return read_lines(str(folder / "output" / "ablations" / "results.jsonl"))


def test_ap_counts_100_detections_whatever_the_model_may_have(tmp_path):
    cfg = load("nuclei/stock", ["OUTPUT_DIR", str(tmp_path)])
    assert cfg.TEST.DETECTIONS_PER_IMAGE > 100
    name = "mrcnn_shapes_val"
    DatasetCatalog.get(name)  # generates it
    evaluator = run_module.AblationTrainer.build_evaluator(cfg, name)
    assert evaluator._max_dets_per_image in (None, [1, 10, 100])


def test_a_cell_is_the_training_of_its_config_and_seed_and_is_run_once(
    folder, forked_cells, capsys
):
    train_net = load_tool("train_net")
    cell = folder / "output" / "ablations" / "other" / "seed4"
    cell.mkdir(parents=True)
    (cell / "of_the_user.pth").write_text("")
    code, printed = run(capsys, "--config", "other.yaml", "--seeds", "3", "4", "--jobs", "2")
    assert code == 0, printed
    found = {(line["name"], line["seed"]): line for line in lines(folder)}
    assert found.keys() == {(name, seed) for name in ("base", "other") for seed in (3, 4)}

    line = found["other", 4]
    assert line["baseline"] == "base" and found["base", 4]["baseline"] == "base"
    assert line["settings"]["MODEL.RPN.SMOOTH_L1_BETA"] == 0.5
    assert line["settings"]["SOLVER.MAX_ITER"] == 4
    assert line["resumed_from"] == 0 and line["diverged_at"] is None
    assert line["versions"]["torch"] and line["device"] and line["threads"] >= 1
    assert line["cpu_seconds_per_iteration"] > 0 and line["peak_memory_mib"] > 100
    evaluated = [iteration for iteration, _ in line["curves"]["segm/AP"]]
    assert evaluated == [2, 4] and line["curves"]["total_loss"][-1][0] == 4

    opts = ["SEED", "4", "OUTPUT_DIR", "alone"]
    for arguments in (opts, ["--eval-only", *opts, "MODEL.WEIGHTS", "alone/model_final.pth"]):
        arguments = ["--config-file", "other.yaml", *arguments]
        alone = train_net.main(default_argument_parser().parse_args(arguments))
    metrics = flatten_results_dict(alone)
    assert metrics.keys() == line["metrics"].keys()
    for name, value in metrics.items():
        if np.isnan(value):
            assert line["metrics"][name] is None
        else:
            assert line["metrics"][name] == pytest.approx(value, abs=1e-3)
    # So short a training detects next to nothing, but its loss depends on the seed.
    curves = run_module.curves(read_metrics("alone/metrics.json"), 4)
    for (_, loss), (_, expected) in zip(
        line["curves"]["total_loss"], curves["total_loss"], strict=True
    ):
        assert loss == pytest.approx(expected, abs=1e-2)

    assert {p.name for p in cell.glob("*.pth")} == {"model_final.pth", "of_the_user.pth"}
    trained = {p: p.stat().st_mtime_ns for p in (folder / "output").rglob("*")}
    main(["run", "--config", "base.yaml", "other.yaml", "--seeds", "3", "4"])
    assert "4 of 4 cells have a line" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in (folder / "output").rglob("*")} == trained

    # A line that was lost is written again without training, on a line of its own.
    results = folder / "output" / "ablations" / "results.jsonl"
    results.write_text("\n".join(results.read_text().splitlines()[:-1]))
    assert run(capsys, "--config", "other.yaml", "--seeds", "3", "4")[0] == 0
    assert {(line["name"], line["seed"]): line for line in lines(folder)} == found

    # So it is if another process was faster to do so.
    run_module.add_line(
        Cell("other.yaml", (), 4), parse(["run", "--config", "other.yaml", "--seeds", "1"])
    )
    assert len(lines(folder)) == 4

    write_other(folder, beta=0.25)
    printed = refused("--config", "other.yaml", "--seeds", "3", "5")
    assert "MODEL.RPN.SMOOTH_L1_BETA 0.5 instead of 0.25" in printed
    assert f"Delete such lines and {cell.parent.relative_to(folder)}," in printed
    # A new seed would not fit those that there are.
    printed = refused("--config", "other.yaml", "--seeds", "5")
    assert "SMOOTH_L1_BETA 0.5 instead of 0.25" in printed and len(lines(folder)) == 4
    results.unlink()
    printed = refused("--config", "other.yaml", "--seeds", "3")
    assert "SMOOTH_L1_BETA 0.5 instead of 0.25" in printed and "folder" in printed


def test_two_runs_do_not_train_the_same_cell_and_a_killed_one_leaves_no_process(folder, capsys):
    # So long that it is still under way when the test has done with it.
    opts = ["SOLVER.MAX_ITER", "400", "TEST.EVAL_PERIOD", "0"]
    arguments = ["--config", "base.yaml", "--seeds", "1", "--threads", "1", "--opts", *opts]
    output = folder / "output" / "ablations"
    cell = Path(Cell("base.yaml", tuple(opts), 1).folder(str(output)))
    first = subprocess.Popen([*COMMAND, "run", *arguments], stderr=subprocess.DEVNULL)
    while not (cell / "last_checkpoint").exists():
        assert first.poll() is None
        time.sleep(0.1)
    code, printed = run(capsys, *arguments)
    assert code and "FAILED" in printed
    assert "Another process works in" in (cell / "output.txt").read_text()
    first.terminate()
    assert first.wait() == 128 + signal.SIGTERM
    with run_module.locked(str(cell)):
        pass
    assert not lines(folder) and list(cell.glob("model_*.pth"))


def test_workers_of_a_killed_cell_do_not_keep_its_lock(folder):
    dies = """
import os, sys, time
from ablations.run import locked
with locked(sys.argv[1]):
    worker = os.fork()
    if not worker:
        os.close(1)
        time.sleep(600)
    print(worker, flush=True)
    os.kill(os.getpid(), 9)
"""
    command = [sys.executable, "-c", dies, str(folder)]
    killed = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    assert killed.returncode == -signal.SIGKILL
    try:
        with run_module.locked(str(folder)):
            pass
    finally:
        os.kill(int(killed.stdout), signal.SIGKILL)


def train_until_killed(cell, output, finished):
    def die(*_):
        os._exit(9)

    if finished:
        run_module.write_whole = die
    else:
        run_module.CPUTimer.after_step = lambda self: self.trainer.iter == 2 and die()
    run_module.run_cell(cell, output)


@pytest.mark.parametrize("finished", [False, True])
def test_a_resumed_cell_starts_from_its_last_checkpoint(folder, forked_cells, capsys, finished):
    cell = Cell("base.yaml", (), 1)
    output = folder / "output" / "ablations"
    out = cell.folder(str(output))
    killed = multiprocessing.get_context(START_METHOD).Process(
        target=train_until_killed, args=(cell, str(output), finished)
    )
    killed.start()
    killed.join()
    assert killed.exitcode == 9
    assert not os.path.exists(os.path.join(out, "result.json"))
    code, printed = run(capsys, "--config", "base.yaml", "--seeds", "1")
    assert code == 0, printed
    log = (folder / out / "output.txt").read_text()
    assert f"Starting training from iteration {4 if finished else 2}" in log
    (line,) = lines(folder)
    assert line["resumed_from"] == (4 if finished else 2)
    # Nothing was trained by the process that would know.
    assert (line["peak_memory_mib"] is None) == finished
    # What was not written before the end is lost; nothing is there twice.
    assert [iteration for iteration, _ in line["curves"]["bbox/AP"]] == (
        [2, 4] if finished else [4]
    )


def test_a_cell_that_fails_does_not_stop_the_others(folder, forked_cells, capsys):
    # Only torch's optimizer refuses it.
    content = {"_BASE_": "base.yaml", "SOLVER": {"NESTEROV": True, "MOMENTUM": 0.0}}
    (folder / "broken.yaml").write_text(yaml.safe_dump(content))
    code, printed = run(
        capsys, "--config", "broken.yaml", "other.yaml", "--seeds", "1", "--jobs", "2"
    )
    log = "output/ablations/broken/seed1/output.txt"
    assert code and f"FAILED broken, seed 1: exit code 1; see {log}" in printed
    assert sorted(line["name"] for line in lines(folder)) == ["base", "other"]


def test_a_cell_that_diverges_has_an_ap_of_zero_and_is_not_run_again(folder, capsys):
    opts = ["SOLVER.BASE_LR", "1e8", "SOLVER.WARMUP_ITERS", "0"]
    arguments = ["--config", "base.yaml", "--seeds", "1", "--threads", "1", "--opts", *opts]
    code, printed = run(capsys, *arguments)
    assert code == 0, printed
    assert "bbox/AP 0.0, segm/AP 0.0, diverged at iteration " in printed
    (line,) = lines(folder)
    assert line["threads"] == 1
    assert line["diverged_at"] < 4 and line["metrics"]["segm/AP"] == 0.0
    main(["run", *arguments])
    assert "1 of 1 cells have a line" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--config", "no.yaml", "--seeds", "1"], "no.yaml, which is no file"),
        (["--config", "base.yaml"], "required: --seeds"),
        (["--config", "base.yaml", "--seeds", "-1"], "seeds must be at least 0"),
        (["--config", "base.yaml", "--seeds", "1", "--jobs", "0"], "--jobs is 0"),
        (["--config", "base.yaml", "--seeds", "1", "--threads", "0"], "--threads is 0"),
        (
            ["--config", "nuclei/stok", "--seeds", "1"],
            "'nuclei/stok', which is neither a YAML file",
        ),
        (["--config", "a b.yaml", "--seeds", "1"], "'a b.yaml'; names of cells have no space"),
        (
            ["--config", "base.yaml", "--seeds", "1", "--opts", "SEED", "2"],
            "has SEED; say it by --se",
        ),
        (
            ["--config", "base.yaml", "--seeds", "1", "--opts", "A", "1", "B"],
            "--opts has ['A', '1', 'B']; say a value for each key",
        ),
        (
            ["--config", "base.yaml", "--seeds", "1", "--opts", "A", "1", "--jobs", "2"],
            "it must come last",
        ),
        (
            ["--config", "base.yaml", "--seeds", "1", "--opts", "A", "1", "OUTPUT_DIR", "x"],
            "--opts has OUTPUT_DIR; say it by --output-dir",
        ),
    ],
)
def test_arguments_that_cannot_be(folder, capsys, arguments, message):
    (folder / "a b.yaml").write_text("{}")
    with pytest.raises(SystemExit):
        main(["run", *arguments])
    assert message in capsys.readouterr().err


def test_there_is_one_test_set(folder):
    content = {
        "_BASE_": "base.yaml",
        "DATASETS": {"TEST": ["mrcnn_shapes_val", "mrcnn_shapes_train"]},
    }
    (folder / "two.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match="DATASETS.TEST of two.yaml.*must be one data set"):
        main(["run", "--config", "two.yaml", "--seeds", "1"])


@pytest.mark.parametrize(
    "content, message",
    [
        ({"_BASE_": "base.yaml", "MODEL": {"NOPE": 1}}, "bad.yaml: .*Non-existent config key"),
        ({"_BASE_": "bad.yaml"}, "bad.yaml: "),
        ({"_BASE_": "no.yaml"}, "bad.yaml has _BASE_ 'no.yaml', which is no file"),
        (["MODEL"], "bad.yaml is not a config"),
    ],
)
def test_a_config_that_cannot_be_loaded_is_named(folder, content, message):
    (folder / "bad.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=message):
        main(["run", "--config", "other.yaml", "bad.yaml", "--seeds", "1"])


def test_results_that_cannot_be_written_are_seen_before_a_training(folder):
    (folder / "file").write_text("")
    with pytest.raises(OSError):
        main(["run", "--config", "base.yaml", "--seeds", "1", "--results", "file/r.jsonl"])
    assert not (folder / "output").exists()


def test_nothing_detected_is_an_ap_of_zero():
    nan = float("nan")
    # So Detectron2 writes it; the classes are missing where nothing was detected.
    metrics = {
        9: {
            "bbox/AP": 50.0,
            "bbox/APl": nan,
            "segm/AP": 40.0,
            "segm/APl": nan,
            "segm/AP-ring": 9.0,
        },
        19: {"bbox/AP": nan, "bbox/APl": nan},
        39: {"total_loss": 1.0},
    }
    both = ["bbox", "segm"]
    assert run_module.final_metrics(metrics, both) == {
        "bbox/AP": 0.0,
        "bbox/APl": None,
        "segm/AP": 0.0,
        "segm/AP-ring": 0.0,
    }
    del metrics[9]
    assert run_module.final_metrics(metrics, both)["segm/AP"] == 0.0
    metrics[19] = {"bbox/AP": 60.0, "segm/AP": nan}
    assert run_module.final_metrics(metrics, both) == {"bbox/AP": 60.0, "segm/AP": 0.0}


def test_curves_are_of_the_loss_and_the_ap_of_each_task():
    metrics = {
        0: {"total_loss": 2.0, "loss_cls": 1.0},
        1: {"keypoints/AP": 30.0, "keypoints/AP75": 20.0, "bbox/AP": float("nan")},
    }
    assert run_module.curves(metrics, 1) == {
        "bbox/AP": [],
        "keypoints/AP": [[1, 30.0]],
        "total_loss": [[1, 2.0]],
    }
