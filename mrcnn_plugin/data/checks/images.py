"""What is wrong with image files, as far as their headers and their ends tell."""

import concurrent.futures
import math
import os
import struct
import time
import warnings
from collections.abc import Sequence
from typing import Any, BinaryIO, NamedTuple

import tqdm
from PIL import Image, UnidentifiedImageError

# Modes of which Pillow's conversion to 8 bits cuts off what is above 255.
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_EXIF_ORIENTATION = 274
_TIFF_BITS = 258
_THREADS = 8
_TAIL = 4096


class Facts(NamedTuple):
    """What was found in an image file.

    Attributes:
        bytes: the size of the file.
        time: when it was changed, in ns.
        full: whether all of it was decoded.
        fault: a kind of `KINDS`, or "".
        detail: what the fault is.
        width: in px, after rotation by EXIF.
        height: in px, after rotation by EXIF.
        mode: Pillow's, with ";16" at its end where Pillow keeps the upper 8 of 16 bits only.
        orientation: EXIF's, 1 if there is none.
        frames: 2 if there are several, else 1.
    """

    bytes: int = 0
    time: int = 0
    full: bool = False
    fault: str = ""
    detail: str = ""
    width: int = 0
    height: int = 0
    mode: str = ""
    orientation: int = 1
    frames: int = 1


def look_at_images(
    paths: Sequence[str],
    known: dict[str, Facts],
    *,
    full: bool,
    seconds: float | None,
    seconds_to_decode: float,
    progress: bool,
    name: str,
) -> dict[str, Facts | None]:
    """Facts of each file; None for those that there was no time for.

    All headers are read first. Then the images that were not known are decoded, as far as time allows.

    Args:
        paths: files of the local file system.
        known: facts from an earlier start. They hold for files of the same size and time.
        full: whether to decode the images.
        seconds: time after which no further header is read. None for no limit.
        seconds_to_decode: time after which no further image is decoded, unless `full`.
        progress: whether to show a progress bar.
        name: what the progress bar is called.
    """
    result: dict[str, Facts | None] = {}
    new: list[str] = []
    for path in paths:
        try:
            stat = os.stat(path)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            result[path] = Facts(fault="file_missing", detail=reason)
            continue
        facts = known.get(path)
        if (
            facts
            and (facts.bytes, facts.time) == (stat.st_size, stat.st_mtime_ns)
            and (facts.full or not full)
        ):
            result[path] = facts
        else:
            new.append(path)
            result[path] = None
    with warnings.catch_warnings(), concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        warnings.simplefilter("ignore")

        def look(chosen: Sequence[str], full: bool, seconds: float | None, what: str) -> None:
            end = math.inf if seconds is None else time.monotonic() + seconds
            with tqdm.tqdm(
                total=len(chosen),
                desc=f"{what} of {name}",
                unit="image",
                disable=not progress,
                delay=1,
            ) as bar:
                for start in range(0, len(chosen), 64):
                    if time.monotonic() > end:
                        break
                    batch = chosen[start : start + 64]
                    result.update(
                        zip(batch, pool.map(lambda p: look_at(p, full), batch), strict=True)
                    )
                    bar.update(len(batch))

        look(new, full, seconds, "Images" if full else "Headers")
        sound = [path for path in new if (facts := result[path]) and not facts.fault]
        if not full and seconds_to_decode > 0:
            look(sound, True, seconds_to_decode, "Images")
    return result


def look_at(path: str, full: bool = False) -> Facts:
    """Facts of one file. Whatever looks odd from its header or its end is decoded, to be sure."""
    stat = os.stat(path)
    facts = Facts(stat.st_size, stat.st_mtime_ns, full)
    if not os.path.isfile(path):
        return facts._replace(fault="file_unreadable", detail="it is a folder")
    if stat.st_size == 0:
        return facts._replace(fault="file_truncated", detail="it is empty")
    try:
        with open(path, "rb") as file:
            whole = _ends_as_it_should(file, stat.st_size)
            file.seek(0)
            with Image.open(file) as image:
                width, height = image.size
                mode = pixel_mode(image)
                orientation = _orientation(image, full)
                if 5 <= orientation <= 8:
                    width, height = height, width
                facts = facts._replace(
                    width=width,
                    height=height,
                    mode=mode,
                    orientation=orientation,
                )
                # Pillow fails here if a later page is cut off. The width then says that the header could be read.
                facts = facts._replace(frames=frames_of(image))
                if full or not whole:
                    image.seek(0)
                    image.load()
            if full:
                # Checksums, which decoding ignores.
                file.seek(0)
                with Image.open(file) as image:
                    image.verify()
    except Image.DecompressionBombError as error:
        return facts._replace(fault="file_too_large", detail=str(error))
    except UnidentifiedImageError:
        return facts._replace(fault="file_unreadable", detail="no format that Pillow knows")
    except Exception as error:  # Pillow raises a dozen types for damaged files.
        fault = "file_truncated" if facts.width else "file_unreadable"
        return facts._replace(fault=fault, detail=str(error) or type(error).__name__)
    return facts


def pixel_mode(image: Any) -> str:
    """The `mode` of :class:`Facts` of an image that was opened."""
    depth = 8
    if image.format == "PNG":
        # Pillow's decoders are named after what they decode, such as "RGB;16B".
        decoder = image.tile[0][3] if image.tile else ""
        depth = 16 if ";16" in str(decoder) else 8
    elif image.format == "TIFF":
        depth = max(_tuple(image.tag_v2.get(_TIFF_BITS, 8)))
    mode: str = image.mode
    return mode if depth <= 8 or mode in _DEEP_MODES else f"{mode};16"


def is_deep(mode: str) -> bool:
    """Whether pixels of a `mode` of :class:`Facts` have more than 8 bits."""
    return mode in _DEEP_MODES or mode.endswith(";16")


def _orientation(image: Any, full: bool) -> int:
    if image.format == "PNG" and "exif" not in image.info and not full:
        # Pillow would decode the image to see whether there is something after it.
        return 1
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:
        # As Detectron2, which shows an image with a damaged EXIF as it is.
        return 1
    return value if value in range(1, 9) else 1


def frames_of(image: Any) -> int:
    """How many frames or pages an opened image has: 1, or 2 for several."""
    # The second picture of a camera's MPO file is a preview or a depth map.
    return 1 if image.format == "MPO" else min(2, getattr(image, "n_frames", 1))


def _ends_as_it_should(file: BinaryIO, size: int) -> bool:
    """False if the file seems to be cut, from its first and last bytes."""
    head = file.read(32)
    file.seek(max(0, size - _TAIL))
    tail = file.read()
    if head.startswith(b"\xff\xd8"):
        # Some cameras write data of their own after the end marker; such files are decoded. A thumbnail has one too.
        return tail.rstrip(b"\0\r\n").endswith(b"\xff\xd9")
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return tail.endswith(b"IEND\xaeB`\x82")
    if head.startswith((b"GIF87a", b"GIF89a")):
        return tail.rstrip(b"\0").endswith(b"\x3b")
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return size >= struct.unpack("<I", head[4:8])[0] + 8
    if head.startswith(b"BM"):
        return size >= struct.unpack("<I", head[2:6])[0]
    # TIFF, where the data may stand anywhere, and rarer formats are checked against the strips that they list, or
    # decoded.
    if head.startswith((b"II*\0", b"MM\0*")):
        return _tiff_is_whole(file, size)
    return False


def _tiff_is_whole(file: BinaryIO, size: int) -> bool:
    file.seek(0)
    with Image.open(file) as image:
        tags = getattr(image, "tag_v2", {})
        for offsets, counts in ((273, 279), (324, 325)):
            if offsets in tags and counts in tags:
                pairs = zip(_tuple(tags[offsets]), _tuple(tags[counts]), strict=False)
                return all(offset + count <= size for offset, count in pairs)
    return False


def _tuple(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)
