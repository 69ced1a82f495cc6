"""RoIAlign with bilinear or bicubic interpolation, from a single map or from several.

docs/roi_align.md explains the words and the mathematics.
"""

import operator
from collections.abc import Sequence
from typing import Any, SupportsFloat

import torch
from torch import Tensor, nn

from . import roi_align_registration  # noqa: F401, for torch.ops.mrcnn_plugin
from .roi_align_reference import roi_align_dense

__all__ = ["ROIAlign", "multiscale_roi_align", "roi_align"]

# The limit keeps the computation of the weights short. Adaptive sampling needs no limit: its samples
# are about a pixel apart, and those outside of the map are skipped.
MAX_SAMPLING_RATIO = 1024

# Must equal kMaxLevels in csrc/problem.h.
MAX_LEVELS = 8

_MAX_BINS = 2**20
_FLOAT_MAX = torch.finfo(torch.float32).max
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def roi_align(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
    *,
    interpolation: str = "bicubic",
    a: float = -0.5,
) -> Tensor:
    """Averages interpolated features over the bins of each box (RoIAlign, arXiv 1703.06870).

    A bin averages samples on a regular grid. A sample outside [-1, H] x [-1, W] counts as zero.
    Every other sample is clamped to the map, and taps beyond the border read the border pixel.
    With "bilinear", value and gradient equal those of `torchvision.ops.roi_align` with the same
    `aligned`, which is False there by default.

    Autocast changes nothing: the result has the dtype of `input`. `torch.onnx.export` gets standard
    operators instead (:func:`.roi_align_reference.roi_align_dense`). There is no forward-mode
    derivative: `torch.func.jvp` takes it for zero without a warning. `torch.func.grad` and
    `torch.vmap` raise an error.

    Args:
        input: [N, C, H, W], float64, float32, float16 or bfloat16. Channels-last memory is read
            directly.
        boxes: [K, 5] with rows (batch index, x1, y1, x2, y2), or a list of one [L, 4] tensor with
            rows (x1, y1, x2, y2) for each of the N images. Coordinates are in pixels of the image.
            They are computed in float32 (float64 for float64 input), so give at least float32. They
            get no gradient. A box pools zeros if a coordinate is not finite. It also does if its
            extent along an axis is not positive, sampling is adaptive and `aligned` is True.
        output_size: number of bins (height, width) of a box, or one number for both.
        spatial_scale: pixels of the map per pixel of the image, 1/stride.
        sampling_ratio: samples per bin and axis, at most MAX_SAMPLING_RATIO. With 0 or less,
            sampling is adaptive: a bin has ceil(its size in pixels of the map) samples per axis.
        aligned: True puts pixel centres at half-integer coordinates of the boxes, as Detectron2's
            ROIAlignV2 does. False shifts boxes by half a pixel and makes them at least one pixel
            large, as Detectron's first version does.
        interpolation: "bicubic" (Keys' cubic convolution, 16 taps) or "bilinear" (4 taps).
        a: parameter of the cubic kernel. Only -0.5 reproduces linear ramps, and so keeps features
            aligned with boxes. -0.75 equals `torch.nn.functional.grid_sample` and OpenCV.

    Returns:
        [K, C, height, width] of the dtype and memory format of `input`. Boxes of a list follow each
        other in the order of the images.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong shape, device or value.
        IndexError: a batch index is not a whole number in [0, N). On CUDA the box pools NaN instead.
    """
    caller = "roi_align"
    _check_map(caller, "input", input)
    height, width = check_options(caller, output_size, sampling_ratio, aligned, interpolation, a)
    check_scale(caller, "spatial_scale", spatial_scale)
    return pool(
        [input],
        _to_rois(caller, input, "input", boxes),
        None,
        [spatial_scale],
        height,
        width,
        max(sampling_ratio, 0),
        aligned,
        interpolation,
        a,
    )


def multiscale_roi_align(
    inputs: Sequence[Tensor],
    boxes: Tensor | Sequence[Tensor],
    levels: Tensor | None,
    output_size: int | tuple[int, int],
    spatial_scales: Sequence[float],
    sampling_ratio: int = 0,
    aligned: bool = True,
    *,
    interpolation: str = "bicubic",
    a: float = -0.5,
) -> Tensor:
    """Pools each box as :func:`roi_align` does, from the map that `levels` names for it.

    One call replaces a call per level, and the gather and scatter of boxes around these calls. Only
    maps that require a gradient get one.

    Args:
        inputs: a list of 1 to MAX_LEVELS maps [N, C, H, W] of one dtype and device. All have the
            same N and C. Each may have its own memory layout.
        boxes: [K, 5], or a list of one [L, 4] tensor for each image, as for :func:`roi_align`.
        levels: int64 [K], the index in `inputs` of the map of each box. None is allowed if there
            is only one map.
        output_size: number of bins (height, width) of a box, or one number for both.
        spatial_scales: a list with 1/stride of each map, in pixels of the map per pixel of the
            image.
        sampling_ratio, aligned, interpolation, a: see :func:`roi_align`.

    Returns:
        [K, C, height, width] in the order of `boxes`, of the dtype of `inputs` and the memory
        format of the first map.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong shape, device, length or value.
        IndexError: a batch index is not a whole number in [0, N), or a level is not the index of
            a map. On CUDA such a box pools NaN instead.
    """
    caller = "multiscale_roi_align"
    if not isinstance(inputs, (list, tuple)):
        raise TypeError(f"{caller}: inputs must be a list of Tensors, got {_describe(inputs)}")
    if not 1 <= len(inputs) <= MAX_LEVELS:
        raise ValueError(f"{caller}: inputs must be 1 to {MAX_LEVELS} Tensors, got {len(inputs)}")
    first = inputs[0]
    for level, map in enumerate(inputs):
        name = f"inputs[{level}]"
        _check_map(caller, name, map)
        if map.dtype != first.dtype:
            raise TypeError(
                f"{caller}: all inputs must have the dtype of inputs[0], {first.dtype}, "
                f"but {name} has {map.dtype}"
            )
        if map.shape[:2] != first.shape[:2]:
            raise ValueError(
                f"{caller}: all inputs must have the batch size and channels of inputs[0], "
                f"{tuple(first.shape[:2])}, but {name} has {tuple(map.shape[:2])}"
            )
        if map.device != first.device:
            raise ValueError(
                f"{caller}: all inputs must be on the device of inputs[0], {first.device}, "
                f"but {name} is on {map.device}"
            )
    height, width = check_options(caller, output_size, sampling_ratio, aligned, interpolation, a)
    if not isinstance(spatial_scales, (list, tuple)):
        raise TypeError(
            f"{caller}: spatial_scales must be a list of numbers, got {_describe(spatial_scales)}"
        )
    if len(spatial_scales) != len(inputs):
        raise ValueError(
            f"{caller}: spatial_scales must have one number for each of the {len(inputs)} inputs, "
            f"got {len(spatial_scales)}"
        )
    for level, scale in enumerate(spatial_scales):
        check_scale(caller, f"spatial_scales[{level}]", scale)
    rois = _to_rois(caller, first, "inputs", boxes)
    if levels is not None or len(inputs) > 1:
        _check_levels(caller, first, levels, rois)
    return pool(
        list(inputs),
        rois,
        levels,
        list(spatial_scales),
        height,
        width,
        max(sampling_ratio, 0),
        aligned,
        interpolation,
        a,
    )


# torch.fx.symbolic_trace records calls of a wrapped function without tracing into it, since its
# checks need real tensors. Each module has to wrap the functions that it calls.
torch.fx.wrap("roi_align")


def pool(
    inputs: list[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    spatial_scales: list[float],
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
    interpolation: str,
    a: float,
) -> Tensor:
    """Calls the operator without checks in Python. TorchScript can compile this function.

    The arguments are those of :func:`.roi_align_reference.roi_align_reference`.
    """
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        if torch.onnx.is_in_onnx_export():
            return roi_align_dense(
                inputs,
                rois,
                levels,
                spatial_scales,
                pooled_height,
                pooled_width,
                sampling_ratio,
                aligned,
                interpolation,
                a,
            )
    return torch.ops.mrcnn_plugin.roi_align(
        inputs,
        rois,
        levels,
        spatial_scales,
        pooled_height,
        pooled_width,
        sampling_ratio,
        aligned,
        interpolation,
        a,
    )


def _check_map(caller: str, name: str, map: Tensor) -> None:
    if not isinstance(map, Tensor) or map.dtype not in _DTYPES or not _is_dense(map):
        raise TypeError(
            f"{caller}: {name} must be a dense Tensor of float64, float32, float16 or bfloat16, "
            f"got {_describe(map)}"
        )
    if map.dim() != 4 or 0 in map.shape[2:]:
        raise ValueError(
            f"{caller}: {name} must have shape (N, C, H, W), H and W at least 1, "
            f"got {tuple(map.shape)}"
        )


def _check_levels(caller: str, input: Tensor, levels: Tensor | None, rois: Tensor) -> None:
    if not isinstance(levels, Tensor) or levels.dtype != torch.int64 or not _is_dense(levels):
        raise TypeError(
            f"{caller}: levels must be a dense Tensor of int64, got {_describe(levels)}"
        )
    if levels.dim() != 1 or levels.shape[0] != rois.shape[0]:
        raise ValueError(
            f"{caller}: levels must have shape (K,), one level for each of the {rois.shape[0]} "
            f"boxes, got {tuple(levels.shape)}"
        )
    if levels.device != input.device:
        raise ValueError(
            f"{caller}: levels must be on the device of inputs, {input.device}, got {levels.device}"
        )


def _is_dense(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_nested


def _describe(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    kind = "" if _is_dense(value) else "nested " if value.is_nested else f"{value.layout} "
    return f"{kind}Tensor of {value.dtype}"


def check_options(
    caller: str,
    output_size: int | tuple[int, int],
    sampling_ratio: int,
    aligned: bool,
    interpolation: str,
    a: float,
) -> tuple[int, int]:
    check_number(caller, "a", a)
    try:
        samples = _to_int(sampling_ratio)
    except TypeError:
        raise TypeError(
            f"{caller}: sampling_ratio must be a whole number, got {sampling_ratio!r}"
        ) from None
    if not isinstance(aligned, bool):
        raise TypeError(f"{caller}: aligned must be True or False, got {aligned!r}")
    # A LazyConfig passes a list type of its own.
    size = output_size if isinstance(output_size, Sequence) else (output_size, output_size)
    try:
        height, width = map(_to_int, size)
    except (TypeError, ValueError):
        raise TypeError(
            f"{caller}: output_size must be a whole number or a pair (height, width) of them, "
            f"got {output_size!r}"
        ) from None
    if height < 1 or width < 1 or height > _MAX_BINS or width > _MAX_BINS:
        raise ValueError(
            f"{caller}: output_size must be positive and at most {_MAX_BINS}, got {output_size}"
        )
    if samples > MAX_SAMPLING_RATIO:
        raise ValueError(
            f"{caller}: sampling_ratio must be at most {MAX_SAMPLING_RATIO}, got {sampling_ratio}"
        )
    if interpolation not in ("bilinear", "bicubic"):
        raise ValueError(
            f'{caller}: interpolation must be "bilinear" or "bicubic", got {interpolation!r}'
        )
    if not -_FLOAT_MAX <= a <= _FLOAT_MAX:
        raise ValueError(f"{caller}: a must be finite in float32, got {a}")
    return height, width


def check_number(caller: str, name: str, number: Any) -> None:
    if type(number) in (float, int):
        return  # A check of the protocol takes much longer, which matters for small calls on a GPU.
    if (
        _is_bool(number)
        or not isinstance(number, (SupportsFloat, torch.SymFloat))
        or not _is_scalar(number)
    ):
        raise TypeError(f"{caller}: {name} must be a number, got {number!r}")


def _is_scalar(number: Any) -> bool:
    # Tensors and arrays of any size have the methods of a number. The operator takes a tensor of one
    # element, and an array without axes.
    if isinstance(number, Tensor):
        return number.numel() == 1
    return getattr(number, "shape", ()) == ()


def _is_bool(value: Any) -> bool:
    # A tensor, an array and a scalar of NumPy have a dtype.
    return getattr(value, "dtype", type(value)) in (bool, torch.bool)


def _to_int(number: Any) -> int:
    """Converts a whole number, or raises TypeError."""
    if type(number) is int:
        return number  # torch.compile cannot look for the dtype of a number that changes from call to call.
    if _is_bool(number):
        raise TypeError
    return operator.index(number)


def check_scale(caller: str, name: str, scale: Any) -> None:
    check_number(caller, name, scale)
    if not 0 < scale <= _FLOAT_MAX:
        raise ValueError(f"{caller}: {name} must be positive and finite in float32, got {scale}")


def _to_rois(caller: str, input: Tensor, name: str, boxes: Tensor | Sequence[Tensor]) -> Tensor:
    """Converts either form of boxes to [K, 5] in the dtype that coordinates are computed in.

    Errors call the argument that holds `input` by `name`.
    """
    dtype = torch.promote_types(input.dtype, torch.float32)
    if isinstance(boxes, Tensor):
        columns = "batch index, x1, y1, x2, y2"
        _check_boxes(caller, input, name, boxes, "boxes as a Tensor", "K", columns)
        return boxes.to(dtype)
    if not isinstance(boxes, (list, tuple)):
        raise TypeError(
            f"{caller}: boxes must be a Tensor or a list of Tensors, got {_describe(boxes)}. "
            f"Boxes of Detectron2 go into a list, as [boxes.tensor]."
        )
    for image, of_image in enumerate(boxes):
        if not isinstance(of_image, Tensor):
            raise TypeError(
                f"{caller}: boxes[{image}] must be a Tensor with rows (x1, y1, x2, y2), such as "
                f"the attribute `tensor` of Detectron2's Boxes, got {_describe(of_image)}"
            )
    if len(boxes) != input.shape[0]:
        raise ValueError(
            f"{caller}: boxes as a list must have one Tensor for each of the {input.shape[0]} "
            f"images of {name}, got {len(boxes)}"
        )
    rois: list[Tensor] = [input.new_empty((0, 5), dtype=dtype)]
    for image, of_image in enumerate(boxes):
        _check_boxes(caller, input, name, of_image, f"boxes[{image}]", "L", "x1, y1, x2, y2")
        index = of_image.new_full((of_image.shape[0], 1), image, dtype=dtype)
        rois.append(torch.cat([index, of_image.to(dtype)], dim=1))
    return torch.cat(rois)


def _check_boxes(
    caller: str,
    input: Tensor,
    input_name: str,
    boxes: Tensor,
    name: str,
    rows: str,
    columns: str,
) -> None:
    if boxes.is_complex() or boxes.dtype == torch.bool or not _is_dense(boxes):
        raise TypeError(f"{caller}: {name} must be dense real numbers, got {_describe(boxes)}")
    count = len(columns.split(", "))
    if boxes.dim() != 2 or boxes.shape[1] != count:
        raise ValueError(
            f"{caller}: {name} must have shape ({rows}, {count}), rows ({columns}), "
            f"got {tuple(boxes.shape)}"
        )
    if boxes.device != input.device:
        raise ValueError(
            f"{caller}: {name} must be on the device of {input_name}, {input.device}, "
            f"got {boxes.device}"
        )


class ROIAlign(nn.Module):
    """:func:`roi_align` with fixed options. It can replace `detectron2.layers.ROIAlign`."""

    def __init__(
        self,
        output_size: int | tuple[int, int],
        spatial_scale: float,
        sampling_ratio: int,
        aligned: bool = True,
        *,
        interpolation: str = "bicubic",
        a: float = -0.5,
    ) -> None:
        """See :func:`roi_align` for the arguments and errors."""
        super().__init__()
        self.output_size = check_options(
            "ROIAlign", output_size, sampling_ratio, aligned, interpolation, a
        )
        check_scale("ROIAlign", "spatial_scale", spatial_scale)
        # TorchScript does not convert types, so the attributes need the exact ones.
        self.spatial_scale = float(spatial_scale)
        self.sampling_ratio = operator.index(sampling_ratio)
        self.aligned = aligned
        self.interpolation = interpolation
        self.a = float(a)

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """Pools each box. See :func:`roi_align` for dtypes, units and errors.

        Args:
            input: [N, C, H, W].
            rois: [K, 5] with rows (batch index, x1, y1, x2, y2).

        Returns:
            [K, C, height, width] of the dtype and memory format of `input`.
        """
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            # TorchScript can call the operator, but cannot compile the checks of the arguments.
            height, width = self.output_size
            return torch.ops.mrcnn_plugin.roi_align(
                [input],
                rois.to(torch.float64 if input.dtype == torch.float64 else torch.float32),
                None,
                [self.spatial_scale],
                height,
                width,
                max(self.sampling_ratio, 0),
                self.aligned,
                self.interpolation,
                self.a,
            )
        return roi_align(
            input,
            rois,
            self.output_size,
            self.spatial_scale,
            self.sampling_ratio,
            self.aligned,
            interpolation=self.interpolation,
            a=self.a,
        )

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned}, "
            f"interpolation={self.interpolation}, a={self.a}"
        )
