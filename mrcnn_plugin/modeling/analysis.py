"""Makes fvcore's flop counter, and with it Detectron2's `tools/analyze_model.py`, count RoIAlign."""

import importlib
from typing import Any

from ..layers.roi_align_registration import count_multiply_adds


def _count(inputs: list[Any], outputs: list[Any]) -> float:
    """A handle of fvcore: values of the traced graph to flops, a multiply-add being one there."""
    num_rois, channels, pooled_height, pooled_width = outputs[0].type().sizes()
    sampling_ratio, interpolation = inputs[6].toIValue(), inputs[8].toIValue()
    return count_multiply_adds(
        num_rois, channels, pooled_height, pooled_width, sampling_ratio, interpolation
    )


# fvcore has handles for one counter, and this table for all. Its function of the same name hides the
# module. It is a private name: where fvcore has renamed it, the counter says that it skips the operator.
_handles = getattr(importlib.import_module("fvcore.nn.flop_count"), "_DEFAULT_SUPPORTED_OPS", {})
_handles.setdefault("mrcnn_plugin::roi_align", _count)
