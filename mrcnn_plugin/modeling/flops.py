"""Makes fvcore's flop counter, and with it Detectron2's `tools/analyze_model.py`, count our components."""

import importlib
import math
from typing import Any

from ..layers.roi_align_registration import count_multiply_adds


def _count(inputs: list[Any], outputs: list[Any]) -> float:
    """A handle of fvcore, which returns the flops of a node. fvcore counts a multiply-add as one flop."""
    num_rois, channels, pooled_height, pooled_width = outputs[0].type().sizes()
    sampling_ratio, interpolation = inputs[6].toIValue(), inputs[8].toIValue()
    return count_multiply_adds(
        num_rois, channels, pooled_height, pooled_width, sampling_ratio, interpolation
    )


def _count_addcmul(inputs: list[Any], outputs: list[Any]) -> float:
    """As `_count`, for the operator with which CARAFE adds a tap in a traced model."""
    return math.prod(outputs[0].type().sizes())


# This table of fvcore holds the handles of all counters. The module has to be imported by its name,
# because a function of fvcore.nn has the same name. The table is private: if a version of fvcore names
# it otherwise, the counter warns that it skips the operator.
_handles = getattr(importlib.import_module("fvcore.nn.flop_count"), "_DEFAULT_SUPPORTED_OPS", {})
_handles.setdefault("mrcnn_plugin::roi_align", _count)
_handles.setdefault("aten::addcmul", _count_addcmul)
