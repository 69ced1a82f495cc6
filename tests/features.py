"""Marks for features that an older Detectron2 may lack. They skip tests that need a missing one."""

import inspect
from typing import Any

import pytest
from detectron2.config import get_cfg
from detectron2.engine import DefaultTrainer, launch
from detectron2.structures import ImageList


def detectron2_module(name: str) -> Any:
    """Returns the module `detectron2.<name>`, or skips the test if the module cannot be imported.

    In old versions, the export and the counting of operations need caffe2, which torch no longer has.
    """
    return pytest.importorskip(f"detectron2.{name}", exc_type=ImportError)


needs_sigmoid_ce = pytest.mark.skipif(
    "USE_SIGMOID_CE" not in get_cfg().MODEL.ROI_BOX_HEAD,
    reason="this Detectron2 has no MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE",
)
needs_fed_loss = pytest.mark.skipif(
    "USE_FED_LOSS" not in get_cfg().MODEL.ROI_BOX_HEAD,
    reason="this Detectron2 has no MODEL.ROI_BOX_HEAD.USE_FED_LOSS",
)
needs_saved_optimizer = pytest.mark.skipif(
    "state_dict" not in vars(DefaultTrainer),
    reason="checkpoints of this Detectron2's trainer do not hold the optimizer",
)
needs_padding_constraints = pytest.mark.skipif(
    "padding_constraints" not in inspect.signature(ImageList.from_tensors).parameters,
    reason="this Detectron2 does not pad images to a square",
)
needs_launch_without_gpus = pytest.mark.skipif(
    "assert torch.cuda.is_available()" in inspect.getsource(inspect.getmodule(launch)),
    reason="this Detectron2 starts several processes only with GPUs",
)
