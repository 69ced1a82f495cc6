"""The user's own data sets in COCO format, named in YAML: `DATASETS.COCO_JSON`."""

import ast
import functools
import itertools
import os
import re
from collections.abc import Callable, Collection, Container, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.utils.colormap import colormap
from detectron2.utils.file_io import PathManager

from ..config import hint_at, read_yaml
from ..renamed import VALUES
from .checks import Usage, check_usage, check_values
from .checks.inspection import Inspection, inspect_json, read_json
from .keypoints import find_flip_pairs
from .pixels import check_pixel_range, scaled_path

_KEY = "DATASETS.COCO_JSON"
# Architecture -> the node with its NUM_CLASSES.
_NODES = {"GeneralizedRCNN": "ROI_HEADS", "PanopticFPN": "ROI_HEADS", "RetinaNet": "RETINANET"}


def register_coco_json(
    entries: Sequence[Sequence[str]],
    *,
    names: Collection[str] | None = None,
    check: str = "fast",
    masks: bool = True,
    usage: Usage | None = None,
    pixel_range: Sequence[float] = (),
    pixel_range_unit: str = "value",
    check_on_load: bool = True,
) -> None:
    """Registers data sets in COCO format in Detectron2: all of `entries`, or none if one is wrong.

    A data set's class names and category ids are put into its metadata at once, so that they are
    known without loading it; so are the names of its keypoints and what its skeleton connects, if
    its categories have them. An entry that this function has registered already is left as it is
    where the file and the other arguments are the same, and registered anew where they are not, for
    example when the file was written again.

    Where something in a JSON file can be repaired, the data set is registered with a repaired copy
    of it. All `entries` are checked when one of them is loaded first, so that a test set is
    checked before training; :func:`check_datasets` checks those of a config.

    Args:
        entries: the value of `DATASETS.COCO_JSON`, a list of (name, json file, image root). Paths
            may hold $VARIABLES, start with `~` or with any prefix that Detectron2's iopath handlers
            know; relative ones are relative to the working directory. Masks may be polygons or RLE;
            RLE needs `INPUT.MASK_FORMAT: "bitmask"`.
        names: those of the entries to register; by default all.
        check: "fast", "full" (every image is decoded) or "off" (nothing is checked nor repaired).
        masks: whether masks are of interest. If not, faulty segmentations are taken out.
        usage: which data sets are trained on and evaluated on, and how, for the checks on load;
            by default all `entries` are both.
        pixel_range: `INPUT.PIXEL_RANGE`.
        pixel_range_unit: `INPUT.PIXEL_RANGE_UNIT`.
        check_on_load: False where :func:`check_datasets` is called anyway.

    Raises:
        ValueError: an entry is not a triple of strings, its name is taken, other code has set other
            metadata, a variable in a path is not set, or the file is not COCO JSON with images and
            categories.
        FileNotFoundError: the json file or the image root does not exist or cannot be read.
    """
    check_entries(entries)
    check_values(check, usage.allow if usage else ())
    scale = functools.partial(scaled_path, limits=pixel_range, unit=pixel_range_unit)
    new: dict[str, dict[str, Any]] = {}
    seen: dict[str, int] = {}
    for index, entry in enumerate(entries):
        name = entry[0]
        where = f"{_KEY}[{index}] ({name!r})"
        if name in seen:
            raise ValueError(f"{where} has the same name as {_KEY}[{seen[name]}]; use another.")
        seen[name] = index
        if names is not None and name not in names:
            continue
        json_file = _expand(entry[1], f"the json file of {where}")
        image_root = _expand(entry[2], f"the image root of {where}")
        scaled_root = scale(image_root)
        known = None
        if name in DatasetCatalog:
            metadata: Any = MetadataCatalog.get(name)
            source = metadata.get("coco_json_source", metadata.get("json_file"))
            registered = (source, metadata.get("coco_json_root", metadata.get("image_root")))
            if registered != (json_file, image_root):
                raise ValueError(
                    f"{where}: a data set of this name is registered already, with json file "
                    f"{registered[0]!r} and image root {registered[1]!r} instead of {json_file!r} "
                    f"and {image_root!r}. Use another name."
                )
            known = metadata.get("coco_json_arguments")
            if known is None:
                if pixel_range:
                    raise ValueError(
                        f"{where}: other code has registered a data set of this name, which does not "
                        f"scale images, but INPUT.PIXEL_RANGE is {list(pixel_range)!r}. Use another name."
                    )
                continue
        local, state = _find(json_file, where)
        arguments = (scaled_root, check != "off", masks, state)
        if known == arguments:
            continue
        inspection = _inspect(local, _shown(json_file), where, check, masks)
        if not _may_be_dir(image_root):
            raise FileNotFoundError(
                f"{where}: the image root {_shown(image_root)} is no directory."
            )
        others = _metadata_of_others(name)
        new[name] = {
            # A file that needed no repair keeps its name, which may be a remote one.
            "json_file": json_file if inspection.json_file == local else inspection.json_file,
            "image_root": scaled_root,
            "evaluator_type": "coco",
            # Not Detectron2's: what the entry names, and where the file lies.
            "coco_json_source": json_file,
            "coco_json_local": local,
            "coco_json_root": image_root,
            "coco_json_arguments": arguments,
            **_metadata_of_file(inspection, others),
        }
        for key, value in others.items():
            if key in new[name] and _differ(new[name][key], value):
                raise ValueError(
                    f"{where}: other code has set {key!r} of this data set's metadata to {value!r}, but "
                    f"the entry gives {new[name][key]!r}. Do not set it there, or use another name."
                )
    if usage is None:
        usage = Usage(
            train=list(new), test=list(new), check=check, mask_on=None if masks else False
        )
    # The first of them that is loaded has all checked.
    check_once = functools.cache(functools.partial(check_usage, usage))
    checked = (*usage.train, *usage.test) if check_on_load else ()
    for name, metadata in new.items():
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
        if "coco_json_keys" in MetadataCatalog.get(name).as_dict():
            # An earlier registration of this function. Metadata cannot be changed, so they are made
            # anew, with what others have added.
            others = _metadata_of_others(name)
            MetadataCatalog.remove(name)
            MetadataCatalog.get(name).set(**others)
        load = functools.partial(
            _load,
            name,
            metadata["json_file"],
            metadata["coco_json_root"],
            check_once if name in checked else None,
            scale,
        )
        DatasetCatalog.register(name, load)
        MetadataCatalog.get(name).set(
            **metadata, coco_json_keys=["name", "coco_json_keys", *metadata]
        )


def _metadata_of_file(inspection: Inspection, others: Container[str]) -> dict[str, Any]:
    """What a JSON file says of its categories. Of some keys, the values of `others` stay."""
    categories, keypoints = inspection.categories, inspection.keypoints
    metadata: dict[str, Any] = {
        # As Detectron2 sets them when it loads the data set.
        "thing_classes": list(categories.values()),
        "thing_dataset_id_to_contiguous_id": {id: i for i, id in enumerate(categories)},
    }
    if inspection.images_of_category:
        # For MODEL.ROI_BOX_HEAD.USE_FED_LOSS.
        counts = sorted(inspection.images_of_category.items())
        metadata["class_image_count"] = [{"id": id, "image_count": n} for id, n in counts]
    if keypoints:
        metadata["keypoint_names"] = keypoints
        # Pairs that other code has given stay; Detectron2 would not let others replace them.
        if "keypoint_flip_map" not in others:
            metadata["keypoint_flip_map"] = find_flip_pairs(keypoints)
        if inspection.connections and "keypoint_connection_rules" not in others:
            # Detectron2 draws each connection in a colour.
            colors = itertools.cycle(colormap(rgb=True).astype(int).tolist())
            metadata["keypoint_connection_rules"] = [
                (*pair, tuple(color))
                for pair, color in zip(inspection.connections, colors, strict=False)
            ]
    return metadata


def _metadata_of_others(name: str) -> dict[str, Any]:
    """What other code has put into the metadata of a data set."""
    known = MetadataCatalog.get(name).as_dict() if name in MetadataCatalog else {}
    ours = known.get("coco_json_keys", ("name",))
    return {key: value for key, value in known.items() if key not in ours}


def _differ(value: Any, other: Any) -> bool:
    try:
        return bool(value != other)
    except ValueError:  # The other is an array.
        return True


def check_entries(entries: Any) -> None:
    """Checks that the value of `DATASETS.COCO_JSON` is a list of triples of strings.

    Raises:
        ValueError: it is none.
    """
    if isinstance(entries, (str, bytes)) or not isinstance(entries, Sequence):
        raise ValueError(
            f"{_KEY} is {entries!r}; it must be a list of (name, json file, image root)."
        )
    for index, entry in enumerate(entries):
        if (
            not isinstance(entry, (list, tuple))
            or len(entry) != 3
            or not all(isinstance(part, str) and part for part in entry)
        ):
            raise ValueError(
                f"{_KEY}[{index}] is {entry!r}; it must be three strings: name, json file, image "
                f"root."
            )


def _load(
    name: str,
    json_file: str,
    image_root: str,
    check_once: Callable[[], None] | None,
    scale: Callable[[str], str],
) -> list[dict[str, Any]]:
    """Loads a data set as Detectron2's `register_coco_instances` does, with images to be scaled."""
    if check_once is not None:
        check_once()
    dicts = load_coco_json(json_file, image_root, name)
    # Only now, because an absolute file_name replaces the image root.
    for record in dicts:
        record["file_name"] = scale(record["file_name"])
    return dicts


def _find(json_file: str, where: str) -> tuple[str, tuple[int, int]]:
    """The local path of a JSON file, and what changes when the file does."""
    try:
        local = PathManager.get_local_path(json_file)
        stat = os.stat(local)
    except OSError as error:
        raise _unreadable(_shown(json_file), where, error) from error
    return local, (stat.st_size, stat.st_mtime_ns)


def _inspect(local: str, shown: str, where: str, check: str, masks: bool) -> Inspection:
    """What is known of a JSON file."""
    try:
        if check != "off":
            return inspect_json(local, shown, where, masks=masks)
        return read_json(local, shown, where)[0]
    except OSError as error:
        raise _unreadable(shown, where, error) from error


def _unreadable(shown: str, where: str, error: OSError) -> FileNotFoundError:
    return FileNotFoundError(f"{where}: the json file {shown} cannot be read: {error}.")


def register_coco_json_from_file(path: str) -> None:
    """Registers the data sets of a YAML file's `DATASETS.COCO_JSON`.

    They are checked when one of them is loaded first. If the file has `DATASETS.TRAIN` and
    `DATASETS.TEST`, only those that are named there; `DATASETS.CHECK` and `DATASETS.ALLOW` count as
    well, and so do `INPUT.PIXEL_RANGE` and `INPUT.PIXEL_RANGE_UNIT`. If it is a config file, with a
    node `MODEL`, then so do `MODEL.MASK_ON` and `INPUT.MASK_FORMAT`.

    Args:
        path: a Detectron2 config file, `_BASE_` included, or a file that holds only this key.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has no `DATASETS.COCO_JSON`, or another key has a value that it cannot have.
        As :func:`register_coco_json` and :func:`check_pixel_range`.
    """
    if not PathManager.isfile(path):
        raise FileNotFoundError(
            f"There is no file {_shown(path)} to read {_KEY} from; expected a YAML file."
        )
    content = read_yaml(path)
    try:
        entries = content["DATASETS"]["COCO_JSON"]
    except KeyError:
        raise ValueError(
            f"{path} has no {_KEY}; expected a list of (name, json file, image root) there."
        ) from None
    check_entries(entries)
    usage = _usage(content)
    pixels = CfgNode({"INPUT": {}})
    pixels.INPUT.PIXEL_RANGE = _value(content, "INPUT", "PIXEL_RANGE", [])
    pixels.INPUT.PIXEL_RANGE_UNIT = _value(content, "INPUT", "PIXEL_RANGE_UNIT", "value")
    check_pixel_range(pixels)
    register_coco_json(
        entries,
        check=usage.check,
        masks=usage.mask_on is not False,
        usage=usage,
        pixel_range=pixels.INPUT.PIXEL_RANGE,
        pixel_range_unit=pixels.INPUT.PIXEL_RANGE_UNIT,
    )


def _value(content: dict[str, Any], node: str, key: str, default: Any) -> Any:
    """The value of a key of a YAML file, or the default.

    Raises:
        ValueError: the value is a tuple that cannot be read, or no list where the default is one.
    """
    found = content.get(node, {}).get(key, default)  # read_yaml refuses a node that is no mapping.
    if isinstance(found, str) and found.startswith("("):
        # As yacs does: YAML knows no tuples.
        try:
            found = ast.literal_eval(found)
        except (SyntaxError, ValueError) as error:
            raise ValueError(f"{node}.{key} is {found!r}, which is no tuple of Python.") from error
    if isinstance(default, (list, tuple)) and not isinstance(found, (list, tuple)):
        raise ValueError(f"{node}.{key} is {found!r}; it must be a list.")
    return found


def _usage(content: dict[str, Any]) -> Usage:
    """How the data sets of a YAML file are used, as far as it says so."""
    names = [entry[0] for entry in content["DATASETS"]["COCO_JSON"]]
    is_config = "MODEL" in content
    return Usage(
        train=_value(content, "DATASETS", "TRAIN", names),
        test=_value(content, "DATASETS", "TEST", names),
        check=_value(content, "DATASETS", "CHECK", "fast"),
        allow=_value(content, "DATASETS", "ALLOW", ()),
        mask_on=_value(content, "MODEL", "MASK_ON", False) if is_config else None,
        mask_format=_value(content, "INPUT", "MASK_FORMAT", "polygon") if is_config else None,
    )


def check_categories(cfg: CfgNode, train: bool = True) -> None:
    """Checks that the data sets of the config exist, and fit each other and the model.

    To be called after :func:`register_coco_json`. Categories are compared where Detectron2 knows them
    without loading the data set: for those of `DATASETS.COCO_JSON`, the generated shapes and COCO.

    Args:
        train: whether the training sets have to exist.

    Raises:
        ValueError: a data set is not registered, two of them have different categories, or
            `MODEL.ROI_HEADS.NUM_CLASSES` is not their number of categories.
    """
    first, reference = "", None
    for key in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            if name not in DatasetCatalog:
                if key == "TRAIN" and not train:
                    continue
                raise ValueError(_unknown(f"DATASETS.{key}", name))
            categories = _registered_categories(name)
            if categories is None:
                continue
            if reference is None:
                first, reference = name, categories
                _check_num_classes(cfg, name, len(categories))
            if categories != reference:
                raise ValueError(
                    f"The data sets {first!r} and {name!r} of DATASETS.TRAIN and DATASETS.TEST "
                    f"must have the same categories; they differ in "
                    f"{_difference(reference, categories)}."
                )


def _check_num_classes(cfg: CfgNode, name: str, num_classes: int) -> None:
    node = _NODES.get(cfg.MODEL.META_ARCHITECTURE)
    if node is None:
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
    hint = hint_at(name, DatasetCatalog.list())
    return f"{key} names the data set {name!r}, which is not registered (nor in {_KEY}): {hint}"


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
