"""A config in which one file wins over all other config files: MRCNN_PLUGIN_CONFIG."""

import logging
from collections.abc import Callable

from detectron2.config import CfgNode

from .config import find_own_keys, read_yaml


class PreferringConfig(CfgNode):
    """A Detectron2 config that merges a preferred file again after every other file.

    A program that chooses a model by its name in Detectron2's model zoo reads a file that names every
    component. The defaults of a config could not change these, so the preferred file has to come last.
    Whatever the program sets in code or from its command line afterwards wins over both. A config that
    was saved with the keys of this package is read as it was saved.
    """

    @classmethod
    def of(cls, cfg: CfgNode, preferred: str) -> "PreferringConfig":
        """
        Args:
            cfg: the config to start from, which is left as it is.
            preferred: the absolute path of a YAML file.

        Raises:
            As `read_yaml(preferred)` and `cfg.merge_from_file(preferred)`.
        """
        self = cls()
        self._take(cfg.clone())
        # CfgNode keeps what is no config key in __dict__. A clone takes it along.
        self.__dict__["_preferred"] = preferred
        self.__dict__["_saved_keys"] = frozenset(cfg.keys() - {"VERSION"})
        self._merge(lambda stock: _merge_safely(stock, preferred))
        return self

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = True) -> None:
        """As Detectron2's, but the preferred file wins, which is read safely. A saved config wins over both."""
        preferred = self.__dict__["_preferred"]
        outcome = f"the keys of {preferred} win over those of {cfg_filename}"

        def merge(stock: CfgNode) -> None:
            nonlocal outcome
            stock.merge_from_file(cfg_filename, allow_unsafe)
            # Detectron2 saves every key.
            keys = find_own_keys(cfg_filename)
            ours = any(key.startswith("MODEL.MRCNN_PLUGIN.") for key in keys)
            if ours and {key.partition(".")[0] for key in keys} >= self.__dict__["_saved_keys"]:
                outcome = (
                    f"{cfg_filename} is a saved config and is read as it is, without {preferred}"
                )
            else:
                _merge_safely(stock, preferred)

        self._merge(merge)
        logging.getLogger(__name__).warning(f"MRCNN_PLUGIN_CONFIG: {outcome}.")

    def merge_from_other_cfg(self, cfg_other: CfgNode) -> None:
        """As Detectron2's."""
        self._merge(lambda stock: stock.merge_from_other_cfg(cfg_other))

    def _merge(self, merge: Callable[[CfgNode], None]) -> None:
        """Merges in a plain CfgNode, since yacs only merges nodes of one and the same class."""
        stock = CfgNode()
        stock.update(self)
        stock.__dict__.update(self.__dict__)
        merge(stock)
        self._take(stock)

    def _take(self, cfg: CfgNode) -> None:
        self.clear()
        self.update(cfg)
        self.__dict__.update(cfg.__dict__)


def _merge_safely(cfg: CfgNode, file: str) -> None:
    read_yaml(file)
    # What must not run has been refused.
    cfg.merge_from_file(file, allow_unsafe=True)
