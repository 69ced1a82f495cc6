"""For scripts that know nothing of this package: `DETECTRON2_ENV_MODULE=mrcnn_plugin.env`.

Detectron2 imports the module that this variable names, and calls its `setup_environment`, when it
is itself imported.
"""

import os

from .config import add_mrcnn_config


def setup_environment() -> None:
    """Registers every component and adds every key to the config that Detectron2 starts from.

    If the environment variable MRCNN_PLUGIN_DATASETS names a YAML file, such as the config file of
    the run itself, the data sets of its `DATASETS.COCO_JSON` are registered as well. Whether their
    categories fit the model is not checked, since the config of the run is not known yet.

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
