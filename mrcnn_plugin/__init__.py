"""Mask R-CNN components for Detectron2: bicubic RoIAlign, a focal-loss ROI box head, FPN variants.

Importing the package registers them in Detectron2's registries. `load_cfg` reads a config file with
their keys, `get_cfg` has their defaults, and `add_mrcnn_config` adds them to a config that there is.
"""

from .config import add_mrcnn_config, get_cfg, load_cfg

try:
    # Before any module of this package that needs it: where DETECTRON2_ENV_MODULE names
    # mrcnn_plugin.env, this line runs its setup_environment(), which imports those modules in turn.
    import detectron2  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "detectron2":
        raise
    raise ModuleNotFoundError(
        "mrcnn_plugin is an add-on for Detectron2, which is not installed. "
        "Its README shows two ways to install it.",
        name=error.name,
    ) from error

from . import modeling  # noqa: F401
from .data import register_shapes

register_shapes()

__version__ = "0.1.0"
__all__ = ["add_mrcnn_config", "get_cfg", "load_cfg"]
