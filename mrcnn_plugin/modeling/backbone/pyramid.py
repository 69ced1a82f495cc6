"""The parts that all pyramids of this package share: checks of options, and steps of a forward pass."""

from collections.abc import Sequence

from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn


def check_pyramid(
    bottom_up: Backbone, in_features: Sequence[str], top_block: nn.Module | None, fuse_type: str
) -> None:
    """Checks the arguments of a pyramid. Detectron2's FPN asserts some of this, without the values.

    Raises:
        ValueError: `bottom_up` does not have the `in_features`, their strides are not successive
            powers of two, `fuse_type` is unknown, or `top_block` starts neither from the last level of
            the pyramid nor from a feature of its stride.
    """
    shapes = bottom_up.output_shape()
    given = f"MODEL.FPN.IN_FEATURES is {list(in_features)}"
    if not in_features or not set(in_features) <= set(shapes):
        raise ValueError(f"{given}, but must name features of the bottom-up: {list(shapes)}")
    strides = [shapes[f].stride for f in in_features]
    first = strides[0].bit_length() - 1
    if strides != [2 ** (first + i) for i in range(len(strides))]:
        raise ValueError(
            f"{given} of strides {strides}, but a pyramid needs successive powers of two"
        )
    if fuse_type not in ("sum", "avg"):
        raise ValueError(f"MODEL.FPN.FUSE_TYPE must be 'sum' or 'avg', got {fuse_type!r}")
    if top_block is not None:
        last = f"p{first + len(strides) - 1}"
        source = top_block.in_feature
        if source != last and (source not in shapes or shapes[source].stride != strides[-1]):
            raise ValueError(
                f"{given}, whose last level is {last!r} of stride {strides[-1]}, but the top "
                f"block continues from {source!r}: the two must be of the same stride"
            )


class Pyramid(Backbone):
    """The steps of a forward pass that the pyramids share, as methods that TorchScript can compile.

    A subclass must have these attributes of Detectron2's FPN: `in_features`, `lateral_convs` (low
    resolution first), `top_block` and `_out_features`. The steps have names of their own, because
    TorchScript does not support `super()`.
    """

    def lateral_levels(self, bottom_up_features: dict[str, Tensor]) -> list[Tensor]:
        """Returns the outputs of the lateral convolutions, high resolution first."""
        levels: list[Tensor] = []
        for i, lateral_conv in enumerate(self.lateral_convs):  # low resolution first
            levels.insert(0, lateral_conv(bottom_up_features[self.in_features[-1 - i]]))
        return levels

    def add_top_levels(
        self, levels: list[Tensor], bottom_up_features: dict[str, Tensor]
    ) -> list[Tensor]:
        """Returns the `levels` and those of the top block, if there is one, high resolution first."""
        if self.top_block is not None:
            source = levels[-1]
            if self.top_block.in_feature in bottom_up_features:
                source = bottom_up_features[self.top_block.in_feature]
            levels = levels + self.top_block(source)
        return levels

    def name_levels(self, levels: list[Tensor]) -> dict[str, Tensor]:
        return {name: levels[i] for i, name in enumerate(self._out_features)}
