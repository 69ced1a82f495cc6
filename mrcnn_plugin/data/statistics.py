"""Sizes and numbers of the objects and images of a data set, from which reports and configs are made."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from numpy.typing import NDArray


@dataclass(frozen=True)
class Statistics:
    """What is known of the images and objects of a data set. Crowds are no objects here.

    I is the number of images, those without an object included, and N the number of objects.

    Attributes:
        class_names: the name of each class.
        image_widths: int64 [I], in px.
        image_heights: int64 [I], in px.
        widths: float64 [N], of the boxes, in px of the image.
        heights: float64 [N], of the boxes, in px of the image.
        classes: int64 [N], the index of each object's class.
        images: int64 [N], the index of each object's image.
        polygons: the number of objects with a mask of polygons.
        bitmasks: the number of objects with a mask as run-length encoding (RLE).
    """

    class_names: tuple[str, ...]
    image_widths: NDArray[np.int64]
    image_heights: NDArray[np.int64]
    widths: NDArray[np.float64]
    heights: NDArray[np.float64]
    classes: NDArray[np.int64]
    images: NDArray[np.int64]
    polygons: int
    bitmasks: int

    @classmethod
    def of(cls, dicts: Sequence[dict[str, Any]], class_names: Sequence[str]) -> "Statistics":
        """Those of a data set in Detectron2's standard format, which has `height` and `width` for each image."""
        boxes: dict[int, list[Any]] = {}
        where: dict[int, list[tuple[int, int]]] = {}
        polygons = bitmasks = 0
        for index, record in enumerate(dicts):
            for annotation in record.get("annotations", ()):
                if annotation.get("iscrowd", 0):
                    continue
                mode = annotation["bbox_mode"]
                boxes.setdefault(mode, []).append(annotation["bbox"])
                where.setdefault(mode, []).append((annotation["category_id"], index))
                mask = annotation.get("segmentation")
                polygons += isinstance(mask, list)
                bitmasks += isinstance(mask, dict)
        converted = [
            BoxMode.convert(np.array(of_mode, dtype=np.float64), BoxMode(mode), BoxMode.XYXY_ABS)
            for mode, of_mode in boxes.items()
        ]
        corners: NDArray[np.float64] = np.concatenate([np.zeros((0, 4)), *converted])
        indices = np.array(list(itertools.chain(*where.values())), dtype=np.int64).reshape(-1, 2)
        return cls(
            class_names=tuple(class_names),
            image_widths=np.array([record["width"] for record in dicts], dtype=np.int64),
            image_heights=np.array([record["height"] for record in dicts], dtype=np.int64),
            widths=corners[:, 2] - corners[:, 0],
            heights=corners[:, 3] - corners[:, 1],
            classes=indices[:, 0],
            images=indices[:, 1],
            polygons=polygons,
            bitmasks=bitmasks,
        )

    @property
    def sizes(self) -> NDArray[np.float64]:
        """float64 [N], the square roots of the areas of the boxes, in px of the image, as anchors have them."""
        return np.sqrt(self.widths * self.heights)

    def sizes_in_input(self, min_size: int, max_size: int) -> NDArray[np.float64]:
        """float64 [N], `sizes` in px of the input of the model.

        Args:
            min_size: the length of the shorter side, such as `INPUT.MIN_SIZE_TEST`.
            max_size: the largest length of the longer side, such as `INPUT.MAX_SIZE_TEST`.
        """
        scales = [
            input_scale(width, height, min_size, max_size)
            for width, height in zip(
                self.image_widths.tolist(), self.image_heights.tolist(), strict=True
            )
        ]
        return self.sizes * np.array(scales, dtype=np.float64)[self.images]

    @property
    def objects_per_image(self) -> NDArray[np.int64]:
        """int64 [I]."""
        return np.bincount(self.images, minlength=len(self.image_widths))

    @property
    def objects_per_class(self) -> NDArray[np.int64]:
        """int64 [number of classes]."""
        return np.bincount(self.classes, minlength=len(self.class_names))

    @property
    def images_per_class(self) -> NDArray[np.int64]:
        """int64 [number of classes], the number of images with an object of each class."""
        pairs = np.unique(np.stack([self.images, self.classes]), axis=1)
        return np.bincount(pairs[1], minlength=len(self.class_names))


def input_scale(width: int, height: int, min_size: int, max_size: int) -> float:
    """By how much Detectron2 enlarges an image, sides taken together, when it becomes an input of the model.

    Args:
        width: of the image, in px.
        height: of the image, in px.
        min_size: the length of the shorter side, such as `INPUT.MIN_SIZE_TEST`; 0 to leave images as they are.
        max_size: the largest length of the longer side, such as `INPUT.MAX_SIZE_TEST`.
    """
    if min_size == 0:
        return 1.0
    new_height, new_width = T.ResizeShortestEdge.get_output_shape(height, width, min_size, max_size)
    return float(np.sqrt(new_height * new_width / (height * width)))
