"""Trains and evaluates cells, several at a time, and adds a line to the results for each.

A run may be killed and started again: a cell with a line is not run again, and one that was
interrupted goes on from its last checkpoint.
"""

import contextlib
import fcntl
import json
import os
import platform
import re
import resource
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import detectron2
import numpy as np
import torch
import torchvision
from detectron2.config import CfgNode
from detectron2.engine import HookBase, default_argument_parser
from detectron2.engine.hooks import EvalHook
from detectron2.evaluation import COCOEvaluator
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

import mrcnn_plugin
from mrcnn_plugin import evaluation
from mrcnn_plugin.checkpoint import write_whole
from mrcnn_plugin.engine import Trainer, check, processor, start
from mrcnn_plugin.output_dir import read_metrics

from . import scenes
from .cells import Cell, load
from .lines import Line, Settings, check_unchanged, identity, present, read_lines, settings_of

SUMMARY_METRICS = ("bbox/AP", "segm/AP")
RESULT = "result.json"
LOG = "output.txt"
POLL_SECONDS = 2.0
EMA = "ema/"  # before the names of the metrics of averaged weights

Metrics = dict[int, dict[str, float]]  # iteration -> name -> value


# One cell, in a process of its own.


class CPUTimer(HookBase):
    """Adds the CPU seconds of each iteration to metrics.json. Other processes disturb them less than time."""

    def before_step(self) -> None:
        self.start = time.process_time()

    def after_step(self) -> None:
        self.trainer.storage.put_scalar("cpu_time", time.process_time() - self.start)


class WeightAverage(HookBase):
    """Keeps the exponential moving average of the weights, which checkpoints save and restore."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))

    def after_step(self) -> None:
        self.average.update_parameters(self.trainer.model)

    def state_dict(self) -> dict[str, Any]:
        return self.average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average.load_state_dict(state)


class AblationTrainer(Trainer):
    """Trains a cell. With `ema`, it also evaluates the averaged weights at the end, as `ema/bbox/AP`."""

    extra_checkpoints = False

    def __init__(self, cfg: CfgNode, ema: float | None = None) -> None:
        self.ema = ema
        super().__init__(cfg)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> COCOEvaluator:
        # The AP of all lines counts COCO's 100 detections of an image, even if the model may have more.
        folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
        return COCOEvaluator(dataset_name, output_dir=folder)

    def build_hooks(self) -> list[HookBase | None]:
        own: list[HookBase] = [CPUTimer()]
        if self.ema is not None:
            hook = WeightAverage(self._trainer.model, self.ema)
            own += [hook, EvalHook(0, lambda: {EMA[:-1]: self.evaluate(hook.average.module)})]
        # The last hook writes the values, so that these must come before it.
        return [*own, *super().build_hooks()]

    def evaluate(self, average: nn.Module) -> dict[str, Any]:
        folder = os.path.join(self.cfg.OUTPUT_DIR, "inference_ema")
        evaluators = [
            self.build_evaluator(self.cfg, name, folder) for name in self.cfg.DATASETS.TEST
        ]
        return self.test(self.cfg, average, evaluators)


# The arguments of tools/train_net.py. A cell is trained as that script trains a config.
ARGUMENTS = default_argument_parser().parse_args(["--resume"])


def checked_config(cell: Cell, output_dir: str) -> CfgNode:
    """The full config of the cell, its data sets registered.

    Raises:
        ValueError: it cannot be trained here. The message names the config.
    """
    cfg = load(cell.config, cell.opts)
    cfg.SEED, cfg.OUTPUT_DIR = cell.seed, cell.folder(output_dir)
    cfg.freeze()
    scenes.register()
    try:
        check(cfg, ARGUMENTS)
    except Exception as error:
        raise ValueError(f"{cell.config}: {error}") from error
    if len(cfg.DATASETS.TEST) != 1:
        raise ValueError(
            f"DATASETS.TEST of {cell.config} is {cfg.DATASETS.TEST}; it must be one data set, whose "
            f"AP is compared."
        )
    return cfg


def about(cell: Cell, cfg: CfgNode) -> Line:
    """What every line says of its cell and of where it was run."""
    return {
        "name": cell.name,
        "opts": list(cell.opts),
        "seed": cell.seed,
        "settings": settings_of(cfg),
        "versions": {
            "mrcnn_plugin": mrcnn_plugin.__version__,
            "detectron2": detectron2.__version__,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "python": platform.python_version(),
        },
        "device": processor("cuda" if cfg.MODEL.DEVICE.startswith("cuda") else "cpu"),
    }


def run_cell(cell: Cell, output_dir: str, ema: float | None = None) -> None:
    """Trains and evaluates, or goes on with it, and writes RESULT into the folder of the cell."""
    cfg = checked_config(cell, output_dir)
    start(cfg, ARGUMENTS)
    trainer = AblationTrainer(cfg, ema)
    trainer.resume_or_load(resume=True)
    start_iter = trainer.start_iter
    diverged_at = None
    try:
        trainer.train()
    except FloatingPointError:
        # Detectron2 ends a training in this way when its loss is not finite.
        diverged_at = trainer.iter
        print(f"The training diverged at iteration {diverged_at}.")
    peak = None
    # The memory of a process that only had to evaluate says nothing of training.
    if start_iter < cfg.SOLVER.MAX_ITER:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        if cfg.MODEL.DEVICE.startswith("cuda"):
            peak = torch.cuda.max_memory_allocated() / 1024**2

    metrics = read_metrics(os.path.join(cfg.OUTPUT_DIR, "metrics.json"))
    if diverged_at is not None:
        # It counts as an evaluation that found nothing. An earlier, killed process may have come further.
        metrics = {i: values for i, values in metrics.items() if i < diverged_at}
        metrics[diverged_at] = {"bbox/AP": float("nan")}
    line: Line = {
        **about(cell, cfg),
        "baseline": cell.baseline().name,
        "threads": torch.get_num_threads(),
        "seconds_per_iteration": median(metrics, "time"),
        "cpu_seconds_per_iteration": median(metrics, "cpu_time"),
        "peak_memory_mib": None if peak is None else round(peak),
        "ema": ema,
        "metrics": final_metrics(metrics, tasks_of(cfg, ema)),
        "diverged_at": diverged_at,
        # 0 if it was not interrupted. After an interruption Detectron2 does not go on with the same images.
        "resumed_from": start_iter,
        "curves": curves(metrics, cfg.SOLVER.MAX_ITER),
    }
    text = json.dumps(line) + "\n"
    write_whole({os.path.join(cfg.OUTPUT_DIR, RESULT): lambda f: f.write(text.encode())})
    # The checkpoints of many cells would fill the disk.
    for file in trainer.checkpointer.get_all_checkpoint_files():
        if re.fullmatch(r"model_\d+\.pth", os.path.basename(file)):
            os.remove(file)


def tasks_of(cfg: CfgNode, ema: float | None) -> list[str]:
    """The tasks that COCOEvaluator evaluates."""
    tasks = evaluation.tasks_of(cfg)
    return tasks if ema is None else [*tasks, *(f"{EMA}{task}" for task in tasks)]


def is_ap(name: str) -> bool:
    return name.removeprefix(EMA).startswith(("bbox/", "segm/", "keypoints/"))


def final_metrics(metrics: Metrics, tasks: Sequence[str]) -> dict[str, float | None]:
    """The metrics of the last evaluation.

    Where nothing was detected, Detectron2 gives nan for boxes and leaves out their classes and the
    other tasks. Without that run the mean of its cell would be too high. So the run gets 0, also in
    every metric that an earlier evaluation had a number for.
    """
    evaluations = [
        {name: number(value) for name, value in sorted(values.items()) if is_ap(name)}
        for _, values in sorted(metrics.items())
        if any(map(is_ap, values))
    ]
    last = evaluations[-1]
    known = {name for values in evaluations for name, value in values.items() if value is not None}
    for task in tasks:
        if last.get(f"{task}/AP") is None:
            last[f"{task}/AP"] = 0.0
            last.update({name: 0.0 for name in sorted(known) if name.startswith(f"{task}/")})
    return last


def number(value: float) -> float | None:
    """None for NaN, which JSON lacks. COCO gives it where a data set has no object of that kind."""
    return None if np.isnan(value) else round(float(value), 4)


def median(metrics: Metrics, name: str) -> float | None:
    """The median of what Detectron2 wrote, which are medians over 20 iterations.

    Detectron2 writes no time for the first few iterations.
    """
    values = [values[name] for values in metrics.values() if name in values]
    return number(float(np.median(values))) if values else None


def curves(metrics: Metrics, max_iter: int) -> dict[str, list[list[Any]]]:
    """Name -> [[iterations done, value], ...]"""
    points: dict[str, dict[int, float]] = {}
    for i, values in sorted(metrics.items()):
        for name, value in values.items():
            if name == "total_loss" or is_ap(name) and name.endswith("/AP"):
                # Detectron2 counts iterations from 0, but those of the last evaluation from 1.
                points.setdefault(name, {})[min(i + 1, max_iter)] = value
    return {
        name: [[i, number(value)] for i, value in values.items() if not np.isnan(value)]
        for name, values in sorted(points.items())
    }


@contextlib.contextmanager
def locked(folder: str) -> Iterator[None]:
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, ".lock"), "w") as f:
        try:
            # Workers of a data loader do not inherit such a lock, so that a killed cell can be run again at once.
            fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"Another process works in {folder}.") from None
        yield


def run_alone(cell: Cell, args: Namespace) -> None:
    """Runs the one cell that this process is for."""
    folder = cell.folder(args.output_dir)
    # The trainer's own lock would come too late: a cell could be finished between the question and it.
    with locked(folder):
        # Its line may have been lost between the end of the training and the results.
        if not os.path.exists(os.path.join(folder, RESULT)):
            run_cell(cell, args.output_dir, args.ema)


# All cells.


def run_all(cells: Sequence[Cell], args: Namespace) -> None:
    """Runs every cell that has no line yet, each in a process of its own.

    Raises:
        ValueError: a config is not the one that an earlier line or training of its name had.
        SystemExit: a cell failed. The others have been run.
    """
    missing = missing_cells(cells, args)
    # If the file cannot be written, this fails before work is lost.
    os.makedirs(os.path.dirname(os.path.abspath(args.results)), exist_ok=True)
    open(args.results, "a").close()
    tqdm.write(f"{len(cells) - len(missing)} of {len(cells)} cells have a line in {args.results}.")
    waiting = list(missing)
    running: dict[Cell, subprocess.Popen[bytes]] = {}
    failed: list[str] = []
    with tqdm(
        total=sum(missing.values()),
        initial=sum(iterations_done(cell, args) for cell in missing),
        unit="it",
        smoothing=0,
        # Once a minute is enough where the bar fills a log instead of a terminal.
        mininterval=1 if sys.stderr.isatty() else 60,
    ) as bar:
        try:
            while waiting or running:
                while waiting and len(running) < args.jobs:
                    cell = waiting.pop(0)
                    running[cell] = start_process(cell, args)
                time.sleep(POLL_SECONDS)
                for cell, process in list(running.items()):
                    if process.poll() is None:
                        continue
                    del running[cell]
                    what = f"{cell.name}, seed {cell.seed}"
                    if process.returncode:
                        log = os.path.join(cell.folder(args.output_dir), LOG)
                        failed.append(f"{what}: exit code {process.returncode}; see {log}")
                        bar.write(f"FAILED {failed[-1]}")
                    else:
                        line = add_line(cell, args)
                        bar.write(f"{what}: {summary(line)}")
                done = len(cells) - len(waiting) - len(running)
                bar.set_postfix_str(f"{done} of {len(cells)} cells", False)
                bar.update(sum(iterations_done(cell, args) for cell in missing) - bar.n)
        finally:
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.wait()
    if failed:
        raise SystemExit("\n".join(["Failed; to try again, run the same command:", *failed]))


def key_of(line: Line) -> tuple[Hashable, int]:
    return identity(line["settings"]), line["seed"]


def missing_cells(cells: Sequence[Cell], args: Namespace) -> dict[Cell, int]:
    """The cells without a line, and how many iterations each has."""
    lines = read_lines(args.results)
    there = {key_of(line) for line in lines}
    missing: dict[Cell, int] = {}
    for cell in cells:
        cfg = checked_config(cell, args.output_dir)
        settings = settings_of(cfg)
        check_lines(cell, settings, lines, args)
        if (identity(settings), cell.seed) in there:
            continue
        folder = cell.folder(args.output_dir)
        # Detectron2 writes this file at the start of a training.
        file = os.path.join(folder, "config.yaml")
        if os.path.exists(file):
            check_unchanged(
                settings_of(mrcnn_plugin.load_cfg(file)),
                settings,
                f"The training in {folder}",
                "Delete the folder, or choose another --output-dir.",
            )
        missing[cell] = cfg.SOLVER.MAX_ITER
    return missing


def check_lines(cell: Cell, settings: Settings, lines: Sequence[Line], args: Namespace) -> None:
    """Lines of one name have the same settings, of other seeds too: a report shows them together."""
    for line in lines:
        if line["name"] == cell.name:
            seed = line["seed"]
            folder = os.path.dirname(cell.folder(args.output_dir))
            check_unchanged(
                line["settings"],
                settings,
                f"The line of {cell.name}, seed {seed} in {args.results}",
                f"Delete such lines and {folder}, or choose other --results and --output-dir.",
            )
            if line.get("ema") != args.ema:
                raise ValueError(
                    f"The line of {cell.name}, seed {seed} in {args.results} was run with --ema "
                    f"{line.get('ema')} instead of {args.ema}. Choose other --results."
                )


def cell_arguments(cell: Cell, args: Namespace) -> list[str]:
    """Returns the arguments of the process that runs only this cell."""
    arguments = ["run", "--only-this-cell", "--config", cell.config, "--seeds", str(cell.seed)]
    ema = [] if args.ema is None else ["--ema", str(args.ema)]
    return [*arguments, *ema, "--output-dir", args.output_dir, "--opts", *cell.opts]


def start_process(cell: Cell, args: Namespace) -> subprocess.Popen[bytes]:
    folder = cell.folder(args.output_dir)
    os.makedirs(folder, exist_ok=True)
    command = [sys.executable, "-m", "ablations", *cell_arguments(cell, args)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    with open(os.path.join(folder, LOG), "ab") as f:
        return subprocess.Popen(command, env=environment, stdout=f, stderr=f)


def iterations_done(cell: Cell, args: Namespace) -> int:
    try:
        with open(os.path.join(cell.folder(args.output_dir), "metrics.json"), "rb") as f:
            return int(json.loads(f.readlines()[-1])["iteration"])
    except (OSError, ValueError, LookupError):
        return 0


def add_line(cell: Cell, args: Namespace) -> Line:
    """Adds the cell's line to the results, where it is not there yet."""
    with open(os.path.join(cell.folder(args.output_dir), RESULT), encoding="utf-8") as f:
        text = f.read()
    line: Line = json.loads(text)
    line["settings"] = present(line["settings"])
    with open(args.results, "a+", encoding="utf-8") as f:
        # Another process may have found the same training finished.
        fcntl.flock(f, fcntl.LOCK_EX)
        if key_of(line) not in map(key_of, read_lines(args.results)):
            f.seek(0)
            # An editor may have left the last line without its end.
            end = "\n" if f.read()[-1:] not in ("", "\n") else ""
            f.write(end + text)
    return line


def summary(line: Line) -> str:
    parts = [
        f"{name} {line['metrics'][name]:.1f}" for name in SUMMARY_METRICS if name in line["metrics"]
    ]
    if line["diverged_at"] is not None:
        parts.append(f"diverged at iteration {line['diverged_at']}")
    return ", ".join(parts)
