"""Inspections of data sets, remembered from one start to the next."""

import contextlib
import dataclasses
import hashlib
import json
import locale
import logging
import os
import urllib.parse
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import portalocker
from iopath.common.file_io import file_lock, get_cache_dir

from .annotations import Checked, Finding, Findings, check_content
from .images import Facts, is_deep, look_at_images
from .read import keypoint_connections, keypoint_names, read_categories, read_content

# To be raised with every change of what is found or how it is stored.
_VERSION = 10
# How long the headers of the images of a data set are read, in s. What is missing is done at the next start.
SECONDS_FOR_HEADERS = 60.0
# How long images are decoded that were not seen before, in s. The others are not decoded, unless all are to be.
SECONDS_TO_DECODE = 10.0

logger = logging.getLogger("detectron2.mrcnn_plugin.data")


@dataclass(kw_only=True)
class Inspection(Checked):
    """What is known of a COCO JSON file: what its content says, and what its checks found out.

    Attributes:
        json_file: the file to be used: the file itself, or its repaired copy.
        categories: category id -> name, sorted by id.
        keypoints: the names of the keypoints, if the categories have them and agree.
        connections: the names of the keypoints that the skeleton connects, if the categories have one and agree.
    """

    json_file: str
    categories: dict[int, str]
    keypoints: list[str]
    connections: list[tuple[str, str]]


def read_json(path: str, shown: str, where: str) -> tuple[Inspection, dict[str, Any], bool]:
    """Reads a COCO JSON file without checks. Returns what is known then, and what :func:`read_content` returns."""
    content, readable = read_content(path, shown, where)
    inspection = Inspection(
        json_file=path,
        categories=read_categories(content, shown, where),
        keypoints=keypoint_names(content["categories"]),
        connections=keypoint_connections(content["categories"]),
    )
    return inspection, content, readable


def inspect_json(
    path: str, shown: str, where: str, *, masks: bool, limit: int | None = 5
) -> Inspection:
    """Checks a COCO JSON file, or remembers what was found when it was checked last.

    Where something in it can be repaired, a repaired copy is written to the cache folder of iopath ($FVCORE_CACHE, by
    default ~/.torch/iopath_cache), so that Detectron2, pycocotools and every tool read the same. If that folder cannot
    be written to, nothing is remembered, which is logged.

    Args:
        path: a file of the local file system.
        shown: the file, for messages.
        where: the data set, for messages.
        masks: whether masks are of interest.
        limit: how many examples of a fault are kept; None for all, which are not remembered.

    Raises:
        ValueError: a repaired copy is needed, and the cache folder cannot be written to.
        As :func:`read_content`.
    """
    stat = os.stat(path)
    source = [os.path.abspath(path), stat.st_size, stat.st_mtime_ns]
    key = _key(source[0], masks, limit, locale.getpreferredencoding(False))
    base = os.path.splitext(os.path.basename(path))[0]
    cache = os.path.join(_folder(), f"{base}-{key}.inspection")
    with _locked(cache):
        stored = _load(cache)
        if (
            limit is not None
            and stored.get("source") == source
            and os.path.isfile(stored["inspection"]["json_file"])
        ):
            return _from_json(stored["inspection"])
        inspection, content, readable = read_json(path, shown, where)
        checked, repaired = check_content(content, masks=masks, limit=limit)
        inspection = dataclasses.replace(inspection, **vars(checked))
        if repaired is not None or not readable:
            inspection.json_file = copy = os.path.join(_folder(), f"{base}-{key}.json")
            try:
                _write(copy, content if repaired is None else repaired)
            except OSError as error:
                raise ValueError(
                    f"{where}: {shown} has to be repaired, but the repaired copy {copy} cannot be written: {error}. "
                    f"Set $FVCORE_CACHE to a folder that can be written to."
                ) from error
        if limit is not None:
            _remember(cache, {"source": source, "inspection": _to_json(inspection)})
        return inspection


# The keys of JSON are texts.
_NUMBERED = ("categories", "images_of_category", "objects")


def _to_json(inspection: Inspection) -> dict[str, Any]:
    fields = dataclasses.asdict(inspection)
    return {**fields, **{name: list(fields[name].items()) for name in _NUMBERED}}


def _from_json(fields: dict[str, Any]) -> Inspection:
    fields = {**fields, **{name: dict(fields[name]) for name in _NUMBERED}}
    fields["findings"] = [Finding(**finding) for finding in fields["findings"]]
    return Inspection(**fields)


def inspect_images(
    images: Sequence[tuple[str, int, int]],
    root: str,
    name: str,
    *,
    full: bool,
    progress: bool,
    resized: Callable[[int, int], tuple[int, int]],
    limit: int | None,
) -> list[Finding]:
    """Checks the image files of a data set; remembers what was found in those that have not changed since.

    Args:
        images: (file name, width, height) of each, in px.
        root: the folder that file names are relative to, in the local file system.
        name: of the data set.
        full: whether to decode every image.
        progress: whether to show a progress bar.
        resized: the smallest (height, width) of the input of the model for an image of a (height, width).
        limit: how many examples of a fault are kept; None for all.
    """
    cache = os.path.join(_folder(), f"images-{_key(os.path.abspath(root))}.inspection")
    paths = list(dict.fromkeys(os.path.join(root, file_name) for file_name, _, _ in images))
    with _locked(cache):
        stored = {path: Facts(*facts) for path, facts in _load(cache).get("facts", {}).items()}
        facts = look_at_images(
            paths,
            stored,
            full=full,
            seconds=None if full else SECONDS_FOR_HEADERS,
            seconds_to_decode=SECONDS_TO_DECODE,
            progress=progress,
            name=name,
        )
        new = {p: f for p, f in facts.items() if f is not None and f.bytes and stored.get(p) != f}
        if new:
            _remember(cache, {"facts": {**stored, **new}})

    findings = Findings(limit)

    def add(kind: str, example: str) -> None:
        findings.add(kind, [example], len(images), str, lambda _: path)

    turned = 0
    for file_name, width, height in images:
        path = os.path.join(root, file_name)
        found = facts[path]
        if found is None:
            add("files_not_looked_at", path)
            continue
        if found.fault:
            add(found.fault, f"{path}: {found.detail}")
            continue
        size = f"{found.width} x {found.height}"
        if (found.width, found.height) != (width, height):
            exif = (
                f" (after EXIF orientation {found.orientation})" if found.orientation != 1 else ""
            )
            add("file_size", f"{path} is {size}{exif}, width and height say {width} x {height}")
            turned += (found.height, found.width) == (width, height)
        elif found.orientation in (2, 3, 4) or (found.orientation > 4 and width == height):
            add("file_rotated", f"{path}: EXIF orientation {found.orientation}")
        if is_deep(found.mode):
            add("file_16_bit", f"{path}: Pillow's mode {found.mode!r}")
        if found.frames > 1:
            add("file_frames", path)
        new_height, new_width = resized(height, width)
        if min(new_height, new_width) < 1:
            add("file_thin", f"{path} of {size} becomes {new_width} x {new_height}")
    if turned:
        findings.found["file_size"].hint = (
            f"Width and height are swapped in {turned} of them: what wrote the JSON file may have ignored EXIF, or "
            f"written them in the wrong order."
        )
    if "file_missing" in findings.found:
        first = next(
            name
            for name, _, _ in images
            if (f := facts[os.path.join(root, name)]) and f.fault == "file_missing"
        )
        findings.found["file_missing"].hint = _hint_of_missing(first, root)
    return list(findings.found.values())


def _hint_of_missing(name: str, root: str) -> str:
    if not name.isascii() and os.fsencode("é") != "é".encode():
        return "Names are not ASCII, and the locale is not UTF-8: set PYTHONUTF8=1, or LC_ALL to C.UTF-8."
    if name != name.strip():
        return "The names begin or end with a blank."
    if "\\" in name:
        return "The names have backslashes; write / instead."
    last = name.rsplit("/", 1)[-1]
    if last != name and os.path.exists(os.path.join(root, last)):
        return f"But {last} lies in the image root itself: take the folders out of file_name."
    if os.path.exists(os.path.join(root, urllib.parse.unquote(name))):
        return f"But there is {urllib.parse.unquote(name)!r}: the names must not be encoded as in a URL."
    try:
        there = {
            file.lower(): file for file in os.listdir(os.path.dirname(os.path.join(root, name)))
        }
    except (OSError, ValueError):  # A null byte in a name gives a ValueError.
        return ""
    if last.lower() in there:
        return f"But there is {there[last.lower()]!r}: upper and lower case must be the same."
    return ""


def _folder() -> str:
    return os.path.join(get_cache_dir(), "mrcnn_plugin")


@contextlib.contextmanager
def _locked(cache: str) -> Iterator[None]:
    """Makes the folder of a file, and keeps other processes from it, if that can be written to."""
    with contextlib.ExitStack() as stack:
        try:
            os.makedirs(os.path.dirname(cache), exist_ok=True)
            stack.enter_context(file_lock(cache))
        except OSError as error:
            # The check itself needs no lock. What cannot be remembered is logged when it is to be written.
            logger.debug("%s cannot be locked: %s", cache, error)
        except portalocker.LockException as error:
            # Files are replaced as a whole, so that nothing but work done twice comes of it.
            logger.warning("%s cannot be locked, and is used without a lock: %s", cache, error)
        yield


def _remember(cache: str, content: dict[str, Any]) -> None:
    try:
        _write(cache, content)
    except OSError as error:
        logger.warning(
            "What the checks of data sets found cannot be remembered in %s, so that they look at everything again at "
            "the next start: %s. Set $FVCORE_CACHE to a folder that can be written to.",
            cache,
            error,
        )


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps([_VERSION, *parts]).encode()).hexdigest()[:16]


def _load(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as f:
            return json.load(f)
    except (OSError, ValueError):
        return {}


def _write(path: str, content: dict[str, Any]) -> None:
    """Writes JSON in ASCII. A killed process leaves the old file or the new one."""
    partial = f"{path}.partial-{uuid.uuid4().hex}"
    try:
        with open(partial, "w", encoding="ascii") as f:
            f.write(json.dumps(content))
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.remove(partial)
