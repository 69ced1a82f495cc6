# Before anything imports mrcnn_plugin: it chooses a temporary folder for generated data sets.
import tests  # noqa: F401
