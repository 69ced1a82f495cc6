"""Detectron2's mapper, which also accepts images without objects and polygons in random crops."""

import importlib.util
import logging
from typing import Any

import pycocotools.mask as mask_util
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils

logger = logging.getLogger("detectron2.mrcnn_plugin.data")


class TrainMapper(DatasetMapper):
    """Detectron2's DatasetMapper with two gaps closed, both of random crops (`INPUT.CROP`).

    With crops, Detectron2 computes boxes from masks, and fails where an image has no object. And it crops polygons
    with the library shapely; without it, polygons are made bitmasks before they are cropped.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        arguments: dict[str, Any] = super().from_config(cfg, is_train)
        if (
            is_train
            and cfg.INPUT.CROP.ENABLED
            and cfg.MODEL.MASK_ON
            and arguments["instance_mask_format"] == "polygon"
            and importlib.util.find_spec("shapely") is None
        ):
            logger.warning(
                "INPUT.CROP.ENABLED needs shapely for polygons, and it is not installed: masks are trained on as if "
                "INPUT.MASK_FORMAT was 'bitmask'."
            )
            arguments["instance_mask_format"] = "bitmask"
        return arguments

    def _transform_annotations(
        self, dataset_dict: dict[str, Any], transforms: Any, image_shape: tuple[int, int]
    ) -> None:
        objects = [a for a in dataset_dict["annotations"] if a.get("iscrowd", 0) == 0]
        if self.recompute_boxes and not objects:
            del dataset_dict["annotations"]
            dataset_dict["instances"] = utils.annotations_to_instances([], image_shape)
            return
        # It is on exactly if images with masks are cropped.
        if self.recompute_boxes and self.instance_mask_format == "bitmask":
            size = (dataset_dict["height"], dataset_dict["width"])
            for annotation in objects:
                segmentation = annotation.get("segmentation")
                if isinstance(segmentation, list):
                    # Otherwise polygons would be cropped as such.
                    rles = mask_util.frPyObjects(segmentation, *size)
                    annotation["segmentation"] = mask_util.merge(rles)
        super()._transform_annotations(dataset_dict, transforms, image_shape)
