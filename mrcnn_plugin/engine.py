"""The parts that the tools share: a trainer, its checked config, and the start of its processes."""

import contextlib
import errno
import io
import logging
import multiprocessing
import os
import platform
import re
import signal
import sys
import weakref
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from typing import Any

import detectron2.engine
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_train_loader
from detectron2.engine import (
    AMPTrainer,
    DefaultTrainer,
    SimpleTrainer,
    TrainerBase,
    default_setup,
)
from detectron2.engine.defaults import create_ddp_model
from detectron2.engine.hooks import EvalHook
from detectron2.engine.launch import _distributed_worker
from detectron2.evaluation import COCOEvaluator
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, GeneralizedRCNNWithTTA
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch.multiprocessing.spawn import ProcessExitedException

from .checkpoint import FittingCheckpointer
from .config import load_cfg
from .data import (
    TrainMapper,
    check_categories,
    check_datasets,
    check_pixel_range,
    register_coco_json,
)
from .evaluation import build_coco_evaluator, results_folder
from .hooks import BestModel, SaveOnSignal
from .modeling import find_unused_keys
from .output_dir import (
    TRAINED_CONFIG,
    changes_of_training,
    check_output_dir,
    cut_torn_line,
    has_checkpoint,
    lock_output_dir,
)
from .validation import check_config, check_federated_loss_data

# What a full disk, a quota and a folder that has become read-only give.
_NOT_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
logger = logging.getLogger("detectron2.mrcnn_plugin.engine")


class Trainer(DefaultTrainer):
    """Detectron2's DefaultTrainer, with a COCO evaluation of every test set and more that is kept.

    SIGINT and SIGTERM leave a checkpoint, and the best evaluation leaves `model_best.pth`. Several processes can
    train without GPUs.
    """

    # Whether there are checkpoints in addition to those of SOLVER.CHECKPOINT_PERIOD.
    extra_checkpoints = True

    def __init__(self, cfg: CfgNode) -> None:
        self._asked = cfg.SOLVER.MAX_ITER
        if comm.get_world_size() == 1 or cfg.MODEL.DEVICE != "cpu":
            super().__init__(cfg)
            return
        # DefaultTrainer would give DistributedDataParallel the number of a GPU. All else is as there.
        TrainerBase.__init__(self)
        self.cfg = cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        self._trainer = (AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer)(
            create_ddp_model(model, broadcast_buffers=False, device_ids=None),
            self.build_train_loader(cfg),
            optimizer,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        return build_detection_train_loader(cfg, mapper=TrainMapper(cfg, True))

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> COCOEvaluator:
        return build_coco_evaluator(cfg, dataset_name, output_folder)

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: Any) -> dict[str, Any]:
        """Evaluates with the augmentation of `TEST.AUG`, as Detectron2's tools/train_net.py does."""
        logger.info("Running inference with test-time augmentation ...")
        evaluators = [
            cls.build_evaluator(cfg, name, results_folder(cfg, name, "inference_TTA"))
            for name in cfg.DATASETS.TEST
        ]
        results = cls.test(cfg, GeneralizedRCNNWithTTA(cfg, model), evaluators)
        return {f"{name}_TTA": values for name, values in results.items()}

    def build_hooks(self) -> list[Any]:
        # Before the hooks that save with it.
        self.checkpointer: Any = FittingCheckpointer(
            self._trainer.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        hooks: list[Any] = super().build_hooks()
        evaluation = next(i for i, hook in enumerate(hooks) if isinstance(hook, EvalHook))
        before, after = [], []
        if self.extra_checkpoints:
            before.append(SaveOnSignal(self.checkpointer))
            if comm.is_main_process() and self.cfg.DATASETS.TEST and self.cfg.TEST.EVAL_PERIOD > 0:
                after.append(BestModel(self.cfg, self._trainer.model))
        if self.cfg.TEST.AUG.ENABLED and self.cfg.DATASETS.TEST:
            after.append(EvalHook(0, lambda: self.test_with_TTA(self.cfg, self._trainer.model)))
        return [*hooks[:evaluation], *before, hooks[evaluation], *after, *hooks[evaluation + 1 :]]

    def resume_or_load(self, resume: bool = True) -> None:
        """As in Detectron2.

        Raises:
            ValueError: the processes would go on from different iterations, or after the last one.
            As `FittingCheckpointer.resume_or_load`.
        """
        super().resume_or_load(resume)
        starts = comm.all_gather(self.start_iter)
        if len(set(starts)) > 1:
            raise ValueError(
                f"The processes would go on at the iterations {starts}. OUTPUT_DIR {self.cfg.OUTPUT_DIR!r} must be the "
                f"same folder on all machines, so that all read the same checkpoint."
            )
        if self.start_iter > self.max_iter:
            scaled = (
                f" ({self._asked} scaled from SOLVER.REFERENCE_WORLD_SIZE to {comm.get_world_size()} processes)"
                if self.max_iter != self._asked
                else ""
            )
            raise ValueError(
                f"SOLVER.MAX_ITER is {self.max_iter}{scaled}, but {self.checkpointer.get_checkpoint_file()} has "
                f"{self.start_iter} iterations; it must be at least as many, or --eval-only must be added."
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in Detectron2, but a training without AMP may go on with it.

        Raises:
            ValueError: the checkpoint is of another optimizer.
        """
        if isinstance(self._trainer, AMPTrainer):
            scaler = self._trainer.grad_scaler.state_dict()
            state_dict.get("_trainer", {}).setdefault("grad_scaler", scaler)
        try:
            super().load_state_dict(state_dict)
        except ValueError as error:
            raise ValueError(
                f"The optimizer of the checkpoint in OUTPUT_DIR {self.cfg.OUTPUT_DIR!r} is for other parameters "
                f"({error}). Keys such as MODEL.BACKBONE.FREEZE_AT must stay as they were, or a new training with "
                f"another OUTPUT_DIR must start from the checkpoint by MODEL.WEIGHTS."
            ) from error

    def train(self) -> Any:
        """As in Detectron2. `OUTPUT_DIR` holds the config of the training from then on.

        Raises:
            ValueError: another process trains in `OUTPUT_DIR`.
            OSError: `OUTPUT_DIR` cannot be written to any more.
            FloatingPointError: the training has diverged.
        """
        with contextlib.ExitStack() as stack:
            _run_once(comm.is_main_process(), lambda: lock_output_dir(self.cfg.OUTPUT_DIR, stack))
            return self._train()

    def _train(self) -> Any:
        try:
            if comm.is_main_process():
                # Only now, because a resumed training may have been refused until here. The folder is locked, so
                # that no other training is just writing a line.
                cut_torn_line(os.path.join(self.cfg.OUTPUT_DIR, "metrics.json"))
                with PathManager.open(os.path.join(self.cfg.OUTPUT_DIR, TRAINED_CONFIG), "w") as f:
                    f.write(self.cfg.dump())
            return super().train()
        except FloatingPointError as error:
            raise FloatingPointError(
                f"{error} This was in iteration {self.iter}, with SOLVER.BASE_LR {self.cfg.SOLVER.BASE_LR}. A lower "
                f"SOLVER.BASE_LR or SOLVER.CLIP_GRADIENTS.ENABLED True may help. Start anew with another OUTPUT_DIR: "
                f"--resume goes on with the old learning rate, and checkpoints just before this may be ruined too."
            ) from error
        except OSError as error:
            if error.errno not in _NOT_WRITTEN:
                raise
            last = self.checkpointer.get_checkpoint_file()
            raise OSError(
                error.errno,
                f"{os.strerror(error.errno)}; the training ends, and "
                + (f"its last whole checkpoint is {last}" if last else "it has no checkpoint")
                + ". Make room, and run the same command with --resume. OUTPUT_DIR is",
                self.cfg.OUTPUT_DIR,
            ) from error


def parse_args(parser: ArgumentParser, argv: Sequence[str] | None = None) -> Namespace:
    """Parses arguments whose last ones are config changes, `KEY VALUE ...`.

    The word `--opts` may stand before them, because some tools cannot do without it. Options may follow
    them, such as `--resume`.

    Args:
        parser: its last argument is `opts`, as in Detectron2's `default_argument_parser`.
        argv: the arguments; default: those of the process.
    """
    words = [word for word in (sys.argv[1:] if argv is None else argv) if word != "--opts"]
    changes: list[str] = []
    while True:
        args = parser.parse_args(words)
        # argparse takes all that follows the first key for values of `opts`. It keeps the separator -- there.
        keys = range(0, len(args.opts), 2)
        option = next((i for i in keys if re.match("--.", args.opts[i])), None)
        if option is None:
            args.opts = changes + args.opts
            return args
        changes += args.opts[:option]
        words = words[: len(words) - len(args.opts)] + args.opts[option:]


def escape_output() -> None:
    """Lets `print` escape what would be an error, as Python does in tracebacks: names of files may be not UTF-8."""
    # A notebook has a stdout of another type.
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def launch(main: Callable[[Namespace], Any], args: Namespace) -> None:
    """Runs `main(args)` in as many processes as the arguments say, or in one of those that torchrun started.

    Detectron2's `launch` does the same, but knows nothing of torchrun, and SIGTERM would end it before its processes.

    Args:
        main: a function of a module, which other processes can import.
        args: the parsed arguments of Detectron2's `default_argument_parser`.

    Raises:
        ValueError: torchrun and `--num-gpus` or `--num-machines` both start processes.
        SystemExit: SIGINT or SIGTERM ended the training.
    """
    several = args.num_gpus * args.num_machines > 1
    if torch.distributed.is_torchelastic_launched():
        if several:
            raise ValueError(
                f"torchrun starts the processes, so that --num-gpus {args.num_gpus} and --num-machines "
                f"{args.num_machines} must be left out; use its own --nproc-per-node and --nnodes."
            )
        local_rank, size, local_size, machine = (
            int(os.environ[name])
            for name in ("LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK")
        )
        if size > 1:
            _distributed_worker(local_rank, main, size, local_size, machine, "env://", (args,))
            return

    def forward(number: int, frame: Any) -> None:
        for process in multiprocessing.active_children():
            if process.pid:
                os.kill(process.pid, number)

    if several:
        signal.signal(signal.SIGINT, forward)
        signal.signal(signal.SIGTERM, forward)
    try:
        detectron2.engine.launch(
            main,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )
    except ProcessExitedException as error:
        if error.exit_code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            raise SystemExit(error.exit_code) from None
        raise


def load_config(args: Namespace) -> CfgNode:
    """Returns the config of a training or an evaluation, checked and frozen, and registers its data sets.

    Args:
        args: the parsed arguments of Detectron2's `default_argument_parser`.

    Raises:
        As :func:`load_cfg` and :func:`check`.
    """
    cfg = load_cfg(args.config_file, args.opts)
    cfg.freeze()
    check(cfg, args)
    return cfg


def check(cfg: CfgNode, args: Namespace) -> None:
    """Registers the data sets of a config and checks that it can be run with these arguments.

    Raises:
        ValueError: the device is not there, or mixed precision has no GPU. Or there are no weights to evaluate or
            no data to train on. Or Detectron2 has no augmentation at test time for the model. Or this trainer
            cannot evaluate a test set.
        As :func:`check_config`, :func:`register_datasets`, :func:`check_categories` and
            :func:`check_federated_loss_data`.
    """
    if str(cfg.MODEL.DEVICE).startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}, but torch sees no CUDA device. "
            f"To run on the CPU, add: MODEL.DEVICE cpu"
        )
    if args.eval_only and not cfg.MODEL.WEIGHTS and not (args.resume and has_checkpoint(cfg)):
        raise ValueError(
            f"MODEL.WEIGHTS is empty, so that --eval-only would evaluate a random model; name a "
            f"trained one, or add --resume if there is a checkpoint in OUTPUT_DIR ({cfg.OUTPUT_DIR})"
        )
    if not args.eval_only and not cfg.DATASETS.TRAIN:
        raise ValueError(
            "DATASETS.TRAIN is empty; name a data set to train on, or add --eval-only to evaluate on those of "
            "DATASETS.TEST"
        )
    if not args.eval_only and cfg.SOLVER.AMP.ENABLED and not torch.cuda.is_available():
        raise ValueError(
            "SOLVER.AMP.ENABLED is True; it must be False, because torch finds no CUDA GPU here."
        )
    if cfg.TEST.AUG.ENABLED:
        _check_augmentation(cfg)
    check_config(cfg, args)
    register_datasets(cfg, train=not args.eval_only)
    check_categories(cfg, train=not args.eval_only)
    _check_evaluators(cfg)
    if not args.eval_only:
        check_federated_loss_data(cfg)


def register_datasets(cfg: CfgNode, train: bool) -> None:
    """Registers the data sets that a config uses, without checking what is in them.

    Args:
        train: whether the training sets are needed. If not, and their files are not there, they are left out.

    Raises:
        As :func:`check_pixel_range` and :func:`register_coco_json`.
    """
    check_pixel_range(cfg)

    def register(names: Sequence[str]) -> None:
        register_coco_json(
            cfg.DATASETS.COCO_JSON,
            names=names,
            check=cfg.DATASETS.CHECK,
            masks=cfg.MODEL.MASK_ON,
            pixel_range=cfg.INPUT.PIXEL_RANGE,
            pixel_range_unit=cfg.INPUT.PIXEL_RANGE_UNIT,
            # It would come too early for a tool that only draws. start() checks for a training.
            check_on_load=False,
        )

    register(cfg.DATASETS.TEST)
    try:
        register(cfg.DATASETS.TRAIN)
    except FileNotFoundError as error:
        if train:
            raise
        logger.warning(f"The categories are not compared with those of the training: {error}")


def _check_evaluators(cfg: CfgNode) -> None:
    """Refuses test sets that the trainer cannot evaluate.

    Raises:
        ValueError: a test set is not in COCO format.
    """
    for name in cfg.DATASETS.TEST:
        kind = MetadataCatalog.get(name).get("evaluator_type") or "coco"
        if kind != "coco":
            raise ValueError(
                f"DATASETS.TEST has {name!r}, whose evaluator_type is {kind!r}; this trainer evaluates 'coco' only. "
                f"Detectron2's own tools/train_net.py evaluates it, with DETECTRON2_ENV_MODULE=mrcnn_plugin.env."
            )


def _check_augmentation(cfg: CfgNode) -> None:
    """Refuses what GeneralizedRCNNWithTTA cannot augment.

    Raises:
        ValueError: it cannot augment the model.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    reason = ""
    # A panoptic model is one too, but detects in another way.
    if name in META_ARCH_REGISTRY and (
        getattr(META_ARCH_REGISTRY.get(name), "inference", None) is not GeneralizedRCNN.inference
    ):
        reason = f"MODEL.META_ARCHITECTURE {name!r}; it can for 'GeneralizedRCNN'"
    for key in ("KEYPOINT_ON", "LOAD_PROPOSALS"):
        if cfg.MODEL[key]:
            reason = f"MODEL.{key} True"
    if reason:
        raise ValueError(
            f"TEST.AUG.ENABLED is True, but Detectron2 cannot augment at test time with {reason}. Set TEST.AUG.ENABLED "
            f"to False."
        )


def setup(args: Namespace) -> CfgNode:
    """As :func:`load_config` and :func:`start`."""
    cfg = load_config(args)
    start(cfg, args)
    return cfg


def start(cfg: CfgNode, args: Namespace) -> None:
    """Checks `OUTPUT_DIR`, sets up logging and seeds, warns of what may be an oversight, and checks the data sets.

    Raises:
        OSError: `OUTPUT_DIR` cannot be written to.
        ValueError: a new training would overwrite the checkpoints of another one in `OUTPUT_DIR`.
        As :func:`check_datasets`.
    """
    trains = not args.eval_only
    starts_anew = trains and not args.resume
    holds_another = PathManager.isfile(os.path.join(cfg.OUTPUT_DIR, "metrics.json"))
    _run_once(comm.is_main_process(), lambda: check_output_dir(cfg, starts_anew))
    changes = changes_of_training(cfg) if trains and args.resume and comm.is_main_process() else []
    default_setup(cfg, args)
    if starts_anew and holds_another:
        logger.warning(
            f"OUTPUT_DIR {cfg.OUTPUT_DIR!r} holds files of another training, but no last_checkpoint. This one starts "
            f"anew, adds to its metrics.json and replaces files of the same name. To keep the two apart, choose "
            f"another OUTPUT_DIR."
        )
    if changes:
        logger.warning(
            f"The training in OUTPUT_DIR {cfg.OUTPUT_DIR!r} had another config: {'; '.join(changes)}. It goes on with "
            f"what the checkpoint holds, which includes the learning rate, and otherwise with the new config. If this "
            f"is to be another training, choose another OUTPUT_DIR."
        )
    for sentence in find_unused_keys(cfg):
        logger.warning(sentence)
    # Each machine has its own files.
    _run_once(comm.get_local_rank() == 0, lambda: check_datasets(cfg, train=trains))


def _run_once(here: bool, check: Callable[[], None]) -> None:
    """Runs a check in some processes only, so that all processes go on, or all raise an error."""
    error = None
    if here:
        try:
            check()
        except Exception as caught:
            error = caught
    messages = [message for message in comm.all_gather(error and f"{error}") if message is not None]
    if error is not None:
        raise error
    if messages:
        raise ValueError(messages[0])


def processor(device: str) -> str:
    """Returns the name of the GPU if `device` is "cuda", and otherwise that of the CPU."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        with open("/proc/cpuinfo") as file:
            return next(
                line.split(":")[1].strip() for line in file if line.startswith("model name")
            )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
