"""The folder of a training: what it holds, and whether another training may use it."""

import contextlib
import fcntl
import json
import logging
import os
import re
import tempfile
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from .config import leaves

# Keys of SOLVER that may well be changed when a training is resumed.
_MAY_CHANGE = ("SOLVER.MAX_ITER", "SOLVER.STEPS", "SOLVER.CHECKPOINT_PERIOD", "SOLVER.AMP.ENABLED")

# Keys that make it another training. Those of data sets may have other files under the same names.
_OF_A_TRAINING = (
    "MODEL.",
    "SOLVER.",
    "DATASETS.TRAIN",
    "DATASETS.COCO_JSON",
    "INPUT.FORMAT",
    "INPUT.PIXEL_RANGE",
)

# Detectron2 writes the config of the last run, which may be an evaluation. That of the training is kept beside it.
_LAST_CONFIG, TRAINED_CONFIG = "config.yaml", "config_of_training.yaml"

logger = logging.getLogger("detectron2.mrcnn_plugin.output_dir")


def has_checkpoint(cfg: CfgNode) -> bool:
    """Whether there is a checkpoint in `OUTPUT_DIR` to resume from, as Detectron2's checkpointer looks for it."""
    return bool(PathManager.exists(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")))


def check_output_dir(cfg: CfgNode, starts_anew: bool) -> None:
    """Creates `OUTPUT_DIR`.

    Args:
        cfg: the config of the run.
        starts_anew: whether the run is a training that does not go on with an earlier one.

    Raises:
        ValueError: the run would overwrite the checkpoints of another training. Or the path begins with ~ or has a
            variable.
        OSError: the folder cannot be written to.
    """
    folder = cfg.OUTPUT_DIR
    if starts_anew and has_checkpoint(cfg):
        raise ValueError(
            f"OUTPUT_DIR {folder!r} holds another training, whose checkpoints a new one would overwrite. Add --resume "
            f"to go on with it, choose another OUTPUT_DIR to keep both, or delete the folder. To start anew in it all "
            f"the same, delete its file last_checkpoint."
        )
    if "://" in folder:
        return
    if re.search(r"^~|\$\w|\$\{", folder) and not os.path.isdir(folder):
        raise ValueError(
            f"OUTPUT_DIR is {folder!r}, in which ~ and $VARIABLES have no meaning; write the whole path, or make the "
            f"folder first if that is its name."
        )
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as f:
            f.write(b"a")
    except OSError as error:
        raise OSError(
            f"OUTPUT_DIR {folder!r} cannot be written to: {error}. Choose another folder, or mend this one."
        ) from error


def lock_output_dir(folder: str, stack: contextlib.ExitStack) -> None:
    """Keeps other processes from training in the same folder, until the stack is closed or this process ends.

    Raises:
        ValueError: another process trains there.
    """
    if "://" in folder:
        return
    file = os.path.join(folder, ".training.lock")
    try:
        # Workers of a data loader do not inherit such a lock, so that a killed training can be resumed at once.
        fcntl.lockf(stack.enter_context(open(file, "w")), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ValueError(
            f"Another process trains in OUTPUT_DIR {folder!r}; wait for its end, or choose another folder. If its "
            f"machine is gone, delete {file}."
        ) from error
    except OSError:
        pass  # Some file systems have no locks.


def changes_of_training(cfg: CfgNode) -> list[str]:
    """How the keys that make it another training differ from those of the checkpoint in `OUTPUT_DIR`."""
    if not has_checkpoint(cfg):
        return []
    # Another program may have trained.
    old = _read_config(cfg, TRAINED_CONFIG) or _read_config(cfg, _LAST_CONFIG)
    # What was written is the config that the trainer had scaled.
    scaled = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
    new = dict(leaves(yaml.safe_load(scaled.dump())))
    # Other data sets may have come or gone, but the same name should have the same files.
    used = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    for config in (old, new):
        for name, *paths in config.pop("DATASETS.COCO_JSON", None) or []:
            if name in used:
                config[f"DATASETS.COCO_JSON of {name!r}"] = list(map(_absolute, paths))
    return [
        f"{key} was {old[key]!r} and is {value!r}"
        for key, value in new.items()
        if key.startswith(_OF_A_TRAINING)
        and key not in ("MODEL.WEIGHTS", "MODEL.DEVICE", *_MAY_CHANGE)
        and old.get(key, value) != value
    ]


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.abspath(path)


def last_test_sets(cfg: CfgNode) -> list[str]:
    """The test sets of the last run in `OUTPUT_DIR`, or else those of the config."""
    return list(_read_config(cfg, _LAST_CONFIG).get("DATASETS.TEST", cfg.DATASETS.TEST))


def _read_config(cfg: CfgNode, name: str) -> dict[str, Any]:
    """The keys and values of a config in `OUTPUT_DIR`; empty if the file is not there, or is none."""
    try:
        with PathManager.open(os.path.join(cfg.OUTPUT_DIR, name), encoding="utf-8") as f:
            return dict(leaves(yaml.safe_load(f)))
    except (OSError, ValueError, AttributeError, yaml.YAMLError):
        return {}


def read_metrics(file: str) -> dict[int, dict[str, float]]:
    """Reads Detectron2's metrics.json, and returns the value of each name in each iteration.

    Detectron2 appends to the file. If the iteration number of a training line is lower than before,
    the training was resumed from a checkpoint or started again. Values of later iterations are then
    dropped. Lines of an evaluation are no such sign, because Detectron2 writes them together with
    those of a later iteration. A last line that is torn, as a kill leaves it, is left out with a
    warning.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a line is damaged.
    """
    metrics: dict[int, dict[str, float]] = {}
    with open(file, encoding="utf-8") as f:
        for number, line in enumerate(f, start=1):
            try:
                values = json.loads(line)
                iteration = values.pop("iteration")
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                if not line.endswith("\n"):
                    logger.warning("%s ends in a torn line, which is left out.", file)
                    break
                raise ValueError(
                    f"{file}, line {number} is not a JSON object with an iteration; delete the line "
                    f"if it comes from a training that was killed."
                ) from error
            if "total_loss" in values:
                for later in [i for i in metrics if i > iteration]:
                    del metrics[later]
            metrics.setdefault(iteration, {}).update(values)
    return metrics


def cut_torn_line(file: str) -> None:
    """Cuts a last line without an end, behind which Detectron2 would write the next one."""
    if not os.path.isfile(file):
        return
    with open(file, "rb+") as f:
        content = f.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            logger.warning("%s ended in a torn line, which is cut.", file)
            f.truncate(whole)
