"""The module for `DETECTRON2_ENV_MODULE=mrcnn_plugin.env`, which scripts need that do not import this
package.

When Detectron2 is imported, it imports the module that this variable names and calls its
`setup_environment`.
"""

import os

from .config import add_mrcnn_config, get_config_file


def setup_environment() -> None:
    """Registers every component and adds every key to Detectron2's default config.

    Detectron2 calls it once, when it is imported. In a notebook that has imported Detectron2 already,
    call it yourself; a second call changes nothing.

    The environment variable MRCNN_PLUGIN_CONFIG may name a YAML file, or a config of this package.
    Every config then starts from its values, and they win over every config file that the program
    reads. See :class:`mrcnn_plugin.preferred.PreferringConfig`.

    The environment variable MRCNN_PLUGIN_DATASETS may name a YAML file, such as the config file of
    the run. The data sets of its `DATASETS.COCO_JSON` are then registered too, and all are checked
    when the first of them is loaded. Their categories are not compared with the model, because the
    config of the run is not known yet.

    Raises:
        ValueError: Detectron2 cannot read the file that MRCNN_PLUGIN_CONFIG names.
        FileNotFoundError: there is no such file.
        As :func:`mrcnn_plugin.data.register_coco_json_from_file`.
    """
    from detectron2.config import defaults

    import mrcnn_plugin  # noqa: F401

    add_mrcnn_config(defaults._C)
    preferred = os.environ.get("MRCNN_PLUGIN_CONFIG")
    if preferred:
        _prefer(preferred)
    path = os.environ.get("MRCNN_PLUGIN_DATASETS")
    if path:
        from .data import register_coco_json_from_file

        try:
            register_coco_json_from_file(path)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"MRCNN_PLUGIN_DATASETS is {path!r}. {error}") from error
        except ValueError as error:
            raise ValueError(f"MRCNN_PLUGIN_DATASETS is {path!r}. {error}") from error


def _prefer(file: str) -> None:
    from detectron2.config import defaults

    from .preferred import PreferringConfig

    try:
        path = os.path.abspath(file) if os.path.isfile(file) else get_config_file(file)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"MRCNN_PLUGIN_CONFIG is {file!r}, but {error}") from error
    try:
        # Every config is a clone of this one.
        defaults._C = PreferringConfig.of(defaults._C, path)
    except Exception as error:
        raise ValueError(
            f"MRCNN_PLUGIN_CONFIG is {file!r}, which Detectron2 cannot read with the keys of its own "
            f"and of mrcnn_plugin: {error}"
        ) from error
