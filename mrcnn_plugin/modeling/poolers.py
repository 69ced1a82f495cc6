"""The pooler types ROIAlignBicubic and ROIAlignBilinear, which pool from all levels in one call."""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ROIAlign, ShapeSpec, cat
from detectron2.modeling.poolers import (
    ROIPooler,
    assign_boxes_to_levels,
    convert_boxes_to_pooler_format,
)
from detectron2.structures import Boxes
from torch import Tensor

from ..layers.roi_align import MAX_LEVELS, check_number, check_options, check_scale, pool

try:
    from detectron2.utils.tracing import assert_fx_safe, is_fx_tracing
except ImportError:  # Detectron2 v0.6, whose own pooler torch.fx cannot trace

    def is_fx_tracing() -> bool:
        return False

    def assert_fx_safe(condition: bool, message: str) -> None:
        torch._assert(condition, message)


__all__ = ["POOLER_TYPES", "MultiscaleROIPooler", "init_head"]

# The values of POOLER_TYPE that this package adds, and their interpolation.
POOLER_TYPES = {"ROIAlignBicubic": "bicubic", "ROIAlignBilinear": "bilinear"}


class MultiscaleROIPooler(ROIPooler):
    """An ROIPooler that pools the boxes of all levels in one call of the operator.

    Detectron2's own function assigns the boxes to the levels. "ROIAlignBilinear" gives the numbers of
    Detectron2's "ROIAlignV2", up to rounding. With half-precision features, Detectron2 rounds the
    boxes to half precision, and this class keeps them in float32. The pooler has no parameters, so it
    works with any checkpoint.
    """

    def __init__(
        self,
        output_size: int | tuple[int, int],
        scales: Sequence[float],
        sampling_ratio: int,
        pooler_type: str,
        canonical_box_size: int = 224,
        canonical_level: int = 4,
        *,
        a: float = -0.5,
    ) -> None:
        """
        Args:
            output_size, scales, sampling_ratio, canonical_box_size, canonical_level: as for
                ROIPooler. There may be at most `mrcnn_plugin.layers.roi_align.MAX_LEVELS` scales.
            pooler_type: "ROIAlignBicubic" or "ROIAlignBilinear".
            a: the parameter of the cubic kernel, as for :func:`mrcnn_plugin.layers.roi_align`.

        Raises:
            TypeError, ValueError: an argument has another type, or is out of range.
        """
        if not isinstance(pooler_type, str) or pooler_type not in POOLER_TYPES:
            raise ValueError(
                f"MultiscaleROIPooler: pooler_type must be one of {list(POOLER_TYPES)}, "
                f"got {pooler_type!r}"
            )
        interpolation = POOLER_TYPES[pooler_type]
        size = check_options(
            "MultiscaleROIPooler", output_size, sampling_ratio, True, interpolation, a
        )
        _check_levels(scales, canonical_box_size, canonical_level)
        super().__init__(
            size, scales, sampling_ratio, "ROIAlignV2", canonical_box_size, canonical_level
        )
        # The parent made a module for each level, but the operator takes all levels at once.
        del self.level_poolers
        # TorchScript does not convert types, so these have to be float and int exactly.
        self.scales = [float(scale) for scale in scales]
        self.sampling_ratio = max(operator.index(sampling_ratio), 0)
        self.interpolation = interpolation
        self.a = float(a)

    @classmethod
    def like(
        cls, pooler: ROIPooler, pooler_type: str = "ROIAlignBilinear", *, a: float = -0.5
    ) -> "MultiscaleROIPooler":
        """Returns a pooler that can replace a stock pooler of the type ROIAlignV2 in a built model.

        Args:
            pooler: the stock pooler, or one of this class, whose sizes, scales and levels are taken.
            pooler_type, a: as for the constructor.

        Raises:
            ValueError: `pooler` has another type.
        """
        if isinstance(pooler, MultiscaleROIPooler):
            scales, sampling_ratio = pooler.scales, pooler.sampling_ratio
        else:
            levels = list(getattr(pooler, "level_poolers", []))
            if not levels or not all(isinstance(x, ROIAlign) and x.aligned for x in levels):
                found = (
                    f"{type(pooler).__name__} of {levels[0]}" if levels else type(pooler).__name__
                )
                raise ValueError(
                    f"MultiscaleROIPooler: pooler must be an ROIPooler of Detectron2 of type "
                    f"ROIAlignV2, got {found}"
                )
            scales = [level.spatial_scale for level in levels]
            sampling_ratio = levels[0].sampling_ratio
        return cls(
            pooler.output_size,
            scales,
            sampling_ratio,
            pooler_type,
            pooler.canonical_box_size,
            pooler.canonical_level,
            a=a,
        )

    def forward(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """
        Args:
            x: one map [N, C, H, W] for each of the `scales`.
            box_lists: the boxes of each of the N images, in pixels of the image.

        Returns:
            [M, C, height, width] for all M boxes in their order, with the dtype of `x`.
        """
        if not is_fx_tracing():
            torch._assert(
                isinstance(x, list) and isinstance(box_lists, list),
                "MultiscaleROIPooler: x and box_lists must be lists",
            )
        assert_fx_safe(
            len(x) == len(self.scales),
            "MultiscaleROIPooler: x must hold a map for each of the {} scales, got {}".format(
                len(self.scales), len(x)
            ),
        )
        assert_fx_safe(
            len(box_lists) == x[0].size(0),
            "MultiscaleROIPooler: box_lists must hold the boxes of {} images, got {}".format(
                x[0].size(0), len(box_lists)
            ),
        )
        height, width = self.output_size
        if len(box_lists) == 0:
            return x[0].new_zeros((0, x[0].size(1), height, width))
        rois = _to_rois(box_lists)
        levels: Tensor | None = None
        if len(self.scales) > 1:
            assigned = assign_boxes_to_levels(
                box_lists,
                self.min_level,
                self.max_level,
                self.canonical_box_size,
                self.canonical_level,
            )
            # The function assigns a level that does not exist to a box of negative area or with a
            # NaN. The parent pools zeros for such a box. The operator does so at any level, with one
            # exception: a finite box with a given number of samples. That box becomes NaN here.
            levels = _clamp(assigned, len(self.scales) - 1)
            if self.sampling_ratio > 0:
                boxes = rois[:, 1:].masked_fill((assigned != levels)[:, None], math.nan)
                rois = torch.cat([rois[:, :1], boxes], dim=1)
        return pool(
            x,
            rois.to(torch.float64 if x[0].dtype == torch.float64 else torch.float32),
            levels,
            self.scales,
            height,
            width,
            self.sampling_ratio,
            True,
            self.interpolation,
            self.a,
        )

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, scales={self.scales}, "
            f"sampling_ratio={self.sampling_ratio}, interpolation={self.interpolation}, a={self.a}"
        )


def _to_rois(box_lists: list[Boxes]) -> Tensor:
    """Returns the boxes of all images as rows (image, x1, y1, x2, y2), [M, 5]."""
    if torch.jit.is_scripting() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return convert_boxes_to_pooler_format(box_lists)
    else:
        # Detectron2's function would make the host wait, because it repeats indices by lengths that
        # are on the GPU.
        return cat([F.pad(b.tensor, (1, 0), value=i) for i, b in enumerate(box_lists)])


def _clamp(levels: Tensor, last: int) -> Tensor:
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        # ONNX cannot clip integers before opset 12.
        return torch.where((levels >= 0) & (levels <= last), levels, last)
    return levels.clamp(0, last)


def _check_levels(scales: Any, canonical_box_size: Any, canonical_level: Any) -> None:
    """Checks the arguments. The parent asserts some of this, but its messages lack the values."""
    if isinstance(scales, str) or not isinstance(scales, Sequence):
        raise TypeError(f"MultiscaleROIPooler: scales must be a list of numbers, got {scales!r}")
    if not 1 <= len(scales) <= MAX_LEVELS:
        raise ValueError(
            f"MultiscaleROIPooler: scales must be 1 to {MAX_LEVELS} numbers, got {len(scales)}"
        )
    for level, scale in enumerate(scales):
        check_scale("MultiscaleROIPooler", f"scales[{level}]", scale)
    first = round(-math.log2(scales[0]))
    if first < 0 or any(
        not math.isclose(scale, 2.0 ** -(first + level)) for level, scale in enumerate(scales)
    ):
        raise ValueError(
            f"MultiscaleROIPooler: scales must be 1/stride of the levels of a pyramid, whose "
            f"strides are powers of two and each twice the one before, such as [1/4, 1/8], "
            f"got {list(scales)}"
        )
    for name, number in (
        ("canonical_box_size", canonical_box_size),
        ("canonical_level", canonical_level),
    ):
        check_number("MultiscaleROIPooler", name, number)
        if not math.isfinite(number) or (name == "canonical_box_size" and number <= 0):
            raise ValueError(
                f"MultiscaleROIPooler: {name} must be finite, and a size positive, got {number}"
            )


def init_head(
    init: Callable[[CfgNode, dict[str, ShapeSpec]], dict[str, Any]],
    cfg: CfgNode,
    input_shape: dict[str, ShapeSpec],
    name: str,
    pooler: str,
) -> dict[str, Any]:
    """Calls a method of Detectron2 that builds a head from a config.

    If the config asks for a pooler type of this package, the head gets such a pooler.

    Args:
        init: the method of the parent class, such as `_init_box_head`.
        cfg, input_shape: the arguments of `init`.
        name: the config node, "ROI_BOX_HEAD", "ROI_MASK_HEAD" or "ROI_KEYPOINT_HEAD".
        pooler: the key of the pooler in the dictionary that `init` returns.

    Returns:
        The dictionary of `init`, with the pooler that `cfg.MODEL.<name>.POOLER_TYPE` asks for.
    """
    pooler_type = cfg.MODEL[name].POOLER_TYPE
    if pooler_type not in POOLER_TYPES:
        return init(cfg, input_shape)
    a = cfg.MODEL.MRCNN_PLUGIN.ROI_ALIGN.A
    # The parent hard-codes the class ROIPooler, which knows Detectron2's types only. It therefore
    # builds a pooler of the same alignment first, and ours takes over the arguments of that one.
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL[name].POOLER_TYPE = "ROIAlignV2"
    head = init(cfg, input_shape)
    if head:  # it is {} if the config switches the head off
        try:
            head[pooler] = MultiscaleROIPooler.like(head[pooler], pooler_type, a=a)
        except (TypeError, ValueError) as error:
            node = cfg.MODEL[name]
            raise type(error)(
                f"MODEL.{name}.POOLER_TYPE is {pooler_type!r}, with POOLER_RESOLUTION {node.POOLER_RESOLUTION}, "
                f"POOLER_SAMPLING_RATIO {node.POOLER_SAMPLING_RATIO} and MODEL.MRCNN_PLUGIN.ROI_ALIGN.A {a}: {error}"
            ) from error
    return head
