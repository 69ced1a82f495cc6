"""Generated data sets, and data sets of the user in COCO format. The import registers none of them."""

from .checks import check_datasets
from .coco_json import check_categories, register_coco_json, register_coco_json_from_file
from .mapper import TrainMapper
from .pixels import check_pixel_range, read_input, scaled_path
from .shapes import generate_shapes, register_shapes

__all__ = [
    "TrainMapper",
    "check_categories",
    "check_datasets",
    "check_pixel_range",
    "generate_shapes",
    "read_input",
    "register_coco_json",
    "register_coco_json_from_file",
    "register_shapes",
    "scaled_path",
]
