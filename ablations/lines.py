"""The results: a JSON line for each cell that was run.

A line is found by its settings, that is by what was trained, and not by its name. So lines stay
valid when configs get other names.
"""

import json
import os
from collections.abc import Hashable
from functools import cache
from typing import Any

from detectron2.config import CfgNode

import mrcnn_plugin
from mrcnn_plugin import renamed
from mrcnn_plugin.config import KEYS, leaves

from .cells import NOT_SETTINGS
from .scenes import DATASETS

Line = dict[str, Any]
Settings = dict[str, Any]  # KEY.SUBKEY -> value

_OWN_KEYS = {key.name for key in KEYS}

# Older results have these data sets under the names on the left.
_DATASETS = {name.removeprefix("ablations_"): name for name in DATASETS}
_DATASET_KEYS = ("DATASETS.TRAIN", "DATASETS.TEST")

# RetinaNet reads none of these nodes, so that they say nothing of what was trained.
_NOT_OF_RETINANET = (
    "MODEL.PROPOSAL_GENERATOR.",
    "MODEL.RPN.",
    "MODEL.ROI_HEADS.",
    "MODEL.ROI_BOX_HEAD.",
    "MODEL.ROI_MASK_HEAD.",
)


def settings_of(cfg: CfgNode) -> Settings:
    """All keys of this package, whose defaults may change, and of Detectron2 those changed."""
    defaults = _defaults()
    return {
        key: value
        for key, value in sorted(flat(cfg).items())
        if key not in NOT_SETTINGS and (key in _OWN_KEYS or value != defaults[key])
    }


@cache
def _defaults() -> Settings:
    return flat(mrcnn_plugin.get_cfg())


def flat(node: CfgNode) -> Settings:
    """A config as one dictionary. Values are as a file gives them back: lists for tuples."""
    return {key: json.loads(json.dumps(value)) for key, value in leaves(node)}


def present(settings: Settings) -> Settings:
    """The settings of a line under the names of today: keys and registered names were renamed."""
    return {
        renamed.KEYS.get(key, key): _present_value(
            value, renamed.VALUES.get(key, {}) | (_DATASETS if key in _DATASET_KEYS else {})
        )
        for key, value in settings.items()
    }


def _present_value(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, list):
        return [_present_value(item, names) for item in value]
    return names.get(value, value) if isinstance(value, str) else value


def trained(settings: Settings) -> Settings:
    """The value of every key that says what was trained, whether it was changed or not."""
    values = {**_defaults(), **settings}
    if values["MODEL.META_ARCHITECTURE"] == "RetinaNet":
        values = {k: v for k, v in values.items() if not k.startswith(_NOT_OF_RETINANET)}
    return {key: value for key, value in values.items() if key not in NOT_SETTINGS}


def identity(settings: Settings) -> Hashable:
    """Equal for settings that train the same."""
    return frozenset((key, _hashable(value)) for key, value in trained(settings).items())


def _hashable(value: Any) -> Hashable:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def differences(before: Settings, now: Settings) -> str:
    """Empty where all settings are the same."""
    before, now = trained(before), trained(now)
    return ", ".join(
        f"{key} {before.get(key)!r} instead of {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    )


def check_unchanged(before: Settings, now: Settings, where: str, remedy: str) -> None:
    different = differences(before, now)
    if different:
        raise ValueError(f"{where} has {different}; the config was changed in between. {remedy}")


def read_lines(file: str) -> list[Line]:
    """The lines of a file, with their keys and settings under the names of today. None where there is no file.

    Raises:
        ValueError: a line is not the result of a cell.
    """
    lines: list[Line] = []
    if os.path.exists(file):
        with open(file, encoding="utf-8") as f:
            for index, text in enumerate(f, start=1):
                try:
                    line = json.loads(text)
                    line["name"], line["opts"], line["seed"], line["settings"], line["metrics"]
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(
                        f"{file}, line {index} is not the result of a cell; delete the line if it "
                        f"comes from a run that was killed."
                    ) from error
                line["settings"] = present(line["settings"])
                line["opts"] = [renamed.KEYS.get(word, word) for word in line["opts"]]
                lines.append(line)
    return lines
