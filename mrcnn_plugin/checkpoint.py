"""Checkpoints that are never half written, and that must fit the model when they are loaded."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import IO, Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from torch import nn

from .config import without_federated_loss

_SHOWN = 5


class FittingCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, whose files are whole at any time, and which can refuse one that does not fit.

    A checkpoint is written as `checkpoint.partial` first. So a kill or a full disk never leaves half of one under the
    name of a checkpoint, and `last_checkpoint` names one that is whole.

    Detectron2 skips parameters of another shape with a warning, which is right where a training starts from another
    model. Where a training goes on, or a model is evaluated, the skipped parameters would be random.

    Args:
        model: the model to load parameters into.
        save_dir: as in Detectron2.
        must_fit: whether :meth:`load` refuses a checkpoint in which parameters of the model are missing or have
            another shape. It always does when a training is resumed.
        tags_last: whether the file `last_checkpoint` names what :meth:`save` saves.
        **kwargs: as in Detectron2.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        must_fit: bool = False,
        tags_last: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, save_dir, **kwargs)
        self.must_fit = must_fit
        self.tags_last = tags_last
        self._resumes = False
        self._path = ""

    def save(self, name: str, **kwargs: Any) -> None:
        """As in Detectron2.

        Raises:
            OSError: the checkpoint cannot be written. The earlier ones are as they were.
        """
        if "://" in self.save_dir:  # iopath writes it, and cannot rename everywhere.
            super().save(name, **kwargs)
            return
        if not self.save_dir or not self.save_to_disk:
            return
        data = {key: part.state_dict() for key, part in self.checkpointables.items()}
        data = {"model": self.model.state_dict(), **data, **kwargs}
        file = f"{name}.pth"
        path = os.path.join(self.save_dir, file)
        self.logger.info(f"Saving checkpoint to {path}")
        contents: dict[str, Callable[[IO[bytes]], Any]] = {path: lambda f: torch.save(data, f)}
        if self.tags_last:
            last = os.path.join(self.save_dir, "last_checkpoint")
            contents[last] = lambda f: f.write(file.encode())
        try:
            # One name for all checkpoints, so that kills leave one partial file and not many.
            write_whole(contents, os.path.join(self.save_dir, "checkpoint.partial"))
        except OSError as error:
            raise OSError(
                f"The checkpoint {path} cannot be written: {error}. The earlier checkpoints are whole. If the disk is "
                f"full, make room and go on with --resume."
            ) from error

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """As in Detectron2, if `tags_last`."""
        if self.tags_last:
            super().tag_last_checkpoint(last_filename_basename)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """As in Detectron2.

        Raises:
            FileNotFoundError: the file `last_checkpoint` names a checkpoint that is not there.
            As :meth:`load`.
        """
        self._resumes = resume and self.has_checkpoint()
        if self._resumes:
            last = self.get_checkpoint_file()
            if not self.path_manager.isfile(last):
                raise FileNotFoundError(
                    f"{os.path.join(self.save_dir, 'last_checkpoint')} names the checkpoint {last!r} to resume from, "
                    f"which is no file. Write the name of another checkpoint of this folder into it, or delete it to "
                    f"start anew."
                )
        return super().resume_or_load(path, resume=resume)

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As in Detectron2.

        Raises:
            ValueError: the file is damaged or is no checkpoint, or it does not fit and must.
        """
        self._path = path
        return super().load(path, *args, **kwargs)

    def _load_file(self, filename: str) -> Any:
        try:
            loaded = super()._load_file(filename)
        except Exception as error:  # torch and pickle raise a dozen types for damaged files.
            use = "set MODEL.WEIGHTS to it"
            if self._resumes:
                use = "write its name into the file last_checkpoint of this folder"
            raise ValueError(
                f"The checkpoint {self._path} cannot be read: {type(error).__name__}: {error}. If it was cut short, "
                f"by a full disk or a kill, use an older one; {use}."
            ) from error
        if not isinstance(loaded.get("model"), dict) or not loaded["model"]:
            raise ValueError(
                f"The checkpoint {self._path} holds no parameters; expected what Detectron2 saves."
            )
        return loaded

    def _load_model(self, checkpoint: Any) -> Any:
        in_file = checkpoint["model"]
        incompatible = super()._load_model(checkpoint)
        # FrozenBN fills in running statistics that a file lacks, and reports nothing. All files of Detectron2 have
        # them. Those of Caffe2 may lack them, and are among the files whose names are matched.
        if not checkpoint.get("matching_heuristics"):
            for path, module in self.model.named_modules():
                if not isinstance(module, FrozenBatchNorm2d):
                    continue
                for buffer, filled_in in (("running_mean", 0), ("running_var", 1)):
                    name = f"{path}.{buffer}" if path else buffer
                    # A module that renames old names has the file's values.
                    if name not in in_file and (getattr(module, buffer) == filled_in).all():
                        incompatible.missing_keys.append(name)
        return incompatible

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        super()._log_incompatible_keys(incompatible)
        # The missing keys include those of another shape, but not all buffers that are: batch norms fill some in.
        parameters = {name for name, _ in self.model.named_parameters()}
        if parameters and parameters <= set(incompatible.missing_keys):
            unknown = [str(name) for name in incompatible.unexpected_keys]
            raise ValueError(
                f"The checkpoint {self._path} has no parameter of the model of the config, but others: "
                f"{_listed(unknown) or 'none'}. MODEL.WEIGHTS must be a checkpoint of a model that shares "
                f"parameters with it, or empty for random ones."
            )
        if not (self.must_fit or self._resumes):
            return
        shapes = [
            f"{name} has the shape {list(in_file)} in the checkpoint and {list(in_model)} in the model"
            for name, in_file, in_model in incompatible.incorrect_shapes
        ]
        misshapen = {name for name, *_ in incompatible.incorrect_shapes}
        missing = [
            key
            for key in incompatible.missing_keys
            if key not in misshapen and not key.endswith("num_batches_tracked")
        ]
        if not shapes and not missing:
            return
        parts = [_listed(shapes)] if shapes else []
        if missing:
            parts.append(f"{len(missing)} parameters are missing in it: {_listed(missing)}")
        raise ValueError(
            f"The checkpoint {self._path} does not fit the model of the config: {'; '.join(parts)}. "
            f"{self._what_to_do()}"
        )

    def _what_to_do(self) -> str:
        if self._resumes:
            return (
                "To resume a training, the config must build the same model (the same number of classes, for one); "
                "to start a new one from this checkpoint, set MODEL.WEIGHTS to it and OUTPUT_DIR to another folder."
            )
        return (
            "MODEL.WEIGHTS must be trained with the same model (the same number of classes, for one). To use it all "
            "the same, with random parameters in these places, set MODEL.MRCNN_PLUGIN.PARTIAL_WEIGHTS to True."
        )


def write_whole(contents: dict[str, Callable[[IO[bytes]], Any]], partial: str = "") -> None:
    """Writes files whole: each under another name first, and all are renamed at the end, in their order.

    Args:
        contents: path -> what writes the file.
        partial: the first name of the first file; default: as of the others, `PATH.partial`.

    Raises:
        OSError: a file cannot be written. Those that were there are as they were.
    """
    first, *rest = contents
    names = {partial or f"{first}.partial": first, **{f"{path}.partial": path for path in rest}}
    with removing(*names):
        for name, path in names.items():
            with open(name, "wb") as f:
                contents[path](f)
                f.flush()
                os.fsync(f.fileno())
        for name, path in names.items():
            os.replace(name, path)


@contextlib.contextmanager
def removing(*paths: str) -> Iterator[None]:
    """Removes files if what writes them fails.

    Raises:
        OSError: as the system says it, where torch hides it behind an error of its own.
    """
    try:
        yield
    except BaseException as error:
        for path in paths:
            with contextlib.suppress(OSError):
                os.remove(path)
        if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def load_model(cfg: CfgNode) -> nn.Module:
    """Returns the model of a config for inference, with the weights of `MODEL.WEIGHTS`.

    Raises:
        ValueError: the weights do not fit, and `MODEL.MRCNN_PLUGIN.PARTIAL_WEIGHTS` is False.
    """
    model: nn.Module = build_model(without_federated_loss(cfg)).eval()
    must_fit = not cfg.MODEL.MRCNN_PLUGIN.PARTIAL_WEIGHTS
    FittingCheckpointer(model, must_fit=must_fit).load(cfg.MODEL.WEIGHTS)
    return model


def check_weights(cfg: CfgNode) -> None:
    """Checks that `MODEL.WEIGHTS` names a trained model.

    Raises:
        ValueError: it is empty.
        FileNotFoundError: it is a local file that does not exist.
    """
    weights = cfg.MODEL.WEIGHTS
    if not weights:
        raise ValueError(
            "MODEL.WEIGHTS is empty; name a trained model: --opts MODEL.WEIGHTS model_final.pth"
        )
    if is_missing(weights):
        raise FileNotFoundError(f"MODEL.WEIGHTS is {weights!r}, which is no file.")


def is_missing(weights: str) -> bool:
    """Whether a value of `MODEL.WEIGHTS` names a local file that does not exist."""
    # Detectron2 takes "?matching_heuristics=True" behind the name.
    return "://" not in weights and not os.path.isfile(weights.partition("?")[0])


def _listed(items: list[str]) -> str:
    more = len(items) - _SHOWN
    return "; ".join(items[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")
