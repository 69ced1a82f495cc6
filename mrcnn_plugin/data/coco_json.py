"""The user's own data sets in COCO format, named in YAML: `DATASETS.COCO_JSON`."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.utils.file_io import PathManager

from ..renamed import VALUES

_KEY = "DATASETS.COCO_JSON"
# Those whose number of classes is MODEL.ROI_HEADS.NUM_CLASSES.
_ARCHITECTURES_WITH_ROI_HEADS = ("GeneralizedRCNN", "PanopticFPN")


def register_coco_json(entries: Sequence[Sequence[str]]) -> None:
    """Registers data sets in COCO format in Detectron2: all of `entries`, or none if one is wrong.

    A data set's class names and category ids are put into its metadata at once, so that they are
    known without loading it. An entry that is registered already, with the same name and paths, is
    left as it is.

    Args:
        entries: the value of `DATASETS.COCO_JSON`, a list of (name, json file, image root). Paths
            may hold $VARIABLES, start with `~` or with any prefix that Detectron2's iopath handlers
            know; relative ones are relative to the working directory. Masks may be polygons or RLE;
            RLE needs `INPUT.MASK_FORMAT: "bitmask"`.

    Raises:
        ValueError: an entry is not a triple of strings, its name is taken, a variable in a path is
            not set, or the file is not COCO JSON with images and categories.
        FileNotFoundError: the json file or the image root does not exist or cannot be read.
    """
    if isinstance(entries, (str, bytes)) or not isinstance(entries, Sequence):
        raise ValueError(
            f"{_KEY} is {entries!r}; it must be a list of (name, json file, image root)."
        )
    new: dict[str, dict[str, Any]] = {}
    seen: dict[str, int] = {}
    for index, entry in enumerate(entries):
        where = f"{_KEY}[{index}]"
        if (
            not isinstance(entry, (list, tuple))
            or len(entry) != 3
            or not all(isinstance(part, str) and part for part in entry)
        ):
            raise ValueError(
                f"{where} is {entry!r}; it must be three strings: name, json file, image root."
            )
        name = entry[0]
        where = f"{where} ({name!r})"
        if name in seen:
            raise ValueError(f"{where} has the same name as {_KEY}[{seen[name]}]; use another.")
        seen[name] = index

        json_file = _expand(entry[1], f"the json file of {where}")
        image_root = _expand(entry[2], f"the image root of {where}")
        if name in DatasetCatalog:
            metadata = MetadataCatalog.get(name)
            registered = (metadata.get("json_file"), metadata.get("image_root"))
            if registered == (json_file, image_root):
                continue
            raise ValueError(
                f"{where}: a data set of this name is registered already, with json file "
                f"{registered[0]!r} and image root {registered[1]!r} instead of {json_file!r} and "
                f"{image_root!r}. Use another name."
            )
        categories = _read_categories(json_file, where)
        if not _may_be_dir(image_root):
            raise FileNotFoundError(
                f"{where}: the image root {_shown(image_root)} is no directory."
            )
        new[name] = {
            "json_file": json_file,
            "image_root": image_root,
            # As Detectron2 sets them when it loads the data set.
            "metadata": {
                "thing_classes": list(categories.values()),
                "thing_dataset_id_to_contiguous_id": {id: i for i, id in enumerate(categories)},
            },
        }
    for name, arguments in new.items():
        register_coco_instances(name, **arguments)


def register_coco_json_from_file(path: str) -> None:
    """Registers the data sets of a YAML file's `DATASETS.COCO_JSON`.

    Args:
        path: a Detectron2 config file, `_BASE_` included, or a file that holds only this key.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has no `DATASETS.COCO_JSON`.
        As :func:`register_coco_json`.
    """
    if not PathManager.isfile(path):
        raise FileNotFoundError(
            f"There is no file {_shown(path)} to read {_KEY} from; expected a YAML file."
        )
    try:
        content = CfgNode.load_yaml_with_base(path, allow_unsafe=True)
        entries = content["DATASETS"]["COCO_JSON"]
    except (KeyError, TypeError):
        raise ValueError(
            f"{path} has no {_KEY}; expected a list of (name, json file, image root) there."
        ) from None
    register_coco_json(entries)


def check_categories(cfg: CfgNode) -> None:
    """Checks that the data sets of the config exist, and fit each other and the model.

    To be called after :func:`register_coco_json`. Categories are compared where Detectron2 knows them
    without loading the data set: for those of `DATASETS.COCO_JSON`, the generated shapes and COCO.

    Raises:
        ValueError: a data set is not registered, two of them have different categories, or
            `MODEL.ROI_HEADS.NUM_CLASSES` is not their number of categories.
    """
    first: str | None = None
    for key in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            if name not in DatasetCatalog:
                raise ValueError(_unknown(f"DATASETS.{key}", name))
            categories = _registered_categories(name)
            if categories is None:
                continue
            if first is None:
                first = name
                _check_num_classes(cfg, name, len(categories))
            reference = _registered_categories(first)
            if categories != reference:
                raise ValueError(
                    f"The data sets {first!r} and {name!r} of DATASETS.TRAIN and DATASETS.TEST "
                    f"must have the same categories; they differ in "
                    f"{_difference(reference or {}, categories)}."
                )


def _check_num_classes(cfg: CfgNode, name: str, num_classes: int) -> None:
    if cfg.MODEL.META_ARCHITECTURE in _ARCHITECTURES_WITH_ROI_HEADS:
        node = "ROI_HEADS"
    elif cfg.MODEL.META_ARCHITECTURE == "RetinaNet":
        node = "RETINANET"
    else:
        return
    of_model = cfg.MODEL[node].NUM_CLASSES
    if of_model != num_classes:
        raise ValueError(
            f"MODEL.{node}.NUM_CLASSES is {of_model}, but the data set "
            f"{name!r} has {num_classes} categories; set it to {num_classes}."
        )


def _registered_categories(name: str) -> dict[int, str] | None:
    metadata = MetadataCatalog.get(name)
    ids = metadata.get("thing_dataset_id_to_contiguous_id")
    names = metadata.get("thing_classes")
    if ids is None or names is None:
        return None
    return {id: names[index] for id, index in ids.items()}


def _difference(one: dict[int, str], other: dict[int, str]) -> str:
    different = [
        f"id {id}: {one.get(id)!r} against {other.get(id)!r}"
        for id in sorted(one.keys() | other.keys())
        if one.get(id) != other.get(id)
    ]
    more = len(different) - 5
    return "; ".join(different[:5]) + (f"; and {more} more" if more > 0 else "")


def _unknown(key: str, name: str) -> str:
    if name in VALUES[key]:
        return f"{key} names the data set {name!r}, which was renamed to {VALUES[key][name]!r}."
    known: list[str] = DatasetCatalog.list()
    close = difflib.get_close_matches(name, known)
    if close:
        hint = f"did you mean {' or '.join(map(repr, close))}?"
    else:
        hint = f"registered are {', '.join(sorted(known))}."
    return f"{key} names the data set {name!r}, which is not registered (nor in {_KEY}): {hint}"


def _read_categories(json_file: str, where: str) -> dict[int, str]:
    """Category id -> name, sorted by id."""
    try:
        with open(PathManager.get_local_path(json_file), encoding="utf-8") as f:
            content = json.load(f)
    except OSError as error:
        raise FileNotFoundError(
            f"{where}: the json file {_shown(json_file)} cannot be read: {error}."
        ) from error
    except ValueError as error:
        raise ValueError(f"{where}: {json_file} is not valid JSON: {error}.") from error
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise ValueError(
            f"{where}: {json_file} is not COCO JSON; expected an object with the lists images, "
            f"annotations and categories."
        )
    categories = content.get("categories")
    if not isinstance(categories, list) or not categories:
        raise ValueError(
            f"{where}: {json_file} has no categories; expected a list of objects with id and name."
        )
    names: dict[int, str] = {}
    for category in categories:
        id = category.get("id") if isinstance(category, dict) else None
        if type(id) is not int or not isinstance(category.get("name"), str) or id in names:
            raise ValueError(
                f"{where}: {json_file} has the category {category!r}; expected a unique integer id "
                f"and a name."
            )
        names[id] = category["name"]
    return dict(sorted(names.items()))


def _may_be_dir(path: str) -> bool:
    try:
        return bool(PathManager.isdir(path))
    except NotImplementedError:
        # Handlers of remote files, such as HTTP's, cannot tell.
        return True


def _expand(path: str, what: str) -> str:
    for match in re.finditer(r"\$(\w+|\{[^}]*\})", path, re.ASCII):
        variable = match[1].strip("{}")
        if variable not in os.environ:
            raise ValueError(
                f"{what} is {path!r}, but the environment variable {variable} is not set."
            )
    return os.path.expanduser(os.path.expandvars(path))


def _shown(path: str) -> str:
    """A path for messages: absolute, because the working directory is often what is wrong."""
    return path if "://" in path else os.path.abspath(path)
