"""Mask R-CNN components for Detectron2: bicubic RoIAlign, a focal-loss ROI box head, FPN variants.

Importing the package registers them in Detectron2's registries. `load_cfg` reads a config file that
may have their keys, `get_cfg` returns their defaults, and `add_mrcnn_config` adds the keys to an
existing config.
"""

from .config import add_mrcnn_config, get_cfg, get_config_file, load_cfg

try:
    # This import has to come before the modules of this package that need Detectron2. If
    # DETECTRON2_ENV_MODULE names mrcnn_plugin.env, it runs setup_environment(), which imports them.
    import detectron2  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "detectron2":
        raise
    raise ModuleNotFoundError(
        "mrcnn_plugin is an add-on for Detectron2, which is not installed. "
        "docs/detectron2.md in its repository shows how to install it.",
        name=error.name,
    ) from error

from . import modeling  # noqa: F401
from .data import register_shapes
from .strip import strip_config

register_shapes()

__version__ = "0.1.0"
__all__ = ["add_mrcnn_config", "get_cfg", "get_config_file", "load_cfg", "strip_config"]
