"""RoIAlign, bilinear or bicubic: the registration of the operator and its public face."""

import functools
import importlib
import operator
import warnings
from typing import (
    Any,
    Callable,
    List,
    Optional,
    Sequence,
    SupportsFloat,
    SupportsIndex,
    Tuple,
    Union,
)

import torch
from torch import Tensor, nn
from torch._prims_common import suggest_memory_format
from torch.utils.flop_counter import register_flop_formula

from .roi_align_reference import (
    roi_align_backward_reference,
    roi_align_dense,
    roi_align_reference,
)

__all__ = ["ROIAlign", "roi_align"]

# The weights take a time that grows with it, what is pooled does not. Adaptive sampling has no
# maximum: its samples are about a pixel apart, and those outside of the map are skipped.
MAX_SAMPLING_RATIO = 1024

_MAX_BINS = 2**20
_FLOAT_MAX = torch.finfo(torch.float32).max
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

_SCHEMAS = (
    "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, "
    "SymInt pooled_width, int sampling_ratio, bool aligned, str interpolation, float a) -> Tensor",
    "roi_align_backward(Tensor grad, Tensor rois, float spatial_scale, SymInt batch, "
    "SymInt height, SymInt width, int sampling_ratio, bool aligned, str interpolation, float a) "
    "-> Tensor",
)

# Importing the extension registers the schemas and the CPU kernels (csrc/ops.cpp).
try:
    importlib.import_module("mrcnn_plugin._C")

    HAS_EXTENSION = True
except ImportError as error:
    HAS_EXTENSION = False
    warnings.warn(
        f"mrcnn_plugin runs RoIAlign on its slower PyTorch implementation, because its compiled "
        f"extension cannot be imported ({error}). To build it, install a C++ compiler and "
        f"reinstall the package beside the torch you use: "
        f"pip install --no-build-isolation --force-reinstall --no-deps .",
        stacklevel=2,
    )

# Kept alive as long as the module: its registrations end with the object.
_library = torch.library.Library("mrcnn_plugin", "FRAGMENT")
if not HAS_EXTENSION:
    for _schema in _SCHEMAS:
        _library.define(_schema)


@functools.cache
def _warn_of_missing_cuda_kernels() -> None:
    warnings.warn(
        "mrcnn_plugin runs RoIAlign on CUDA in its slower PyTorch implementation, because it was "
        "built without CUDA kernels. To build them, set CUDA_HOME to a toolkit of torch's major "
        "version and reinstall the package: "
        "FORCE_CUDA=1 pip install --no-build-isolation --force-reinstall --no-deps .",
        stacklevel=2,
    )


def _on_any_device(reference: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(features: Tensor, *arguments: Any) -> Tensor:
        if features.is_cuda and HAS_EXTENSION:
            _warn_of_missing_cuda_kernels()
        return reference(features, *arguments)

    return run


# Every device without a kernel of its own runs the reference.
_library.impl("roi_align", _on_any_device(roi_align_reference), "CompositeExplicitAutograd")
_library.impl(
    "roi_align_backward", _on_any_device(roi_align_backward_reference), "CompositeExplicitAutograd"
)


@torch.library.register_fake("mrcnn_plugin::roi_align")
def _fake_forward(
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    *options: Any,
) -> Tensor:
    return torch.empty(
        (rois.shape[0], input.shape[1], pooled_height, pooled_width),
        dtype=input.dtype,
        device=input.device,
        memory_format=suggest_memory_format(input),
    )


@torch.library.register_fake("mrcnn_plugin::roi_align_backward")
def _fake_backward(
    grad: Tensor,
    rois: Tensor,
    spatial_scale: float,
    batch: int,
    height: int,
    width: int,
    *options: Any,
) -> Tensor:
    return torch.empty(
        (batch, grad.shape[1], height, width),
        dtype=grad.dtype,
        device=grad.device,
        memory_format=suggest_memory_format(grad),
    )


def _setup_forward(ctx: Any, inputs: Tuple[Any, ...], output: Tensor) -> None:
    input, rois, ctx.spatial_scale, _, _, *ctx.options = inputs
    ctx.save_for_backward(rois)
    ctx.batch, _, ctx.height, ctx.width = input.shape


def _backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
    grad_input = None
    if ctx.needs_input_grad[0]:
        (rois,) = ctx.saved_tensors
        grad_input = torch.ops.mrcnn_plugin.roi_align_backward(
            grad, rois, ctx.spatial_scale, ctx.batch, ctx.height, ctx.width, *ctx.options
        )
    return (grad_input, *[None] * 8)


def _setup_backward(ctx: Any, inputs: Tuple[Any, ...], output: Tensor) -> None:
    grad, rois, ctx.spatial_scale, _, _, _, *ctx.options = inputs
    ctx.save_for_backward(rois)
    ctx.pooled_size = grad.shape[2:]


def _double_backward(ctx: Any, grad_grad: Tensor) -> Tuple[Optional[Tensor], ...]:
    # The operator is linear in its input, so the derivative of its transpose is the operator
    # itself.
    grad = None
    if ctx.needs_input_grad[0]:
        (rois,) = ctx.saved_tensors
        grad = torch.ops.mrcnn_plugin.roi_align(
            grad_grad, rois, ctx.spatial_scale, *ctx.pooled_size, *ctx.options
        )
    return (grad, *[None] * 9)


torch.library.register_autograd("mrcnn_plugin::roi_align", _backward, setup_context=_setup_forward)
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
    """Multiply-adds of either direction of the operator, as far as shapes tell.

    They depend on the boxes: a bin reads about its length in pixels plus 3 along an axis (bicubic)
    or plus 1 (bilinear). This counts samples one pixel apart, which adaptive sampling aims at, and
    one sample per bin and axis where it is adaptive. The weights, shared by all channels, are left
    out.
    """
    samples = max(sampling_ratio, 1)
    more = 3 if interpolation == "bicubic" else 1
    taps = samples + more
    columns = pooled_width * samples + more
    return num_rois * channels * pooled_height * taps * (columns + pooled_width)


@register_flop_formula(torch.ops.mrcnn_plugin.roi_align)
def _forward_flops(
    input: Sequence[int],
    rois: Sequence[int],
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
    interpolation: str,
    *options: Any,
    **others: Any,
) -> int:
    return 2 * count_multiply_adds(
        rois[0], input[1], pooled_height, pooled_width, sampling_ratio, interpolation
    )


@register_flop_formula(torch.ops.mrcnn_plugin.roi_align_backward)
def _backward_flops(
    grad: Sequence[int],
    rois: Sequence[int],
    spatial_scale: float,
    batch: int,
    height: int,
    width: int,
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


def roi_align(
    input: Tensor,
    boxes: Union[Tensor, Sequence[Tensor]],
    output_size: Union[int, Tuple[int, int]],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
    *,
    interpolation: str = "bicubic",
    a: float = -0.5,
) -> Tensor:
    """Averages interpolated features over the bins of each box (RoIAlign, arXiv 1703.06870).

    Bins hold samples on a regular grid. A sample outside [-1, H] x [-1, W] adds zero to its bin's
    average; the others are clamped to the map, and taps beyond its border read the border pixel.
    With "bilinear", value and gradient equal those of `torchvision.ops.roi_align`.

    Forward-mode derivatives are not there (torch takes them for zero, as for every operator that is
    registered so), nor is `torch.func.grad`.

    Autocast changes nothing: the result has the dtype of `input`. `torch.onnx.export` gets standard
    operators instead (:func:`.roi_align_reference.roi_align_dense`).

    Args:
        input: [N, C, H, W], float64, float32, float16 or bfloat16. Channels-last memory is used as
            it is.
        boxes: [K, 5] with rows (batch index, x1, y1, x2, y2), or one [L, 4] (x1, y1, x2, y2) for
            each of the N images; in units of the image. Gradients do not flow into them.
            Coordinates are computed in float32 (float64 for float64 input) whatever the dtype of
            the features, so give boxes of at least float32. A box with a coordinate that is not
            finite, or of no size along an axis while `sampling_ratio` is 0 and `aligned`, pools zeros.
        output_size: bins (height, width) of a box, or one number for both.
        spatial_scale: feature pixels per unit of the boxes: 1/stride.
        sampling_ratio: samples per bin and axis, at most MAX_SAMPLING_RATIO; 0 (or less, as in
            torchvision) for ceil(bin size), about one per feature pixel.
        aligned: pixel centres lie at half-integer coordinates of the boxes (as in Detectron2's
            ROIAlignV2). False shifts everything by half a pixel and makes boxes at least one pixel
            large, as in Detectron's first version.
        interpolation: "bicubic" (Keys' cubic convolution, 16 taps) or "bilinear" (4 taps).
        a: parameter of the cubic kernel. -0.5 is the only value that reproduces linear ramps, and
            so keeps the features aligned with the boxes; -0.75 equals
            `torch.nn.functional.grid_sample` and OpenCV.

    Returns:
        [K, C, height, width] of the dtype and memory format of `input`, boxes of a list in its
        order.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong shape, device or value.
        IndexError: a batch index is not a whole number in [0, N).
    """
    if not isinstance(input, Tensor) or input.dtype not in _DTYPES or not _is_dense(input):
        raise TypeError(
            f"roi_align: input must be a dense Tensor of float64, float32, float16 or bfloat16, "
            f"got {_describe(input)}"
        )
    if input.dim() != 4 or 0 in input.shape[2:]:
        raise ValueError(
            f"roi_align: input must have shape (N, C, H, W), H and W at least 1, "
            f"got {tuple(input.shape)}"
        )
    height, width = _check_options(
        output_size, spatial_scale, sampling_ratio, aligned, interpolation, a
    )
    op = roi_align_dense if torch.onnx.is_in_onnx_export() else torch.ops.mrcnn_plugin.roi_align
    return op(
        input,
        _to_rois(input, boxes),
        spatial_scale,
        height,
        width,
        max(sampling_ratio, 0),
        aligned,
        interpolation,
        a,
    )


# torch.fx.symbolic_trace records calls of roi_align, whose checks need real tensors, as they are.
torch.fx.wrap("roi_align")


def _is_dense(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_nested


def _describe(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    kind = "" if _is_dense(value) else "nested " if value.is_nested else f"{value.layout} "
    return f"{kind}Tensor of {value.dtype}"


def _check_options(
    output_size: Union[int, Tuple[int, int]],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    interpolation: str,
    a: float,
) -> Tuple[int, int]:
    for name, number in (("spatial_scale", spatial_scale), ("a", a)):
        if isinstance(number, (bool, str)) or not isinstance(
            number, (SupportsFloat, torch.SymFloat)
        ):
            raise TypeError(f"roi_align: {name} must be a number, got {number!r}")
    if isinstance(sampling_ratio, bool) or not isinstance(sampling_ratio, SupportsIndex):
        raise TypeError(f"roi_align: sampling_ratio must be a whole number, got {sampling_ratio!r}")
    if not isinstance(aligned, bool):
        raise TypeError(f"roi_align: aligned must be True or False, got {aligned!r}")
    size = output_size if isinstance(output_size, (tuple, list)) else (output_size, output_size)
    try:
        height, width = map(operator.index, size)
    except (TypeError, ValueError):
        raise TypeError(
            f"roi_align: output_size must be a whole number or a pair (height, width) of them, "
            f"got {output_size!r}"
        ) from None
    if height < 1 or width < 1 or height > _MAX_BINS or width > _MAX_BINS:
        raise ValueError(
            f"roi_align: output_size must be positive and at most {_MAX_BINS}, got {output_size}"
        )
    if not 0 < spatial_scale <= _FLOAT_MAX:
        raise ValueError(
            f"roi_align: spatial_scale must be positive and finite in float32, got {spatial_scale}"
        )
    if sampling_ratio > MAX_SAMPLING_RATIO:
        raise ValueError(
            f"roi_align: sampling_ratio must be at most {MAX_SAMPLING_RATIO}, got {sampling_ratio}"
        )
    if interpolation not in ("bilinear", "bicubic"):
        raise ValueError(
            f'roi_align: interpolation must be "bilinear" or "bicubic", got {interpolation!r}'
        )
    if not -_FLOAT_MAX <= a <= _FLOAT_MAX:
        raise ValueError(f"roi_align: a must be finite in float32, got {a}")
    return height, width


def _to_rois(input: Tensor, boxes: Union[Tensor, Sequence[Tensor]]) -> Tensor:
    """Boxes in either form as [K, 5] in the dtype that coordinates are computed in."""
    dtype = torch.promote_types(input.dtype, torch.float32)
    if isinstance(boxes, Tensor):
        _check_boxes(input, boxes, "boxes as a Tensor", "K", "batch index, x1, y1, x2, y2")
        return boxes.to(dtype)
    if not isinstance(boxes, (list, tuple)) or not all(isinstance(b, Tensor) for b in boxes):
        raise TypeError(
            f"roi_align: boxes must be a Tensor or a list of Tensors, got {_describe(boxes)}"
        )
    if len(boxes) != input.shape[0]:
        raise ValueError(
            f"roi_align: boxes as a list must have one Tensor for each of the {input.shape[0]} "
            f"images of input, got {len(boxes)}"
        )
    rois: List[Tensor] = [input.new_empty((0, 5), dtype=dtype)]
    for image, of_image in enumerate(boxes):
        _check_boxes(input, of_image, f"boxes[{image}]", "L", "x1, y1, x2, y2")
        index = of_image.new_full((of_image.shape[0], 1), image, dtype=dtype)
        rois.append(torch.cat([index, of_image.to(dtype)], dim=1))
    return torch.cat(rois)


def _check_boxes(input: Tensor, boxes: Tensor, name: str, rows: str, columns: str) -> None:
    if boxes.is_complex() or boxes.dtype == torch.bool or not _is_dense(boxes):
        raise TypeError(f"roi_align: {name} must be dense real numbers, got {_describe(boxes)}")
    count = len(columns.split(", "))
    if boxes.dim() != 2 or boxes.shape[1] != count:
        raise ValueError(
            f"roi_align: {name} must have shape ({rows}, {count}), rows ({columns}), "
            f"got {tuple(boxes.shape)}"
        )
    if boxes.device != input.device:
        raise ValueError(
            f"roi_align: {name} must be on the device of input, {input.device}, got {boxes.device}"
        )


class ROIAlign(nn.Module):
    """:func:`roi_align` with fixed options, a drop-in for `detectron2.layers.ROIAlign`."""

    def __init__(
        self,
        output_size: Union[int, Tuple[int, int]],
        spatial_scale: float,
        sampling_ratio: int,
        aligned: bool = True,
        *,
        interpolation: str = "bicubic",
        a: float = -0.5,
    ) -> None:
        """See :func:`roi_align` for the arguments and errors."""
        super().__init__()
        self.output_size = _check_options(
            output_size, spatial_scale, sampling_ratio, aligned, interpolation, a
        )
        # Of these very types: TorchScript converts none.
        self.spatial_scale = float(spatial_scale)
        self.sampling_ratio = operator.index(sampling_ratio)
        self.aligned = aligned
        self.interpolation = interpolation
        self.a = float(a)

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """
        Args:
            input: [N, C, H, W].
            rois: [K, 5], rows (batch index, x1, y1, x2, y2).

        Returns:
            [K, C, height, width].
        """
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            # TorchScript knows the operator, but not what the checks of its arguments are written in.
            height, width = self.output_size
            return torch.ops.mrcnn_plugin.roi_align(
                input,
                rois.to(torch.float64 if input.dtype == torch.float64 else torch.float32),
                self.spatial_scale,
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
