"""Generated data sets, and data sets of the user in COCO format. The import registers none of them."""

from .coco_json import check_categories, register_coco_json, register_coco_json_from_file
from .shapes import generate_shapes, register_shapes

__all__ = [
    "check_categories",
    "generate_shapes",
    "register_coco_json",
    "register_coco_json_from_file",
    "register_shapes",
]
