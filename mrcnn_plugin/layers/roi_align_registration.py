"""Registers the operators mrcnn_plugin::roi_align and roi_align_backward with torch.

The extension registers the schemas and the kernels. This module adds an implementation for devices
without kernels, shapes for compilers, derivatives, and a formula for multiply-adds. Its users call
the functions of roi_align.py.
"""

import functools
import importlib
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch.utils.flop_counter import register_flop_formula

from .roi_align_reference import roi_align_backward_reference, roi_align_reference

SCHEMAS = (
    "roi_align(Tensor[] input, Tensor rois, Tensor? levels, float[] spatial_scales, "
    "SymInt pooled_height, SymInt pooled_width, int sampling_ratio, bool aligned, "
    "str interpolation, float a) -> Tensor",
    "roi_align_backward(Tensor grad, Tensor rois, Tensor? levels, float[] spatial_scales, "
    "SymInt batch, SymInt[] heights, SymInt[] widths, bool[] needed, int sampling_ratio, "
    "bool aligned, str interpolation, float a) -> Tensor[]",
)

_INSTALL = "pip install --no-build-isolation --force-reinstall --no-deps --editable ."
_BUILD = f"install the package again in the environment of your torch: {_INSTALL}"

# Importing the extension registers the schemas and the CPU kernels (csrc/ops.cpp).
try:
    _extension = importlib.import_module("mrcnn_plugin._C")

    HAS_EXTENSION = True
except ImportError as error:
    HAS_EXTENSION = False
    warnings.warn(
        f"mrcnn_plugin runs RoIAlign on its slower PyTorch implementation, because its compiled "
        f"extension cannot be imported ({error}). To build it, install a C++ compiler, and then {_BUILD}",
        stacklevel=2,
    )
else:
    _built_for = str(_extension.__doc__).rpartition(" ")[2]
    # Builds from source and release candidates add to these three numbers, as in 2.16.0a0+git1.
    if re.findall(r"\d+\.\d+\.\d+", torch.__version__)[:1] != [_built_for]:
        warnings.warn(
            f"The extension of mrcnn_plugin was compiled for torch {_built_for}, and this is torch "
            f"{torch.__version__}. It may crash or give wrong results; {_BUILD}",
            stacklevel=2,
        )

# The module keeps this object, because its registrations end when it is deleted.
_library = torch.library.Library("mrcnn_plugin", "FRAGMENT")
if not HAS_EXTENSION:
    for _schema in SCHEMAS:
        _library.define(_schema)


@functools.cache
def _warn_of_missing_cuda_kernels() -> None:
    warnings.warn(
        "mrcnn_plugin runs RoIAlign on CUDA with its slower PyTorch implementation, because it was "
        "built without CUDA kernels. To build them, set CUDA_HOME to a toolkit with the major version "
        f"of torch's CUDA, and install the package again: FORCE_CUDA=1 {_INSTALL}",
        stacklevel=2,
    )


def _on_any_device(reference: Callable[..., Any]) -> Callable[..., Any]:
    def run(features: Any, *arguments: Any) -> Any:
        device = (features[0] if isinstance(features, (list, tuple)) else features).device.type
        if HAS_EXTENSION and device == "cuda":
            _warn_of_missing_cuda_kernels()
        # Autocast would round the products, and the sums could not take them.
        with torch.autocast(device, enabled=False):
            return reference(features, *arguments)

    return run


# Every device without kernels of its own runs the reference.
_library.impl("roi_align", _on_any_device(roi_align_reference), "CompositeExplicitAutograd")
_library.impl(
    "roi_align_backward", _on_any_device(roi_align_backward_reference), "CompositeExplicitAutograd"
)


@torch.library.register_fake("mrcnn_plugin::roi_align")
def _fake_forward(
    input: list[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    spatial_scales: list[float],
    pooled_height: int,
    pooled_width: int,
    *options: Any,
) -> Tensor:
    first = input[0]
    return torch.empty(
        (rois.shape[0], first.shape[1], pooled_height, pooled_width),
        dtype=first.dtype,
        device=first.device,
        memory_format=suggest_memory_format(first),
    )


@torch.library.register_fake("mrcnn_plugin::roi_align_backward")
def _fake_backward(
    grad: Tensor,
    rois: Tensor,
    levels: Tensor | None,
    spatial_scales: list[float],
    batch: int,
    heights: list[int],
    widths: list[int],
    needed: list[bool],
    *options: Any,
) -> list[Tensor]:
    return [
        torch.empty(
            (batch, grad.shape[1], height, width),
            dtype=grad.dtype,
            device=grad.device,
            memory_format=suggest_memory_format(grad),
        )
        for height, width, is_needed in zip(heights, widths, needed, strict=True)
        if is_needed
    ]


class _Forward(torch.autograd.Function):
    """The derivative of the operator with respect to the maps, which are its last arguments.

    `torch.library.register_autograd` would take three times as long for an operator with a list of
    Tensors. A small call on a GPU consists mostly of the time of the host.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        rois, levels, spatial_scales, *rest = arguments[:_NUM_OTHERS]
        maps = arguments[_NUM_OTHERS:]
        ctx.save_for_backward(rois, levels)
        ctx.spatial_scales, ctx.options = spatial_scales, rest[2:]
        ctx.batch = maps[0].shape[0]
        ctx.heights = [map.shape[2] for map in maps]
        ctx.widths = [map.shape[3] for map in maps]
        return _below_autograd(list(maps), *arguments[:_NUM_OTHERS])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        needed = list(ctx.needs_input_grad[_NUM_OTHERS:])
        of_needed = iter(
            torch.ops.mrcnn_plugin.roi_align_backward(
                grad,
                *ctx.saved_tensors,
                ctx.spatial_scales,
                ctx.batch,
                ctx.heights,
                ctx.widths,
                needed,
                *ctx.options,
            )
        )
        gradients = [next(of_needed) if is_needed else None for is_needed in needed]
        return (*[None] * _NUM_OTHERS, *gradients)


# The number of arguments of the operator besides the maps.
_NUM_OTHERS = 9


def _below_autograd(maps: list[Tensor], *others: Any) -> Tensor:
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.mrcnn_plugin.roi_align.default(maps, *others)


def _with_autograd(maps: list[Tensor], *others: Any) -> Tensor:
    if torch.is_grad_enabled() and any(map.requires_grad for map in maps):
        return _Forward.apply(*others, *maps)
    return _below_autograd(maps, *others)


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    grad, rois, levels, ctx.spatial_scales, ctx.batch, *sizes, ctx.needed = inputs[:8]
    ctx.heights, ctx.widths = sizes
    ctx.options = inputs[8:]
    ctx.save_for_backward(rois, levels)
    ctx.channels, ctx.pooled_size = grad.shape[1], grad.shape[2:]


def _double_backward(ctx: Any, grad_grads: list[Tensor]) -> tuple[Tensor | None, ...]:
    # The operator is linear in its input, so the derivative of its transpose is the operator itself.
    # A map whose gradient was not needed counts as zero.
    grad = None
    if ctx.needs_input_grad[0]:
        zero = grad_grads[0].new_zeros(())
        of_needed = iter(grad_grads)
        maps = [
            next(of_needed) if is_needed else zero.expand(ctx.batch, ctx.channels, height, width)
            for height, width, is_needed in zip(ctx.heights, ctx.widths, ctx.needed, strict=True)
        ]
        grad = torch.ops.mrcnn_plugin.roi_align(
            maps, *ctx.saved_tensors, ctx.spatial_scales, *ctx.pooled_size, *ctx.options
        )
    return (grad, *[None] * 11)


_library.impl("roi_align", _with_autograd, "Autograd")
torch.library.register_autograd(
    "mrcnn_plugin::roi_align_backward", _double_backward, setup_context=_setup_backward
)


def count_multiply_adds(
    num_rois: int,
    channels: int,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    interpolation: str,
) -> int:
    """Estimates the multiply-adds of a forward or backward pass from the shapes of its arguments.

    The true number depends on the boxes: the band of a bin has about its length in pixels plus 3
    (bicubic) or plus 1 (bilinear). This function assumes that samples are one pixel apart. For
    adaptive sampling it assumes one sample per bin and axis. It does not count the computation of
    the weights, which all channels share.
    """
    samples = max(sampling_ratio, 1)
    more = 3 if interpolation == "bicubic" else 1
    taps = samples + more
    columns = pooled_width * samples + more
    return num_rois * channels * pooled_height * taps * (columns + pooled_width)


@register_flop_formula(torch.ops.mrcnn_plugin.roi_align)
def _forward_flops(
    input: Sequence[Sequence[int]],
    rois: Sequence[int],
    levels: Sequence[int] | None,
    spatial_scales: Sequence[float],
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
    interpolation: str,
    *options: Any,
    **others: Any,
) -> int:
    return 2 * count_multiply_adds(
        rois[0], input[0][1], pooled_height, pooled_width, sampling_ratio, interpolation
    )


@register_flop_formula(torch.ops.mrcnn_plugin.roi_align_backward)
def _backward_flops(
    grad: Sequence[int],
    rois: Sequence[int],
    levels: Sequence[int] | None,
    spatial_scales: Sequence[float],
    batch: int,
    heights: Sequence[int],
    widths: Sequence[int],
    needed: Sequence[bool],
    sampling_ratio: int,
    aligned: bool,
    interpolation: str,
    *options: Any,
    **others: Any,
) -> int:
    num_rois, channels, pooled_height, pooled_width = grad
    return 2 * count_multiply_adds(
        num_rois, channels, pooled_height, pooled_width, sampling_ratio, interpolation
    )
