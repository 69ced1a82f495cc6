"""Hooks that keep what a training has reached: when a signal ends it, and when an evaluation was the best so far."""

import logging
import os
import signal
import sys
import threading
import time
import traceback
from types import FrameType, SimpleNamespace
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from torch import nn
from torch.utils.data import dataloader

from .checkpoint import FittingCheckpointer

# Some programs send the same signal twice: `timeout` to the process and to its group, for one. Time in s.
_SAME_SIGNAL = 1.0

logger = logging.getLogger("detectron2.mrcnn_plugin.hooks")


class SaveOnSignal(HookBase):
    """Ends a training at SIGINT (Ctrl-C) or SIGTERM, with a checkpoint of the last finished iteration.

    The process exits with 128 plus the number of the signal. A second signal ends it at once.

    An iteration that has begun is finished first; an evaluation is not. With several processes, all agree after each
    iteration whether one of them got a signal, so that none waits for one that is gone. The main process saves.

    This hook has to come after those that change the model, the optimizer or the schedule, and before the evaluation.

    Args:
        checkpointer: saves the checkpoint.
    """

    def __init__(self, checkpointer: FittingCheckpointer) -> None:
        self._checkpointer = checkpointer
        self._signal = 0  # the first signal that this process got
        self._time = 0.0
        self._finished: int | None = None  # the last finished iteration
        self._steps = False  # whether an iteration has begun that is not finished
        self._saved = False
        self._process = 0
        self._handlers: dict[int, Any] = {}

    def before_train(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # Python handles signals in the main thread only.
        self._process = os.getpid()
        for number in (signal.SIGINT, signal.SIGTERM):
            # Shells let jobs in the background ignore SIGINT on purpose.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._handlers[number] = signal.signal(number, self._handle) or signal.SIG_DFL

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # This is a worker of a data loader. It is needed until the iteration is finished.
        if self._signal:
            if time.monotonic() - self._time > _SAME_SIGNAL:
                signal.signal(number, signal.SIG_DFL)
                os.kill(self._process, number)
            return
        self._signal, self._time = number, time.monotonic()
        # Workers may end by the same signal, which torch would report by an exception anywhere in this iteration.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # The logger may be in use, and is not made to be called twice at a time.
        text = f"{signal.Signals(number).name}: the training ends with a checkpoint. A second signal ends it at once.\n"
        os.write(2, text.encode())
        # Only the main process can leave the others alone, because it is the one that saves.
        if not self._steps and self._finished is not None and comm.is_main_process():
            raise SystemExit(128 + number)

    def before_step(self) -> None:
        self._steps = True

    def after_step(self) -> None:
        self._finished = self.trainer.iter
        if self._finished == self.trainer.max_iter - 1:
            return  # after_train is next.
        if self._agree():
            self._save()
            comm.synchronize()
            raise SystemExit(128 + self._signal)
        self._steps = False
        # It may have come in the meantime.
        if self._signal and comm.is_main_process():
            raise SystemExit(128 + self._signal)

    def after_train(self) -> None:
        error = sys.exc_info()[1]
        try:
            if error is None:
                self._agree()
            if self._signal and not self._saved and self._is_whole(error):
                self._save()
                # If one is on its way already, the hooks after this one still write what they have.
                if not isinstance(error, SystemExit):
                    raise SystemExit(128 + self._signal)
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)

    def _agree(self) -> int:
        """Returns a signal that a process got, or 0. All processes have to call it."""
        number = max(comm.all_gather(self._signal))
        if number and not self._signal:
            self._signal, self._time = number, time.monotonic()
        return number

    def _is_whole(self, error: BaseException | None) -> bool:
        """Whether the model is that of the last finished iteration, as far as an error tells."""
        if error is None or not self._steps:
            return True
        # Where a worker is gone and no batch was made, the iteration has not touched the model.
        files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        return dataloader.__file__ in files

    def _save(self) -> None:
        self._saved = True
        if not comm.is_main_process():
            return
        name = signal.Signals(self._signal).name
        if self._finished is None:
            logger.warning("%s ended the training before its first iteration was finished.", name)
            return
        last = self._checkpointer.get_checkpoint_file()
        names = [f"model_{self._finished:07d}"]
        if self._finished == self.trainer.max_iter - 1:
            names.append("model_final")
        # The checkpointer of SOLVER.CHECKPOINT_PERIOD comes first, and may have saved it.
        if os.path.basename(last) not in [f"{name}.pth" for name in names]:
            # Detectron2 saves the iteration of the trainer, which may have begun the next one.
            self.trainer.iter, iteration = self._finished, self.trainer.iter
            self._checkpointer.save(names[0], iteration=self._finished)
            self.trainer.iter = iteration
            last = self._checkpointer.get_checkpoint_file()
        logger.warning(
            "%s ended the training after %d of %d iterations. They are saved in %s; to go on, run the same command "
            "with --resume.",
            name,
            self._finished + 1,
            self.trainer.max_iter,
            last,
        )


class BestModel(hooks.BestCheckpointer):
    """Detectron2's BestCheckpointer for the first test set, which remembers the best when a training is resumed.

    `OUTPUT_DIR/model_best.pth` has the model alone, and with it `iteration`, `metric`, `value` and `test_set`. A
    training resumes from its own checkpoints, so that `last_checkpoint` does not name this file.

    Args:
        cfg: with `DATASETS.TEST` and `TEST.EVAL_PERIOD`.
        model: what is saved.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        # The parent calls nothing but `save`.
        super().__init__(cfg.TEST.EVAL_PERIOD, SimpleNamespace(save=self._save), best_metric(cfg))
        self._writer = FittingCheckpointer(model, cfg.OUTPUT_DIR, tags_last=False)
        self._test_set = cfg.DATASETS.TEST[0]
        self._file = os.path.join(cfg.OUTPUT_DIR, f"{self._file_prefix}.pth")

    def before_train(self) -> None:
        if self.trainer.start_iter == 0 or not os.path.isfile(self._file):
            return
        try:
            saved = torch.load(self._file, map_location="cpu", mmap=True, weights_only=True)
            wanted = (self._val_metric, self._test_set)
            found = (saved["metric"], saved["test_set"])
            if found == wanted:
                self.best_metric, self.best_iter = saved["value"], saved["iteration"]
            else:
                logger.warning(
                    "%s is the best by %s of %s, and will be replaced by the best by %s of %s.",
                    self._file,
                    *found,
                    *wanted,
                )
        except Exception as error:  # torch raises a dozen types for a file of another kind.
            logger.warning("%s cannot be read, and will be replaced: %s", self._file, error)

    def _update_best(self, val: float, iteration: int) -> bool:
        return bool(super()._update_best(val, self._done(iteration)))

    def _save(self, name: str, iteration: int) -> None:
        value, _ = self.trainer.storage.latest()[self._val_metric]
        self._writer.save(
            name,
            metric=self._val_metric,
            value=float(value),
            iteration=self._done(iteration),
            test_set=self._test_set,
        )

    def _done(self, iteration: int) -> int:
        # Detectron2 gives the evaluation after the last iteration the number of the next one.
        return min(iteration, self.trainer.max_iter - 1)

    def after_train(self) -> None:
        super().after_train()
        if self.best_metric is not None:
            logger.info(
                "The best evaluation was that after %d iterations, with %s %.3f. Its model is %s.",
                self.best_iter + 1,
                self._val_metric,
                self.best_metric,
                self._file,
            )


def best_metric(cfg: CfgNode) -> str:
    """The metric by which the best evaluation is chosen, by its name in metrics.json: an AP of the first test set."""
    task = "segm" if cfg.MODEL.MASK_ON else "keypoints" if cfg.MODEL.KEYPOINT_ON else "bbox"
    # With several test sets, Detectron2 puts the name of each before its metrics.
    folder = f"{cfg.DATASETS.TEST[0]}/" if len(cfg.DATASETS.TEST) > 1 else ""
    return f"{folder}{task}/AP"
