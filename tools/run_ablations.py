#!/usr/bin/env python
"""Trains and evaluates configs with several seeds, and compares each with its baseline.

    python tools/run_ablations.py --config configs/ablations/*.yaml --seeds 1 2 3 --jobs 2
    python tools/run_ablations.py --config configs/ablations/*.yaml --report output/ablations/report

The first line runs each cell, a config with a seed, as tools/train_net.py does, and adds a line to
the results. It may be killed and started again: a cell with a line is not run again, and one that
was interrupted goes on from its last checkpoint. The second prints a Markdown table of the cells
that have a line, and draws output/ablations/report_ap.png and report_curves.png.

A config is compared with its _BASE_ if that lies in the same folder and is not called Base-*.yaml,
as Detectron2 calls what is not a model yet; it is then run too, named or not. Differences are taken
between runs with the same seed.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import resource
import signal
import subprocess
import sys
import time
from argparse import Namespace
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import detectron2
import numpy as np
import torch
import torchvision
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import HookBase, default_argument_parser
from matplotlib.figure import Figure
from scipy import stats
from tabulate import tabulate
from tqdm import tqdm

import mrcnn_plugin
from mrcnn_plugin import renamed
from mrcnn_plugin.engine import Trainer, load_config, processor, read_metrics, setup

DEFAULT_METRICS = ("bbox/AP", "segm/AP")
# Where and how often it is run or saved, and not what.
NOT_SETTINGS = ("OUTPUT_DIR", "SEED", "DATASETS.COCO_JSON", "SOLVER.CHECKPOINT_PERIOD")
RESULT = "result.json"
LOG = "output.txt"
POLL_SECONDS = 2.0

Line = Dict[str, Any]  # of the results
Runs = Dict[int, Line]  # of a cell, by seed
Cells = Dict[str, Runs]  # by name


class Cell(NamedTuple):
    config: str  # path
    opts: Tuple[str, ...]
    seed: int

    @property
    def name(self) -> str:
        changes = zip(self.opts[::2], self.opts[1::2], strict=True)
        named = [f"{key} {value}" for key, value in changes if key not in NOT_SETTINGS]
        return " ".join([stem(self.config), *named])

    def folder(self, output_dir: str) -> str:
        name = stem(self.config)
        if name != self.name:
            # Readable, and another for each name.
            readable = re.sub(r"[^\w.+-]+", "_", self.name)[:100]
            name = f"{readable}_{hashlib.sha256(self.name.encode()).hexdigest()[:8]}"
        return os.path.join(output_dir, name, f"seed{self.seed}")


def stem(config: str) -> str:
    return os.path.splitext(os.path.basename(config))[0]


def baseline_of(config: str) -> str:
    """Path of its _BASE_ if that lies in the same folder and is a model, and else its own.

    Raises:
        ValueError: that is no file, or the config is not a mapping of keys.
    """
    with open(config, encoding="utf-8") as f:
        content = yaml.safe_load(f)
    if not isinstance(content, dict):
        raise ValueError(f"{config} is not a config; it must have keys and values.")
    base = content.get("_BASE_")
    # Of several bases none is the one to compare with.
    if not isinstance(base, str) or os.path.basename(base).startswith("Base-"):
        return config
    folder = os.path.dirname(config)
    path = os.path.normpath(os.path.join(folder, base))
    same_folder = os.path.realpath(os.path.dirname(path)) == os.path.realpath(folder)
    if not same_folder:
        return config
    if not os.path.isfile(path):
        raise ValueError(f"{config} has _BASE_ {base!r}, which is no file.")
    return path


def with_baselines(configs: Sequence[str]) -> List[str]:
    """Paths of the configs, each after the one that it is compared with.

    Raises:
        ValueError: two have the same name, which tells cells apart.
    """
    paths: Dict[str, str] = {}
    for config in map(os.path.normpath, configs):
        chain = [config]
        while baseline_of(chain[0]) not in chain:
            chain.insert(0, baseline_of(chain[0]))
        for path in chain:
            other = paths.setdefault(stem(path), path)
            if os.path.realpath(other) != os.path.realpath(path):
                raise ValueError(f"{other} and {path} have the same name; rename one.")
    return list(paths.values())


def all_cells(configs: Sequence[str], opts: Sequence[str], seeds: Sequence[int]) -> List[Cell]:
    """Seed by seed, so that there is something to compare early."""
    paths = with_baselines(configs)
    return [Cell(path, tuple(opts), seed) for seed in dict.fromkeys(seeds) for path in paths]


def default_config() -> CfgNode:
    cfg = get_cfg()
    mrcnn_plugin.add_mrcnn_config(cfg)
    return cfg


def settings_of(cfg: CfgNode) -> Dict[str, Any]:
    """All keys of this package, whose defaults may change, and of Detectron2 those changed."""
    # get_cfg() has our keys too where DETECTRON2_ENV_MODULE has added them.
    own = CfgNode({"DATASETS": {}, "MODEL": {"FPN": {}, "RPN": {}, "ROI_BOX_HEAD": {}}})
    mrcnn_plugin.add_mrcnn_config(own)
    own_keys, defaults = flat(own), flat(default_config())
    return {
        key: value
        for key, value in sorted(flat(cfg).items())
        if key not in NOT_SETTINGS and (key in own_keys or value != defaults[key])
    }


def flat(node: CfgNode, prefix: str = "") -> Dict[str, Any]:
    """KEY.SUBKEY -> value as a file gives it back: lists for tuples."""
    settings: Dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, CfgNode):
            settings.update(flat(value, f"{prefix}{key}."))
        else:
            settings[prefix + key] = json.loads(json.dumps(value))
    return settings


def differences(before: Dict[str, Any], now: Dict[str, Any]) -> str:
    """Empty where all settings are the same."""
    defaults = flat(default_config())
    before, now = ({**defaults, **settings} for settings in (before, now))
    return ", ".join(
        f"{key} {before.get(key)!r} instead of {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    )


def check_unchanged(before: Dict[str, Any], now: Dict[str, Any], where: str, remedy: str) -> None:
    different = differences(before, now)
    if different:
        raise ValueError(f"{where} has {different}; the config was changed in between. {remedy}")


def under_present_names(settings: Dict[str, Any]) -> Dict[str, Any]:
    """The settings of a line, whose keys and registered names may have been renamed since."""
    present = {}
    for key, value in settings.items():
        names = renamed.VALUES.get(key, {})
        if isinstance(value, list):
            value = [names.get(item, item) if isinstance(item, str) else item for item in value]
        elif isinstance(value, str):
            value = names.get(value, value)
        present[renamed.KEYS.get(key, key)] = value
    return present


def read_results(file: str) -> List[Line]:
    lines: List[Line] = []
    if os.path.exists(file):
        with open(file, encoding="utf-8") as f:
            for index, text in enumerate(f, start=1):
                try:
                    line = json.loads(text)
                    line["name"], line["opts"], line["seed"], line["settings"], line["metrics"]
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(
                        f"{file}, line {index} is not the result of a cell; delete the line if it "
                        f"comes from a run that was killed."
                    ) from error
                line["settings"] = under_present_names(line["settings"])
                lines.append(line)
    return lines


# One cell, in a process of its own.


class CPUTimer(HookBase):
    """Adds the CPU seconds of each iteration to metrics.json: other work raises them less."""

    def before_step(self) -> None:
        self.start = time.process_time()

    def after_step(self) -> None:
        self.trainer.storage.put_scalar("cpu_time", time.process_time() - self.start)


class AblationTrainer(Trainer):
    def build_hooks(self) -> List[Optional[HookBase]]:
        # Before the last hook, which writes what is there.
        return [CPUTimer(), *super().build_hooks()]


def train_arguments(cell: Cell, output_dir: str) -> Namespace:
    opts = [*cell.opts, "SEED", str(cell.seed), "OUTPUT_DIR", cell.folder(output_dir)]
    return default_argument_parser().parse_args(["--config-file", cell.config, "--resume", *opts])


def run_cell(cell: Cell, output_dir: str) -> None:
    """Trains and evaluates, or goes on with it, and writes RESULT into the folder of the cell."""
    cfg = setup(train_arguments(cell, output_dir))
    trainer = AblationTrainer(cfg)
    trainer.resume_or_load(resume=True)
    start = trainer.start_iter
    diverged_at = None
    try:
        trainer.train()
    except FloatingPointError:
        # So Detectron2 ends a training whose loss is not finite.
        diverged_at = trainer.iter
        print(f"The training diverged at iteration {diverged_at}.")
    peak = None
    # A process that only had to evaluate says nothing of training.
    if start < cfg.SOLVER.MAX_ITER:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        if cfg.MODEL.DEVICE.startswith("cuda"):
            peak = torch.cuda.max_memory_allocated() / 1024**2

    metrics = read_metrics(os.path.join(cfg.OUTPUT_DIR, "metrics.json"))
    if diverged_at is not None:
        # As if its last evaluation had found nothing. One killed before may have come further.
        metrics = {i: values for i, values in metrics.items() if i < diverged_at}
        metrics[diverged_at] = {"bbox/AP": float("nan")}
    line: Line = {
        "name": cell.name,
        "opts": list(cell.opts),
        "seed": cell.seed,
        "baseline": cell._replace(config=baseline_of(cell.config)).name,
        "settings": settings_of(cfg),
        "versions": {
            "mrcnn_plugin": mrcnn_plugin.__version__,
            "detectron2": detectron2.__version__,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "python": platform.python_version(),
        },
        "device": processor("cuda" if cfg.MODEL.DEVICE.startswith("cuda") else "cpu"),
        "threads": torch.get_num_threads(),
        "seconds_per_iteration": median(metrics, "time"),
        "cpu_seconds_per_iteration": median(metrics, "cpu_time"),
        "peak_memory_mib": None if peak is None else round(peak),
        "metrics": final_metrics(metrics, tasks_of(cfg)),
        "diverged_at": diverged_at,
        # 0, if it was not interrupted; Detectron2 then does not go on with the same images.
        "resumed_from": start,
        "curves": curves(metrics, cfg.SOLVER.MAX_ITER),
    }
    path = os.path.join(cfg.OUTPUT_DIR, RESULT)
    with open(f"{path}.partial", "w", encoding="utf-8") as f:
        f.write(json.dumps(line) + "\n")
    os.rename(f"{path}.partial", path)
    # Of many cells they would fill the disk.
    for file in trainer.checkpointer.get_all_checkpoint_files():
        if re.fullmatch(r"model_\d+\.pth", os.path.basename(file)):
            os.remove(file)


def tasks_of(cfg: CfgNode) -> List[str]:
    """Of COCOEvaluator."""
    return ["bbox"] + ["segm"] * cfg.MODEL.MASK_ON + ["keypoints"] * cfg.MODEL.KEYPOINT_ON


def is_ap(name: str) -> bool:
    return name.startswith(("bbox/", "segm/", "keypoints/"))


def final_metrics(
    metrics: Dict[int, Dict[str, float]], tasks: Sequence[str]
) -> Dict[str, Optional[float]]:
    """Of the last evaluation.

    Where nothing was detected Detectron2 gives nan for boxes and leaves out their classes and the
    other tasks. Such a run would be missing in the means of its cell, which would look the better for
    it: it has 0, in all that an earlier evaluation had a number for too.
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


def number(value: float) -> Optional[float]:
    """JSON has no NaN, which COCO gives where a data set has no object of that kind."""
    return None if np.isnan(value) else round(float(value), 4)


def median(metrics: Dict[int, Dict[str, float]], name: str) -> Optional[float]:
    """Of what Detectron2 writes, medians over 20 iterations; it writes no time of the first few."""
    values = [values[name] for values in metrics.values() if name in values]
    return number(float(np.median(values))) if values else None


def curves(metrics: Dict[int, Dict[str, float]], max_iter: int) -> Dict[str, List[List[Any]]]:
    """Name -> [[iterations done, value], ...]"""
    points: Dict[str, Dict[int, float]] = {}
    for i, values in sorted(metrics.items()):
        for name, value in values.items():
            if name == "total_loss" or is_ap(name) and name.endswith("/AP"):
                # Detectron2 counts from 0, but the evaluation after the last iteration from 1.
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
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"Another process works in {folder}.") from None
        yield


# All cells.


def run_all(cells: Sequence[Cell], args: Namespace) -> None:
    """Runs what has no line yet.

    Raises:
        ValueError: a config is not the one that an earlier line or training of its name had.
        SystemExit: a cell failed. The others have been run.
    """
    missing = missing_cells(cells, args)
    # If it cannot be written, before work is lost.
    os.makedirs(os.path.dirname(os.path.abspath(args.results)), exist_ok=True)
    open(args.results, "a").close()
    tqdm.write(f"{len(cells) - len(missing)} of {len(cells)} cells have a line in {args.results}.")
    waiting = list(missing)
    running: Dict[Cell, "subprocess.Popen[bytes]"] = {}
    failed: List[str] = []
    with tqdm(
        total=sum(missing.values()),
        initial=sum(iterations_done(cell, args) for cell in missing),
        unit="it",
        smoothing=0,
        # Where it is not seen as it goes, but fills a log, once a minute will do.
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


def missing_cells(cells: Sequence[Cell], args: Namespace) -> Dict[Cell, int]:
    """The cells without a line, and how many iterations each has."""
    lines: Cells = {}
    for line in read_results(args.results):
        lines.setdefault(line["name"], {})[line["seed"]] = line
    missing: Dict[Cell, int] = {}
    for cell in cells:
        try:
            cfg = load_config(train_arguments(cell, args.output_dir))
        except Exception as error:
            raise ValueError(f"{cell.config}: {error}") from error
        if len(cfg.DATASETS.TEST) != 1:
            raise ValueError(
                f"DATASETS.TEST of {cell.config} is {cfg.DATASETS.TEST}; it must be one data set, whose "
                f"AP is compared."
            )
        settings = settings_of(cfg)
        # Other seeds too: they could not be reported together.
        for seed, line in lines.get(cell.name, {}).items():
            folder = cell._replace(seed=seed).folder(args.output_dir)
            check_unchanged(
                line["settings"],
                settings,
                f"The line of {cell.name}, seed {seed} in {args.results}",
                f"Delete such lines and {os.path.dirname(folder)}, or choose other --results and "
                f"--output-dir.",
            )
        if cell.seed in lines.get(cell.name, {}):
            continue
        folder = cell.folder(args.output_dir)
        # Detectron2 writes it at the start of a training.
        file = os.path.join(folder, "config.yaml")
        if os.path.exists(file):
            before = default_config()
            before.merge_from_file(file)
            check_unchanged(
                settings_of(before),
                settings,
                f"The training in {folder}",
                "Delete the folder, or choose another --output-dir.",
            )
        missing[cell] = cfg.SOLVER.MAX_ITER
    return missing


def start_process(cell: Cell, args: Namespace) -> "subprocess.Popen[bytes]":
    folder = cell.folder(args.output_dir)
    os.makedirs(folder, exist_ok=True)
    command = [sys.executable, __file__, "--only-this-cell", "--config", cell.config]
    command += ["--seeds", str(cell.seed), "--output-dir", args.output_dir]
    command += ["--opts", *cell.opts]
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
    with open(args.results, "a+", encoding="utf-8") as f:
        # Another process may have found the same training finished.
        fcntl.flock(f, fcntl.LOCK_EX)
        there = {(line["name"], line["seed"]) for line in read_results(args.results)}
        if (cell.name, cell.seed) not in there:
            f.seek(0)
            # An editor may have left the last line without its end.
            end = "\n" if f.read()[-1:] not in ("", "\n") else ""
            f.write(end + text)
    line: Line = json.loads(text)
    return line


def summary(line: Line) -> str:
    parts = [
        f"{name} {line['metrics'][name]:.1f}" for name in DEFAULT_METRICS if name in line["metrics"]
    ]
    if line["diverged_at"] is not None:
        parts.append(f"diverged at iteration {line['diverged_at']}")
    return ", ".join(parts)


# The report.


def report(args: Namespace) -> None:
    """Prints a table of the cells and what they ran on, and draws two figures."""
    cells: Cells = {}
    for line in chosen_lines(args):
        runs = cells.setdefault(line["name"], {})
        if line["seed"] in runs:
            raise ValueError(
                f"{args.results} has two lines of {line['name']}, seed {line['seed']}; delete one."
            )
        for seed, other in runs.items():
            check_unchanged(
                line["settings"],
                other["settings"],
                f"The line of {line['name']}, seed {line['seed']} in {args.results}",
                f"Delete this line or that of seed {seed}.",
            )
        runs[line["seed"]] = line
    known = {name for runs in cells.values() for line in runs.values() for name in line["metrics"]}
    for metric in args.metrics:
        if metric not in known:
            raise ValueError(
                f"--metrics has {metric}; the results have {', '.join(sorted(known))}."
            )
    print(table(cells, args.metrics))
    print(f"\n{run_on([line for runs in cells.values() for line in runs.values()])}")
    for sentence in outdated(cells, args.config):
        print(f"\n{sentence}")
    os.makedirs(os.path.dirname(os.path.abspath(args.report)), exist_ok=True)
    plot_ap(cells, args.metrics, f"{args.report}_ap.png")
    plot_curves(cells, f"{args.metrics[0].split('/')[0]}/AP", f"{args.report}_curves.png")
    print(f"Wrote {args.report}_ap.png and {args.report}_curves.png.", file=sys.stderr)


def chosen_lines(args: Namespace) -> List[Line]:
    """The lines of the configs in their order, each first as it is, then with changes, by seed."""
    stems = list(map(stem, with_baselines(args.config)))
    lines = [line for line in read_results(args.results) if line["name"].split()[0] in stems]
    if not lines:
        raise ValueError(f"{args.results} has no line of {', '.join(stems)}.")
    return sorted(
        lines, key=lambda line: (stems.index(line["name"].split()[0]), line["name"], line["seed"])
    )


def run_on(lines: Sequence[Line]) -> str:
    """What the cells ran on, so that a mixture of machines or versions shows."""
    parts = {
        "device": {line["device"] for line in lines},
        "threads": {str(line["threads"]) for line in lines},
        **{
            name: {line["versions"][name] for line in lines}
            for name in ("torch", "detectron2", "mrcnn_plugin")
        },
    }
    text = ", ".join(f"{name} {' and '.join(sorted(values))}" for name, values in parts.items())
    resumed = sum(line["resumed_from"] > 0 for line in lines)
    diverged = [
        f"{line['name']}, seed {line['seed']}" for line in lines if line["diverged_at"] is not None
    ]
    end = f" Diverged, with an AP of 0: {'; '.join(diverged)}." if diverged else ""
    return f"Runs: {len(lines)}, of which resumed: {resumed}; {text}.{end}"


def outdated(cells: Cells, configs: Sequence[str]) -> Iterator[str]:
    """A sentence for each change that was made to a config since its cell was run."""
    paths = {stem(path): path for path in with_baselines(configs)}
    names: Dict[str, List[str]] = {}
    for name, runs in cells.items():
        line = next(iter(runs.values()))
        cfg = default_config()
        cfg.merge_from_file(paths[name.split()[0]])
        cfg.merge_from_list(line["opts"])
        different = differences(line["settings"], settings_of(cfg))
        names.setdefault(different, []).append(name)
    names.pop("", None)
    for different, changed in names.items():
        yield f"Run with {different}: {', '.join(changed)}."


def values_of(runs: Runs, metric: str) -> Dict[int, float]:
    """Seed -> value, of the runs that have it; one that diverged has 0 also of what it never had."""
    values = {
        seed: line["metrics"].get(metric) if line["diverged_at"] is None else 0.0
        for seed, line in runs.items()
    }
    return {seed: value for seed, value in values.items() if value is not None}


def interval(values: Sequence[float]) -> Tuple[float, float]:
    """Mean and half the width of its 95 % interval by Student's t, which is nan for one value."""
    n = len(values)
    if n == 1:
        return values[0], float("nan")
    return float(np.mean(values)), float(stats.t.ppf(0.975, n - 1) * stats.sem(values))


def table(cells: Cells, metrics: Sequence[str]) -> str:
    headers = ["", "against", "seeds"]
    for metric in metrics:
        headers += [metric.replace("/", " "), "difference [95 %]"]
    headers += ["s / iteration", "CPU s", "peak MiB"]
    rows = []
    for name, runs in cells.items():
        baseline = baseline_name(runs)
        row = [name, "" if baseline == name else baseline, str(len(runs))]
        for metric in metrics:
            values = values_of(runs, metric)
            others = values_of(cells.get(baseline, {}), metric)
            pairs = [values[seed] - others[seed] for seed in values if seed in others]
            row += [mean(list(values.values())), "" if name == baseline else difference(pairs)]
        for key, digits in (
            ("seconds_per_iteration", 2),
            ("cpu_seconds_per_iteration", 2),
            ("peak_memory_mib", 0),
        ):
            costs = [line[key] for line in runs.values() if line[key] is not None]
            row.append(f"{np.mean(costs):.{digits}f}" if costs else "–")
        rows.append(row)
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def baseline_name(runs: Runs) -> str:
    return next(iter(runs.values()))["baseline"]


def mean(values: Sequence[float]) -> str:
    """With the standard deviation."""
    if not values:
        return "–"
    deviation = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{deviation}"


def difference(pairs: Sequence[float]) -> str:
    if not pairs:
        return "–"
    middle, half = interval(pairs)
    if len(pairs) == 1:
        return f"{middle:+.1f} (1 pair)"
    return f"{middle:+.1f} [{middle - half:+.1f}, {middle + half:+.1f}] ({len(pairs)} pairs)"


def plot_ap(cells: Cells, metrics: Sequence[str], file: str) -> None:
    """Each run as a dot, each cell's mean with its 95 % interval."""
    figure = Figure(figsize=(3 + 4 * len(metrics), 1 + 0.35 * len(cells)), layout="constrained")
    grid = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axes, metric in zip(grid, metrics, strict=True):
        for y, (name, runs) in enumerate(cells.items()):
            values = list(values_of(runs, metric).values())
            if not values:
                continue
            baseline = baseline_name(runs)
            color = "black" if baseline == name else "C0"
            middle, half = interval(values)
            axes.plot(values, [y] * len(values), "o", color=color, alpha=0.35, markersize=4)
            axes.errorbar(middle, y, xerr=half, fmt="D", color=color, capsize=3)
            others = list(values_of(cells.get(baseline, {}), metric).values())
            if others:
                axes.vlines(np.mean(others), y - 0.5, y + 0.5, "black", "dotted", linewidth=0.8)
        axes.set_xlabel(metric.replace("/", " "))
        axes.grid(True, axis="x", alpha=0.25)
    grid[0].set_yticks(range(len(cells)), list(cells))
    grid[0].set_ylim(len(cells) - 0.5, -0.5)
    figure.savefig(file, dpi=120)


def plot_curves(cells: Cells, metric: str, file: str) -> None:
    """Training loss and AP over the iterations, means over the seeds."""
    # Names with config changes are long.
    columns = 2 if max(map(len, cells)) <= 70 else 1
    figure = Figure(figsize=(11, 4 + 0.26 * len(cells) / columns), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("total_loss", metric), strict=True):
        for index, (cell, runs) in enumerate(cells.items()):
            points: Dict[int, List[float]] = {}
            for line in runs.values():
                for iteration, value in line["curves"].get(name, []):
                    points.setdefault(iteration, []).append(value)
            means = {i: np.mean(v) for i, v in sorted(points.items()) if len(v) == len(runs)}
            axes.plot(
                list(means),
                list(means.values()),
                label=cell if name == metric else None,
                color=f"C{index % 10}",
                linestyle=("solid", "dashed", "dotted")[index // 10 % 3],
                linewidth=2.5 if baseline_name(runs) == cell else 1.2,
            )
        axes.set(xlabel="iteration", ylabel=name.replace("/", " "))
        axes.grid(True, alpha=0.25)
    figure.legend(loc="outside lower center", ncols=columns)
    figure.savefig(file, dpi=120)


def parse(argv: Optional[Sequence[str]] = None) -> Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", nargs="+", required=True, metavar="FILE")
    add("--seeds", nargs="+", type=int, default=[], metavar="N")
    add(
        "--results",
        default="output/ablations/results.jsonl",
        metavar="FILE",
        help="a JSON line for each cell; default: %(default)s",
    )
    add(
        "--output-dir",
        default="output/ablations",
        metavar="FOLDER",
        help="for the trainings; default: %(default)s",
    )
    add("--jobs", type=int, default=1, metavar="N", help="cells at a time; default: 1")
    add(
        "--threads",
        type=int,
        metavar="N",
        help="of each cell; default: the cores of this machine divided by the jobs",
    )
    add(
        "--report",
        metavar="PREFIX",
        help="run nothing; print a table and draw PREFIX_ap.png and PREFIX_curves.png anew",
    )
    add(
        "--metrics",
        nargs="+",
        default=list(DEFAULT_METRICS),
        metavar="NAME",
        help=f"of the report; default: {' '.join(DEFAULT_METRICS)}",
    )
    add("--only-this-cell", action="store_true", help=argparse.SUPPRESS)
    add(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="config changes for all cells; what follows --opts belongs to it",
    )
    args = parser.parse_args(argv)
    for config in args.config:
        if not os.path.isfile(config):
            parser.error(f"--config names {config}, which is no file")
        if re.search(r"\s", stem(config)):
            parser.error(f"--config names {config!r}; names of cells have no space, rename it")
    if any(word.startswith("--") for word in args.opts):
        parser.error(f"--opts has {args.opts}; it must come last")
    if len(args.opts) % 2:
        parser.error(f"--opts has {args.opts}; say a value for each key")
    for key, option in (("SEED", "--seeds"), ("OUTPUT_DIR", "--output-dir")):
        if key in args.opts[::2]:
            parser.error(f"--opts has {key}; say it by {option}")
    if args.report and (args.seeds or args.opts):
        parser.error("--report shows all seeds and changes; leave --seeds and --opts away")
    if args.report and not os.path.isfile(args.results):
        parser.error(f"--results names {args.results}, which is no file")
    if not args.report and not args.seeds:
        parser.error("--seeds is missing; name some, such as --seeds 1 2 3")
    if any(seed < 0 for seed in args.seeds):
        parser.error(f"--seeds has {min(args.seeds)}; seeds must be at least 0")
    if args.threads is None:
        args.threads = max(1, (os.cpu_count() or 1) // max(1, args.jobs))
    for name in ("jobs", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}; it must be at least 1")
    return args


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse(argv)
    if args.report:
        report(args)
        return
    # So that what is under way is ended in order, as by ^C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if args.only_this_cell:
        cell = Cell(args.config[0], tuple(args.opts), args.seeds[0])
        folder = cell.folder(args.output_dir)
        with locked(folder):
            # Its line may have been lost between the end of the training and the results.
            if not os.path.exists(os.path.join(folder, RESULT)):
                run_cell(cell, args.output_dir)
    else:
        run_all(all_cells(args.config, args.opts, args.seeds), args)


if __name__ == "__main__":
    main()
