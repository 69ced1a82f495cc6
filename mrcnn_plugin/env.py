"""The module for `DETECTRON2_ENV_MODULE=mrcnn_plugin.env`, which scripts need that do not import this
package.

When Detectron2 is imported, it imports the module that this variable names and calls its
`setup_environment`.
"""

import os

from .config import add_mrcnn_config


def setup_environment() -> None:
    """Registers every component and adds every key to Detectron2's default config.

    The environment variable MRCNN_PLUGIN_DATASETS may name a YAML file, such as the config file of
    the run. The data sets of its `DATASETS.COCO_JSON` are then registered too. Their categories are
    not compared with the model, because the config of the run is not known yet.

    Raises:
        As :func:`mrcnn_plugin.data.register_coco_json_from_file`.
    """
    from detectron2.config.defaults import _C

    import mrcnn_plugin  # noqa: F401

    add_mrcnn_config(_C)
    path = os.environ.get("MRCNN_PLUGIN_DATASETS")
    if path:
        from .data import register_coco_json_from_file

        register_coco_json_from_file(path)
