"""Reading of a COCO JSON file."""

import codecs
import json
import locale
from collections.abc import Sequence
from typing import Any


def read_content(path: str, shown: str, where: str) -> tuple[dict[str, Any], bool]:
    """Reads a COCO JSON file of the local file system.

    Args:
        path: the file.
        shown: the file, for messages.
        where: the data set, for messages.

    Returns:
        The content, and whether pycocotools reads the same. It opens files in the encoding of the locale, and fails
        with a byte-order mark.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not JSON, or has no images or no well-formed categories.
    """
    with open(path, "rb") as f:
        data = f.read()
    mark = data.startswith(codecs.BOM_UTF8)
    try:
        content = json.loads(data.decode("utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{where}: {shown} is not valid JSON in UTF-8: {error}.") from error
    except RecursionError:
        raise ValueError(f"{where}: {shown} is not valid JSON: it is nested too deeply.") from None
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise ValueError(
            f"{where}: {shown} is not COCO JSON; expected an object with the lists images, "
            f"annotations and categories."
        )
    utf_8 = codecs.lookup(locale.getpreferredencoding(False)).name == "utf-8"
    return content, not mark and (utf_8 or data.isascii())


def read_categories(content: dict[str, Any], shown: str, where: str) -> dict[int, str]:
    """Category id -> name, sorted by id.

    Raises:
        ValueError: there are none, or one has no name or no unique integer id.
    """
    categories = content.get("categories")
    if not isinstance(categories, list) or not categories:
        raise ValueError(
            f"{where}: {shown} has no categories; expected a list of objects with id and name."
        )
    names: dict[int, str] = {}
    for category in categories:
        id = category.get("id") if isinstance(category, dict) else None
        if type(id) is not int or not isinstance(category.get("name"), str) or id in names:
            raise ValueError(
                f"{where}: {shown} has the category {category!r}; expected a unique integer id "
                f"and a name."
            )
        names[id] = category["name"]
    return dict(sorted(names.items()))


def keypoint_names(categories: Sequence[dict[str, Any]]) -> list[str]:
    """The names of the keypoints if the categories that have some agree, else none."""
    lists = [c["keypoints"] for c in categories if c.get("keypoints")]
    if not lists or any(names != lists[0] for names in lists):
        return []
    names = lists[0]
    return names if isinstance(names, list) and all(isinstance(n, str) for n in names) else []


def keypoint_connections(categories: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """The names of the keypoints that the skeleton connects, if the categories that have one agree, else none."""
    names = keypoint_names(categories)
    skeletons = [c["skeleton"] for c in categories if c.get("skeleton")]
    if not skeletons or any(skeleton != skeletons[0] for skeleton in skeletons):
        return []
    skeleton = skeletons[0]
    # It is only drawn, so that a faulty one is no reason to stop.
    if not isinstance(skeleton, list) or not all(
        isinstance(pair, list)
        and len(pair) == 2
        and all(type(number) is int and 1 <= number <= len(names) for number in pair)
        for pair in skeleton
    ):
        return []
    return [(names[one - 1], names[other - 1]) for one, other in skeleton]
