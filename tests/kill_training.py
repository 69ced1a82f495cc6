"""Kills a training at random moments, and checks that it always goes on from its newest whole checkpoint.

    python -m tests.kill_training --kills 20 --seed 0

It trains a tiny model of generated images on the CPU, saves after every iteration and evaluates after every third. Each
process gets a SIGKILL after a random time of training. The next one goes on with --resume. Processes are forked, so it
needs Linux.
"""

import argparse
import glob
import multiprocessing
import os
import random
import re
import tempfile
import time
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from detectron2.engine import default_argument_parser

from mrcnn_plugin.data import generate_shapes
from mrcnn_plugin.output_dir import read_metrics
from tests.conftest import load_tool
from tests.small import CONFIGS, TINY


@dataclass
class Report:
    """What happened: kills, those of them in the midst of saving, and resumes from a checkpoint that trained again."""

    kills: int = 0
    while_saving: int = 0
    resumes: int = 0
    iterations: int = 0


def kill_and_resume(folder: str, kills: int, seconds: float, seed: int) -> Report:
    """Kills a training and resumes it.

    Args:
        folder: an empty folder.
        kills: how often.
        seconds: the longest time from the start of the training in a process to its kill. The first one is killed
            after its first checkpoint, so that there is something to go on from.
        seed: of the times.

    Raises:
        AssertionError: a checkpoint is damaged, or a process did not go on from the newest one.
    """
    torch.set_num_threads(1)
    config = _write_config(folder)
    out = os.path.join(folder, "out")
    chosen = random.Random(seed)
    report = Report()
    newest, seen = -1, 0
    for _ in range(kills):
        starts = len(_starts(out))
        process = _start(config, out)
        last = os.path.join(out, "last_checkpoint")
        while process.is_alive() and not (len(_starts(out)) > starts and os.path.exists(last)):
            time.sleep(0.01)
        process.join(chosen.uniform(0, seconds))
        assert process.is_alive(), f"The training ended; see {out}.txt."
        process.kill()
        process.join()
        report.kills += 1
        _check_start(out, starts, newest, report)
        partial = os.path.join(out, "checkpoint.partial")
        # It stays until the next one is saved.
        age = os.stat(partial).st_mtime_ns if os.path.exists(partial) else seen
        report.while_saving += age != seen
        seen = age
        newest = _newest_checkpoint(out)
    starts = len(_starts(out))
    process = _start(config, out, max_iter=newest + 3)
    process.join()
    assert process.exitcode == 0, f"The last training failed; see {out}.txt."
    _check_start(out, starts, newest, report)
    assert _newest_checkpoint(out) == newest + 2
    assert newest + 2 in read_metrics(os.path.join(out, "metrics.json"))
    report.iterations = newest + 3
    return report


def _write_config(folder: str) -> str:
    json_file = generate_shapes(os.path.join(folder, "data"), 4, seed=5)
    content = {
        "_BASE_": str(CONFIGS / "quickstart.yaml"),
        "DATASETS": {
            "COCO_JSON": [["killed", json_file, os.path.join(folder, "data", "images")]],
            "TRAIN": ["killed"],
            "TEST": ["killed"],
        },
        "SOLVER": {"IMS_PER_BATCH": 1, "CHECKPOINT_PERIOD": 1, "STEPS": []},
        "INPUT": {"MIN_SIZE_TRAIN": [64], "MIN_SIZE_TEST": 64},
        "TEST": {"EVAL_PERIOD": 3},
        "DATALOADER": {"NUM_WORKERS": 0},
    }
    path = os.path.join(folder, "config.yaml")
    with open(path, "w") as f:
        yaml.safe_dump(content, f)
    return path


def _start(config: str, out: str, max_iter: int = 10**6) -> Any:
    process = multiprocessing.get_context("fork").Process(
        target=_train, args=(config, out, max_iter)
    )
    process.start()
    return process


def _train(config: str, out: str, max_iter: int) -> None:
    output = os.open(f"{out}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    settings = {**TINY, "MODEL.ROI_HEADS.NUM_CLASSES": 4, "OUTPUT_DIR": out}
    settings["SOLVER.MAX_ITER"] = max_iter
    opts = [str(item) for pair in settings.items() for item in pair]
    args = default_argument_parser().parse_args(["--config-file", config, "--resume", *opts])
    load_tool("train_net").main(args)


def _starts(out: str) -> list[int]:
    """The first iteration of each process that came to train."""
    try:
        with open(os.path.join(out, "log.txt"), encoding="utf-8", errors="replace") as f:
            return [int(i) for i in re.findall(r"Starting training from iteration (\d+)", f.read())]
    except FileNotFoundError:
        return []


def _check_start(out: str, starts: int, newest: int, report: Report) -> None:
    for start in _starts(out)[starts:]:
        assert start == newest + 1, f"It went on at {start}, but {newest + 1} comes next."
        report.resumes += newest >= 0


def _newest_checkpoint(out: str) -> int:
    """The last iteration of the newest checkpoint, or -1. All have to be whole, and `last_checkpoint` to name it."""
    iterations = {}
    for path in glob.glob(os.path.join(out, "*.pth")):
        content = torch.load(path, map_location="cpu", weights_only=False)
        if os.path.basename(path) != "model_best.pth":
            iterations[os.path.basename(path)] = content["iteration"]
    if not iterations:
        return -1
    with open(os.path.join(out, "last_checkpoint"), encoding="utf-8") as f:
        last = iterations[f.read()]
    assert last == max(iterations.values()), f"last_checkpoint names the one of {last}."
    return last


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="the longest training of a process"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        print(kill_and_resume(temporary, **vars(arguments)))
