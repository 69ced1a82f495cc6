import glob
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from detectron2.engine import default_argument_parser
from detectron2.evaluation.testing import flatten_results_dict

from mrcnn_plugin.data import generate_shapes
from tests.conftest import load_tool
from tests.small import ROOT, TINY

run_ablations = load_tool("run_ablations")

SCRIPT = ROOT / "tools" / "run_ablations.py"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the configs base.yaml and other.yaml, which changes one key of it."""
    json_file = generate_shapes(str(tmp_path / "data"), 4, seed=5)
    name = f"shapes_of_{tmp_path.name}"
    base = tree({**TINY, "MODEL.ROI_HEADS.NUM_CLASSES": 4})
    base["_BASE_"] = str(ROOT / "configs" / "quickstart.yaml")
    base["DATASETS"] = {
        "COCO_JSON": [[name, json_file, str(tmp_path / "data" / "images")]],
        "TRAIN": [name],
        "TEST": [name],
    }
    base["SOLVER"] = {"MAX_ITER": 4, "IMS_PER_BATCH": 2, "CHECKPOINT_PERIOD": 2}
    base["TEST"]["EVAL_PERIOD"] = 2
    base["DATALOADER"] = {"NUM_WORKERS": 0}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    write_other(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tree(settings):
    nodes = {}
    for key, value in settings.items():
        *path, last = key.split(".")
        node = nodes
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return nodes


def write_other(folder, beta=0.5):
    content = {"_BASE_": "base.yaml", "MODEL": {"RPN": {"SMOOTH_L1_BETA": beta}}}
    (folder / "other.yaml").write_text(yaml.safe_dump(content))


def run(*arguments):
    """Runs the script as a user would and returns what it printed."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def parse(*arguments):
    return run_ablations.parse(["--config", "other.yaml", *arguments])


def lines(folder):
    return run_ablations.read_results(str(folder / "output" / "ablations" / "results.jsonl"))


def test_a_cell_is_the_training_of_its_config_and_seed_and_is_run_once(folder, train_net):
    cell = folder / "output" / "ablations" / "other" / "seed4"
    cell.mkdir(parents=True)
    (cell / "of_the_user.pth").write_text("")
    code, printed = run("--config", "other.yaml", "--seeds", "3", "4", "--jobs", "2")
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

    assert {p.name for p in cell.glob("*.pth")} == {"model_final.pth", "of_the_user.pth"}
    trained = {p: p.stat().st_mtime_ns for p in (folder / "output").rglob("*")}
    code, printed = run("--config", "base.yaml", "other.yaml", "--seeds", "3", "4")
    assert code == 0 and "4 of 4 cells have a line" in printed
    assert {p: p.stat().st_mtime_ns for p in (folder / "output").rglob("*")} == trained

    # A line that was lost is written again without training, on a line of its own.
    results = folder / "output" / "ablations" / "results.jsonl"
    results.write_text("\n".join(results.read_text().splitlines()[:-1]))
    assert run("--config", "other.yaml", "--seeds", "3", "4")[0] == 0
    assert {(line["name"], line["seed"]): line for line in lines(folder)} == found

    # So it is if another process was faster to do so.
    run_ablations.add_line(run_ablations.Cell("other.yaml", (), 4), parse("--seeds", "1"))
    assert len(lines(folder)) == 4

    write_other(folder, beta=0.25)
    code, printed = run("--config", "other.yaml", "--seeds", "3", "5")
    assert code and "MODEL.RPN.SMOOTH_L1_BETA 0.5 instead of 0.25" in printed
    assert f"Delete such lines and {cell.parent.relative_to(folder)}," in printed
    # A new seed would not fit those that there are.
    code, printed = run("--config", "other.yaml", "--seeds", "5")
    assert code and "SMOOTH_L1_BETA 0.5 instead of 0.25" in printed and len(lines(folder)) == 4
    results.unlink()
    code, printed = run("--config", "other.yaml", "--seeds", "3")
    assert code and "SMOOTH_L1_BETA 0.5 instead of 0.25" in printed and "folder" in printed


def test_two_runs_do_not_train_the_same_cell_and_a_killed_one_leaves_no_process(folder):
    # So long that it is still under way when the test has done with it.
    opts = ["SOLVER.MAX_ITER", "400", "TEST.EVAL_PERIOD", "0"]
    arguments = ["--config", "base.yaml", "--seeds", "1", "--opts", *opts]
    output = folder / "output" / "ablations"
    cell = Path(run_ablations.Cell("base.yaml", tuple(opts), 1).folder(str(output)))
    first = subprocess.Popen([sys.executable, str(SCRIPT), *arguments], stderr=subprocess.DEVNULL)
    while not (cell / "last_checkpoint").exists():
        assert first.poll() is None
        time.sleep(0.1)
    code, printed = run(*arguments)
    assert code and "FAILED" in printed
    assert "Another process works in" in (cell / "output.txt").read_text()
    first.terminate()
    assert first.wait() == 128 + signal.SIGTERM
    with run_ablations.locked(str(cell)):
        pass
    assert not lines(folder) and list(cell.glob("model_*.pth"))


@pytest.mark.parametrize("finished", [False, True])
def test_a_resumed_cell_starts_from_its_last_checkpoint(folder, finished):
    cell = run_ablations.Cell("base.yaml", (), 1)
    output = folder / "output" / "ablations"
    out = cell.folder(str(output))
    script = f"""
import os, sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
import run_ablations
def die(*_):
    os._exit(9)
run_ablations.CPUTimer.after_step = lambda self: self.trainer.iter == 2 and die()
if {finished}:
    run_ablations.CPUTimer.after_step = lambda self: None
    os.rename = die
run_ablations.run_cell(run_ablations.Cell("base.yaml", (), 1), {str(output)!r})
"""
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == 9
    assert not os.path.exists(os.path.join(out, "result.json"))
    code, printed = run("--config", "base.yaml", "--seeds", "1")
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


def test_a_cell_that_fails_does_not_stop_the_others(folder):
    content = {"_BASE_": "base.yaml", "MODEL": {"FPN": {"NORM": "no such norm"}}}
    (folder / "broken.yaml").write_text(yaml.safe_dump(content))
    code, printed = run("--config", "broken.yaml", "other.yaml", "--seeds", "1")
    log = "output/ablations/broken/seed1/output.txt"
    assert code and f"FAILED broken, seed 1: exit code 1; see {log}" in printed
    assert [line["name"] for line in lines(folder)] == ["base", "other"]


def test_a_cell_that_diverges_has_an_ap_of_zero_and_is_not_run_again(folder):
    opts = ["SOLVER.BASE_LR", "1e8", "SOLVER.WARMUP_ITERS", "0"]
    arguments = ["--config", "base.yaml", "--seeds", "1", "--opts", *opts]
    code, printed = run(*arguments)
    assert code == 0, printed
    assert "bbox/AP 0.0, segm/AP 0.0, diverged at iteration " in printed
    (line,) = lines(folder)
    assert line["diverged_at"] < 4 and line["metrics"]["segm/AP"] == 0.0
    code, printed = run(*arguments)
    assert code == 0 and "1 of 1 cells have a line" in printed


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--config", "no.yaml", "--seeds", "1"], "no.yaml, which is no file"),
        (["--config", "base.yaml"], "--seeds is missing"),
        (["--config", "base.yaml", "--seeds", "-1"], "seeds must be at least 0"),
        (["--config", "base.yaml", "--seeds", "1", "--jobs", "0"], "--jobs is 0"),
        (["--config", "base.yaml", "--seeds", "1", "--threads", "0"], "--threads is 0"),
        (["--config", "base.yaml", "--report", "r", "--seeds", "1"], "leave --seeds and --opts"),
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
        (["--config", "base.yaml", "--report", "r", "--results", "no.jsonl"], "no.jsonl, which is"),
        (
            ["--config", "base.yaml", "--seeds", "1", "--opts", "A", "1", "OUTPUT_DIR", "x"],
            "--opts has OUTPUT_DIR; say it by --output-dir",
        ),
    ],
)
def test_arguments_that_cannot_be(folder, capsys, arguments, message):
    (folder / "a b.yaml").write_text("{}")
    with pytest.raises(SystemExit):
        run_ablations.main(arguments)
    assert message in capsys.readouterr().err


def test_there_is_one_test_set(folder):
    content = {
        "_BASE_": "base.yaml",
        "DATASETS": {"TEST": ["mrcnn_shapes_val", "mrcnn_shapes_train"]},
    }
    (folder / "two.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match="DATASETS.TEST of two.yaml.*must be one data set"):
        run_ablations.main(["--config", "two.yaml", "--seeds", "1"])


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
        run_ablations.main(["--config", "other.yaml", "bad.yaml", "--seeds", "1"])


def test_results_that_cannot_be_written_are_seen_before_a_training(folder):
    (folder / "file").write_text("")
    with pytest.raises(OSError):
        run_ablations.main(["--config", "base.yaml", "--seeds", "1", "--results", "file/r.jsonl"])
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
    assert run_ablations.final_metrics(metrics, both) == {
        "bbox/AP": 0.0,
        "bbox/APl": None,
        "segm/AP": 0.0,
        "segm/AP-ring": 0.0,
    }
    del metrics[9]
    assert run_ablations.final_metrics(metrics, both)["segm/AP"] == 0.0
    metrics[19] = {"bbox/AP": 60.0, "segm/AP": nan}
    assert run_ablations.final_metrics(metrics, both) == {"bbox/AP": 60.0, "segm/AP": 0.0}


def test_curves_are_of_the_loss_and_the_ap_of_each_task():
    metrics = {
        0: {"total_loss": 2.0, "loss_cls": 1.0},
        1: {"keypoints/AP": 30.0, "keypoints/AP75": 20.0, "bbox/AP": float("nan")},
    }
    assert run_ablations.curves(metrics, 1) == {
        "bbox/AP": [],
        "keypoints/AP": [[1, 30.0]],
        "total_loss": [[1, 2.0]],
    }


# The report, of results that are made up.


def line(name, seed, ap, baseline="base", **more):
    return {
        "name": name,
        "opts": [],
        "seed": seed,
        "baseline": baseline,
        "settings": {"SOLVER.MAX_ITER": 40},
        "versions": {"torch": "2", "detectron2": "0.7", "mrcnn_plugin": "0.1"},
        "device": "a CPU",
        "threads": 1,
        "resumed_from": 0,
        "diverged_at": None,
        "seconds_per_iteration": 0.75,
        "cpu_seconds_per_iteration": 0.5,
        "peak_memory_mib": 1000,
        "metrics": {"bbox/AP": ap, "segm/AP": None},
        "curves": {"total_loss": [[20, 2.0], [40, 1.0]], "bbox/AP": [[20, 10.0], [40, ap]]},
        **more,
    }


def report(folder, found, *arguments):
    (folder / "results.jsonl").write_text("".join(json.dumps(one) + "\n" for one in found))
    configs = ["--config", "other.yaml"]
    run_ablations.main([*configs, "--results", "results.jsonl", "--report", "out/r", *arguments])


def rows(printed):
    table = [line.split("|")[1:-1] for line in printed.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in table]


def test_the_table_pairs_seeds(folder, capsys):
    # Differences by seed 1, 2, 3: their interval is 2 ± 4.3027 / sqrt(3), Student's t of any table.
    # Means are 20 and 24, since a fourth seed has no partner.
    found = [line("other", s, ap) for s, ap in [(2, 12.0), (1, 11.0), (3, 43.0), (4, 30.0)]]
    found += [line("base", s, ap) for s, ap in [(1, 10.0), (3, 40.0), (2, 10.0)]]
    report(folder, found + [line("unrelated", 1, 99.0)])
    printed = capsys.readouterr().out
    header, _, base, other = rows(printed)
    assert (
        "\nRuns: 7, of which resumed: 0; device a CPU, threads 1, torch 2, detectron2 0.7, "
        "mrcnn_plugin 0.1.\n"
    ) in printed
    assert header[:5] == ["", "against", "seeds", "bbox AP", "difference [95 %]"]
    assert base[:5] == ["base", "", "3", "20.0 ± 17.3", ""]
    assert other[:4] == ["other", "base", "4", "24.0 ± 15.4"]
    assert other[4] == "+2.0 [-0.5, +4.5] (3 pairs)"
    # No masks.
    assert other[5:] == ["–", "–", "0.75", "0.50", "1000"]
    for name in ("out/r_ap.png", "out/r_curves.png"):
        assert cv2.imread(name).std() > 5


def test_one_seed_has_no_interval_and_other_metrics_can_be_shown(folder, capsys):
    found = [line("base", 1, 10.0), line("other", 1, 12.5)]
    found[1]["metrics"]["bbox/AP-ring"] = 3.0
    report(folder, found, "--metrics", "bbox/AP", "bbox/AP-ring")
    header, _, base, other = rows(capsys.readouterr().out)
    assert header[5] == "bbox AP-ring"
    assert base[3:7] == ["10.0", "", "–", ""]
    assert other[3:7] == ["12.5", "+2.5 (1 pair)", "3.0", "–"]


def test_changes_of_all_cells_are_compared_with_the_baseline_of_the_same_change(folder, capsys):
    change = "SOLVER.BASE_LR 0.5"
    changed = [
        line(f"{n} {change}", 1, ap, f"base {change}")
        for n, ap in (("base", 20.0), ("other", 21.0))
    ]
    report(folder, [line("base", 1, 10.0), line("other", 1, 11.5), *changed])
    assert [[*row[:2], row[4]] for row in rows(capsys.readouterr().out)[2:]] == [
        ["base", "", ""],
        [f"base {change}", "", ""],
        ["other", "base", "+1.5 (1 pair)"],
        [f"other {change}", f"base {change}", "+1.0 (1 pair)"],
    ]


def test_what_the_cells_ran_on_is_said(folder, capsys):
    found = [line("base", 1, 10.0), line("other", 1, 11.5, device="a GPU", resumed_from=20)]
    report(folder, found)
    runs = "\nRuns: 2, of which resumed: 1; device a CPU and a GPU, threads 1"
    assert runs in capsys.readouterr().out
    diverged = line("other", 2, 0.0, diverged_at=3)
    found += [line("base", 2, 8.0, metrics={"bbox/AP75": 8.0}), diverged]
    report(folder, found)
    text = capsys.readouterr().out
    assert "\nRuns: 4, of which resumed: 1; device a CPU" in text
    assert "0.1. Diverged, with an AP of 0: other, seed 2.\n" in text
    report(folder, found, "--metrics", "bbox/AP75")
    assert rows(capsys.readouterr().out)[3][3:5] == ["0.0", "-8.0 (1 pair)"]


def settings_of(cell):
    arguments = run_ablations.train_arguments(cell, "out")
    return run_ablations.settings_of(run_ablations.load_config(arguments))


def test_a_line_of_another_config_than_today_s_is_said(folder, capsys):
    # Values with spaces, and what is no setting.
    data = yaml.safe_load((folder / "base.yaml").read_text())["DATASETS"]["COCO_JSON"]
    opts = ["SOLVER.STEPS", "(2, 3)", "DATASETS.COCO_JSON", str(data), "TEST.EVAL_PERIOD", "3"]
    cells = run_ablations.all_cells(["other.yaml"], opts, [1])
    named = "SOLVER.STEPS (2, 3) TEST.EVAL_PERIOD 3"
    other = run_ablations.Cell("other.yaml", ("SOLVER.STEPS", "(2,3)", "TEST.EVAL_PERIOD", "3"), 1)
    assert len({cell.folder("out") for cell in (*cells, other)}) == 3
    assert [cell.name for cell in cells] == [f"base {named}", f"other {named}"]
    settings = [settings_of(cell) for cell in cells]
    settings[1]["SOLVER.MAX_ITER"] = 80
    found = [
        line(cell.name, 1, 1.0, f"base {named}", settings=s, opts=opts)
        for cell, s in zip(cells, settings, strict=True)
    ]
    report(folder, found)
    text = capsys.readouterr().out
    assert text.endswith(f"\n\nRun with SOLVER.MAX_ITER 80 instead of 4: other {named}.\n")


def test_a_line_says_what_it_was_run_with_when_a_default_has_changed_since(folder, monkeypatch):
    before = settings_of(run_ablations.Cell("base.yaml", (), 1))
    add = run_ablations.mrcnn_plugin.add_mrcnn_config

    def add_with_another_default(cfg):
        add(cfg)
        cfg.MODEL.MRCNN_PLUGIN.BIFPN.NUM_REPEATS = 5

    monkeypatch.setattr(run_ablations.mrcnn_plugin, "add_mrcnn_config", add_with_another_default)
    cfg = run_ablations.default_config()
    assert run_ablations.settings_of(cfg)["MODEL.MRCNN_PLUGIN.BIFPN.NUM_REPEATS"] == 5
    now = {**before, "MODEL.MRCNN_PLUGIN.BIFPN.NUM_REPEATS": 5}
    assert (
        run_ablations.differences(before, now)
        == "MODEL.MRCNN_PLUGIN.BIFPN.NUM_REPEATS 3 instead of 5"
    )
    # A key that there was not yet has its default.
    del before["MODEL.MRCNN_PLUGIN.BIFPN.NUM_REPEATS"]
    assert run_ablations.differences(before, now) == ""


def test_results_that_cannot_be_reported(folder):
    with pytest.raises(ValueError, match="has no line of base, other"):
        report(folder, [line("unrelated", 1, 1.0)])
    with pytest.raises(ValueError, match="two lines of base, seed 1; delete one"):
        report(folder, [line("base", 1, 1.0), line("base", 1, 1.0)])
    changed = line("base", 2, 1.0, settings={"SOLVER.MAX_ITER": 80})
    with pytest.raises(ValueError, match="base, seed 2.*MAX_ITER 80 instead of 40.*that of seed 1"):
        report(folder, [line("base", 1, 1.0), changed])
    with pytest.raises(
        ValueError, match="--metrics has bbox/ap; the results have bbox/AP, segm/AP"
    ):
        report(folder, [line("base", 1, 1.0)], "--metrics", "bbox/AP", "bbox/ap")
    assert not (folder / "out").exists()
    (folder / "results.jsonl").write_text('{"name": "base"')
    with pytest.raises(ValueError, match="line 1 is not the result of a cell"):
        run_ablations.read_results("results.jsonl")


@pytest.mark.parametrize("base", ["other.yaml", "./other.yaml", "{folder}/other.yaml"])
def test_a_config_is_compared_with_its_base_in_the_same_folder(folder, base):
    (folder / "third.yaml").write_text("_BASE_: " + base.format(folder=folder))
    path = str(folder / "third.yaml")
    assert run_ablations.baseline_of(path) == str(folder / "other.yaml")
    assert run_ablations.baseline_of("base.yaml") == "base.yaml"
    (folder / "two.yaml").write_text("_BASE_: [base.yaml, other.yaml]")
    assert run_ablations.baseline_of("two.yaml") == "two.yaml"
    # Detectron2 has such bases, which are not models yet, beside its configs.
    quickstart = str(ROOT / "configs" / "quickstart.yaml")
    assert run_ablations.with_baselines([quickstart]) == [quickstart]
    # Each once, and after what it is compared with.
    cells = run_ablations.all_cells(["third.yaml", "./other.yaml"], ["A", "1"], [2, 1, 2])
    assert [(cell.name, cell.seed) for cell in cells] == [
        (f"{name} A 1", seed) for seed in (2, 1) for name in ("base", "other", "third")
    ]


def test_configs_of_the_same_name_cannot_be_told_apart(folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "base.yaml").write_text("{}")
    (folder / "sub" / "another.yaml").write_text("_BASE_: base.yaml")
    for config in ("sub/base.yaml", "sub/another.yaml"):
        with pytest.raises(ValueError, match="base.yaml and sub/base.yaml have the same name"):
            run_ablations.main(["--config", "other.yaml", config, "--seeds", "1"])


PAGE = ROOT / "docs" / "results" / "ablations.md"
COMMANDS = re.findall(
    r"^    \S*python tools/run_ablations.py (.*--report .*)$", PAGE.read_text(), re.M
)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_tables_of_the_page_are_those_of_its_commands(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    arguments = [name for word in command.split() for name in sorted(glob.glob(word)) or [word]]
    report_at = arguments.index("--report") + 1
    arguments[report_at] = str(tmp_path / "report")
    run_ablations.main(arguments)
    tables = capsys.readouterr().out.strip()
    section = PAGE.read_text().split(command, 1)[1].split("\n#", 1)[0]
    assert tables in section
    for kind in ("ap", "curves"):
        assert (tmp_path / f"report_{kind}.png").exists()


def test_every_table_of_the_page_has_a_command_and_its_figures_are_there():
    text = PAGE.read_text()
    assert len(COMMANDS) == text.count("\nRuns: ") >= 2
    figures = {f"docs/results/{path}" for path in re.findall(r"\((\S+\.png)\)", text)}
    prefixes = re.findall(r"--report (docs/\S+)", "\n".join(COMMANDS))
    assert figures == {f"{p}_{kind}.png" for p in prefixes for kind in ("ap", "curves")}
    assert all((ROOT / path).exists() for path in figures)
